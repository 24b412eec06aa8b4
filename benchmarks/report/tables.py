"""A section as rows of cells, in the papers' layout: methods by shifts. Markdown and page come from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.report.published import Published, published_for
from benchmarks.report.sections import CLEAN, METRICS, Row, Section, Value, headings, names_of

_NONE, _AVERAGE, _CLEAN = "-", "Avg.", "Clean"
_SPREAD = (_AVERAGE, _CLEAN)
"""Where the spread over seeds is shown; sixteen columns with it would be too wide."""


@dataclass(frozen=True)
class Cell:
    """text; value to sort by; best of its column; gain in points over `source`, where that is meant."""

    text: str
    value: float | None = None
    best: bool = False
    gain: float | None = None


@dataclass(frozen=True)
class Line:
    label: str
    cells: Sequence[Cell]
    published: bool = False


@dataclass(frozen=True)
class Table:
    """corner: heading of the labels; apart: how many columns at the end are no shifts."""

    title: str
    corner: str
    headings: Sequence[str]
    lines: Sequence[Line]
    apart: int = 0
    note: str = ""


@dataclass(frozen=True)
class _Column:
    heading: str
    shifts: Sequence[str]


def _columns(section: Section) -> tuple[list[_Column], str]:
    """Each shift, their mean, clean queries; and what all shifts share."""
    names, shared = headings(section.shifts)
    columns = [_Column(names[shift], [shift]) for shift in section.shifts]
    if len(columns) > 1:
        columns.append(_Column(_AVERAGE, section.shifts))
    if section.has_clean:
        columns.append(_Column(_CLEAN, [CLEAN]))
    return columns, shared


def shift_table(section: Section, metric: str = "r1") -> Table:
    """Methods by shifts, in percent; with the published numbers of R@1 where the setting is the same."""
    columns, shared = _columns(section)
    rows = list(section.rows.values())
    found = [[row.mean_over(column.shifts, metric) for column in columns] for row in rows]
    best = [_best([values[number] for values in found]) for number in range(len(columns))]
    published = published_for(section) if metric == "r1" else None
    lines = []
    for row, values in zip(rows, found, strict=True):
        cells = [
            _cell(
                value,
                best[number],
                section.gain(row, columns[number].shifts, metric),
                spread=columns[number].heading in _SPREAD,
            )
            for number, value in enumerate(values)
        ]
        lines.append(Line(row.label, [*cells, _cost(row)]))
        lines += _published_line(published, row, columns)
    title = f"{METRICS.get(metric, metric)} in percent" + (f", {shared}" if shared else "")
    apart = 1 + section.has_clean + (len(section.shifts) > 1)
    return Table(
        title, "Method", [*(column.heading for column in columns), "Cost"], lines, apart, _note(published)
    )


def _best(values: Sequence[Value | None]) -> float | None:
    """As it is shown: what looks equal is equally good. Where all are, nothing is best."""
    shown = {round(value.mean, 1) for value in values if value is not None}
    return max(shown) if len(shown) > 1 else None


def _cell(value: Value | None, best: float | None, gain: float | None, *, spread: bool = True) -> Cell:
    if value is None:
        return Cell(_NONE)
    around = f" ±{value.spread:.1f}" if spread and value.spread is not None else ""
    return Cell(f"{value.mean:.1f}{around}", value.mean, round(value.mean, 1) == best, gain)


def _cost(row: Row) -> Cell:
    return Cell(_NONE) if row.cost is None else Cell(f"{row.cost:.1f}x", row.cost)


def _published_line(published: Published | None, row: Row, columns: Sequence[_Column]) -> list[Line]:
    theirs = published.rows.get(row.method) if published else None
    if not theirs:
        return []
    cells = []
    for column in columns:
        values = [theirs.get(shift) for shift in column.shifts]
        known = [value for value in values if value is not None]
        mean = statistics.fmean(known) if known and len(known) == len(values) else None
        cells.append(Cell(_NONE) if mean is None else Cell(f"{mean:.1f}", mean))
    return [Line(f"{row.label}, published", [*cells, Cell("")], published=True)]


def _note(published: Published | None) -> str:
    if published is None:
        return ""
    note = f" {published.note}" if published.note else ""
    return f"Published: {published.title}, {published.model}; {published.source}.{note}"


def summary_table(section: Section) -> Table:
    """All metrics: mean of the corrupted shifts, and clean queries; then cost and how batches ended."""
    groups = [(name, shifts) for name, shifts in (("", section.shifts), ("clean ", [CLEAN])) if shifts]
    groups = [(name, shifts) for name, shifts in groups if shifts != [CLEAN] or section.has_clean]
    columns = [(f"{name}{METRICS[metric]}", shifts, metric) for name, shifts in groups for metric in METRICS]
    rows = list(section.rows.values())
    found = [[row.mean_over(shifts, metric) for _, shifts, metric in columns] for row in rows]
    best = [_best([values[number] for values in found]) for number in range(len(columns))]
    lines = [
        Line(
            row.label,
            [
                *(
                    _cell(value, best[number], section.gain(row, columns[number][1], columns[number][2]))
                    for number, value in enumerate(values)
                ),
                _cost(row),
                Cell(", ".join(f"{count} {status}" for status, count in row.statuses.items())),
            ],
        )
        for row, values in zip(rows, found, strict=True)
    ]
    return Table(
        "All metrics, mean of the corrupted shifts",
        "Method",
        [*(c[0] for c in columns), "Cost", "Batches"],
        lines,
        2,
    )


def overview_table(sections: Sequence[Section]) -> Table:
    """Sections by methods: mean R@1 of the corrupted queries (of clean ones where there are no others)."""
    labels = dict.fromkeys(row.label for section in sections for row in section.rows.values())
    lines = []
    for section, name in zip(sections, names_of(sections), strict=True):
        by_label: Mapping[str, Row] = {row.label: row for row in section.rows.values()}
        values = {
            label: by_label[label].mean_over(section.headline, "r1") if label in by_label else None
            for label in labels
        }
        best = _best(list(values.values()))
        cells = [
            _cell(
                value,
                best,
                section.gain(by_label[label], section.headline) if label in by_label else None,
            )
            for label, value in values.items()
        ]
        lines.append(Line(name, cells))
    return Table("Mean R@1 of the corrupted queries, in percent", "Stream", list(labels), lines)
