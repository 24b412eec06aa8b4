"""Filters, resampling and clouds that the picture corruptions are made of, numpy only.

x is float64 [H, W, C] or [H, W]. Beyond its borders a picture goes on as numpy's `pad` names it: "symmetric"
(d c b a | a b c d), "reflect" (d c b | a b c d) or "edge" (a a a | a b c d).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.corruptions import constants as c

Array = NDArray[np.float64]
Edges = Literal["symmetric", "reflect", "edge"]

_DIRECT_REACH = 24
"""Up to this reach a Gaussian is summed tap by tap, above it multiplied as a matrix."""


def convolve(x: Array, kernel: Array, edges: Edges = "symmetric") -> Array:
    """Every channel convolved with the kernel, by FFT. [H, W, C] and [2r + 1, 2r + 1] -> [H, W, C]"""
    reach = kernel.shape[0] // 2
    height, width = x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode=edges)
    # What wraps around lands in the 2 * reach first rows and columns, which are cut off.
    shape = (_smooth_length(padded.shape[0]), _smooth_length(padded.shape[1]))
    product = np.fft.rfft2(padded, shape, axes=(0, 1)) * np.fft.rfft2(kernel, shape)[:, :, None]
    full = np.fft.irfft2(product, shape, axes=(0, 1))
    return full[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


@lru_cache(maxsize=256)
def _smooth_length(length: int) -> int:
    """The least 2^a 3^b 5^c that is at least `length`: an FFT of a prime length is several times slower."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


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
    """ImageMagick's motion blur as a kernel: exp(-t^2 / 2 sigma^2) at t = 0..2 ceil(radius), sum 1.

    The value at a pixel comes from those at t steps along (cos, sin) of `angle`, x right and y down, each
    taken from the nearest cell. The line is one-sided, and as long as ImageMagick's window is wide.
    """
    reach = 2 * int(np.ceil(radius))
    steps = np.arange(reach + 1)
    weights = np.exp(-(steps**2) / (2 * max(sigma, 1e-6) ** 2))
    right, down = (np.ceil(steps * part - 0.5).astype(int) for part in (np.cos(angle), np.sin(angle)))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (reach - down, reach - right), weights)
    return np.asarray(kernel / kernel.sum())


def gaussian_blur(x: Array, sigma: float, truncate: float = 4.0, edges: Edges = "symmetric") -> Array:
    """x smoothed along both axes by a Gaussian cut at truncate * sigma. [H, W, C] or [H, W]

    Other edges than "symmetric" are for a reach of at most 24 pixels.
    """
    reach = int(truncate * sigma + 0.5)
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    if reach <= _DIRECT_REACH:
        return _smooth_directly(x, taps / taps.sum(), edges)
    down, across = (_smoothing(size, sigma, reach) for size in x.shape[:2])
    return np.asarray(np.einsum("ij,kl,jl...->ik...", down, across, x, optimize=True))


def _smooth_directly(x: Array, taps: Array, edges: Edges) -> Array:
    reach = len(taps) // 2
    for axis in (0, 1):
        widths = [(reach, reach) if axis == at else (0, 0) for at in range(x.ndim)]
        padded = np.moveaxis(np.pad(x, widths, mode=edges), axis, 0)
        size = x.shape[axis]
        total = taps[reach] * padded[reach : reach + size]
        for far in range(1, reach + 1):
            behind, ahead = padded[reach - far :][:size], padded[reach + far :][:size]
            total += taps[reach + far] * (behind + ahead)
        x = np.moveaxis(total, 0, axis)
    return x


@lru_cache(maxsize=4)
def _smoothing(size: int, sigma: float, reach: int) -> Array:
    """The smoothing of a line of `size` values as a matrix [size, size], however often it reflects.

    A symmetric border makes the line periodic with 2 * size, so the taps fold into one period.
    """
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    period = np.bincount(offsets % (2 * size), weights / weights.sum(), minlength=2 * size)
    row, column = np.ogrid[:size, :size]
    mirrored = 2 * size - 1 - column
    return np.asarray(period[(column - row) % (2 * size)] + period[(mirrored - row) % (2 * size)])


def _mirrored(positions: NDArray[np.int64], size: int, edges: Edges) -> NDArray[np.int64]:
    """Positions outside 0..size-1 brought back inside."""
    if edges == "edge" or size == 1:
        return np.clip(positions, 0, size - 1)
    if edges == "reflect":
        wrapped = positions % (2 * size - 2)
        return np.minimum(wrapped, 2 * size - 2 - wrapped)
    wrapped = positions % (2 * size)
    return np.minimum(wrapped, 2 * size - 1 - wrapped)


def sample(x: Array, rows: Array, columns: Array, edges: Edges = "symmetric") -> Array:
    """x at fractional places, bilinear. rows, columns [h, w] -> [h, w, C]"""
    height, width = x.shape[:2]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    above, below = (_mirrored(top + step, height, edges) * width for step in (0, 1))
    before, after = (_mirrored(left + step, width, edges) for step in (0, 1))
    flat = x.reshape(height * width, -1)
    upper = flat.take(above + before, axis=0) * (1 - right) + flat.take(above + after, axis=0) * right
    lower = flat.take(below + before, axis=0) * (1 - right) + flat.take(below + after, axis=0) * right
    return np.asarray(upper * (1 - down) + lower * down)


def area_resize(x: Array, height: int, width: int) -> Array:
    """x [H, W, C] as [height, width, C]: each new pixel is the mean of the area that it covers."""
    down, across = (_shares(old, new) for old, new in ((x.shape[0], height), (x.shape[1], width)))
    return np.asarray(np.einsum("ij,kl,jlc->ikc", down, across, x, optimize=True))


def _shares(old: int, new: int) -> Array:
    """How much of each new cell [new] every old one [old] covers; rows sum to 1."""
    new_edges = np.arange(new + 1) * (old / new)
    old_edges = np.arange(old + 1.0)
    ends = np.minimum(new_edges[1:, None], old_edges[None, 1:])
    starts = np.maximum(new_edges[:-1, None], old_edges[None, :-1])
    return np.asarray(np.clip(ends - starts, 0.0, None) * (new / old))


def centre_zoom(x: Array, factor: float) -> Array:
    """The centre of x [H, W, C] enlarged by `factor` >= 1 to the size of x, bilinear, corner on corner."""
    for axis in (0, 1):
        places = _zoomed_places(x.shape[axis], factor)
        before = np.floor(places).astype(np.int64)
        after = np.minimum(before + 1, x.shape[axis] - 1)
        share = np.expand_dims(places - before, tuple(range(1, x.ndim - axis)))
        x = x.take(before, axis) * (1 - share) + x.take(after, axis) * share
    return x


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
