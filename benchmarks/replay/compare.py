"""Arrays against their recorded values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.replay.golden import Golden, Tolerance


@dataclass(frozen=True)
class ArrayError:
    """The worst deviation of one array.

    relative  max |got - expected| / (|expected| + atol / rtol): right exactly when at most rtol
    absolute  max |got - expected|
    """

    array: str
    relative: float
    absolute: float


@dataclass
class Comparison:
    """What was compared of one golden so far."""

    golden: Golden
    tolerance: Tolerance
    errors: list[ArrayError] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def has(self, array: str) -> bool:
        return array in self.golden.arrays

    def take(self, array: str) -> np.ndarray:
        """An input of the run."""
        self.used.add(array)
        return self.golden.array(array)

    def check(self, array: str, got: Any, expected: Any = None) -> None:
        """Compare with the recorded array, or with what is derived from it.

        Shapes must agree, and NaN must stand where it was recorded.
        """
        self.used.add(array)
        expected = np.asarray(self.golden.array(array) if expected is None else expected, dtype=np.float64)
        self.errors.append(self._error(array, np.asarray(got, dtype=np.float64), expected))

    def _error(self, array: str, got: np.ndarray, expected: np.ndarray) -> ArrayError:
        if got.shape != expected.shape or not np.array_equal(np.isnan(got), np.isnan(expected)):
            return ArrayError(array, np.inf, np.inf)
        held = ~np.isnan(expected)
        if not held.any():
            return ArrayError(array, 0.0, 0.0)
        difference = np.abs(got[held] - expected[held])
        floor = self.tolerance.absolute / self.tolerance.relative
        relative = difference / (np.abs(expected[held]) + floor)
        return ArrayError(array, float(relative.max()), float(difference.max()))

    def worst(self) -> ArrayError:
        if not self.errors:
            return ArrayError("nothing was compared", np.inf, np.inf)
        return max(self.errors, key=lambda error: error.relative)

    def within(self) -> bool:
        return bool(self.worst().relative <= self.tolerance.relative)

    def unused(self) -> list[str]:
        """Recorded arrays that were neither an input nor compared."""
        return sorted(set(self.golden.arrays) - self.used)
