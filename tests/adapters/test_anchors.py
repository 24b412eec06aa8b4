"""Anchors: sign, bounds of their shift, and losses that stay finite where singular values meet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adapters.anchors import alignment_loss, anchor_shift, anchors_of, instance_loss


def columns(batch: int = 400, features: int = 6, modalities: int = 4, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    common = torch.randn(batch, features, 1, generator=random, dtype=torch.float64)
    own = torch.randn(batch, features, modalities, generator=random, dtype=torch.float64)
    return F.normalize(common + own, dim=1)


def test_anchors_are_leading_left_singular_vectors_with_the_sign_of_the_sum() -> None:
    given = columns()
    found = anchors_of(given)
    u, s, _ = torch.linalg.svd(given, full_matrices=False)
    torch.testing.assert_close(found.singular_values, s)
    torch.testing.assert_close((found.vectors * u[:, :, 0]).sum(1).abs(), torch.ones(len(given)).double())
    assert ((found.vectors * given.sum(2)).sum(1) >= 0).all()


def test_the_order_of_the_modalities_does_not_matter() -> None:
    given = columns()
    torch.testing.assert_close(anchors_of(given).vectors, anchors_of(given[:, :, [2, 0, 3, 1]]).vectors)


@pytest.mark.parametrize("observed", [[True, False, True, True], [True, False, False, False]])
def test_the_shift_lies_between_its_bounds(observed: list[bool]) -> None:
    shift = anchor_shift(columns(2000), torch.tensor(observed))
    assert (shift.lower <= shift.distance + 1e-9).all()
    assert (shift.distance <= shift.upper + 1e-9).all()
    assert (shift.distance <= shift.published_upper + 1e-9).all()
    assert float(shift.distance.mean()) > 0.05


def test_modalities_that_agree_have_the_lowest_loss() -> None:
    same = columns()[:, :, :1].expand(-1, -1, 4)
    assert float(alignment_loss(same)) < 1e-6 < float(alignment_loss(columns()))


def test_the_gradient_is_finite_where_singular_values_meet() -> None:
    orthogonal = torch.eye(6, 4, dtype=torch.float64).expand(3, -1, -1).clone().requires_grad_()
    twice = columns(3)
    twice = torch.cat([twice[:, :, :2], twice[:, :, :2]], dim=2).requires_grad_()
    for given in (orthogonal, twice):
        (gradient,) = torch.autograd.grad(alignment_loss(given), given)
        assert torch.isfinite(gradient).all()


def test_anchors_apart_have_the_lower_instance_loss() -> None:
    apart, close = torch.eye(5), F.normalize(torch.ones(5, 5) + 0.1 * torch.eye(5), dim=1)
    assert float(instance_loss(apart)) < float(instance_loss(close))
