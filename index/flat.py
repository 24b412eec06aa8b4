"""Exact search: every query is compared with every row. The default."""

from __future__ import annotations

import numpy as np

from index.base import Floats, IndexSettings, Mask, Positions
from index.faiss_library import BLAS_FROM_QUERIES, faiss
from index.rows import Rows, check_search, nothing, tidy

# Allowed rows that are copied together at a time when a batch is searched with a filter (128 MiB at D = 512).
_GATHER_ROWS = 65_536


class FlatIndex:
    """See `VectorIndex`. FAISS's exact kernels over the rows in place."""

    def __init__(self, settings: IndexSettings, dimension: int) -> None:
        self.settings = settings
        self._rows = Rows(dimension)

    @property
    def dimension(self) -> int:
        return self._rows.dimension

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, vectors: Floats) -> None:
        self._rows.append(vectors)

    def replace(self, positions: Positions, vectors: Floats) -> None:
        self._rows.replace(positions, vectors)

    def remove(self, positions: Positions) -> None:
        self._rows.remove(positions)

    def search(
        self, queries: Floats, k: int, *, allowed: Mask | None = None, effort: int | None = None
    ) -> tuple[Floats, Positions]:
        return flat_search(self._rows, queries, k, allowed=allowed)

    def vectors(self, positions: Positions) -> Floats:
        return self._rows.take(positions)

    def matrix(self) -> Floats:
        return self._rows.matrix()


def flat_search(
    rows: Rows, queries: Floats, k: int, *, allowed: Mask | None = None
) -> tuple[Floats, Positions]:
    """Exact answers as `VectorIndex.search` gives them."""
    queries, k = check_search(rows, queries, k, allowed)
    if k == 0 or len(queries) == 0:
        return nothing(queries, k)
    matrix = rows.writable()
    if allowed is None:
        found = faiss.knn(queries, matrix, k, metric=faiss.METRIC_INNER_PRODUCT)
    elif len(queries) < BLAS_FROM_QUERIES:
        found = _search_selected(matrix, queries, k, allowed)
    else:
        found = _search_gathered(matrix, queries, k, np.flatnonzero(allowed))
    return tidy(*found)


def _search_selected(matrix: Floats, queries: Floats, k: int, allowed: Mask) -> tuple[Floats, Positions]:
    """Row by row, skipping what is not allowed. Best for few queries; a selector excludes BLAS."""
    scores, positions = nothing(queries, k)
    selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    pointer = faiss.swig_ptr
    count, dimension = matrix.shape
    faiss.knn_inner_product(
        pointer(queries),
        pointer(matrix),
        dimension,
        len(queries),
        count,
        k,
        pointer(scores),
        pointer(positions),
        selector,
    )
    return scores, positions


def _search_gathered(matrix: Floats, queries: Floats, k: int, chosen: Positions) -> tuple[Floats, Positions]:
    """Copies the chosen rows together, block by block, for BLAS. Best for batches: 50k of 100k rows and
    64 queries take a quarter of the time of the row by row search.
    """
    best = nothing(queries, k)
    for start in range(0, len(chosen), _GATHER_ROWS):
        block = chosen[start : start + _GATHER_ROWS]
        scores, places = faiss.knn(
            queries, matrix[block], min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        best = _merge(best, (scores, np.where(places < 0, -1, block[places])))
    return best


def _merge(one: tuple[Floats, Positions], other: tuple[Floats, Positions]) -> tuple[Floats, Positions]:
    """The best k of two answers [B, k] and [B, <= k]."""
    k = one[0].shape[1]
    scores = np.concatenate((one[0], other[0]), axis=1)
    positions = np.concatenate((one[1], other[1]), axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
