"""Labelled sound and pictures in a folder with a `labels.tsv`.

Its header names the columns: `label` and at least one of `audio`, `image`, `frames`; `id` may be there,
others are passed over. `frames` is a folder of pictures, of which the middle one by name counts. Paths are
relative to the folder and stay inside it; an empty cell says that the sample lacks that modality.

Nothing is decoded here. Needs neither numpy nor torch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LABELS_FILE = "labels.tsv"
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class LabelledFiles:
    """One sample: where its sound and its picture lie, and what it is."""

    id: str
    label: str
    audio: Path | None = None
    image: Path | None = None

    @property
    def complete(self) -> bool:
        return self.audio is not None and self.image is not None


def read_av_folder(folder: Path) -> list[LabelledFiles]:
    """The samples in the order of the file.

    Raises:
        ValueError: naming file and line, for a column, a path or a row that cannot be, and for no samples.
    """
    listing = folder / LABELS_FILE
    if not listing.is_file():
        raise ValueError(f"{folder} has no {LABELS_FILE}")
    with listing.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = set(rows.fieldnames or ())
        if "label" not in columns or not columns & {"audio", "image", "frames"}:
            raise ValueError(f"{listing}:1: the header needs label, and audio, image or frames")
        samples = list(_samples(folder, listing, rows))
    if not samples:
        raise ValueError(f"{listing} holds no samples")
    return samples


def _samples(folder: Path, listing: Path, rows: csv.DictReader[str]) -> Iterator[LabelledFiles]:
    for number, row in enumerate(rows):
        place = f"{listing}:{rows.line_num}"
        if None in row or None in row.values():
            raise ValueError(f"{place}: the row has not the header's columns")
        label = row["label"].strip()
        if not label:
            raise ValueError(f"{place}: the label is empty")
        audio = _inside(folder, row.get("audio"), place)
        image = _inside(folder, row.get("image"), place) or _middle(folder, row.get("frames"), place)
        if audio is None and image is None:
            raise ValueError(f"{place}: the sample has neither sound nor picture")
        yield LabelledFiles(_id(row, number), label, audio, image)


def _id(row: Mapping[str, str], number: int) -> str:
    return (row.get("id") or "").strip() or str(number)


def _inside(folder: Path, name: str | None, place: str) -> Path | None:
    if not name or not name.strip():
        return None
    path = folder / name.strip()
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place}: {name.strip()} lies outside the folder")
    if not path.exists():
        raise ValueError(f"{place}: there is no file {path}")
    return path


def _middle(folder: Path, name: str | None, place: str) -> Path | None:
    frames = _inside(folder, name, place)
    if frames is None:
        return None
    pictures = sorted(path for path in frames.iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        raise ValueError(f"{place}: {frames} holds no pictures")
    return pictures[len(pictures) // 2]
