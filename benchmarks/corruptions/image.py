"""Image corruptions after ImageNet-C, for pictures of any size, numpy and Pillow only.

Every function takes x float64 [H, W, 3] in [0, 1], a severity 1..5 and a generator, and gives [H, W, 3] that
the caller clips. What is drawn depends on the generator alone, so a seed repeats a picture exactly.
Differences from ImageNet-C's release:
  * whole pictures instead of 224 x 224 crops, and a fog map of the next power of two;
  * convolutions by FFT with reflected borders, motion by a sampled line instead of ImageMagick's;
  * `scale` shrinks lengths in pixels by shorter side / 224, for pictures smaller than the constants assume;
  * what `warps.py` and `weather.py` say of themselves.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import convolve, disk, line, plasma, power_of_two
from benchmarks.corruptions.warps import elastic_transform, glass_blur, zoom_blur
from benchmarks.corruptions.weather import frost, snow

Picture = NDArray[np.float64]
Corrupt = Callable[[Picture, int, np.random.Generator, float], Picture]


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
    return convolve(x, disk(radius, c.DEFOCUS_ALIAS_SIGMA[severity - 1]))


def _motion_blur(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """A one-sided Gaussian along a line at a random angle."""
    angle = np.deg2rad(rng.uniform(*c.MOTION_ANGLE_DEGREES))
    radius = c.MOTION_RADIUS[severity - 1] * scale
    sigma = c.MOTION_SIGMA[severity - 1] * scale
    return convolve(x, line(radius, sigma, angle))


def _fog(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    strength, decay = c.FOG_STRENGTH[severity - 1], c.FOG_WIBBLE_DECAY[severity - 1]
    height, width = x.shape[:2]
    # At 224 pixels the map has ImageNet-C's 256; on every size the cloud spans the picture.
    cloud = plasma(power_of_two(max(height, width)), decay, rng)
    brightest = x.max()
    foggy = x + strength * cloud[:height, :width, None]
    return np.asarray(foggy * brightest / (brightest + strength))


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


def _jpeg_compression(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    buffer = io.BytesIO()
    _to_image(x).save(buffer, "JPEG", quality=c.JPEG_QUALITY[severity - 1])
    return _to_picture(Image.open(buffer))


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
VIDEO_CORRUPTIONS = tuple(name for name in IMAGE_CORRUPTIONS if name != "speckle_noise")
"""The fifteen that the classification papers apply to video frames, in their order."""


def corrupt_image(
    array: np.ndarray, name: str, severity: int, rng: np.random.Generator, *, scale: bool = False
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> corrupted uint8 [H, W, 3].

    severity  1..5
    scale     lengths in pixels are multiplied by shorter side / 224, where that makes them smaller

    Raises:
        KeyError: there is no such corruption.
        ValueError: wrong severity, shape or dtype.
    """
    if name not in IMAGE_CORRUPTIONS:
        close = get_close_matches(name, IMAGE_CORRUPTIONS, n=1)
        raise KeyError(f"no image corruption {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if severity not in c.SEVERITIES:
        raise ValueError(f"severity is 1 to 5, not {severity}")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {array.dtype} {array.shape}")
    corruption = IMAGE_CORRUPTIONS[name]
    factor = min(1.0, min(array.shape[:2]) / c.REFERENCE_PIXELS) if scale and corruption.spatial else 1.0
    corrupted = corruption.corrupt(array / 255.0, severity, rng, factor)
    return np.rint(np.clip(corrupted, 0.0, 1.0) * 255.0).astype(np.uint8)


def _to_image(x: Picture) -> Image.Image:
    return Image.fromarray(np.rint(x * 255.0).astype(np.uint8))


def _to_picture(image: Image.Image) -> Picture:
    return np.asarray(image, dtype=np.float64) / 255.0
