"""The six audio corruptions: published constants, repeatable, saturating, worse with severity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.corruptions.audio import AUDIO_CORRUPTIONS, BadNoise, NoiseBeds, corrupt_audio
from benchmarks.corruptions.noise_beds import BED_RMS, NOISE_BEDS, synthesise

RATE = 16_000
BEDS = NoiseBeds(RATE)
BACKGROUNDS = list(NOISE_BEDS)


def speech(seconds: float = 1.0, loudness: float = 0.1) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20)) * (1 + np.sin(8 * time))
    return (loudness * tone / tone.std()).astype(np.float32)


def corrupted(name: str, severity: int, seed: int = 0, waveform: np.ndarray | None = None, **extra: object):
    waveform = speech() if waveform is None else waveform
    return corrupt_audio(waveform, name, severity, np.random.default_rng(seed), BEDS, **extra)


def snr_db(clean: np.ndarray, noisy: np.ndarray) -> float:
    noise = noisy.astype(float) - clean
    return float(10 * np.log10(np.mean(clean.astype(float) ** 2) / np.mean(noise**2)))


def test_there_are_the_six_of_the_papers() -> None:
    assert AUDIO_CORRUPTIONS == ("gaussian_noise", "traffic", "crowd", "rain", "thunder", "wind")


@pytest.mark.parametrize("name", AUDIO_CORRUPTIONS)
@pytest.mark.parametrize("length", [1, 401, 16_000, 250_000])
def test_any_length_keeps_its_shape_and_stays_in_16_bits(name: str, length: int) -> None:
    clean = np.resize(speech(), length)
    kept = clean.copy()
    noisy = corrupted(name, 5, waveform=clean)
    assert noisy.shape == clean.shape
    assert noisy.dtype == np.float32
    assert -1.0 <= noisy.min() <= noisy.max() < 1.0
    assert np.array_equal(noisy * 32768, np.rint(noisy * 32768))
    assert np.array_equal(clean, kept), "the input was changed"


@pytest.mark.parametrize("name", AUDIO_CORRUPTIONS)
def test_every_severity_leaves_less_of_the_signal(name: str) -> None:
    clean = speech()
    ratios = [snr_db(clean, corrupted(name, severity)) for severity in range(1, 6)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] - ratios[4] > 5


@pytest.mark.parametrize("name", AUDIO_CORRUPTIONS)
def test_the_same_seed_gives_the_same_sound(name: str) -> None:
    for place in ("start", "random"):
        first, second = (corrupted(name, 3, seed=4, place=place) for _ in range(2))
        assert np.array_equal(first, second)


def test_gaussian_noise_has_the_published_deviation_and_saturates() -> None:
    silence = np.zeros(200_000, np.float32)
    assert abs(corrupted("gaussian_noise", 1, waveform=silence).std() - 0.08) < 0.001
    assert abs(corrupted("gaussian_noise", 3, waveform=silence).std() - 0.18) < 0.001
    loud = corrupted("gaussian_noise", 5, waveform=np.full(20_000, 0.9, np.float32))
    assert loud.max() == np.float32(32767 / 32768)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_is_amplified_by_the_published_decibels(name: str) -> None:
    """On silence what is left is the bed; severity 4 lies 6 - 1 = 5 dB above severity 1."""
    silence = np.zeros(5 * RATE, np.float32)
    mild, strong = (corrupted(name, severity, waveform=silence) for severity in (1, 4))
    louder = 10 * np.log10(np.mean(strong.astype(float) ** 2) / np.mean(mild.astype(float) ** 2))
    assert abs(louder - 5) < 0.3
    expected = BEDS.bed(name)[: 5 * RATE] * 10 ** (1 / 20)
    assert np.abs(mild - np.clip(expected, -1, 1)).max() <= 1 / 32768


def test_the_sum_saturates() -> None:
    full = np.full(RATE, 0.999, np.float32)
    noisy = corrupted("crowd", 5, waveform=full)
    assert noisy.max() == np.float32(32767 / 32768)
    assert (noisy == noisy.max()).mean() > 0.3


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_signal_to_noise_ratio_can_be_asked_for_instead(name: str) -> None:
    clean = speech(loudness=0.05)
    for wanted in (15.0, 3.0):
        assert abs(snr_db(clean, corrupted(name, 5, waveform=clean, snr_db=wanted)) - wanted) < 0.3


def test_the_published_place_is_the_start_and_a_random_one_differs_by_seed() -> None:
    assert np.array_equal(corrupted("rain", 3, seed=1), corrupted("rain", 3, seed=2))
    first, second = (corrupted("rain", 3, seed=seed, place="random") for seed in (1, 2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_synthesised_beds_are_repeatable_and_of_one_loudness(name: str) -> None:
    bed = synthesise(name, sample_rate=RATE, seconds=6)
    assert np.array_equal(bed, synthesise(name, sample_rate=RATE, seconds=6))
    assert not np.array_equal(bed, synthesise(name, sample_rate=RATE, seconds=6, seed=1))
    assert abs(np.sqrt(np.mean(bed.astype(float) ** 2)) - BED_RMS) < 0.1 * BED_RMS
    assert np.abs(bed).max() < 1
    seconds = np.sqrt(np.mean(bed[: 6 * RATE].reshape(6, RATE).astype(float) ** 2, axis=1))
    assert seconds[0] > 0.3 * BED_RMS, "a clip is mixed with the first second, which must not be silent"


def test_beds_sound_like_their_names() -> None:
    """Where the power lies: thunder and wind low, rain high, crowd where voices are."""
    frequencies = np.fft.rfftfreq(4 * RATE, 1 / RATE)

    def share(name: str, low_hz: float, high_hz: float) -> float:
        power = np.abs(np.fft.rfft(BEDS.bed(name)[: 4 * RATE].astype(float))) ** 2
        return float(power[(frequencies >= low_hz) & (frequencies < high_hz)].sum() / power.sum())

    assert share("rain", 800, 8000) > 0.8
    assert share("thunder", 0, 1000) > 0.7
    assert share("wind", 0, 600) > 0.7
    assert share("crowd", 200, 3500) > 0.7
    assert share("traffic", 0, 2500) > 0.8


def test_recordings_take_the_place_of_the_synthesised_beds(tmp_path: Path) -> None:
    """A recording at 8 kHz is resampled, and repeated where it is shorter than the clip."""
    recording = (0.1 * np.sign(np.sin(2 * np.pi * 100 * np.arange(4000) / 8000))).astype(np.float32)
    soundfile.write(tmp_path / "rain.wav", recording, 8000, subtype="FLOAT")
    beds = NoiseBeds(RATE, folder=tmp_path)
    assert len(beds.bed("rain")) == 8000
    noisy = corrupt_audio(np.zeros(RATE, np.float32), "rain", 1, np.random.default_rng(0), beds)
    assert np.array_equal(noisy[:8000], noisy[8000:])
    assert abs(np.median(np.abs(noisy)) - 0.1 * 10 ** (1 / 20)) < 0.01


def test_a_missing_or_broken_recording_is_named(tmp_path: Path) -> None:
    beds = NoiseBeds(RATE, folder=tmp_path)
    with pytest.raises(BadNoise, match=r"no recording wind\.wav"):
        beds.bed("wind")
    (tmp_path / "wind.wav").write_bytes(b"RIFF")
    with pytest.raises(BadNoise, match=r"wind\.wav"):
        beds.bed("wind")


def test_unknown_names_severities_and_shapes_are_refused() -> None:
    with pytest.raises(KeyError, match="did you mean 'thunder'"):
        corrupted("thundr", 1)
    with pytest.raises(ValueError, match="severity is 1 to 5"):
        corrupted("rain", 0)
    with pytest.raises(ValueError, match="one row of samples"):
        corrupted("rain", 1, waveform=np.zeros((2, 100), np.float32))
