"""Approximate search in inverted lists (FAISS IVFFlat): a query meets only the rows of the nearest lists.

Exact below `train_from` items. On reaching it the lists are trained (k-means, fixed seed) on the rows
present, and again when the gallery has grown fourfold since; the call that reaches it waits for that. The
rows are held twice, once as the master and once in the lists.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from index.base import Floats, IndexSettings, Mask, Positions
from index.faiss_library import faiss
from index.flat import flat_search
from index.labels import Labels, complete, few
from index.rows import Rows, as_positions, check_search, nothing, tidy

# FAISS asks for this many training rows of each list.
_ROWS_PER_LIST = 39
_RETRAIN_GROWTH = 4


class IvfIndex:
    """See `VectorIndex`; `effort` is the number of lists that each query visits."""

    def __init__(self, settings: IndexSettings, dimension: int) -> None:
        self.settings = settings
        self._rows = Rows(dimension)
        self._labels = Labels()
        self._lists: Any = None
        self._trained_on = 0

    @property
    def dimension(self) -> int:
        return self._rows.dimension

    @property
    def trained(self) -> bool:
        return self._lists is not None

    @property
    def lists(self) -> int:
        """How many lists there are; 0 before training."""
        return int(self._lists.nlist) if self.trained else 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, vectors: Floats) -> None:
        first = len(self)
        self._rows.append(vectors)
        if len(self) >= self._train_at():
            self._train()
        elif self._lists is not None:
            fresh = self._labels.extend(len(self) - first)
            self._lists.add_with_ids(self._rows.writable()[first:], fresh)

    def _train_at(self) -> int:
        """Items from which the lists are (re)made."""
        if self._lists is not None:
            return _RETRAIN_GROWTH * self._trained_on
        return max(self.settings.train_from, _ROWS_PER_LIST * max(1, self.settings.nlist))

    def _train(self) -> None:
        rows = self._rows.writable()
        automatic = max(1, min(int(4 * math.sqrt(len(rows))), len(rows) // _ROWS_PER_LIST))
        nlist = self.settings.nlist or automatic
        coarse = faiss.IndexFlatIP(self.dimension)
        lists = faiss.IndexIVFFlat(coarse, self.dimension, nlist, faiss.METRIC_INNER_PRODUCT)
        lists.train(rows)
        labels = Labels()
        lists.add_with_ids(rows, labels.extend(len(rows)))
        self._lists, self._labels, self._trained_on = lists, labels, len(rows)

    def replace(self, positions: Positions, vectors: Floats) -> None:
        self._rows.replace(positions, vectors)
        if self._lists is not None and len(positions):
            old, new = self._labels.renew(positions)
            self._lists.remove_ids(old)
            self._lists.add_with_ids(self._rows.take(positions), new)

    def remove(self, positions: Positions) -> None:
        positions = np.unique(as_positions(positions, len(self)))
        self._rows.remove(positions)
        if self._lists is not None and len(positions):
            self._lists.remove_ids(self._labels.drop(positions))

    def search(
        self, queries: Floats, k: int, *, allowed: Mask | None = None, effort: int | None = None
    ) -> tuple[Floats, Positions]:
        if self._lists is None or few(allowed):
            return flat_search(self._rows, queries, k, allowed=allowed)
        queries, k = check_search(self._rows, queries, k, allowed)
        if k == 0 or len(queries) == 0:
            return nothing(queries, k)
        options = {"nprobe": min(effort or self.settings.nprobe, self._lists.nlist)}
        if allowed is not None:
            bits = np.packbits(self._labels.mask(allowed), bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        scores, labels = self._lists.search(queries, k, params=faiss.SearchParametersIVF(**options))
        found = tidy(scores, self._labels.position_of[labels])
        return complete(found, self._rows, queries, allowed)

    def vectors(self, positions: Positions) -> Floats:
        return self._rows.take(positions)

    def matrix(self) -> Floats:
        return self._rows.matrix()
