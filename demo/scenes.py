"""Captioned pictures drawn from a grammar: objects with size, texture and colour, how they lie, and where.

`scenes(split, count)` lists scenes, `render(scene, size)` draws one, `write_folder` and
`python -m demo.scenes OUT --split test --count 1000` write a data set. Nothing here uses Python's salted
hashing or a platform's random source: the same split and count give the same scenes on every machine.

A split is decided by a hash of what a caption *means* (synonyms and the order of the objects removed), so
neither a caption nor a paraphrase of it is ever in two splits.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

__all__ = ["SPLITS", "Scene", "Thing", "main", "render", "scenes", "split_of", "vocabulary", "write_folder"]

Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # [P, 2] corners, x to the right, y downward, about the unit circle

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (243, 134, 32),
    "yellow": (250, 208, 44),
    "green": (46, 150, 62),
    "blue": (38, 92, 214),
    "purple": (126, 58, 178),
    "pink": (244, 120, 178),
    "white": (246, 246, 246),
    "black": (38, 38, 42),
    "brown": (126, 78, 42),
}
SIZES: dict[str, tuple[str, ...]] = {"small": ("small", "tiny"), "large": ("large", "big")}
TEXTURES: dict[str, tuple[str, ...]] = {
    "plain": ("",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered",),
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"right": "left", "below": "above"}
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "grey": ("on a grey background",),
    "yellow": ("on a yellow background",),
    "pink": ("on a pink background",),
    "green": ("on a green background",),
    "blue": ("on a blue background",),
    "meadow": ("on a meadow", "on the grass"),
    "beach": ("on a beach", "on the sand"),
    "snow": ("in the snow",),
    "night": ("in the night sky", "at night"),
    "sea": ("in the sea", "in the water"),
    "bricks": ("on a brick wall",),
    "wood": ("on a wooden table",),
}
# Shares of the 100 hash buckets; each split is far larger than anybody will ask for.
SPLITS: dict[str, range] = {
    "train": range(70),
    "dev": range(70, 80),
    "test": range(80, 90),
    "gallery": range(90, 100),
}
ONE_OBJECT_PERCENT = 10
# Outside "train", each block of 1000 scenes has 125 settings (place, relation, colours, sizes), each used
# eight times, 125 scenes apart. Colours and places then find nothing: shapes and textures have to be seen.
BLOCK = 1000
SETTINGS = 125


@dataclass(frozen=True)
class Thing:
    """One object of a scene, named by the keys of SHAPES, COLOURS, SIZES and TEXTURES."""

    shape: str
    colour: str
    size: str
    texture: str

    def meaning(self) -> str:
        return f"{self.size} {self.texture} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A caption and what it describes. `relation` says where things[0] lies as seen from things[1]."""

    id: str
    caption: str
    things: tuple[Thing, ...]
    relation: str | None
    background: str

    @property
    def attributes(self) -> dict[str, Any]:
        """The scene as plain values, ready for JSON."""
        things = [
            {"shape": t.shape, "colour": t.colour, "size": t.size, "texture": t.texture} for t in self.things
        ]
        return {"things": things, "relation": self.relation, "background": self.background}

    def meaning(self) -> str:
        """One string for all captions that say the same: no synonyms, "right" turned to "left"."""
        things, relation = list(self.things), self.relation
        if relation in OPPOSITE:
            things, relation = things[::-1], OPPOSITE[relation]
        return f"{f' {relation} '.join(t.meaning() for t in things)} / {self.background}"


class Dice:
    """Repeatable random numbers: splitmix64 (Steele, Lea, Flood 2014) seeded by a text."""

    def __init__(self, seed: str) -> None:
        self._state = _digest(seed)

    def _next(self) -> int:
        mask = (1 << 64) - 1
        self._state = (self._state + 0x9E3779B97F4A7C15) & mask
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def below(self, stop: int) -> int:
        """A whole number, 0 <= n < stop."""
        return self._next() % stop

    def between(self, low: float, high: float) -> float:
        """A real number, low <= x < high."""
        return low + (high - low) * (self._next() >> 11) / (1 << 53)

    def pick(self, options: Sequence[str]) -> str:
        return options[self.below(len(options))]

    def grid(self, side: int) -> NDArray[np.float64]:
        """[side, side] of uniform numbers in [0, 1)."""
        return np.random.Generator(np.random.PCG64(self._next())).random((side, side))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# ------------------------------------------------------------------------------------------------------
# Captions


def split_of(scene: Scene) -> str:
    """The only split that may hold this scene."""
    bucket = _digest(f"split:{scene.meaning()}") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def scenes(split: str, count: int) -> list[Scene]:
    """The first `count` scenes of a split, all captions distinct; a longer list begins with the shorter one.

    Raises: ValueError for an unknown split or a negative count.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    return list(islice(_stream(split), count))


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted."""
    phrases: list[str] = ["a an", *SHAPES, *COLOURS]
    for table in (SIZES, TEXTURES, RELATIONS, BACKGROUNDS):
        phrases += [phrase for options in table.values() for phrase in options]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _stream(split: str) -> Iterator[Scene]:
    dice, seen = Dice(f"scenes:{split}"), set[str]()
    while True:
        scene = _candidate(dice, split, len(seen))
        meaning = scene.meaning()
        if meaning not in seen and split_of(scene) == split:
            seen.add(meaning)
            yield scene


def _candidate(dice: Dice, split: str, number: int) -> Scene:
    if split == "train":
        return _draw(dice, split, number)
    setting = number // BLOCK * SETTINGS + number % SETTINGS
    return _sibling(dice, _draw(Dice(f"setting:{split}:{setting}"), split, number))


def _sibling(dice: Dice, scene: Scene) -> Scene:
    """The same place, relation, colours and sizes, with other shapes and textures."""
    while True:
        things = tuple(_changed(dice, thing, alone=len(scene.things) == 1) for thing in scene.things)
        if len({(thing.shape, thing.colour) for thing in things}) == len(things):
            caption = _caption(dice, things, scene.relation, scene.background)
            return replace(scene, caption=caption, things=things)


def _changed(dice: Dice, thing: Thing, *, alone: bool) -> Thing:
    """A thing that is alone changes wholly: otherwise a split would run out of its siblings."""
    other = _draw_thing(dice)
    return other if alone else replace(thing, shape=other.shape, texture=other.texture)


def _draw(dice: Dice, split: str, number: int) -> Scene:
    first, background = _draw_thing(dice), dice.pick(tuple(BACKGROUNDS))
    if dice.below(100) < ONE_OBJECT_PERCENT:
        things: tuple[Thing, ...] = (first,)
        relation = None
    else:
        things = (first, _draw_other(dice, first))
        relation = dice.pick(tuple(RELATIONS))
    caption = _caption(dice, things, relation, background)
    return Scene(f"{split}-{number:06d}", caption, things, relation, background)


def _draw_thing(dice: Dice) -> Thing:
    return Thing(
        shape=dice.pick(tuple(SHAPES)),
        colour=dice.pick(tuple(COLOURS)),
        size=dice.pick(tuple(SIZES)),
        texture=dice.pick(tuple(TEXTURES)),
    )


def _draw_other(dice: Dice, first: Thing) -> Thing:
    """A thing that differs from the first in shape or colour, so that the relation means something."""
    while True:
        other = _draw_thing(dice)
        if (other.shape, other.colour) != (first.shape, first.colour):
            return other


def _caption(dice: Dice, things: Sequence[Thing], relation: str | None, background: str) -> str:
    parts = [_noun_phrase(dice, things[0])]
    if relation is not None:
        parts += [dice.pick(RELATIONS[relation]), _noun_phrase(dice, things[1])]
    return " ".join([*parts, dice.pick(BACKGROUNDS[background])])


def _noun_phrase(dice: Dice, thing: Thing) -> str:
    words = [dice.pick(SIZES[thing.size]), dice.pick(TEXTURES[thing.texture]), thing.colour, thing.shape]
    return " ".join(["a", *(word for word in words if word)])


# ------------------------------------------------------------------------------------------------------
# Outlines. A shape is polygons to fill, polygons to cut out of them, and dark details drawn on top.


@dataclass(frozen=True)
class Outline:
    fill: tuple[Points, ...]
    cut: tuple[Points, ...] = ()
    detail: tuple[Points, ...] = ()


def _points(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _disc(
    x: float = 0.0, y: float = 0.0, rx: float = 1.0, ry: float | None = None, corners: int = 48
) -> Points:
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + (rx if ry is None else ry) * np.sin(turn)], axis=1)


def _regular(corners: int, inner: float | None = None, radius: float = 1.0) -> Points:
    """A regular polygon with a corner on top, or a star when `inner` gives the radius between its tips."""
    count = corners if inner is None else 2 * corners
    turn = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radii = np.full(count, radius)
    if inner is not None:
        radii[1::2] = inner
    return np.stack([radii * np.cos(turn), radii * np.sin(turn)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 16.5, -(y + 2.5) / 16.0], axis=1)


def _flower() -> Points:
    t = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = 0.76 + 0.26 * np.cos(6 * t)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)


def _shapes() -> dict[str, Outline]:
    square = _points((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82))
    bar = _points((-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95))
    roof = _points((-1.0, -0.08), (0.0, -0.98), (1.0, -0.08))
    walls = _points((-0.74, -0.1), (0.74, -0.1), (0.74, 0.88), (-0.74, 0.88))
    door = _points((-0.2, 0.25), (0.2, 0.25), (0.2, 0.88), (-0.2, 0.88))
    trunk = _points((-0.17, 0.5), (0.17, 0.5), (0.17, 1.0), (-0.17, 1.0))
    branches = [
        _points((-w, b), (0.0, t), (w, b))
        for w, t, b in ((0.5, -1.0, -0.3), (0.68, -0.65, 0.12), (0.86, -0.3, 0.6))
    ]
    shaft = _points((-0.98, -0.3), (0.1, -0.3), (0.1, 0.3), (-0.98, 0.3))
    head = _points((0.05, -0.82), (1.0, 0.0), (0.05, 0.82))
    tail = _points((0.35, 0.0), (1.0, -0.62), (0.88, 0.0), (1.0, 0.62))
    puffs = (
        _disc(-0.5, 0.15, 0.46),
        _disc(0.05, -0.2, 0.56),
        _disc(0.55, 0.12, 0.44),
        _disc(0.0, 0.34, 0.85, 0.3),
    )
    bowl = _points((-0.95, 0.2), (0.95, 0.2), (0.55, 0.8), (-0.55, 0.8))
    sail = _points((-0.1, -1.0), (0.75, 0.08), (-0.1, 0.08))
    return {
        "circle": Outline((_disc(),)),
        "square": Outline((square,)),
        "triangle": Outline((_points((0.0, -0.98), (0.98, 0.74), (-0.98, 0.74)),)),
        "star": Outline((_regular(5, inner=0.46, radius=1.08),)),
        "heart": Outline((_heart(),)),
        "diamond": Outline((_points((0.0, -1.08), (0.74, 0.0), (0.0, 1.08), (-0.74, 0.0)),)),
        "ring": Outline((_disc(),), cut=(_disc(rx=0.5),)),
        "cross": Outline((bar, bar[:, ::-1])),
        "moon": Outline((_disc(),), cut=(_disc(0.52, -0.12, 0.82),)),
        "flower": Outline((_flower(),), detail=(_disc(rx=0.24),)),
        "house": Outline((roof, walls), detail=(door,)),
        "tree": Outline((trunk, *branches)),
        "fish": Outline((_disc(-0.18, 0.0, 0.82, 0.56), tail), detail=(_disc(-0.58, -0.12, 0.1),)),
        "cloud": Outline(puffs),
        "arrow": Outline((shaft, head)),
        "boat": Outline((bowl, sail, _points((-0.2, -1.0), (-0.08, -1.0), (-0.08, 0.25), (-0.2, 0.25)))),
    }


SHAPES: dict[str, Outline] = _shapes()


# ------------------------------------------------------------------------------------------------------
# Drawing. Everything is measured in shares of the picture, so all sizes show the same scene.


def render(scene: Scene, size: int = 128) -> Image.Image:
    """Draw a scene as an RGB picture of size x size pixels, antialiased.

    Place, turn, hue, light and texture vary a little; the scene's id and caption seed them, so a scene
    always looks the same. Raises: ValueError when size is not in 16..2048.
    """
    if not 16 <= size <= 2048:
        raise ValueError(f"size must be between 16 and 2048 pixels, got {size}")
    canvas = max(256, 2 * size)  # drawn at least twice as large: that is the antialiasing
    dice = Dice(f"render:{scene.id}:{scene.caption}")
    picture = _background(dice, scene.background, canvas)
    for thing, (x, y) in zip(scene.things, _places(dice, scene.relation), strict=True):
        _paint(picture, dice, thing, x * canvas, y * canvas)
    return _light(picture, dice).resize((size, size), Image.Resampling.BOX)


def _places(dice: Dice, relation: str | None) -> list[tuple[float, float]]:
    """Centre of each thing, in shares of the picture."""
    if relation is None:
        return [(dice.between(0.3, 0.7), dice.between(0.3, 0.7))]
    near, far = dice.between(0.25, 0.3), dice.between(0.7, 0.75)
    sides = [dice.between(0.36, 0.64), dice.between(0.36, 0.64)]
    along = [near, far] if relation in ("left", "above") else [far, near]
    across = relation in ("left", "right")
    return [(a, s) if across else (s, a) for a, s in zip(along, sides, strict=True)]


def _paint(picture: Image.Image, dice: Dice, thing: Thing, x: float, y: float) -> None:
    """Draw one thing with its shadow, centred on (x, y) in pixels of the canvas."""
    canvas = picture.width
    share = dice.between(0.185, 0.215) if thing.size == "large" else dice.between(0.1, 0.118)
    radius, turn = share * canvas, dice.between(-0.2, 0.2)
    colour = _shifted(dice, COLOURS[thing.colour])
    side = int(2.9 * radius)
    mask = _mask(SHAPES[thing.shape], side, radius, turn)
    body = _body(dice, thing.texture, colour, side, radius)
    details = _polygons(SHAPES[thing.shape].detail, side, radius, turn)
    body.paste(_mixed(colour, _contrast(colour), 0.8), mask=details)
    inner = mask.filter(ImageFilter.BoxBlur(0.007 * canvas)).point(lambda v: 255 if v > 235 else 0)
    rim = Image.new("RGB", mask.size, _rim(colour))
    rim.paste(body, mask=inner)
    left, top = int(x - side / 2), int(y - side / 2)
    drop = int(0.018 * canvas)
    shadow = mask.filter(ImageFilter.BoxBlur(0.012 * canvas)).point(lambda v: int(v * 0.4))
    picture.paste((10, 12, 20), (left + drop // 2, top + drop), shadow)
    picture.paste(rim, (left, top), mask)


def _polygons(polygons: Iterable[Points], side: int, radius: float, turn: float) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        draw.polygon(_placed(polygon, side, radius, turn), fill=255)
    return mask


def _mask(outline: Outline, side: int, radius: float, turn: float) -> Image.Image:
    mask = _polygons(outline.fill, side, radius, turn)
    draw = ImageDraw.Draw(mask)
    for polygon in outline.cut:
        draw.polygon(_placed(polygon, side, radius, turn), fill=0)
    return mask


def _placed(polygon: Points, side: int, radius: float, turn: float) -> list[tuple[float, float]]:
    cos, sin = math.cos(turn), math.sin(turn)
    turned = polygon @ np.array([[cos, sin], [-sin, cos]]) * radius + side / 2
    return [(float(px), float(py)) for px, py in turned]


def _body(dice: Dice, texture: str, colour: Colour, side: int, radius: float) -> Image.Image:
    """The inside of a thing: its colour, its texture, and a soft light from above."""
    second = _mixed(colour, _contrast(colour), 0.72)
    body = Image.new("RGB", (side, side), colour)
    if texture != "plain":
        body.paste(second, mask=_TEXTURES[texture](dice, side, radius))
    return _shaded(body)


def _shaded(body: Image.Image) -> Image.Image:
    ramp = np.linspace(1.1, 0.86, body.height)[:, None, None]
    return Image.fromarray(np.clip(np.asarray(body) * ramp, 0, 255).astype(np.uint8))


def _grid(dice: Dice, side: int, turn: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in pixels along two axes turned by `turn`, with a random phase; each [side, side]."""
    rows, columns = np.mgrid[0:side, 0:side] + dice.between(0, 100)
    return columns * math.cos(turn) + rows * math.sin(turn), rows * math.cos(turn) - columns * math.sin(turn)


def _bits(pattern: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(pattern.astype(np.uint8) * 255)


def _stripes(dice: Dice, side: int, radius: float) -> Image.Image:
    along, _ = _grid(dice, side, dice.between(0.5, 1.07))
    return _bits((along / (0.6 * radius)) % 1.0 < 0.5)


def _checks(dice: Dice, side: int, radius: float) -> Image.Image:
    along, across = _grid(dice, side, dice.between(-0.15, 0.15))
    cell = 0.45 * radius
    return _bits((np.floor(along / cell) + np.floor(across / cell)) % 2 == 0)


def _dots(dice: Dice, side: int, radius: float) -> Image.Image:
    along, across = _grid(dice, side, dice.between(0.4, 0.8))
    cell = 0.6 * radius
    x, y = along / cell % 1.0 - 0.5, across / cell % 1.0 - 0.5
    return _bits(x * x + y * y < 0.085)


_TEXTURES: dict[str, Callable[[Dice, int, float], Image.Image]] = {
    "striped": _stripes,
    "checkered": _checks,
    "dotted": _dots,
}


def _brightness(colour: Colour) -> float:
    """Perceived brightness (Rec. 601), 0..255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _contrast(colour: Colour) -> Colour:
    return (30, 30, 40) if _brightness(colour) > 165 else (255, 255, 255)


def _rim(colour: Colour) -> Colour:
    """A dark rim, or a light one round a dark thing: no thing vanishes on a background of its own colour."""
    return (190, 190, 196) if _brightness(colour) < 60 else _mixed(colour, (0, 0, 0), 0.55)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with `share` of `other` in it."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(one, other, strict=True))
    return r, g, b


def _shifted(dice: Dice, colour: Colour, spread: int = 14) -> Colour:
    """The colour with a small shift of each channel and of its brightness."""
    scale = dice.between(0.92, 1.06)
    r, g, b = (min(255, max(0, round(c * scale + dice.between(-spread, spread)))) for c in colour)
    return r, g, b


# Backgrounds


def _background(dice: Dice, name: str, canvas: int) -> Image.Image:
    if name in PASTELS:
        return _ramp(dice, _shifted(dice, PASTELS[name], 4), canvas, 0.03)
    return _SCENERY[name](dice, canvas)


PASTELS: dict[str, Colour] = {
    "grey": (168, 170, 174),
    "yellow": (252, 232, 138),
    "pink": (252, 196, 216),
    "green": (164, 222, 166),
    "blue": (158, 204, 248),
}


def _ramp(dice: Dice, colour: Colour, canvas: int, grain: float = 0.05) -> Image.Image:
    """A colour that grows darker downward, with a soft cloudy texture."""
    ramp = np.linspace(1.05, 0.92, canvas)[:, None, None]
    cloudy = 1 + grain * 2 * (_noise(dice, canvas, 7) - 0.5)[:, :, None]
    return Image.fromarray(np.clip(np.array(colour) * ramp * cloudy, 0, 255).astype(np.uint8))


def _noise(dice: Dice, canvas: int, cells: int) -> NDArray[np.float64]:
    """[canvas, canvas] of smooth noise in about 0..1 with `cells` bumps across the picture."""
    coarse = Image.fromarray((dice.grid(cells) * 255).astype(np.uint8))
    smooth = coarse.resize((canvas, canvas), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64) / 255


def _strokes(
    dice: Dice, picture: Image.Image, count: int, colours: Sequence[Colour], reach: float
) -> Image.Image:
    """Short upright strokes, as of grass; `reach` in shares of the picture."""
    draw, canvas = ImageDraw.Draw(picture), picture.width
    for number in range(count):
        x, y = dice.between(0, canvas), dice.between(0, canvas * 1.05)
        lean, height = dice.between(-0.3, 0.3) * reach * canvas, dice.between(0.6, 1.0) * reach * canvas
        draw.line(
            (x, y, x + lean, y - height), fill=colours[number % len(colours)], width=max(1, canvas // 110)
        )
    return picture


def _specks(
    dice: Dice, picture: Image.Image, count: int, colours: Sequence[Colour], radii: tuple[float, float]
) -> Image.Image:
    """Round specks with a radius between the two `radii`, in shares of the picture."""
    draw, canvas = ImageDraw.Draw(picture), picture.width
    low, high = radii
    for number in range(count):
        x, y, r = dice.between(0, canvas), dice.between(0, canvas), dice.between(low, high) * canvas
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colours[number % len(colours)])
    return picture


def _waves(dice: Dice, picture: Image.Image, count: int, colour: Colour, height: float) -> Image.Image:
    """Wavy lines across the picture."""
    draw, canvas = ImageDraw.Draw(picture), picture.width
    x = np.linspace(0, canvas, 40)
    for number in range(count):
        y = canvas * (number + dice.between(0.2, 0.8)) / count
        bend = height * canvas * np.sin(x / canvas * 2 * np.pi * dice.between(1.5, 3) + dice.between(0, 6.28))
        line = [(float(px), float(y + py)) for px, py in zip(x, bend, strict=True)]
        draw.line(line, fill=colour, width=max(1, canvas // 90))
    return picture


def _meadow(dice: Dice, canvas: int) -> Image.Image:
    ground = _ramp(dice, (112, 164, 66), canvas, 0.15)
    return _strokes(dice, ground, 110, ((88, 138, 50), (136, 188, 84), (74, 122, 44)), 0.07)


def _beach(dice: Dice, canvas: int) -> Image.Image:
    ground = _waves(dice, _ramp(dice, (226, 198, 146), canvas, 0.12), 6, (206, 174, 120), 0.02)
    return _specks(dice, ground, 50, ((190, 156, 106), (246, 226, 184)), (0.003, 0.009))


def _snow(dice: Dice, canvas: int) -> Image.Image:
    ground = _ramp(dice, (222, 232, 244), canvas, 0.12)
    return _specks(dice, ground, 45, ((255, 255, 255),), (0.006, 0.016))


def _night(dice: Dice, canvas: int) -> Image.Image:
    return _specks(
        dice, _ramp(dice, (24, 30, 74), canvas, 0.3), 40, ((252, 250, 220), (170, 180, 230)), (0.003, 0.01)
    )


def _sea(dice: Dice, canvas: int) -> Image.Image:
    return _waves(dice, _ramp(dice, (38, 134, 160), canvas, 0.15), 9, (104, 190, 206), 0.014)


def _bricks(dice: Dice, canvas: int) -> Image.Image:
    picture = _ramp(dice, (200, 186, 172), canvas)
    draw, high = ImageDraw.Draw(picture), canvas / dice.between(7.5, 9)
    shift, gap = dice.between(-1, 0), 0.008 * canvas
    for row in range(10):
        for column in range(-1, 6):
            x, y = (column + shift + 0.5 * (row % 2)) * 2.1 * high, (row + shift) * high
            box = (x + gap, y + gap, x + 2.1 * high - gap, y + high - gap)
            draw.rectangle(box, fill=_shifted(dice, (166, 88, 66), 12))
    return picture


def _wood(dice: Dice, canvas: int) -> Image.Image:
    picture = _ramp(dice, (184, 138, 90), canvas, 0.1)
    draw, planks = ImageDraw.Draw(picture), 4
    for plank in range(planks):
        top = plank * canvas / planks
        box = (0, top, canvas, top + canvas / planks)
        draw.rectangle(box, fill=_shifted(dice, (186, 140, 92), 10), outline=(120, 82, 48))
        for _ in range(4):
            y, x = top + dice.between(0.1, 0.9) * canvas / planks, dice.between(-0.2, 0.7) * canvas
            draw.line(
                (x, y, x + dice.between(0.2, 0.6) * canvas, y),
                fill=(158, 112, 68),
                width=max(1, canvas // 128),
            )
    return picture


_SCENERY: dict[str, Callable[[Dice, int], Image.Image]] = {
    "meadow": _meadow,
    "beach": _beach,
    "snow": _snow,
    "night": _night,
    "sea": _sea,
    "bricks": _bricks,
    "wood": _wood,
}


def _light(picture: Image.Image, dice: Dice) -> Image.Image:
    """Exposure of the whole picture, within 8 %."""
    shine = Image.new("RGB", picture.size, (255, 255, 255))
    amount = dice.between(-0.08, 0.08)
    if amount > 0:
        return Image.blend(picture, shine, amount)
    return ImageChops.multiply(picture, Image.new("RGB", picture.size, (round(255 * (1 + amount)),) * 3))


# ------------------------------------------------------------------------------------------------------
# Folders


def write_folder(out: Path, split: str, count: int, *, size: int = 128) -> list[Scene]:
    """Write `images/`, `captions.tsv` (header: file, caption) and `split_<split>.txt` below `out`.

    Several splits may share a folder: captions of other splits that are already there are kept.
    """
    from rich.progress import track

    listed = scenes(split, count)
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = [(f"images/{scene.id}.png", scene.caption) for scene in listed]
    for scene, (name, _) in track(zip(listed, rows, strict=True), "drawing scenes", total=count):
        render(scene, size).save(out / name)
    rows = _rows_of_other_splits(out / "captions.tsv", split) + rows
    lines = [f"{name}\t{caption}" for name, caption in rows]
    (out / "captions.tsv").write_text("\n".join(["file\tcaption", *lines]) + "\n", encoding="utf-8")
    names = "".join(f"images/{scene.id}.png\n" for scene in listed)
    (out / f"split_{split}.txt").write_text(names, encoding="utf-8")
    return listed


def _rows_of_other_splits(path: Path, split: str) -> list[tuple[str, str]]:
    if not path.exists():
        return []
    rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [(name, caption) for name, caption in rows if not name.startswith(f"images/{split}-")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: python -m demo.scenes OUT --split test --count 1000 [--size 128]."""
    parser = argparse.ArgumentParser(prog="python -m demo.scenes", description="Write captioned scenes.")
    parser.add_argument("out", type=Path, help="folder to write into; made when missing")
    parser.add_argument("--split", choices=tuple(SPLITS), default="test")
    parser.add_argument("--count", type=int, default=1000, help="number of scenes")
    parser.add_argument("--size", type=int, default=128, help="side of a picture, in pixels")
    given = parser.parse_args(arguments)
    write_folder(given.out, given.split, given.count, size=given.size)
    print(f"{given.count} scenes of split {given.split} in {given.out}")


if __name__ == "__main__":
    main()
