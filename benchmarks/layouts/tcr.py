"""COCO, Flickr30k, COCO-C and Flickr-C as the TCR release and BLIP lay them out.

    coco/coco_annotations/coco_karpathy_test.json       [{"image": "val2014/...jpg", "caption": ["...", ...]}]
    coco/coco_image/                                    clean pictures
    coco-IP/coco_image/, coco-IP/COCO_IP_fog_5/         clean and corrupted pictures, a folder a severity
    coco-TP/coco_annotations/                           clean captions
    coco-TP/annotation_OcrAug/5/coco_karpathy_test.json corrupted captions
    flickr..., flickr30k_test.json, Flickr30K_IP_fog_5  likewise

Folders, file names and keys: configuration and loaders of github.com/XLearning-SCU/2025-ICLR-TCR, the
corrupted ones also in the generators of github.com/Jielin-Qiu/MM_Robustness; the annotation files are BLIP's.
From the TCR loaders: at most 5 captions a picture on COCO, all on Flickr30k.
Guesses: whether corrupted pictures stand flat (as the generator writes them) or under val2014/ (as the
annotations name them): both are read. A BLIP folder without the release's folders around it is read too:
annotations in it or in annotations/, pictures in it or in images/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corruptions import IMAGE_CORRUPTIONS, Shift
from benchmarks.datasets import CaptionedImages, DatasetError
from benchmarks.layouts.entries import Entry, assemble, captions_of, read_objects, text_of

PAGE = "the corrupted sets are linked from https://github.com/XLearning-SCU/2025-ICLR-TCR"

_TEXT_FOLDERS: Mapping[str, str] = {
    "ocr": "OcrAug",
    "ci": "RandomCharAug_insert",
    "cr": "RandomCharAug_substitute",
    "cs": "RandomCharAug_swap",
    "cd": "RandomCharAug_delete",
    "keyboard": "KeyboardAug",
    "sr": "sr",
    "ri": "ri",
    "rs": "rs",
    "rd": "rd",
    "ip": "ip",
    "formal": "formal",
    "casual": "casual",
    "passive": "passive",
    "active": "active",
    "backtrans": "back_trans",
    "back_trans": "back_trans",
    "back_translation": "back_trans",
}
"""Lower-case names of the text shifts and what follows `annotation_` in the release."""


@dataclass(frozen=True)
class _Set:
    """One of the two sets: its folders' prefix, its files' and its pictures' folders' names."""

    prefix: str
    annotation: str
    pictures: str
    page: str
    captions: int | None


_SETS = (
    _Set(
        "coco",
        "coco_karpathy_{split}.json",
        "COCO_IP_{name}_{severity}",
        "pictures: https://cocodataset.org/#download (val2014)",
        5,
    ),
    _Set(
        "flickr",
        "flickr30k_{split}.json",
        "Flickr30K_IP_{name}_{severity}",
        "pictures: https://shannon.cs.illinois.edu/DenotationGraph/",
        None,
    ),
)


@dataclass(frozen=True)
class _Place:
    """Where a set is: `base` holds coco/, coco-IP/, coco-TP/; `folder` is what the user named."""

    kind: _Set
    base: Path
    folder: Path

    @property
    def page(self) -> str:
        return f"{self.kind.page}; {PAGE}"

    def part(self, suffix: str) -> Path:
        return self.base / f"{self.kind.prefix}{suffix}"

    def annotations(self) -> Sequence[Path]:
        name = f"{self.kind.prefix}_annotations"
        released = [self.part("") / name, self.part("-TP") / name, self.part("")]
        return [*released, self.folder, self.folder / "annotations", self.folder / "annotation"]

    def pictures(self) -> Sequence[Path]:
        name = f"{self.kind.prefix}_image"
        released = [self.part("") / name, self.part("-IP") / name, self.part("")]
        return [*released, self.folder, self.folder / "images"]


def recognises(folder: Path) -> bool:
    return bool(_places(folder))


def read(folder: Path, split: str) -> CaptionedImages:
    """The clean split: `test`, `val` or `train`."""
    place = _place(folder)
    annotation = _annotation(place, split, place.annotations())
    return _assemble(place, split, annotation, place.pictures())


def read_shifted(folder: Path, split: str, shift: Shift) -> CaptionedImages:
    """The split with the pictures, or the captions, that the release holds for a shift."""
    place = _place(folder)
    if shift.name in IMAGE_CORRUPTIONS:
        pattern = place.kind.pictures.format(name=shift.name, severity=shift.severity)
        root = _shift_folder(place.part("-IP"), pattern, shift, place)
        return _assemble(place, split, _annotation(place, split, place.annotations()), [root])
    known = _TEXT_FOLDERS.get(shift.name.lower())
    if known is None:
        there = ", ".join((*IMAGE_CORRUPTIONS, *_TEXT_FOLDERS))
        raise DatasetError(f"the release has no shift {shift.name!r}; it has {there}")
    root = _shift_folder(place.part("-TP"), f"annotation_{known}/{shift.severity}", shift, place)
    return _assemble(place, split, _annotation(place, split, [root]), place.pictures(), blank=True)


def _shift_folder(parent: Path, pattern: str, shift: Shift, place: _Place) -> Path:
    root = parent / pattern
    if root.is_dir():
        return root
    beside = pattern.rpartition(str(shift.severity))[0]
    there = sorted(path.relative_to(parent).as_posix() for path in parent.glob(f"{beside}*") if path.is_dir())
    has = f"there is {', '.join(there)}" if there else "no severity of it is there"
    raise DatasetError(f"there is no folder {root} for {shift}; {has}; {place.page}")


def _annotation(place: _Place, split: str, folders: Sequence[Path]) -> Path:
    name = place.kind.annotation.format(split=split)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()) or str(folders[0])
    raise DatasetError(f"there is no {name} in {looked}; {place.page}")


def _assemble(
    place: _Place, split: str, annotation: Path, pictures: Sequence[Path], *, blank: bool = False
) -> CaptionedImages:
    entries = [
        Entry(
            text_of(item, "image", where),
            captions_of(item, "caption", where, blank=blank)[: place.kind.captions],
        )
        for where, item in read_objects(annotation)
    ]
    if not entries:
        raise DatasetError(f"{annotation} lists no picture")
    return assemble(
        folder=place.folder,
        split=split,
        annotation=annotation,
        entries=entries,
        roots=pictures,
        page=place.page,
    )


def _place(folder: Path) -> _Place:
    places = _places(folder)
    if len(places) > 1:
        parts = " or ".join(str(place.part("")) for place in places)
        raise DatasetError(f"{folder} holds several data sets; name one: {parts}")
    if not places:
        names = ", ".join(kind.annotation.format(split="SPLIT") for kind in _SETS)
        raise DatasetError(f"{folder} holds no {names}; {PAGE}")
    return places[0]


def _places(folder: Path) -> Sequence[_Place]:
    resolved = folder.resolve()
    named = []
    for kind in _SETS:
        parts = [f"{kind.prefix}{suffix}" for suffix in ("", "-IP", "-TP")]
        place = _Place(kind, resolved.parent, folder)
        if resolved.name in parts and _has_annotation(place):
            return [place]
        inside = _Place(kind, folder, folder)
        if _has_annotation(inside):
            named.append(inside)
    return named


def _has_annotation(place: _Place) -> bool:
    pattern = place.kind.annotation.format(split="*")
    return any(next(folder.glob(pattern), None) for folder in place.annotations() if folder.is_dir())
