"""The papers' numbers (`published.json`, with their source), for runs of the same setting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from benchmarks.corruptions import TEXT_CORRUPTIONS
from benchmarks.report.sections import CLEAN, Section


@dataclass(frozen=True)
class Published:
    """One published table. rows: R@1 in percent by method, then by shift."""

    title: str
    model: str
    source: str
    note: str
    rows: Mapping[str, Mapping[str, float]]


def published_for(section: Section) -> Published | None:
    """The table of the section's encoder, data and direction; None where its setting is another one.

    That is: the papers' protocol on all queries, and the released corruptions (read from the disk, or made in
    their style), which ImageNet-C's are not. Encoder and data are known by their names.
    """
    run = section.run
    settings = run.settings
    whole = run.protocol == "online" and settings.get("limit") is None and not run.gallery
    if not whole or settings.get("batch") != 64:
        return None
    for table in _document()["tables"]:
        if table["direction"] == section.direction and _is_of(
            table, run.encoder.name, run.data.name, run.data.split
        ):
            rows = {method: _comparable(section, row) for method, row in table["rows"].items()}
            if any(rows.values()):
                return Published(table["title"], table["model"], _document()["source"], table["note"], rows)
    return None


def _comparable(section: Section, row: Mapping[str, float]) -> dict[str, float]:
    """The row's figures by the section's names of shifts."""
    on_disk = bool(section.run.settings.get("corrupted_on_disk"))
    found = {shift: row.get(shift if on_disk else _released(shift)) for shift in [*section.shifts, CLEAN]}
    return {shift: value for shift, value in found.items() if value is not None}


def _released(shift: str) -> str:
    """The published name of a shift made here; pictures compare in the style of the released ones only."""
    name = shift.removeprefix("mm:")
    return name if name != shift or name == CLEAN or name.partition(":")[0] in TEXT_CORRUPTIONS else ""


def _is_of(table: Mapping[str, Any], encoder: str, data: str, split: str) -> bool:
    words = _words(f"{data}_{split}")
    return encoder.rpartition("/")[2].lower() in table["encoders"] and any(
        _words(name) <= words for name in table["data"]
    )


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


@cache
def _document() -> Any:
    return json.loads(files("benchmarks.report").joinpath("published.json").read_text(encoding="utf-8"))
