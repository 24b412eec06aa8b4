"""The canaries of the galleries: kept in files beside them, and made ready for the tracks that use them.

`canaries/GALLERY.canaries`, one file a gallery, written atomically; processes that share the folder see each
other's. Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from encoders.base import Encoder, Modality
from index.base import ItemNotFound
from service.codec import BadMessage, pack_canaries, unpack_canaries
from service.files import write_atomically
from service.galleries import Galleries
from service.gallery_side import GallerySide
from service.guard.canaries import Canaries, CanaryCheck, CheckCanaries
from service.messages import Canary, Target

log = structlog.get_logger(__name__)

_SUFFIX = ".canaries"
_NONE = CanaryCheck((), ())


@dataclass(frozen=True)
class _Ready:
    """Prepared canaries of one gallery and direction, and what they were prepared from."""

    mark: tuple[Any, ...]
    canaries: Canaries | None


class CanaryStore:
    def __init__(self, folder: Path, galleries: Galleries, encoder: Encoder) -> None:
        self._folder = folder
        self._galleries = galleries
        self._encoder = encoder
        self._ready: dict[tuple[str, str, str], _Ready] = {}

    # -- actions ------------------------------------------------------------------------------------

    def set(self, name: str, canaries: Sequence[Canary]) -> dict[str, Any]:
        """Replace the gallery's canaries. Raises GalleryNotFound, ItemNotFound, StorageFailed."""
        gallery = self._galleries.usable(name)
        for canary in canaries:
            if canary.answer not in gallery:
                raise ItemNotFound(f"gallery {name!r} has no item {canary.answer!r}")
        write_atomically(self._path(name), pack_canaries(canaries))
        return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        """Raises GalleryNotFound."""
        self._galleries.usable(name)
        return {
            "gallery": name,
            "canaries": [
                {"kind": canary.query.kind, "text": canary.query.text, "answer": canary.answer}
                for canary in self._read(name)
            ],
        }

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    # -- checking -----------------------------------------------------------------------------------

    def check(self, name: str, modality: Modality, target: Target) -> CheckCanaries | None:
        """A check for tracks of this gallery and direction; None where the gallery has no canaries."""
        try:
            stamp = self._path(name).stat()
        except OSError:
            return None
        gallery = self._galleries.usable(name)
        mark = (stamp.st_mtime_ns, stamp.st_ino, gallery.created_at, gallery.generation)

        def run(parameters: Mapping[str, Tensor]) -> CanaryCheck:
            key = (name, modality, target)
            ready = self._ready.get(key)
            if ready is None or ready.mark != mark:
                side = GallerySide(gallery, target, self._encoder.device)
                ready = self._ready[key] = _Ready(mark, self._prepared(name, modality, target, side))
            return _NONE if ready.canaries is None else ready.canaries.check(parameters)

        return run

    def _prepared(self, name: str, modality: Modality, target: Target, side: GallerySide) -> Canaries | None:
        mine = [canary for canary in self._read(name) if canary.query.kind == modality]
        positions = self._galleries.usable(name).positions(target, [canary.answer for canary in mine])
        rows = [row for row, position in enumerate(positions) if position >= 0]
        if not rows:
            return None
        tower = self._encoder.towers[modality]
        queries = [mine[row].query for row in rows]
        wanted = [query.text if modality == "text" else query.pixels for query in queries]
        with torch.no_grad():
            inputs = tower.prepare(wanted)  # type: ignore[arg-type]
        return Canaries(tower=tower, inputs=inputs, answers=positions[rows], side=side)

    def _read(self, name: str) -> tuple[Canary, ...]:
        path = self._path(name)
        if not path.is_file():
            return ()
        try:
            return unpack_canaries(path.read_bytes())
        except (BadMessage, OSError) as error:
            log.exception("canaries_unreadable", gallery=name, why=str(error))
            return ()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"
