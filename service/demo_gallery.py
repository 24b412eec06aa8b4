"""The gallery that a fresh server starts with: procedural scenes, pictures and captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from encoders.preprocessing import ImageSpec, pixels
from service.messages import NewItem

if TYPE_CHECKING:
    from demo.scenes import Scene


def demo_items(count: int, spec: ImageSpec) -> list[NewItem]:
    """`count` scenes of the demo's gallery split, each with its picture and its caption."""
    from demo.scenes import render, scenes

    return [
        NewItem(
            id=scene.id, text=scene.caption, pixels=pixels(render(scene), spec), payload=_payload(scene)
        )
        for scene in scenes("gallery", count)
    ]


def _payload(scene: Scene) -> dict[str, Any]:
    """Flat lists, so that a filter can ask for {"shapes": "star"}."""
    return {
        "caption": scene.caption,
        "shapes": [thing.shape for thing in scene.things],
        "colours": [thing.colour for thing in scene.things],
        "textures": [thing.texture for thing in scene.things],
        "background": scene.background,
    }
