"""Snow and frost, in both styles.

Signatures as in `image.py`: x float64 [H, W, 3] in [0, 1] -> [H, W, 3], clipped by the caller.
Difference from the releases: frost is drawn (sheets and ferns of ice, bluish white) instead of cut from
five photos, which are not ours to ship: the same kind of damage, but its numbers cannot be compared with
published ones.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import (
    Array,
    centre_zoom,
    convolve,
    gaussian_blur,
    line,
    plasma,
    power_of_two,
)

_LUMA = (0.299, 0.587, 0.114)
_ICE = (0.80, 0.92, 1.0)
_FERNS = 220
_FERNS_SIZE = 1024


def snow(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """Flakes that fall at a random angle, on a picture that was whitened."""
    return _snow(x, severity, rng, scale, _LUMA)


def snow_bgr(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """MM_Robustness: the grey of the whitening weighs blue as if it were red, and red as blue."""
    return _snow(x, severity, rng, scale, _LUMA[::-1])


def _snow(
    x: Array, severity: int, rng: np.random.Generator, scale: float, weights: tuple[float, ...]
) -> Array:
    level = severity - 1
    flakes = rng.normal(c.SNOW_LOC[level], c.SNOW_SCALE[level], x.shape[:2])[..., None]
    flakes = centre_zoom(flakes, max(1.0, c.SNOW_ZOOM[level] * scale))
    flakes = np.clip(np.where(flakes < c.SNOW_THRESHOLD[level], 0.0, flakes), 0.0, 1.0)
    angle = np.deg2rad(rng.uniform(*c.SNOW_ANGLE_DEGREES))
    motion = line(c.SNOW_MOTION_RADIUS[level] * scale, c.SNOW_MOTION_SIGMA[level] * scale, angle)
    flakes = np.clip(convolve(flakes, motion, "edge"), 0.0, 1.0)
    grey = (x @ np.array(weights))[..., None]
    mix = c.SNOW_MIX[level]
    whitened = mix * x + (1 - mix) * np.maximum(x, grey * 1.5 + 0.5)
    return np.asarray(whitened + flakes + np.rot90(flakes, 2))


def frost(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """The picture dimmed below a random cut of one of five textures of ice."""
    height, width = x.shape[:2]
    texture = _texture(x, rng)
    top, left = rng.integers(0, texture.shape[0] - height), rng.integers(0, texture.shape[1] - width)
    return _frosted(x, texture[top : top + height, left : left + width], _ICE, severity)


def frost_bgr(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """MM_Robustness: always the texture's top left corner, its red and blue exchanged."""
    height, width = x.shape[:2]
    return _frosted(x, _texture(x, rng)[:height, :width], _ICE[::-1], severity)


def _texture(x: Array, rng: np.random.Generator) -> NDArray[np.float32]:
    return frost_texture(int(rng.integers(c.FROST_TEXTURES)), 2 * power_of_two(max(x.shape[:2])))


def _frosted(x: Array, ice: NDArray[np.float32], tint: tuple[float, ...], severity: int) -> Array:
    tinted = ice[..., None] * np.array(tint)
    return np.asarray(c.FROST_PICTURE_WEIGHT[severity - 1] * x + c.FROST_WEIGHT[severity - 1] * tinted)


@lru_cache(maxsize=8)
def frost_texture(number: int, size: int) -> NDArray[np.float32]:
    """Ice number 0..4: dark glass, grainy sheets, bright ferns. [size, size] in [0, 1], a power of two."""
    rng = np.random.default_rng([number, size])
    sheet, grain = plasma(size, 1.9, rng), plasma(size, 1.15, rng)
    cover = np.clip(3.0 * (sheet - 0.3), 0.0, 1.0)
    bright = (0.25 + 0.55 * cover) * (0.5 + 0.5 * grain)
    ice = 0.12 + cover * (0.15 + 0.4 * grain) + bright * _ferns(size, rng)
    return np.clip(ice, 0.0, 1.0).astype(np.float32)


def _ferns(size: int, rng: np.random.Generator) -> Array:
    """Stems with twigs on their twigs, all at 60 degrees, as ice grows on glass. [size, size] in [0, 1]

    Drawn at one size and then resized, so that as much of a small picture is covered as of a large one.
    """
    drawn = _draw_ferns(_FERNS_SIZE, rng)
    if size <= _FERNS_SIZE:
        block = _FERNS_SIZE // size
        return np.asarray(drawn.reshape(size, block, size, block).mean(axis=(1, 3)))
    times = size // _FERNS_SIZE
    return gaussian_blur(drawn.repeat(times, axis=0).repeat(times, axis=1), min(times / 2, 5.0))


def _draw_ferns(size: int, rng: np.random.Generator) -> Array:
    stems = np.stack(
        [
            *rng.uniform(0, size, (2, _FERNS)),
            rng.uniform(0, 2 * np.pi, _FERNS),
            size * rng.uniform(0.06, 0.22, _FERNS),
        ]
    )
    twigs = _twigs(stems, 20, 0.4, rng)
    drawn = np.zeros((size, size))
    for lines, brightness in ((_twigs(twigs, 6, 0.35, rng), 0.6), (twigs, 0.85), (stems, 1.0)):
        rows, columns = _points(lines, size)
        drawn[rows, columns] = np.maximum(drawn[rows, columns], brightness)
    smooth = gaussian_blur(np.pad(drawn, 8, mode="wrap"), 1.28)[8:-8, 8:-8]
    return np.asarray(smooth / smooth.max())


def _twigs(lines: Array, nodes: int, share: float, rng: np.random.Generator) -> Array:
    """What grows on both sides of lines [4, L] (row, column, angle, length): [4, 2 * nodes * L]."""
    row, column, angle, length = np.repeat(lines, 2 * nodes, axis=1)
    at = rng.uniform(0.05, 1.0, len(row))
    turned = angle + np.tile([-np.pi / 3, np.pi / 3], len(row) // 2)
    longest = share * length * (1 - at)
    return np.stack(
        [
            row + at * length * np.sin(angle),
            column + at * length * np.cos(angle),
            turned,
            longest * rng.uniform(0.5, 1.0, len(row)),
        ]
    )


def _points(lines: Array, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cells under lines [4, L], a step for each cell of their length; the borders wrap around."""
    counts = np.ceil(lines[3]).astype(int) + 1
    row, column, angle, _ = np.repeat(lines, counts, axis=1)
    along = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, columns = row + along * np.sin(angle), column + along * np.cos(angle)
    return np.rint(rows).astype(np.int64) % size, np.rint(columns).astype(np.int64) % size
