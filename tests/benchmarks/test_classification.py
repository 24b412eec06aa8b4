"""The classification benchmark's protocol on a toy classifier, and its command line on a tiny real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from adapters.base import BadSettings, StepReport
from adapters.classification import Answer, Slices
from adapters.state import AdaptationState
from benchmarks import classification
from benchmarks.av_data import AVData, AVSample, Sound
from benchmarks.av_protocol import Corrupted, ShiftedData, by_kind, run_stream, stream_order, summarise
from benchmarks.corruptions import UnknownShift
from benchmarks.corruptions.audio import NoiseBeds
from benchmarks.corruptions.av_shift import AVShift, Corruption, parse_av_shifts
from encoders.audio import AudioSpec
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMaeConfig, fresh_weights, save_cav_mae
from encoders.preprocessing import ImageSpec

# -- shifts ---------------------------------------------------------------------------------------------


def test_shifts_are_read_and_written_alike() -> None:
    texts = ["clean", "audio:rain:3", "video:fog:1", "both:wind:2+snow:5"]
    shifts = parse_av_shifts(texts)
    assert [str(shift) for shift in shifts] == texts
    assert [shift.kind for shift in shifts] == ["clean", "audio", "video", "both"]
    assert parse_av_shifts(["both:rain+fog"]) == [AVShift(Corruption("rain", 5), Corruption("fog", 5))]


def test_all_of_a_kind_and_repeats() -> None:
    counts = [len(parse_av_shifts([f"all-{kind}:3"])) for kind in ("audio", "video", "both")]
    assert counts == [6, 15, 90]
    assert len(parse_av_shifts(["audio:rain:3", "all-audio:3"])) == 6
    assert {shift.audio.severity for shift in parse_av_shifts(["all-audio"]) if shift.audio} == {5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("audio:fog:3", "no audio corruption 'fog'"),
        ("video:rain", "no video corruption 'rain'"),
        ("video:speckle_noise:3", "no video corruption 'speckle_noise'; did you mean"),
        ("audio:thundr", "did you mean 'thunder'"),
        ("audio:rain:6", "severities are 1 to 5, not '6'"),
        ("audio:rain:x", "severities are 1 to 5"),
        ("both:rain:5", "is not both:AUDIO:severity"),
        ("all-text:5", "there is no shift 'all-text:5'; shifts begin with clean"),
        ("clean:3", "there is no shift"),
        ("", "there is no shift ''"),
    ],
)
def test_a_wrong_shift_says_what_there_is(text: str, message: str) -> None:
    with pytest.raises(UnknownShift, match=message):
        parse_av_shifts([text])


# -- the protocol on a toy --------------------------------------------------------------------------------


class ToyModel:
    """Answers with the picture's first value as the label, plus what the state has added."""

    label_count = 10
    audio_spec = AudioSpec(frames=96)
    image_spec = ImageSpec(8, 8)

    def prepare(self, fbanks: Sequence[np.ndarray] | None, pictures: Sequence[np.ndarray] | None) -> AVInputs:
        return AVInputs(
            None if fbanks is None else torch.stack([torch.from_numpy(values[:1]) for values in fbanks]),
            None if pictures is None else torch.from_numpy(np.stack(pictures)),
        )


class ToyMethod:
    """Is wrong until it has seen two batches: adds one label for each batch that is missing to two."""

    name = "toy"
    adapts = True
    needs: frozenset[Any] = frozenset()
    fewest = 1
    takes_incomplete = False
    settings = SimpleNamespace()

    def initial_state(self, model: ToyModel) -> AdaptationState:
        return AdaptationState("toy", "toy", {}, numbers={"seen": 0})

    def predict(self, model: ToyModel, state: AdaptationState, inputs: AVInputs) -> torch.Tensor:
        if inputs.video is None:
            return torch.eye(10)[torch.zeros(len(inputs), dtype=torch.long)]
        wrong = 0 if state.numbers["seen"] >= 2 else 1
        return torch.eye(10)[(inputs.video[:, 0, 0, 0].long() + wrong) % 10]

    def adapt(self, model: ToyModel, state: AdaptationState, inputs: AVInputs) -> Slices:
        yield Answer(self.predict(model, state, inputs))
        state.numbers["seen"] += 1
        return StepReport(losses={}, applied=True)


LABELS = [number % 10 for number in range(25)]
PICTURES = Corrupted([np.full((3, 8, 8), label, np.uint8) for label in LABELS])
SOUNDS = Corrupted([np.zeros((3, 128), np.float32)] * 25)


def toy_stream(state: AdaptationState | None = None, **changes: Any) -> tuple[Any, AdaptationState]:
    model, method = ToyModel(), ToyMethod()
    arguments: dict[str, Any] = {
        "model": model,
        "method": method,
        "state": state or method.initial_state(model),
        "labels": LABELS,
        "sounds": SOUNDS,
        "pictures": PICTURES,
        "seed": 111,
        "batch_size": 10,
        "done": lambda count: None,
    }
    return run_stream(**(arguments | changes))


def test_predictions_are_collected_before_the_batch_is_learned_from() -> None:
    """Batches of 10, 10 and 5: the first two are answered wrongly. 5 of 25 samples, 1 of 3 batches."""
    result, state = toy_stream()
    assert result.batch_accuracies == [0.0, 0.0, 100.0]
    assert result.accuracy == 20.0
    assert result.batch_mean == pytest.approx(100 / 3)
    assert result.statuses == {"applied": 3}
    assert state.version == 3


def test_a_kept_state_goes_on_where_it_was() -> None:
    _, state = toy_stream()
    again, later = toy_stream(state)
    assert again.accuracy == 100.0
    assert later.version == 6
    assert state.version == 3, "the state that was handed in is left alone"


def test_the_batch_mean_rounds_every_batch_to_two_decimals() -> None:
    """A third of three is 33.33; with the last batch of one wrong, (33.33 + 0) / 2."""
    model, method = ToyModel(), ToyMethod()
    state = AdaptationState("toy", "toy", {}, numbers={"seen": 2})
    order = stream_order(4, 5)
    labels = [0, 0, 0, 0]
    labels[order[0]] = 1
    pictures = Corrupted([np.full((3, 8, 8), 1, np.uint8)] * 4)
    result, _ = run_stream(
        model=model,  # type: ignore[arg-type]
        method=method,  # type: ignore[arg-type]
        state=state,
        labels=labels,
        sounds=Corrupted(SOUNDS.items[:4]),
        pictures=pictures,
        seed=5,
        batch_size=3,
        done=lambda count: None,
    )
    assert result.batch_mean == (33.33 + 0) / 2
    assert result.accuracy == 25.0


def test_the_order_is_the_seeds_and_complete() -> None:
    assert stream_order(30, 111) == stream_order(30, 111) != stream_order(30, 222)
    assert sorted(stream_order(30, 111)) == list(range(30))


def test_samples_without_a_modality_are_batches_of_their_own() -> None:
    """Three of 25 have no sound, one no picture: answered, not learned from."""
    sounds = Corrupted([None if number < 3 else item for number, item in enumerate(SOUNDS.items)])
    pictures = Corrupted([None if number == 24 else item for number, item in enumerate(PICTURES.items)])
    assert by_kind([0, 5, 24, 1], sounds, pictures) == [[5], [24], [0, 1]]
    result, _ = toy_stream(sounds=sounds, pictures=pictures, batch_size=25)
    assert result.statuses == {"applied": 1, "skipped": 2}


def test_a_shift_is_summarised_over_its_seeds() -> None:
    results = [toy_stream(batch_size=size)[0] for size in (10, 5)]
    summary = summarise(parse_av_shifts(["audio:rain:5"])[0], "toy", 25, results)
    assert summary.accuracy == (20 + 60) / 2
    assert summary.accuracy_spread == pytest.approx(40 / 2**0.5)
    assert (summary.shift, summary.kind) == ("audio:rain:5", "audio")


# -- samples under a shift ------------------------------------------------------------------------------


def shifted(most_bytes: int = 1 << 30, seed: int = 0) -> ShiftedData:
    rng = np.random.default_rng(0)
    samples = tuple(
        AVSample(
            str(number),
            number,
            Sound((0.1 * rng.normal(size=4000)).astype(np.float32), 16_000),
            rng.integers(0, 255, (20, 30, 3), dtype=np.uint8),
        )
        for number in range(3)
    )
    data = AVData("noise", ("a", "b", "c"), samples)
    return ShiftedData(
        data, AudioSpec(frames=96), ImageSpec(16, 16), NoiseBeds(16_000), seed, most_bytes=most_bytes
    )


def test_one_modality_is_corrupted_and_the_other_is_not() -> None:
    data, count = shifted(), [0]
    clean = data.pictures(None, lambda done: count.__setitem__(0, count[0] + done))
    noisy = data.pictures(Corruption("gaussian_noise", 5), lambda done: None)
    assert count == [3]
    assert clean.items[0] is not None
    assert clean.items[0].shape == (3, 16, 16)
    assert not np.array_equal(clean.items[0], noisy.items[0])
    first, second = (data.sounds(Corruption("rain", level), lambda done: None) for level in (1, 5))
    assert first.items[0] is not None
    assert first.items[0].shape == (23, 128)
    assert not np.array_equal(first.items[0], second.items[0])


def test_corruptions_are_repeatable_and_differ_between_samples_and_seeds() -> None:
    noise = Corruption("gaussian_noise", 5)
    first, again, other = (shifted(seed=seed).pictures(noise, lambda done: None) for seed in (0, 0, 1))
    assert np.array_equal(first.items[1], again.items[1])
    assert not np.array_equal(first.items[1], other.items[1])


def test_a_corruption_is_made_once_while_there_is_room() -> None:
    noise, fog = Corruption("gaussian_noise", 5), Corruption("fog", 5)
    roomy, narrow = shifted(), shifted(most_bytes=1)
    for data, kept in ((roomy, True), (narrow, False)):
        first = data.pictures(noise, lambda done: None)
        data.pictures(fog, lambda done: None)
        assert (data.pictures(noise, lambda done: None) is first) is kept


# -- the command ----------------------------------------------------------------------------------------


def test_methods_carry_their_settings() -> None:
    plain, warm = classification.make_methods(["source", "brimpr,tau=0.25,learning_rate=1e-3", "source"])
    assert (plain.label, plain.values) == ("source", {})
    built = warm.build(222).settings.model_dump()
    assert (built["tau"], built["learning_rate"], built["seed"]) == (0.25, 1e-3, 222)
    with pytest.raises(BadSettings, match="is not KEY=VALUE"):
        classification.make_methods(["brimpr,tau"])
    with pytest.raises(BadSettings, match="no setting 'tao'"):
        classification.make_methods(["brimpr,tao=1"])


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    config = CavMaeConfig(
        ("low", "high"),
        width=16,
        heads=2,
        depth=3,
        patch=16,
        audio=AudioSpec(frames=32),
        image=ImageSpec(16, 16),
    )
    save_cav_mae(config, fresh_weights(config), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = ["id\taudio\timage\tlabel"]
    for number in range(6):
        tone = 0.1 * np.sin(2 * np.pi * (200 + 400 * (number % 2)) * np.arange(4000) / 16_000)
        soundfile.write(folder / f"{number}.wav", tone.astype(np.float32), 16_000)
        Image.fromarray(np.full((20, 20, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}\t{number}.wav\t{number}.png\t{('low', 'high')[number % 2]}")
    (folder / "labels.tsv").write_text("\n".join(rows) + "\n")
    return folder


def command(model: Path, data: Path, *more: str) -> int:
    return classification.main(["--model", str(model), "--data", str(data), "--device", "cpu", *more])


def test_the_command_writes_what_it_ran(
    model_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["--shift", "clean", "--shift", "both:rain:5+fog:3", "--method", "source", "--method", "tent"]
    options = ["--batch-size", "4", "--seeds", "111", "222", "--json", str(out)]
    assert command(model_folder, data_folder, *arguments, *options) == 0
    written = json.loads(out.read_text())
    assert [(result["shift"], result["method"]) for result in written["results"]] == [
        ("clean", "source"),
        ("clean", "tent"),
        ("both:rain:5+fog:3", "source"),
        ("both:rain:5+fog:3", "tent"),
    ]
    first = written["results"][0]
    assert first["samples"] == 6
    assert [seed["seed"] for seed in first["seeds"]] == [111, 222]
    assert len(first["seeds"][0]["batch_accuracies"]) == 2
    assert first["ms_ratio_to_source"] == 1.0
    assert set(written["averages"]) == {"clean", "both"}
    assert len(written["model"]["fingerprint"]) == 64
    assert written["protocol"]["backgrounds"] == "synthesised, seed 0"
    assert written["methods"]["tent"]["name"] == "tent"
    shown = capsys.readouterr().out
    assert "accuracy in percent" in shown
    assert "mean of both" in shown


@pytest.mark.parametrize(("extra", "versions"), [([], [2, 2]), (["--continual"], [2, 4])])
def test_only_a_continual_run_carries_the_state_from_shift_to_shift(
    model_folder: Path, data_folder: Path, tmp_path: Path, extra: list[str], versions: list[int]
) -> None:
    """Two batches a shift, each of them an update."""
    out = tmp_path / "out.json"
    arguments = ["--shift", "audio:rain:1", "--shift", "video:fog:1", "--method", "tent", "--json", str(out)]
    assert command(model_folder, data_folder, *arguments, "--seeds", "1", "--batch-size", "3", *extra) == 0
    written = json.loads(out.read_text())
    assert [result["seeds"][0]["state_version"] for result in written["results"]] == versions


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shift", "audio:rian:1", "--method", "source"], "did you mean 'rain'"),
        (["--shift", "clean", "--method", "sorce"], "unknown method 'sorce'"),
        (["--shift", "clean", "--method", "brimpr"], "needs statistics"),
        (
            ["--shift", "audio:rain:1", "--method", "source", "--noise-dir", "/nowhere"],
            "has no recording rain",
        ),
        (["--shift", "clean", "--method", "source", "--calibration", "nowhere"], "could not be read"),
    ],
)
def test_a_wrong_request_ends_with_a_sentence(
    model_folder: Path,
    data_folder: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    assert command(model_folder, data_folder, *extra) == 2
    assert message in capsys.readouterr().out.replace("\n", " ")


def test_missing_data_or_model_ends_with_a_sentence(
    model_folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--shift", "clean", "--method", "source"]
    assert command(model_folder, data_folder / "nowhere", *arguments) == 2
    assert "there is no folder" in capsys.readouterr().out
    assert command(model_folder / "nowhere", data_folder, *arguments) == 2
    assert "the classifier's folder lacks" in capsys.readouterr().out.replace("\n", " ")
