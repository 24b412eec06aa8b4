"""What the queries of a stream look like to the source model, learned from its own batches.

A batch is compared by its centre: the squared distance of two means, over what sampling alone makes of it,
    ratio = ||m_b - m_r||^2 / (scatter_b / n_b + scatter_r / n_r)
is 1 on average where both come from the same distribution, whatever the encoder. With 16 queries it tells
shifts apart for which SI, gap and similarity need a hundred (docs/guard.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.guard.look import Figures, Look

_DECIMALS = 7
"""Of the centre as it is kept: a restored reference is the same one, and its JSON stays short."""
_USUAL_WEIGHT = 1 / 16


@dataclass(frozen=True, eq=False)
class Reference:
    """Batches pooled.

    centre, scatter  mean feature [D] and summed variance under the source model
    queries          how many queries those stand for (old ones fade)
    batches          how many batches went in
    usual            mean ratio of these batches to those before them, at least 1
    figures          their mean figures under the source model
    """

    centre: np.ndarray
    scatter: float
    queries: float
    batches: int
    usual: float
    figures: Figures

    @classmethod
    def of(cls, look: Look) -> Reference:
        return cls(look.centre.round(_DECIMALS), look.scatter, look.queries, 1, 1.0, look.frozen)

    def ratio(self, look: Look) -> float:
        """How far a batch is from these, see the module's head; 1: as far as chance takes it."""
        apart = float(np.square(look.centre - self.centre).sum())
        by_chance = look.scatter / look.queries + self.scatter / self.queries
        return apart / max(by_chance, 1e-12)

    def joined(self, look: Look, *, window_batches: int) -> Reference:
        """With one more batch. Older ones fade so that about `window_batches` count."""
        old = min(self.queries, (window_batches - 1) * look.queries)
        share = look.queries / (old + look.queries)
        ratio_share = max(1 / self.batches, _USUAL_WEIGHT)
        return Reference(
            centre=(self.centre + share * (look.centre - self.centre)).round(_DECIMALS),
            scatter=self.scatter + share * (look.scatter - self.scatter),
            queries=old + look.queries,
            batches=self.batches + 1,
            usual=max(1.0, self.usual + ratio_share * (self.ratio(look) - self.usual)),
            figures={
                name: value + share * (look.frozen[name] - value) for name, value in self.figures.items()
            },
        )

    def to_plain(self) -> dict[str, Any]:
        return {
            "centre": self.centre.tolist(),
            "scatter": self.scatter,
            "queries": self.queries,
            "batches": self.batches,
            "usual": self.usual,
            "figures": dict(self.figures),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Reference:
        return cls(**{**plain, "centre": np.asarray(plain["centre"], dtype=np.float64)})
