"""Corruptions of words: EDA's SR, RI, RS and RD, and AEDA's IP.

EDA first makes a caption lower case and leaves only a-z. Where it draws from a Python set, whose order
changes from run to run, the order here is WordNet's own.
"""

from __future__ import annotations

import re

import numpy as np

from benchmarks.corruptions import constants as c
from benchmarks.corruptions.text_tools import TextTools
from benchmarks.corruptions.wordnet import WordNet

_APOSTROPHE = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]")


def _words(text: str) -> list[str]:
    """Lower case; apostrophes vanish, everything else but a-z is a space."""
    return re.sub(r"[^a-z]+", " ", _APOSTROPHE.sub("", text.lower())).split()


def _how_many(words: list[str], rate: float) -> int:
    return max(1, int(rate * len(words)))


def replace_by_synonyms(text: str, rate: float, rng: np.random.Generator, tools: TextTools) -> str:
    """SR: n distinct words, no stop words, each everywhere by one synonym."""
    wordnet, words = tools.need_wordnet("SR"), _words(text)
    if not words:
        return text
    candidates = [word for word in dict.fromkeys(words) if word not in c.STOP_WORDS]
    left = _how_many(words, rate)
    for position in rng.permutation(len(candidates)):
        synonyms = wordnet.synonyms(candidates[position])
        if synonyms and left:
            chosen = synonyms[int(rng.integers(len(synonyms)))]
            words = [chosen if word == candidates[position] else word for word in words]
            left -= 1
    return " ".join(words)


def insert_synonyms(text: str, rate: float, rng: np.random.Generator, tools: TextTools) -> str:
    """RI: n times the first synonym of a random word at a random place."""
    wordnet, words = tools.need_wordnet("RI"), _words(text)
    if not words:
        return text
    for _ in range(_how_many(words, rate)):
        synonym = _some_synonym(words, wordnet, rng)
        if synonym is not None:
            words.insert(int(rng.integers(len(words))), synonym)
    return " ".join(words)


def _some_synonym(words: list[str], wordnet: WordNet, rng: np.random.Generator) -> str | None:
    for _ in range(c.INSERTION_DRAWS):
        synonyms = wordnet.synonyms(words[int(rng.integers(len(words)))])
        if synonyms:
            return synonyms[0]
    return None


def swap_words(text: str, rate: float, rng: np.random.Generator, tools: TextTools) -> str:
    """RS: two random words change places, n times."""
    words = _words(text)
    if not words:
        return text
    for _ in range(_how_many(words, rate)):
        first = int(rng.integers(len(words)))
        for _ in range(1 + c.SWAP_REDRAWS):
            second = int(rng.integers(len(words)))
            if second != first:
                break
        words[first], words[second] = words[second], words[first]
    return " ".join(words)


def delete_words(text: str, rate: float, rng: np.random.Generator, tools: TextTools) -> str:
    """RD: each word with probability `rate`; one is kept."""
    words = _words(text)
    if not words:
        return text
    kept = [word for word, drawn in zip(words, rng.random(len(words)), strict=True) if drawn > rate]
    return " ".join(kept or [words[rng.integers(len(words))]])


def insert_punctuation(text: str, rate: float, rng: np.random.Generator, tools: TextTools) -> str:
    """IP: a random mark before each of q random words of the caption, q in 1..int(rate * words + 1)."""
    words = text.split(" ")
    if not text.strip():
        return text
    count = int(rng.integers(1, int(rate * len(words) + 1), endpoint=True))
    for place in sorted(rng.choice(len(words), size=count, replace=False), reverse=True):
        words.insert(int(place), c.END_PUNCTUATION[rng.integers(len(c.END_PUNCTUATION))])
    return " ".join(words)
