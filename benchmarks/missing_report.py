"""Tables and plots from results of benchmarks.missing.

    python -m benchmarks.missing_report RUN.json [RUN.json ...] --out DIR

writes DIR/missing.md and, of what the runs hold, DIR/missing_imputation.png, missing_anchors.png,
missing_retrieval.png, missing_items.png and missing_classification.png. Figures are means over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Document = Mapping[str, Any]

ALL = "all"
TYPICAL = 0.5
"""The rate at which tables look closer, if it was measured; else the middle one."""
QUERIES = ("text", "image", "image+text")
_QUERY_NAMES = {"text": "texts", "image": "pictures", "image+text": "text and picture together"}
_METHODS = (
    "observed",
    "one modality",
    "best modality",
    "no calibration",
    "model",
    "mean",
    "ridge",
    "published",
    "attune",
    "auto",
)
_NAMES = {
    "observed": "what is there only",
    "one modality": "one modality only",
    "best modality": "best modality there",
    "no calibration": "mean of what is there",
    "model": "model's own path",
    "mean": "mean imputed",
    "ridge": "regression",
    "published": "CalMRL as published",
    "attune": "Attune, evened spreads",
    "auto": "what `auto` chooses",
}
_COLOURS = {
    "observed": "tab:grey",
    "one modality": "tab:brown",
    "best modality": "tab:purple",
    "no calibration": "tab:grey",
    "model": "tab:grey",
    "mean": "tab:red",
    "ridge": "tab:blue",
    "published": "tab:orange",
    "attune": "tab:green",
    "auto": "black",
}
_STYLES = {"auto": ":", "ridge": "--", "one modality": "-.", "best modality": "-."}


class BadRuns(Exception):
    """The files are no results of benchmarks.missing."""


# -- figures ---------------------------------------------------------------------------------------------


def average(rows: Iterable[Row], value: Callable[[Row], float | None], **wanted: Any) -> float | None:
    """Mean over the rows with these entries that have the value; None where none has."""
    found = [
        number
        for row in rows
        if all(row.get(key) == entry for key, entry in wanted.items()) and (number := value(row)) is not None
    ]
    return statistics.fmean(found) if found else None


def distinct(rows: Iterable[Row], key: str, known: Sequence[str] = ()) -> list[Any]:
    """The values of an entry, the known ones first in their order."""
    there = list(dict.fromkeys(row[key] for row in rows if key in row))
    return [name for name in known if name in there] + [name for name in there if name not in known]


def of(*keys: str) -> Callable[[Row], float | None]:
    """What stands in a row under a key, in a row within that under the next, and so on; None if nothing."""

    def value(row: Row) -> float | None:
        found: Any = row
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, int | float) else None

    return value


def typical(rates: Sequence[float]) -> float:
    return TYPICAL if TYPICAL in rates else sorted(rates)[len(rates) // 2]


def _rates(document: Document) -> list[float]:
    return list(document["protocol"]["rates"])


# -- tables ----------------------------------------------------------------------------------------------


def markdown(documents: Sequence[Document]) -> str:
    """All tables, a chapter a run. Raises BadRuns."""
    try:
        return "\n\n".join(_chapter(document) for document in documents) + "\n"
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRuns(f"a file is no result of benchmarks.missing: {error!r}") from error


def _chapter(document: Document) -> str:
    rows = document["results"]
    if "cost" in rows:
        return _cost(rows["cost"], document)
    parts = [f"## {document['set']}", f"{document['model']['name']}; {document['note']}."]
    parts.append(_imputation(rows["imputation"], _rates(document)))
    parts.append(_trust(rows["trust"]))
    if rows["anchors"]:
        parts.append(_anchors(rows["anchors"], _rates(document)))
    if "retrieval" in rows:
        parts += [_retrieval(rows["retrieval"], query, _rates(document)) for query in QUERIES]
        parts += [_items(rows["retrieval"], typical(_rates(document))), _query_trust(rows["queries"])]
    if "classification" in rows:
        parts.append(_classification(rows["classification"], _rates(document)))
        parts.append(_answers(rows["classification"], typical(_rates(document))))
    return "\n\n".join(parts)


def _table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))])


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _name(method: str) -> str:
    return _NAMES.get(method, method)


def _imputation(rows: Sequence[Row], rates: Sequence[float]) -> str:
    lines = []
    for method in distinct(rows, "method", _METHODS):
        whole = average(rows, of("error"), fit="complete", hidden=ALL, method=method)
        partial = [
            average(rows, of("error"), fit="incomplete", hidden=ALL, method=method, rate=rate)
            for rate in rates
        ]
        lines.append([_name(method), _cell(whole, 2), *(_cell(value, 2) for value in partial)])
    head = ["", "fitted to complete samples", *(f"rate {rate:g}" for rate in rates)]
    return _table(
        "Relative squared error, mean over modalities; fitted at the rate that is measured", head, lines
    )


def _trust(rows: Sequence[Row]) -> str:
    lines = [
        [
            _name(row["method"]),
            row["given"],
            row["modality"],
            _cell(row["confidence"], 2),
            _cell(row["explained"], 2),
            _cell(row["novelty_and_error"], 2),
        ]
        for row in rows
    ]
    head = ["", "given", "imputed", "confidence", "explained", "rank correlation of novelty and error"]
    return _table(
        "Is an imputation as good as its confidence says, and worse where a sample is novel?", head, lines
    )


def _anchors(rows: Sequence[Row], rates: Sequence[float]) -> str:
    lines = []
    for method in distinct(rows, "method", _METHODS):
        whole = [
            average(rows, of("shift"), fit="complete", hidden=ALL, method=method, rate=rate) for rate in rates
        ]
        lines.append([_name(method), *(_cell(value, 3) for value in whole)])
    for bound, name in (
        ("lower", "lower bound"),
        ("upper", "upper bound"),
        ("published_upper", "published upper"),
    ):
        whole = [average(rows, of(bound), fit="complete", hidden=ALL, rate=rate) for rate in rates]
        lines.append([f"*{name}*", *(_cell(value, 3) for value in whole)])
    outside = sum(row.get("outside", 0) for row in rows)
    head = ["", *(f"rate {rate:g}" for rate in rates)]
    title = "How far incomplete samples' anchors are from complete ones"
    note = f"bounds: of what is there only, at most 1.41; {outside:.0f} samples outside of the sharper ones"
    return _table(f"{title} ({note})", head, lines)


def _retrieval(rows: Sequence[Row], query: str, rates: Sequence[float]) -> str:
    lines = []
    for method in distinct(rows, "method", _METHODS):
        cells = []
        for rate in rates:
            both = [
                average(rows, of(k), fit="complete", hidden=ALL, query=query, method=method, rate=rate)
                for k in ("r1", "r10")
            ]
            cells.append(" / ".join(_cell(value, 1) for value in both))
        lines.append([_name(method), *cells])
    head = ["", *(f"rate {rate:g}" for rate in rates)]
    return _table(
        f"Queries: {_QUERY_NAMES[query]}. R@1 / R@10, every modality hidden at the rate", head, lines
    )


def _items(rows: Sequence[Row], rate: float) -> str:
    kinds = ("only a picture", "only text", "both")
    lines = []
    for method in distinct(rows, "method", _METHODS):
        cells = []
        for query in QUERIES:
            for kind in kinds:
                wanted = {"fit": "complete", "hidden": ALL, "query": query, "method": method, "rate": rate}
                cells.append(_cell(average(rows, of("by_parts", kind, "r10"), **wanted), 1))
        lines.append([_name(method), *cells])
    head = ["", *(f"{query}: {kind}" for query in QUERIES for kind in kinds)]
    return _table(f"R@10 by what the wanted item has, every modality hidden at rate {rate:g}", head, lines)


def _query_trust(rows: Sequence[Row]) -> str:
    lines = [
        [
            _name(row["method"]),
            _QUERY_NAMES[row["query"]],
            _cell(row["r10"], 1),
            _cell(row["r10_usual_half"], 1),
            _cell(row["area_novelty"], 2),
        ]
        for row in rows
    ]
    head = ["", "queries", "R@10", "R@10 of the less novel half", "area under ROC: novelty finds misses"]
    return _table("Does novelty tell which queries miss? (0.5: no)", head, lines)


def _classification(rows: Sequence[Row], rates: Sequence[float]) -> str:
    lines = []
    for fit in ("complete", "incomplete"):
        for method in distinct(rows, "method", _METHODS):
            for hidden in ("audio", "video", ALL):
                cells = [
                    average(rows, of("accuracy"), fit=fit, hidden=hidden, method=method, rate=rate)
                    for rate in rates
                ]
                if any(cell is not None for cell in cells):
                    lines.append([fit, hidden, _name(method), *(_cell(cell, 1) for cell in cells)])
    lines.sort(key=lambda line: (line[0], ("audio", "video", ALL).index(line[1])))
    head = ["fitted to", "hidden", "", *(f"rate {rate:g}" for rate in rates)]
    return _table("Accuracy in percent", head, lines)


def _answers(rows: Sequence[Row], rate: float) -> str:
    figures = ("accuracy", "confident_half", "calibration_error", "area_probability", "area_novelty")
    lines = []
    for hidden in ("audio", "video"):
        for method in distinct(rows, "method", _METHODS):
            wanted = {"fit": "complete", "hidden": hidden, "method": method, "rate": rate}
            cells = [average(rows, of("incomplete", figure), **wanted) for figure in figures]
            digits = (1, 1, 1, 2, 2)
            lines.append([hidden, _name(method), *(_cell(c, d) for c, d in zip(cells, digits, strict=True))])
    head = [
        "hidden",
        "",
        "accuracy",
        "confident half",
        "calibration error",
        "area: 1 - probability finds errors",
        "area: novelty finds errors",
    ]
    return _table(f"Incomplete samples alone, rate {rate:g}", head, lines)


def _cost(rows: Sequence[Row], document: Document) -> str:
    lines = [
        [
            f"{row['of']}: {row['part']}",
            *(_cell(row[key], 2) for key in ("encode_ms", "complete_ms", "novelty_ms")),
            *(_cell(row[key], 2) for key in ("complete_percent", "with_novelty_percent")),
        ]
        for row in rows
        if "encode_ms" in row
    ]
    head = ["batch of 64", "encode, ms", "complete, ms", "novelty, ms", "complete, %", "with novelty, %"]
    parts = [
        "## cost",
        f"{document['machine']['torch_threads']} threads.",
        _table("Completing (anchors, or the head) as a share of encoding", head, lines),
    ]
    parts += [
        f"Fitting {row['of']}: {row['seconds']:.1f} s, of the processor {row['cpu_seconds']:.1f} s, "
        f"{row['iterations']} iterations."
        for row in rows
        if "seconds" in row
    ]
    return "\n\n".join(parts)


# -- plots -----------------------------------------------------------------------------------------------


def plots(documents: Sequence[Document], out: Path) -> list[Path]:
    """PNG files of what the runs hold."""
    import matplotlib as mpl

    mpl.use("Agg")
    measured = [document for document in documents if "cost" not in document["results"]]
    asked = [document for document in measured if "retrieval" in document["results"]]
    named = [document for document in measured if "classification" in document["results"]]
    made = []
    for name, draw, part in (
        ("imputation", _plot_imputation, measured),
        ("anchors", _plot_anchors, [d for d in measured if d["results"]["anchors"]]),
        ("retrieval", _plot_retrieval, asked),
        ("items", _plot_items, asked),
        ("classification", _plot_classification, named),
    ):
        if part:
            made.append(out / f"missing_{name}.png")
            draw(part, made[-1])
    return made


def _grid(rows: int, columns: int, width: float = 3.6, height: float = 3.0) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows + 0.7), squeeze=False, layout="constrained"
    )


def _panels(documents: Sequence[Document], across: int = 3) -> tuple[Any, Any, list[tuple[Any, Document]]]:
    """One panel a run, three in a row."""
    columns = min(across, len(documents))
    figure, axes = _grid(-(-len(documents) // columns), columns, height=2.8)
    for empty in axes.flat[len(documents) :]:
        empty.set_visible(False)
    return figure, axes, list(zip(axes.flat, documents, strict=False))


def _line(
    axes: Any, method: str, rates: Sequence[float], values: Sequence[float | None], **more: Any
) -> None:
    points = [(rate, value) for rate, value in zip(rates, values, strict=True) if value is not None]
    if points:
        style = {"color": _COLOURS[method], "linestyle": _STYLES.get(method, "-"), "label": _plain(method)}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, **{**style, **more})


def _plain(method: str) -> str:
    return _name(method).replace("`", "")


def _finish(figure: Any, axes: Any, path: Path, title: str) -> None:
    from matplotlib import pyplot as plt

    found: dict[str, Any] = {}
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=max(1, 2 * axes.shape[1] - 1),
        fontsize=8,
    )
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_imputation(documents: Sequence[Document], path: Path) -> None:
    figure, axes, panels = _panels(documents)
    for panel, document in panels:
        rows, rates = document["results"]["imputation"], _rates(document)
        for method in distinct(rows, "method", _METHODS):
            for fit, style in (("incomplete", "-"), ("complete", ":")):
                values = [
                    average(rows, of("error"), fit=fit, hidden=ALL, method=method, rate=rate)
                    for rate in rates
                ]
                label = "dotted: fitted to complete samples" if fit == "complete" else _plain(method)
                if method != "mean" or fit == "incomplete":
                    _line(panel, method, rates, values, linestyle=style, label=label)
        panel.set_title(document["set"], fontsize=10)
        panel.set_xlabel("missing rate, in what is fitted and measured", fontsize=8)
        panel.set_ylim(0, 1.6)
    for row in axes:
        row[0].set_ylabel("relative squared error")
    _finish(figure, axes, path, "Error of imputation (1: the mean)")


def _plot_anchors(documents: Sequence[Document], path: Path) -> None:
    figure, axes, panels = _panels(documents)
    for panel, document in panels:
        rows, rates = document["results"]["anchors"], _rates(document)

        def values(value: str, method: str, rows: Any = rows, rates: Any = rates) -> list[float | None]:
            return [
                average(rows, of(value), fit="complete", hidden=ALL, method=method, rate=rate)
                for rate in rates
            ]

        lower, upper = values("lower", "observed"), values("upper", "observed")
        if None not in (*lower, *upper):
            panel.fill_between(rates, lower, upper, color="tab:grey", alpha=0.15, label="bounds of that")
        for method in distinct(rows, "method", _METHODS):
            _line(panel, method, rates, values("shift", method))
        panel.set_title(document["set"], fontsize=10)
        panel.set_xlabel("missing rate")
        panel.set_ylim(bottom=0)
    for row in axes:
        row[0].set_ylabel("distance from the complete anchor", fontsize=9)
    _finish(figure, axes, path, "Anchors of incomplete samples")


def _plot_retrieval(documents: Sequence[Document], path: Path) -> None:
    figure, axes = _grid(len(documents), len(QUERIES))
    for row, document in zip(axes, documents, strict=True):
        rows, rates = document["results"]["retrieval"], _rates(document)
        # Where the first ten nearly always hold the item, only the first tells methods apart.
        k = "r1" if (average(rows, of("r10"), method="attune", hidden=ALL) or 0) > 98 else "r10"
        for panel, query in zip(row, QUERIES, strict=True):
            for method in [name for name in distinct(rows, "method", _METHODS) if name in _COLOURS]:
                wanted = {"fit": "complete", "hidden": ALL, "query": query, "method": method}
                _line(panel, method, rates, [average(rows, of(k), **wanted, rate=rate) for rate in rates])
            panel.set_title(f"{document['set']}: {_QUERY_NAMES[query]}", fontsize=9)
            panel.set_ylim(0, 102)
        row[0].set_ylabel(f"R@{k[1:]}")
    for panel in axes[-1]:
        panel.set_xlabel("missing rate of every modality")
    _finish(figure, axes, path, "Galleries whose items lack modalities, by kind of query")


def _plot_items(documents: Sequence[Document], path: Path) -> None:
    """Bars: recall by what the wanted item has, at the typical rate."""
    figure, axes = _grid(len(documents), len(QUERIES), width=4.2)
    kinds = ("only a picture", "only text", "both")
    shown = ("one modality", "best modality", "no calibration", "ridge", "published", "attune")
    for row, document in zip(axes, documents, strict=True):
        rows, rate = document["results"]["retrieval"], typical(_rates(document))
        k = "r1" if (average(rows, of("r10"), method="attune", hidden=ALL) or 0) > 98 else "r10"
        for panel, query in zip(row, QUERIES, strict=True):
            for place, method in enumerate(shown):
                wanted = {"fit": "complete", "hidden": ALL, "query": query, "method": method, "rate": rate}
                values = [average(rows, of("by_parts", kind, k), **wanted) or 0 for kind in kinds]
                panel.bar(
                    [group + (place - 2.5) * 0.13 for group in range(len(kinds))],
                    values,
                    width=0.13,
                    color=_COLOURS[method],
                    label=_plain(method),
                )
            panel.set_xticks(range(len(kinds)), kinds, fontsize=8)
            panel.set_title(f"{document['set']}: {_QUERY_NAMES[query]}", fontsize=9)
            panel.set_ylim(0, 102)
        row[0].set_ylabel(f"R@{k[1:]} at rate {rate:g}")
    _finish(figure, axes, path, "By what the wanted item has")


def _plot_classification(documents: Sequence[Document], path: Path) -> None:
    hiding = ("audio", "video", ALL)
    figure, axes = _grid(len(documents), len(hiding))
    for row, document in zip(axes, documents, strict=True):
        rows, rates = document["results"]["classification"], _rates(document)
        for panel, hidden in zip(row, hiding, strict=True):
            for method in distinct(rows, "method", _METHODS):
                if method == "mean":
                    continue  # it names one class for every incomplete sample, and would squeeze the others
                _line(panel, method, rates, _above_model(rows, hidden, method, rates))
            panel.set_title(f"{document['set']}: {'both' if hidden == ALL else hidden} hidden", fontsize=9)
            low, high = panel.get_ylim()
            panel.set_ylim(min(low, -1), max(high, 1))  # less than a point is noise, and should look so
        row[0].set_ylabel("points above the model's own path", fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("missing rate")
    _finish(figure, axes, path, "Classification of samples that lack sound or picture")


def _above_model(rows: Sequence[Row], hidden: str, method: str, rates: Sequence[float]) -> list[float | None]:
    """Accuracy less that of the model's own path, in points."""
    found: list[float | None] = []
    for rate in rates:
        wanted = {"fit": "complete", "hidden": hidden, "rate": rate}
        one, other = (average(rows, of("accuracy"), method=name, **wanted) for name in (method, "model"))
        found.append(None if one is None or other is None else one - other)
    return found


# -- command line ----------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.missing_report", description="Tables and plots of missing modalities."
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    made.add_argument("--out", required=True, type=Path, help="folder for missing.md and the plots")
    made.add_argument("--no-plots", action="store_true", help="tables only (plots need matplotlib)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        documents = [json.loads(path.read_text(encoding="utf-8")) for path in options.runs]
        text = markdown(documents)
    except (BadRuns, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "missing.md").write_text(text, encoding="utf-8")
    if not options.no_plots:
        for path in plots(documents, options.out):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
