"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks.report.sections import Section, names_of
from benchmarks.report.tables import Cell, Table, overview_table, shift_table, summary_table

_LONGEST = 120
_SPECIAL = re.compile(r"([\\`*\[\]|<>#~$])")


def escape(text: str) -> str:
    """One line of plain text: nothing in it is Markdown or HTML."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return _SPECIAL.sub(r"\\\1", plain[:_LONGEST].replace("&", "&amp;"))


def markdown(sections: Sequence[Section], plots: Mapping[int, Sequence[str]]) -> str:
    """plots: file names of each section's pictures, by the section's place."""
    parts = ["# Retrieval under query shift", _legend()]
    if len(sections) > 1:
        parts += [f"## Overview\n\n{_table(overview_table(sections))}"]
    for number, (section, name) in enumerate(zip(sections, names_of(sections), strict=True)):
        parts += [f"## {escape(name)}", _facts(section), _table(shift_table(section))]
        parts += [_table(summary_table(section))]
        parts += [f"![{file}]({file})" for file in plots.get(number, ())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _legend() -> str:
    return (
        "Recall and mAP in percent; the best of a column, in the overview of a row, is bold. Avg.: mean of "
        "the corrupted shifts, for methods that ran on all of them. Cost: time of a batch over that of the "
        "source model in the same run. ±: standard deviation over seeds."
    )


def _facts(section: Section) -> str:
    lines = [section.protocol.asks] if section.protocol.asks else []
    lines.append(", ".join(f"{name}: {escape(value)}" for name, value in section.facts) + ".")
    if section.missing:
        lines.append(f"**Not finished: {section.missing} streams are missing.**")
    return " ".join(lines)


def _table(table: Table) -> str:
    head = [table.corner, *map(escape, table.headings)]
    lines = [f"**{escape(table.title)}**", "", _line(head), _line(["---", *["---:"] * len(table.headings)])]
    for line in table.lines:
        label = escape(line.label)
        lines.append(_line([f"*{label}*" if line.published else label, *map(_cell, line.cells)]))
    if table.note:
        lines += ["", escape_long(table.note)]
    return "\n".join(lines)


def escape_long(text: str) -> str:
    """Like `escape`, of any length."""
    return "".join(escape(text[start : start + _LONGEST]) for start in range(0, len(text), _LONGEST))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f"**{text}**" if cell.best else text
