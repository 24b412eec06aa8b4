"""Sounds of every kind, broken ones included, and the filter bank against two others."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders.audio import (
    AudioSpec,
    AudioTooLong,
    BadAudio,
    check_fbank,
    decode_audio,
    fbank,
    normalised,
    read_audio,
)

SPEC = AudioSpec()
RATE = SPEC.sample_rate
FLOOR = np.log(1.192092955078125e-07)


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440.0, channels: int = 1) -> NDArray[Any]:
    one = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([one] * channels, axis=1)


def noise(seconds: float = 1.0, level: float = 0.1) -> NDArray[np.float32]:
    return (level * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def encoded(
    values: NDArray[Any], rate: int = RATE, container: str = "WAV", codec: str | None = None
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=container, subtype=codec)
    return buffer.getvalue()


def read(data: bytes, max_seconds: float = 30.0, max_bytes: int = 10**8) -> NDArray[np.float32]:
    return read_audio(data, sample_rate=RATE, max_seconds=max_seconds, max_bytes=max_bytes)


KINDS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAVEX", "PCM_16"),
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_accepted_kinds_are_read(container: str, codec: str) -> None:
    waveform = read(encoded(tone(), container=container, codec=codec))
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - RATE / 2) <= 1
    expected = tone()[: len(waveform), 0]
    assert np.abs(waveform - expected)[800:-800].max() < 0.06


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_number_of_channels_becomes_16_khz_mono(rate: int, channels: int) -> None:
    waveform = read(encoded(tone(rate=rate, channels=channels), rate))
    assert abs(len(waveform) - RATE // 2) <= 1
    assert np.abs(waveform - tone()[: len(waveform), 0])[800:-800].max() < 1e-3


def test_channels_are_averaged() -> None:
    left, right = tone()[:, 0], tone(hertz=1000)[:, 0]
    waveform = read(encoded(np.stack([left, right], axis=1), codec="FLOAT"))
    assert np.abs(waveform - (left + right) / 2).max() < 1e-6


def test_silent_and_clipped_sound_is_accepted() -> None:
    silent = decode_audio(encoded(np.zeros(RATE)), SPEC, max_seconds=30, max_bytes=10**8)
    assert silent == pytest.approx(FLOOR)
    clipped = decode_audio(encoded(np.clip(100 * tone(1.0), -1, 1)), SPEC, max_seconds=30, max_bytes=10**8)
    assert np.isfinite(clipped).all()
    assert clipped.shape == (98, 128)


def test_float_file_beyond_full_scale_is_accepted() -> None:
    assert np.abs(read(encoded(3 * tone(), codec="FLOAT"))).max() == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_that_is_not_finite_is_refused(value: float, channels: int) -> None:
    values = tone(channels=channels)
    values[1000, 0] = value
    with pytest.raises(BadAudio, match="not finite"):
        read(encoded(values, codec="FLOAT"))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"RIFF", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS" + bytes(50), bytes(100)]
)
def test_bytes_that_are_no_sound_are_refused(data: bytes) -> None:
    with pytest.raises(BadAudio):
        read(data)


@pytest.mark.parametrize(("container", "codec"), [("AIFF", "PCM_16"), ("AU", "PCM_16"), ("MP3", None)])
def test_container_outside_the_list_is_refused(container: str, codec: str | None) -> None:
    with pytest.raises(BadAudio, match="accepted formats"):
        read(encoded(tone(), container=container, codec=codec))


@pytest.mark.parametrize("codec", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_codec_outside_the_list_is_refused(codec: str) -> None:
    with pytest.raises(BadAudio, match=codec):
        read(encoded(tone(rate=8000), 8000, codec=codec))


@pytest.mark.parametrize("rate", [1, 7_999, 192_001, 2**31 - 1])
def test_absurd_rates_are_refused(rate: int) -> None:
    with pytest.raises(BadAudio, match="samples a second"):
        read(encoded(np.zeros(1000), rate))


def test_too_many_channels_are_refused() -> None:
    assert len(read(encoded(np.zeros((1000, 16))))) == 1000
    with pytest.raises(BadAudio, match="17 channels"):
        read(encoded(np.zeros((1000, 17))))


@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_sound_without_samples_is_refused(container: str) -> None:
    with pytest.raises(BadAudio):
        read(encoded(np.zeros(0), container=container))


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_sound_shorter_than_one_frame_is_refused(rate: int) -> None:
    frame = rate // 40
    assert len(read(encoded(np.zeros(frame), rate))) == 400
    with pytest.raises(BadAudio, match="one frame is 25 ms"):
        read(encoded(np.zeros(frame - rate // 8000), rate))


def test_too_many_bytes_are_refused() -> None:
    data = encoded(tone())
    assert len(read(data, max_bytes=len(data))) == RATE // 2
    with pytest.raises(AudioTooLong, match="bytes"):
        read(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
def test_ten_hours_are_refused_before_anything_is_decoded(
    container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(tone(1.0), container=container)
    assert len(read(data, max_seconds=1.0)) == RATE
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("samples were decoded"))
    with pytest.raises(AudioTooLong, match=r"1\.0 s"):
        read(data, max_seconds=0.99)


def with_flac_total(data: bytes, total: int) -> bytes:
    """The 36 bits of STREAMINFO that announce the number of samples."""
    place = data.index(b"fLaC") + 8 + 13
    changed = bytearray(data)
    changed[place] = (changed[place] & 0xF0) | total >> 32
    changed[place + 1 : place + 5] = (total & 0xFFFF_FFFF).to_bytes(4, "big")
    return bytes(changed)


def test_flac_that_announces_more_than_it_holds_is_refused() -> None:
    data = encoded(tone(), container="FLAC")
    assert np.array_equal(read(with_flac_total(data, RATE // 2)), read(data))
    with pytest.raises(BadAudio):
        read(with_flac_total(data, 20 * RATE))
    with pytest.raises(AudioTooLong):
        read(with_flac_total(data, 36_000 * RATE))
    with pytest.raises(BadAudio, match="how long"):
        read(with_flac_total(data, 0))


def test_flac_that_announces_less_than_it_holds_is_read_no_further() -> None:
    assert len(read(with_flac_total(encoded(tone(20), container="FLAC"), 8000), max_seconds=1)) == 8000


@pytest.mark.parametrize("left", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_truncated_sound_is_refused(container: str, left: float) -> None:
    data = encoded(noise(2.0), container=container)
    with pytest.raises(BadAudio, match="truncated"):
        read(data[: int(len(data) * left)])


def test_wav_whose_length_was_left_open_is_read_to_its_end() -> None:
    data = encoded(tone())
    place = data.index(b"data") + 4
    assert len(read(data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :])) == RATE // 2


def test_ogg_that_was_cut_is_read_up_to_the_cut() -> None:
    """It announces no length, and a recorder may send it so."""
    data = encoded(noise(8.0), container="OGG", codec="VORBIS")
    part = read(data[: len(data) // 2])
    whole = read(data)
    assert RATE < len(part) < len(whole)
    assert np.abs(part[: RATE // 2] - whole[: RATE // 2]).max() < 1e-6


SAMPLES = [encoded(noise(0.2), container=container, codec=codec) for container, codec in KINDS]


@given(
    data=st.binary(max_size=300), start=st.sampled_from([b"", b"fLaC", b"OggS", b"RIFF\x40\0\0\0WAVEfmt "])
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_random_bytes_are_a_sound_or_bad_audio(data: bytes, start: bytes) -> None:
    with contextlib.suppress(BadAudio):
        assert np.isfinite(read(start + data, max_seconds=1)).all()


@given(
    original=st.sampled_from(SAMPLES),
    left=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    header_only=st.booleans(),
)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_damaged_files_are_a_sound_or_bad_audio(
    original: bytes, left: float, changes: list[tuple[float, int]], header_only: bool
) -> None:
    data = bytearray(original)
    for place, value in changes:
        data[int(place * (100 if header_only else len(data)))] = value
    with contextlib.suppress(BadAudio):
        assert np.isfinite(decode_audio(bytes(data[: int(left * len(data))]), SPEC, max_seconds=1)).all()


def fbank_in_float64(waveform: NDArray[Any], rate: int = RATE, bins: int = 128) -> NDArray[np.float64]:
    """The definition, written down once more."""
    length, shift = rate * 25 // 1000, rate * 10 // 1000
    size = 1 << (length - 1).bit_length()
    values = waveform.astype(np.float64)
    values = values - values.mean()
    frames = np.lib.stride_tricks.sliding_window_view(values, length)[::shift]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    power = np.abs(np.fft.rfft((frames - 0.97 * before) * window, size)) ** 2

    def mel(hertz: Any) -> Any:
        return 1127 * np.log(1 + hertz / 700)

    corners = np.linspace(mel(20.0), mel(rate / 2), bins + 2)
    step = corners[1] - corners[0]
    places = mel(np.arange(size // 2 + 1) * rate / size)[:, None]
    triangles = np.clip(1 - np.abs(places - corners[1:-1]) / step, 0, None)
    return np.log(np.maximum(power @ triangles, 1.192092955078125e-07))


def sweep() -> NDArray[np.float32]:
    """From 50 Hz to 7 kHz in two seconds, swelling and fading, with a constant offset."""
    time = np.arange(2 * RATE) / RATE
    phase = 2 * np.pi * (50 * time + 6950 * time**2 / 4)
    return (0.1 + 0.6 * np.sin(np.pi * time / 2) * np.sin(phase)).astype(np.float32)


SIGNALS = {
    "noise": noise(2.0),
    "faint noise": noise(2.0, 1e-4),
    "loud noise": noise(2.0, 10.0),
    "sweep": sweep(),
    "clipped": np.clip(20 * sweep(), -1, 1),
    "click": np.eye(1, RATE, 5000, dtype=np.float32)[0],
}


@pytest.mark.parametrize("name", SIGNALS)
def test_filter_bank_equals_the_definition_in_double_precision(name: str) -> None:
    """Near the floor of a loud sound the rounding of fp32 shows: hence a quantile beside the maximum."""
    values = fbank(SIGNALS[name], SPEC)
    expected = fbank_in_float64(SIGNALS[name])
    assert values.dtype == np.float32
    assert values.shape == expected.shape
    difference = np.abs(values - expected)
    assert difference.max() < 0.1
    assert np.quantile(difference, 0.99) < 2e-3


@pytest.mark.parametrize("name", SIGNALS)
def test_filter_bank_equals_that_of_transformers(name: str) -> None:
    from transformers import ASTFeatureExtractor

    with warnings.catch_warnings():
        # Of triangles between two frequencies of the FFT, which this filter bank has.
        warnings.simplefilter("ignore", UserWarning)
        extractor = ASTFeatureExtractor(do_normalize=False, max_length=1024)
    waveform = SIGNALS[name]
    expected = extractor(waveform - waveform.mean(), sampling_rate=RATE, return_tensors="np")["input_values"]
    values = fbank(waveform, SPEC)
    difference = np.abs(values - expected[0, : len(values)])
    assert difference.max() < 0.1
    assert np.quantile(difference, 0.99) < 2e-3


@pytest.mark.parametrize(("rate", "bins"), [(8_000, 40), (44_100, 64), (16_000, 3)])
def test_filter_bank_of_another_shape_equals_the_definition(rate: int, bins: int) -> None:
    expected = fbank_in_float64(noise(), rate, bins)
    values = fbank(noise(), AudioSpec(sample_rate=rate, mel_bins=bins))
    assert values.shape == expected.shape
    assert np.abs(values - expected).max() < 2e-3


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16_000, 98), (163_840, 1022)])
def test_only_whole_frames_count(samples: int, frames: int) -> None:
    assert fbank(np.zeros(samples, np.float32), SPEC).shape == (frames, 128)


def test_sound_longer_than_the_input_keeps_its_first_frames() -> None:
    waveform = np.concatenate([noise(2.0), noise(2.0) + 0.5])
    values = fbank(waveform, AudioSpec(frames=100))
    assert values.shape == (100, 128)
    assert np.array_equal(values, fbank(waveform, SPEC)[:100])


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros(399, np.float32),
        np.zeros(0, np.float32),
        np.zeros((400, 2), np.float32),
        np.full(400, np.nan, np.float32),
    ],
)
def test_filter_bank_of_no_usable_waveform_is_refused(waveform: NDArray[np.float32]) -> None:
    with pytest.raises(BadAudio):
        fbank(waveform, SPEC)


def test_precomputed_filter_bank_is_taken_as_it_is_and_cut() -> None:
    values = np.random.default_rng(0).normal(-5, 4, (1500, 128))
    taken = check_fbank(values, SPEC)
    assert taken.dtype == np.float32
    assert np.array_equal(taken, values[:1024].astype(np.float32))
    assert check_fbank(np.zeros((1, 128), np.int64), SPEC).shape == (1, 128)
    own = fbank(noise(), SPEC)
    assert np.array_equal(check_fbank(own, SPEC), own)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((0, 128)),
        np.zeros((10, 127)),
        np.zeros(128),
        np.zeros((1, 10, 128)),
        np.full((10, 128), np.nan),
        np.full((10, 128), np.inf),
        np.full((10, 128), -1e30),
        np.full((10, 128), np.iinfo(np.int64).min),
        np.full((10, 128), "1"),
        np.zeros((10, 128), complex),
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
def test_unusable_precomputed_filter_bank_is_refused(values: NDArray[Any]) -> None:
    with pytest.raises(BadAudio):
        check_fbank(values, SPEC)


def test_batch_is_padded_with_zeros_and_then_normalised() -> None:
    spec = AudioSpec(frames=4, mel_bins=3, mean=-5.0, std=2.0)
    batch = normalised([np.full((2, 3), -7, np.float32), np.full((6, 3), 1, np.float32)], spec)
    assert batch.dtype == np.float32
    assert batch[:, :, 0].tolist() == [[-1.0, -1.0, 2.5, 2.5], [3.0, 3.0, 3.0, 3.0]]
    assert normalised([], spec).shape == (0, 4, 3)


def test_batch_leaves_the_filter_banks_as_they_were() -> None:
    values = np.ones((4, 3), np.float32)
    normalised([values], AudioSpec(frames=4, mel_bins=3))
    assert (values == 1).all()


def test_spec_survives_json() -> None:
    spec = AudioSpec(sample_rate=22_050, frames=100, mel_bins=64, mean=-4.2, std=3.1)
    assert AudioSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "settings",
    [{"sample_rate": 0}, {"frames": 0}, {"mel_bins": 2}, {"std": 0.0}, {"std": np.nan}, {"mean": np.inf}],
)
def test_impossible_spec_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        AudioSpec(**settings)  # type: ignore[arg-type]


def test_reading_sound_needs_no_torch() -> None:
    code = "import sys, encoders.audio; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
