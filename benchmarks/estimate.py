"""How long the rest of a run takes, from what its methods took so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


class Estimate:
    """Seconds a query, by method; a method that has not run yet counts as the mean of those that have."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._queries: defaultdict[str, int] = defaultdict(int)

    def add(self, method: str, queries: int, seconds: float) -> None:
        self._seconds[method] += seconds
        self._queries[method] += queries

    def seconds_left(self, streams: Iterable[tuple[str, int]], at_once: int = 1) -> float | None:
        """For streams (method, queries) still to run, so many at once; None before the first is over."""
        rates = {name: self._seconds[name] / self._queries[name] for name in self._queries}
        if not rates:
            return None
        usual = sum(rates.values()) / len(rates)
        return sum(rates.get(method, usual) * queries for method, queries in streams) / at_once


def in_words(seconds: float | None) -> str:
    """`about 40 s`, `about 12 min`, `about 3.5 h`; nothing where it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
