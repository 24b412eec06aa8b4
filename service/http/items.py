"""From gallery items as they were sent to items as the engine takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from anyio import CapacityLimiter

from service.errors import TooLarge
from service.http.engine import Engine
from service.http.images import ImageLimits, ImageSource, decode_all
from service.http.queries import check_text, vector
from service.http.schemas import CanaryBody, ItemBody
from service.messages import Canary, NewItem, Query, Target
from service.settings import Settings


async def decode_items(
    items: Sequence[ItemBody], settings: Settings, engine: Engine, threads: CapacityLimiter
) -> list[NewItem]:
    """Pictures to pixels, embeddings to checked vectors. Raises TooLarge, Refusal; names the item."""
    decoded = await _pictures("items", items, settings, engine, threads)
    return [
        NewItem(
            id=item.id,
            payload=item.payload,
            text=item.text,
            pixels=None if item.image is None else next(decoded),
            embeddings=_embeddings(f"items[{i}].embeddings", item, engine.dimension),
        )
        for i, item in enumerate(items)
    ]


async def decode_canaries(
    canaries: Sequence[CanaryBody], settings: Settings, engine: Engine, threads: CapacityLimiter
) -> list[Canary]:
    """Pictures to pixels. Raises TooLarge, Refusal; names the canary."""
    decoded = await _pictures("canaries", canaries, settings, engine, threads)
    return [
        Canary(Query(text=canary.text, pixels=None if canary.image is None else next(decoded)), canary.answer)
        for canary in canaries
    ]


async def _pictures(
    field: str,
    sent: Sequence[ItemBody | CanaryBody],
    settings: Settings,
    engine: Engine,
    threads: CapacityLimiter,
) -> Iterator[np.ndarray]:
    """The pixels of those that have a picture, in order, once numbers and lengths are checked."""
    check_count(len(sent), settings)
    for i, one in enumerate(sent):
        if one.text is not None:
            check_text(f"{field}[{i}].text", one.text, settings)
    sources = [
        ImageSource(f"{field}[{i}].image", one.image) for i, one in enumerate(sent) if one.image is not None
    ]
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    return iter(await decode_all(sources, engine.image_spec, limits, threads))


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
