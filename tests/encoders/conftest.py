"""Fixtures: every tiny encoder once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from encoders.base import Encoder
from encoders.load import load_encoder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from tests.encoders.models import save

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp("encoders") / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def encoder_of(folder_of: Callable[[str], Path]) -> Callable[..., Encoder]:
    made: dict[tuple[str, str], Encoder] = {}

    def encoder(name: str, dtype: str = "fp32") -> Encoder:
        if (name, dtype) not in made:
            made[name, dtype] = load_encoder(str(folder_of(name)), device="cpu", dtype=dtype)
        return made[name, dtype]

    return encoder
