"""What each text corruption may and may not change."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corruptions import TEXT_CORRUPTIONS, MissingTool, Shift, TextTools, corrupt_text
from benchmarks.corruptions import constants as c
from benchmarks.corruptions.constants import END_PUNCTUATION, OCR_CONFUSIONS, RANDOM_CHARACTERS, STOP_WORDS
from benchmarks.corruptions.text import OCR_TABLE
from benchmarks.corruptions.wordnet import WordNet, WordNetError, find_wordnet
from tests.benchmarks.small_wordnet import SYNSETS, write_wordnet
from tests.conftest import shared_folder

CAPTION = "A young child in a pink dress climbs ten stairs towards the old wooden entry , smiling ."
NAMES = list(TEXT_CORRUPTIONS)
CHARACTERS = ["OCR", "CI", "CR", "CS", "CD"]
WORDS = ["SR", "RI", "RS", "RD", "IP"]
SENTENCES = ["Formal", "Casual", "Passive", "Active", "Backtrans"]


def rewrite(text: str, rng: np.random.Generator) -> str:
    return f"It is said that {text} {rng.integers(1000)}"


@pytest.fixture(scope="module", autouse=True)
def _tools(tmp_path_factory: pytest.TempPathFactory) -> None:
    global TOOLS
    folder = write_wordnet(tmp_path_factory.mktemp("wordnet"))
    TOOLS = TextTools(WordNet(folder), dict.fromkeys(SENTENCES, rewrite))


TOOLS = TextTools()
"""A small WordNet and a rewriter for each sentence corruption, once the fixture has run."""


def level_of(name: str, wanted: int) -> int:
    return min(wanted, TEXT_CORRUPTIONS[name].levels[-1])


def corrupted(name: str, level: int = 5, seed: int = 0, caption: str = CAPTION) -> str:
    return corrupt_text(caption, name, level_of(name, level), np.random.default_rng(seed), TOOLS)


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
        corrupt_text(CAPTION, "ocr", 5, np.random.default_rng(0))


@pytest.mark.parametrize("level", [0, 8])
def test_a_level_outside_one_to_seven_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match="the level is 1 to 7"):
        corrupt_text(CAPTION, "CS", level, np.random.default_rng(0))


def is_subsequence(short: str | list[str], long: str | list[str]) -> bool:
    rest = iter(long)
    return all(item in rest for item in short)


def test_the_fifteen_are_there_in_the_papers_order() -> None:
    assert [*CHARACTERS, *WORDS, *SENTENCES] == NAMES
    assert [corruption.kind for corruption in TEXT_CORRUPTIONS.values()] == [
        kind for kind in ("character", "word", "sentence") for _ in range(5)
    ]


def test_the_constants_are_the_collected_ones() -> None:
    path = shared_folder("reference", "corruption_constants.json")
    collected = json.loads(path.read_text(encoding="utf-8"))["text"]
    assert [collected["char"], collected["word"], collected["sentence"]] == [CHARACTERS, WORDS, SENTENCES]
    assert collected["ocr_map"] == OCR_CONFUSIONS
    assert collected["punctuation"] == END_PUNCTUATION
    assert collected["rate_per_level"] == c.TEXT_RATE_PER_LEVEL
    assert collected["sentence_levels"] == list(c.SENTENCE_LEVELS)
    assert collected["char_levels"] == list(c.TEXT_LEVELS)
    assert (collected["similarity_min"], collected["max_retries"]) == (c.SIMILARITY_FLOOR, c.SIMILARITY_DRAWS)


def test_eda_joins_what_an_apostrophe_parts_and_parts_what_a_hyphen_joins() -> None:
    words = Counter(
        corrupted(
            "RS", caption="A dog's well-known Ball, the boy\N{RIGHT SINGLE QUOTATION MARK}s 2nd."
        ).split()
    )
    assert words == Counter(["a", "dogs", "well", "known", "ball", "the", "boys", "nd"])


def test_punctuation_is_inserted_before_words_and_nothing_else_changes() -> None:
    words, counts = CAPTION.split(" "), set()
    for seed in range(40):
        after = corrupted("IP", 7, seed).split(" ")
        inserted = len(after) - len(words)
        assert is_subsequence(words, after)
        added = Counter(after) - Counter(words)
        assert all(mark in END_PUNCTUATION for mark in added)
        assert after[-1] == words[-1], "a mark stands before a word, so never at the end"
        counts.add(inserted)
    # 18 words at 0.35: 1 to int(7.3) marks.
    assert counts == set(range(1, 8))


def test_synonyms_replace_distinct_words_everywhere_but_no_stop_words() -> None:
    """18 words at 0.35: int(6.3) = 6 of the seven that have synonyms."""
    caption = f"{CAPTION} another child"
    words = re.findall("[a-z]+", caption.lower())
    seen = set()
    for seed in range(30):
        after = corrupted("SR", 7, seed, caption)
        kept = [word for word in words if word in STOP_WORDS]
        assert is_subsequence(kept, after.split())
        changed = {word for word in set(words) if word not in after.split()}
        assert len(changed) == 6
        seen |= changed
        assert ("kid" in after) + ("youngster" in after) + ("tiddler" in after) <= 1
    assert seen == {"young", "child", "dress", "climbs", "stairs", "wooden", "entry"}


def test_inserted_synonyms_leave_the_words_and_their_order() -> None:
    words = re.findall("[a-z]+", CAPTION.lower())
    synsets = [words for part in SYNSETS.values() for words in part]
    known = set(re.findall("[a-z]+", str(synsets)))
    for seed in range(20):
        after = corrupted("RI", 7, seed).split()
        assert is_subsequence(words, after)
        assert 5 <= len(after) - len(words) <= 10
        assert set(Counter(after) - Counter(words)) <= known


def test_words_without_synonyms_stay() -> None:
    assert corrupted("SR", caption="Of the zebra") == "of the zebra"
    assert corrupted("RI", caption="Of the zebra") == "of the zebra"


@pytest.mark.parametrize(
    ("word", "synonyms"),
    [
        ("dress", ("frock", "attire", "garb", "get dressed")),
        ("dresses", ("dress", "frock", "attire", "garb", "get dressed")),
        ("children", ("child", "kid", "youngster", "tiddler")),
        ("stairs", ("step", "stair")),
        ("climbing", ("climb", "climb up", "mount")),
        ("cone", ("ice cream cone",)),
        ("wooden", ("woody",)),
        ("deuce", ()),
        ("zebra", ()),
    ],
)
def test_synonyms_are_those_of_the_base_form_in_all_senses(word: str, synonyms: tuple[str, ...]) -> None:
    assert TOOLS.wordnet is not None
    assert TOOLS.wordnet.synonyms(word) == synonyms


def test_wordnet_is_read_from_nltks_archive_and_from_the_folder_above_dict(tmp_path: Path) -> None:
    (tmp_path / "dict").mkdir()
    folder = write_wordnet(tmp_path / "dict")
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"wordnet/{file.name}")
    for place in (tmp_path, tmp_path / "wordnet.zip"):
        assert WordNet(place).synonyms("dress")[0] == "frock"


def test_wordnet_is_found_where_its_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path)))
    found = find_wordnet()
    assert found is not None
    assert found.synonyms("stairs") == ("step", "stair")


def test_a_folder_that_is_no_wordnet_says_what_it_lacks_and_where_to_get_it(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    (tmp_path / "data.verb").unlink()
    with pytest.raises(WordNetError, match=r"lacks data\.verb.*wordnet-base"):
        WordNet(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("index.noun", "dress n two 1\n", "cannot read 'dress n two 1'"),
        ("index.noun", "dress n 1 0 1 0 00099999\n", "no synset at 99999"),
    ],
)
def test_a_broken_wordnet_names_the_file(tmp_path: Path, file: str, content: str, message: str) -> None:
    write_wordnet(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(WordNetError, match=message):
        WordNet(tmp_path).synonyms("dress")


@pytest.mark.parametrize("name", ["SR", "RI"])
def test_without_wordnet_the_error_says_where_to_get_it(name: str) -> None:
    with pytest.raises(MissingTool, match=f"{name} takes its words from WordNet.*wordnet-base"):
        corrupt_text(CAPTION, name, 7, np.random.default_rng(0), TextTools())


@pytest.mark.parametrize("name", SENTENCES)
def test_without_a_model_the_error_says_how_to_name_one(name: str) -> None:
    with pytest.raises(MissingTool, match=f"{name} needs a model.*{name}="):
        Shift.parse(name).check(TextTools())
    with pytest.raises(MissingTool, match=f"{name} needs a model"):
        Shift.parse(name).text(CAPTION, np.random.default_rng(0), TextTools())


def test_what_needs_nothing_is_always_ready() -> None:
    for name in [*CHARACTERS, "RS", "RD", "IP", "fog", "clean"]:
        Shift.parse(name).check(TextTools())


@pytest.mark.parametrize("name", ["RD", "IP", "Formal"])
def test_captions_are_redrawn_until_they_are_similar_enough(name: str) -> None:
    """The third candidate is the first that is similar: it is the third that the generator gives."""
    asked: list[str] = []

    def similarity(original: str, candidate: str) -> float:
        assert original == CAPTION
        asked.append(candidate)
        return 0.9 if len(asked) == 3 else 0.89

    tools = TextTools(rewriters={"Formal": rewrite}, similarity=similarity)
    level, rng = level_of(name, 7), np.random.default_rng(5)
    expected = [
        corrupt_text(CAPTION, name, level, rng, TextTools(rewriters=tools.rewriters)) for _ in range(3)
    ]
    assert corrupt_text(CAPTION, name, level, np.random.default_rng(5), tools) == expected[2]
    assert asked == expected


@pytest.mark.parametrize(("name", "draws"), [("RS", 100), ("CS", 1), ("Backtrans", 1)])
def test_the_last_of_a_hundred_draws_is_kept_and_only_words_and_styles_are_redrawn(
    name: str, draws: int
) -> None:
    rng, plain = np.random.default_rng(1), TextTools(rewriters={"Backtrans": rewrite})
    level = level_of(name, 6)
    last = [corrupt_text(CAPTION, name, level, rng, plain) for _ in range(draws)][-1]
    never = TextTools(rewriters=plain.rewriters, similarity=lambda original, candidate: 0.0)
    assert corrupt_text(CAPTION, name, level, np.random.default_rng(1), never) == last
