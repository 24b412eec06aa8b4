"""Search by torch: one matrix product on a device, then top-k. Needs no FAISS on a GPU.

With `coarse="bf16"` the first pass multiplies in bfloat16 and the best `rerank` rows of each query are scored
again in fp32. Rows whose coarse scores all round to the same value may be missed in a very dense
neighbourhood. `coarse="fp32"` is exact. The master copy stays in numpy; a search brings the device's copy up
to date first.
"""

from __future__ import annotations

import numpy as np
import torch

from index.base import BadSettings, Floats, IndexSettings, Mask, Positions
from index.rows import Rows, check_search, nothing, tidy

# Scores of one pass [B, G] hold at most so many numbers (256 MiB in bf16); more queries go in several passes.
_PASS_SCORES = 1 << 27
_RERANK_MIN = 40
_RERANK_TIMES_K = 4


class TorchIndex:
    """See `VectorIndex`; `effort` is the number of rows of each query that are scored again."""

    def __init__(self, settings: IndexSettings, dimension: int, device: str) -> None:
        self.settings = settings
        self._rows = Rows(dimension)
        try:
            self._device = torch.device(device)
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise BadSettings(f"the torch index cannot use device {device!r}: {error}") from error
        self._coarse = _Mirror(dimension, torch.bfloat16, self._device)
        self._fine = _Mirror(dimension, torch.float32, self._device)

    @property
    def dimension(self) -> int:
        return self._rows.dimension

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, vectors: Floats) -> None:
        self._rows.append(vectors)

    def replace(self, positions: Positions, vectors: Floats) -> None:
        self._rows.replace(positions, vectors)
        self._forget(positions)

    def remove(self, positions: Positions) -> None:
        self._rows.remove(positions)
        self._forget(positions)

    def _forget(self, positions: Positions) -> None:
        if len(positions):
            self._coarse.forget(int(np.min(positions)))
            self._fine.forget(int(np.min(positions)))

    def search(
        self, queries: Floats, k: int, *, allowed: Mask | None = None, effort: int | None = None
    ) -> tuple[Floats, Positions]:
        queries, k = check_search(self._rows, queries, k, allowed)
        if k == 0 or len(queries) == 0:
            return nothing(queries, k)
        forbidden = None if allowed is None else torch.from_numpy(~allowed).to(self._device)
        at_once = max(1, _PASS_SCORES // len(self))
        parts = [
            self._search_pass(queries[start : start + at_once], k, forbidden, effort)
            for start in range(0, len(queries), at_once)
        ]
        scores = np.concatenate([part[0] for part in parts])
        positions = np.concatenate([part[1] for part in parts])
        positions[np.isneginf(scores)] = -1
        return tidy(scores, positions)

    @torch.inference_mode()
    def _search_pass(
        self, queries: Floats, k: int, forbidden: torch.Tensor | None, effort: int | None
    ) -> tuple[Floats, Positions]:
        wanted = torch.from_numpy(np.array(queries)).to(self._device)
        fine = self._fine.update(self._rows)
        if self.settings.coarse == "fp32":
            scores, positions = _best(wanted, fine, k, forbidden)
        else:
            again = effort or self.settings.rerank or max(_RERANK_MIN, _RERANK_TIMES_K * k)
            again = min(max(again, k), len(self))
            coarse = self._coarse.update(self._rows)
            rough, places = _best(wanted.to(torch.bfloat16), coarse, again, forbidden)
            scores, positions = _score_again(wanted, fine, rough, places, k)
        return scores.cpu().numpy(), positions.cpu().numpy()

    def vectors(self, positions: Positions) -> Floats:
        return self._rows.take(positions)

    def matrix(self) -> Floats:
        return self._rows.matrix()


def _best(
    queries: torch.Tensor, rows: torch.Tensor, k: int, forbidden: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """queries [B, D], rows [G, D] -> the k best scores and positions [B, k]."""
    scores = queries @ rows.T  # [B, G]
    if forbidden is not None:
        scores.masked_fill_(forbidden, -torch.inf)
    best, positions = torch.topk(scores, k, dim=1)
    return best, positions


def _score_again(
    queries: torch.Tensor, rows: torch.Tensor, rough: torch.Tensor, places: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best by fp32 of the rows at `places` [B, R]."""
    scores = torch.bmm(rows[places], queries.unsqueeze(2)).squeeze(2)  # [B, R]
    scores.masked_fill_(torch.isneginf(rough), -torch.inf)
    best, order = torch.topk(scores, k, dim=1)
    return best, torch.gather(places, 1, order)


class _Mirror:
    """A copy of the rows in one dtype on one device, brought up to date from the first row that changed."""

    def __init__(self, dimension: int, dtype: torch.dtype, device: torch.device) -> None:
        self._buffer = torch.empty((0, dimension), dtype=dtype, device=device)
        self._current = 0
        self._shares_memory = dtype == torch.float32 and device.type == "cpu"

    def forget(self, first: int) -> None:
        """Rows from `first` on have changed."""
        self._current = min(self._current, first)

    def update(self, rows: Rows) -> torch.Tensor:
        """The copy [G, D]."""
        source = torch.from_numpy(rows.writable())
        if self._shares_memory:
            return source
        count = len(rows)
        if count > len(self._buffer):
            grown = torch.empty((count, rows.dimension), dtype=self._buffer.dtype, device=self._buffer.device)
            grown[: self._current] = self._buffer[: self._current]
            self._buffer = grown
        if self._current < count:
            self._buffer[self._current : count] = source[self._current :].to(self._buffer.device)
        self._current = count
        return self._buffer[:count]
