"""TCR's memory of source-like pairs (the paper and its release call it a queue).

Four parallel tensors in the state: `memory.likeness` [N] (SI, small = source-like), `memory.queries`
[N, D], `memory.candidates` [N, D], `memory.entropy` [N] in nats. Entries are copies and are never
encoded again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.losses import softmax_entropy, source_likeness
from adapters.state import AdaptationState

_FIELDS = ("likeness", "queries", "candidates", "entropy")


@dataclass(frozen=True)
class Memory:
    likeness: Tensor
    queries: Tensor
    candidates: Tensor
    entropy: Tensor

    def __len__(self) -> int:
        return len(self.likeness)

    def gap(self) -> Tensor:
        """Delta_S: distance between the centres of the remembered queries and candidates. Scalar."""
        centre_q = F.normalize(self.queries, dim=-1).mean(0)
        return torch.linalg.vector_norm(centre_q - F.normalize(self.candidates, dim=-1).mean(0))

    def entropy_ceiling_nats(self) -> Tensor:
        """E_m: the largest remembered entropy. Scalar."""
        return self.entropy.max()


def read_memory(state: AdaptationState) -> Memory | None:
    """The memory, or None while it is empty."""
    if "memory.likeness" not in state.tensors:
        return None
    return Memory(*(state.tensors[f"memory.{name}"] for name in _FIELDS))


def source_like_pairs(queries: Tensor, candidates: Tensor, *, count: int, temperature: float) -> Memory:
    """The `count` pairs of a batch with the smallest SI, ascending. [B, D], [B, D] -> Memory of `count`.

    The entropy is that of a query over the batch's B candidates at `temperature`.
    """
    likeness = source_likeness(queries, candidates)
    entropy = softmax_entropy(queries @ candidates.T / temperature)
    chosen = torch.argsort(likeness, stable=True)[:count]
    return Memory(likeness[chosen], queries[chosen], candidates[chosen], entropy[chosen])


@torch.no_grad()
def remember(
    state: AdaptationState,
    queries: Tensor,
    candidates: Tensor,
    *,
    fraction: float,
    capacity: int,
    temperature: float,
) -> None:
    """Append the floor(fraction * B) most source-like pairs; a full memory keeps the `capacity` smallest SI.

    Below capacity the entries stay in order of arrival. A batch too small to give any entry gives one
    while the memory is empty, where the released code crashes [ours].
    """
    count = int(fraction * len(queries))
    old = read_memory(state)
    if count == 0 and old is None:
        count = 1
    if count == 0:
        return
    new = source_like_pairs(queries, candidates, count=count, temperature=temperature)
    merged = [
        getattr(new, name) if old is None else torch.cat([getattr(old, name), getattr(new, name)])
        for name in _FIELDS
    ]
    if len(merged[0]) >= capacity:
        kept = torch.argsort(merged[0], stable=True)[:capacity]
        merged = [values[kept] for values in merged]
    for name, values in zip(_FIELDS, merged, strict=True):
        state.tensors[f"memory.{name}"] = values.clone()
