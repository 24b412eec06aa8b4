"""Pictures in: base64, data URI or raw bytes to the encoder's pixels, in a bounded number of threads."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from anyio import CapacityLimiter, to_thread

from encoders.base import BadImage, ImageTooLarge
from encoders.preprocessing import ImageSpec, open_image, pixels
from service.errors import TooLarge
from service.http.errors import Refusal, shorten


@dataclass(frozen=True)
class ImageSource:
    """A picture as it was sent: bytes, or text that holds base64. `field` names it in errors."""

    field: str
    content: bytes | str


@dataclass(frozen=True)
class ImageLimits:
    max_bytes: int
    max_pixels: int


async def decode_all(
    sources: Sequence[ImageSource], spec: ImageSpec, limits: ImageLimits, threads: CapacityLimiter
) -> list[np.ndarray]:
    """Pixels uint8 [3, H, W] of each picture, in order.

    Raises:
        TooLarge: more bytes than allowed, or the header announces more pixels than allowed.
        Refusal: 422 "bad_image": no base64, no picture, a corrupt one. Always the first bad one.
    """
    jobs = (to_thread.run_sync(_decode, source, spec, limits, limiter=threads) for source in sources)
    # Every job is awaited even if one fails: a thread cannot be stopped, and its error must not be lost.
    results = await asyncio.gather(*jobs, return_exceptions=True)
    decoded: list[np.ndarray] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        decoded.append(result)
    return decoded


def _decode(source: ImageSource, spec: ImageSpec, limits: ImageLimits) -> np.ndarray:
    try:
        data = _bytes_of(source, limits.max_bytes)
        picture = open_image(data, max_pixels=limits.max_pixels, max_bytes=limits.max_bytes)
        return pixels(picture, spec)
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
