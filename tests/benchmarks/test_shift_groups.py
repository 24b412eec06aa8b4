"""What stands around the streams of a run: groups of shifts and the estimate."""

from __future__ import annotations

import pytest

from benchmarks.corruptions import IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS, UnknownShift
from benchmarks.estimate import Estimate, in_words
from benchmarks.protocol import Direction
from benchmarks.shift_groups import shifts_of

BOTH: tuple[Direction, ...] = ("i2t", "t2i")


def names(asked: list[str], *directions: Direction, on_disk: bool = False) -> list[str]:
    return [str(shift) for shift in shifts_of(asked, directions or BOTH, on_disk=on_disk)]


def test_a_group_holds_every_corruption_of_pictures_at_a_severity() -> None:
    assert names(["images"], "i2t") == [f"{name}:5" for name in IMAGE_CORRUPTIONS]
    assert names(["images:2"], "i2t") == [f"{name}:2" for name in IMAGE_CORRUPTIONS]
    assert names(["mm:images:3"], "i2t") == [f"mm:{name}:3" for name in IMAGE_CORRUPTIONS]


def test_texts_take_the_level_or_their_highest() -> None:
    highest = {name: corruption.levels[-1] for name, corruption in TEXT_CORRUPTIONS.items()}
    everything = names(["texts"], "t2i", on_disk=True)
    assert everything == [f"{name}:{level}" for name, level in highest.items()]
    assert names(["texts:max"], "t2i", on_disk=True) == everything
    fifth = names(["texts:5"], "t2i", on_disk=True)
    assert {"OCR:5", f"Formal:{highest['Formal']}"} <= set(fifth)


def test_texts_whose_tools_are_missing_are_left_out_of_a_group() -> None:
    made = names(["texts"], "t2i")
    assert {"OCR:7", "RS:7"} <= set(made)
    assert not [name for name in made if name.startswith(("Formal", "Backtrans"))]


def test_all_is_clean_and_what_fits_each_shift_once() -> None:
    pictures = names(["fog:5", "all"], "i2t")
    assert pictures[:2] == ["fog:5", "clean"]
    assert sorted(pictures) == sorted(["clean", *(f"{name}:5" for name in IMAGE_CORRUPTIONS)])
    assert set(names(["all"])) > set(pictures)


@pytest.mark.parametrize(
    ("asked", "directions", "message"),
    [
        (["images:9"], ("i2t",), "has severities 1 to 5, not '9'"),
        (["images"], ("t2i",), "none of images is for the texts of t2i"),
        (["images"], BOTH, "none of images is for the texts of t2i"),
        (["texts:0"], ("t2i",), "a number from 1 or 'max'"),
        (["mm:texts"], ("t2i",), "a style belongs to corruptions of pictures"),
        (["OCR:5"], ("i2t",), "OCR:5 corrupts texts"),
        (["imags:5"], ("i2t",), "no shift 'imags'"),
    ],
)
def test_a_shift_that_cannot_be_run_is_said(
    asked: list[str], directions: tuple[Direction, ...], message: str
) -> None:
    with pytest.raises(UnknownShift, match=message):
        shifts_of(asked, directions)


def test_an_estimate_goes_by_what_each_method_took() -> None:
    estimate = Estimate()
    assert estimate.seconds_left([("tcr", 10)]) is None
    estimate.add("source", 100, 1.0)
    estimate.add("tcr", 50, 2.5)
    estimate.add("tcr", 50, 3.5)
    # 0.01 s and 0.06 s a query; what has not run yet counts as their mean, 0.035 s.
    assert estimate.seconds_left([("source", 100), ("tcr", 100), ("new", 100)]) == pytest.approx(10.5)
    assert estimate.seconds_left([("tcr", 100)], at_once=2) == pytest.approx(3.0)
    words = [in_words(seconds) for seconds in (None, 12.3, 600.0, 9000.0)]
    assert words == ["", "about 12 s", "about 10 min", "about 2.5 h"]
