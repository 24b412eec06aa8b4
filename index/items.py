"""What goes into a gallery and what comes out; checks and the stored form.

Letters: N items, D features.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from index.base import ANCHOR, MODALITIES, TARGETS, BadItem, BadVector, Floats, Mask, Target, UnknownTarget

MAX_ID_LENGTH = 512
# Rows whose length differs from 1 by no more are stored bit for bit; rounding in fp32 stays below it.
_UNIT_TOLERANCE = 1e-6
_ZERO_LENGTH = 1e-20


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing to find.

    `vectors` holds [D] for "image", "text" or both and, in a gallery with a calibration, for "anchor". They
    are stored with length 1. `preview` goes in and stays in the gallery's file; what comes out has
    `preview_version` in its place.
    """

    id: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    vectors: Mapping[Target, Floats] = field(default_factory=dict)
    preview: bytes | None = None
    """A small picture to show it by, in whatever format the maker chooses."""
    preview_version: str = ""
    """See `Preview`; "" where the gallery keeps none."""


class Preview(NamedTuple):
    """The small picture that a gallery keeps of an item."""

    version: str
    """Follows from the content: 12 hexadecimal digits."""
    content: bytes


class Hit(NamedTuple):
    """One answer. `payload` is the gallery's own object: read it, do not change it."""

    id: str
    score: float
    payload: Mapping[str, Any]
    modalities: frozenset[Target]
    """Of the vectors that the item has by itself, so without "anchor"."""
    preview_version: str
    """As in `Item`."""


class UpsertReport(NamedTuple):
    added: int
    replaced: int


@dataclass(slots=True)
class Record:
    """An item as a gallery holds it. `sequence` orders the items; it stays as long as the item's place."""

    sequence: int
    id: str
    payload: dict[str, Any]
    payload_json: str
    text: str | None
    vectors: dict[Target, Floats]
    """[D] each; emptied when the vector index has taken them."""
    modalities: frozenset[Target]
    """As in `Hit`; they stay when `vectors` is emptied."""
    preview: bytes | None = None
    """On its way into the file; None after."""
    preview_version: str = ""
    """As in `Item`."""


def version_of(preview: bytes) -> str:
    """As in `Preview`."""
    return blake2b(preview).hexdigest()[:12]


def prepare(items: Sequence[Item], dimension: int, *, anchored: bool) -> list[Record]:
    """Checked, independent copies of the items, with unit vectors; sequences are still 0.

    Args:
        anchored: every item must have an anchor; otherwise none may.

    Raises:
        BadItem, BadVector, UnknownTarget: naming the item.
    """
    records = [_record(item, anchored=anchored) for item in items]
    for target in TARGETS:
        having = [
            (record, item.vectors[target])
            for record, item in zip(records, items, strict=True)
            if target in item.vectors
        ]
        rows = unit_rows([vector for _, vector in having], dimension, [record.id for record, _ in having])
        for (record, _), row in zip(having, rows, strict=True):
            record.vectors[target] = row
    return records


@cache
def _shared(modalities: frozenset[Target]) -> frozenset[Target]:
    """One object for equal sets, however many items there are."""
    return modalities


def modalities_of(targets: Iterable[Target]) -> frozenset[Target]:
    return _shared(frozenset(targets).intersection(MODALITIES))


def _record(item: Item, *, anchored: bool) -> Record:
    if not isinstance(item.id, str) or not 1 <= len(item.id) <= MAX_ID_LENGTH:
        raise BadItem(f"an item's id is a text of 1 to {MAX_ID_LENGTH} letters, not {item.id!r:.80}")
    _check_targets(item, anchored=anchored)
    if item.text is not None and not isinstance(item.text, str):
        raise BadItem(f"the text of item {item.id!r} is no text")
    payload_json = _payload_json(item)
    try:
        f"{item.id}{item.text or ''}".encode()
    except UnicodeEncodeError as error:
        raise BadItem(f"id or text of item {item.id!r} is no valid Unicode: {error}") from error
    if item.preview is not None and not (isinstance(item.preview, bytes) and item.preview):
        raise BadItem(f"the preview of item {item.id!r} is not the bytes of a picture")
    return Record(
        sequence=0,
        id=item.id,
        payload=json.loads(payload_json),
        payload_json=payload_json,
        text=item.text,
        vectors={},
        modalities=modalities_of(item.vectors),
        preview=item.preview,
        preview_version="" if item.preview is None else version_of(item.preview),
    )


def _check_targets(item: Item, *, anchored: bool) -> None:
    for target in item.vectors:
        check_target(target)
    if not set(item.vectors).intersection(MODALITIES):
        raise BadItem(f"item {item.id!r} has no vector of {' or '.join(MODALITIES)}")
    if anchored and ANCHOR not in item.vectors:
        raise BadItem(f"item {item.id!r} has no anchor; every item of a gallery with a calibration has one")
    if not anchored and ANCHOR in item.vectors:
        raise BadItem(f"item {item.id!r} has an anchor, but the gallery has no calibration")


def _payload_json(item: Item) -> str:
    if not isinstance(item.payload, Mapping):
        raise BadItem(f"the payload of item {item.id!r} is no object")
    try:
        return json.dumps(dict(item.payload), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadItem(f"the payload of item {item.id!r} cannot be written as JSON: {error}") from error


def check_target(target: str) -> None:
    if target not in TARGETS:
        raise UnknownTarget(f"unknown target {target!r}; galleries hold vectors of {', '.join(TARGETS)}")


def unit_rows(vectors: Sequence[Floats], dimension: int, names: Sequence[str]) -> Floats:
    """Vectors of N items, each [D], scaled to length 1 -> [N, D]. Those of length 1 stay bit for bit.

    Raises:
        BadVector: naming the item, for a wrong size, NaN, infinity or length zero.
    """
    rows = np.empty((len(vectors), dimension), dtype=np.float32)
    for place, (vector, name) in enumerate(zip(vectors, names, strict=True)):
        array = np.asarray(vector)
        if array.shape != (dimension,) or array.dtype.kind not in "fiu":
            raise BadVector(
                f"the vector of item {name!r} must be {dimension} real numbers, "
                f"not {array.dtype} of shape {list(array.shape)}"
            )
        with np.errstate(over="ignore"):  # Too large for float32 becomes infinity, refused below.
            rows[place] = array
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))  # [N]
    _refuse(~np.isfinite(lengths), names, "holds NaN or infinity")
    _refuse(lengths < _ZERO_LENGTH, names, "has length zero")
    scaled = np.abs(lengths - 1) > _UNIT_TOLERANCE
    np.divide(rows, lengths[:, None], out=rows, where=scaled[:, None], casting="same_kind")
    return rows


def _refuse(bad: Mask, names: Sequence[str], what: str) -> None:
    if bool(bad.any()):
        raise BadVector(f"the vector of item {names[int(bad.argmax())]!r} {what}")
