"""Tables and a picture from results of benchmarks.classification.

    python -m benchmarks.classification_report RUN.json [RUN.json ...] --markdown OUT.md --plot OUT.png

Runs are merged: a later one replaces the same shift and method of an earlier one. All must be of one model
and data set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KINDS = ("clean", "audio", "video", "both")


class BadRuns(Exception):
    """The files are no results, or do not belong together."""


@dataclass(frozen=True)
class Cell:
    """One method on one shift. accuracy, spread in percent; ratio: milliseconds over those of source."""

    kind: str
    accuracy: float
    spread: float
    seeds: int
    ratio: float | None


@dataclass(frozen=True)
class Results:
    """cells by shift and method, both in the order they were run in."""

    shifts: tuple[str, ...]
    methods: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]

    def of_kind(self, kind: str) -> list[str]:
        """The shifts of a kind."""
        there = {shift for (shift, _), cell in self.cells.items() if cell.kind == kind}
        return [shift for shift in self.shifts if shift in there]

    def mean(self, kind: str, method: str) -> float | None:
        """Mean accuracy over the kind's shifts; None where the method was not run on all of them."""
        cells = [self.cells.get((shift, method)) for shift in self.of_kind(kind)]
        there = [cell.accuracy for cell in cells if cell is not None]
        return statistics.fmean(there) if there and len(there) == len(cells) else None


def merge(documents: Sequence[Mapping[str, Any]]) -> Results:
    """Raises BadRuns: another model or other data, or no results."""
    cells: dict[tuple[str, str], Cell] = {}
    try:
        owners = {
            (run["model"]["fingerprint"], run["data"]["note"], run["data"]["samples"]) for run in documents
        }
        for result in (entry for run in documents for entry in run["results"]):
            cells[result["shift"], result["method"]] = Cell(
                result["kind"],
                result["accuracy"],
                result["accuracy_spread"],
                len(result["seeds"]),
                result["ms_ratio_to_source"],
            )
    except (KeyError, TypeError) as error:
        raise BadRuns(f"a file is no result of benchmarks.classification: it lacks {error}") from error
    if len(owners) > 1:
        raise BadRuns("the runs are of different models or data sets")
    shifts = sorted({shift: None for shift, _ in cells}, key=lambda name: _KINDS.index(_kind(name)))
    return Results(tuple(shifts), tuple(dict.fromkeys(method for _, method in cells)), cells)


def _kind(shift: str) -> str:
    return shift.partition(":")[0]


def markdown(results: Results) -> str:
    """A table of every shift and of the means by kind; the best of a row is bold."""
    lines = [_row("shift", *results.methods), _row(*["---"] * (len(results.methods) + 1))]
    for shift in results.shifts:
        found = [results.cells.get((shift, method)) for method in results.methods]
        lines.append(_row(shift, *_marked([None if cell is None else cell.accuracy for cell in found])))
    for kind in _KINDS:
        count = len(results.of_kind(kind))
        if count > 1:
            means = [results.mean(kind, method) for method in results.methods]
            lines.append(_row(f"**mean of {count} {kind}**", *_marked(means)))
    ratios = [_ratio(results, method) for method in results.methods]
    lines.append(_row("cost of a batch, x source", *("" if r is None else f"{r:.1f}" for r in ratios)))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(values: Sequence[float | None]) -> list[str]:
    best = max((round(value, 1) for value in values if value is not None), default=0.0)
    return ["" if v is None else f"**{v:.1f}**" if round(v, 1) == best else f"{v:.1f}" for v in values]


def _ratio(results: Results, method: str) -> float | None:
    """Median over shifts."""
    ratios = [
        cell.ratio for (_, name), cell in results.cells.items() if name == method and cell.ratio is not None
    ]
    return statistics.median(ratios) if ratios else None


def plot(results: Results, path: Path) -> None:
    """One row a shift, one mark a method: source a black bar, BriMPR diamonds, the others dots."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 0.32 * len(results.shifts) + 1.4))
    for number, method in enumerate(results.methods):
        found = [
            (cell.accuracy, row)
            for row, shift in enumerate(results.shifts)
            if (cell := results.cells.get((shift, method))) is not None
        ]
        accuracies, rows = zip(*found, strict=True)
        axes.scatter(accuracies, rows, label=method, **_mark(method, plt.get_cmap("tab20")(number)))
    axes.set_yticks(range(len(results.shifts)), results.shifts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy in percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mark(method: str, colour: Any) -> dict[str, Any]:
    if method == "source":
        return {"marker": "|", "s": 220, "linewidths": 2.5, "color": "black", "zorder": 3}
    if method.startswith("brimpr"):
        return {"marker": "D", "s": 34, "color": colour, "zorder": 4}
    return {"marker": "o", "s": 26, "color": colour, "zorder": 2}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.classification_report", description="Tables and a picture from results."
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    made.add_argument("--markdown", type=Path, help="write the table there instead of showing it")
    made.add_argument("--plot", type=Path, help="PNG of accuracy by shift and method (needs matplotlib)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        results = merge([json.loads(path.read_text(encoding="utf-8")) for path in options.runs])
    except (BadRuns, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.markdown:
        options.markdown.write_text(markdown(results), encoding="utf-8")
    else:
        print(markdown(results))
    if options.plot:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
