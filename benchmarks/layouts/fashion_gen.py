"""Fashion-Gen as the TCR release reads it: pictures of products, one record a picture.

    extracted_valid_images/PRODUCT_NUMBER.png       pictures
    full_valid_info_PAI/*                           records {"captions", "img_name", "super_cls_id", ...}

Folders, keys and order (records by file name, pictures of one product together): loaders of
github.com/XLearning-SCU/2025-ICLR-TCR. Any picture of the product is right for its captions, and the other
way round; the product is what stands before the first `_` of `img_name`; captions keep 77 words: all as
there. Splits: `valid` (which the paper calls test), `train`, and with a class, `valid-21` or `train-21`, only
the records of that `super_cls_id` (the release's personalised setting takes 21).
The records are pickles. They are read as data (`records.py`): nothing that they name is imported or run.
Guess: what else a record holds, which is not looked at, and that `train` is named like `valid`.
The HDF5 files of fashion-gen.com are not read; the release's folder is made from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.datasets import CaptionedImages, DatasetError
from benchmarks.layouts.entries import Entry, assemble, captions_of, no_split, text_of
from benchmarks.layouts.records import read_record

PAGE = (
    "Fashion-Gen: https://arxiv.org/abs/1806.08317; the folder is linked from "
    "https://github.com/XLearning-SCU/2025-ICLR-TCR"
)
_SPLITS = {"valid": "valid", "val": "valid", "test": "valid", "train": "train"}
_CAPTION_WORDS = 77


def recognises(folder: Path) -> bool:
    return any((folder / f"full_{name}_info_PAI").is_dir() for name in ("valid", "train"))


def read(folder: Path, split: str) -> CaptionedImages:
    """`valid` or `train`, either with `-CLASS`."""
    name, _, wanted = split.partition("-")
    if name not in _SPLITS:
        raise no_split(folder, split, ("valid", "train", "valid-21"))
    part = _SPLITS[name]
    records, pictures = folder / f"full_{part}_info_PAI", folder / f"extracted_{part}_images"
    for needed in (records, pictures):
        if not needed.is_dir():
            raise DatasetError(f"{folder} has no folder {needed.name}/; {PAGE}")
    entries = [
        _entry(item, where)
        for where, item in _records(records)
        if not wanted or text_of(item, "super_cls_id", where) == wanted
    ]
    if not entries:
        raise DatasetError(f"{records} has no record" + (f" of class {wanted!r}" if wanted else ""))
    return assemble(
        folder=folder,
        split=split,
        annotation=records,
        entries=entries,
        roots=[pictures],
        page=PAGE,
        caption_words=_CAPTION_WORDS,
    )


def _records(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        yield str(path), read_record(path)


def _entry(item: Mapping[str, Any], where: str) -> Entry:
    name = text_of(item, "img_name", where)
    return Entry(name, captions_of(item, "captions", where), identity=name.partition("_")[0])
