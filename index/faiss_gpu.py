"""Exact search by FAISS on a GPU. Only for a FAISS that was built for one; nothing else imports this file.

The master copy stays in numpy. The GPU's copy is filled again after a change, at the next search.
FAISS's GPU resources may be used by one thread at a time, so each has a lock.
"""

from __future__ import annotations

import threading

from index.base import BadSettings, Floats, IndexSettings, Mask, Positions
from index.faiss_library import faiss
from index.flat import flat_search
from index.rows import Rows, check_search, nothing, tidy

# What a GPU search can return at once (FAISS's own limit).
_MAX_K = 2_048


class GpuFlatIndex:
    """See `VectorIndex`. Searches with a filter are answered from the master copy.

    Raises:
        BadSettings: this FAISS knows no GPU, or none is there.
    """

    def __init__(self, settings: IndexSettings, dimension: int) -> None:
        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
            raise BadSettings(
                "gpu=true needs a FAISS built for GPUs and a GPU that it sees; "
                "install the extra 'gpu', or use kind=torch, which needs no FAISS on a GPU"
            )
        self.settings = settings
        self._rows = Rows(dimension)
        self._resources = faiss.StandardGpuResources()
        self._lock = threading.Lock()
        self._copy = faiss.GpuIndexFlatIP(self._resources, dimension)
        self._current = True

    @property
    def dimension(self) -> int:
        return self._rows.dimension

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, vectors: Floats) -> None:
        self._rows.append(vectors)
        self._current = False

    def replace(self, positions: Positions, vectors: Floats) -> None:
        self._rows.replace(positions, vectors)
        self._current = False

    def remove(self, positions: Positions) -> None:
        self._rows.remove(positions)
        self._current = False

    def search(
        self, queries: Floats, k: int, *, allowed: Mask | None = None, effort: int | None = None
    ) -> tuple[Floats, Positions]:
        if allowed is not None or k > _MAX_K:
            return flat_search(self._rows, queries, k, allowed=allowed)
        queries, k = check_search(self._rows, queries, k, allowed)
        if k == 0 or len(queries) == 0:
            return nothing(queries, k)
        with self._lock:
            self._update()
            return tidy(*self._copy.search(queries, k))

    def _update(self) -> None:
        if not self._current:
            self._copy.reset()
            self._copy.add(self._rows.writable())
            self._current = True

    def vectors(self, positions: Positions) -> Floats:
        return self._rows.take(positions)

    def matrix(self) -> Floats:
        return self._rows.matrix()
