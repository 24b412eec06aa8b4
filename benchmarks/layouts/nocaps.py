"""Nocaps validation: 4,500 pictures with 10 captions each, of three domains.

    annotations.json                   [{"image", "caption": [...], "domain": "near-domain"}]
    nocaps_val_4500_captions.json      {"images": [{"id", "file_name", "domain"}],
                                        "annotations": [{"image_id", "caption"}]}

The first is the TCR release's (keys and the domains' names: loaders of
github.com/XLearning-SCU/2025-ICLR-TCR, whose pictures' root is the folder itself); the second is published on
nocaps.org (keys as public loaders read them).
Splits: `val`, all of it, or one domain: `in-domain`, `near-domain`, `out-domain`.
Guess: the pictures' folder; the folder itself, images/, val/ and validation/ are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.datasets import CaptionedImages, DatasetError
from benchmarks.layouts.entries import Entry, assemble, captions_of, no_split, read_objects, text_of

PAGE = "Nocaps: https://nocaps.org/download"
WHOLE = "val"
DOMAINS = ("in-domain", "near-domain", "out-domain")
_RELEASED = "annotations.json"
_PUBLISHED = "nocaps_val_4500_captions.json"
_PICTURES = ("", "images", "val", "validation")


def recognises(folder: Path) -> bool:
    return _published(folder) is not None or _is_released(folder / _RELEASED)


def read(folder: Path, split: str) -> CaptionedImages:
    """`val` or one of the domains."""
    published = _published(folder)
    annotation = published or folder / _RELEASED
    if not annotation.is_file():
        raise DatasetError(f"{folder} has neither {_RELEASED} nor {_PUBLISHED}; {PAGE}")
    if split != WHOLE and split not in DOMAINS:
        raise no_split(annotation, split, (WHOLE, *DOMAINS))
    entries = (_published_entries if published else _released_entries)(annotation, split)
    if not entries:
        raise DatasetError(f"{annotation} has no picture of {split!r}")
    roots = [folder / name for name in _PICTURES]
    return assemble(
        folder=folder, split=split, annotation=annotation, entries=entries, roots=roots, page=PAGE
    )


def _published(folder: Path) -> Path | None:
    places = (folder / _PUBLISHED, folder / "annotations" / _PUBLISHED)
    return next((path for path in places if path.is_file()), None)


def _is_released(path: Path) -> bool:
    """Whether the first entry has a domain: many sets call their file annotations.json."""
    try:
        return path.is_file() and "domain" in next(read_objects(path))[1]
    except (DatasetError, StopIteration):
        return False


def _released_entries(annotation: Path, split: str) -> Sequence[Entry]:
    return [
        Entry(text_of(item, "image", where), captions_of(item, "caption", where))
        for where, item in read_objects(annotation)
        if split in (WHOLE, text_of(item, "domain", where))
    ]


def _published_entries(annotation: Path, split: str) -> Sequence[Entry]:
    names = {
        text_of(item, "id", where): text_of(item, "file_name", where)
        for where, item in read_objects(annotation, "images")
        if split in (WHOLE, text_of(item, "domain", where))
    }
    captions: dict[str, list[str]] = {}
    for where, item in read_objects(annotation, "annotations"):
        owner = text_of(item, "image_id", where)
        captions.setdefault(owner, []).append(captions_of(item, "caption", where)[0])
    silent = [name for number, name in names.items() if number not in captions]
    if silent:
        raise DatasetError(f"{annotation} has no caption for {silent[0]}")
    return [Entry(name, captions[number]) for number, name in names.items()]
