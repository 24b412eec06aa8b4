"""The canaries of the galleries: kept in files beside them, and made ready for the tracks that use them.

`canaries/GALLERY.canaries`, one file a gallery, written atomically; processes that share the folder see each
other's. Owned by the worker's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from encoders.base import Encoder
from index.base import ItemNotFound
from service.codec import BadMessage, pack_canaries, unpack_canaries
from service.composed import ComposedTower, QueryTower, prepared
from service.files import write_atomically
from service.galleries import Galleries
from service.gallery_side import GallerySide
from service.guard.canaries import Canaries, CanaryCheck, CheckCanaries
from service.messages import Canary, QueryKind, Target

log = structlog.get_logger(__name__)

_SUFFIX = ".canaries"
_ALL_KINDS: tuple[QueryKind, ...] = ("image", "text", "image+text")


@dataclass(frozen=True)
class _Prepared:
    """Canaries of one kind. answers: int64 [C], positions of their right answers."""

    inputs: Any
    answers: np.ndarray


@dataclass(frozen=True)
class _Ready:
    """Prepared canaries of one gallery and direction, what they were prepared from, and for which tower."""

    mark: tuple[Any, ...]
    prepared: tuple[_Prepared, ...]
    tower: QueryTower
    canaries: tuple[Canaries, ...]


class CanaryStore:
    def __init__(self, folder: Path, galleries: Galleries, encoder: Encoder) -> None:
        self._folder = folder
        self._galleries = galleries
        self._encoder = encoder
        self._ready: dict[tuple[str, tuple[QueryKind, ...], Target], _Ready] = {}

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

    def check(self, name: str, kind: QueryKind, target: Target, tower: QueryTower) -> CheckCanaries | None:
        """A check for the track of such queries to this gallery; None where the gallery has no canaries.

        A track of anchors is shared by queries of all kinds, and so are its canaries.
        """
        try:
            stamp = self._path(name).stat()
        except OSError:
            return None
        gallery = self._galleries.usable(name)
        mark = (stamp.st_mtime_ns, stamp.st_ino, gallery.created_at, gallery.generation)
        kinds = _ALL_KINDS if target == "anchor" else (kind,)

        def run(parameters: Mapping[str, Tensor]) -> CanaryCheck:
            key = (name, kinds, target)
            ready = self._ready.get(key)
            if ready is None or ready.mark != mark or not _same(ready.tower, tower):
                known = ready.prepared if ready is not None and ready.mark == mark else None
                all_prepared = self._prepared(name, kinds, target, tower) if known is None else known
                side = GallerySide(gallery, target, self._encoder.device)
                canaries = tuple(
                    Canaries(tower=tower, inputs=each.inputs, answers=each.answers, side=side)
                    for each in all_prepared
                )
                ready = self._ready[key] = _Ready(mark, all_prepared, tower, canaries)
            checks = [canaries.check(parameters) for canaries in ready.canaries]
            return CanaryCheck(
                tuple(rank for check in checks for rank in check.adapted),
                tuple(rank for check in checks for rank in check.source),
            )

        return run

    def _prepared(
        self, name: str, kinds: Sequence[QueryKind], target: Target, tower: QueryTower
    ) -> tuple[_Prepared, ...]:
        gallery, all_canaries = self._galleries.usable(name), self._read(name)
        found: list[_Prepared] = []
        for kind in kinds:
            mine = [canary for canary in all_canaries if canary.query.kind == kind]
            positions = gallery.positions(target, [canary.answer for canary in mine])
            rows = [row for row, position in enumerate(positions) if position >= 0]
            if rows:
                with torch.no_grad():
                    inputs = prepared(tower, [mine[row].query for row in rows])
                found.append(_Prepared(inputs, positions[rows]))
        return tuple(found)

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


def _same(one: QueryTower, other: QueryTower) -> bool:
    """Whether both make the same features. Composed towers are made anew with each batch."""
    if isinstance(one, ComposedTower) and isinstance(other, ComposedTower):
        return one.completion is other.completion
    return one is other
