"""What the last batches of a track came to: the points of its plots.

A history is replaced as a whole, never changed, like the state that it is committed with. It holds only what
an adaptation has come to anyhow: making a point reads no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.state import StateFileError
from service.pipeline import Outcome

KEPT = 240
"""Batches that a track remembers."""
RECENT = 24
"""Of them in the track's card."""
STATUSES = ("applied", "skipped", "undone")
FIGURES = (
    "modality_gap", "modality_gap_target", "uniformity", "entropy_nats", "source_likeness", "shift", "loss",
)  # fmt: skip
_RECENT_FIGURES = ("modality_gap", "modality_gap_target", "uniformity", "entropy_nats", "shift")
_DIGITS, _RECENT_DIGITS = 6, 4
_LARGEST, _SMALLEST = 1e38, 1e-30
_LATEST = 1e11
_TENSORS = {"history.at": torch.float64, "history.counts": torch.int32, "history.figures": torch.float32}


def _no_times() -> np.ndarray:
    return np.empty(0, np.float64)


def _no_counts() -> np.ndarray:
    return np.empty((0, 3), np.int32)


def _no_figures() -> np.ndarray:
    return np.empty((0, len(FIGURES)), np.float32)


@dataclass(frozen=True, eq=False)
class History:
    """n batches, oldest first, n <= KEPT.

    at       float64 [n], seconds since 1970
    counts   int32 [n, 3]: number of the batch among the track's batches (from 1), version after it, index
             of its status in STATUSES
    figures  float32 [n, len(FIGURES)] with at most 6 significant digits; NaN where unknown
    """

    at: np.ndarray = field(default_factory=_no_times)
    counts: np.ndarray = field(default_factory=_no_counts)
    figures: np.ndarray = field(default_factory=_no_figures)

    def __len__(self) -> int:
        return len(self.at)

    def byte_size(self) -> int:
        return self.at.nbytes + self.counts.nbytes + self.figures.nbytes

    def then(self, outcome: Outcome, *, batch: int, version: int, at: float) -> History:
        """This one and the batch that has come to `outcome`, without the oldest beyond KEPT."""
        losses = outcome.losses
        # Methods with one loss alone have no total of several; that loss is an entropy.
        told = {**outcome.drift, "loss": losses.get("total", losses.get("entropy"))}
        count = [_within_int32(batch), _within_int32(version), STATUSES.index(outcome.status)]
        row = [_stored(told.get(name)) for name in FIGURES]
        return History(
            np.append(self.at, round(at, 3))[-KEPT:],
            np.concatenate([self.counts, np.array([count], np.int32)])[-KEPT:],
            np.concatenate([self.figures, np.array([row], np.float32)])[-KEPT:],
        )

    def columns(self) -> dict[str, list[Any]]:
        """Every column by name, all of one length; a figure that is unknown is None."""
        return {
            "at": self.at.tolist(),
            "batch": self.counts[:, 0].tolist(),
            "version": self.counts[:, 1].tolist(),
            "status": [STATUSES[index] for index in self.counts[:, 2].tolist()],
            **{name: self._figure(name, _DIGITS) for name in FIGURES},
        }

    @cached_property
    def recent(self) -> dict[str, list[Any]]:
        """The last RECENT batches, for cards: fewer columns, and numbers of 4 significant digits.

        Kept, because cards are made far more often than batches come. Not to be changed.
        """
        latest = self if len(self) <= RECENT else self._last(RECENT)
        columns = latest.columns()
        return {
            **{name: columns[name] for name in ("at", "version", "status")},
            **{name: latest._figure(name, _RECENT_DIGITS) for name in _RECENT_FIGURES},
        }

    def _last(self, count: int) -> History:
        return History(self.at[-count:], self.counts[-count:], self.figures[-count:])

    def _figure(self, name: str, digits: int) -> list[float | None]:
        return [
            None if math.isnan(value) else float(f"{value:.{digits}g}")
            for value in self.figures[:, FIGURES.index(name)].tolist()
        ]

    # -- files --------------------------------------------------------------------------------------

    def to_tensors(self) -> dict[str, Tensor]:
        """For a file. 48 bytes a batch."""
        columns: Sequence[np.ndarray] = (self.at, self.counts, self.figures)
        return {name: torch.from_numpy(column.copy()) for name, column in zip(_TENSORS, columns, strict=True)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> History:
        """The inverse of `to_tensors`, of a file that may be made up. Raises StateFileError."""
        if tensors.keys() != _TENSORS.keys():
            raise StateFileError("the file's history has other columns")
        if any(tensors[name].dtype != dtype for name, dtype in _TENSORS.items()):
            raise StateFileError("the file's history has numbers of another kind")
        at, counts, figures = (tensors[name].cpu().numpy() for name in _TENSORS)
        if at.ndim != 1 or len(at) > KEPT:
            raise StateFileError(f"the file's history is no list of at most {KEPT} batches")
        if counts.shape != (len(at), 3) or figures.shape != (len(at), len(FIGURES)):
            raise StateFileError("the columns of the file's history differ in length")
        if not np.isfinite(at).all() or (at < 0).any() or (at > _LATEST).any():
            raise StateFileError("the file's history has impossible times")
        if (counts < 0).any() or (counts[:, 2] >= len(STATUSES)).any():
            raise StateFileError("the file's history has impossible counts")
        if np.isinf(figures).any():
            raise StateFileError("the file's history has numbers that are not finite")
        return cls(at.copy(), counts.copy(), figures.copy())


def _stored(value: float | None) -> float:
    """As it will be read again, so that a restart changes nothing; NaN for what is unknown or not finite."""
    if value is None or not abs(value) < _LARGEST:
        return math.nan
    return 0.0 if abs(value) < _SMALLEST else float(f"{value:.{_DIGITS}g}")


def _within_int32(count: int) -> int:
    return min(count, 2**31 - 1)
