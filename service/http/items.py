"""From gallery items as they were sent to items as the engine takes them."""

from __future__ import annotations

from collections.abc import Sequence

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
    check_count(len(items), settings)
    for i, item in enumerate(items):
        if item.text is not None:
            check_text(f"items[{i}].text", item.text, settings)
    sources = [
        ImageSource(f"items[{i}].image", item.image) for i, item in enumerate(items) if item.image is not None
    ]
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    decoded = iter(await decode_all(sources, engine.image_spec, limits, threads))
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
    check_count(len(canaries), settings)
    for i, canary in enumerate(canaries):
        if canary.text is not None:
            check_text(f"canaries[{i}].text", canary.text, settings)
    sources = [
        ImageSource(f"canaries[{i}].image", canary.image)
        for i, canary in enumerate(canaries)
        if canary.image is not None
    ]
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    decoded = iter(await decode_all(sources, engine.image_spec, limits, threads))
    return [
        Canary(Query(text=canary.text, pixels=None if canary.image is None else next(decoded)), canary.answer)
        for canary in canaries
    ]


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
