"""A sample's anchor: the leading left singular vector of its modalities' embeddings (methods.md 4.5-4.6).

Letters: B samples, k modalities, D features. `columns` are [B, D, k], unit vectors, one a modality. Singular
values and vectors come from the k x k Gram matrix, which is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST = 1e-12
_NEAR = 1e-5
"""Eigenvalues this close count as the same: the direction between their vectors is anyone's guess."""


@dataclass(frozen=True)
class Anchors:
    """vectors [B, D], their sign towards the sum of the columns; singular_values [B, k] descending."""

    vectors: Tensor
    singular_values: Tensor


def anchors_of(columns: Tensor) -> Anchors:
    """Differentiable; where the largest singular value is met by the second, in no direction between them."""
    gram = columns.transpose(1, 2) @ columns
    vectors, values = _eigen(gram)
    singular = values.clamp_min(_SMALLEST).sqrt()
    leading = (columns @ vectors[:, :, None]).squeeze(2) / singular[:, :1]
    sign = torch.where((leading * columns.sum(2)).sum(1) < 0, -1.0, 1.0).to(leading.dtype)
    return Anchors(leading * sign[:, None], singular)


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The leading eigenvector [B, k] of symmetric matrices [B, k, k], and all eigenvalues, descending.

    The derivative is the first-order perturbation. That of `torch.linalg.eigh` is NaN wherever two
    eigenvalues are the same, also two of the smallest, as they are of modalities that agree.
    """
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(gram)  # ascending
        gaps = values[:, -1:] - values[:, :-1]
        closeness = gaps / (gaps.square() + _NEAR**2)
    along = vectors.transpose(1, 2) @ gram @ vectors
    values = along.diagonal(dim1=1, dim2=2).flip(1)
    if not gram.requires_grad:
        return vectors[:, :, -1], values
    change = vectors[:, :, :-1].transpose(1, 2) @ ((gram - gram.detach()) @ vectors[:, :, -1:])
    turned = vectors[:, :, :-1] @ (closeness[:, :, None] * change)
    return vectors[:, :, -1] + turned.squeeze(2), values


def singular_values(columns: Tensor) -> Tensor:
    """[B, k] descending; differentiable also where they meet, because no vectors are asked for."""
    gram = columns.transpose(1, 2) @ columns
    return torch.linalg.eigvalsh(gram).flip(1).clamp_min(_SMALLEST).sqrt()


def alignment_loss(columns: Tensor, *, temperature: float = 0.05) -> Tensor:
    """How far a sample's modalities are from one direction: the mean of -log softmax(sigma / tau)_1."""
    return -F.log_softmax(singular_values(columns) / temperature, dim=1)[:, 0].mean()


def instance_loss(anchors: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Each anchor against those of other samples, one direction. [B, D] -> scalar."""
    right = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(anchors @ anchors.T / temperature, right)


@dataclass(frozen=True)
class AnchorShift:
    """How far an anchor moves when some modalities are left out, [B] each, and what bounds it.

    distance   ||u - s u_observed|| with the sign s that makes it smallest
    energy     eta^2, what the observed anchor explains of the missing columns
    lower, upper     bounds that always hold (methods.md 4.5, derived)
    published_upper  the paper's: sqrt(2) ||Z_missing|| / (sigma_1 - sigma_2)
    """

    distance: Tensor
    energy: Tensor
    lower: Tensor
    upper: Tensor
    published_upper: Tensor


@torch.no_grad()
def anchor_shift(columns: Tensor, observed: Tensor) -> AnchorShift:
    """columns [B, D, k] complete; observed bool [k], not all and not none."""
    whole, part = anchors_of(columns), anchors_of(columns[:, :, observed])
    missing = columns[:, :, ~observed]
    cosine = (whole.vectors * part.vectors).sum(1).abs().clamp(max=1)
    energy = (part.vectors.unsqueeze(1) @ missing).square().sum((1, 2))
    first, second = whole.singular_values[:, 0], whole.singular_values[:, 1]
    rho = part.singular_values[:, 0].square() + energy
    largest, next_ = first.square(), second.square()
    norm = torch.linalg.matrix_norm(missing, ord=2)
    return AnchorShift(
        distance=(2 - 2 * cosine).sqrt(),
        energy=energy,
        lower=(2 * (1 - (rho / largest).clamp(max=1).sqrt())).sqrt(),
        upper=(2 * (largest - rho).clamp_min(0) / (largest - next_)).sqrt(),
        published_upper=2**0.5 * norm / (first - second),
    )
