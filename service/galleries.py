"""The galleries of one server: which are open, which are refused and why. Owned by the worker's thread.

`cards` is the exception: an immutable picture of all galleries, replaced after each change, that any
thread may read.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from encoders.base import Encoder, Modality
from index.base import GalleryError, GalleryNotFound, IndexSettings
from index.gallery import Gallery
from index.items import Item
from index.store import GalleryStore
from service.errors import BadRequest
from service.messages import NewItem, Target

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class GalleryCard:
    """What a request needs to know before it is queued."""

    name: str
    targets: Mapping[Target, int]
    """Vectors by modality."""


class Galleries:
    def __init__(self, store: GalleryStore, encoder: Encoder, *, default_kind: str, batch_size: int) -> None:
        self._store = store
        self._encoder = encoder
        self._default_kind = default_kind
        self._batch_size = batch_size
        self._open: dict[str, Gallery] = {}
        self._refused: dict[str, GalleryError] = {}
        self.cards: Mapping[str, GalleryCard] = {}
        for name in store.names():
            self._try_open(name)
        self._publish()

    def _try_open(self, name: str) -> None:
        try:
            self._open[name] = self._store.open(name, self._encoder.fingerprint)
        except GalleryError as error:  # another encoder's, damaged: listed and deletable, not searched
            self._refused[name] = error
            log.warning("gallery_refused", gallery=name, why=str(error))

    def _publish(self) -> None:
        self.cards = {
            name: GalleryCard(name, {target: gallery.count(target) for target in gallery.targets()})
            for name, gallery in self._open.items()
        }

    def usable(self, name: str) -> Gallery:
        """Raises GalleryNotFound, or why the gallery is refused."""
        if name in self._refused:
            raise self._refused[name]
        try:
            return self._open[name]
        except KeyError:
            raise GalleryNotFound(f"there is no gallery {name!r}") from None

    def exists(self, name: str) -> bool:
        return name in self._open or name in self._refused

    # -- actions ------------------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        return [self.describe(name) for name in sorted([*self._open, *self._refused])]

    def describe(self, name: str) -> dict[str, Any]:
        if name in self._refused:
            return self._describe_refused(name)
        gallery = self.usable(name)
        return {
            "name": name,
            "items": len(gallery),
            "targets": {target: gallery.count(target) for target in gallery.targets()},
            "dimension": gallery.dimension,
            "fingerprint": gallery.fingerprint,
            "index": gallery.settings.to_dict(),
            "created_at": gallery.created_at,
            "generation": gallery.generation,
            "status": "ready",
            "why": "",
        }

    def _describe_refused(self, name: str) -> dict[str, Any]:
        refused = {"name": name, "status": "refused", "why": str(self._refused[name])}
        try:
            info = self._store.describe(name)
        except GalleryError:
            return refused
        return {
            **refused,
            "items": info.items,
            "targets": info.targets,
            "dimension": info.dimension,
            "fingerprint": info.fingerprint,
            "index": info.settings.to_dict(),
            "created_at": info.created_at,
            "generation": info.generation,
        }

    def create(self, name: str, index: Mapping[str, Any] | None) -> dict[str, Any]:
        settings = IndexSettings.from_dict({"kind": self._default_kind, **(index or {})})
        self._open[name] = self._store.create(
            name, self._encoder.dimension, self._encoder.fingerprint, settings
        )
        self._publish()
        return self.describe(name)

    def delete(self, name: str) -> None:
        if not self.exists(name):
            raise GalleryNotFound(f"there is no gallery {name!r}")
        self._store.delete(name)
        self._open.pop(name, None)
        self._refused.pop(name, None)
        self._publish()

    def upsert(self, name: str, items: Sequence[NewItem]) -> Generator[None, None, dict[str, Any]]:
        """Encode what has no vector yet, with the source model, and store all items in one transaction.

        A generator: it yields between the encoder's batches.
        """
        gallery = self.usable(name)
        encoded: list[dict[Target, np.ndarray]] = [dict(item.embeddings) for item in items]
        to_encode: dict[Modality, list[int]] = {
            "image": [row for row, item in enumerate(items) if item.pixels is not None],
            "text": [row for row, item in enumerate(items) if item.text and "text" not in item.embeddings],
        }
        for modality, rows in to_encode.items():
            for start in range(0, len(rows), self._batch_size):
                chunk = rows[start : start + self._batch_size]
                for row, vector in zip(
                    chunk, self._encode(modality, [items[row] for row in chunk]), strict=True
                ):
                    encoded[row][modality] = vector
                yield
        for item, vectors in zip(items, encoded, strict=True):
            if not vectors:
                raise BadRequest(
                    f"item {item.id[:100]!r} has neither text nor image nor embedding", code="empty_item"
                )
        report = gallery.upsert(
            [
                Item(id=item.id, payload=dict(item.payload), text=item.text, vectors=vectors)
                for item, vectors in zip(items, encoded, strict=True)
            ]
        )
        self._publish()
        return {"added": report.added, "replaced": report.replaced, "items": len(gallery)}

    def _encode(self, modality: Modality, items: Sequence[NewItem]) -> np.ndarray:
        tower = self._encoder.towers[modality]
        wanted = [item.text if modality == "text" else item.pixels for item in items]
        features: np.ndarray = tower.encode(tower.prepare(wanted)).float().cpu().numpy()  # type: ignore[arg-type]
        return features

    def delete_items(self, name: str, ids: Sequence[str]) -> int:
        removed = self.usable(name).delete(list(ids))
        self._publish()
        return removed

    def get_item(self, name: str, id: str) -> dict[str, Any]:
        return _described(self.usable(name).get(id))

    def list_items(self, name: str, offset: int, limit: int) -> dict[str, Any]:
        gallery = self.usable(name)
        return {
            "items": [_described(item) for item in gallery.page(offset, limit, with_vectors=True)],
            "total": len(gallery),
        }

    def close(self) -> None:
        self._store.close()


def _described(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "payload": dict(item.payload),
        "text": item.text,
        "modalities": sorted(item.vectors),
    }
