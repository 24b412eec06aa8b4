"""The report as one HTML page that needs nothing else: style, script and pictures are in it.

Everything that comes from a run passes `escape`; a policy in the page lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from benchmarks.report.plots import DARK, LIGHT, Plot
from benchmarks.report.sections import Section, names_of
from benchmarks.report.tables import Cell, Line, Table, overview_table, shift_table, summary_table
from benchmarks.runs import Run

_STEPS = (0.5, 2.0, 5.0)
"""Points over source from which a cell is shaded more."""
_WIDE = ("bars", "drift", "streams")


def page(sections: Sequence[Section], plots: Mapping[int, Sequence[Plot]]) -> str:
    """plots: by the section's place."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    names = names_of(sections)
    body = [_head(sections)]
    if len(sections) > 1:
        links = [f"#section-{number}" for number in range(len(sections))]
        body.append(f"<section><h2>Overview</h2>{_table(overview_table(sections), links)}</section>")
    for number, (section, name) in enumerate(zip(sections, names, strict=True)):
        body.append(_section(section, name, f"section-{number}", plots.get(number, ())))
    body.append(_runs(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>Retrieval under query shift</title>\n"
        f"<style>\n{_file('page.css')}{_colours()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return files("benchmarks.report").joinpath(name).read_text(encoding="utf-8")


def _colours() -> str:
    def rules(colours: Mapping[str, str]) -> str:
        return " ".join(f"--{name.replace('_', '-')}: {value};" for name, value in colours.items())

    dark = "--panel: #1e2228; --link: #74b0f4; --good: #38d9a9; --bad: #ff8787;"
    return (
        f":root {{ {rules(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {rules(DARK)} {dark} }} }}\n"
    )


_KEY = (
    '<p class="note">Shaded: points over the source model, '
    '<span class="key down3">-5</span> <span class="key down2">-2</span> <span class="key down1">-0.5</span> '
    '<span class="key up1">+0.5</span> <span class="key up2">+2</span> <span class="key up3">+5</span> '
    "and more. Bold: best of the column, in the overview of the row.</p>"
)


def _head(sections: Sequence[Section]) -> str:
    runs = _distinct(sections)
    streams = sum(len(row.told) for section in sections for row in section.rows.values())
    dates = sorted({run.made_at[:10] for run in runs if run.made_at})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else ""
    facts = [f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}", f"{streams} streams", when]
    return (
        "<header><h1>Retrieval under query shift</h1>"
        f'<p class="lead">{escape(", ".join(fact for fact in facts if fact))}. Recall and mAP in percent. '
        "Avg. is the mean of the corrupted shifts, for methods that ran on all of them; cost is the time of "
        "a batch over that of the source model in the same run; ± is the standard deviation over seeds.</p>"
        f"{_KEY}</header>"
    )


def _distinct(sections: Sequence[Section]) -> list[Run]:
    return list({id(run): run for section in sections for run in section.runs}.values())


def _section(section: Section, name: str, anchor: str, plots: Sequence[Plot]) -> str:
    facts = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in section.facts
    )
    parts = [f'<section id="{anchor}"><h2>{escape(name)}</h2>']
    if section.protocol.asks:
        parts.append(f'<p class="lead">{escape(section.protocol.asks)}</p>')
    parts.append(f'<dl class="facts">{facts}</dl>')
    if section.missing:
        parts.append(f'<p class="warning">Not finished: {section.missing} streams are missing.</p>')
    parts += [_titled(shift_table(section)), _titled(summary_table(section))]
    more = "".join(_titled(shift_table(section, metric)) for metric in ("r5", "r10", "map"))
    parts.append(f"<details><summary>R@5, R@10 and mAP by shift</summary>{more}</details>")
    if plots:
        parts.append(f'<div class="plots">{"".join(map(_plot, plots))}</div>')
    return "".join([*parts, "</section>"])


def _titled(table: Table) -> str:
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h3>{escape(table.title)}</h3>{_table(table)}{note}"


def _plot(plot: Plot) -> str:
    wide = ' class="wide"' if plot.name in _WIDE else ""
    title = escape(plot.title)
    return (
        f'<figure{wide}><figcaption>{title}</figcaption><div class="drawing" role="img" aria-label="{title}">'
        f"{plot.svg}</div></figure>"
    )


def _table(table: Table, links: Sequence[str] = ()) -> str:
    first_apart = len(table.headings) - table.apart
    head = "".join(
        f"<th{_classes('apart' if table.apart and number == first_apart else '')}>"
        f'<button type="button">{escape(heading)}</button></th>'
        for number, heading in enumerate(table.headings)
    )
    lines = [
        _line(line, first_apart if table.apart else -1, links[number] if links else "")
        for number, line in enumerate(table.lines)
    ]
    corner = f'<th><button type="button">{escape(table.corner)}</button></th>'
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{corner}{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _line(line: Line, first_apart: int, link: str) -> str:
    cells = "".join(_cell(cell, number == first_apart) for number, cell in enumerate(line.cells))
    label = escape(line.label)
    inner = f'<a href="{link}">{label}</a>' if link else label
    kind = _classes("published" if line.published else "")
    return f'<tr{kind}><th scope="row" title="{label}">{inner}</th>{cells}</tr>'


def _cell(cell: Cell, apart: bool) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
    hint = "" if cell.gain is None else f' title="{cell.gain:+.2f} points over source"'
    names = ["apart" if apart else "", "best" if cell.best else "", _shade(cell.gain)]
    return f"<td{_classes(*names)}{value}{hint}>{escape(cell.text)}</td>"


def _shade(gain: float | None) -> str:
    step = sum(abs(gain) >= limit for limit in _STEPS) if gain is not None else 0
    return f"{'up' if gain and gain > 0 else 'down'}{step}" if step else ""


def _classes(*names: str) -> str:
    used = " ".join(name for name in names if name)
    return f' class="{used}"' if used else ""


def _runs(sections: Sequence[Section]) -> str:
    """What every run was made with, as its file says it."""
    parts = []
    for run in _distinct(sections):
        facts = run.model_dump(exclude={"results", "asked"})
        text = escape(json.dumps(facts, indent=1, ensure_ascii=False, default=str))
        title = escape(f"{run.protocol}, {run.encoder.name} on {run.data.name}, {run.made_at}")
        parts.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return f"<footer><h3>Settings, versions and machines</h3>{''.join(parts)}</footer>"
