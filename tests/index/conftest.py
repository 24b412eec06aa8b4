"""Seeded synthetic data, shared by the tests of the galleries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index import CalibrationMark, Gallery, GalleryStore, IndexSettings, Item
from index.base import Floats

DIMENSION = 8


@pytest.fixture
def unit() -> Callable[..., Floats]:
    """Seeded random unit rows [N, D]."""

    def make(count: int, *, dimension: int = DIMENSION, seed: int = 0) -> Floats:
        rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return make


@pytest.fixture
def gallery() -> Gallery:
    """Empty, in memory."""
    return Gallery("shop", DIMENSION, "encoder-1", IndexSettings(), 0.0)


@pytest.fixture
def calibration() -> CalibrationMark:
    return CalibrationMark("home", "0123456789abcdef")


@pytest.fixture
def calibrated(calibration: CalibrationMark) -> Gallery:
    """Empty, in memory, with a calibration."""
    return Gallery("shop", DIMENSION, "encoder-1", IndexSettings(), 0.0, calibration=calibration)


@pytest.fixture
def items(unit: Callable[..., Floats]) -> list[Item]:
    """Six items: 0-3 have an image vector, 2-5 a text vector."""
    images, texts = unit(6, seed=1), unit(6, seed=2)
    return [
        Item(
            id=f"item-{n}",
            payload={"number": n, "colour": "red" if n % 2 else "blue"},
            text=f"caption {n}",
            vectors={
                **({"image": images[n]} if n < 4 else {}),
                **({"text": texts[n]} if n >= 2 else {}),
            },
        )
        for n in range(6)
    ]


@pytest.fixture
def anchored(items: list[Item], unit: Callable[..., Floats]) -> list[Item]:
    """The same six items with an anchor each."""
    return [
        dataclasses.replace(item, vectors={**item.vectors, "anchor": anchor})
        for item, anchor in zip(items, unit(6, seed=3), strict=True)
    ]


@pytest.fixture
def store(tmp_path: Path):
    with GalleryStore(tmp_path / "galleries") as made:
        yield made
