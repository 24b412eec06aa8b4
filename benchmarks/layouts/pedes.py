"""Person search by description: CUHK-PEDES, ICFG-PEDES and RSTPReid.

    CUHK-PEDES/imgs/, reid_raw.json          [{"split", "captions": [...], "file_path", "id"}]
    ICFG-PEDES/imgs/, ICFG-PEDES.json        the same keys
    RSTPReid/imgs/, data_captions.json       "img_path" in place of "file_path"

File names and keys: loaders of github.com/anosorae/IRRA and, for the first two, of
github.com/XLearning-SCU/2025-ICLR-TCR. Splits: train, val, test; ICFG-PEDES has no val. Any picture of the
described person is right, and any caption of a pictured one; pictures of one person stand together: both as
in the TCR loaders. These give captions to the model as written, and so do we.
Guess: an upper or lower case spelling, or `_` for `-`, of ICFG-PEDES.json in other copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets import CaptionedImages, DatasetError
from benchmarks.layouts.entries import Entry, assemble, captions_of, no_split, read_objects, text_of


@dataclass(frozen=True)
class PersonSearch:
    """One of the three sets. files: names its annotation file goes by, the published one first."""

    title: str
    files: Sequence[str]
    path_key: str
    page: str

    def recognises(self, folder: Path) -> bool:
        return self._annotation(folder) is not None

    def read(self, folder: Path, split: str) -> CaptionedImages:
        annotation = self._annotation(folder)
        if annotation is None:
            raise DatasetError(f"{folder} has no {self.files[0]}; {self.title}: {self.page}")
        if not (folder / "imgs").is_dir():
            raise DatasetError(f"{folder} has no folder imgs/; {self.title}: {self.page}")
        entries, there = [], set()
        for where, item in read_objects(annotation):
            named = text_of(item, "split", where)
            there.add(named)
            if named == split:
                entries.append(
                    Entry(
                        text_of(item, self.path_key, where),
                        captions_of(item, "captions", where),
                        text_of(item, "id", where),
                    )
                )
        if not entries:
            raise no_split(annotation, split, sorted(there))
        return assemble(
            folder=folder,
            split=split,
            annotation=annotation,
            entries=entries,
            roots=[folder / "imgs"],
            page=f"{self.title}: {self.page}",
            caption_words=None,
        )

    def _annotation(self, folder: Path) -> Path | None:
        return next((folder / name for name in self.files if (folder / name).is_file()), None)


CUHK_PEDES = PersonSearch(
    "CUHK-PEDES",
    ("reid_raw.json",),
    "file_path",
    "https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
)
ICFG_PEDES = PersonSearch(
    "ICFG-PEDES",
    ("ICFG-PEDES.json", "ICFG_PEDES.json", "icfg_pedes.json"),
    "file_path",
    "https://github.com/zifyloo/SSAN",
)
RSTPREID = PersonSearch(
    "RSTPReid", ("data_captions.json",), "img_path", "https://github.com/NjtechCVLab/RSTPReid-Dataset"
)
