"""The gallery that a fresh server starts with: procedural scenes, pictures and captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders.preprocessing import ImageSpec, pixels
from service.messages import NewItem


def demo_items(count: int, spec: ImageSpec) -> list[NewItem]:
    """`count` scenes of the demo's gallery split, each with its picture and its caption."""
    from demo.scenes import render, scenes

    return [
        NewItem(
            id=scene.id,
            text=scene.caption,
            pixels=pixels(render(scene), spec),
            payload={"caption": scene.caption, **_plain(scene.attributes)},
        )
        for scene in scenes("gallery", count)
    ]


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(attributes)
