"""Every pure function against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from adapters.losses import (
    masked_mean,
    modality_gap,
    noise_robust_entropy,
    softmax_entropy,
    source_likeness,
    uniformity,
)

QUARTER = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
"""Entropy of (3/4, 1/4): 0.5623 nats. Its logits are (log 3, 0)."""
CORNERS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
HALF_DIAGONAL = math.sqrt(0.5)
"""Distance of either corner (1, 0), (0, 1) from their centre (1/2, 1/2)."""


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def test_entropy_of_equal_logits_is_the_logarithm_of_their_number() -> None:
    assert softmax_entropy(logits([2.0] * 4)).item() == pytest.approx(math.log(4))


def test_entropy_of_three_quarters_and_one_quarter() -> None:
    assert softmax_entropy(logits([math.log(3), 0.0])).item() == pytest.approx(QUARTER)


def test_entropy_of_a_certain_row_is_zero_with_a_finite_gradient() -> None:
    certain = logits([5000.0, 0.0, -5000.0])
    entropy = softmax_entropy(certain).sum()
    (gradient,) = torch.autograd.grad(entropy, certain)
    assert entropy.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_uniformity_multiplies_the_distance_from_the_centre_by_its_temperature() -> None:
    """Two corners, each sqrt(1/2) from the centre: exp(-t sqrt(1/2)), or exp(-sqrt(1/2) / t) for `div`."""
    assert uniformity(CORNERS, temperature=0.1).item() == pytest.approx(math.exp(-0.1 * HALF_DIAGONAL))
    divided = uniformity(CORNERS, temperature=0.5, mode="div")
    assert divided.item() == pytest.approx(math.exp(-HALF_DIAGONAL / 0.5))


def test_uniformity_of_identical_rows_is_one_with_a_zero_gradient() -> None:
    same = torch.ones(64, 3, dtype=torch.float64, requires_grad=True)
    loss = uniformity(same)
    (gradient,) = torch.autograd.grad(loss, same)
    assert loss.item() == 1.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_uniformity_falls_when_the_rows_move_apart() -> None:
    """The gradient flows through the centre: it is -t exp(-t d) / B times the unit vector away from it, here
    -0.1 exp(-0.1 sqrt(1/2)) / 2 * (1, -1) / sqrt(2) for the first row (the centre's own part cancels)."""
    rows = CORNERS.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(uniformity(rows), rows)
    size = 0.1 * math.exp(-0.1 * HALF_DIAGONAL) / 2 * HALF_DIAGONAL
    expected = torch.tensor([[-size, size], [size, -size]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_gap_is_the_distance_of_the_centres() -> None:
    """Centres (1, 0) and (0, 1): sqrt(2)."""
    right, up = CORNERS[:1].repeat(3, 1), CORNERS[1:].repeat(5, 1)
    assert modality_gap(right, up).item() == pytest.approx(math.sqrt(2))
    assert modality_gap(right, right).item() == 0.0


def test_gap_does_not_depend_on_the_length_of_the_rows() -> None:
    scales = torch.tensor([[3.0], [0.2]], dtype=torch.float64)
    other = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    assert modality_gap(CORNERS * scales, other).item() == pytest.approx(modality_gap(CORNERS, other).item())


def test_gap_between_coinciding_centres_has_a_finite_gradient() -> None:
    rows = CORNERS.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(modality_gap(rows, CORNERS), rows)
    assert torch.isfinite(gradient).all()


def test_only_rows_at_or_below_the_ceiling_count() -> None:
    """Entropies log 2 = 0.693 and 0.5623 under a ceiling of 0.6: the second alone, weighted 1 - H / 0.601."""
    rows = logits([0.0, 0.0], [math.log(3), 0.0])
    loss, selected = noise_robust_entropy(rows, ceiling_nats=torch.tensor(0.6, dtype=torch.float64))
    assert selected.tolist() == [False, True]
    assert loss.item() == pytest.approx(QUARTER * (1 - QUARTER / 0.601))


def test_a_row_exactly_at_the_ceiling_is_used() -> None:
    rows = logits([math.log(3), 0.0])
    ceiling = softmax_entropy(rows).max().detach()
    loss, selected = noise_robust_entropy(rows, ceiling_nats=ceiling, epsilon=1e-3)
    assert selected.tolist() == [True]
    assert loss.item() == pytest.approx(QUARTER * (1 - QUARTER / (QUARTER + 1e-3)))


def test_the_mean_divides_by_the_number_of_reliable_rows() -> None:
    row = [math.log(3), 0.0]
    ceiling = torch.tensor(0.6, dtype=torch.float64)
    alone, _ = noise_robust_entropy(logits(row), ceiling_nats=ceiling)
    among, _ = noise_robust_entropy(logits(row, row, [0.0, 0.0]), ceiling_nats=ceiling)
    assert among.item() == pytest.approx(alone.item())


def test_no_gradient_flows_through_the_weight() -> None:
    """d(w H) = w dH with dH/dz = -p (log p + H): -0.75 (log 0.75 + H) for the first logit."""
    rows = logits([math.log(3), 0.0])
    loss, _ = noise_robust_entropy(rows, ceiling_nats=torch.tensor(0.6, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, rows)
    slope = -0.75 * (math.log(0.75) + QUARTER) * (1 - QUARTER / 0.601)
    torch.testing.assert_close(gradient, torch.tensor([[slope, -slope]], dtype=torch.float64))


def test_no_reliable_row_gives_zero_and_no_gradient_instead_of_nan() -> None:
    rows = logits([0.0, 0.0], [0.1, 0.0])
    loss, selected = noise_robust_entropy(rows, ceiling_nats=torch.tensor(0.1, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, rows)
    assert not selected.any()
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_source_likeness_by_hand() -> None:
    """Pairs that coincide: 0 - sqrt(1/2) - sqrt(1/2). Swapped pairs: 2 sqrt(2) - sqrt(1/2) - sqrt(1/2)."""
    torch.testing.assert_close(
        source_likeness(CORNERS, CORNERS), torch.full((2,), -2 * HALF_DIAGONAL, dtype=torch.float64)
    )
    swapped = 2 * math.sqrt(2) - 2 * HALF_DIAGONAL
    torch.testing.assert_close(
        source_likeness(CORNERS, CORNERS.flip(0)), torch.full((2,), swapped, dtype=torch.float64)
    )


def test_the_mean_of_nothing_is_zero_with_a_gradient_of_zeros() -> None:
    values = torch.tensor([1.0, 3.0, 5.0], requires_grad=True)
    some = masked_mean(values, torch.tensor([True, False, True]))
    assert some.item() == 3
    none = masked_mean(values, torch.zeros(3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(none, values)
    assert none.item() == 0
    assert gradient.tolist() == [0, 0, 0]
