"""Positions for indexes that know their rows by numbers of their own.

IVF and HNSW cannot renumber their rows when one is removed, so a row gets a label when it comes and keeps it;
the position of a label changes. A replaced row gets a new label. Labels are counted from 0 and never used
twice.

Also here: what approximate searches need to keep the promise of `VectorIndex.search`.
"""

from __future__ import annotations

import numpy as np

from index.base import Floats, Mask, Positions
from index.flat import flat_search
from index.rows import Rows

# With so few allowed rows an exact search of them is cheaper than an approximate one that skips the rest.
_FEW_ROWS = 2_048
_FEW_SHARE = 0.05


class Labels:
    """`of_position` [G] and `position_of` [labels given + 1], where -1 stands for a label out of use."""

    def __init__(self) -> None:
        self.of_position: Positions = np.empty(0, dtype=np.int64)
        # The last entry answers for label -1, FAISS's "nothing found".
        self.position_of: Positions = np.full(1, -1, dtype=np.int64)

    @property
    def given(self) -> int:
        return len(self.position_of) - 1

    @property
    def dead(self) -> int:
        return self.given - len(self.of_position)

    def extend(self, count: int) -> Positions:
        """Labels [count] for rows appended."""
        fresh = np.arange(self.given, self.given + count, dtype=np.int64)
        self.of_position = np.concatenate((self.of_position, fresh))
        self._number(fresh[-1:].max(initial=self.given - 1) + 1)
        return fresh

    def renew(self, positions: Positions) -> tuple[Positions, Positions]:
        """Old and new labels [N] of replaced rows."""
        old = self.of_position[positions]
        new = np.arange(self.given, self.given + len(positions), dtype=np.int64)
        self.of_position[positions] = new
        self._number(self.given + len(positions))
        return old, new

    def drop(self, positions: Positions) -> Positions:
        """Labels of removed rows."""
        old = self.of_position[positions]
        self.of_position = np.delete(self.of_position, positions)
        self._number(self.given)
        return old

    def _number(self, given: int) -> None:
        self.position_of = np.full(given + 1, -1, dtype=np.int64)
        self.position_of[self.of_position] = np.arange(len(self.of_position))

    def mask(self, allowed: Mask | None) -> Mask:
        """Labels [given] in use, of the `allowed` [G] positions only."""
        mask = np.zeros(self.given, dtype=np.bool_)
        mask[self.of_position if allowed is None else self.of_position[allowed]] = True
        return mask


def few(allowed: Mask | None) -> bool:
    """Whether an exact search of the allowed rows is the better choice."""
    if allowed is None:
        return False
    return int(allowed.sum()) <= max(_FEW_ROWS, int(_FEW_SHARE * len(allowed)))


def complete(
    found: tuple[Floats, Positions], rows: Rows, queries: Floats, allowed: Mask | None
) -> tuple[Floats, Positions]:
    """Answers queries exactly for which the approximate search came back with too few hits."""
    scores, positions = found
    k = positions.shape[1]
    due = k if allowed is None else min(k, int(allowed.sum()))
    short = (positions[:, :due] < 0).any(axis=1)
    if bool(short.any()):
        scores[short], positions[short] = flat_search(rows, queries[short], k, allowed=allowed)
    return scores, positions
