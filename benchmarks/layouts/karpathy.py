"""Karpathy's splits: one dataset_NAME.json beside the pictures.

    dataset_coco.json    {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}

File names and keys: caption_datasets.zip of cs.stanford.edu/people/karpathy/deepimagesent, as many public
loaders read it; `filepath` is there on COCO only. Splits: train, restval (COCO), val, test. On COCO the first
5 captions of a picture are kept, as in the TCR loaders: 25,000 captions for 5,000 pictures.
Guess: where the pictures stand; the folder itself and the usual names of the unpacked archives are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.datasets import CaptionedImages, DatasetError
from benchmarks.layouts.entries import Entry, assemble, captions_of, no_split, read_objects, text_of

PAGE = (
    "annotations: https://cs.stanford.edu/people/karpathy/deepimagesent/; pictures: "
    "https://cocodataset.org/#download, https://shannon.cs.illinois.edu/DenotationGraph/"
)
_PICTURES = ("", "images", "flickr30k-images", "flickr30k_images", "Flickr8k_Dataset", "Flicker8k_Dataset")
_COCO_CAPTIONS = 5


def recognises(folder: Path) -> bool:
    return any(folder.glob("dataset_*.json"))


def read(folder: Path, split: str) -> CaptionedImages:
    """Every picture whose `split` is the given one."""
    annotation = _annotation(folder)
    limit = _COCO_CAPTIONS if annotation.stem == "dataset_coco" else None
    entries, there = [], set()
    for where, item in read_objects(annotation, "images"):
        named = text_of(item, "split", where)
        there.add(named)
        if named == split:
            entries.append(Entry(_name(item, where), _captions(item, where)[:limit]))
    if not entries:
        raise no_split(annotation, split, sorted(there))
    roots = [folder / name for name in _PICTURES]
    return assemble(
        folder=folder, split=split, annotation=annotation, entries=entries, roots=roots, page=PAGE
    )


def _annotation(folder: Path) -> Path:
    found = sorted(folder.glob("dataset_*.json"))
    if len(found) != 1:
        there = f"has {', '.join(path.name for path in found)}" if found else "has none"
        raise DatasetError(f"expected one dataset_NAME.json, {folder} {there}; {PAGE}")
    return found[0]


def _name(item: Mapping[str, Any], where: str) -> str:
    name = text_of(item, "filename", where)
    return f"{text_of(item, 'filepath', where)}/{name}" if item.get("filepath") else name


def _captions(item: Mapping[str, Any], where: str) -> list[str]:
    sentences = item.get("sentences")
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, dict) for s in sentences):
        raise DatasetError(f"{where}: expected objects under 'sentences'")
    return [captions_of(sentence, "raw", where)[0] for sentence in sentences]
