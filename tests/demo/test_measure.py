"""Corruptions and recall of the demo's own measurement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo import measure
from demo.measure import corrupted, defocus_blur, fog, gaussian_noise, main, mistyped, recall
from demo.scenes import render, scenes


@pytest.fixture
def picture() -> np.ndarray:
    return np.asarray(render(scenes("dev", 1)[0], 64)) / 255.0


def test_recall_counts_queries_whose_own_item_is_among_the_first() -> None:
    """Own item first for query 0, second for query 1, third for query 2: R@1 1/3, R@2 2/3, R@3 all."""
    queries = torch.eye(3)
    gallery = torch.tensor([[1.0, 0.9, 0.5], [0.0, 0.5, 0.6], [0.2, 0.1, 0.4]])
    assert recall(queries, gallery, (1, 2, 3)) == [33.3, 66.7, 100.0]


def test_noise_has_the_asked_deviation() -> None:
    grey = np.full((128, 128, 3), 0.5)
    noisy = gaussian_noise(grey, np.random.default_rng(0), sigma=0.1)
    assert abs(noisy.std() - 0.1) < 0.003
    assert abs(noisy.mean() - 0.5) < 0.003


def test_blur_keeps_a_flat_picture_and_spreads_a_point(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    flat = np.full((64, 64, 3), 0.3)
    assert np.allclose(defocus_blur(flat, rng), 0.3)
    point = np.zeros((64, 64, 3))
    point[32, 32] = 1
    spread = defocus_blur(point, rng)
    assert np.isclose(spread.sum(), 3.0)
    assert 18 < (spread[:, :, 0] > 0).sum() < 50  # a disc of radius 10 * 64 / 224 = 2.86 pixels has area 25.6


def test_fog_lowers_contrast_and_stays_in_range(picture: np.ndarray) -> None:
    other = picture[::-1]  # as bright: x top / (top + 3) leaves at most a quarter of any difference
    hazy, hazy_other = (fog(each, np.random.default_rng(0)) for each in (picture, other))
    assert hazy.shape == picture.shape
    assert hazy.min() >= 0
    assert hazy.max() <= 1
    assert np.abs(hazy - hazy_other).max() <= np.abs(picture - other).max() / 4 + 1e-9


def test_picture_number_decides_the_noise() -> None:
    same = [Image.new("RGB", (32, 32), (128, 128, 128))] * 2
    once, again = corrupted(same, gaussian_noise), corrupted(same, gaussian_noise)
    assert np.array_equal(np.asarray(once[0]), np.asarray(again[0]))
    assert not np.array_equal(np.asarray(once[0]), np.asarray(once[1]))


def test_mistyped_caption_keeps_short_words_and_the_number_of_letters() -> None:
    caption = "a small red star to the left of a big blue boat on the grass"
    wrong = mistyped(caption, np.random.default_rng(1), share=1.0)
    assert wrong != caption
    assert [len(word) for word in wrong.split()] == [len(word) for word in caption.split()]
    kept = [(old, new) for old, new in zip(caption.split(), wrong.split(), strict=True) if len(old) < 4]
    assert all(old == new for old, new in kept)


def test_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--count", "12", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {f"image to text, {name}" for name in measure.QUERIES} | {
        "text to image, clean",
        "text to image, mistyped",
    }
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in figures)
