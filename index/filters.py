"""The filter language: a JSON object that an item's payload matches or not.

    {"colour": "red"}                              equal
    {"colour": {"in": ["red", "blue"]}}            one of
    {"price": {"gte": 1, "lt": 5}}                 range (gt, gte, lt, lte) of numbers or of texts
    {"size.width": 3}                              nested payloads by dotted keys
    {"not": {"colour": "red"}}                     does not match
    {"any": [{"colour": "red"}, {"price": 3}]}     matches at least one
    {"colour": "red", "price": {"lt": 5}}          all keys of one object must match; {} matches everything

Values are compared as JSON does: true is not 1, but 1 is 1.0. Where the payload holds a list, one of its
elements must match. A key that the payload lacks matches nothing, not even null. "not" and "any" are
therefore no payload keys.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from index.base import BadFilter

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]
Test: TypeAlias = Callable[[Any], bool]

MAX_DEPTH = 8
MAX_CONDITIONS = 64
MAX_VALUES = 1_024
MAX_KEY_LENGTH = 256
MAX_TEXT_LENGTH = 4_096

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_MISSING = object()


def compile_filter(filter_: object) -> Predicate:
    """A function that says whether a payload matches.

    Raises:
        BadFilter: the filter is not written in the language above, or exceeds its limits.
    """
    return _Compiler().conjunction(filter_, depth=1)


def canonical(filter_: object) -> str:
    """The same text for the same filter, whatever the order of its keys. For a filter that compiled."""
    return json.dumps(filter_, sort_keys=True, ensure_ascii=True)


class _Compiler:
    """Counts conditions while it compiles one filter."""

    def __init__(self) -> None:
        self._conditions = 0

    def conjunction(self, filter_: object, *, depth: int) -> Predicate:
        if not isinstance(filter_, Mapping):
            raise BadFilter(f"a filter is an object, not {_shown(filter_)}")
        if depth > MAX_DEPTH:
            raise BadFilter(f"filters nest at most {MAX_DEPTH} deep")
        parts = [self._condition(key, value, depth) for key, value in filter_.items()]
        if len(parts) == 1:
            return parts[0]
        return lambda payload: all(part(payload) for part in parts)

    def _condition(self, key: object, value: object, depth: int) -> Predicate:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise BadFilter(f"a filter has at most {MAX_CONDITIONS} conditions")
        if key == "not":
            inner = self.conjunction(value, depth=depth + 1)
            return lambda payload: not inner(payload)
        if key == "any":
            return self._any(value, depth)
        return _at(_path(key), _test(key, value))

    def _any(self, value: object, depth: int) -> Predicate:
        if not isinstance(value, list) or not value:
            raise BadFilter(f'"any" takes a list of at least one filter, not {_shown(value)}')
        choices = [self.conjunction(choice, depth=depth + 1) for choice in value]
        return lambda payload: any(choice(payload) for choice in choices)


def _path(key: object) -> list[str]:
    if not isinstance(key, str) or not key or len(key) > MAX_KEY_LENGTH:
        raise BadFilter(f"a key is a text of 1 to {MAX_KEY_LENGTH} letters, not {_shown(key)}")
    steps = key.split(".")
    if "" in steps:
        raise BadFilter(f"key {key!r} has an empty step between its dots")
    return steps


def _at(path: list[str], test: Test) -> Predicate:
    """Applies the test to the payload's value at the path, or to the elements of a list there."""

    def predicate(payload: Mapping[str, Any]) -> bool:
        value: Any = payload
        for step in path:
            if not isinstance(value, dict):
                return False
            value = value.get(step, _MISSING)
        if isinstance(value, list):
            return any(test(element) for element in value)
        return value is not _MISSING and test(value)

    return predicate


def _test(key: object, value: object) -> Test:
    if isinstance(value, Mapping):
        return _operators(key, value)
    wanted = _scalar(value)
    return lambda found: _typed(found) == wanted


def _operators(key: object, operators: Mapping[Any, Any]) -> Test:
    if not operators:
        raise BadFilter(f"key {key!r} has an empty object; write a value or one of in, gt, gte, lt, lte")
    tests = [_operator(key, name, value) for name, value in operators.items()]
    return lambda found: all(test(found) for test in tests)


def _operator(key: object, name: object, value: object) -> Test:
    if name == "in":
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_VALUES:
            raise BadFilter(f'"in" of key {key!r} takes a list of 1 to {MAX_VALUES} values')
        wanted = {_scalar(choice) for choice in value}
        return lambda found: _typed(found) in wanted
    if not isinstance(name, str) or name not in _COMPARISONS:
        raise BadFilter(f"key {key!r} has the unknown operator {_shown(name)}; known: in, gt, gte, lt, lte")
    kind, bound = _scalar(value)
    if kind not in ("number", "text"):
        raise BadFilter(f'"{name}" of key {key!r} takes a number or a text, not {_shown(value)}')
    return _comparison(_COMPARISONS[name], kind, bound)


def _comparison(holds: Callable[[Any, Any], bool], kind: str, bound: Any) -> Test:
    def test(found: Any) -> bool:
        found_kind, found_value = _typed(found)
        return found_kind == kind and holds(found_value, bound)

    return test


def _scalar(value: object) -> tuple[str, Any]:
    typed = _typed(value)
    if typed[0] == "other" or (isinstance(value, float) and not math.isfinite(value)):
        raise BadFilter(
            f"a filter compares with texts, finite numbers, true, false and null, not {_shown(value)}"
        )
    if isinstance(value, str) and len(value) > MAX_TEXT_LENGTH:
        raise BadFilter(f"a text in a filter has at most {MAX_TEXT_LENGTH} letters")
    return typed


def _typed(value: Any) -> tuple[str, Any]:
    """A JSON scalar with its type's name, so that true and 1 differ while 1 and 1.0 do not."""
    if isinstance(value, str):
        return "text", value
    if isinstance(value, bool):
        return "truth", value
    if isinstance(value, int | float):
        return "number", value
    if value is None:
        return "null", None
    return "other", None


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
