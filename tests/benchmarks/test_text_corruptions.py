"""What each text corruption may and may not change."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from benchmarks.corruptions import TEXT_CORRUPTIONS, corrupt_text
from benchmarks.corruptions.constants import OCR_CONFUSIONS, RANDOM_CHARACTERS
from benchmarks.corruptions.text import OCR_TABLE

CAPTION = "A young child in a pink dress climbs ten stairs towards the old wooden entry , smiling ."
NAMES = list(TEXT_CORRUPTIONS)
CHARACTERS = ["OCR", "CI", "CR", "CS", "CD"]


def corrupted(name: str, level: int = 5, seed: int = 0, caption: str = CAPTION) -> str:
    return corrupt_text(caption, name, level, np.random.default_rng(seed))


def changed_words(name: str, seed: int, level: int = 5) -> list[tuple[str, str]]:
    """Pairs (before, after) of the words that changed."""
    before = re.findall(r"\S+", CAPTION.replace(" ,", ",").replace(" .", "."))
    after = corrupted(name, level, seed).split(" ")
    assert len(before) == len(after)
    return [(a, b) for a, b in zip(before, after, strict=True) if a != b]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_text(name: str) -> None:
    assert corrupted(name, seed=4) == corrupted(name, seed=4)
    assert len({corrupted(name, seed=seed) for seed in range(8)}) > 1


@pytest.mark.parametrize("name", CHARACTERS)
@pytest.mark.parametrize(("level", "count"), [(1, 1), (3, 2), (7, 6)])
def test_the_number_of_changed_words_is_the_rate_times_the_tokens(name: str, level: int, count: int) -> None:
    """18 tokens: int(0.05 * 18) = 0 raised to 1, int(0.15 * 18) = 2, int(0.35 * 18) = 6."""
    found = [len(changed_words(name, seed, level)) for seed in range(30)]
    # A random replacement, or a swap of equal letters, may leave a word as it was.
    assert max(found) == count
    assert sum(found) > 0.8 * 30 * count


@pytest.mark.parametrize("name", ["CI", "CR", "CS", "CD"])
def test_words_of_fewer_than_four_letters_are_left_alone(name: str) -> None:
    for seed in range(20):
        assert corrupted(name, seed=seed, caption="a cat on the mat") == "a cat on the mat"
        assert all(len(before.strip(",.")) >= 4 for before, _ in changed_words(name, seed))


def test_insertion_adds_a_third_of_the_letters_at_most() -> None:
    for seed in range(20):
        for before, after in changed_words("CI", seed):
            word = before.strip(",.")
            assert len(after) - len(before) == max(1, int(0.3 * len(word)))
            assert is_subsequence(before, after)


def test_deletion_removes_a_third_of_the_letters_at_most() -> None:
    for seed in range(20):
        for before, after in changed_words("CD", seed):
            assert len(before) - len(after) == max(1, int(0.3 * len(before.strip(",."))))
            assert is_subsequence(after, before)


def test_replacement_draws_from_the_published_characters() -> None:
    for seed in range(20):
        for before, after in changed_words("CR", seed):
            assert len(before) == len(after)
            new = {b for a, b in zip(before, after, strict=True) if a != b}
            assert new <= set(RANDOM_CHARACTERS)


def test_swaps_keep_the_letters_of_a_word() -> None:
    for seed in range(20):
        for before, after in changed_words("CS", seed):
            assert Counter(before.lower()) == Counter(after.lower())


def test_swaps_leave_upper_case_in_its_place() -> None:
    for seed in range(20):
        after = corrupted("CS", seed=seed, caption="Stairs")
        assert after[0].isupper()
        assert after[1:].islower()


def test_recognition_errors_come_from_the_table() -> None:
    seen = 0
    for seed in range(20):
        for before, after in changed_words("OCR", seed):
            for a, b in zip(before, after, strict=True):
                seen += a != b
                assert a == b or b in OCR_TABLE[a]
    assert seen > 20


def test_the_table_holds_in_both_directions() -> None:
    for character, others in OCR_CONFUSIONS.items():
        for other in others:
            assert other in OCR_TABLE[character]
            assert character in OCR_TABLE[other]


def test_swapped_words_are_the_same_words() -> None:
    words = Counter(re.findall("[a-z]+", CAPTION.lower()))
    for seed in range(20):
        assert Counter(corrupted("RS", seed=seed).split()) == words


def test_deleted_words_leave_the_order_and_at_least_one() -> None:
    words = re.findall("[a-z]+", CAPTION.lower())
    shares = []
    for seed in range(200):
        kept = corrupted("RD", 7, seed).split()
        assert is_subsequence(kept, words)
        assert kept
        shares.append(1 - len(kept) / len(words))
    assert abs(np.mean(shares) - 0.35) < 0.05
    assert corrupted("RD", 7, 3, "dog") == "dog"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "caption", ["", " ", ".", "a", "...", "éß 漢字 hübsch ﬁne", "x" * 3000, "one\ttwo\nthree four"]
)
def test_any_text_gives_a_text(name: str, caption: str) -> None:
    for seed in range(5):
        assert isinstance(corrupted(name, 7, seed, caption), str)


@pytest.mark.parametrize("name", CHARACTERS)
def test_end_punctuation_is_attached_to_the_word_before(name: str) -> None:
    after = corrupted(name)
    assert after.endswith(".")
    assert " ," not in after
    assert " ." not in after


def test_unknown_corruption_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'OCR'"):
        corrupted("ocr")


@pytest.mark.parametrize("level", [0, 8])
def test_a_level_outside_one_to_seven_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match="the level is 1 to 7"):
        corrupted("CS", level)


def is_subsequence(short: str | list[str], long: str | list[str]) -> bool:
    rest = iter(long)
    return all(item in rest for item in short)
