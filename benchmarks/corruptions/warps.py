"""Corruptions that move pixels: glass blur, zoom blur and the elastic transform of ImageNet-C.

Signatures as in `image.py`: x float64 [H, W, 3] in [0, 1] -> [H, W, 3], clipped by the caller.
Differences from ImageNet-C's release: borders are reflected with the border cell repeated; the points of the
elastic transform are placed by width and height instead of height and width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import Array, centre_zoom, gaussian_blur, sample


def glass_blur(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """Blurred, every pixel replaced by a near one, blurred again.

    The release means to swap pixels, but its swap is a copy, because both sides are views; so is this one.
    """
    sigma = c.GLASS_SIGMA[severity - 1] * scale
    delta = max(1, round(c.GLASS_MAX_DELTA[severity - 1] * scale))
    sources = _displaced(x.shape[0], x.shape[1], delta, c.GLASS_ITERATIONS[severity - 1], rng)
    blurred = gaussian_blur(x, sigma)
    return gaussian_blur(blurred.reshape(-1, x.shape[2])[sources].reshape(x.shape), sigma)


def _displaced(
    height: int, width: int, delta: int, iterations: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Where each pixel comes from, flat [H * W]: scanned from the bottom right, off the borders by `delta`.

    A pixel may take what an earlier one of the same scan has left, so the scan is a loop; over positions,
    not over pixels, it is quick.
    """
    rows = np.arange(height - delta, delta, -1)
    columns = np.arange(width - delta, delta, -1)
    places = (rows[:, None] * width + columns[None, :]).ravel()
    sources = list(range(height * width))
    for _ in range(iterations):
        steps = rng.integers(-delta, delta, (2, len(places)))
        taken = places + steps[0] + steps[1] * width
        for place, other in zip(places.tolist(), taken.tolist(), strict=True):
            sources[place] = sources[other]
    return np.array(sources)


def zoom_blur(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """The mean of the picture and of enlargements of its centre."""
    factors = c.ZOOM_FACTORS[severity - 1]
    total = x.copy()
    for factor in factors:
        total += centre_zoom(x, factor)
    return total / (len(factors) + 1)


def elastic_transform(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """A random affine map, then smooth random displacements."""
    height, width = x.shape[:2]
    alpha, sigma = c.ELASTIC_ALPHA[severity - 1] * scale, c.ELASTIC_SIGMA[severity - 1] * scale
    rows, columns = np.meshgrid(np.arange(height, dtype=float), np.arange(width, dtype=float), indexing="ij")
    backward = _random_affine(height, width, c.ELASTIC_AFFINE[severity - 1] * scale, rng)
    warped = sample(
        x,
        backward[1, 0] * columns + backward[1, 1] * rows + backward[1, 2],
        backward[0, 0] * columns + backward[0, 1] * rows + backward[0, 2],
    )
    right, down = (
        alpha * gaussian_blur(rng.uniform(-1.0, 1.0, (height, width)), sigma, c.ELASTIC_TRUNCATE)
        for _ in range(2)
    )
    return sample(warped, rows + down, columns + right)


def _random_affine(height: int, width: int, jitter: float, rng: np.random.Generator) -> Array:
    """The map [2, 3] from (x, y, 1) in the result to (x, y) in the picture.

    It takes three points around the centre, each moved by up to `jitter` per axis, back to where they were.
    """
    centre = np.array([width, height]) // 2
    side = max(1, min(height, width) // 3)
    points = np.array([centre + side, centre + np.array([side, -side]), centre - side], dtype=float)
    moved = points + rng.uniform(-jitter, jitter, (3, 2))
    return np.asarray(np.linalg.solve(np.column_stack([moved, np.ones(3)]), points).T)
