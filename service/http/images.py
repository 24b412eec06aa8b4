"""Pictures in: base64, data URI or raw bytes to the encoder's pixels, in a bounded number of threads."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from PIL import Image

from encoders.base import BadImage, ImageTooLarge
from encoders.preprocessing import ImageSpec, open_image, pixels
from encoders.previews import make_preview
from service.errors import TooLarge
from service.http.errors import Refusal, shorten

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSource:
    """A picture as it was sent: bytes, or text that holds base64. `field` names it in errors."""

    field: str
    content: bytes | str


@dataclass(frozen=True)
class ImageLimits:
    max_bytes: int
    max_pixels: int


class Decoded(NamedTuple):
    """A picture of a gallery item."""

    pixels: np.ndarray
    """uint8 [3, H, W], as the encoder takes it."""
    preview: bytes | None
    """WebP."""


async def decode_all(
    sources: Sequence[ImageSource], spec: ImageSpec, limits: ImageLimits, threads: CapacityLimiter
) -> list[np.ndarray]:
    """Pixels uint8 [3, H, W] of each picture, in order.

    Raises:
        TooLarge: more bytes than allowed, or the header announces more pixels than allowed.
        Refusal: 422 "bad_image": no base64, no picture, a corrupt one. Always the first bad one.
    """
    return await _in_threads(lambda source: pixels(_open(source, limits), spec), sources, threads)


async def decode_with_previews(
    sources: Sequence[ImageSource],
    spec: ImageSpec,
    limits: ImageLimits,
    threads: CapacityLimiter,
    *,
    preview_pixels: int,
) -> list[Decoded]:
    """As `decode_all`, each with its preview of at most `preview_pixels` a side; 0: without."""

    def decode(source: ImageSource) -> Decoded:
        picture = _open(source, limits)
        preview = make_preview(picture, preview_pixels) if preview_pixels else None
        return Decoded(pixels(picture, spec), preview)

    return await _in_threads(decode, sources, threads)


async def _in_threads(
    work: Callable[[ImageSource], T], sources: Sequence[ImageSource], threads: CapacityLimiter
) -> list[T]:
    """`work` on each, in order; raises the first failure in that order."""
    jobs = (to_thread.run_sync(work, source, limiter=threads) for source in sources)
    # Every job is awaited even if one fails: a thread cannot be stopped, and its error must not be lost.
    results = await asyncio.gather(*jobs, return_exceptions=True)
    done: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done


def _open(source: ImageSource, limits: ImageLimits) -> Image.Image:
    """8-bit RGB, upright. Raises TooLarge, Refusal; names the source's field."""
    try:
        data = _bytes_of(source, limits.max_bytes)
        return open_image(data, max_pixels=limits.max_pixels, max_bytes=limits.max_bytes)
    except ImageTooLarge as error:
        raise TooLarge(
            f"{source.field}: {error}", code="image_too_large", details={"field": source.field}
        ) from error
    except BadImage as error:
        raise Refusal(
            422, "bad_image", f"{source.field}: {shorten(str(error))}", details={"field": source.field}
        ) from error


def _bytes_of(source: ImageSource, max_bytes: int) -> bytes:
    if isinstance(source.content, bytes):
        return source.content
    encoded = source.content
    if encoded.startswith("data:"):
        encoded = _of_data_uri(encoded)
    if len(encoded) // 4 * 3 > max_bytes + 2:
        raise ImageTooLarge(f"the picture has more than {max_bytes} bytes")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(
            "not base64 (standard alphabet with padding, no line breaks; URLs and paths are not fetched)"
        ) from error


def _of_data_uri(text: str) -> str:
    """The base64 of `data:image/png;base64,...`. Raises BadImage."""
    head, comma, encoded = text.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise BadImage("a picture as data URI looks like data:image/png;base64,...")
    return encoded
