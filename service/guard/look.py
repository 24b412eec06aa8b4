"""What the guard sees of a batch before anything is learned from it.

Letters: B queries of the batch, n of the sample, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapters.drift import sample_figures

SMALLEST_SAMPLE = 8
_TEMPERATURE = 0.02
_NAMES = ("source_likeness", "modality_gap", "uniformity", "top1_similarity", "entropy_nats")

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Look:
    """One batch under the source model and under the stream's state.

    queries    n, of the sample that everything here is measured on
    frozen     figures under the source model, by name (adapters.drift.sample_figures)
    adapted    the same queries under the stream's state
    agreement  share of the sample whose nearest item is the same under both
    distance   of the state's parameters from the source's, relative
    centre     mean of the sample's features under the source model, float64 [D]
    scatter    summed variance of those features
    """

    queries: int
    frozen: Figures
    adapted: Figures
    agreement: float
    distance: float
    centre: np.ndarray
    scatter: float

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([self.distance, *self.adapted.values()]).all())

    @property
    def source_is_finite(self) -> bool:
        return bool(np.isfinite([self.scatter, *self.frozen.values()]).all())


def sample_rows(batch: int, fraction: float) -> np.ndarray:
    """Which rows of a batch the source model sees: int64 [n], evenly spread, ascending."""
    count = min(batch, max(SMALLEST_SAMPLE, round(batch * fraction)))
    return np.arange(count, dtype=np.int64) * batch // count


@torch.no_grad()
def look_at(
    *,
    frozen: tuple[Tensor, Tensor],
    adapted: tuple[Tensor, Tensor],
    agreement: float,
    distance: float,
) -> Look:
    """frozen, adapted: (queries [n, D], candidates [n, D]) of the same n >= 2 queries.

    Waits for the device once.
    """
    queries = frozen[0].float()
    measured = [
        torch.stack([figures[name] for name in _NAMES])
        for figures in (
            sample_figures(queries, frozen[1], temperature=_TEMPERATURE),
            sample_figures(adapted[0].float(), adapted[1], temperature=_TEMPERATURE),
        )
    ]
    scatter = queries.var(0).sum().reshape(1)
    values = torch.cat([*measured, scatter, queries.mean(0)]).double().cpu().numpy()
    count = len(_NAMES)
    return Look(
        queries=len(queries),
        frozen=dict(zip(_NAMES, values[:count].tolist(), strict=True)),
        adapted=dict(zip(_NAMES, values[count : 2 * count].tolist(), strict=True)),
        agreement=agreement,
        distance=distance,
        centre=values[2 * count + 1 :],
        scatter=float(values[2 * count]),
    )
