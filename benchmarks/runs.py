"""A run of a retrieval benchmark as one JSON file: written after every stream, gone on with, read back.

Head: format, protocol, made_at, encoder, data, gallery, settings, methods (with their settings), versions,
machine, asked. Then `results`, one stream a line. The protocol of `benchmarks.retrieval` is `online`; another
one names itself and may add keys of its own, in the head, in a stream and in a batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT = "attune-retrieval/1"
_DIGITS = 6
"""Significant digits of a batch's figures in the file."""

Text = Annotated[str, Field(max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Figures = dict[Text, Number | None]
Key = tuple[Any, ...]
"""What tells a stream of a run from the others; see `key_of`."""


class BadRun(Exception):
    """The file is no run, or not the one that is asked for."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Batch(_Part):
    """One batch; recall in percent, `ms` by stage. None: not a finite number."""

    size: Annotated[int, Field(ge=1)]
    status: Text = ""
    reason: str = ""
    recall: Figures = {}
    drift: Figures = {}
    losses: Figures = {}
    ms: Figures = {}


class Stream(_Part):
    """One method on one stream of queries; metrics in percent. variant: what else sets it apart."""

    direction: Text
    seed: int
    shift: Text
    method: Text
    variant: Text = ""
    queries: Annotated[int, Field(ge=1)]
    metrics: dict[Text, Number]
    ms_per_batch: Number | None = None
    statuses: dict[Text, int] = {}
    batches: list[Batch] = []


class EncoderCard(_Part):
    name: Text
    fingerprint: Text
    dtype: Text = ""
    device: Text = ""


class DataCard(_Part):
    name: Text
    split: Text = ""
    digest: Text


class Run(_Part):
    """A run that was read."""

    format: Literal["attune-retrieval/1"]
    protocol: Text = "online"
    made_at: Text = ""
    encoder: EncoderCard
    data: DataCard
    gallery: dict[Text, Any] | None = None
    settings: dict[Text, Any] = {}
    methods: dict[Text, dict[Text, Any]]
    versions: dict[Text, Any] = {}
    machine: dict[Text, Any] = {}
    asked: dict[Text, list[Any]] = {}
    results: list[Stream]


def read_run(path: Path) -> Run:
    """Raises BadRun: no JSON, or no run of a retrieval benchmark; the message names file and place."""
    document = _parse(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadRun(f"{path} is no run of a retrieval benchmark: its `format` is not {FORMAT!r}")
    try:
        return Run.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRun(f"{path} is no run of a retrieval benchmark: {where}: {first['msg']}") from error


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRun(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadRun(f"{path} is no JSON: {error}") from error


def key_of(stream: Mapping[str, Any]) -> Key:
    return tuple(stream.get(name, "") for name in ("direction", "seed", "shift", "method", "variant"))


class RunFile:
    """The file of a run that is being made. Without a path nothing is written.

    head   everything but the results
    order  where a stream stands in the file, whatever order they end in
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any], order: Callable[[Key], Any]) -> None:
        self._path = path
        self._head = dict(head)
        self._order = order
        self._streams: dict[Key, Mapping[str, Any]] = {}
        self._lines: dict[Key, str] = {}

    @classmethod
    def begin(
        cls,
        path: Path | None,
        head: Mapping[str, Any],
        order: Callable[[Key], Any],
        *,
        restart: bool = False,
    ) -> RunFile:
        """A new file, or what is there already with the same settings.

        Raises:
            BadRun: the file that is there is no run, or one with other settings.
        """
        made = cls(path, head, order)
        if path is not None and path.exists() and not restart:
            made._take(path)
        return made

    def _take(self, path: Path) -> None:
        """Keep the streams of a run with the same settings."""
        read_run(path)
        found = _parse(path)
        apart = differences(found, self._head)
        if apart:
            raise BadRun(f"{path} holds a run with other settings: {'; '.join(apart)}")
        self._head["made_at"] = found.get("made_at", self._head.get("made_at"))
        # What an earlier command asked for stays part of the run.
        self._head["methods"] = {**found["methods"], **self._head["methods"]}
        self._head["asked"] = _joined(found.get("asked", {}), self._head.get("asked", {}))
        for stream in found["results"]:
            self._keep(stream)

    def _keep(self, stream: Mapping[str, Any]) -> None:
        key = key_of(stream)
        self._streams[key] = stream
        self._lines[key] = json.dumps(stream, allow_nan=False)

    def __contains__(self, key: Key) -> bool:
        return key in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def streams(self) -> Sequence[Mapping[str, Any]]:
        """In the file's order."""
        return [self._streams[key] for key in self._keys()]

    def add(self, stream: Mapping[str, Any]) -> None:
        """Remember a stream and write the file anew, complete or not at all.

        Numbers of batches are rounded to 6 significant digits; what is not finite becomes null.
        """
        batches = [_plain(batch) for batch in stream.get("batches", [])]
        self._keep({**stream, "batches": batches})
        self.write()

    def write(self) -> None:
        if self._path is None:
            return
        lines = ",\n  ".join(self._lines[key] for key in self._keys())
        head = json.dumps({**self._head, "results": []}, indent=1, allow_nan=False)
        partial = self._path.with_name(f"{self._path.name}.partial")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(
            head.removesuffix("[]\n}") + (f"[\n  {lines}\n ]\n}}\n" if lines else "[]\n}\n"), encoding="utf-8"
        )
        partial.replace(self._path)

    def _keys(self) -> list[Key]:
        return sorted(self._lines, key=self._order)


_COMPARED = ("format", "protocol", "encoder", "data", "gallery", "settings", "versions", "machine")
_NOT_COMPARED = ("machine.platform", "encoder.name", "data.name", "gallery.name")
"""Names say nothing about content, and a new kernel does not change a number."""


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two heads differ in, in words; methods are compared where both have them."""
    found: list[str] = []
    for part in _COMPARED:
        found += _differ(part, there.get(part), now.get(part))
    both = [name for name in now["methods"] if name in there["methods"]]
    for name in both:
        found += _differ(name, there["methods"][name], now["methods"][name])
    return found


def _differ(name: str, there: Any, now: Any) -> list[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*there, *now])
        return [line for key in keys for line in _differ(f"{name}.{key}", there.get(key), now.get(key))]
    if name in _NOT_COMPARED or there == json.loads(json.dumps(now)):
        return []
    return [f"{name} is {there!r} there, {now!r} now"]


def _joined(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    keys = dict.fromkeys([*there, *now])
    return {key: list(dict.fromkeys([*there.get(key, []), *now.get(key, [])])) for key in keys}


def _plain(value: Any) -> Any:
    """Rounded, and without what JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
