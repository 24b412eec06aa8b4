"""Figures that say how far a batch of queries is from source-like data.

On the small real encoder the gap, uniformity and SI of a batch rank streams by recall (Spearman about
0.98), full-gallery entropy does not, so these are the figures a stream shows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.losses import modality_gap, softmax_entropy, source_likeness
from adapters.memory import read_memory
from adapters.state import AdaptationState


@torch.no_grad()
def batch_drift(queries: Tensor, candidates: Tensor, *, temperature: float) -> Mapping[str, Tensor]:
    """Scalars of one batch. queries [B, D], candidates [B, D].

    modality_gap      ||mean(q) - mean(c)||, 0..2; rises with the shift
    uniformity        mean ||q_i - mean(q)||, 0..1; falls with the shift (queries crowd together)
    entropy_nats      mean entropy over the batch's candidates, 0..log B; rises with the shift
    source_likeness   mean SI; rises with the shift
    """
    candidates = candidates.to(queries.dtype)
    spread = torch.linalg.vector_norm(queries - queries.mean(0, keepdim=True), dim=-1).mean()
    return {
        "modality_gap": modality_gap(queries, candidates),
        "uniformity": spread,
        "entropy_nats": softmax_entropy(queries @ candidates.T / temperature).mean(),
        "source_likeness": source_likeness(queries, candidates).mean(),
    }


@torch.no_grad()
def drift_against_memory(
    state: AdaptationState, queries: Tensor, candidates: Tensor, *, temperature: float
) -> Mapping[str, Tensor]:
    """`batch_drift`, and the remembered gap that the batch's gap is meant to come back to."""
    figures = dict(batch_drift(queries, candidates, temperature=temperature))
    memory = read_memory(state)
    if memory is not None:
        figures["modality_gap_target"] = memory.gap()
    return figures
