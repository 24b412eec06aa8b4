"""Snow and frost after ImageNet-C.

Signatures as in `image.py`: x float64 [H, W, 3] in [0, 1] -> [H, W, 3], clipped by the caller.
Differences from ImageNet-C's release: the snow's motion is a sampled line instead of ImageMagick's; frost is
drawn (plasma ridges and needles, bluish white) instead of cut from five photos, which are not ours to ship:
the same kind of damage, but its numbers cannot be compared with published ones.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import Array, centre_zoom, convolve, line, plasma, power_of_two

_LUMA = (0.299, 0.587, 0.114)
_ICE = (0.80, 0.92, 1.0)


def snow(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """Flakes that fall at a random angle, on a picture that was whitened."""
    level = severity - 1
    flakes = rng.normal(c.SNOW_LOC[level], c.SNOW_SCALE[level], x.shape[:2])[..., None]
    flakes = centre_zoom(flakes, max(1.0, c.SNOW_ZOOM[level] * scale))
    flakes = np.clip(np.where(flakes < c.SNOW_THRESHOLD[level], 0.0, flakes), 0.0, 1.0)
    angle = np.deg2rad(rng.uniform(*c.SNOW_ANGLE_DEGREES))
    motion = line(c.SNOW_MOTION_RADIUS[level] * scale, c.SNOW_MOTION_SIGMA[level] * scale, angle)
    flakes = np.clip(convolve(flakes, motion), 0.0, 1.0)
    grey = (x @ np.array(_LUMA))[..., None]
    mix = c.SNOW_MIX[level]
    whitened = mix * x + (1 - mix) * np.maximum(x, grey * 1.5 + 0.5)
    return np.asarray(whitened + flakes + np.rot90(flakes, 2))


def frost(x: Array, severity: int, rng: np.random.Generator, scale: float) -> Array:
    """The picture dimmed below a random cut of one of five textures of ice."""
    height, width = x.shape[:2]
    texture = frost_texture(int(rng.integers(c.FROST_TEXTURES)), 2 * power_of_two(max(height, width)))
    top, left = rng.integers(0, texture.shape[0] - height), rng.integers(0, texture.shape[1] - width)
    ice = texture[top : top + height, left : left + width]
    return c.FROST_PICTURE_WEIGHT[severity - 1] * x + c.FROST_WEIGHT[severity - 1] * ice


@lru_cache(maxsize=16)
def frost_texture(number: int, size: int) -> Array:
    """Ice number 0..4: dark glass, pale sheets, bright needles. [size, size, 3], size a power of two."""
    rng = np.random.default_rng([number, size])
    sheet = plasma(size, 1.9, rng)
    veins = (1 - np.abs(2 * plasma(size, 1.7, rng) - 1)) ** 6
    ice = 0.55 * sheet + 0.35 * veins + 0.8 * _needles(size, rng)
    return np.asarray(np.clip(ice, 0.0, 1.0)[..., None] * np.array(_ICE))


def _needles(size: int, rng: np.random.Generator) -> Array:
    """Bright dots drawn out along four directions, [size, size] in [0, 1]."""
    brightest = np.zeros((size, size))
    length = size / 24
    for angle in rng.uniform(0, np.pi, 4):
        dots = np.where(rng.random((size, size, 1)) < 0.004, 1.0, 0.0)
        drawn = convolve(dots, line(length, length / 2, angle))[..., 0]
        brightest = np.maximum(brightest, drawn / max(drawn.max(), 1e-12))
    return brightest
