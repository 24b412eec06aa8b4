"""The layouts by name, and the one that a folder has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corruptions import IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS, Shift, UnknownShift
from benchmarks.datasets import CaptionedImages, DatasetError, load_split
from benchmarks.layouts import fashion_gen, karpathy, nocaps, pedes, tcr

AUTO = "auto"


@dataclass(frozen=True)
class Layout:
    """recognises: whether a folder has this layout. read: one split of it; raises DatasetError."""

    name: str
    holds: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, str], CaptionedImages]


def _is_folder_layout(folder: Path) -> bool:
    return (folder / "captions.tsv").is_file()


_LAYOUTS = (
    Layout("folder", "captions.tsv, split_NAME.txt, images/", _is_folder_layout, load_split),
    Layout("tcr", "coco_karpathy_SPLIT.json or flickr30k_SPLIT.json", tcr.recognises, tcr.read),
    Layout("karpathy", "dataset_NAME.json", karpathy.recognises, karpathy.read),
    Layout(
        "fashion_gen",
        "full_valid_info_PAI/, extracted_valid_images/",
        fashion_gen.recognises,
        fashion_gen.read,
    ),
    Layout("cuhk_pedes", "reid_raw.json, imgs/", pedes.CUHK_PEDES.recognises, pedes.CUHK_PEDES.read),
    Layout("icfg_pedes", "ICFG-PEDES.json, imgs/", pedes.ICFG_PEDES.recognises, pedes.ICFG_PEDES.read),
    Layout("rstpreid", "data_captions.json, imgs/", pedes.RSTPREID.recognises, pedes.RSTPREID.read),
    Layout(
        "nocaps",
        "annotations.json with domains, or nocaps_val_4500_captions.json",
        nocaps.recognises,
        nocaps.read,
    ),
)
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _LAYOUTS}


def find_layout(folder: Path, name: str = AUTO) -> Layout:
    """The layout of that name; `auto`: the one that the folder has.

    Raises:
        DatasetError: there is no such folder or layout, or the folder has none or several.
    """
    if name != AUTO:
        if name not in LAYOUTS:
            raise DatasetError(f"there is no layout {name!r}; there are {', '.join((AUTO, *LAYOUTS))}")
        return LAYOUTS[name]
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}")
    found = [layout for layout in LAYOUTS.values() if layout.recognises(folder)]
    if len(found) > 1:
        named = ", ".join(layout.name for layout in found)
        raise DatasetError(f"{folder} has the files of several layouts ({named}); name one")
    if not found:
        known = "; ".join(f"{layout.name}: {layout.holds}" for layout in LAYOUTS.values())
        raise DatasetError(f"{folder} has no known layout. Known are {known}")
    return found[0]


def open_dataset(
    folder: Path,
    split: str,
    layout: str = AUTO,
    *,
    shift: Shift | None = None,
    corrupted: Path | None = None,
) -> CaptionedImages:
    """One split of a data set, clean, or as it lies corrupted on the disk.

    shift: read the pictures or captions that were corrupted with it beforehand. The `tcr` layout knows where
    they are. For the others, `corrupted` holds one copy of the data set a shift, NAME_SEVERITY or
    NAME/SEVERITY.

    Raises:
        DatasetError: what is missing or malformed, and where it is to be had.
    """
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}")
    found = find_layout(folder, layout)
    if shift is None:
        return found.read(folder, split)
    if corrupted is not None:
        return found.read(_copy(corrupted, shift), split)
    if found.name == "tcr":
        return tcr.read_shifted(folder, split, shift)
    raise DatasetError(
        f"the layout {found.name} has no place of its own for corrupted copies; "
        f"name the folder that holds {_names(shift)[0]}"
    )


def disk_shift(text: str) -> Shift:
    """As `Shift.parse`, and any other NAME or NAME:SEVERITY: the disk may have what is not made here.

    Without a severity: 5, or the highest where there are fewer. Raises DatasetError.
    """
    try:
        return Shift.parse(text)
    except UnknownShift:
        name, colon, number = text.strip().partition(":")
    if not name.replace("_", "").isalnum() or (colon and not (number.isdecimal() and len(number) == 1)):
        raise DatasetError(f"expected NAME or NAME:SEVERITY, found {text!r}")
    known = {known.lower(): known for known in (*IMAGE_CORRUPTIONS, *TEXT_CORRUPTIONS)}
    return Shift(known.get(name.lower(), name), int(number) if colon else 5)


def _copy(corrupted: Path, shift: Shift) -> Path:
    names = _names(shift)
    for name in names:
        if (corrupted / name).is_dir():
            return corrupted / name
    raise DatasetError(f"{corrupted} has no folder {' or '.join(names)}")


def _names(shift: Shift) -> list[str]:
    return [f"{shift.name}{between}{shift.severity}" for between in ("_", "-", "/", ":")]
