"""The six audio corruptions of the classification papers, on waveforms, before the filter bank.

gaussian_noise adds noise of a fixed deviation. traffic, crowd, rain, thunder and wind lay a background under
the clip: it begins with the clip (or is repeated), is amplified by 1 to 8 dB relative to how it was recorded,
and the sum saturates at 16 bits. The papers' recordings are not ours to ship: unless a folder of recordings
is given the backgrounds are synthesised (noise_beds.py), and numbers cannot be compared with published ones.
Ours besides: a signal-to-noise ratio instead of the gain, and a random place in the background.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.noise_beds import NOISE_BEDS, synthesise
from encoders.audio import BadAudio, read_audio

AUDIO_CORRUPTIONS = ("gaussian_noise", *NOISE_BEDS)

Waveform = NDArray[np.float32]
Place = Literal["start", "random"]

_FULL_SCALE = 32768.0
_LONGEST_BED_SECONDS = 600.0


class BadNoise(Exception):
    """A folder of recordings that cannot be used; the message names the file."""


class NoiseBeds:
    """The backgrounds at one sample rate, each made or read once.

    folder  recordings named after the corruptions (`rain.wav`, also flac and ogg); None: synthesised
    seed    of the synthesised ones
    """

    def __init__(self, sample_rate: int, *, folder: Path | None = None, seed: int = 0) -> None:
        self.sample_rate = sample_rate
        self._folder = folder
        self._seed = seed
        self.bed = cache(self._bed)

    @property
    def source(self) -> str:
        return f"synthesised, seed {self._seed}" if self._folder is None else "recordings"

    def _bed(self, name: str) -> Waveform:
        """float32 [n] in [-1, 1]. Raises BadNoise: no such recording, or one that cannot be read."""
        if self._folder is None:
            return synthesise(name, sample_rate=self.sample_rate, seed=self._seed)
        candidates = [self._folder / f"{name}{ending}" for ending in (".wav", ".flac", ".ogg")]
        found = [path for path in candidates if path.is_file()]
        if not found:
            raise BadNoise(f"{self._folder} has no recording {name}.wav (or .flac, .ogg)")
        try:
            return read_audio(
                found[0].read_bytes(),
                sample_rate=self.sample_rate,
                max_seconds=_LONGEST_BED_SECONDS,
                max_bytes=1 << 30,
            )
        except BadAudio as error:
            raise BadNoise(f"{found[0]}: {error}") from error


def corrupt_audio(
    waveform: NDArray[np.floating[Any]],
    name: str,
    severity: int,
    rng: np.random.Generator,
    beds: NoiseBeds,
    *,
    snr_db: float | None = None,
    place: Place = "start",
) -> Waveform:
    """Waveform [n] in [-1, 1] -> corrupted float32 [n], of 16-bit values.

    severity  1..5; without meaning for a background whose `snr_db` is given
    snr_db    power of the clip over that of the background's part under it, instead of the published gain
    place     where in the background the clip lies: at its start, as published, or anywhere

    Raises:
        KeyError: there is no such corruption.
        ValueError: wrong severity or shape.
        BadNoise: a recording is missing.
    """
    if name not in AUDIO_CORRUPTIONS:
        close = get_close_matches(name, AUDIO_CORRUPTIONS, n=1)
        raise KeyError(f"no audio corruption {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if severity not in c.SEVERITIES:
        raise ValueError(f"severity is 1 to 5, not {severity}")
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"a waveform is one row of samples, not {list(waveform.shape)}")
    if name == "gaussian_noise":
        return _as_16_bit(waveform + rng.normal(0.0, c.AUDIO_GAUSSIAN_SIGMA[severity - 1], len(waveform)))
    bed = beds.bed(name)
    start = int(rng.integers(len(bed))) if place == "random" else 0
    under = np.take(bed, np.arange(start, start + len(waveform)), mode="wrap")
    if snr_db is None:
        under = under * 10 ** (c.AUDIO_GAIN_DB[severity - 1] / 20)
    else:
        under = under * _gain_for(waveform, under, snr_db)
    # The amplified background saturates by itself first, as in the reference's two steps.
    return _as_16_bit(waveform + _as_16_bit(under))


def _gain_for(waveform: NDArray[np.floating[Any]], under: NDArray[Any], snr_db: float) -> float:
    signal, noise = (float(np.mean(np.square(part, dtype=np.float64))) for part in (waveform, under))
    return float(np.sqrt(signal / max(noise, 1e-12) / 10 ** (snr_db / 10)))


def _as_16_bit(waveform: NDArray[np.floating[Any]]) -> Waveform:
    scaled = np.clip(np.rint(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    return (scaled / _FULL_SCALE).astype(np.float32)
