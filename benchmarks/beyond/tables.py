"""What a protocol found, for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

_PARTS: Mapping[str, str] = {
    "whole": "whole stream",
    "last_third": "last third",
    "after": "after",
    "control": "against control",
    "control_after": "after, against control",
}
_MEAN = "mean"


def table(protocol: str, streams: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Recall of the whole stream; then points over `source` (over the control), with their errors."""
    parts = [part for part in _PARTS if any(part in stream["figures"] for stream in streams)]
    made = Table("stream", "", "method", "seed", "R@1 / R@10", title=f"{protocol}, {title}")
    for part in parts:
        made.add_column(f"{_PARTS[part]}: points R@1, R@10", justify="right")
    for stream in [*streams, *means(streams)]:
        whole = stream["figures"]["whole"]
        # Source is what the others are compared with.
        own = {} if stream["method"] == "source" else stream["figures"]
        gains = [_gain(own.get(part)) for part in parts]
        recall = f"{whole['r1']:.1f} / {whole['r10']:.1f}"
        made.add_row(
            stream["shift"], stream["variant"], stream["method"], str(stream["seed"]), recall, *gains
        )
    return made


def _gain(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return "-"
    return "\n".join(f"{figures[f'gain_r{k}']:+.1f} ±{figures[f'error_r{k}']:.1f}" for k in (1, 10))


def means(streams: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Over names and seeds, by variant and method; none for a method that lacks streams which others have.

    The error of such a mean is at most the mean of the errors, which it is where all streams err alike: they
    ask the same queries.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for stream in streams:
        groups.setdefault((stream["variant"], stream["method"]), []).append(stream)
    most = max((len(group) for group in groups.values()), default=0)
    return [
        {
            "shift": _MEAN,
            "variant": variant,
            "method": method,
            "seed": "",
            "figures": {
                part: _mean([stream["figures"][part] for stream in group])
                for part in group[0]["figures"]
                if all(part in stream["figures"] for stream in group)
            },
        }
        for (variant, method), group in groups.items()
        if len(group) == most > 1
    ]


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(one[name] for one in figures) for name in figures[0]}
