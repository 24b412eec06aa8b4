"""What the readers share: reading annotation files, finding pictures, putting a split together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from benchmarks.datasets import CaptionedImages, DatasetError, check_name, some

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_PROBED = 20
"""Pictures that are looked for to find out in which folder a set keeps them."""


@dataclass(frozen=True)
class Entry:
    """One picture of a split. identity: label of the person or product; empty where there is none."""

    name: str
    captions: Sequence[str]
    identity: str = ""


def read_objects(path: Path, key: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a JSON array, one at a time, each with words that say where it stands.

    The array is the whole file, or the member `key` of its object. Only one element is decoded at a time: a
    file of the size of COCO's took a third of the memory that way.

    Raises:
        DatasetError: the file is not there or is not such a JSON file.
    """
    if not path.is_file():
        raise DatasetError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        for number, element in enumerate(_elements(text, _array_start(text, key))):
            if not isinstance(element, dict):
                raise DatasetError(f"{path}, entry {number}: expected an object, found {_shown(element)}")
            yield f"{path}, entry {number}", element
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}") from error


def _array_start(text: str, key: str | None) -> int:
    at = _skip(text, 0)
    if key is None or text[at : at + 1] != "{":
        if key is None and text[at : at + 1] == "[":
            return at
        wanted = "an array" if key is None else f"an object with {key!r}"
        raise json.JSONDecodeError(f"expected {wanted}", text, at)
    while True:
        at = _skip(text, at + 1)
        name, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise json.JSONDecodeError("expected ':'", text, at)
        at = _skip(text, at + 1)
        if name == key and text[at : at + 1] == "[":
            return at
        _, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError(f"there is no array {key!r}", text, at)


def _elements(text: str, at: int) -> Iterator[Any]:
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        element, at = _DECODER.raw_decode(text, at)
        yield element
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("expected ',' or ']'", text, at)
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def text_of(item: Mapping[str, Any], key: str, where: str) -> str:
    """A text or a whole number under `key`, as text. Raises DatasetError."""
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DatasetError(f"{where}: expected a text under {key!r}, found {_shown(value)}")
    return str(value)


def captions_of(item: Mapping[str, Any], key: str, where: str, *, blank: bool = False) -> list[str]:
    """The captions under `key`: one text, or a list of at least one.

    An element that is itself a list of texts is joined: newer releases of nlpaug, which corrupted the
    captions of the published sets, return lists. blank: corrupting may leave nothing of a caption.

    Raises DatasetError.
    """
    value = item.get(key)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise DatasetError(f"{where}: expected captions under {key!r}, found {_shown(value)}")
    captions = []
    for caption in found:
        if isinstance(caption, list) and all(isinstance(part, str) for part in caption):
            caption = " ".join(caption)  # noqa: PLW2901
        if not _is_text(caption) or not (blank or caption.strip()):
            raise DatasetError(f"{where}: {_shown(caption)} is no caption")
        captions.append(caption)
    return captions


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a text that can be written down: JSON may hold half a character."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return repr(value[:60])
    return repr(value) if isinstance(value, bool | float) else f"a value of type {type(value).__name__}"


def locate(names: Sequence[str], roots: Sequence[Path], page: str) -> list[Path]:
    """Where the named pictures are: in the first of the roots that has them, under the name or its last part.

    Raises:
        DatasetError: no root has them, or one has only some of them.
    """
    probed = names[:_PROBED]
    flat = [PurePosixPath(name).name for name in names]
    candidates = [(root, names) for root in roots]
    if len(set(flat)) == len(set(names)):
        candidates += [(root, flat) for root in roots]
    best, hits = None, 0
    for root, written in candidates:
        found = sum((root / name).is_file() for name in written[: len(probed)])
        if found > hits:
            best, hits = (root, written), found
    if best is None:
        looked = ", ".join(str(root) for root in dict.fromkeys(roots))
        raise DatasetError(f"no picture such as {some(names)} in {looked}; {page}")
    root, written = best
    absent = [name for name in written if not (root / name).is_file()]
    if absent:
        raise DatasetError(f"{root} lacks {some(absent)}; {page}")
    return [root / name for name in written]


def assemble(
    *,
    folder: Path,
    split: str,
    annotation: Path,
    entries: Sequence[Entry],
    roots: Sequence[Path],
    page: str,
    caption_words: int | None = 30,
) -> CaptionedImages:
    """The split of these entries. Pictures of one identity stand together, in order of first appearance.

    Raises:
        DatasetError: a name leaves its folder, or a picture is missing.
    """
    ordered = _by_identity(entries)
    names = [check_name(entry.name, annotation) for entry in ordered]
    return CaptionedImages(
        folder=folder,
        split=split,
        images=locate(names, roots, page),
        captions=[caption for entry in ordered for caption in entry.captions],
        image_of_caption=[image for image, entry in enumerate(ordered) for _ in entry.captions],
        identities=[entry.identity for entry in ordered] if any(entry.identity for entry in ordered) else (),
        names=names,
        caption_words=caption_words,
    )


def _by_identity(entries: Sequence[Entry]) -> Sequence[Entry]:
    if not any(entry.identity for entry in entries):
        return entries
    first: dict[str, int] = {}
    for entry in entries:
        first.setdefault(entry.identity, len(first))
    return sorted(entries, key=lambda entry: first[entry.identity])


def no_split(annotation: Path, split: str, there: Sequence[str]) -> DatasetError:
    """The error for a split that an annotation file does not have."""
    has = f"it has {', '.join(there)}" if there else "it has none at all"
    return DatasetError(f"{annotation} has no split {split!r}; {has}")
