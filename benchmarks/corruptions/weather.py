"""Snow and frost, in both styles.

Signatures as in `image.py`: x float64 [H, W, 3] in [0, 1] -> [H, W, 3], clipped by the caller.
Difference from the releases: frost is drawn (plasma ridges and needles, bluish white) instead of cut from
five photos, which are not ours to ship: the same kind of damage, but its numbers cannot be compared with
published ones.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import Array, centre_zoom, convolve, line, plasma, power_of_two

_LUMA = (0.299, 0.587, 0.114)
_ICE = (0.80, 0.92, 1.0)


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
    """Ice number 0..4: dark glass, pale sheets, bright needles. [size, size] in [0, 1], a power of two."""
    rng = np.random.default_rng([number, size])
    sheet = plasma(size, 1.9, rng)
    veins = (1 - np.abs(2 * plasma(size, 1.7, rng) - 1)) ** 6
    ice = 0.55 * sheet + 0.35 * veins + 0.8 * _needles(size, rng)
    return np.clip(ice, 0.0, 1.0).astype(np.float32)


def _needles(size: int, rng: np.random.Generator) -> Array:
    """Bright dots drawn out along four directions, [size, size] in [0, 1]."""
    brightest = np.zeros((size, size))
    length = size / 24
    for angle in rng.uniform(0, np.pi, 4):
        dots = np.where(rng.random((size, size, 1)) < 0.004, 1.0, 0.0)
        drawn = convolve(dots, line(length, length / 2, angle))[..., 0]
        brightest = np.maximum(brightest, drawn / max(drawn.max(), 1e-12))
    return brightest
