"""The 15 text corruptions of the retrieval benchmarks (methods.md 5.2).

Characters, after nlpaug 1.1.7: OCR confusions, CI insert, CR replace, CS swap, CD delete. Words, after EDA
(`words.py`): SR, RI, RS, RD, and IP. Sentences: Formal, Casual, Passive, Active, Backtrans, through models.
Level L changes about a share p = 0.05 L of the words. As in the papers, those of words and styles are redrawn
until they are similar enough, where a similarity is given; without one they are taken as they come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np

from benchmarks.corruptions import constants as c
from benchmarks.corruptions import words
from benchmarks.corruptions.text_tools import TextTools, usual_tools

CorruptWord = Callable[[str, np.random.Generator], str]
CorruptText = Callable[[str, float, np.random.Generator, TextTools], str]
Kind = Literal["character", "word", "sentence"]

_TOKENS = re.compile(r"\w+|[^\w\s]")


def _both_ways(table: Mapping[str, str]) -> dict[str, str]:
    """Every confusion and its reverse, each character's candidates in a fixed order without repeats."""
    pairs = [(a, b) for a, others in table.items() for b in others]
    both: dict[str, list[str]] = {}
    for a, b in [*pairs, *((b, a) for a, b in pairs)]:
        both.setdefault(a, [])
        if b not in both[a]:
            both[a].append(b)
    return {character: "".join(others) for character, others in both.items()}


OCR_TABLE: Mapping[str, str] = _both_ways(c.OCR_CONFUSIONS)


def _clamp(value: float, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], int(value)))


def _positions(candidates: Sequence[int], length: int, rng: np.random.Generator) -> list[int]:
    """Which characters of a word of `length` change: int(0.3 length), 1 to 10, of the candidates."""
    count = min(_clamp(c.CHARACTER_SHARE * length, c.CHARACTERS_PER_WORD), len(candidates))
    return sorted(int(i) for i in rng.choice(np.asarray(candidates), size=count, replace=False))


def _random_character(rng: np.random.Generator) -> str:
    return c.RANDOM_CHARACTERS[rng.integers(len(c.RANDOM_CHARACTERS))]


def _ocr(word: str, rng: np.random.Generator) -> str:
    confusable = [i for i, character in enumerate(word) if character in OCR_TABLE]
    characters = list(word)
    for i in _positions(confusable, len(word), rng):
        others = OCR_TABLE[characters[i]]
        characters[i] = others[rng.integers(len(others))]
    return "".join(characters)


def _insert(word: str, rng: np.random.Generator) -> str:
    characters = list(word)
    for i in reversed(_positions(range(len(word)), len(word), rng)):
        characters.insert(i, _random_character(rng))
    return "".join(characters)


def _replace(word: str, rng: np.random.Generator) -> str:
    characters = list(word)
    for i in _positions(range(len(word)), len(word), rng):
        characters[i] = _random_character(rng)
    return "".join(characters)


def _swap(word: str, rng: np.random.Generator) -> str:
    """Characters change places with a neighbour; upper case stays where it was."""
    characters = list(word)
    for i in _positions(range(len(word)), len(word), rng):
        step = 1 if rng.random() < 0.5 else -1
        j = i + step if 0 <= i + step < len(characters) else i - step
        first, second = characters[i], characters[j]
        characters[i], characters[j] = _cased_like(second, first), _cased_like(first, second)
    return "".join(characters)


def _cased_like(character: str, place: str) -> str:
    changed = character.upper() if place.isupper() else character.lower() if place.islower() else character
    # Some letters have a two-letter form in the other case; they keep theirs.
    return changed if len(changed) == 1 else character


def _delete(word: str, rng: np.random.Generator) -> str:
    gone = set(_positions(range(len(word)), len(word), rng))
    return "".join(character for i, character in enumerate(word) if i not in gone)


def _characters(change: CorruptWord, eligible: Callable[[str], bool]) -> CorruptText:
    """Apply `change` to int(p * tokens) of the eligible tokens, at least 1 and at most 10."""

    def corrupt(text: str, rate: float, rng: np.random.Generator, tools: TextTools) -> str:
        tokens = _TOKENS.findall(text)
        attached = [token in c.END_PUNCTUATION for token in tokens]
        candidates = [i for i, token in enumerate(tokens) if eligible(token)]
        if not candidates:
            return text
        count = min(_clamp(rate * len(tokens), c.WORDS_PER_TEXT), len(candidates))
        for i in sorted(rng.choice(np.asarray(candidates), size=count, replace=False)):
            tokens[i] = change(tokens[i], rng)
        return _joined(tokens, attached)

    return corrupt


def _joined(tokens: Sequence[str], attached: Sequence[bool]) -> str:
    """Single spaces between tokens, none before those that are attached to the token before them."""
    parts = [token if joined else f" {token}" for token, joined in zip(tokens, attached, strict=True)]
    return "".join(parts).strip()


def _long_enough(token: str) -> bool:
    return len(token) >= c.SHORTEST_WORD


def _confusable(token: str) -> bool:
    return len(token) >= c.SHORTEST_WORD_OCR and any(character in OCR_TABLE for character in token)


def _rewritten(name: str) -> CorruptText:
    def corrupt(text: str, rate: float, rng: np.random.Generator, tools: TextTools) -> str:
        rewrite = tools.need_rewriter(name)
        return rewrite(text, rng) if text.strip() else text

    return corrupt


@dataclass(frozen=True)
class TextCorruption:
    """`filtered`: redrawn until similar enough, where a similarity is given. `needs`: a tool, in words."""

    corrupt: CorruptText
    summary: str
    kind: Kind = "character"
    levels: Sequence[int] = c.TEXT_LEVELS
    filtered: bool = False
    needs: Literal["", "WordNet", "a model", "two models"] = ""


def _of_words(corrupt: CorruptText, summary: str, needs: Literal["", "WordNet"] = "") -> TextCorruption:
    return TextCorruption(corrupt, summary, kind="word", filtered=True, needs=needs)


def _style(name: str, summary: str) -> TextCorruption:
    return TextCorruption(_rewritten(name), summary, "sentence", c.SENTENCE_LEVELS, True, "a model")


# A further corruption is one more entry.
TEXT_CORRUPTIONS: Mapping[str, TextCorruption] = {
    "OCR": TextCorruption(_characters(_ocr, _confusable), "characters confused as by text recognition"),
    "CI": TextCorruption(_characters(_insert, _long_enough), "characters inserted"),
    "CR": TextCorruption(_characters(_replace, _long_enough), "characters replaced"),
    "CS": TextCorruption(_characters(_swap, _long_enough), "neighbouring characters swapped"),
    "CD": TextCorruption(_characters(_delete, _long_enough), "characters deleted"),
    "SR": _of_words(words.replace_by_synonyms, "words replaced by synonyms", "WordNet"),
    "RI": _of_words(words.insert_synonyms, "synonyms inserted", "WordNet"),
    "RS": _of_words(words.swap_words, "words swapped"),
    "RD": _of_words(words.delete_words, "words deleted"),
    "IP": _of_words(words.insert_punctuation, "punctuation marks inserted"),
    "Formal": _style("Formal", "rewritten formally"),
    "Casual": _style("Casual", "rewritten casually"),
    "Passive": _style("Passive", "rewritten in the passive voice"),
    "Active": _style("Active", "rewritten in the active voice"),
    "Backtrans": TextCorruption(
        _rewritten("Backtrans"), "to German and back", "sentence", c.SENTENCE_LEVELS, needs="two models"
    ),
}
"""In the retrieval papers' order."""


def corrupt_text(
    text: str, name: str, severity: int, rng: np.random.Generator, tools: TextTools | None = None
) -> str:
    """A corrupted copy of `text`; where nothing in it can be corrupted, the text itself.

    severity  level 1..7, p = 0.05 * level; sentences have level 1 only
    tools     None: a WordNet where there is one in its usual places, and nothing else

    Raises:
        KeyError: there is no such corruption.
        ValueError: wrong level.
        MissingTool: a WordNet or a model is needed and not there.
    """
    if name not in TEXT_CORRUPTIONS:
        close = get_close_matches(name.upper(), TEXT_CORRUPTIONS, n=1)
        raise KeyError(f"no text corruption {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    corruption, levels = TEXT_CORRUPTIONS[name], TEXT_CORRUPTIONS[name].levels
    if severity not in levels:
        raise ValueError(f"the level is {levels[0]} to {levels[-1]}, not {severity}")
    given = usual_tools() if tools is None else tools
    rate = c.TEXT_RATE_PER_LEVEL * severity
    corrupted = corruption.corrupt(text, rate, rng, given)
    if not corruption.filtered or given.similarity is None or corrupted == text:
        return corrupted
    for _ in range(c.SIMILARITY_DRAWS - 1):
        if given.similarity(text, corrupted) >= c.SIMILARITY_FLOOR:
            break
        corrupted = corruption.corrupt(text, rate, rng, given)
    return corrupted


def check_tools(name: str, tools: TextTools | None = None) -> None:
    """Whether a corruption has what it needs, before the first text. Raises MissingTool."""
    given = usual_tools() if tools is None else tools
    if TEXT_CORRUPTIONS[name].needs == "WordNet":
        given.need_wordnet(name)
    elif TEXT_CORRUPTIONS[name].needs:
        given.need_rewriter(name)
