"""From gallery items as they were sent to items as the engine takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anyio import CapacityLimiter

from service.errors import TooLarge
from service.http.engine import Engine
from service.http.images import Decoded, ImageLimits, ImageSource, decode_all, decode_with_previews
from service.http.queries import check_text, vector
from service.http.schemas import CanaryBody, ItemBody
from service.messages import Canary, NewItem, Query, Target
from service.settings import Settings


async def decode_items(
    items: Sequence[ItemBody], settings: Settings, engine: Engine, threads: CapacityLimiter
) -> list[NewItem]:
    """Pictures to pixels and previews, embeddings to checked vectors. Raises TooLarge, Refusal; names the
    item.
    """
    sources = _sources("items", items, settings)
    decoded = iter(
        await decode_with_previews(
            sources,
            engine.image_spec,
            _image_limits(settings),
            threads,
            preview_pixels=settings.preview_pixels,
        )
    )
    return [
        _item(item, None if item.image is None else next(decoded), f"items[{i}].embeddings", engine.dimension)
        for i, item in enumerate(items)
    ]


def _item(item: ItemBody, picture: Decoded | None, field: str, dimension: int) -> NewItem:
    return NewItem(
        id=item.id,
        payload=item.payload,
        text=item.text,
        pixels=None if picture is None else picture.pixels,
        embeddings=_embeddings(field, item, dimension),
        preview=None if picture is None else picture.preview,
    )


async def decode_canaries(
    canaries: Sequence[CanaryBody], settings: Settings, engine: Engine, threads: CapacityLimiter
) -> list[Canary]:
    """Pictures to pixels. Raises TooLarge, Refusal; names the canary."""
    sources = _sources("canaries", canaries, settings)
    decoded = iter(await decode_all(sources, engine.image_spec, _image_limits(settings), threads))
    return [
        Canary(Query(text=canary.text, pixels=None if canary.image is None else next(decoded)), canary.answer)
        for canary in canaries
    ]


def _sources(field: str, sent: Sequence[ItemBody | CanaryBody], settings: Settings) -> list[ImageSource]:
    """Of those that have a picture, in order, once numbers and lengths are checked."""
    check_count(len(sent), settings)
    for i, one in enumerate(sent):
        if one.text is not None:
            check_text(f"{field}[{i}].text", one.text, settings)
    return [
        ImageSource(f"{field}[{i}].image", one.image) for i, one in enumerate(sent) if one.image is not None
    ]


def _image_limits(settings: Settings) -> ImageLimits:
    return ImageLimits(settings.max_image_bytes, settings.max_image_pixels)


def check_count(count: int, settings: Settings) -> None:
    """Raises TooLarge for more items than one request may name."""
    if count > settings.max_items_per_request:
        raise TooLarge(
            f"the request has {count} items; the server takes {settings.max_items_per_request}",
            details={"max_items": settings.max_items_per_request},
        )


def _embeddings(field: str, item: ItemBody, dimension: int) -> dict[Target, np.ndarray]:
    vectors: dict[Target, np.ndarray] = {}
    if item.embeddings is None:
        return vectors
    if item.embeddings.image is not None:
        vectors["image"] = vector(f"{field}.image", item.embeddings.image, dimension)
    if item.embeddings.text is not None:
        vectors["text"] = vector(f"{field}.text", item.embeddings.text, dimension)
    return vectors
