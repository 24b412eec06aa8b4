"""BriMPR's losses as pure functions (AAAI 2026; methods.md 3.8).

Letters: B samples, L layers, D width, C classes. Differentiable in their first argument.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.calibration import LayerStatistics, layer_statistics

_PAIRWISE_EPSILON = 1e-6
"""Added to every coordinate of a difference, as torch's pairwise distance does."""


def statistics_distance(features: Tensor, source: LayerStatistics) -> Tensor:
    """How far a batch's features are from the source's, per layer. [B, L, D] -> [L].

    Euclidean distance of the standard deviations plus that of the means; B >= 2.
    """
    batch = layer_statistics(features)
    return _distance(source.std, batch.std) + _distance(source.mean, batch.mean)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return torch.linalg.vector_norm(one - other + _PAIRWISE_EPSILON, dim=-1)


def adaptive_temperature(distance: Tensor, *, scale: float = 0.2, centre: float = 5.0) -> Tensor:
    """The teacher's temperature: 1 for fused features like the source's, up to 1 + scale far from them."""
    return 1 + scale * torch.sigmoid(distance - centre)


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """- sum_c softmax(teacher) log softmax(student) of each row: [B, C], [B, C] -> [B] nats."""
    return -(teacher.softmax(-1) * F.log_softmax(student, dim=-1)).sum(-1)


def instance_contrast(audio: Tensor, video: Tensor, *, temperature: float) -> Tensor:
    """Each sample's two vectors against all others of the batch, both ways. [B, D], [B, D] -> scalar."""
    similarity = F.normalize(audio, dim=-1) @ F.normalize(video, dim=-1).T / temperature
    right = torch.arange(len(audio), device=audio.device)
    return (F.cross_entropy(similarity.T, right) + F.cross_entropy(similarity, right)) / 2
