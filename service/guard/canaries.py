"""Known query-answer pairs: what the adapted model makes of them, and what the source model does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from encoders.base import Adaptable

CANARY_DEPTH = 100
"""Hits within which the right answer is looked for; beyond, it counts as not found."""


@dataclass(frozen=True)
class CanaryCheck:
    """0-based ranks of the right answers, one a canary; None: not among the first CANARY_DEPTH."""

    adapted: Sequence[int | None]
    source: Sequence[int | None]

    def fall(self) -> float:
        """Mean reciprocal rank, source minus adapted, -1..1; 0 without canaries."""
        return mean_reciprocal_rank(self.source) - mean_reciprocal_rank(self.adapted)


CheckCanaries = Callable[[Mapping[str, Tensor]], CanaryCheck]
"""From adapted parameters to the check."""


def mean_reciprocal_rank(ranks: Sequence[int | None]) -> float:
    """Mean of 1 / (rank + 1), not found counts 0. 0..1; 0 without any."""
    if not ranks:
        return 0.0
    return sum(0.0 if rank is None else 1.0 / (rank + 1) for rank in ranks) / len(ranks)


class _Hits(Protocol):
    @property
    def positions(self) -> np.ndarray: ...


class _Searchable(Protocol):
    def search(self, features: Tensor, k: int) -> _Hits: ...


class Canaries:
    """The canaries of one track, prepared: their inputs and the gallery positions of their answers.

    The source model's ranks are computed once, so make this anew whenever the gallery changes.
    """

    def __init__(self, *, tower: Adaptable, inputs: Any, answers: np.ndarray, side: _Searchable) -> None:
        """answers: int64 [C], the position of each canary's answer."""
        self._tower, self._inputs, self._answers, self._side = tower, inputs, answers, side
        self._source: Sequence[int | None] | None = None

    @torch.no_grad()
    def check(self, parameters: Mapping[str, Tensor]) -> CanaryCheck:
        if self._source is None:
            self._source = self._ranks(None)
        return CanaryCheck(self._ranks(parameters), self._source)

    def _ranks(self, parameters: Mapping[str, Tensor] | None) -> list[int | None]:
        found = self._side.search(self._tower.encode(self._inputs, parameters), CANARY_DEPTH).positions
        right = found == self._answers[:, None]
        return [
            int(rank) if hit else None
            for rank, hit in zip(right.argmax(axis=1), right.any(axis=1), strict=True)
        ]
