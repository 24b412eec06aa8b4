"""Settings and helpers that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch and Transformers are imported: no network, and one thread, which small tensors run fastest on.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


def shared_folder(*parts: str) -> Path:
    """A path in the folder of shared references, or skip the test.

    The folder is named by ATTUNE_SHARED, else it is `shared` beside the checkout.
    """
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("ATTUNE_SHARED", beside)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there (ATTUNE_SHARED names the folder of shared references)")
    return path


@pytest.fixture(scope="session")
def goldens() -> Path:
    return shared_folder("reference", "goldens")
