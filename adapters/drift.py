"""Figures that say how far a batch of queries is from source-like data.

On the small real encoder the gap, uniformity and SI of a batch rank streams by recall (Spearman about
0.98), full-gallery entropy does not, so these are the figures a stream shows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
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


@torch.no_grad()
def sample_figures(queries: Tensor, candidates: Tensor, *, temperature: float) -> Mapping[str, Tensor]:
    """Scalars of a sample of n queries that do not depend on n, so that samples of any size compare.

    queries [n, D] unit rows, candidates [n, D], n >= 2. The figures are those of `batch_drift`, corrected for
    the centre being that of n rows only (a sample of 16 shows 3 % less spread than the stream has, and a
    wider gap), and

    top1_similarity   mean cosine of a query with its candidate; falls with the shift

    entropy_nats alone keeps its dependence on n: it is at most log n.
    """
    candidates = F.normalize(candidates.to(queries.dtype), dim=-1)
    count = len(queries)
    offsets = queries - candidates
    spread = _spread(queries)
    apart = torch.linalg.vector_norm(offsets, dim=-1).mean()
    # E ||mean of n||^2 = ||mean||^2 + variance / n, solved for ||mean||^2.
    squared = (count * offsets.mean(0).square().sum() - offsets.square().sum(-1).mean()) / (count - 1)
    return {
        "modality_gap": squared.clamp_min(0).sqrt(),
        "uniformity": spread,
        "entropy_nats": softmax_entropy(queries @ candidates.T / temperature).mean(),
        "source_likeness": 2 * apart - spread - _spread(candidates),
        "top1_similarity": (queries * candidates).sum(-1).mean(),
    }


@torch.no_grad()
def query_figures(queries: Tensor, candidates: Tensor) -> Mapping[str, Tensor]:
    """What each query adds to three of the figures: vectors [n] whose means are the figures, uncorrected.

    queries [n, D] unit rows, candidates [n, D]. The gap is split along its own direction. What two
    models differ by on the same queries has the standard error of the differences of these vectors.
    """
    candidates = F.normalize(candidates.to(queries.dtype), dim=-1)
    offsets = queries - candidates
    return {
        "source_likeness": source_likeness(queries, candidates),
        "modality_gap": offsets @ F.normalize(offsets.mean(0), dim=0),
        "top1_similarity": (queries * candidates).sum(-1),
    }


def _spread(rows: Tensor) -> Tensor:
    """Mean distance of n rows to their centre, as of endlessly many. [n, D] -> scalar."""
    distances = torch.linalg.vector_norm(rows - rows.mean(0, keepdim=True), dim=-1)
    return distances.mean() * (len(rows) / (len(rows) - 1)) ** 0.5


@torch.no_grad()
def relative_distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """||one - other|| / ||other|| over all parameters together. Scalar, 0 where they are identical."""
    ours, theirs = [one[name] for name in other], list(other.values())
    apart = torch.stack(list(torch._foreach_norm(torch._foreach_sub(ours, theirs))))
    length = torch.stack(list(torch._foreach_norm(theirs)))
    return torch.linalg.vector_norm(apart) / torch.linalg.vector_norm(length)
