"""Texts of one batch in groups of like length: fewer padded tokens, the same features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from encoders.towers import Buckets, bucket_cost, bucket_sizes

NAMES = ("clip", "blip", "siglip", "vit_bert", "convnext_roberta")


def texts(count: int = 64) -> list[str]:
    """Short and long ones, shuffled."""
    rng = np.random.default_rng(0)
    return [" ".join(["a", "dog"] * int(rng.integers(0, 8)) + ["grass"]) for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_features_and_gradients_do_not_depend_on_the_groups(
    name: str, encoder_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = encoder_of(name).towers["text"]
    values = {key: value.clone().requires_grad_() for key, value in tower.parameters.items()}

    def run() -> tuple[Any, torch.Tensor, list[torch.Tensor]]:
        inputs = tower.prepare(texts())
        features = tower.encode(inputs, values)
        loss = (features * torch.arange(features.numel()).reshape(features.shape)).sum()
        grads = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        return inputs, features, [grad for grad in grads if grad is not None]

    monkeypatch.setattr(tower, "_bucket_cost", 1.0)
    grouped, features, grads = run()
    monkeypatch.setattr(tower, "_bucket_cost", math.inf)
    together, expected, expected_grads = run()
    assert isinstance(grouped, Buckets) == (name != "siglip")  # SigLIP sees its padding, so it is never cut
    assert not isinstance(together, Buckets)
    assert len(grouped) == len(together) == 64
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-6)
    assert len(grads) == len(expected_grads)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-3)


def test_groups_follow_the_lengths() -> None:
    assert bucket_sizes([5] * 16 + [100] * 16, 96.0) == [16, 16]


def test_groups_that_cost_more_than_they_save_are_not_made() -> None:
    lengths = [5] * 16 + [100] * 16
    assert bucket_sizes(lengths, 16 * 95 + 1) == [32]
    assert bucket_sizes(lengths, math.inf) == [32]


def test_narrow_towers_bf16_and_gpus_cut_less() -> None:
    cpu = torch.device("cpu")
    wide = bucket_cost(512, half=False, device=cpu)
    assert wide < bucket_cost(512, half=True, device=cpu) < bucket_cost(128, half=True, device=cpu)
    assert bucket_cost(512, half=False, device=torch.device("cuda")) == math.inf


def test_equal_lengths_stay_together() -> None:
    assert bucket_sizes([20] * 64, 96.0) == [64]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65])
def test_groups_hold_every_text_once_in_multiples_of_eight(count: int) -> None:
    sizes = bucket_sizes(sorted(np.random.default_rng(count).integers(3, 77, count).tolist()), 10.0)
    assert sum(sizes) == count
    assert all(size % 8 == 0 for size in sizes[:-1])
    assert len(sizes) <= 4
