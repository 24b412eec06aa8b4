"""Reading a pickled record as data, without the pickle machine.

A pickle is a program: loading it runs what it names. Here its steps are followed on plain values only (texts,
numbers, lists, tuples, dicts, sets); whatever would import, call or build something becomes `OPAQUE`, which
stands there and does nothing. Steps and their arguments are taken apart by the standard library's
`pickletools`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.datasets import DatasetError

_LARGEST = 16 * 2**20
"""Bytes of a record: a few texts and numbers, perhaps features."""


class _Opaque:
    """In place of a value that only running the pickle would give."""

    def __repr__(self) -> str:
        return "a value that is not plain data"


OPAQUE: Final = _Opaque()
_MARK: Final = object()


def read_record(path: Path) -> Mapping[str, Any]:
    """The dict of a pickled record.

    Raises:
        DatasetError: the file is too large, is no pickle, or holds no plain dict.
    """
    size = path.stat().st_size
    if size > _LARGEST:
        raise DatasetError(f"{path} has {size} bytes; a record has at most {_LARGEST}")
    try:
        value = plain_value(path.read_bytes())
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise DatasetError(f"{path} is no readable record: {error}") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path} holds no plain dict")
    return value


def plain_value(content: bytes) -> Any:
    """What a pickle holds, with `OPAQUE` in place of everything but plain data.

    Raises ValueError, TypeError, LookupError or OverflowError where the bytes are no well-formed pickle.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.step(opcode.name, argument)
    raise ValueError("it has no end")


class _Machine:
    """A stack of plain values, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _VALUES:
            self.stack.append(_VALUES[name]())
        elif name in _OPAQUE_AFTER:
            self._drop(_OPAQUE_AFTER[name])
            self.stack.append(OPAQUE)
        elif name in _TUPLES:
            self.stack.append(tuple(self._drop(_TUPLES[name])))
        elif name in _FROM_MARK:
            self.stack.append(_FROM_MARK[name](self._to_mark()))
        elif name in _ADDED:
            many, add = _ADDED[name]
            values = self._to_mark() if many else self._drop(2 if add is _set_items else 1)
            add(self.stack[-1], values)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("POP", "BUILD"):
            self.stack.pop()
        elif name == "POP_MARK":
            self._to_mark()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            raise ValueError(f"step {name} is not known")

    def _drop(self, count: int) -> list[Any]:
        """The topmost values, taken off, in the order they were put there."""
        if count > len(self.stack):
            raise ValueError("it takes more than it put there")
        dropped = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return dropped

    def _to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]


def _dict(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(_keys(values[::2]), values[1::2], strict=True))


def _keys(values: list[Any]) -> list[Any]:
    """Hashing nested tuples that share parts can take for ever; texts and numbers cannot be nested."""
    for value in values:
        if not isinstance(value, str | bytes | int | float | _Opaque | None):
            raise TypeError(f"a {type(value).__name__} is used as a key")
    return values


def _frozenset(values: list[Any]) -> frozenset[Any]:
    return frozenset(_keys(values))


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    _keep_plain(target, list)


def _set_items(target: Any, values: list[Any]) -> None:
    if isinstance(target, dict):
        target.update(_dict(values))
    _keep_plain(target, dict)


def _add_items(target: Any, values: list[Any]) -> None:
    if isinstance(target, set):
        target.update(_keys(values))
    _keep_plain(target, set)


def _keep_plain(target: Any, kind: type) -> None:
    if not isinstance(target, kind | _Opaque):
        raise TypeError(f"expected a {kind.__name__}, found {type(target).__name__}")


_IGNORED = frozenset(("PROTO", "FRAME"))
_CONSTANTS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *(
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "UNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE",
            "BINUNICODE8",
        ),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_VALUES: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_OPAQUE_AFTER: Mapping[str, int] = {
    "GLOBAL": 0,
    "PERSID": 0,
    "EXT1": 0,
    "EXT2": 0,
    "EXT4": 0,
    "NEXT_BUFFER": 0,
    "BINPERSID": 1,
    "READONLY_BUFFER": 1,
    "REDUCE": 2,
    "NEWOBJ": 2,
    "STACK_GLOBAL": 2,
    "NEWOBJ_EX": 3,
}
"""Steps that would import, call or fetch something, and how many values they take."""
_TUPLES: Mapping[str, int] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FROM_MARK: Mapping[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "DICT": _dict,
    "FROZENSET": _frozenset,
    "INST": lambda values: OPAQUE,
    "OBJ": lambda values: OPAQUE,
}
_ADDED: Mapping[str, tuple[bool, Callable[[Any, list[Any]], None]]] = {
    "APPEND": (False, _extend),
    "APPENDS": (True, _extend),
    "SETITEM": (False, _set_items),
    "SETITEMS": (True, _set_items),
    "ADDITEMS": (True, _add_items),
}
