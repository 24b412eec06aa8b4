"""Synonyms from a folder of WordNet's database files, as EDA finds them through nltk.

A plain reader, because the files are text and two of them are all that synonyms need: nltk would bring a
dependency and its own downloader for the same files. Its corpus folder, or its wordnet.zip, can be read too.
Format: wndb(5WN), morphology: morphy(7WN), in nltk's order.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path

WHERE_TO_GET_IT = (
    "WordNet is free: the Debian package wordnet-base, `nltk.download('wordnet')`, or WNdb-3.0.tar.gz from "
    "https://wordnet.princeton.edu/download; name its folder dict/"
)
_ENDINGS: Mapping[str, Sequence[tuple[str, str]]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
        ("men", "man"), ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
_MARKER = re.compile(r"\([a-z]+\)$")
_NOT_A_LETTER = re.compile(r"[^a-z ]")


class WordNetError(ValueError):
    """The folder is no WordNet, or a file of it cannot be read."""


class WordNet:
    """WordNet in a `dict` folder or in nltk's wordnet.zip."""

    def __init__(self, folder: Path) -> None:
        """Raises WordNetError: files are missing."""
        self._folder: Traversable = _opened(folder)
        needed = [f"{kind}.{part}" for kind in ("index", "data") for part in _ENDINGS]
        missing = [name for name in needed if not self._folder.joinpath(name).is_file()]
        if missing:
            raise WordNetError(f"{folder} is no WordNet: it lacks {', '.join(missing)}. {WHERE_TO_GET_IT}")
        self._synonyms = lru_cache(maxsize=20_000)(self._find_synonyms)

    def synonyms(self, word: str) -> Sequence[str]:
        """Synonyms of a lower-case word in all its senses, a-z and spaces only, the commonest sense first."""
        return self._synonyms(word)

    def _find_synonyms(self, word: str) -> Sequence[str]:
        found: dict[str, None] = {}
        for part in _ENDINGS:
            for lemma in self._lemmas(word, part):
                for offset in self._index[part][lemma]:
                    found.update(dict.fromkeys(self._words(part, offset)))
        found.pop(word, None)
        return tuple(found)

    def _lemmas(self, word: str, part: str) -> list[str]:
        """The base forms of `word` that are in the index (morphy)."""
        index, exceptions = self._index[part], self._exceptions[part]
        if word in exceptions:
            return _known([word, *exceptions[word]], index)
        forms = _stripped([word], part)
        found = _known([word, *forms], index)
        while forms and not found:
            forms = _stripped(forms, part)
            found = _known(forms, index)
        return found

    def _words(self, part: str, offset: int) -> Iterator[str]:
        """The words of one synset: two hexadecimal digits count them, each is followed by its number."""
        data = self._data[part]
        fields = data[offset : data.find(b"\n", offset)].decode("utf-8", "replace").split(" ")
        try:
            count = int(fields[3], 16)
        except (IndexError, ValueError):
            raise WordNetError(f"data.{part} has no synset at {offset}, where index.{part} says") from None
        for word in fields[4 : 4 + 2 * count : 2]:
            plain = _MARKER.sub("", word).lower().replace("_", " ").replace("-", " ")
            if letters := _NOT_A_LETTER.sub("", plain).strip():
                yield letters

    @cached_property
    def _index(self) -> Mapping[str, Mapping[str, Sequence[int]]]:
        return {part: dict(_index_lines(self._read(f"index.{part}"), part)) for part in _ENDINGS}

    @cached_property
    def _data(self) -> Mapping[str, bytes]:
        return {part: self._folder.joinpath(f"data.{part}").read_bytes() for part in _ENDINGS}

    @cached_property
    def _exceptions(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Irregular forms; a WordNet without these files knows the regular ones."""
        found = {}
        for part in _ENDINGS:
            there = self._folder.joinpath(f"{part}.exc").is_file()
            lines = self._read(f"{part}.exc").splitlines() if there else []
            found[part] = {word: bases for word, *bases in map(str.split, lines) if bases}
        return found

    def _read(self, name: str) -> str:
        return self._folder.joinpath(name).read_bytes().decode("utf-8", "replace")


def _opened(folder: Path) -> Traversable:
    if folder.suffix == ".zip" and folder.is_file():
        try:
            # is_dir() of the zip's folder needs the slash.
            return zipfile.Path(folder, "wordnet/")
        except zipfile.BadZipFile as error:
            raise WordNetError(f"{folder}: {error}") from error
    inside = folder / "dict"
    return inside if inside.is_dir() else folder


def _index_lines(text: str, part: str) -> Iterator[tuple[str, Sequence[int]]]:
    """Lines `lemma pos synset_count ... offset offset`; the licence before them is indented."""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            try:
                lemma, _, count, *rest = line.split()
                yield lemma, [int(offset) for offset in rest[len(rest) - int(count) :]]
            except ValueError:
                raise WordNetError(f"index.{part}: cannot read {line[:60]!r}") from None


def _stripped(forms: Iterable[str], part: str) -> list[str]:
    return [
        form.removesuffix(old) + new for form in forms for old, new in _ENDINGS[part] if form.endswith(old)
    ]


def _known(forms: Iterable[str], index: Mapping[str, object]) -> list[str]:
    return [form for form in dict.fromkeys(forms) if form in index]


def find_wordnet() -> WordNet | None:
    """WordNet where it usually is: WNSEARCHDIR, WNHOME, nltk's data folders, Debian's wordnet-base."""
    return next((WordNet(place) for place in _usual_places() if _looks_right(place)), None)


def _usual_places() -> Iterator[Path]:
    if named := os.environ.get("WNSEARCHDIR"):
        yield Path(named)
    if home := os.environ.get("WNHOME"):
        yield Path(home) / "dict"
    nltk = [Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part]
    for folder in (*nltk, Path.home() / "nltk_data", Path("/usr/share/nltk_data")):
        yield from (folder / "corpora" / name for name in ("wordnet", "wordnet.zip"))
    yield Path("/usr/share/wordnet")


def _looks_right(place: Path) -> bool:
    return place.is_file() if place.suffix == ".zip" else (place / "index.noun").is_file()
