"""Two methods on the same queries, compared query by query.

Letters: N answers, of which some may be to the same query. Ranks are 0-based, of the best right item.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
_AT = (1, 10)


def compare(ranks: Whole, others: Whole, queries: Whole) -> Mapping[str, float]:
    """Recall at 1 and 10 of both, how much the first is above the second, and the standard error of that.

    ranks, others, queries [N]: of the same answers in the same order. All but `answers` in percent or points.
    """
    if not len(ranks) == len(others) == len(queries) > 0:
        raise ValueError(f"{len(ranks)}, {len(others)} and {len(queries)} answers cannot be compared")
    figures: dict[str, float] = {"answers": float(len(ranks))}
    for k in _AT:
        hits, theirs = ranks < k, others < k
        apart = hits.astype(np.float64) - theirs
        figures |= {
            f"r{k}": 100 * float(hits.mean()),
            f"other_r{k}": 100 * float(theirs.mean()),
            f"gain_r{k}": 100 * float(apart.mean()),
            f"error_r{k}": 100 * error_of_mean(apart, queries),
        }
    return figures


def error_of_mean(values: NDArray[np.float64], queries: Whole) -> float:
    """Standard error of the mean of values [N], those of one query taken as one draw; 0 of a single query.

    With every query once it is s / sqrt(N).
    """
    _, group = np.unique(queries, return_inverse=True)
    sums = np.bincount(group, weights=values - values.mean())
    count = len(sums)
    if count < 2:
        return 0.0
    return float(np.sqrt(np.square(sums).sum() * count / (count - 1)) / len(values))
