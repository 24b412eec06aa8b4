"""The recipe's parts, on a tiny model and on samples made of noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.calibration import load_calibration, save_calibration
from demo import train_clips
from demo.clips import FRAME_SIZE, LABELS, make_clips
from demo.train_clips import (
    Recipe,
    Samples,
    accuracy,
    calibrate,
    clip_config,
    clip_samples,
    contrast,
    lightly_changed,
    missing_table,
    train,
)
from encoders.audio import AudioSpec, fbank
from encoders.cav_mae import CavMae, CavMaeConfig
from encoders.preprocessing import ImageSpec

CLASSES = 3


def tiny_config() -> CavMaeConfig:
    return CavMaeConfig(
        labels=tuple("abc"),
        width=16,
        heads=2,
        depth=2,
        patch=8,
        audio=AudioSpec(frames=16, mel_bins=16, mean=0.0, std=1.0),
        image=ImageSpec(16, 16),
    )


def noise_samples(count: int, seed: int = 0) -> Samples:
    """Sound says whether the class is 0, brightness whether it is 2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    fbanks = rng.normal(0, 0.3, (count, 16, 16)) + 2.0 * (labels == 0)[:, None, None]
    frames = rng.integers(0, 80, (count, 3, 16, 16)) + 150 * (labels == 2)[:, None, None, None]
    return Samples(fbanks.astype(np.float32), frames.astype(np.uint8), labels)


@pytest.fixture
def few() -> Samples:
    return noise_samples(24)


QUICK = Recipe(steps=30, batch=24, learning_rate=5e-3)


def test_training_learns_and_names_whole_samples_best(few: Samples) -> None:
    """Sound or picture alone leave two of three classes alike."""
    found = accuracy(train(tiny_config(), few, QUICK), noise_samples(60, seed=1))
    assert found["both"] > 90
    assert 50 < found["audio"] < 90
    assert 50 < found["video"] < 90


def test_steps_lower_the_loss_and_repeat_with_the_same_seed(few: Samples) -> None:
    runs = []
    for _ in range(2):
        trainer = train_clips.Trainer(tiny_config(), QUICK)
        runs.append([trainer.step(number, few) for number in range(12)])
    assert runs[0] == pytest.approx(runs[1], abs=1e-3)
    assert np.mean(runs[0][-2:]) < 0.9 * runs[0][0]


def test_every_weight_is_trained(few: Samples) -> None:
    """Also the norms that only the path for a missing modality uses: those of the joint block."""
    trainer = train_clips.Trainer(tiny_config(), QUICK)
    trainer.step(0, few)
    still = [name for name, value in trainer.weights.items() if value.grad is None]
    tower_norms = [name for name in trainer.weights if _unused(name)]
    assert sorted(still) == sorted(tower_norms)


def _unused(name: str) -> bool:
    """Norms `_a` and `_v` of tower blocks, which no path of the model ever uses."""
    return name.startswith(("blocks_a", "blocks_v")) and name.split(".")[2].endswith(("_a", "_v"))


def test_trained_model_answers_as_the_trainer_does(few: Samples) -> None:
    trainer = train_clips.Trainer(tiny_config(), QUICK)
    trainer.step(0, few)
    ((inputs, _),) = train_clips.prepared(trainer.model(), few)
    with torch.no_grad():
        expected = trainer.function.forward(inputs, trainer.weights).logits
    assert torch.equal(trainer.model().forward(inputs).logits, expected)


def test_checkpoint_restores_weights_and_the_step(few: Samples, tmp_path: Path) -> None:
    trainer, other = (train_clips.Trainer(tiny_config(), QUICK) for _ in range(2))
    trainer.step(0, few)
    trainer.save(tmp_path / "checkpoint.pt", 1)
    assert other.load(tmp_path / "checkpoint.pt") == 1
    assert all(torch.equal(value, other.weights[name]) for name, value in trainer.weights.items())
    assert other.step(1, few) == pytest.approx(trainer.step(1, few), abs=1e-3)


def test_interrupted_training_goes_on_from_its_checkpoint(
    few: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_clips, "REPORT_STEPS", 2)
    steps: list[int] = []
    plain = train_clips.Trainer.step

    def counted(self: train_clips.Trainer, number: int, samples: Samples) -> float:
        if number == 5 and 5 not in steps:
            steps.append(number)
            raise KeyboardInterrupt
        steps.append(number)
        return plain(self, number, samples)

    monkeypatch.setattr(train_clips.Trainer, "step", counted)
    recipe = Recipe(steps=8, batch=24)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), few, recipe, folder=tmp_path)
    resumed = train(tiny_config(), few, recipe, folder=tmp_path, resume=True)
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert not (tmp_path / "checkpoint.pt").exists()
    whole = train(tiny_config(), few, recipe)
    assert all(torch.allclose(value, resumed.weights[name]) for name, value in whole.weights.items())


def test_every_second_step_has_prompts_next_to_zero(few: Samples) -> None:
    trainer = train_clips.Trainer(tiny_config(), Recipe(steps=4, batch=24, prompts=3, prompt_range=0.01))
    rng = np.random.default_rng(0)
    prompts = trainer._prompts(0, rng)
    assert prompts is not None
    assert prompts.shape == (2, 2, 3, 16)
    assert 0.005 < prompts.abs().max().item() <= 0.01
    assert trainer._prompts(1, rng) is None
    assert train_clips.Trainer(tiny_config(), QUICK)._prompts(0, rng) is None
    assert math.isfinite(trainer.step(0, few))


def test_training_from_given_weights_begins_with_them(few: Samples) -> None:
    """A rate of next to nothing leaves them as they are."""
    first = train(tiny_config(), few, QUICK)
    again = train(tiny_config(), few, Recipe(steps=1, batch=24, learning_rate=1e-12), start=first.weights)
    assert all(torch.allclose(value, again.weights[name]) for name, value in first.weights.items())


def test_last_stage_is_taken_up_from_what_the_first_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clip_samples(4, 0, workers=1)
    stages: list[tuple[int, float, bool]] = []
    plain = train_clips.train

    def told(config: CavMaeConfig, data: Samples, recipe: Recipe, **others: Any) -> CavMae:
        stages.append((recipe.steps, recipe.learning_rate, others.get("start") is not None))
        if len(stages) == 2:
            raise KeyboardInterrupt
        return plain(config, data, recipe, **others)

    monkeypatch.setattr(train_clips, "train", told)
    recipe = Recipe(steps=4, batch=4, learning_rate=3e-3)
    with pytest.raises(KeyboardInterrupt):
        train_clips.train_in_stages(data, recipe, held_out=None, out=tmp_path, resume=False)
    train_clips.train_in_stages(data, recipe, held_out=None, out=tmp_path, resume=True)
    assert stages == [(4, 3e-3, False), (1, 1e-3, True), (1, 1e-3, True)]
    assert not list(tmp_path.iterdir())


def test_batches_go_through_every_sample_and_continue_after_a_resume() -> None:
    recipe = Recipe(batch=4, steps=6)
    batches = list(train_clips._batches(12, recipe, 0))
    assert sorted(np.concatenate(batches[:3])) == list(range(12))
    assert sorted(np.concatenate(batches[3:])) == list(range(12))
    again = list(train_clips._batches(12, recipe, 2))
    assert all(np.array_equal(one, other) for one, other in zip(batches[2:], again, strict=True))
    with pytest.raises(ValueError, match="needs at least as many samples"):
        next(train_clips._batches(3, recipe, 0))


def test_samples_of_unequal_length_are_refused(few: Samples) -> None:
    with pytest.raises(ValueError, match="as many spectrograms as frames"):
        Samples(few.fbanks[:3], few.frames, few.labels)


def test_contrast_of_one_hot_rows() -> None:
    """Scores are 1 / t on the diagonal, 0 elsewhere: log(1 + (B - 1) e^(-1/t)), here B = 3, 1/t = ln 2."""
    loss = contrast(torch.eye(3), 5 * torch.eye(3), 1 / math.log(2))
    assert loss.item() == pytest.approx(math.log(1 + 2 / 2))


def test_light_change_moves_what_is_there_by_a_few_steps(few: Samples) -> None:
    recipe = Recipe(shift_frames=2, shift_pixels=1)
    changed = lightly_changed(few, np.random.default_rng(0), recipe)
    assert changed.fbanks.shape == few.fbanks.shape
    assert not np.array_equal(changed.fbanks, few.fbanks)
    for one, other in zip(few.fbanks, changed.fbanks, strict=True):
        moved = [np.array_equal(other[2:-2], one[2 + late : len(one) - 2 + late]) for late in range(-2, 3)]
        assert any(moved)
    still = lightly_changed(few, np.random.default_rng(0), Recipe(shift_frames=0, shift_pixels=0))
    assert np.array_equal(still.fbanks, few.fbanks)
    assert np.array_equal(still.frames, few.frames)


def test_clips_as_samples_equal_what_the_server_would_prepare() -> None:
    made, clips = clip_samples(3, 24, workers=1), make_clips(3, 24)
    assert made.frames.shape == (3, 3, FRAME_SIZE, FRAME_SIZE)
    assert [LABELS[label] for label in made.labels] == [clip.label for clip in clips]
    assert np.array_equal(made.frames[1].transpose(1, 2, 0), clips[1].frame)
    assert np.allclose(made.fbanks[2], fbank(clips[2].waveform, clip_config(made).audio), atol=0.01)


def test_calibration_holds_all_that_methods_need(few: Samples, tmp_path: Path) -> None:
    model = train(tiny_config(), few, Recipe(steps=2, batch=24))
    save_calibration(calibrate(model, few, few.rows(slice(10))), tmp_path / "calibration.safetensors")
    held = load_calibration(tmp_path / "calibration.safetensors", model)
    assert held.holds == {"statistics", "fisher", "completion"}
    assert held.about["fisher_samples"] == 24
    assert {hidden: counts["samples"] for hidden, counts in held.about["missing"].items()} == {
        "audio": 10,
        "video": 10,
    }
    assert missing_table(held.about["missing"]).count("\n| ") == 3


def test_card_says_nothing_of_missing_modalities_that_nobody_measured() -> None:
    assert missing_table({}) == ""
