"""Pictures and captions before the encoder: bytes -> checked picture -> uint8 pixels of the encoder's size.

Imports numpy and Pillow only, so that a process which merely decodes pictures needs no torch. The resize and
the crop repeat Transformers' PIL image processors step by step; rescaling and mean/std are left to the
encoder's device.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from encoders.base import BadImage, ImageTooLarge

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
MAX_BYTES = 32 * 1024 * 1024

ResizeMode = Literal["squash", "shortest_edge"]
Pixels = NDArray[np.uint8]

# What Pillow's decoders raise for broken files: mostly OSError (truncated) and SyntaxError (PNG chunks), and
# whatever a header full of nonsense leads them to.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_CAPTION_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_16_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ImageSpec:
    """How an encoder wants its pictures.

    `resize` "squash" makes exactly height x width; "shortest_edge" scales the shorter side to
    `shortest_edge`, keeps the aspect ratio and crops height x width from the centre (`center_crop`; padded
    with black where too small). `squash` followed by a crop has its intermediate size in `resize_height`,
    `resize_width`. A value v in 0..255 enters the network as (v * rescale - mean) / std.
    """

    height: int
    width: int
    resample: int = int(Image.Resampling.BICUBIC)
    resize: ResizeMode = "squash"
    shortest_edge: int | None = None
    resize_height: int | None = None
    resize_width: int | None = None
    center_crop: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rescale: float = 1 / 255

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an image needs at least one pixel, not {self.height}x{self.width}")
        if self.resize == "shortest_edge" and not (self.shortest_edge and self.center_crop):
            raise ValueError(
                "resize by the shortest edge needs shortest_edge and a centre crop: sizes would differ"
            )
        if min(self.std) <= 0:
            raise ValueError(f"standard deviations must be positive, not {self.std}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSpec:
        known = dict(values)
        for name in ("mean", "std"):
            if name in known:
                known[name] = tuple(float(value) for value in known[name])
        return cls(**known)


class _QuietPillow:
    """Ignores Pillow's warnings while at least one thread decodes.

    It warns of bombs and odd metadata; the size is checked here and the metadata is not used.
    `catch_warnings` puts back the filters it found, so two threads that use it side by side can leave them
    wrong for good: here the first thread in changes them and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._filters is not None:
                self._filters.__exit__(None, None, None)
                self._filters = None


_quiet_pillow = _QuietPillow()
# Pillow logs some damage at level error; without any handler Python would print that to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_image(data: bytes, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Decode a picture to 8-bit RGB, upright, the first frame.

    The header alone decides on format and size; only then are pixels decoded.
    Transparency is laid over white, as Transformers' PIL processors do. 16-bit and float grey
    values are scaled to 0..255 (see `_to_8_bit`), not clipped.

    Raises:
        ImageTooLarge: more than `max_bytes` bytes, or the header announces more than `max_pixels` pixels.
        BadImage: no picture, a format outside `FORMATS`, or a corrupt or truncated file.
    """
    if len(data) > max_bytes:
        raise ImageTooLarge(f"the picture has {len(data)} bytes; at most {max_bytes} are accepted")
    with _quiet_pillow:
        image = _open_header(data)
        width, height = image.size
        if width < 1 or height < 1:
            raise BadImage(f"the picture is empty ({width}x{height} pixels)")
        if width * height > max_pixels:
            raise ImageTooLarge(f"the picture has {width}x{height} pixels; at most {max_pixels} are accepted")
        return _decode(image)


def _open_header(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"the picture is too large: {error}") from error
    except _DECODER_ERRORS as error:
        names = ", ".join(FORMATS)
        raise BadImage(f"not a readable picture; accepted formats are {names}") from error


def _decode(image: Image.Image) -> Image.Image:
    try:
        image.load()
        return to_rgb(_upright(image))
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"the picture is too large: {error}") from error
    except _DECODER_ERRORS as error:
        raise BadImage(f"the {image.format} picture is corrupt or truncated: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; metadata that cannot be read is no reason to refuse the pixels."""
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB; transparency over white."""
    if image.mode in (*_16_BIT_MODES, "I", "F"):
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Pixels:
    """Grey values of more than 8 bits to [H, W] uint8.

    Integers: the range is 0..65535 (a 16-bit file that Pillow widened to 32 bits), 0..255 if nothing is
    larger, and beyond 65535 the largest value. Floats: 0..1 where nothing is larger, else as integers.
    Negative values and NaN are black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    highest = float(values.max())
    if image.mode in _16_BIT_MODES:
        top = 65535.0
    elif image.mode == "F" and highest <= 1.0:
        top = 1.0
    elif highest <= 255.0:
        top = 255.0
    else:
        top = max(65535.0, highest)
    return np.rint(np.clip(values / top, 0.0, 1.0) * 255.0).astype(np.uint8)


def pixels(image: Image.Image, spec: ImageSpec) -> Pixels:
    """Resize and crop a picture for the encoder: uint8 [3, H, W], H and W of the spec."""
    image = _middle(image, spec)
    rgb = image if image.mode == "RGB" else to_rgb(image)
    resized = rgb.resize(_resized_size(rgb, spec), resample=Image.Resampling(spec.resample))
    values = np.asarray(resized, dtype=np.uint8)
    if spec.center_crop:
        values = _center_crop(values, spec.height, spec.width)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


_SEEN = 128
"""How often the crop fits into the longer side that is resized at most; far more than photos need."""


def _middle(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Of a picture many times longer than wide, the middle that the crop looks at: scaled to the shortest
    edge, the whole of a line of 50,000 pixels would be of 2.5 billion.
    """
    if spec.shortest_edge is None or not spec.center_crop:
        return image
    short, long = sorted(image.size)
    kept = math.ceil(_SEEN * short * max(spec.height, spec.width, spec.shortest_edge) / spec.shortest_edge)
    if long <= kept:
        return image
    before = (long - kept) // 2
    after = before + kept + (long - kept) % 2  # the middle stays where it was
    return image.crop((before, 0, after, short) if image.width > image.height else (0, before, short, after))


def _resized_size(image: Image.Image, spec: ImageSpec) -> tuple[int, int]:
    """(width, height) after the resize. int() truncates, as in Transformers."""
    if spec.resize == "squash":
        return spec.resize_width or spec.width, spec.resize_height or spec.height
    assert spec.shortest_edge is not None
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_short, new_long = spec.shortest_edge, int(spec.shortest_edge * long / short)
    return (new_short, new_long) if width <= height else (new_long, new_short)


def _center_crop(values: Pixels, height: int, width: int) -> Pixels:
    """[H', W', 3] -> [height, width, 3]; a side that is too short is padded with black, the odd pixel before
    it.
    """
    before_y, before_x = (
        math.ceil(max(0, want - have) / 2) for want, have in zip((height, width), values.shape, strict=False)
    )
    padded_y, padded_x = max(height, values.shape[0]), max(width, values.shape[1])
    if (padded_y, padded_x) != values.shape[:2]:
        padded = np.zeros((padded_y, padded_x, 3), dtype=np.uint8)
        padded[before_y : before_y + values.shape[0], before_x : before_x + values.shape[1]] = values
        top, left = (values.shape[0] - height) // 2 + before_y, (values.shape[1] - width) // 2 + before_x
        return padded[top : top + height, left : left + width]
    top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
    return values[top : top + height, left : left + width]


def clean_caption(text: str, max_words: int = 30) -> str:
    """The retrieval papers' caption cleaning: lower case, `. ! " ( ) * # : ; ~` to spaces, first `max_words`
    words.
    """
    return " ".join(_CAPTION_PUNCTUATION.sub(" ", text.lower()).split()[:max_words])
