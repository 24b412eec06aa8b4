"""Selections and weights against numbers derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from adapters.selection import (
    confidence_weight,
    entropy_margin,
    moving_average,
    not_redundant,
    prediction_drop,
    shuffle_patches,
)


def test_a_margin_is_a_share_of_the_largest_entropy() -> None:
    assert entropy_margin(0.4, 10) == pytest.approx(0.9210340371976184)
    even = torch.full((1, 10), 0.1)
    assert entropy_margin(1.0, 10) == pytest.approx(float(-(even * even.log()).sum()), rel=1e-6)


def test_predictions_like_the_average_are_redundant() -> None:
    """cos([1, 0], [1, 0]) = 1, with [0, 1]: 0, with [1, 1]: 1 / sqrt 2 = 0.707."""
    probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    average = torch.tensor([0.3, 0.0])
    assert not_redundant(probabilities, average, margin=0.1).tolist() == [False, True, False]
    assert not_redundant(probabilities, average, margin=0.8).tolist() == [False, True, True]
    assert not_redundant(probabilities, None, margin=0.1).tolist() == [True, True, True]


def test_the_first_average_is_the_value_itself_and_carries_no_graph() -> None:
    value = torch.tensor([1.0, 3.0], requires_grad=True)
    first = moving_average(None, value * 1)
    assert first.tolist() == [1.0, 3.0]
    assert not first.requires_grad
    torch.testing.assert_close(moving_average(first, value + 10, keep=0.75), torch.tensor([3.5, 5.5]))


def test_surer_samples_weigh_more_and_the_weight_has_no_gradient() -> None:
    entropy = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    weight = confidence_weight(entropy, margin=1.0)
    torch.testing.assert_close(weight, torch.tensor([math.e, 1.0, 1 / math.e]))
    assert not weight.requires_grad


def test_the_drop_is_that_of_the_class_predicted_before() -> None:
    """p = [.75, .25] and p' = [.25, .75]: the predicted class 0 lost a half."""
    logits = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    corrupted = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    torch.testing.assert_close(prediction_drop(logits, corrupted), torch.tensor([0.5, 0.0]))


@pytest.mark.parametrize("channels", [1, 3])
def test_output_patch_r_is_the_patch_that_comes_rth_in_order(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, channels, 6, 4, generator=generator)
    order_by = torch.rand(2, 4, generator=generator)
    found = shuffle_patches(pictures, order_by)
    for number in range(2):
        order = order_by[number].argsort().tolist()
        for place, source in enumerate(order):
            (y, x), (v, u) = divmod(place, 2), divmod(source, 2)
            target = found[number, :, y * 3 : y * 3 + 3, x * 2 : x * 2 + 2]
            assert torch.equal(target, pictures[number, :, v * 3 : v * 3 + 3, u * 2 : u * 2 + 2])


def test_patches_in_their_own_order_are_the_picture() -> None:
    pictures = torch.randn(3, 2, 8, 12)
    assert torch.equal(shuffle_patches(pictures, torch.arange(16.0).expand(3, -1)), pictures)


def test_sides_that_do_not_divide_are_resized_and_back() -> None:
    pictures = torch.ones(1, 1, 10, 7)
    found = shuffle_patches(pictures, torch.rand(1, 16))
    assert found.shape == pictures.shape
    torch.testing.assert_close(found, pictures)


def test_a_picture_smaller_than_its_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="no 4 x 4 patches"):
        shuffle_patches(torch.ones(1, 1, 3, 8), torch.rand(1, 16))
