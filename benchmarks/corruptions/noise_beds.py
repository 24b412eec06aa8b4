"""Background sounds synthesised by seed: traffic, crowd, rain, thunder and wind.

They stand in for the five recordings of the papers, which are not ours to ship: plausible spectra and
rhythms, no more. Every bed is a float32 waveform [n] with the loudness `BED_RMS`; its first second is about
as full as the rest, because a clip is mixed with the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float64]

BED_SECONDS = 12.0
BED_RMS = 0.1
"""-20 dB below full scale, about what field recordings have."""
_PEAK = 0.98
_VOICES = 14


def synthesise(
    name: str, *, sample_rate: int, seed: int = 0, seconds: float = BED_SECONDS
) -> NDArray[np.float32]:
    """The bed of that name; equal arguments give equal samples. Raises KeyError for an unknown name."""
    make = NOISE_BEDS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    sound = make(rng, int(seconds * sample_rate), sample_rate)
    sound = sound - sound.mean()
    sound *= BED_RMS / np.sqrt(np.mean(sound**2))
    return np.clip(sound, -_PEAK, _PEAK).astype(np.float32)


def _traffic(rng: np.random.Generator, n: int, rate: int) -> Sound:
    """A distant rumble, and engines and tyres that come near and go."""
    sound = 0.5 * _noise(rng, n, rate, lambda f: _low_pass(f, 120, 2))
    tyres = _noise(rng, n, rate, lambda f: _band(f, 400, 1800))
    time = np.arange(n) / rate
    passing = 0.7
    while passing < n / rate + 2:
        near = np.exp(-(((time - passing) / rng.uniform(0.5, 1.1)) ** 2))
        pitch = rng.uniform(45, 110) * (1 - 0.04 * np.tanh(4 * (time - passing)))
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        engine = sum(np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 9))
        sound += near * (0.5 * engine + 0.8 * tyres) * rng.uniform(0.6, 1.2)
        passing += rng.uniform(0.8, 2.0)
    return sound


def _crowd(rng: np.random.Generator, n: int, rate: int) -> Sound:
    """Many voices at once: pulses of the vocal folds through the formants of ever new vowels."""
    sound = 0.03 * _noise(rng, n, rate, lambda f: _band(f, 200, 3000))
    for _ in range(_VOICES):
        sound += rng.uniform(0.4, 1.0) * _voice(rng, n, rate)
    return sound


def _voice(rng: np.random.Generator, n: int, rate: int) -> Sound:
    """One speaker: syllables of 0.12 to 0.3 s, some of them hissed, with short rests."""
    spoken = np.zeros(n)
    pitch_hz = rng.uniform(85, 240)
    start = -int(rng.uniform(0, 0.3) * rate)
    while start < n:
        length = int(rng.uniform(0.12, 0.3) * rate)
        syllable = _syllable(rng, length, rate, pitch_hz * rng.uniform(0.85, 1.2))
        left, right = max(start, 0), min(start + length, n)
        if right > left:
            spoken[left:right] += syllable[left - start : right - start]
        start += length + (int(rng.uniform(0.1, 0.5) * rate) if rng.random() < 0.2 else 0)
    return spoken


def _syllable(rng: np.random.Generator, length: int, rate: int, pitch_hz: float) -> Sound:
    formants = (rng.uniform(300, 850), rng.uniform(850, 2400), rng.uniform(2300, 3200))

    def vowel(f: NDArray[Any]) -> Sound:
        return sum(
            (
                gain / (1 + ((f - centre) / width) ** 2)
                for centre, width, gain in zip(formants, (60, 90, 140), (1, 0.5, 0.2), strict=True)
            ),
            np.zeros_like(f),
        )

    loudness = 1.0
    if rng.random() < 0.2:
        shaped = _filtered(rng.normal(0, 1, length), rate, lambda f: _band(f, 2500, 6000))
        loudness = 0.15
    else:
        glide = np.linspace(1, rng.uniform(0.9, 1.1), length)
        phase = np.cumsum(pitch_hz * glide) / rate
        source = np.diff(np.floor(phase), prepend=0.0)
        shaped = _filtered(source, rate, vowel)
    swell = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 0.7
    return np.asarray(loudness * shaped / max(np.abs(shaped).max(), 1e-9) * swell)


def _rain(rng: np.random.Generator, n: int, rate: int) -> Sound:
    """A steady hiss, and single drops that ring for a few milliseconds."""
    sound = _noise(rng, n, rate, lambda f: _band(f, 900, 7000))
    time = np.arange(int(0.02 * rate)) / rate
    drops = np.zeros(n + len(time))
    for start in rng.integers(0, n, int(120 * n / rate)):
        decay_s, pitch_hz = rng.uniform(0.001, 0.005), rng.uniform(1200, min(6000, 0.45 * rate))
        ring = np.exp(-time / decay_s) * np.sin(2 * np.pi * pitch_hz * time)
        drops[start : start + len(time)] += rng.exponential(1.5) * ring
    return sound + 1.2 * drops[:n]


def _thunder(rng: np.random.Generator, n: int, rate: int) -> Sound:
    """Claps that crack and then roll away in low bursts, over light rain."""
    rumble = _noise(rng, n, rate, lambda f: _low_pass(f, 90, 2))
    crack = _noise(rng, n, rate, lambda f: _low_pass(f, 900, 1))
    time = np.arange(n) / rate
    rolling = np.zeros(n)
    cracking = np.zeros(n)
    clap = 0.0
    while clap < n / rate:
        since = time - clap
        cracking += np.where(since >= 0, np.exp(-np.maximum(since, 0) / 0.15), 0.0)
        for burst in (0.0, *rng.uniform(0, 2.5, 5)):
            later = since - burst
            rolling += np.where(later >= 0, rng.uniform(0.4, 1.0) * np.exp(-np.maximum(later, 0) / 0.7), 0.0)
        clap += rng.uniform(2.5, 4.0)
    return rolling * rumble + 0.7 * cracking * crack + 0.03 * _rain(rng, n, rate)


def _wind(rng: np.random.Generator, n: int, rate: int) -> Sound:
    """Low noise that swells in gusts, with a whistle that rises with them."""
    gusts = _noise(rng, n, rate, lambda f: _low_pass(f, 0.8, 2))
    strength = 0.35 + np.clip(0.5 + 0.4 * gusts, 0, None) ** 1.5
    body = _noise(rng, n, rate, lambda f: _low_pass(f, 250, 1.5))
    whistle = _noise(rng, n, rate, lambda f: _band(f, 450, 800))
    return strength * body + 0.12 * strength**3 * whistle


NOISE_BEDS: Mapping[str, Callable[[np.random.Generator, int, int], Sound]] = {
    "traffic": _traffic,
    "crowd": _crowd,
    "rain": _rain,
    "thunder": _thunder,
    "wind": _wind,
}


def _noise(rng: np.random.Generator, n: int, rate: int, gain: Callable[[Sound], Sound]) -> Sound:
    """White noise through a filter given as gain over frequency in Hz; standard deviation 1. [n]"""
    shaped = _filtered(rng.normal(0, 1, n), rate, gain)
    shaped -= shaped.mean()
    return shaped / shaped.std()


def _filtered(sound: Sound, rate: int, gain: Callable[[Sound], Sound]) -> Sound:
    frequencies = np.asarray(np.fft.rfftfreq(len(sound), 1 / rate), dtype=np.float64)
    return np.fft.irfft(np.fft.rfft(sound) * gain(frequencies), len(sound))


def _low_pass(f: Sound, corner_hz: float, order: float) -> Sound:
    return np.asarray(1 / (1 + (f / corner_hz) ** (2 * order)) ** 0.5)


def _band(f: Sound, low_hz: float, high_hz: float) -> Sound:
    return _low_pass(f, high_hz, 2) * (1 - _low_pass(f, low_hz, 2))
