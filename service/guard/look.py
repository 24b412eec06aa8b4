"""What the guard sees of a batch before anything is learned from it.

Letters: B queries of the batch, n of the sample, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapters.drift import query_figures, sample_figures

SMALLEST_SAMPLE = 8
_TEMPERATURE = 0.02
FIGURES = ("source_likeness", "modality_gap", "uniformity", "top1_similarity", "entropy_nats")
_COMPARED = ("source_likeness", "modality_gap", "top1_similarity")

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Look:
    """One batch under the source model and under the stream's state.

    queries    n, of the sample that everything here is measured on
    frozen     figures under the source model, by name (adapters.drift.sample_figures)
    adapted    the same queries under the stream's state
    rises      adapted minus source, of the figures that tell harm, each query with itself
    errors     their standard errors
    agreement  share of the sample whose nearest item is the same under both
    distance   of the state's parameters from the source's, relative
    centre     mean of the sample's features under the source model, float64 [D]
    scatter    summed variance of those features
    """

    queries: int
    frozen: Figures
    adapted: Figures
    rises: Figures
    errors: Figures
    agreement: float
    distance: float
    centre: np.ndarray
    scatter: float

    @property
    def finite(self) -> bool:
        return bool(
            np.isfinite(
                [self.distance, *self.adapted.values(), *self.rises.values(), *self.errors.values()]
            ).all()
        )

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
    adapted: tuple[Tensor, Tensor] | None,
    agreement: float,
    distance: float,
) -> Look:
    """frozen, adapted: (queries [n, D], candidates [n, D]) of the same n >= 2 queries.

    adapted None: the same as frozen. Waits for the device once.
    """
    queries, candidates = frozen[0].float(), frozen[1]
    source = sample_figures(queries, candidates, temperature=_TEMPERATURE)
    stream, rises = source, [queries.new_zeros(())] * (2 * len(_COMPARED))
    if adapted is not None:
        theirs = adapted[0].float()
        stream = sample_figures(theirs, adapted[1], temperature=_TEMPERATURE)
        ours, others = query_figures(queries, candidates), query_figures(theirs, adapted[1])
        # Not the difference of the figures above: what they correct is the same in both, and adds noise.
        apart = [others[name] - ours[name] for name in _COMPARED]
        rises = [each.mean() for each in apart] + [each.std() / len(queries) ** 0.5 for each in apart]
    scalars = [figures[name] for figures in (source, stream) for name in FIGURES]
    scalars += [*rises, queries.var(0).sum()]
    values = torch.cat([torch.stack(scalars), queries.mean(0)]).double().cpu().numpy()
    count, centre, compared = len(FIGURES), len(scalars), len(_COMPARED)
    risen = values[2 * count : centre - 1].tolist()
    return Look(
        queries=len(queries),
        frozen=dict(zip(FIGURES, values[:count].tolist(), strict=True)),
        adapted=dict(zip(FIGURES, values[count : 2 * count].tolist(), strict=True)),
        rises=dict(zip(_COMPARED, risen[:compared], strict=True)),
        errors=dict(zip(_COMPARED, risen[compared:], strict=True)),
        agreement=agreement,
        distance=distance,
        centre=values[centre:],
        scatter=float(values[centre - 1]),
    )
