"""Shifts by name and in groups.

fog:3, mm:fog:3, OCR:5, clean    one shift, as `Shift.parse` reads it
images, images:3                 the sixteen corruptions of pictures (severity 5 without one)
mm:images:3                      the same in the style of COCO-C and Flickr-C
texts, texts:5, texts:max        the corruptions of texts that nothing is missing for; without a level, or
                                 with one that they do not have, at their highest
all                              clean, images, texts
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.corruptions import CLEAN, IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS, Shift, UnknownShift
from benchmarks.corruptions.text_tools import MissingTool
from benchmarks.layouts import disk_shift
from benchmarks.protocol import Direction

_MODALITY: dict[Direction, str] = {"i2t": "image", "t2i": "text"}
_GROUP = re.compile(r"(?P<style>\w+:)??(?P<name>images|texts)(?::(?P<severity>\w+))?")
_SEVERITY, _MAX = "5", "max"
_CAPTION = "a brown dog runs over the green grass"


def shifts_of(names: Sequence[str], directions: Sequence[Direction], *, on_disk: bool = False) -> list[Shift]:
    """The shifts in the order that they are asked for, each once; of a group those that fit a direction.

    on_disk  the corrupted queries are read: texts need no tools, and other names may be there too

    Raises:
        UnknownShift: there is none of that name, it fits no direction, or a direction gets none.
    """
    found: dict[Shift, None] = {}
    for name in names:
        group = _group(name, on_disk)
        for shift in (_one(name, on_disk),) if group is None else group:
            if any(fits(shift, direction) for direction in directions):
                found[shift] = None
            elif group is None:
                asked = " and ".join(f"{_MODALITY[direction]}s" for direction in directions)
                raise UnknownShift(
                    f"{shift} corrupts {shift.modality}s, "
                    f"but the queries of {' and '.join(directions)} are {asked}"
                )
    for direction in directions:
        if not any(fits(shift, direction) for shift in found):
            raise UnknownShift(
                f"none of {', '.join(names)} is for the {_MODALITY[direction]}s of {direction}"
            )
    return list(found)


def fits(shift: Shift, direction: Direction) -> bool:
    """Whether the queries of a direction can have this shift; a name that only the disk has may fit any."""
    known = shift.name in IMAGE_CORRUPTIONS or shift.name in TEXT_CORRUPTIONS
    return not known or shift.modality == _MODALITY[direction]


def _one(name: str, on_disk: bool) -> Shift:
    return disk_shift(name) if on_disk and name != CLEAN else Shift.parse(name)


def _group(name: str, on_disk: bool) -> Sequence[Shift] | None:
    """The shifts of a group; None where the name is no group's."""
    if name == "all":
        return [Shift.parse(CLEAN), *_images("", _SEVERITY), *_texts(_MAX, on_disk)]
    group = _GROUP.fullmatch(name)
    if group is None:
        return None
    if group["name"] == "images":
        severity = group["severity"]
        return list(_images(group["style"] or "", _SEVERITY if severity in (None, _MAX) else severity))
    if group["style"]:
        raise UnknownShift(f"{name!r}: a style belongs to corruptions of pictures")
    return list(_texts(group["severity"] or _MAX, on_disk))


def _images(style: str, severity: str) -> Iterator[Shift]:
    return (Shift.parse(f"{style}{name}:{severity}") for name in IMAGE_CORRUPTIONS)


def _texts(level: str, on_disk: bool) -> Iterator[Shift]:
    if level != _MAX and not (level.isdecimal() and int(level) >= 1):
        raise UnknownShift(f"a level of texts is a number from 1 or {_MAX!r}, not {level!r}")
    for name, corruption in TEXT_CORRUPTIONS.items():
        levels = [str(one) for one in corruption.levels]
        shift = Shift.parse(f"{name}:{level if level in levels else levels[-1]}")
        if on_disk or _can_be_made(shift):
            yield shift


def _can_be_made(shift: Shift) -> bool:
    try:
        shift.text(_CAPTION, np.random.default_rng(0))
    except MissingTool:
        return False
    return True
