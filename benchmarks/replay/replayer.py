"""What a replayer is; the table of all of them is in replayers.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.replay.compare import Comparison
from benchmarks.replay.golden import Golden


@dataclass(frozen=True)
class Replayer:
    """matches(golden) decides by what the golden holds; run(comparison) replays and compares."""

    name: str
    matches: Callable[[Golden], bool]
    run: Callable[[Comparison], None]
