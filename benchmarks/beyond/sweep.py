"""Settings to try, from the command line: `learning_rate=1e-4,1e-3`, `tcr.steps=1,3`, `batch=16,64`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from adapters.base import BadSettings, Method
from adapters.registry import make_method

USUAL = ("learning_rate=1e-4,3e-4,1e-3", "temperature=0.01,0.02,0.05,0.1", "steps=1,3,5", "batch=16,64")
_BATCH = "batch"


@dataclass(frozen=True)
class Tried:
    """A method under other settings; batch None: the usual one. label: what a report calls it."""

    label: str
    method: Method
    batch: int | None = None


def tried(methods: Mapping[str, Method], sweeps: Sequence[str], *, grid: bool) -> list[Tried]:
    """The methods as they are, then with one setting changed at a time, or with all combinations.

    Raises:
        BadSettings: a sweep is not [METHOD.]KEY=VALUE,..., or no chosen method has that setting.
    """
    found: dict[str, Tried] = {name: Tried(name, method) for name, method in methods.items()}
    parsed = [_parse(sweep, methods) for sweep in sweeps]
    for name, method in methods.items():
        own = [(key, values) for names, key, values in parsed if name in names]
        for changed in _combined(own) if grid else _one_by_one(own):
            one = _with(name, method, changed)
            found.setdefault(one.label, one)
    return list(found.values())


def _parse(sweep: str, methods: Mapping[str, Method]) -> tuple[list[str], str, list[Any]]:
    """The methods that it is for, the setting, and its values."""
    key, equals, text = sweep.partition("=")
    owner, dot, field = key.strip().partition(".")
    field = field if dot else owner
    try:
        values = json.loads(f"[{text}]")
    except ValueError:
        values = []
    if not equals or not values:
        raise BadSettings(f"--sweep {sweep!r} is not [METHOD.]KEY=VALUE,VALUE,...")
    takers = [
        name
        for name, method in methods.items()
        if (not dot or name == owner) and method.adapts and (field == _BATCH or _has(method, field))
    ]
    if not takers:
        raise BadSettings(f"--sweep {sweep!r}: none of {', '.join(methods)} has a setting {field!r}")
    if field == _BATCH and not all(type(value) is int and value > 0 for value in values):
        raise BadSettings(f"--sweep {sweep!r}: a batch has a whole number of queries, at least 1")
    return takers, field, values


def _has(method: Method, field: str) -> bool:
    return field in type(method.settings).model_fields


def _one_by_one(own: Sequence[tuple[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    return ({key: value} for key, values in own for value in values)


def _combined(own: Sequence[tuple[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    keys = [key for key, _ in own]
    return (dict(zip(keys, chosen, strict=True)) for chosen in product(*(values for _, values in own)))


def _with(name: str, method: Method, changed: Mapping[str, Any]) -> Tried:
    settings = {key: value for key, value in changed.items() if key != _BATCH}
    label = " ".join([name, *(f"{key}={value:g}" for key, value in changed.items())])
    made = make_method(name, {**method.settings.model_dump(), **settings})
    return Tried(label, made, changed.get(_BATCH))
