"""Parts of a run in several processes. Nothing heavy is imported here: each process imports this file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from benchmarks.parallel import PartFailed, run_parts


def make(options: Mapping[str, Any]) -> Any:
    """Streams of a part of two: its number, times ten."""

    def streams(part: int) -> Iterator[Mapping[str, Any]]:
        if part == options.get("fails"):
            raise ValueError("no such part")
        if part == options.get("dies"):
            os._exit(7)
        for stream in range(2):
            yield {"value": 10 * part + stream}

    return streams


def test_several_processes_run_every_stream_once() -> None:
    results = run_parts(make, {}, [(part, 2) for part in range(5)], 2)
    assert sorted(result["value"] for result in results) == [
        10 * part + stream for part in range(5) for stream in range(2)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fails": 1}, "ValueError: no such part"), ({"dies": 1}, "ended with code 7")],
)
def test_a_process_that_fails_or_ends_is_said(options: dict[str, int], message: str) -> None:
    with pytest.raises(PartFailed, match=message):
        list(run_parts(make, options, [(0, 2), (1, 2)], 2))
