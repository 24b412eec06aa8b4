"""Filters, resampling and clouds that the picture corruptions are made of, numpy only.

x is float64 [H, W, C] or [H, W]; borders are reflected everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.corruptions import constants as c

Array = NDArray[np.float64]


def convolve(x: Array, kernel: Array) -> Array:
    """Every channel convolved with the kernel, by FFT. [H, W, C] and [2r + 1, 2r + 1] -> [H, W, C]"""
    reach = kernel.shape[0] // 2
    height, width = x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    shape = (padded.shape[0] + 2 * reach, padded.shape[1] + 2 * reach)
    product = np.fft.rfft2(padded, shape, axes=(0, 1)) * np.fft.rfft2(kernel, shape)[:, :, None]
    full = np.fft.irfft2(product, shape, axes=(0, 1))
    return full[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def disk(radius: float, alias_sigma: float) -> Array:
    """A uniform disk with softened edge, sum 1. [2n + 1, 2n + 1]"""
    reach = int(np.ceil(radius))
    axis = np.arange(-reach, reach + 1)
    inside = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).astype(np.float64)
    disk = inside / inside.sum()
    window = np.arange(-1, 2) if radius <= c.DEFOCUS_SMALL_RADIUS else np.arange(-2, 3)
    weights = np.exp(-(window**2) / (2 * alias_sigma**2))
    return _blur_both(disk, weights / weights.sum())


def line(radius: float, sigma: float, angle: float) -> Array:
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


def gaussian_blur(x: Array, sigma: float, truncate: float = 4.0) -> Array:
    """x smoothed along both axes by a Gaussian cut at truncate * sigma. [H, W, C] or [H, W]"""
    down, across = (_smoothing(size, sigma, truncate) for size in x.shape[:2])
    return np.asarray(np.einsum("ij,kl,jl...->ik...", down, across, x, optimize=True))


@lru_cache(maxsize=32)
def _smoothing(size: int, sigma: float, truncate: float) -> Array:
    """The smoothing of a line of `size` values as a matrix [size, size], however often it reflects."""
    reach = int(truncate * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        np.add.at(matrix, (rows, _mirrored(rows + offset, size)), weight)
    return matrix


def _mirrored(positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Positions outside 0..size-1 reflected with the border cell repeated (d c b a | a b c d | d c b a)."""
    wrapped = positions % (2 * size)
    return np.minimum(wrapped, 2 * size - 1 - wrapped)


def sample(x: Array, rows: Array, columns: Array) -> Array:
    """x at fractional places, bilinear. rows, columns [h, w] -> [h, w, C]; outside of x it is reflected."""
    height, width = x.shape[:2]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    above, below = _mirrored(top, height), _mirrored(top + 1, height)
    before, after = _mirrored(left, width), _mirrored(left + 1, width)
    upper = x[above, before] * (1 - right) + x[above, after] * right
    lower = x[below, before] * (1 - right) + x[below, after] * right
    return np.asarray(upper * (1 - down) + lower * down)


def centre_zoom(x: Array, factor: float) -> Array:
    """The centre of x [H, W, C] enlarged by `factor` >= 1 to the size of x, bilinear, corner on corner."""
    rows, columns = (_zoomed_places(size, factor) for size in x.shape[:2])
    return sample(x, *np.meshgrid(rows, columns, indexing="ij"))


def _zoomed_places(size: int, factor: float) -> Array:
    kept = int(np.ceil(size / factor))
    enlarged = round(kept * factor)
    places = (enlarged - size) // 2 + np.arange(size)
    return (size - kept) // 2 + places * (kept - 1) / max(enlarged - 1, 1)


def _blur_both(kernel: Array, weights: Array) -> Array:
    """A kernel convolved with the outer product of `weights`, grown by their reach: the sum stays 1."""
    for axis in (0, 1):
        kernel = np.apply_along_axis(np.convolve, axis, kernel, weights)
    return kernel


def plasma(size: int, decay: float, rng: np.random.Generator) -> Array:
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


def _wibbled(sum_of_four: Array, wibble: float, rng: np.random.Generator) -> Array:
    return sum_of_four / 4 + wibble * rng.uniform(-wibble, wibble, sum_of_four.shape)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`, and at least 2."""
    return 1 << (size - 1).bit_length() if size > 1 else 2
