"""Captioned pictures in a folder.

images/            pictures
captions.tsv       header `file<TAB>caption`, then one row a caption; several rows a picture
split_NAME.txt     the files of a split, one a line, as they are written in captions.tsv
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_HEADER = ("file", "caption")
_NAMED = 3
"""How many missing files a message names."""


class DatasetError(Exception):
    """The folder does not hold what it should; the message says what is missing."""


@dataclass(frozen=True)
class CaptionedImages:
    """One split. images: N pictures, captions: M texts, image_of_caption: M positions in images."""

    folder: Path
    split: str
    images: Sequence[Path]
    captions: Sequence[str]
    image_of_caption: Sequence[int]

    @cached_property
    def captions_of_image(self) -> Sequence[Sequence[int]]:
        """For each picture the positions of its captions."""
        found: list[list[int]] = [[] for _ in self.images]
        for caption, image in enumerate(self.image_of_caption):
            found[image].append(caption)
        return found

    @cached_property
    def digest(self) -> str:
        """Hex digest over the pictures' bytes and the captions, in order."""
        return digest_of([path.read_bytes() for path in self.images], [c.encode() for c in self.captions])


def digest_of(*groups: Sequence[bytes]) -> str:
    """sha256 of lists of byte strings; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"{len(group)}|".encode())
        for part in group:
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def load_split(folder: Path, split: str) -> CaptionedImages:
    """The pictures of `split_NAME.txt` in its order, and their captions in the order of captions.tsv.

    Raises:
        DatasetError: the folder, a file or a picture is missing, a line is malformed, or a picture of the
            split has no caption.
    """
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}")
    if not (folder / "images").is_dir():
        raise DatasetError(f"{folder} has no folder images/")
    files = _split_files(folder, split)
    by_file = _captions(folder / "captions.tsv")
    _check(folder, split, files, by_file)
    captions = [caption for file in files for caption in by_file[file]]
    owners = [image for image, file in enumerate(files) for _ in by_file[file]]
    return CaptionedImages(folder, split, [folder / file for file in files], captions, owners)


def _split_files(folder: Path, split: str) -> list[str]:
    path = folder / f"split_{split}.txt"
    if not path.is_file():
        there = sorted(found.stem.removeprefix("split_") for found in folder.glob("split_*.txt"))
        has = f"it has {', '.join(there)}" if there else "it has no split_NAME.txt at all"
        raise DatasetError(f"{folder} has no split {split!r} ({path.name}); {has}")
    files = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not files:
        raise DatasetError(f"{path} lists no file")
    repeated = [file for file, count in _counts(files).items() if count > 1]
    if repeated:
        raise DatasetError(f"{path} lists {_some(repeated)} more than once")
    return files


def _captions(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise DatasetError(f"{path.parent} has no captions.tsv")
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or tuple(lines[0].split("\t")) != _HEADER:
        raise DatasetError(f"{path} does not begin with the header file<TAB>caption")
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines[1:], start=2):
        file, tab, caption = line.partition("\t")
        if not tab or not file or not caption.strip():
            raise DatasetError(f"{path}, line {number}: expected file<TAB>caption, found {line[:60]!r}")
        found.setdefault(file, []).append(caption)
    return found


def _check(folder: Path, split: str, files: Sequence[str], captions: Mapping[str, list[str]]) -> None:
    silent = [file for file in files if file not in captions]
    if silent:
        raise DatasetError(f"captions.tsv of {folder} has no caption for {_some(silent)} of split {split!r}")
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise DatasetError(f"{folder} lacks {_some(absent)} of split {split!r}")


def _counts(files: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in files:
        counts[file] = counts.get(file, 0) + 1
    return counts


def _some(files: Sequence[str]) -> str:
    rest = len(files) - _NAMED
    return ", ".join(files[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
