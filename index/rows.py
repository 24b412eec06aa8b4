"""A growing matrix of float32 rows: the master copy behind every backend.

The rows lie in one numpy array, and FAISS and torch search that memory itself. So `matrix()` costs nothing,
and a view that outlives a growth still points at memory that exists (a view into FAISS's own storage would
not).
"""

from __future__ import annotations

import numpy as np

from index.base import BadVector, Floats, Mask, Positions

_GROWTH = 1.5
_MOVED_AT_ONCE = 4_096


class Rows:
    """Rows [G, D], float32, contiguous."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._buffer: Floats = np.empty((0, dimension), dtype=np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def writable(self) -> Floats:
        """The rows themselves [G, D], for libraries that want a plain pointer. Do not write."""
        return self._buffer[: self._count]

    def matrix(self) -> Floats:
        """A read-only view [G, D]."""
        view = self.writable()
        view.flags.writeable = False
        return view

    def append(self, vectors: Floats) -> None:
        vectors = as_rows(vectors, self.dimension)
        end = self._count + len(vectors)
        if end > len(self._buffer):
            self._grow(end)
        self._buffer[self._count : end] = vectors
        self._count = end

    def _grow(self, needed: int) -> None:
        # The first fill is taken exactly: a gallery that is loaded and then only read wastes nothing.
        capacity = needed if self._count == 0 else max(needed, int(_GROWTH * len(self._buffer)))
        grown = np.empty((capacity, self.dimension), dtype=np.float32)
        grown[: self._count] = self._buffer[: self._count]
        self._buffer = grown

    def replace(self, positions: Positions, vectors: Floats) -> None:
        positions = as_positions(positions, self._count)
        vectors = as_rows(vectors, self.dimension)
        if len(positions) != len(vectors):
            raise ValueError(f"{len(positions)} positions but {len(vectors)} rows")
        self._buffer[positions] = vectors

    def remove(self, positions: Positions) -> None:
        positions = as_positions(positions, self._count)
        if positions.size == 0:
            return
        first = int(positions.min())
        keep = np.ones(self._count - first, dtype=np.bool_)
        keep[positions - first] = False
        kept = first + np.flatnonzero(keep)
        # Block by block, so that the rows that move are not all held twice.
        for start in range(0, len(kept), _MOVED_AT_ONCE):
            block = kept[start : start + _MOVED_AT_ONCE]
            self._buffer[first + start : first + start + len(block)] = self._buffer[block]
        self._count = first + len(kept)

    def take(self, positions: Positions) -> Floats:
        """Copies [..., D] of the rows at `positions` [...]."""
        taken: Floats = self.writable()[as_positions(positions, self._count)]
        return taken


def as_rows(vectors: Floats, dimension: int) -> Floats:
    """Contiguous float32 rows [N, D]; raises BadVector for another shape."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise BadVector(f"expected rows of {dimension} numbers, not an array of shape {list(rows.shape)}")
    return rows


def as_positions(positions: Positions, count: int) -> Positions:
    """The positions as int64; raises IndexError when one is not in 0..count-1."""
    array = np.asarray(positions, dtype=np.int64)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= count):
        raise IndexError(f"positions must be in 0..{count - 1}")
    return array


def check_search(rows: Rows, queries: Floats, k: int, allowed: Mask | None) -> tuple[Floats, int]:
    """The queries as rows [B, D], and k' = min(k, G)."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if allowed is not None and (allowed.dtype != np.bool_ or allowed.shape != (len(rows),)):
        raise ValueError(f"allowed must be bool [{len(rows)}], not {allowed.dtype} {list(allowed.shape)}")
    return as_rows(queries, rows.dimension), min(k, len(rows))


def nothing(queries: Floats, k: int) -> tuple[Floats, Positions]:
    """The answer without any hit: [B, k] of score -inf and position -1."""
    shape = (len(queries), k)
    return np.full(shape, -np.inf, dtype=np.float32), np.full(shape, -1, dtype=np.int64)


def tidy(scores: Floats, positions: Positions) -> tuple[Floats, Positions]:
    """Pads get score -inf; equal scores come in order of position. [B, k] -> [B, k], best first as before."""
    scores = np.where(positions < 0, np.float32(-np.inf), scores)
    if bool((scores[:, 1:] == scores[:, :-1]).any()):
        order = np.lexsort((positions, -scores), axis=-1)
        scores = np.take_along_axis(scores, order, axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
    return scores, positions
