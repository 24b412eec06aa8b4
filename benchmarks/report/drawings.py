"""What the pictures of a section show. Each drawing is a matplotlib figure, or None without figures for it.

Colours come by name: a method has one of its own in all pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.report.sections import CLEAN, SOURCE, Row, Section, headings
from benchmarks.runs import Batch, Stream

OTHERS = ("other1", "other2", "other3", "other4")
_NO_METHOD = frozenset(("ink", "muted", "grid", "paper", *OTHERS))
_BARS_IN_A_ROW = 66
_PANELS = 24
"""More shifts than that get no panel each."""
_DASHES = (0, (4, 2))
Colours = Mapping[str, str]
Figured = Callable[[Batch], float | None]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colour_of(row: Row, section: Section, colours: Colours) -> str:
    """Unknown methods, and further settings of one, take turns with the colours that no method has."""
    rows = list(section.rows.values())
    firsts = {one.method: one for one in reversed(rows)}
    own = colours.keys() - _NO_METHOD
    others = [one for one in rows if one is not firsts[one.method] or one.method not in own]
    for number, other in enumerate(others):
        if other is row:
            return colours[OTHERS[number % len(OTHERS)]]
    return colours[row.method]


def _line_of(row: Row) -> dict[str, Any]:
    if row.method == SOURCE:
        return {"linewidth": 1.8, "linestyle": _DASHES, "zorder": 5}
    return (
        {"linewidth": 2.4, "zorder": 4} if row.method.startswith("tcr") else {"linewidth": 1.3, "zorder": 3}
    )


def _name(label: str) -> str:
    return label if len(label) <= 40 else f"{label[:38]}.."


def _legend(figure: Any, axes: Any, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    place = "outside lower center"
    figure.legend(handles, labels, loc=place, ncols=min(columns, len(labels)), fontsize=9, columnspacing=1.4)


def _over_time(streams: Sequence[Stream], of: Figured, window: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Queries answered, and the mean over streams and over the queries of the last `window` batches."""
    known = []
    for stream in streams:
        values = [of(batch) for batch in stream.batches]
        if values and all(value is not None for value in values):
            known.append((np.array([batch.size for batch in stream.batches]), np.array(values, dtype=float)))
    if not known:
        return None
    length = min(len(values) for _, values in known)
    sizes = known[0][0][:length]
    mean = np.mean([values[:length] for _, values in known], axis=0)
    ones = np.ones(min(window, length))
    smooth = np.convolve(mean * sizes, ones, mode="valid") / np.convolve(sizes, ones, mode="valid")
    return np.cumsum(sizes)[len(ones) - 1 :], smooth


def _window(section: Section) -> int:
    """Batches that a point of a curve stands for."""
    lengths = [len(told.stream.batches) for row in section.rows.values() for told in row.told.values()]
    return max(2, round(max(lengths, default=1) / 8))


def _recall(batch: Batch) -> float | None:
    return batch.recall.get("r1")


def _curves(axes: Any, section: Section, shifts: Sequence[str], colours: Colours, of: Figured) -> bool:
    drawn = False
    for row in section.rows.values():
        found = _over_time(row.streams(shifts), of, _window(section))
        if found is not None:
            colour = colour_of(row, section, colours)
            marker = "o" if len(found[0]) == 1 else None
            axes.plot(*found, color=colour, label=_name(row.label), marker=marker, **_line_of(row))
            drawn = True
    return drawn


def draw_stream(section: Section, colours: Colours) -> Any:
    figure = _figure(7.2, 4.6)
    axes = figure.subplots()
    if not _curves(axes, section, section.headline, colours, _recall):
        return None
    axes.set_xlabel("queries answered")
    axes.set_ylabel("R@1 in percent")
    _legend(figure, axes, 5)
    return figure


def draw_streams(section: Section, colours: Colours) -> Any:
    """A panel a shift."""
    shifts = section.shifts
    if not 1 < len(shifts) <= _PANELS:
        return None
    names, _ = headings(shifts)
    columns = 4 if len(shifts) > 6 else 3 if len(shifts) > 4 else 2
    lines = -(-len(shifts) // columns)
    figure = _figure(11, 1.9 * lines + 0.8)
    panels = list(figure.subplots(lines, columns, sharex=True, squeeze=False).flatten())
    drawn = []
    for axes, shift in zip(panels, shifts, strict=False):
        drawn.append(_curves(axes, section, [shift], colours, _recall))
        axes.set_title(_name(names[shift]))
        axes.tick_params(labelsize=8)
    if not any(drawn):
        return None
    for axes in panels[len(shifts) :]:
        axes.set_visible(False)
    for axes in panels[-columns:]:
        axes.set_xlabel("queries answered", fontsize=9)
    figure.supylabel("R@1 in percent", fontsize=9, color=colours["muted"])
    _legend(figure, panels[drawn.index(True)], 10)
    return figure


def draw_drift(section: Section, colours: Colours) -> Any:
    """Modality gap and uniformity of the batches; dotted: the source model on clean queries."""
    figure = _figure(11, 4.2)
    panels = figure.subplots(1, 2)
    titles = {
        "modality_gap": "Modality gap (a shift widens it)",
        "uniformity": "Uniformity (a shift lowers it)",
    }
    drawn = [
        _drift(axes, section, colours, key, title)
        for axes, (key, title) in zip(panels, titles.items(), strict=True)
    ]
    if not any(drawn):
        return None
    _legend(figure, panels[drawn.index(True)], 6)
    return figure


def _drift(axes: Any, section: Section, colours: Colours, key: str, title: str) -> bool:
    def of(batch: Batch) -> float | None:
        return batch.drift.get(key)

    drawn = _curves(axes, section, section.headline, colours, of)
    clean = section.source.streams([CLEAN]) if section.source and section.shifts else []
    found = _over_time(clean, of, 1)
    if found is not None:
        level = float(np.mean(found[1]))
        axes.axhline(level, color=colours["ink"], linewidth=1.2, linestyle=":", label="source, clean")
    axes.set_title(title)
    axes.set_xlabel("queries answered")
    return drawn


def draw_bars(section: Section, colours: Colours) -> Any:
    rows = list(section.rows.values())
    shifts = [*([CLEAN] if section.has_clean else []), *section.shifts]
    names = {**headings(section.shifts)[0], CLEAN: "Clean"}
    lines = -(-len(shifts) * (len(rows) + 1) // _BARS_IN_A_ROW)
    in_a_row = -(-len(shifts) // lines)
    wide = min(11.0, max(5.0, 1.5 + 0.22 * in_a_row * (len(rows) + 1)))
    figure = _figure(wide, 2.4 * lines + 0.7)
    panels = figure.subplots(lines, 1, squeeze=False).flatten()
    for number, axes in enumerate(panels):
        part = shifts[number * in_a_row : (number + 1) * in_a_row]
        for place, row in enumerate(rows):
            _bars(axes, row, part, place, len(rows), colour_of(row, section, colours), colours["ink"])
        axes.set_xticks(range(len(part)), [_name(names[shift]) for shift in part])
        axes.set_xlim(-0.55, in_a_row - 0.45)
        axes.tick_params(axis="x", labelcolor=colours["ink"])
        axes.grid(visible=False, axis="x")
    figure.supylabel("R@1 in percent", fontsize=9, color=colours["muted"])
    _legend(figure, panels[0], 10)
    return figure


def _bars(axes: Any, row: Row, shifts: Sequence[str], place: int, of: int, colour: str, ink: str) -> None:
    """One method's bars over some shifts, with the spread over seeds."""
    values = [row.value(shift, "r1") for shift in shifts]
    spreads = [value.spread or 0.0 if value else 0.0 for value in values]
    width = 0.84 / of
    axes.bar(
        [number - 0.42 + (place + 0.5) * width for number in range(len(shifts))],
        [np.nan if value is None else value.mean for value in values],
        0.9 * width,
        color=colour,
        label=_name(row.label),
        yerr=spreads if any(spreads) else None,
        error_kw={"ecolor": ink, "elinewidth": 0.7},
    )


def draw_cost(section: Section, colours: Colours) -> Any:
    """Gain over source against cost; hollow: what it does to clean queries."""
    others = [row for row in section.rows.values() if row.method != SOURCE]
    points = [(row, row.cost, section.gain(row, section.headline)) for row in others]
    known = [(row, cost, gain) for row, cost, gain in points if cost is not None and gain is not None]
    if not known:
        return None
    figure = _figure(7.2, 4.6)
    axes = figure.subplots()
    axes.axhline(0, color=colours["source"], linewidth=1.4, linestyle=_DASHES)
    for row, cost, gain in known:
        colour = colour_of(row, section, colours)
        clean = section.gain(row, [CLEAN]) if section.shifts and section.has_clean else None
        if clean is not None:
            axes.plot([cost, cost], [gain, clean], color=colour, linewidth=1, alpha=0.45, zorder=2)
            axes.scatter(
                [cost], [clean], s=34, facecolors="none", edgecolors=colour, linewidths=1.4, zorder=3
            )
        axes.scatter([cost], [gain], s=60, color=colour, zorder=4)
    axes.margins(y=0.14)
    axes.set_xlim(0, 1.2 * max(1.0, *(cost for _, cost, _ in known)))
    _label_points(axes, [(row.label, cost, gain) for row, cost, gain in known], colours["ink"])
    axes.set_xlabel("time of a batch, times source")
    axes.set_ylabel("R@1 over source, points")
    return figure


def _label_points(axes: Any, points: Sequence[tuple[str, float, float]], ink: str) -> None:
    """Names to the right of the points, moved up where they would lie on each other."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    apart, reach = 0.06 * (high - low), 0.13 * (right - left)
    placed: list[tuple[float, float]] = []
    for label, cost, gain in sorted(points, key=lambda point: point[2]):
        near = [at for other, at in placed if abs(other - cost) < reach]
        at = max([gain, *(other + apart for other in near if other + apart > gain)])
        placed.append((cost, at))
        offset = {"xytext": (8, 0), "textcoords": "offset points"}
        axes.annotate(_name(label), (cost, at), va="center", fontsize=9, color=ink, **offset)
