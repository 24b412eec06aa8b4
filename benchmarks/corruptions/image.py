"""The 16 image corruptions in two styles, for pictures of any size, numpy and Pillow only.

imagenet_c      Hendrycks & Dietterich's release, made independent of the picture's size
mm_robustness   the generator of COCO-C and Flickr-C, with what its code does otherwise (`_MM_ROBUSTNESS`)

Every function takes x float64 [H, W, 3] in [0, 1], a severity 1..5 and a generator, and gives [H, W, 3] that
the caller clips. What is drawn depends on the generator alone, so a seed repeats a picture exactly.
Differences from the releases:
  * whole pictures instead of 224 x 224 crops, and a fog map of the next power of two;
  * `scale` shrinks lengths in pixels by shorter side / 224, for pictures smaller than the constants assume;
  * what is saved as JPEG there is given back as it is (`constants.SAVED_JPEG_QUALITY`);
  * what `warps.py` and `weather.py` say of themselves.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import area_resize, convolve, disk, line, plasma, power_of_two
from benchmarks.corruptions.warps import (
    elastic_transform,
    elastic_transform_turned,
    glass_blur,
    glass_blur_one_row,
    zoom_blur,
    zoom_blur_further,
)
from benchmarks.corruptions.weather import frost, frost_bgr, snow, snow_bgr

Picture = NDArray[np.float64]
Corrupt = Callable[[Picture, int, np.random.Generator, float], Picture]
Style = Literal["imagenet_c", "mm_robustness"]
STYLES: tuple[Style, ...] = get_args(Style)


def _gaussian_noise(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    return x + rng.normal(0.0, c.GAUSSIAN_SIGMA[severity - 1], x.shape)


def _shot_noise(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    photons = c.SHOT_PHOTONS[severity - 1]
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """Salt and pepper, half each, drawn for every value of every channel."""
    amount = c.IMPULSE_AMOUNT[severity - 1]
    drawn = rng.random(x.shape)
    return np.where(drawn < amount / 2, 0.0, np.where(drawn < amount, 1.0, x))


def _speckle_noise(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    return x + x * rng.normal(0.0, c.SPECKLE_SIGMA[severity - 1], x.shape)


def _defocus_blur(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    radius = c.DEFOCUS_RADIUS[severity - 1] * scale
    return convolve(x, disk(radius, c.DEFOCUS_ALIAS_SIGMA[severity - 1]), "reflect")


def _motion_blur(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """A one-sided Gaussian along a line at a random angle."""
    angle = np.deg2rad(rng.uniform(*c.MOTION_ANGLE_DEGREES))
    radius = c.MOTION_RADIUS[severity - 1] * scale
    sigma = c.MOTION_SIGMA[severity - 1] * scale
    return convolve(x, line(radius, sigma, angle), "edge")


def _fog(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    # At 224 pixels the map has ImageNet-C's 256; on every size the cloud spans the picture.
    return _foggy(x, severity, rng, power_of_two(max(x.shape[:2])))


def _fog_of_large_map(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """MM_Robustness: a small picture sees a corner of a large cloud."""
    return _foggy(x, severity, rng, max(c.FOG_MAP_MM_ROBUSTNESS, power_of_two(max(x.shape[:2]))))


def _foggy(x: Picture, severity: int, rng: np.random.Generator, size: int) -> Picture:
    strength, decay = c.FOG_STRENGTH[severity - 1], c.FOG_WIBBLE_DECAY[severity - 1]
    cloud = plasma(size, decay, rng)[: x.shape[0], : x.shape[1], None]
    brightest = x.max()
    return np.asarray((x + strength * cloud) * brightest / (brightest + strength))


def _brightness(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """HSV value plus a constant: hue and saturation stay, RGB scales with V. Black turns grey."""
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + c.BRIGHTNESS_ADDED[severity - 1], 0.0, 1.0)
    return np.asarray(np.where(value > 0, x * (raised / np.where(value > 0, value, 1.0)), raised))


def _contrast(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * c.CONTRAST_FACTOR[severity - 1] + mean)


def _pixelate(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """Down by area averages, up again by repetition."""
    height, width = x.shape[:2]
    factor = c.PIXELATE_FACTOR[severity - 1]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    shrunk = _to_image(x).resize(small, Image.Resampling.BOX)
    return _to_picture(shrunk.resize((width, height), Image.Resampling.BOX))


def _pixelate_turned(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """MM_Robustness: always down to (224 c) x (224 c), then up with height and width exchanged: [W, H, 3]."""
    height, width = x.shape[:2]
    small = int(c.REFERENCE_PIXELS * c.PIXELATE_FACTOR[severity - 1])
    return area_resize(area_resize(x, small, small), width, height)


def _jpeg_compression(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    buffer = io.BytesIO()
    _to_image(x).save(buffer, "JPEG", quality=c.JPEG_QUALITY[severity - 1])
    return _to_picture(Image.open(buffer))


def _jpeg_compression_bgr(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """MM_Robustness: the encoder takes blue for red and red for blue."""
    return _jpeg_compression(x[..., ::-1], severity, rng, scale)[..., ::-1]


@dataclass(frozen=True)
class ImageCorruption:
    """`spatial`: whether its constants are lengths in pixels, so that `scale` means something."""

    corrupt: Corrupt
    spatial: bool = False


# A further corruption is one more entry.
IMAGE_CORRUPTIONS: Mapping[str, ImageCorruption] = {
    "gaussian_noise": ImageCorruption(_gaussian_noise),
    "shot_noise": ImageCorruption(_shot_noise),
    "impulse_noise": ImageCorruption(_impulse_noise),
    "speckle_noise": ImageCorruption(_speckle_noise),
    "defocus_blur": ImageCorruption(_defocus_blur, spatial=True),
    "glass_blur": ImageCorruption(glass_blur, spatial=True),
    "motion_blur": ImageCorruption(_motion_blur, spatial=True),
    "zoom_blur": ImageCorruption(zoom_blur),
    "snow": ImageCorruption(snow, spatial=True),
    "frost": ImageCorruption(frost),
    "fog": ImageCorruption(_fog),
    "brightness": ImageCorruption(_brightness),
    "contrast": ImageCorruption(_contrast),
    "elastic_transform": ImageCorruption(elastic_transform, spatial=True),
    "pixelate": ImageCorruption(_pixelate),
    "jpeg_compression": ImageCorruption(_jpeg_compression),
}
"""ImageNet-C's fifteen and its extra `speckle_noise`, in the retrieval papers' order."""
_MM_ROBUSTNESS: Mapping[str, Corrupt] = {
    "glass_blur": glass_blur_one_row,
    "zoom_blur": zoom_blur_further,
    "snow": snow_bgr,
    "frost": frost_bgr,
    "fog": _fog_of_large_map,
    "elastic_transform": elastic_transform_turned,
    "pixelate": _pixelate_turned,
    "jpeg_compression": _jpeg_compression_bgr,
}
"""What that style does otherwise."""
VIDEO_CORRUPTIONS = tuple(name for name in IMAGE_CORRUPTIONS if name != "speckle_noise")
"""The fifteen that the classification papers apply to video frames, in their order."""


def corrupt_image(
    array: np.ndarray,
    name: str,
    severity: int,
    rng: np.random.Generator,
    *,
    style: Style = "imagenet_c",
    scale: bool = False,
) -> NDArray[np.uint8]:
    """A corrupted copy of a picture, uint8 [H, W, 3]; pixelate in the style mm_robustness gives [W, H, 3].

    array     uint8 [H, W, 3], or grey [H, W] or [H, W, 1]
    severity  1..5
    scale     lengths in pixels are multiplied by shorter side / 224, where that makes them smaller

    Raises:
        KeyError: there is no such corruption.
        ValueError: wrong severity, style, shape or dtype.
    """
    if name not in IMAGE_CORRUPTIONS:
        close = get_close_matches(name, IMAGE_CORRUPTIONS, n=1)
        raise KeyError(f"no image corruption {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if severity not in c.SEVERITIES:
        raise ValueError(f"severity is 1 to 5, not {severity}")
    if style not in STYLES:
        raise ValueError(f"the style is {' or '.join(STYLES)}, not {style!r}")
    picture = _coloured(array) / 255.0
    corruption = IMAGE_CORRUPTIONS[name]
    factor = min(1.0, min(picture.shape[:2]) / c.REFERENCE_PIXELS) if scale and corruption.spatial else 1.0
    corrupt = _MM_ROBUSTNESS.get(name, corruption.corrupt) if style == "mm_robustness" else corruption.corrupt
    corrupted = corrupt(picture, severity, rng, factor)
    return np.rint(np.clip(corrupted, 0.0, 1.0) * 255.0).astype(np.uint8)


def _coloured(array: np.ndarray) -> NDArray[np.uint8]:
    """[H, W, 3]; grey becomes three equal channels."""
    grey = array.ndim == 2 or array.shape[2:] == (1,)
    picture = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2) if grey else array
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"a picture is uint8 [H, W, 3] or grey [H, W], not {array.dtype} {array.shape}")
    return picture


def _to_image(x: Picture) -> Image.Image:
    return Image.fromarray(np.rint(x * 255.0).astype(np.uint8))


def _to_picture(image: Image.Image) -> Picture:
    return np.asarray(image, dtype=np.float64) / 255.0
