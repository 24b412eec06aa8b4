"""Corruptions that move pixels: glass blur, zoom blur and the elastic transform, in both styles.

Signatures as in `image.py`: x float64 [H, W, 3] in [0, 1] -> [H, W, 3], clipped by the caller.
Difference from the releases: values between the steps are not rounded to 8 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import Array, centre_zoom, gaussian_blur, sample

Sources = NDArray[np.int64]


def glass_blur(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """Blurred, every pixel replaced by a near one, blurred again.

    The release means to swap pixels, but its swap is a copy, because both sides are views; so is this one.
    """
    delta = max(1, round(c.GLASS_MAX_DELTA[severity - 1] * scale))
    height, width = x.shape[:2]
    rows, columns = np.arange(height - delta, delta, -1), np.arange(width - delta, delta, -1)
    scanned = (rows[:, None] * width + columns[None, :]).ravel()
    sources = np.arange(height * width)
    for _ in range(c.GLASS_ITERATIONS[severity - 1]):
        sources = _scan(sources, scanned, width, delta, rng)
    return _glass(x, sources, c.GLASS_SIGMA[severity - 1] * scale)


def glass_blur_one_row(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """MM_Robustness: its loops reuse the names of height and width, so a single row is displaced, once."""
    delta = max(1, round(c.GLASS_MAX_DELTA[severity - 1] * scale))
    height, width = x.shape[:2]
    row = min(height, c.REFERENCE_PIXELS) - delta
    columns = np.arange(min(width, c.REFERENCE_PIXELS) - delta, delta, -1)
    scanned = row * width + columns if row > delta else columns[:0]
    sources = _scan(np.arange(height * width), scanned, width, delta, rng)
    return _glass(x, sources, c.GLASS_SIGMA[severity - 1] * scale)


def _glass(x: Array, sources: Sources, sigma: float) -> Array:
    blurred = gaussian_blur(x, sigma, edges="edge")
    moved = blurred.reshape(-1, x.shape[2]).take(sources, axis=0).reshape(x.shape)
    return gaussian_blur(moved, sigma, edges="edge")


def _scan(sources: Sources, scanned: Sources, width: int, delta: int, rng: np.random.Generator) -> Sources:
    """One scan: every pixel of `scanned`, in that order, copies one at most `delta` away.

    sources [H * W]: where each pixel's value comes from; `scanned` runs towards lower places. A pixel that
    copies from one scanned before it gets what that one has copied, and so on: chains, which are short
    because each link is as likely to end one as not. All are followed at once, and each round doubles how
    far, so the scan needs a handful of array operations instead of a loop over pixels.
    """
    steps = rng.integers(-delta, delta, (2, len(scanned)))
    follow = np.arange(len(sources))
    target = scanned + steps[0] + steps[1] * width
    is_scanned = np.zeros(len(sources), dtype=bool)
    is_scanned[scanned] = True
    # Earlier in the scan means a higher place: that one has its new value already.
    ahead = is_scanned[target] & (target > scanned)
    follow[scanned[ahead]] = target[ahead]
    while True:
        further = follow[follow]
        if np.array_equal(further, follow):
            break
        follow = further
    taken = sources.copy()
    taken[scanned] = sources[target]
    return taken[follow]


def zoom_blur(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """The mean of the picture and of enlargements of its centre."""
    return _zoomed(x, c.ZOOM_FACTORS[severity - 1])


def zoom_blur_further(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """MM_Robustness: severity 5 has one enlargement more."""
    return _zoomed(x, c.ZOOM_FACTORS_MM_ROBUSTNESS[severity - 1])


def _zoomed(x: Array, factors: tuple[float, ...]) -> Array:
    total = x.copy()
    for factor in factors:
        total += centre_zoom(x, factor)
    return total / (len(factors) + 1)


def elastic_transform(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """A random affine map, then smooth random displacements."""
    return _elastic(x, severity, rng, scale, (x.shape[1], x.shape[0]))


def elastic_transform_turned(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """MM_Robustness: the points of the affine map are placed by height and width where x and y are meant."""
    return _elastic(x, severity, rng, scale, (x.shape[0], x.shape[1]))


def _elastic(
    x: Array, severity: int, rng: np.random.Generator, scale: float, extent: tuple[int, int]
) -> Array:
    height, width = x.shape[:2]
    alpha, sigma = c.ELASTIC_ALPHA[severity - 1] * scale, c.ELASTIC_SIGMA[severity - 1] * scale
    rows, columns = np.meshgrid(np.arange(height, dtype=float), np.arange(width, dtype=float), indexing="ij")
    backward = _random_affine(extent, c.ELASTIC_AFFINE[severity - 1] * scale, rng)
    warped = sample(
        x,
        backward[1, 0] * columns + backward[1, 1] * rows + backward[1, 2],
        backward[0, 0] * columns + backward[0, 1] * rows + backward[0, 2],
        edges="reflect",
    )
    right, down = (
        alpha * gaussian_blur(rng.uniform(-1.0, 1.0, (height, width)), sigma, c.ELASTIC_TRUNCATE)
        for _ in range(2)
    )
    return sample(warped, rows + down, columns + right)


def _random_affine(extent: tuple[int, int], jitter: float, rng: np.random.Generator) -> Array:
    """The map [2, 3] from (x, y, 1) in the result to (x, y) in a picture of that extent in x and y.

    It takes three points around the centre, each moved by up to `jitter` per axis, back to where they were.
    """
    centre = np.array(extent) // 2
    side = max(1, min(extent) // 3)
    points = np.array([centre + side, centre + np.array([side, -side]), centre - side], dtype=float)
    moved = points + rng.uniform(-jitter, jitter, (3, 2))
    return np.asarray(np.linalg.solve(np.column_stack([moved, np.ones(3)]), points).T)
