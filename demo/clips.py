"""Short audio-visual clips drawn and synthesised by seed: a thing in a picture, and what is heard.

A class is an event: a thing (LOOKS) with a sound (SOUNDS). Half of the things have two sounds, half of the
sounds belong to two things (EVENTS): a picture alone or a sound alone names two clips of three at best, both
together name all. Place, size, turn, colour, background, pitch, loudness, onset and a mild noise vary from
clip to clip.

`make_clip(seed)` makes one, `sample_files(seed)` the same as WAV and PNG bytes, and
`python -m demo.clips --out DIR --count 100` writes a folder. Twelve seeds in a row, from a multiple of 12,
hold every class once. Nothing here uses Python's salted hashing or a platform's random source.
"""

from __future__ import annotations

import argparse
import io
import math
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo.scenes import COLOURS, Dice

__all__ = [
    "EVENTS",
    "FRAME_SIZE",
    "LABELS",
    "LOOKS",
    "SAMPLES",
    "SAMPLE_RATE",
    "SOUNDS",
    "SPLITS",
    "Clip",
    "Event",
    "label_of",
    "main",
    "make_clip",
    "make_clips",
    "png_bytes",
    "sample_files",
    "wav_bytes",
    "write_folder",
]

SAMPLE_RATE = 16_000
SAMPLES = 20_800  # 1.3 s: 128 frames of a filter bank with 25 ms windows every 10 ms
FRAME_SIZE = 96
CANVAS = 3 * FRAME_SIZE  # drawn larger and shrunk: that is the antialiasing

Wave = NDArray[np.float64]  # [SAMPLES]
Colour = tuple[int, int, int]
Corners = list[tuple[float, float]]


@dataclass(frozen=True)
class Event:
    """One class: what is seen (a key of LOOKS) and what is heard (a key of SOUNDS)."""

    label: str
    look: str
    sound: str


EVENTS: tuple[Event, ...] = (
    Event("bell struck", "bell", "ring"),
    Event("bell at rest", "bell", "silence"),
    Event("phone ringing", "phone", "ring"),
    Event("kettle whistling", "kettle", "whistle"),
    Event("kettle steaming", "kettle", "hiss"),
    Event("bird whistling", "bird", "whistle"),
    Event("bird chirping", "bird", "chirp"),
    Event("car running", "car", "hum"),
    Event("car parked", "car", "silence"),
    Event("fan running", "fan", "hum"),
    Event("clock ticking", "clock", "ticks"),
    Event("drum beaten", "drum", "beats"),
)
LABELS: tuple[str, ...] = tuple(event.label for event in EVENTS)
# First seed of each split; a split has a million seeds of its own.
SPLITS: dict[str, int] = {"train": 0, "dev": 1_000_000, "test": 2_000_000}


@dataclass(frozen=True)
class Clip:
    """One clip: waveform float32 [20800] within -1..1 at 16 kHz, frame uint8 [96, 96, 3], RGB."""

    label: str
    waveform: NDArray[np.float32]
    frame: NDArray[np.uint8]

    @property
    def index(self) -> int:
        """Place of the label in LABELS."""
        return LABELS.index(self.label)


def make_clip(seed: int) -> Clip:
    """The clip of a seed, always the same. Raises: ValueError when the seed is negative."""
    event = _event(seed)
    # The picture does not know the sound, nor the sound the picture: neither gives away the other's part.
    waveform = _waveform(Dice(f"clip sound:{seed}"), event.sound)
    return Clip(event.label, waveform, _frame(Dice(f"clip picture:{seed}"), event.look))


def label_of(seed: int) -> str:
    """The label of the clip of a seed, which is not made for it. Raises: ValueError when it is negative."""
    return _event(seed).label


def make_clips(count: int, seed: int = 0) -> list[Clip]:
    """The clips of the seeds seed, seed + 1, ... Raises: ValueError when count or seed is negative."""
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    return [make_clip(number) for number in range(seed, seed + count)]


def sample_files(seed: int) -> tuple[bytes, bytes, str]:
    """The clip of a seed as files: WAV (16 bit, mono, 16 kHz), PNG, and its label."""
    clip = make_clip(seed)
    return wav_bytes(clip.waveform), png_bytes(clip.frame), clip.label


def wav_bytes(waveform: NDArray[np.float32]) -> bytes:
    """A waveform float32 [n] within -1..1 as a mono 16-bit WAV file of 16 kHz; what is outside is clipped."""
    pcm = np.round(np.clip(waveform, -1.0, 1.0) * 32767).astype("<i2")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    return out.getvalue()


def png_bytes(frame: NDArray[np.uint8]) -> bytes:
    """A frame uint8 [H, W, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, format="PNG")
    return out.getvalue()


def _event(seed: int) -> Event:
    """Every block of twelve seeds holds each class once, in an order of its own."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    block, place = divmod(seed, len(EVENTS))
    order, dice = list(EVENTS), Dice(f"clip order:{block}")
    for last in range(len(order) - 1, 0, -1):  # Fisher-Yates
        other = dice.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return order[place]


def _random(dice: Dice) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(dice.below(1 << 62)))


# ------------------------------------------------------------------------------------------------------
# Sounds. Each function gives a sound that fills the clip; level and room noise come afterwards.

_TIME_S: Wave = np.arange(SAMPLES) / SAMPLE_RATE
_LENGTH_S = SAMPLES / SAMPLE_RATE
_ROOM_SHARE_DB = (-44.0, -30.0)  # level of the room noise below full scale
_LEVEL_DB = (-24.0, -8.0)  # level of the sound's peak


def _waveform(dice: Dice, sound: str) -> NDArray[np.float32]:
    room = _coloured(dice, dice.between(0.4, 1.1)) * _gain(dice.between(*_ROOM_SHARE_DB))
    made = SOUNDS[sound](dice)
    peak = max(float(np.abs(made).max()), 1e-9)
    level = _gain(dice.between(*_LEVEL_DB)) if sound != "silence" else 0.0
    return np.clip(made / peak * level + room, -1.0, 1.0).astype(np.float32)


def _gain(decibels: float) -> float:
    return 10.0 ** (decibels / 20)


def _coloured(dice: Dice, tilt: float) -> Wave:
    """Noise of peak 1 whose power falls as 1 / f^tilt."""
    frequencies = np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE)
    shape = np.maximum(frequencies, 40.0) ** (-tilt / 2)
    noise = np.fft.irfft(np.fft.rfft(_random(dice).standard_normal(SAMPLES)) * shape, SAMPLES)
    return noise / np.abs(noise).max()


def _band(dice: Dice, low_hz: float, high_hz: float) -> Wave:
    """Noise of peak 1 between two frequencies, with soft edges of a fifth of an octave or so."""
    frequencies = np.maximum(np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE), 1.0)
    rise = 1 / (1 + (low_hz / frequencies) ** 8)
    fall = 1 / (1 + (frequencies / high_hz) ** 8)
    noise = np.fft.irfft(np.fft.rfft(_random(dice).standard_normal(SAMPLES)) * rise * fall, SAMPLES)
    return noise / np.abs(noise).max()


def _phase(frequency_hz: Wave | float) -> Wave:
    """Angle of an oscillator whose frequency may change, [SAMPLES] radians."""
    return 2 * np.pi * np.cumsum(np.broadcast_to(frequency_hz, (SAMPLES,))) / SAMPLE_RATE


def _since(start_s: float) -> Wave:
    """Seconds since `start_s`; negative before."""
    return _TIME_S - start_s


def _decay(start_s: float, half_s: float, attack_s: float = 0.003) -> Wave:
    """An envelope that rises within `attack_s` and then halves every `half_s`; 0 before `start_s`."""
    since = _since(start_s)
    return np.clip(since / attack_s, 0.0, 1.0) * 0.5 ** (np.maximum(since, 0.0) / half_s)


def _held(dice: Dice, attack_s: float) -> Wave:
    """An envelope that starts somewhere in the first third and ends in the last quarter or not at all."""
    start, end = dice.between(0.0, 0.33) * _LENGTH_S, dice.between(0.75, 1.2) * _LENGTH_S
    return np.clip(_since(start) / attack_s, 0.0, 1.0) * np.clip((end - _TIME_S) / attack_s, 0.0, 1.0)


def _starts(dice: Dice, gap_s: float, jitter: float) -> list[float]:
    """Times of events about `gap_s` apart, the first one within the first gap."""
    times, now = [], dice.between(0.0, min(gap_s, 0.3))
    while now < _LENGTH_S - 0.02:
        times.append(now)
        now += gap_s * dice.between(1 - jitter, 1 + jitter)
    return times


def _silence(dice: Dice) -> Wave:
    return np.zeros(SAMPLES)


def _ring(dice: Dice) -> Wave:
    """Inharmonic partials, struck one to four times."""
    base, out = dice.between(520, 1150), np.zeros(SAMPLES)
    partials = [(1.0, 1.0, 0.30), (2.0, 0.7, 0.22), (2.76, 0.55, 0.14), (5.40, 0.3, 0.07)]
    voices = [(base * ratio * dice.between(0.99, 1.01), loud, half) for ratio, loud, half in partials]
    for start in _starts(dice, dice.between(0.35, 1.3), 0.1):
        for hertz, loud, half in voices:
            out += loud * dice.between(0.7, 1.0) * np.sin(_phase(hertz)) * _decay(start, half)
    return out


def _whistle(dice: Dice) -> Wave:
    """One steady tone with a slow vibrato, and its breath."""
    glide = (
        1
        + dice.between(-0.08, 0.08) * _TIME_S
        + dice.between(0.004, 0.02) * np.sin(2 * np.pi * dice.between(4, 8) * _TIME_S)
    )
    hertz = dice.between(1100, 2700)
    tone = np.sin(_phase(hertz * glide)) + dice.between(0.0, 0.12) * np.sin(_phase(2 * hertz * glide))
    return (tone + 0.1 * _band(dice, hertz * 0.7, hertz * 1.4)) * _held(dice, dice.between(0.02, 0.2))


def _hiss(dice: Dice) -> Wave:
    """Noise of the upper half of the spectrum that swells slowly."""
    swell = 1 + dice.between(0.1, 0.4) * np.sin(
        2 * np.pi * (dice.between(0.4, 2.0) * _TIME_S + dice.between(0, 1))
    )
    return _band(dice, dice.between(2000, 3400), 7800) * swell * _held(dice, dice.between(0.05, 0.3))


def _chirp(dice: Dice) -> Wave:
    """Short sweeps upward or downward."""
    out, low = np.zeros(SAMPLES), dice.between(1500, 2600)
    length, sweep = dice.between(0.05, 0.11), dice.between(0.3, 0.8) * (1 if dice.below(2) else -1)
    for start in _starts(dice, dice.between(0.12, 0.28), 0.25):
        share = np.clip(_since(start) / length, 0.0, 1.0)
        out += np.sin(_phase(low * dice.between(0.9, 1.1) * (1.3 + sweep * share))) * np.sin(np.pi * share)
    return out


def _hum(dice: Dice) -> Wave:
    """A low harmonic tone with a slow beat, as of a motor."""
    base, out = dice.between(65, 150), np.zeros(SAMPLES)
    fall = dice.between(0.6, 1.2)
    for number in range(1, 15):
        out += number**-fall * np.sin(number * _phase(base) + dice.between(0, 2 * np.pi))
    beat = 1 + dice.between(0.1, 0.5) * np.sin(2 * np.pi * dice.between(5, 16) * _TIME_S)
    return (out + 0.2 * _band(dice, 60, 1200)) * beat * _held(dice, dice.between(0.03, 0.25))


def _ticks(dice: Dice) -> Wave:
    """Very short clicks at a steady pace, every other one a little lower."""
    out, hertz = np.zeros(SAMPLES), dice.between(1800, 3600)
    for number, start in enumerate(_starts(dice, dice.between(0.12, 0.3), 0.02)):
        out += np.sin(_phase(hertz * (1.0 if number % 2 else 0.8))) * _decay(start, 0.004, 0.0006)
    return out


def _beats(dice: Dice) -> Wave:
    """Low thumps whose pitch falls, with the skin's noise at the start of each."""
    out, hertz = np.zeros(SAMPLES), dice.between(75, 190)
    skin = _band(dice, 200, dice.between(900, 2500))
    for start in _starts(dice, dice.between(0.22, 0.5), 0.12):
        bend = 1 + 0.5 * 0.5 ** (np.maximum(_since(start), 0.0) / 0.03)
        thump = np.sin(_phase(hertz * bend)) * _decay(start, dice.between(0.05, 0.1))
        out += dice.between(0.6, 1.0) * (thump + 0.5 * skin * _decay(start, 0.015))
    return out


SOUNDS: dict[str, Callable[[Dice], Wave]] = {
    "ring": _ring,
    "silence": _silence,
    "whistle": _whistle,
    "hiss": _hiss,
    "chirp": _chirp,
    "hum": _hum,
    "ticks": _ticks,
    "beats": _beats,
}


# ------------------------------------------------------------------------------------------------------
# Pictures. Things are drawn about the unit circle, x to the right and y downward.


class _Pen:
    """Draws in a thing's own coordinates: placed, turned, scaled and perhaps mirrored."""

    def __init__(self, dice: Dice, picture: Image.Image, colour: Colour) -> None:
        self.body, self.dark = colour, _mixed(colour, (20, 20, 26), 0.62)
        bright = sum(colour) > 600  # white on white could not be seen
        self.light = _mixed(colour, (96, 112, 140) if bright else (255, 255, 255), 0.3 if bright else 0.62)
        radius = dice.between(0.2, 0.36)
        self._x, self._y = (dice.between(radius, 1 - radius) * CANVAS for _ in range(2))
        self._radius, self._turn = radius * CANVAS, dice.between(-0.25, 0.25)
        self._side = 1.0 if dice.below(2) else -1.0
        self._draw = ImageDraw.Draw(picture)

    def polygon(self, corners: Iterable[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon(self._placed(corners), fill=colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.polygon(_oval(x, y, rx, ry), colour)

    def ring(
        self, x: float, y: float, radius: float, width: float, colour: Colour, share: float = 1.0
    ) -> None:
        """A circle's line; `share` below 1 leaves out the lower part."""
        turns = np.linspace(0.5 + share / 2, 0.5 - share / 2, 40) * 2 * np.pi + np.pi / 2
        self.line([(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns], width, colour)

    def line(self, corners: Iterable[tuple[float, float]], width: float, colour: Colour) -> None:
        placed = self._placed(corners)
        self._draw.line(placed, fill=colour, width=max(2, round(width * self._radius)), joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def _placed(self, corners: Iterable[tuple[float, float]]) -> Corners:
        cos, sin = math.cos(self._turn) * self._radius, math.sin(self._turn) * self._radius
        return [
            (self._x + self._side * x * cos - y * sin, self._y + self._side * x * sin + y * cos)
            for x, y in corners
        ]


def _oval(x: float, y: float, rx: float, ry: float) -> Corners:
    turns = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    return [(x + rx * math.cos(turn), y + ry * math.sin(turn)) for turn in turns]


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with `share` of `other` in it."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(one, other, strict=True))
    return r, g, b


def _bell(pen: _Pen, dice: Dice) -> None:
    pen.disc(0.0, 0.82, 0.2, 0.18, pen.dark)
    side = [(0.22, -0.75), (0.45, -0.5), (0.55, 0.1), (0.72, 0.5), (0.9, 0.72)]
    pen.polygon([(-x, y) for x, y in side[::-1]] + side, pen.body)
    pen.line([(-0.86, 0.66), (0.86, 0.66)], 0.14, pen.dark)
    pen.ring(0.0, -0.82, 0.16, 0.1, pen.dark)
    pen.line([(-0.32, -0.35), (-0.42, 0.35)], 0.1, pen.light)


def _phone(pen: _Pen, dice: Dice) -> None:
    pen.box(-0.55, -0.95, 0.55, 0.95, pen.dark)
    pen.box(-0.47, -0.88, 0.47, 0.88, pen.body)
    pen.box(-0.38, -0.66, 0.38, 0.1, pen.light)
    for row in range(3):
        for column in range(3):
            pen.disc(-0.26 + 0.26 * column, 0.3 + 0.2 * row, 0.08, 0.07, pen.dark)


def _kettle(pen: _Pen, dice: Dice) -> None:
    pen.ring(0.0, -0.35, 0.5, 0.12, pen.dark, share=0.6)
    pen.polygon([(0.4, 0.3), (0.98, -0.35), (0.8, -0.42), (0.35, -0.05)], pen.body)
    pen.polygon([(-0.42, -0.35), (0.42, -0.35), (0.72, 0.75), (-0.72, 0.75)], pen.body)
    pen.line([(-0.46, -0.32), (0.46, -0.32)], 0.1, pen.dark)
    pen.line([(-0.74, 0.76), (0.74, 0.76)], 0.12, pen.dark)
    pen.line([(-0.35, -0.1), (-0.48, 0.5)], 0.1, pen.light)


def _bird(pen: _Pen, dice: Dice) -> None:
    pen.line([(-0.1, 0.4), (-0.12, 0.92)], 0.07, pen.dark)
    pen.line([(0.12, 0.4), (0.12, 0.92)], 0.07, pen.dark)
    pen.polygon([(-0.45, 0.0), (-1.0, -0.3), (-0.92, 0.2)], pen.dark)
    pen.disc(-0.05, 0.12, 0.62, 0.42, pen.body)
    pen.disc(0.5, -0.38, 0.32, 0.3, pen.body)
    pen.polygon([(0.76, -0.48), (1.08, -0.34), (0.76, -0.24)], pen.dark)
    pen.disc(0.56, -0.44, 0.08, 0.08, (20, 20, 24))
    pen.polygon([(-0.5, -0.05), (0.2, 0.05), (-0.15, 0.4)], pen.light)


def _car(pen: _Pen, dice: Dice) -> None:
    pen.polygon([(-0.55, -0.05), (-0.35, -0.52), (0.3, -0.52), (0.6, -0.05)], pen.body)
    pen.polygon([(-0.42, -0.08), (-0.28, -0.42), (-0.04, -0.42), (-0.04, -0.08)], pen.light)
    pen.polygon([(0.06, -0.08), (0.06, -0.42), (0.25, -0.42), (0.46, -0.08)], pen.light)
    pen.polygon([(-1.0, -0.1), (0.8, -0.1), (1.0, 0.12), (1.0, 0.42), (-1.0, 0.42)], pen.body)
    pen.line([(-0.98, 0.2), (0.98, 0.2)], 0.06, pen.dark)
    for x in (-0.55, 0.55):
        pen.disc(x, 0.45, 0.26, 0.26, (24, 24, 28))
        pen.disc(x, 0.45, 0.1, 0.1, pen.light)


def _fan(pen: _Pen, dice: Dice) -> None:
    pen.polygon([(-0.1, 0.4), (0.1, 0.4), (0.14, 0.9), (0.5, 1.0), (-0.5, 1.0), (-0.14, 0.9)], pen.dark)
    pen.disc(0.0, -0.15, 0.8, 0.8, pen.dark)
    pen.disc(0.0, -0.15, 0.7, 0.7, pen.light)
    start, blades = dice.between(0, 2 * np.pi), 3 + dice.below(2)
    for number in range(blades):
        turn = start + number * 2 * np.pi / blades
        edge = [(0.64, turn - 0.1), (0.68, turn + 0.3), (0.56, turn + 0.62)]
        pen.polygon([(0.0, -0.15)] + [(r * math.cos(t), r * math.sin(t) - 0.15) for r, t in edge], pen.body)
    pen.disc(0.0, -0.15, 0.15, 0.15, pen.dark)


def _clock(pen: _Pen, dice: Dice) -> None:
    pen.disc(0.0, 0.0, 0.86, 0.86, pen.dark)
    pen.disc(0.0, 0.0, 0.72, 0.72, pen.light)
    for number in range(12):
        turn = number * np.pi / 6
        cos, sin = math.cos(turn), math.sin(turn)
        pen.line([(0.58 * cos, 0.58 * sin), (0.68 * cos, 0.68 * sin)], 0.07, pen.dark)
    for reach, width in ((0.55, 0.07), (0.36, 0.11)):
        turn = dice.between(0, 2 * np.pi)
        pen.line([(0.0, 0.0), (reach * math.cos(turn), reach * math.sin(turn))], width, pen.dark)
    pen.disc(0.0, 0.0, 0.09, 0.09, pen.body)


def _drum(pen: _Pen, dice: Dice) -> None:
    pen.polygon([(-0.82, -0.4), (0.82, -0.4), (0.76, 0.6), (-0.76, 0.6)], pen.body)
    pen.disc(0.0, 0.6, 0.76, 0.24, pen.body)
    zigzag = [(-0.8 + 0.4 * number, -0.2 if number % 2 else 0.62) for number in range(5)]
    pen.line(zigzag, 0.07, pen.dark)
    pen.disc(0.0, -0.4, 0.86, 0.3, pen.dark)
    pen.disc(0.0, -0.42, 0.76, 0.24, pen.light)


LOOKS: dict[str, Callable[[_Pen, Dice], None]] = {
    "bell": _bell,
    "phone": _phone,
    "kettle": _kettle,
    "bird": _bird,
    "car": _car,
    "fan": _fan,
    "clock": _clock,
    "drum": _drum,
}


def _frame(dice: Dice, look: str) -> NDArray[np.uint8]:
    names = tuple(COLOURS)
    colour = COLOURS[dice.pick(names)]
    picture = _background(dice, COLOURS[dice.pick(names)])
    _clutter(dice, picture, [COLOURS[dice.pick(names)] for _ in range(dice.below(5))])
    LOOKS[look](_Pen(dice, picture, _shifted(dice, colour, 18)), dice)
    small = picture.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BOX)
    light = np.asarray(small, dtype=np.float64) * dice.between(0.85, 1.1)
    noise = _random(dice).standard_normal(light.shape) * dice.between(0.0, 6.0)
    return np.clip(np.round(light + noise), 0, 255).astype(np.uint8)


def _background(dice: Dice, colour: Colour) -> Image.Image:
    """A muted colour with a slant of light and soft clouds."""
    muted = np.array(_mixed(_shifted(dice, colour, 20), (150, 152, 156), dice.between(0.35, 0.7)))
    cells = 2 + dice.below(6)
    coarse = Image.fromarray((dice.grid(cells) * 255).astype(np.uint8))
    clouds = (
        np.asarray(coarse.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC), dtype=np.float64) / 255 - 0.5
    )
    rows, columns = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS - 0.5
    slant = rows * dice.between(-0.3, 0.3) + columns * dice.between(-0.3, 0.3)
    shade = 1 + slant + dice.between(0.1, 0.5) * clouds
    return Image.fromarray(np.clip(muted * shade[:, :, None], 0, 255).astype(np.uint8))


def _clutter(dice: Dice, picture: Image.Image, colours: Sequence[Colour]) -> None:
    """Plain blots and bars behind the thing, which mean nothing."""
    draw = ImageDraw.Draw(picture)
    for colour in colours:
        x, y = dice.between(0, CANVAS), dice.between(0, CANVAS)
        wide, high = (dice.between(0.03, 0.14) * CANVAS for _ in range(2))
        box = (x - wide, y - high, x + wide, y + high)
        paint = draw.ellipse if dice.below(2) else draw.rectangle
        paint(box, fill=_mixed(colour, (140, 140, 146), 0.3))


def _shifted(dice: Dice, colour: Colour, spread: float) -> Colour:
    r, g, b = (min(255, max(0, round(part + dice.between(-spread, spread)))) for part in colour)
    return r, g, b


# ------------------------------------------------------------------------------------------------------
# Folders


def write_folder(out: Path, count: int, seed: int = 0) -> list[str]:
    """Write `audio/ID.wav`, `images/ID.png` and `labels.tsv` (header: id, audio, image, label) below `out`.

    An id is the clip's seed. Returns the ids. Raises: ValueError when count or seed is negative.
    """
    from rich.progress import track

    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    for part in ("audio", "images"):
        (out / part).mkdir(parents=True, exist_ok=True)
    lines, ids = ["id\taudio\timage\tlabel"], [f"clip-{number:07d}" for number in range(seed, seed + count)]
    for number, name in track(list(enumerate(ids, start=seed)), "making clips"):
        sound, picture, label = sample_files(number)
        (out / "audio" / f"{name}.wav").write_bytes(sound)
        (out / "images" / f"{name}.png").write_bytes(picture)
        lines.append(f"{name}\taudio/{name}.wav\timages/{name}.png\t{label}")
    (out / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ids


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: python -m demo.clips --out DIR --count 100 [--split test] [--seed 0]."""
    parser = argparse.ArgumentParser(prog="python -m demo.clips", description="Write audio-visual clips.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into; made when missing")
    parser.add_argument("--count", type=int, default=100, help="number of clips")
    parser.add_argument("--split", choices=tuple(SPLITS), default="test", help="range of seeds to draw from")
    parser.add_argument("--seed", type=int, default=0, help="number of the first clip within the split")
    given = parser.parse_args(arguments)
    write_folder(given.out, given.count, SPLITS[given.split] + given.seed)
    print(f"{given.count} clips of split {given.split} in {given.out}")


if __name__ == "__main__":
    main()
