"""Image corruptions after ImageNet-C, for pictures of any size, numpy and Pillow only.

Every function takes x float64 [H, W, 3] in [0, 1], a severity 1..5 and a generator, and gives [H, W, 3] that
the caller clips. What is drawn depends on the generator alone, so a seed repeats a picture exactly.
Differences from ImageNet-C's release:
  * whole pictures instead of 224 x 224 crops, and a fog map of the next power of two;
  * convolutions by FFT with reflected borders, motion by a sampled line instead of ImageMagick's;
  * `scale` shrinks blur radii by shorter side / 224, for pictures that are smaller than the constants assume.
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
    return _convolve(x, _disk(radius, c.DEFOCUS_ALIAS_SIGMA[severity - 1]))


def _motion_blur(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    """A one-sided Gaussian along a line at a random angle."""
    angle = np.deg2rad(rng.uniform(*c.MOTION_ANGLE_DEGREES))
    radius = c.MOTION_RADIUS[severity - 1] * scale
    sigma = c.MOTION_SIGMA[severity - 1] * scale
    return _convolve(x, _line(radius, sigma, angle))


def _fog(x: Picture, severity: int, rng: np.random.Generator, scale: float) -> Picture:
    strength, decay = c.FOG_STRENGTH[severity - 1], c.FOG_WIBBLE_DECAY[severity - 1]
    height, width = x.shape[:2]
    # At 224 pixels the map has ImageNet-C's 256; on every size the cloud spans the picture.
    cloud = plasma(_power_of_two(max(height, width)), decay, rng)
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
    "motion_blur": ImageCorruption(_motion_blur, spatial=True),
    "fog": ImageCorruption(_fog),
    "brightness": ImageCorruption(_brightness),
    "contrast": ImageCorruption(_contrast),
    "pixelate": ImageCorruption(_pixelate),
    "jpeg_compression": ImageCorruption(_jpeg_compression),
}


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


def plasma(size: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random cloud by diamond-square with wrap-around, [size, size] in [0, 1]; size a power of two.

    Each new value is the mean of its four neighbours plus wibble * U(-wibble, wibble): the amplitude enters
    squared, as in ImageNet-C's release. The wibble is divided by `decay` after each halving of the step.
    """
    cloud = np.zeros((size, size))
    step, wibble = size, c.FOG_WIBBLE
    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        across = corners + np.roll(corners, -1, axis=0)
        cloud[half::step, half::step] = _wibbled(across + np.roll(across, -1, axis=1), wibble, rng)
        centres = cloud[half::step, half::step]
        beside = centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        cloud[::step, half::step] = _wibbled(beside, wibble, rng)
        above = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        cloud[half::step, ::step] = _wibbled(above, wibble, rng)
        step, wibble = half, wibble / decay
    cloud -= cloud.min()
    highest = cloud.max()
    return cloud / highest if highest > 0 else cloud


def _wibbled(
    sum_of_four: NDArray[np.float64], wibble: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    return sum_of_four / 4 + wibble * rng.uniform(-wibble, wibble, sum_of_four.shape)


def _disk(radius: float, alias_sigma: float) -> NDArray[np.float64]:
    """A uniform disk with softened edge, sum 1. [2n + 1, 2n + 1]"""
    reach = int(np.ceil(radius))
    axis = np.arange(-reach, reach + 1)
    inside = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).astype(np.float64)
    disk = inside / inside.sum()
    window = np.arange(-1, 2) if radius <= c.DEFOCUS_SMALL_RADIUS else np.arange(-2, 3)
    weights = np.exp(-(window**2) / (2 * alias_sigma**2))
    return _blur_both(disk, weights / weights.sum())


def _blur_both(kernel: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """A kernel convolved with the outer product of `weights`, grown by their reach: the sum stays 1."""
    for axis in (0, 1):
        kernel = np.apply_along_axis(np.convolve, axis, kernel, weights)
    return kernel


def _line(radius: float, sigma: float, angle: float) -> NDArray[np.float64]:
    """exp(-t^2 / 2 sigma^2) at t = 0..radius along a line, shared among the four nearest cells; sum 1."""
    reach = int(np.ceil(radius)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    along = np.linspace(0.0, radius, 4 * reach + 1)
    weight = np.exp(-(along**2) / (2 * max(sigma, 1e-6) ** 2))
    rows, columns = reach - along * np.sin(angle), reach + along * np.cos(angle)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    np.add.at(kernel, (top, left), weight * (1 - down) * (1 - right))
    np.add.at(kernel, (top, left + 1), weight * (1 - down) * right)
    np.add.at(kernel, (top + 1, left), weight * down * (1 - right))
    np.add.at(kernel, (top + 1, left + 1), weight * down * right)
    return np.asarray(kernel / kernel.sum())


def _convolve(x: Picture, kernel: NDArray[np.float64]) -> Picture:
    """Every channel convolved with the kernel, borders reflected. [H, W, 3] -> [H, W, 3]"""
    reach = kernel.shape[0] // 2
    height, width = x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    shape = (padded.shape[0] + 2 * reach, padded.shape[1] + 2 * reach)
    product = np.fft.rfft2(padded, shape, axes=(0, 1)) * np.fft.rfft2(kernel, shape)[:, :, None]
    full = np.fft.irfft2(product, shape, axes=(0, 1))
    return full[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length() if size > 1 else 2


def _to_image(x: Picture) -> Image.Image:
    return Image.fromarray(np.rint(x * 255.0).astype(np.uint8))


def _to_picture(image: Image.Image) -> Picture:
    return np.asarray(image, dtype=np.float64) / 255.0
