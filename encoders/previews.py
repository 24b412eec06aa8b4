"""Small pictures to show items by. Imports Pillow only."""

from __future__ import annotations

import io

from PIL import Image

MEDIA_TYPE = "image/webp"
QUALITY = 90
_EFFORT = 2
"""Half the time of the default, 4, for a few percent more bytes."""


def make_preview(picture: Image.Image, longest: int, *, quality: int = QUALITY) -> bytes:
    """A WebP of `picture` (RGB, upright) whose longest side has at most `longest` pixels; never enlarged.

    Nothing but pixels stays: no EXIF, no place, no colour profile, which the encoder does not see either.
    """
    small = picture.resize(_fitting(picture.size, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small.info = {}  # what Pillow would write along
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=_EFFORT)
    return buffer.getvalue()


def _fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(width, height) of the same shape, as near as whole pixels come."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
