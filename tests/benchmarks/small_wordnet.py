"""A WordNet of a few synsets, in the format of its database files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

LICENCE = "  1 This is no WordNet but a few lines in its format.\n"
SYNSETS: Mapping[str, Sequence[Sequence[str]]] = {
    "noun": (
        ("dress", "frock"),
        ("dress", "attire", "garb"),
        ("child", "kid", "youngster", "tiddler"),
        ("entrance", "entranceway", "entry"),
        ("step", "stair"),
        ("ice-cream_cone", "cone"),
        ("2", "deuce"),
    ),
    "verb": (("climb", "climb_up", "mount"), ("dress", "get_dressed")),
    "adj": (("young", "immature"), ("wooden", "woody(a)")),
    "adv": (("upward", "upwards"),),
}
EXCEPTIONS = {"noun": "children child\n", "verb": "clomb climb\n", "adj": "", "adv": ""}


def write_wordnet(folder: Path) -> Path:
    """`folder` filled with index, data and exception files."""
    for part, synsets in SYNSETS.items():
        data = LICENCE
        offsets: dict[str, list[str]] = {}
        for words in synsets:
            offset = len(data.encode())
            for word in words:
                offsets.setdefault(word.partition("(")[0], []).append(f"{offset:08d}")
            numbered = " ".join(f"{word} 0" for word in words)
            data += f"{offset:08d} 03 {part[0]} {len(words):02x} {numbered} 000 | a gloss  \n"
        index = LICENCE + "".join(
            f"{word} {part[0]} {len(places)} 1 @ {len(places)} 0 {' '.join(places)}  \n"
            for word, places in sorted(offsets.items())
        )
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text(index)
        (folder / f"{part}.exc").write_text(EXCEPTIONS[part])
    return folder
