"""The training recipe's parts, on a handful of scenes."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from demo import train_scenes
from demo.scenes import render, scenes
from demo.train_scenes import (
    Recipe,
    build_processor,
    build_tokenizer,
    info_nce,
    new_trainer,
    schedule,
    spoken,
)


@pytest.fixture
def few() -> tuple[np.ndarray, list[str]]:
    listed = scenes("train", 8)
    return np.stack([train_scenes._draw(scene) for scene in listed]), [scene.caption for scene in listed]


def test_info_nce_of_one_hot_rows() -> None:
    """Logits are scale on the diagonal, 0 elsewhere: the loss is log(1 + (B - 1) e^-scale), here B = 3."""
    scale = torch.tensor(math.log(2.0))
    loss = info_nce(torch.eye(3), 5 * torch.eye(3), scale)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))


def test_schedule_rises_then_falls_to_two_percent() -> None:
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.51)
    assert schedule(1.0, 0.1) == pytest.approx(0.02)


def test_training_pixels_equal_the_processor(few: tuple[np.ndarray, list[str]]) -> None:
    pictures = [render(scene, 128) for scene in scenes("train", 8)]
    expected = build_processor(build_tokenizer()).image_processor(pictures, return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.allclose(train_scenes.to_pixels(few[0]), expected, atol=1e-6)


def test_steps_lower_the_loss_and_repeat_with_the_same_seed(few: tuple[np.ndarray, list[str]]) -> None:
    runs = []
    for _ in range(2):
        trainer = new_trainer(Recipe(seed=3))
        runs.append([trainer.step(number, 0.06, *few) for number in range(8)])
    assert runs[0] == pytest.approx(runs[1], abs=1e-3)
    assert np.mean(runs[0][-2:]) < runs[0][0]


def test_checkpoint_restores_weights_and_the_step(few: tuple[np.ndarray, list[str]], tmp_path: Path) -> None:
    trainer, other = new_trainer(Recipe()), new_trainer(Recipe())
    trainer.step(0, 0.06, *few)
    other.step(7, 1.0, *few)
    trainer.save(tmp_path / "checkpoint.pt", 1)
    assert other.load(tmp_path / "checkpoint.pt") == 1
    assert all(
        torch.equal(one, two)
        for one, two in zip(trainer.model.parameters(), other.model.parameters(), strict=True)
    )
    assert other.step(1, 0.06, *few) == pytest.approx(trainer.step(1, 0.06, *few), abs=1e-3)


def test_batches_go_through_every_scene_and_continue_after_a_resume() -> None:
    recipe, listed = Recipe(batch=4, steps=6, series_after_steps=3), scenes("train", 12)
    batches = list(train_scenes._batches(listed, recipe, 0))
    assert sorted(np.concatenate(batches[:3])) == list(range(12))
    assert sorted(np.concatenate(batches[3:])) == list(range(12))
    again = list(train_scenes._batches(listed, recipe, 2))
    assert all(np.array_equal(one, other) for one, other in zip(batches[2:], again, strict=True))
    with pytest.raises(ValueError, match="needs at least as many scenes"):
        next(train_scenes._batches(listed[:3], recipe, 0))


def test_series_hold_scenes_of_one_kind() -> None:
    """Three kinds with eight scenes each fill six series of four without a mixed one."""
    kinds = np.tile(np.arange(3), 8)
    rng = np.random.default_rng(0)
    order = train_scenes._in_series(rng.permutation(24), kinds, rng)
    assert sorted(order) == list(range(24))
    assert all(len(set(kinds[series])) == 1 for series in order.reshape(6, 4))


def test_captions_stay_as_they_are_unless_asked_otherwise() -> None:
    caption = scenes("train", 1)[0].caption
    assert spoken(caption, Recipe(shorten_share=0, split_word_share=0), random.Random(0)) == caption


def test_shortened_caption_loses_sizes_or_the_place() -> None:
    caption = "a small red star above a big blue boat on a wooden table"
    recipe = Recipe(shorten_share=1, split_word_share=0)
    said = {spoken(caption, recipe, random.Random(seed)) for seed in range(20)}
    assert said == {
        "a red star above a blue boat on a wooden table",
        "a small red star above a big blue boat",
    }
