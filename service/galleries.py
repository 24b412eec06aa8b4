"""The galleries of one server: which are open, which are refused and why. Owned by the worker's thread.

`cards` is the exception: an immutable picture of all galleries, replaced after each change, that any thread
may read; `exists` and `card` may be called from any thread, too.

Other processes may make, change and delete galleries in the same folder. Whoever asks for one here gets it as
it is at that moment; `sync` does the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import structlog
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base import AdapterError
from adapters.completion import Completion
from encoders.base import MODALITIES, Encoder, Modality
from index.base import (
    BadName,
    BadVector,
    CalibrationMark,
    FingerprintMismatch,
    GalleryCorrupt,
    GalleryError,
    GalleryExists,
    GalleryNotFound,
    IndexSettings,
    PreviewNotFound,
    StorageError,
)
from index.gallery import Gallery
from index.items import Item
from index.store import GalleryStore, Mark
from service.errors import BadRequest, Conflict, NotFound, ServiceError
from service.gallery_side import to_numpy
from service.messages import NewItem, Target

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class GalleryCard:
    """What a request needs to know before it is queued."""

    name: str
    targets: Mapping[Target, int]
    """Vectors by modality, and anchors."""
    calibration: str | None = None
    """The name of the one that makes the items' anchors; None: they have none."""


@dataclass(frozen=True)
class _Refusal:
    error: GalleryError
    mark: Mark | None
    """Of the files that were refused; None if the same files may be accepted the next time."""


def _no_calibration(which: str | CalibrationMark) -> NoReturn:
    name = which if isinstance(which, str) else which.name
    raise NotFound(f"there is no calibration {name!r}", code="unknown_calibration")


class Galleries:
    """See the module's head.

    marks        from a calibration's name to its mark; raises NotFound
    completions  from a mark to what completes items and queries; raises NotFound, Conflict
    """

    def __init__(
        self,
        store: GalleryStore,
        encoder: Encoder,
        *,
        default_kind: str,
        batch_size: int,
        marks: Callable[[str], CalibrationMark] = _no_calibration,
        completions: Callable[[CalibrationMark], Completion] = _no_calibration,
    ) -> None:
        self._store = store
        self._marks = marks
        self._completions = completions
        self._encoder = encoder
        self._default_kind = default_kind
        self._batch_size = batch_size
        self._open: dict[str, Gallery] = {}
        self._refused: dict[str, _Refusal] = {}
        self.cards: Mapping[str, GalleryCard] = {}
        self._shown: dict[str, tuple[Gallery, int]] = {}
        """Of what `cards` is a picture: galleries and their generations."""
        self.sync()

    # -- following other processes ------------------------------------------------------------------

    def sync(self) -> None:
        """Bring all galleries and `cards` up to date."""
        for name in {*self._store.names(), *self._open, *self._refused}:
            try:
                self._look(name)
            except StorageError as error:  # the others are not to wait for this one
                log.warning("gallery_not_read", gallery=name, why=str(error))
            self._publish(name)

    def _look(self, name: str) -> None:
        """Bring one gallery up to date. Raises StorageError if that fails but the gallery can be searched."""
        refusal = self._refused.get(name)
        if refusal is not None and refusal.mark is not None and refusal.mark == self._store.mark(name):
            return
        # Taken first: if the files change while they are refused, they are looked at again.
        mark = None if name in self._open else self._mark(name)
        try:
            gallery = self._store.open(name, self._encoder.fingerprint)
        except (BadName, GalleryNotFound):
            self._open.pop(name, None)
            self._refused.pop(name, None)
        except GalleryError as error:  # another encoder's, damaged: listed and deletable, not searched
            if name in self._open and self._open[name].usable:
                raise
            self._refuse(name, error, None if isinstance(error, StorageError) else mark)
        else:
            self._open[name] = gallery
            self._refused.pop(name, None)

    def _mark(self, name: str) -> Mark | None:
        try:
            return self._store.mark(name)
        except BadName:
            return None

    def _refuse(self, name: str, error: GalleryError, mark: Mark | None) -> None:
        before = self._refused.get(name)
        if before is None or str(before.error) != str(error):
            log.warning("gallery_refused", gallery=name, why=str(error))
        self._open.pop(name, None)
        self._refused[name] = _Refusal(error, mark)

    def _publish(self, name: str) -> None:
        """A new picture of all, if this gallery has changed since the last."""
        gallery = self._open.get(name)
        now = None if gallery is None else (gallery, gallery.generation)
        if now == self._shown.get(name):
            return
        self._shown = {name: (gallery, gallery.generation) for name, gallery in self._open.items()}
        self.cards = {
            name: GalleryCard(
                name,
                {target: gallery.count(target) for target in gallery.targets()},
                _name_of(gallery.calibration),
            )
            for name, gallery in self._open.items()
        }

    def usable(self, name: str) -> Gallery:
        """The gallery as it is now. Raises GalleryNotFound, why it is refused, or StorageError."""
        self._look(name)
        self._publish(name)
        if name in self._refused:
            raise self._refused[name].error
        try:
            return self._open[name]
        except KeyError:
            raise GalleryNotFound(f"there is no gallery {name!r}") from None

    def card(self, name: str) -> GalleryCard:
        """The gallery's card, also of one that another process has made or filled a moment ago. Any thread.

        Raises GalleryNotFound, FingerprintMismatch, GalleryCorrupt, StorageError.
        """
        card = self.cards.get(name)
        if card is not None and card.targets:
            return card
        try:
            info = self._store.peek(name)
        except BadName:
            raise GalleryNotFound(f"there is no gallery {name!r}") from None
        if info.fingerprint != self._encoder.fingerprint:
            raise FingerprintMismatch(expected=self._encoder.fingerprint, found=info.fingerprint)
        refusal = self._refused.get(name)
        if refusal is not None and refusal.mark == self._store.mark(name):
            raise refusal.error
        targets = {target: count for target, count in info.targets.items() if count}
        return GalleryCard(name, targets, _name_of(info.calibration))

    def completion(self, name: str) -> Completion | None:
        """What completes the gallery's items and the queries of its anchors; None: it has no calibration.

        Raises what `usable` raises, and Conflict where the calibration cannot be used (any more).
        """
        mark = self.usable(name).calibration
        return None if mark is None else self._completion(name, mark)

    def _completion(self, name: str, mark: CalibrationMark) -> Completion:
        try:
            completion = self._completions(mark)
        except (ServiceError, AdapterError) as error:
            raise Conflict(
                f"gallery {name!r} has no use of its anchors, and takes no items, while its calibration "
                f"{mark.name!r} is not to be had: {error}",
                code="calibration_unusable",
            ) from error
        self._require_fitting(completion, mark.name)
        return completion

    def _require_fitting(self, completion: Completion, calibration: str) -> None:
        """Raises Conflict for a completion of anything but this encoder's embeddings."""
        wanted = (self._encoder.dimension,) * len(MODALITIES)
        if completion.modalities != MODALITIES or completion.sizes != wanted:
            sizes = dict(zip(completion.modalities, completion.sizes, strict=True))
            raise Conflict(
                f"calibration {calibration!r} completes {sizes}, not pictures and texts of "
                f"{self._encoder.dimension} features",
                code="calibration_unusable",
            )

    def exists(self, name: str) -> bool:
        """Whether there is such a gallery now, usable or not. Opens nothing."""
        return self._store.exists(name)

    # -- actions ------------------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        self.sync()
        return [self._describe(name) for name in sorted([*self._open, *self._refused])]

    def describe(self, name: str) -> dict[str, Any]:
        self._look(name)
        self._publish(name)
        return self._describe(name)

    def _describe(self, name: str) -> dict[str, Any]:
        if name in self._refused:
            return self._describe_refused(name)
        gallery = self._open.get(name)
        if gallery is None:
            raise GalleryNotFound(f"there is no gallery {name!r}")
        return {
            "name": name,
            "items": len(gallery),
            "targets": {target: gallery.count(target) for target in gallery.targets()},
            "dimension": gallery.dimension,
            "fingerprint": gallery.fingerprint,
            "index": gallery.settings.to_dict(),
            "created_at": gallery.created_at,
            "generation": gallery.generation,
            "calibration": _name_of(gallery.calibration),
            "status": "ready",
            "why": "",
        }

    def _describe_refused(self, name: str) -> dict[str, Any]:
        refused = {"name": name, "status": "refused", "why": str(self._refused[name].error)}
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
            "calibration": _name_of(info.calibration),
        }

    def create(
        self,
        name: str,
        index: Mapping[str, Any] | None,
        *,
        calibration: str | None = None,
        job: str | None = None,
    ) -> dict[str, Any]:
        """A new, empty gallery. Asked again for the same `job` (an id of any kind), the one made then.

        calibration: the name of the one that makes anchors of its items; it stays the gallery's for good.

        Raises GalleryExists, BadName, BadSettings, StorageError; NotFound (`unknown_calibration`), Conflict
        for a calibration that does not fit the encoder.
        """
        settings = IndexSettings.from_dict({"kind": self._default_kind, **(index or {})})
        encoder = self._encoder
        mark = None if calibration is None else self._marks(calibration)
        if mark is not None:
            self._require_fitting(self._completions(mark), mark.name)
        try:
            self._store.create(
                name,
                encoder.dimension,
                encoder.fingerprint,
                settings,
                created_by=job or "",
                calibration=mark,
            )
        except GalleryExists:
            if not job or not self._made_by(name, job):
                raise
        return self.describe(name)

    def _made_by(self, name: str, job: str) -> bool:
        try:
            return self._store.describe(name).created_by == job
        except GalleryError:
            return False

    def delete(self, name: str, *, again: bool = False) -> None:
        """Remove a gallery, a refused one too. With `again`, of a job delivered once more, it may be gone.

        Raises GalleryNotFound, StorageError.
        """
        try:
            self._store.delete(name)
        except (BadName, GalleryNotFound):
            if not again:
                raise GalleryNotFound(f"there is no gallery {name!r}") from None
        finally:
            self._look(name)
            self._publish(name)

    def upsert(self, name: str, items: Sequence[NewItem]) -> Generator[None, None, dict[str, Any]]:
        """Encode what has no vector yet, with the source model, and store all items in one transaction.

        A generator: it yields between the encoder's batches. In a gallery with a calibration each item gets
        an anchor of what it has and what is imputed. Raises what the gallery raises, BadRequest, and Conflict
        where the calibration cannot be used.
        """
        self.completion(name)  # raises before anything is encoded
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
        gallery = self.usable(name)  # another process may have replaced it meanwhile
        if gallery.calibration is not None:
            _anchor(items, encoded, self._completion(name, gallery.calibration))
        report = gallery.upsert(
            [
                Item(
                    id=item.id,
                    payload=dict(item.payload),
                    text=item.text,
                    vectors=vectors,
                    preview=item.preview,
                )
                for item, vectors in zip(items, encoded, strict=True)
            ]
        )
        self._publish(name)
        return {"added": report.added, "replaced": report.replaced, "items": len(gallery)}

    def _encode(self, modality: Modality, items: Sequence[NewItem]) -> np.ndarray:
        tower = self._encoder.towers[modality]
        wanted = [item.text if modality == "text" else item.pixels for item in items]
        features: np.ndarray = tower.encode(tower.prepare(wanted)).float().cpu().numpy()  # type: ignore[arg-type]
        return features

    def delete_items(self, name: str, ids: Sequence[str]) -> int:
        removed = self.usable(name).delete(list(ids))
        self._publish(name)
        return removed

    def get_item(self, name: str, id: str) -> dict[str, Any]:
        return _described(self.usable(name).get(id))

    def list_items(self, name: str, offset: int, limit: int) -> dict[str, Any]:
        gallery = self.usable(name)
        return {
            "items": [_described(item) for item in gallery.page(offset, limit, with_vectors=True)],
            "total": len(gallery),
        }

    def get_preview(self, name: str, id: str) -> dict[str, Any]:
        """{"version", "content"}, a WebP, of an item.

        Raises what `usable` raises, ItemNotFound, and PreviewNotFound, also where the preview is damaged: the
        rest of the gallery is of use all the same, and the log says so.
        """
        gallery = self.usable(name)
        try:
            found = gallery.preview(id)
        except GalleryCorrupt as error:
            log.warning("preview_damaged", gallery=name, why=str(error))
            raise PreviewNotFound(str(error)) from error
        return {"version": found.version, "content": found.content}

    def close(self) -> None:
        self._store.close()


def _anchor(
    items: Sequence[NewItem], encoded: Sequence[dict[Target, np.ndarray]], completion: Completion
) -> None:
    """Give each item the anchor of what it has and what is imputed; items that have the same together.

    Raises BadVector.
    """
    patterns: dict[tuple[Modality, ...], list[int]] = {}
    for row, vectors in enumerate(encoded):
        patterns.setdefault(tuple(name for name in MODALITIES if name in vectors), []).append(row)
    for names, rows in patterns.items():
        observed: dict[str, Tensor] = {}
        for name, size in zip(MODALITIES, completion.sizes, strict=True):
            if name in names:
                parts = [_checked(items[row].id, name, encoded[row][name], size) for row in rows]
                observed[name] = F.normalize(torch.from_numpy(np.stack(parts)), dim=-1)
        anchors = to_numpy(completion.anchors(completion.complete(observed)))
        for row, anchor in zip(rows, anchors, strict=True):
            encoded[row]["anchor"] = anchor


def _checked(item: str, name: Modality, vector: np.ndarray, size: int) -> np.ndarray:
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise BadVector(f"the {name} vector of item {item[:100]!r} is not of {size} finite numbers")
    return vector.astype(np.float32, copy=False)


def _name_of(mark: CalibrationMark | None) -> str | None:
    return None if mark is None else mark.name


def _described(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "payload": dict(item.payload),
        "text": item.text,
        "modalities": sorted(name for name in item.vectors if name != "anchor"),
        "preview_version": item.preview_version,
    }
