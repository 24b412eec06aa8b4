"""The gallery that a fresh server starts with: procedural scenes, pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from encoders.base import Encoder
from service.galleries import Galleries
from service.messages import NewItem

if TYPE_CHECKING:
    from demo.scenes import Scene


def fill_demo_gallery(
    galleries: Galleries, encoder: Encoder, name: str, count: int, *, previews: bool = True
) -> None:
    """Make gallery `name` of `count` demo scenes, unless there is one of that name."""
    if galleries.exists(name):
        return
    galleries.create(name, None)
    for _ in galleries.upsert(name, demo_items(count, encoder, previews=previews)):
        pass


def demo_items(count: int, encoder: Encoder, *, previews: bool = True) -> list[NewItem]:
    """`count` scenes of the demo's gallery split, each with the vectors of its picture and its caption."""
    from demo.gallery import load_previews, load_vectors, make_previews, make_vectors
    from demo.scenes import scenes

    made = scenes("gallery", count)
    vectors = load_vectors(count, encoder.fingerprint) or make_vectors(encoder, made)
    pictures: Sequence[bytes | None] = [None] * count
    if previews:
        pictures = load_previews(count) or make_previews(made)
    return [
        NewItem(
            id=scene.id,
            text=scene.caption,
            embeddings={"image": vectors.image[row], "text": vectors.text[row]},
            payload=_payload(scene),
            preview=preview,
        )
        for row, (scene, preview) in enumerate(zip(made, pictures, strict=True))
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
