"""Runs put together: one section for all streams that can stand in one table.

Streams belong together when protocol, encoder, data, gallery, direction and settings are the same; rows are
methods with their settings, columns shifts. Where two runs hold the same stream the later counts.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.corruptions import IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS
from benchmarks.runs import Run, Stream

CLEAN = "clean"
SOURCE = "source"
METRICS: Mapping[str, str] = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "map": "mAP"}
_SHIFT = re.compile(r"(?P<style>mm:)?(?P<name>[^:]+):(?P<severity>\d+)")


@dataclass(frozen=True)
class Protocol:
    """What a protocol is called and what it asks."""

    title: str
    asks: str


PROTOCOLS: Mapping[str, Protocol] = {
    "online": Protocol(
        "One shift a stream",
        "Every stream has one shift and begins with the source model, as in the papers.",
    ),
    "continual": Protocol("Continual", "The shift changes without notice and nothing is reset."),
    "mixed": Protocol("Mixed", "Every batch holds queries of several shifts."),
    "long_clean": Protocol("Long and clean", "Nothing is wrong with the queries: does adapting hurt?"),
    "correlated": Protocol("Correlated", "Like queries come after each other."),
    "tiny": Protocol("Tiny batches", "Few queries at a time."),
    "near_duplicates": Protocol("Near duplicates", "A batch holds nearly the same query many times."),
    "realistic": Protocol(
        "In real time", "The stream does not wait: a slow method answers late batches with stale weights."
    ),
}


@dataclass(frozen=True)
class Value:
    """Mean over seeds; spread: standard deviation over them, None of one."""

    mean: float
    spread: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Value | None:
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Told:
    """A stream, and its time a batch over that of `source` in the same run, on the same queries."""

    stream: Stream
    ratio: float | None


@dataclass
class Row:
    """A method with its settings. told: by shift and seed."""

    method: str
    settings: Mapping[str, Any]
    label: str = ""
    told: dict[tuple[str, int], Told] = field(default_factory=dict)

    def streams(self, shifts: Iterable[str]) -> list[Stream]:
        wanted = set(shifts)
        return [told.stream for (shift, _), told in self.told.items() if shift in wanted]

    def value(self, shift: str, metric: str) -> Value | None:
        return self.mean_over([shift], metric)

    def mean_over(self, shifts: Sequence[str], metric: str) -> Value | None:
        """Mean over shifts, by seed; None where one of them is missing under every seed."""
        means = []
        for seed in dict.fromkeys(seed for _, seed in self.told):
            found = [self.told.get((shift, seed)) for shift in shifts]
            values = [told.stream.metrics.get(metric) for told in found if told is not None]
            known = [value for value in values if value is not None]
            if known and len(known) == len(shifts):
                means.append(statistics.fmean(known))
        return Value.of(means)

    @property
    def cost(self) -> float | None:
        """Time of a batch over that of `source`: median over streams."""
        ratios = [told.ratio for told in self.told.values() if told.ratio is not None]
        return statistics.median(ratios) if ratios else None

    @property
    def statuses(self) -> dict[str, int]:
        """How its batches ended."""
        found: dict[str, int] = {}
        for told in self.told.values():
            for status, count in told.stream.statuses.items():
                found[status] = found.get(status, 0) + count
        return found


@dataclass
class Section:
    """One table. run: the first of its runs, for what all of them share."""

    run: Run
    direction: str
    variant: str
    rows: dict[str, Row] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def protocol(self) -> Protocol:
        name = self.run.protocol
        return PROTOCOLS.get(name, Protocol(name.replace("_", " ").capitalize() or "Unnamed", ""))

    @property
    def title(self) -> str:
        parts = [self.protocol.title, self.variant, DIRECTIONS.get(self.direction, self.direction)]
        return ", ".join(part for part in parts if part)

    @property
    def shifts(self) -> list[str]:
        """The corrupted ones, in the order of the runs."""
        return [shift for shift in self._all if shift != CLEAN]

    @property
    def has_clean(self) -> bool:
        return CLEAN in self._all

    @property
    def headline(self) -> list[str]:
        """What the section is judged by: its corrupted shifts, or clean queries where it has no others."""
        return self.shifts or [CLEAN]

    @property
    def _all(self) -> list[str]:
        asked = [str(shift) for run in self.runs for shift in run.asked.get("shifts", [])]
        there = {shift: None for row in self.rows.values() for shift, _ in row.told}
        order = [shift for shift in dict.fromkeys(asked) if shift in there]
        return [*order, *(shift for shift in there if shift not in order)]

    @property
    def source(self) -> Row | None:
        return next((row for row in self.rows.values() if row.method == SOURCE), None)

    @property
    def facts(self) -> list[tuple[str, str]]:
        run, settings = self.run, self.run.settings
        queries = {stream.queries for row in self.rows.values() for stream in row.streams(self._all)}
        seeds = sorted({seed for row in self.rows.values() for _, seed in row.told})
        found = [
            (
                "encoder",
                f"{run.encoder.name} ({run.encoder.dtype})" if run.encoder.dtype else run.encoder.name,
            ),
            ("data", " ".join(part for part in (run.data.name, run.data.split) if part)),
            ("gallery", str((run.gallery or {}).get("name", "")) if run.gallery else ""),
            ("queries", "/".join(f"{count:,}" for count in sorted(queries))),
            ("batch", str(settings.get("batch", ""))),
            ("seeds", ", ".join(str(seed) for seed in seeds)),
        ]
        return [(name, value) for name, value in found if value]

    def gain(self, row: Row, shifts: Sequence[str], metric: str = "r1") -> float | None:
        """Points over `source`."""
        ours = row.mean_over(shifts, metric)
        theirs = self.source.mean_over(shifts, metric) if self.source else None
        return None if ours is None or theirs is None else ours.mean - theirs.mean

    @property
    def missing(self) -> int:
        """Streams of this section that its runs asked for and do not hold."""
        return sum(len(_asked(run, self) - _held(run, self)) for run in self.runs)


def _asked(run: Run, section: Section) -> set[tuple[Any, ...]]:
    shifts = [str(shift) for shift in run.asked.get("shifts", ()) if _fits(str(shift), section.direction)]
    seeds, methods = run.asked.get("seeds", ()), run.asked.get("methods", ())
    return {(seed, shift, str(method)) for seed in seeds for shift in shifts for method in methods}


def _held(run: Run, section: Section) -> set[tuple[Any, ...]]:
    place = (section.direction, section.variant)
    return {
        (stream.seed, stream.shift, stream.method)
        for stream in run.results
        if (stream.direction, stream.variant) == place
    }


def _fits(shift: str, direction: str) -> bool:
    """Whether queries of that direction can have the shift; one that is not known here may fit any."""
    name = shift.removeprefix("mm:").partition(":")[0]
    if name in IMAGE_CORRUPTIONS:
        return direction == "i2t"
    return direction == "t2i" if name in TEXT_CORRUPTIONS else True


def names_of(sections: Sequence[Section]) -> list[str]:
    """Their titles, with the facts that they differ in, and a number where that is not enough."""
    facts = [dict(section.facts) for section in sections]
    differ = [key for key in _TELLING if len({one.get(key) for one in facts}) > 1]
    names: list[str] = []
    for section, one in zip(sections, facts, strict=True):
        more = [
            one[key] if key in ("encoder", "data") else f"{key} {one[key]}" for key in differ if key in one
        ]
        name = ", ".join([section.title, *more])
        again = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({again + 1})" if again else name)
    return names


_TELLING = ("encoder", "data", "gallery", "batch")
DIRECTIONS: Mapping[str, str] = {"i2t": "image to text", "t2i": "text to image"}


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """In the order of the protocols known here, then of the runs."""
    found: dict[str, Section] = {}
    for run in runs:
        for stream in run.results:
            section = found.setdefault(_belongs(run, stream), Section(run, stream.direction, stream.variant))
            if all(run is not other for other in section.runs):
                section.runs.append(run)
            settings = run.methods.get(stream.method, {})
            row = section.rows.setdefault(_text([stream.method, settings]), Row(stream.method, settings))
            row.told[stream.shift, stream.seed] = Told(stream, _ratio(run, stream))
    for section in found.values():
        _label(list(section.rows.values()))
        _source_first(section)
    known = list(PROTOCOLS)
    return sorted(
        found.values(),
        key=lambda one: known.index(one.run.protocol) if one.run.protocol in known else len(known),
    )


def _belongs(run: Run, stream: Stream) -> str:
    gallery = (run.gallery or {}).get("digest")
    encoder = run.encoder
    return _text(
        [
            run.protocol, stream.variant, encoder.fingerprint, encoder.dtype, run.data.digest, gallery,
            run.settings, stream.direction,
        ]
    )  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _ratio(run: Run, stream: Stream) -> float | None:
    key = (stream.direction, stream.seed, stream.shift, stream.variant)
    for other in run.results:
        if other.method == SOURCE and (other.direction, other.seed, other.shift, other.variant) == key:
            ours, theirs = stream.ms_per_batch, other.ms_per_batch
            return ours / theirs if ours and theirs else None
    return None


def _label(rows: Sequence[Row]) -> None:
    """The method's name; of several with other settings, also what they differ in."""
    for row in rows:
        others = [other.settings for other in rows if other.method == row.method and other is not row]
        differ = [key for key in row.settings if any(other.get(key) != row.settings[key] for other in others)]
        row.label = " ".join([row.method, *(f"{key}={row.settings[key]}" for key in differ)])


def _source_first(section: Section) -> None:
    ordered = sorted(section.rows.items(), key=lambda item: item[1].method != SOURCE)
    section.rows = dict(ordered)


_SHORT: Mapping[str, str] = {
    "gaussian_noise": "Gauss.",
    "shot_noise": "Shot",
    "impulse_noise": "Impul.",
    "speckle_noise": "Speckle",
    "defocus_blur": "Defoc.",
    "glass_blur": "Glass",
    "motion_blur": "Motion",
    "zoom_blur": "Zoom",
    "snow": "Snow",
    "frost": "Frost",
    "fog": "Fog",
    "brightness": "Bright.",
    "contrast": "Contr.",
    "elastic_transform": "Elastic",
    "pixelate": "Pixel",
    "jpeg_compression": "JPEG",
}


def headings(shifts: Sequence[str]) -> tuple[dict[str, str], str]:
    """Short names of shifts, and what all of them share and is therefore said once."""
    parsed = {shift: _SHIFT.fullmatch(shift) for shift in shifts}
    severities = {found["severity"] if found else None for found in parsed.values()}
    styles = {found["style"] if found else None for found in parsed.values()}
    same = len(severities) == 1 and None not in severities
    released = styles == {"mm:"}
    names = {}
    for shift, found in parsed.items():
        if found is None:
            names[shift] = shift
            continue
        short = _SHORT.get(found["name"], found["name"])
        style = "mm " if found["style"] and not released else ""
        names[shift] = f"{style}{short}" if same else f"{style}{short} {found['severity']}"
    shared = [f"severity {severities.pop()}"] if same and severities else []
    return names, ", ".join([*shared, *(["in the style of COCO-C"] if released else [])])
