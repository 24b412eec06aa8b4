"""The committed classifier: it loads offline, names unseen clips, and comes with its calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import demo
from adapters.calibration import Calibration, load_calibration
from adapters.two_stream_completion import CompletedTwoStream
from demo import CLASSIFIER, demo_classifier_path
from demo.clips import EVENTS, LABELS, SPLITS, make_clips, sample_files
from demo.measure_clips import SHIFTS, online_accuracy, shifted_samples
from demo.train_clips import Samples, accuracy
from encoders.audio import fbank, read_audio
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae, load_cav_mae
from encoders.preprocessing import open_image, pixels

COUNT = 192
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def model() -> CavMae:
    return load_cav_mae(CLASSIFIER, device="cpu")


@pytest.fixture(scope="module")
def calibration(model: CavMae) -> Calibration:
    return load_calibration(CLASSIFIER / "calibration.safetensors", model)


@pytest.fixture(scope="module")
def unseen(model: CavMae) -> Samples:
    return shifted_samples(make_clips(COUNT, SPLITS["test"]), SHIFTS["clean"], model.audio_spec)


def test_classifier_path_is_the_folder_of_the_weights() -> None:
    assert demo_classifier_path() == CLASSIFIER
    assert (CLASSIFIER / "README.md").is_file()


def test_missing_weights_are_reported_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "CLASSIFIER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m demo\.train_clips"):
        demo_classifier_path()


def test_folder_takes_less_than_twelve_megabytes() -> None:
    assert sum(path.stat().st_size for path in CLASSIFIER.iterdir()) < 12 * MEBIBYTE
    assert not list(CLASSIFIER.glob("*.pt"))


def test_labels_and_sizes_are_those_of_the_clips(model: CavMae) -> None:
    assert model.labels == LABELS
    assert (model.audio_spec.frames, model.audio_spec.mel_bins) == (128, 128)


def test_unseen_clips_are_named(model: CavMae, unseen: Samples) -> None:
    """One modality leaves a third of the clips open; both together do not."""
    found = accuracy(model, unseen)
    assert found["both"] >= 92
    assert 50 <= found["audio"] <= 80
    assert 50 <= found["video"] <= 80


def test_sound_alone_seldom_takes_one_sound_for_another(model: CavMae, unseen: Samples) -> None:
    """Whoever only hears may confuse a bell with a phone, but seldom names an event of another sound."""
    inputs = model.prepare(list(unseen.fbanks), None)
    with torch.inference_mode():
        named = model.forward(AVInputs(inputs.audio, None)).logits.argmax(1).tolist()
    sounds = [event.sound for event in EVENTS]
    alike = [sounds[one] == sounds[other] for one, other in zip(named, unseen.labels, strict=True)]
    assert sum(alike) >= 0.85 * COUNT


def test_files_of_a_sample_are_named_as_the_arrays_are(model: CavMae) -> None:
    sound, picture, label = sample_files(SPLITS["test"])
    waveform = read_audio(sound, sample_rate=16_000, max_seconds=2, max_bytes=1 << 20)
    frame = pixels(open_image(picture), model.image_spec)
    inputs = model.prepare([fbank(waveform, model.audio_spec)], [frame])
    assert model.labels[int(model.forward(inputs).logits.argmax())] == label


def test_calibration_belongs_to_the_model_and_is_whole(model: CavMae, calibration: Calibration) -> None:
    assert calibration.fingerprint == model.fingerprint
    assert calibration.holds == {"statistics", "fisher", "completion"}
    assert calibration.fisher is not None
    assert set(calibration.fisher) == set(model.groups["norms"])
    assert calibration.about["statistics_samples"] == 32
    assert calibration.about["fisher_samples"] == 2000


def test_shift_hurts_and_brimpr_keeps_a_clean_stream_right(
    model: CavMae, calibration: Calibration, unseen: Samples
) -> None:
    model.calibration = calibration
    noisy = shifted_samples(make_clips(COUNT, SPLITS["test"]), SHIFTS["both: noise"], model.audio_spec)
    clean = accuracy(model, unseen)["both"]
    assert accuracy(model, noisy)["both"] < clean - 5
    assert online_accuracy(model, "brimpr", unseen) > clean - 4


def test_completion_is_the_weights_and_small(model: CavMae, calibration: Calibration) -> None:
    assert calibration.completion is not None
    assert calibration.completion.sizes == (model.width,) * 3
    assert (CLASSIFIER / "calibration.safetensors").stat().st_size < 0.3 * MEBIBYTE


def test_fused_feature_follows_from_sound_or_frame_alone(
    model: CavMae, calibration: Calibration, unseen: Samples
) -> None:
    """Better than its mean by half, and names as many clips as one modality can, give or take."""
    assert calibration.completion is not None
    inputs = model.prepare(list(unseen.fbanks), list(unseen.frames))
    with torch.inference_mode():
        whole = model.forward(inputs).pooled
        for alone in (AVInputs(inputs.audio, None), AVInputs(None, inputs.video)):
            found = CompletedTwoStream(model, calibration.completion).forward(alone)
            error = (found.pooled - whole).square().sum() / (whole - whole.mean(0)).square().sum()
            assert error < 0.6
            right = found.logits.argmax(1).numpy() == unseen.labels
            assert 0.5 <= right.mean() <= 0.8


def test_who_is_right_more_often_without_a_modality_was_measured(calibration: Calibration) -> None:
    missing = calibration.about["missing"]
    assert set(missing) == {"audio", "video"}
    for counts in missing.values():
        assert counts["samples"] == 480
        assert 0.5 <= counts["model"] <= 0.8
        assert 0.5 <= counts["imputation"] <= 0.8
