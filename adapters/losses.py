"""Pure functions of features and logits, shared by the methods.

Letters: B queries, M candidates, D features. Rows of features are unit vectors unless said otherwise.
Every function is differentiable in its first argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's softmax, in nats. logits [B, M] -> [B], 0 <= H <= log M."""
    log_probability = F.log_softmax(logits, dim=-1)
    return -(log_probability.exp() * log_probability).sum(-1)


def uniformity(features: Tensor, *, temperature: float = 0.1, mode: Literal["mul", "div"] = "mul") -> Tensor:
    """How close the rows stand to their centre, to be lowered. features [B, D] -> scalar in (0, 1].

    mean_i exp(-t ||q_i - mean(q)||); the gradient flows through the centre (TCR, L_UNI; the released
    code multiplies by t, the slides divide: `mode`).
    """
    distance = torch.linalg.vector_norm(features - features.mean(0, keepdim=True), dim=-1)
    scaled = distance * temperature if mode == "mul" else distance / temperature
    return torch.exp(-scaled).mean()


def modality_gap(queries: Tensor, candidates: Tensor) -> Tensor:
    """Distance between the centres of two sets of rows. [B, D], [M, D] -> scalar in [0, 2].

    Rows are re-normalised first, as in TCR's Delta.
    """
    centre_q = F.normalize(queries, dim=-1).mean(0)
    centre_c = F.normalize(candidates, dim=-1).mean(0)
    return torch.linalg.vector_norm(centre_q - centre_c)


def noise_robust_entropy(
    logits: Tensor, *, ceiling_nats: Tensor, epsilon: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Self-weighted entropy of the reliable rows (TCR, L_REM). logits [B, M] -> (loss, selected [B] bool).

    A row is reliable when its entropy is at most the ceiling E_m; its weight is
    max(0, 1 - H / (E_m + epsilon)), without gradient. The mean divides by the number of reliable rows.
    No reliable row: 0, where the released code gives NaN [ours].
    """
    entropy = softmax_entropy(logits)
    selected = entropy.detach() <= ceiling_nats
    weight = (1.0 - entropy.detach() / (ceiling_nats + epsilon)).clamp_min(0.0)
    return masked_mean(entropy * weight, selected), selected


def source_likeness(queries: Tensor, candidates: Tensor) -> Tensor:
    """TCR's SI of each pair, small = source-like. [B, D], [B, D] -> [B], in about [-4, 4].

    2 ||q_i - c_i|| - ||q_i - mean(q)|| - ||c_i - mean(c)||.
    """
    gap = torch.linalg.vector_norm(queries - candidates, dim=-1)
    spread_q = torch.linalg.vector_norm(queries - queries.mean(0, keepdim=True), dim=-1)
    spread_c = torch.linalg.vector_norm(candidates - candidates.mean(0, keepdim=True), dim=-1)
    return 2 * gap - spread_q - spread_c


def masked_mean(values: Tensor, selected: Tensor) -> Tensor:
    """Mean of the selected entries; 0, with a gradient of zeros, where none is. [B], bool [B] -> scalar.

    A masked sum instead of boolean indexing: no data-dependent shape, so no synchronisation.
    """
    terms = torch.where(selected, values, torch.zeros_like(values))
    return terms.sum() / selected.sum().clamp_min(1)


def reliable_confidence(logits: Tensor) -> Tensor:
    """READ's L_ra: mean of -m log m, m the largest probability of a row. [B, M] -> scalar in [0, 1/e].

    It pushes up where a row is sure (m > 1/e) and holds back where it is not.
    """
    largest = F.log_softmax(logits, dim=-1).amax(-1)
    return -(largest.exp() * largest).mean()


def balance_entropy(logits: Tensor) -> Tensor:
    """READ's L_bal: entropy of the softmax of the summed probabilities, in nats. [B, M] -> scalar.

    Softmax of a sum of probabilities, as released: it saturates as batches grow.
    """
    return softmax_entropy(logits.softmax(-1).sum(0))


def anchor_penalty(
    parameters: Mapping[str, Tensor], anchors: Mapping[str, Tensor], importance: Mapping[str, Tensor]
) -> Tensor:
    """EATA's sum_p F_p (w_p - w_p^0)^2 over the parameters with an importance F. Scalar >= 0."""
    names = [name for name in parameters if name in importance]
    if not names:
        raise ValueError("no parameter has an importance")
    moved = torch.cat([(parameters[name] - anchors[name]).flatten() for name in names])
    return torch.dot(torch.cat([importance[name].flatten() for name in names]), moved.square())
