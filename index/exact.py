"""The reference: exact search in float64 numpy, written to be obviously right. For tests and recall.

Nothing that serves uses it.
"""

from __future__ import annotations

import numpy as np

from index.base import Floats, Mask, Positions


def exact_search(
    matrix: Floats, queries: Floats, k: int, *, allowed: Mask | None = None
) -> tuple[Floats, Positions]:
    """matrix [G, D], queries [B, D] -> scores and positions [B, min(k, G)], as `VectorIndex.search`."""
    scores = queries.astype(np.float64) @ matrix.astype(np.float64).T  # [B, G]
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(matrix))]
    best = np.take_along_axis(scores, order, axis=1)
    order[np.isneginf(best)] = -1
    return best.astype(np.float32), order.astype(np.int64)


def disagreement(
    matrix: Floats,
    queries: Floats,
    found: tuple[Floats, Positions],
    *,
    k: int,
    allowed: Mask | None = None,
    tolerance: float = 1e-5,
) -> str | None:
    """What is wrong with `found` as an exact answer, or None.

    Aware of ties: rows whose scores differ by less than `tolerance` may stand for each other, but every score
    must belong to its position, no position may come twice, and none may be forbidden.
    """
    scores, positions = found
    expected, _ = exact_search(matrix, queries, k, allowed=allowed)
    if scores.shape != expected.shape or positions.shape != expected.shape:
        return f"shapes {scores.shape} and {positions.shape}, expected {expected.shape}"
    if not np.array_equal(np.isneginf(scores), positions < 0):
        return "scores of -inf and positions of -1 do not coincide"
    if not np.allclose(scores, expected, rtol=0, atol=tolerance):
        return f"scores {scores} are not the best ones, {expected}"
    complaints = (
        _complaint(matrix, query, (row_scores, row), allowed=allowed, tolerance=tolerance)
        for query, row_scores, row in zip(queries, scores, positions, strict=True)
    )
    return next((complaint for complaint in complaints if complaint), None)


def _complaint(
    matrix: Floats,
    query: Floats,
    found: tuple[Floats, Positions],
    *,
    allowed: Mask | None,
    tolerance: float,
) -> str | None:
    """What is wrong with one query's scores and positions [k]."""
    scores, row = found
    hits = row[row >= 0]
    if len(set(hits.tolist())) != len(hits):
        return f"a position comes twice in {row}"
    if allowed is not None and not allowed[hits].all():
        return f"a forbidden position in {row}"
    own = matrix[hits].astype(np.float64) @ query.astype(np.float64)
    if not np.allclose(own, scores[row >= 0], rtol=0, atol=tolerance):
        return f"scores {scores} do not belong to positions {row}"
    return None


def recall(found: Positions, expected: Positions) -> float:
    """Mean share of the expected positions [B, k] that were found [B, k], in 0..1; pads do not count."""
    shares = [
        len(set(mine.tolist()) & set(right[right >= 0].tolist())) / max(1, int((right >= 0).sum()))
        for mine, right in zip(found, expected, strict=True)
    ]
    return float(np.mean(shares))
