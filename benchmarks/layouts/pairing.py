"""Queries from one data set, the gallery from another: which gallery pictures are the queries' own.

A picture finds its counterpart by its file name; else by the last part of the name without its suffix; else
by its captions, where exactly one picture of each set has them. Names alone do not count where everything
else differs: two sets that number their pictures are not the same set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from benchmarks.datasets import CaptionedImages, DatasetError, some
from benchmarks.layouts.catalogue import open_dataset


def _caption_texts(data: CaptionedImages, image: int) -> tuple[str, ...]:
    return tuple(data.captions[caption] for caption in data.captions_of_image[image])


_KEYS: Sequence[tuple[str, Callable[[CaptionedImages, int], Hashable]]] = (
    ("name", lambda data, image: data.picture_names[image]),
    ("stem", lambda data, image: PurePosixPath(data.picture_names[image]).stem),
    ("captions", _caption_texts),
)


@dataclass(frozen=True)
class Pairing:
    """Queries and the gallery they are asked of.

    counterparts  for each query picture its position in the gallery; None where it has none [N]
    by            how many were found by `name`, `stem`, `captions`
    """

    queries: CaptionedImages
    gallery: CaptionedImages
    counterparts: Sequence[int | None]
    by: dict[str, int]

    @property
    def unmatched(self) -> list[str]:
        """Names of the query pictures that the gallery does not have."""
        names = self.queries.picture_names
        return [names[image] for image, other in enumerate(self.counterparts) if other is None]

    @property
    def distractors(self) -> int:
        """Gallery pictures that are right for no query."""
        right = {
            image
            for other in self.counterparts
            if other is not None
            for image in self.gallery.group_of_image[other]
        }
        return len(self.gallery.images) - len(right)

    def right_captions(self, image: int) -> Sequence[int]:
        """Gallery positions of the captions that answer a query picture."""
        other = self.counterparts[image]
        return [] if other is None else self.gallery.right_captions(other)

    def right_images(self, caption: int) -> Sequence[int]:
        """Gallery positions of the pictures that answer a query caption."""
        other = self.counterparts[self.queries.image_of_caption[caption]]
        return [] if other is None else self.gallery.group_of_image[other]

    def describe(self) -> str:
        """One line: how many pictures were matched and how, what was not, how many are distractors."""
        found = ", ".join(f"{count} by {key}" for key, count in self.by.items() if count)
        missing = f"; no counterpart for {some(self.unmatched)}" if self.unmatched else ""
        return (
            f"{len(self.counterparts)} query pictures: {found or 'none matched'}{missing}; "
            f"{self.distractors} of {len(self.gallery.images)} gallery pictures are distractors"
        )

    def require_complete(self) -> Pairing:
        """Itself. Raises DatasetError where a query has no right answer: leaving it out would flatter."""
        if self.unmatched:
            raise DatasetError(
                f"{len(self.unmatched)} of {len(self.counterparts)} query pictures of {self.queries.folder} "
                f"have no counterpart in {self.gallery.folder}: {some(self.unmatched)}"
            )
        return self


def pair(queries: CaptionedImages, gallery: CaptionedImages) -> Pairing:
    """The counterpart of every query picture, and what has none."""
    counterparts: list[int | None] = [None] * len(queries.images)
    by: dict[str, int] = {}
    for name, key in _KEYS:
        places = _unique(gallery, key)
        own = _unique(queries, key)
        by[name] = 0
        for value, image in own.items():
            other = places.get(value)
            if counterparts[image] is None and other is not None and _alike(queries, image, gallery, other):
                counterparts[image] = other
                by[name] += 1
        if None not in counterparts:
            break
    return Pairing(queries, gallery, counterparts, by)


def open_gallery(asked: Sequence[str], split: str) -> CaptionedImages:
    """The gallery of `FOLDER[:SPLIT]`, whatever its layout; further ones only add distractors.

    A gallery without a split has that of the queries, `split`.

    Raises:
        DatasetError: a set cannot be read.
    """
    if not asked:
        raise DatasetError("no gallery is named")
    first, *others = [open_dataset(*_folder_and_split(text, split)) for text in asked]
    return add_distractors(first, others)


def _folder_and_split(text: str, split: str) -> tuple[Path, str]:
    if Path(text).is_dir():
        return Path(text), split
    folder, _, named = text.rpartition(":")
    return (Path(folder), named) if folder and named else (Path(text), split)


def add_distractors(gallery: CaptionedImages, others: Sequence[CaptionedImages]) -> CaptionedImages:
    """A gallery with the pictures and captions of other sets behind its own.

    These never count as right: their names and identities are marked as foreign. Captions are cleaned as
    those of the first set. A picture that is in both sets counts as wrong where it is found in the other one.
    """
    joined = gallery
    for number, other in enumerate(others, start=1):
        start = len(joined.images)
        names = [f"distractors {number}/{name}" for name in other.picture_names]
        identities = [f"distractors {number}/{label}" for label in _labels(other)]
        joined = replace(
            joined,
            images=[*joined.images, *other.images],
            captions=[*joined.captions, *other.captions],
            image_of_caption=[*joined.image_of_caption, *(start + image for image in other.image_of_caption)],
            identities=[*_labels(joined), *identities],
            names=[*joined.picture_names, *names],
        )
    return joined


def _labels(data: CaptionedImages) -> Sequence[str]:
    return data.identities or [str(image) for image in range(len(data.images))]


def _unique(data: CaptionedImages, key: Callable[[CaptionedImages, int], Hashable]) -> dict[Hashable, int]:
    """Positions by key; a key that several pictures have tells nothing."""
    keys = [key(data, image) for image in range(len(data.images))]
    counts = Counter(keys)
    return {value: image for image, value in enumerate(keys) if counts[value] == 1}


def _alike(queries: CaptionedImages, image: int, gallery: CaptionedImages, other: int) -> bool:
    """Whether the two share a caption, or are the same file: one side may be corrupted, not both."""
    shared = set(_caption_texts(queries, image)) & set(_caption_texts(gallery, other))
    return bool(shared) or _same_bytes(queries.images[image], gallery.images[other])


def _same_bytes(one: Path, two: Path) -> bool:
    if one == two:
        return True
    return one.stat().st_size == two.stat().st_size and one.read_bytes() == two.read_bytes()
