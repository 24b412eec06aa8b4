"""Approximate search along a graph of neighbours (FAISS HNSWFlat): fast for single queries, slow to build.

A graph cannot lose a node: removed and replaced rows stay in it as way stations that are never answered, and
the graph is built anew when they are more than a quarter of it. It is built from the rows when a gallery is
loaded, too. The rows are held twice, once as the master and once in the graph.
"""

from __future__ import annotations

import numpy as np

from index.base import Floats, IndexSettings, Mask, Positions
from index.faiss_library import faiss
from index.flat import flat_search
from index.labels import Labels, complete, few
from index.rows import Rows, as_positions, check_search, nothing, tidy

_DEAD_SHARE = 0.25


class HnswIndex:
    """See `VectorIndex`; `effort` is ef_search, the number of nodes that each query keeps in view."""

    def __init__(self, settings: IndexSettings, dimension: int) -> None:
        self.settings = settings
        self._rows = Rows(dimension)
        self._build()

    def _build(self) -> None:
        self._labels = Labels()
        metric = faiss.METRIC_INNER_PRODUCT
        self._graph = faiss.IndexHNSWFlat(self.dimension, self.settings.hnsw_m, metric)
        self._graph.hnsw.efConstruction = self.settings.ef_construction
        self._link(self._rows.writable())

    def _link(self, rows: Floats) -> None:
        if len(rows):
            self._labels.extend(len(rows))
            self._graph.add(rows)

    @property
    def dimension(self) -> int:
        return self._rows.dimension

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, vectors: Floats) -> None:
        first = len(self)
        self._rows.append(vectors)
        self._link(self._rows.writable()[first:])

    def replace(self, positions: Positions, vectors: Floats) -> None:
        self._rows.replace(positions, vectors)
        if len(positions):
            self._labels.renew(positions)
            self._graph.add(self._rows.take(positions))
            self._clear()

    def remove(self, positions: Positions) -> None:
        positions = np.unique(as_positions(positions, len(self)))
        self._rows.remove(positions)
        self._labels.drop(positions)
        self._clear()

    def _clear(self) -> None:
        if self._labels.dead > _DEAD_SHARE * self._labels.given:
            self._build()

    def search(
        self, queries: Floats, k: int, *, allowed: Mask | None = None, effort: int | None = None
    ) -> tuple[Floats, Positions]:
        if few(allowed):
            return flat_search(self._rows, queries, k, allowed=allowed)
        queries, k = check_search(self._rows, queries, k, allowed)
        if k == 0 or len(queries) == 0:
            return nothing(queries, k)
        options = {"efSearch": max(effort or self.settings.ef_search, k)}
        if allowed is not None or self._labels.dead:
            bits = np.packbits(self._labels.mask(allowed), bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        scores, labels = self._graph.search(queries, k, params=faiss.SearchParametersHNSW(**options))
        found = tidy(scores, self._labels.position_of[labels])
        return complete(found, self._rows, queries, allowed)

    def vectors(self, positions: Positions) -> Floats:
        return self._rows.take(positions)

    def matrix(self) -> Floats:
        return self._rows.matrix()
