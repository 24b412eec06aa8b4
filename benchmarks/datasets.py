"""Captioned pictures, and the simple folder layout; `benchmarks.layouts` reads the published ones.

images/            pictures
captions.tsv       header `file<TAB>caption`, then one row a caption; several rows a picture
split_NAME.txt     the files of a split, one a line, as they are written in captions.tsv
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from encoders.preprocessing import clean_caption

_HEADER = ("file", "caption")
_NAMED = 3
"""How many missing files a message names."""


_LONGEST_NAME = 255
"""Bytes of one part of a path."""
_LONGEST = 1024
"""Characters of a path in an annotation file."""


class DatasetError(Exception):
    """The folder does not hold what it should; the message says what is missing."""


@dataclass(frozen=True)
class CaptionedImages:
    """One split. images: N pictures, captions: M texts, image_of_caption: M positions in images.

    identities: N labels; pictures with the same one (a person, a product) are right for each other's
    captions. Empty: every picture is its own.
    names: N file names, relative to where the data set keeps its pictures; two copies of a set share them.
    Empty: relative to the folder.
    caption_words: how many words of a cleaned caption the papers keep on this set; None: captions as written.
    """

    folder: Path
    split: str
    images: Sequence[Path]
    captions: Sequence[str]
    image_of_caption: Sequence[int]
    identities: Sequence[str] = ()
    names: Sequence[str] = ()
    caption_words: int | None = 30

    @cached_property
    def captions_of_image(self) -> Sequence[Sequence[int]]:
        """For each picture the positions of its own captions."""
        found: list[list[int]] = [[] for _ in self.images]
        for caption, image in enumerate(self.image_of_caption):
            found[image].append(caption)
        return found

    @cached_property
    def group_of_image(self) -> Sequence[Sequence[int]]:
        """For each picture the positions of all of its identity, itself among them, ascending."""
        if not self.identities:
            return [[image] for image in range(len(self.images))]
        members: dict[str, list[int]] = {}
        for image, identity in enumerate(self.identities):
            members.setdefault(identity, []).append(image)
        return [members[identity] for identity in self.identities]

    def right_captions(self, image: int) -> Sequence[int]:
        """Positions of the captions that answer a picture: those of every picture of its identity."""
        own = self.captions_of_image
        return [caption for other in self.group_of_image[image] for caption in own[other]]

    def right_images(self, caption: int) -> Sequence[int]:
        """Positions of the pictures that answer a caption."""
        return self.group_of_image[self.image_of_caption[caption]]

    @cached_property
    def picture_names(self) -> Sequence[str]:
        """`names`, or the pictures' paths relative to the folder."""
        return self.names or [path.relative_to(self.folder).as_posix() for path in self.images]

    def clean(self, caption: str) -> str:
        """A caption as the papers give it to a model on this set."""
        return caption if self.caption_words is None else clean_caption(caption, self.caption_words)

    @cached_property
    def digest(self) -> str:
        """Hex digest over the pictures' bytes and the captions, in order."""
        return digest_of(self.images, [caption.encode() for caption in self.captions])


def digest_of(*groups: Sequence[bytes | Path]) -> str:
    """sha256 of lists of byte strings or files; where one ends and the next begins counts.

    Files are read one at a time: a data set may be larger than the memory.
    """
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"{len(group)}|".encode())
        for part in group:
            content = part.read_bytes() if isinstance(part, Path) else part
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def check_name(name: str, listed_in: Path) -> str:
    """`name`, if it stays in the folder that it is joined to; links in that folder are the owner's affair.

    Raises:
        DatasetError: it is empty, absolute, on a drive, climbs with `..`, by either separator, is longer than
            a file system takes, or has characters that cannot be shown.
    """
    windows = PureWindowsPath(name)
    climbs = ".." in windows.parts or ".." in PurePosixPath(name).parts
    if not windows.parts or windows.drive or windows.root or climbs:
        raise DatasetError(f"{listed_in} names {name[:80]!r}, which is not a file inside the data set")
    printable = name.isprintable()
    if (
        not printable
        or any(len(part.encode()) > _LONGEST_NAME for part in windows.parts)
        or len(name) > _LONGEST
    ):
        raise DatasetError(f"{listed_in} names {name[:80]!r}, which is no file name")
    return name


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
    lines = path.read_text(encoding="utf-8").splitlines()
    files = [check_name(line.strip(), path) for line in lines if line.strip()]
    if not files:
        raise DatasetError(f"{path} lists no file")
    repeated = [file for file, count in Counter(files).items() if count > 1]
    if repeated:
        raise DatasetError(f"{path} lists {some(repeated)} more than once")
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
        raise DatasetError(f"captions.tsv of {folder} has no caption for {some(silent)} of split {split!r}")
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise DatasetError(f"{folder} lacks {some(absent)} of split {split!r}")


def some(files: Sequence[str]) -> str:
    """The first of them and how many more."""
    rest = len(files) - _NAMED
    return ", ".join(files[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
