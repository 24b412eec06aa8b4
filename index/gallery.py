"""A gallery: items with ids and payloads, and one vector index for each target.

Targets are the modalities that items have by themselves and, in a gallery with a calibration, the anchors
that it makes from them. The vectors come from elsewhere.

Letters: B queries, G items that have a vector of the target, D features, k wanted hits.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import compress, islice
from typing import NamedTuple, Protocol

import numpy as np

from index.base import (
    ANCHOR,
    MODALITIES,
    REMEDY,
    TARGETS,
    BadVector,
    CalibrationMark,
    DuplicateId,
    Floats,
    GalleryCorrupt,
    GalleryError,
    GalleryNotFound,
    IndexSettings,
    ItemNotFound,
    Mask,
    Positions,
    PreviewNotFound,
    Target,
)
from index.factory import make_index
from index.filters import canonical, compile_filter
from index.items import Hit, Item, Preview, Record, UpsertReport, check_target, prepare

# Bit masks of filters that are kept until the next change, 100 kB each at 100k items.
_CACHED_FILTERS = 64


class Place(NamedTuple):
    """Where a record stands, without its content."""

    sequence: int
    id: str
    modalities: frozenset[Target]


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What a journal holds beyond a generation. Used up inside the transaction that read it."""

    generation: int
    counts: Mapping[str, int]
    everything: bool
    """`written` is all that there is, not only what is new; the rest of the fields is empty then."""
    removed: Sequence[str]
    places: Sequence[Place]
    """Of all that is `written`."""
    written: Iterator[list[Record]]
    """In the order of their sequence, in parts."""


class Journal(Protocol):
    """Where a gallery's content is kept. Other processes may read and change it, too."""

    def changed(self) -> bool:
        """Whether another process may have changed anything since `read`; takes microseconds.

        Raises:
            StorageError.
        """

    def transaction(self, *, write: bool) -> AbstractContextManager[None]:
        """What is read inside is of one moment. With `write` no other process writes meanwhile, and what is
        saved inside is durable at the end, all of it or, after an error, nothing.

        Raises:
            GalleryNotFound: another process has deleted the gallery.
            StorageError: nothing was changed.
        """

    def read(self, since: int) -> Changes | None:
        """What was changed after generation `since`; None if nothing was. Everything when called first.

        Raises:
            GalleryNotFound, GalleryCorrupt.
        """

    def save(
        self,
        *,
        generation: int,
        counts: Mapping[str, int],
        written: Sequence[Record],
        removed: Sequence[str],
    ) -> None:
        """Removes ids, writes records with their vectors and previews, then generation and counts."""

    def preview(self, item_id: str) -> Preview | None:
        """The item's preview as it is stored now.

        Raises:
            GalleryCorrupt: it is damaged, whatever the rest of the gallery is.
            StorageError.
        """

    def close(self) -> None: ...


class Gallery:
    """Items in the order of their arrival, found by their vectors.

    One thread owns a gallery and makes all calls; there are no locks. A change is written to the journal
    first and to memory after, so one that fails leaves the gallery as it was.

    Other processes may hold the same journal. What they have changed is taken over by `refresh` and before
    each change of this one's, never in between.

    A replaced item keeps its place, unless the modalities that it has change: then it moves to the end. So
    every vector index is in the order of the items, and two galleries at the same generation have the same
    positions, whether they were loaded, followed or made the changes.

    Scores are inner products of the query with stored unit vectors: the cosine, for unit queries.

    Previews are in the journal only, and read when one is asked for; a gallery without a journal keeps none.
    """

    def __init__(
        self,
        name: str,
        dimension: int,
        fingerprint: str,
        settings: IndexSettings,
        created_at: float,
        *,
        created_by: str = "",
        calibration: CalibrationMark | None = None,
        journal: Journal | None = None,
        device: str | None = None,
    ) -> None:
        """An empty gallery; the first `refresh` fills it from its journal.

        Args:
            created_at: in seconds since 1970.
            created_by: whatever the maker wants to know it by.
            calibration: what makes the items' anchors; every item must then have one. None: none may.
            device: for the torch backend.
        """
        self.name = name
        self.dimension = dimension
        self.fingerprint = fingerprint
        self.settings = settings
        self.created_at = created_at
        self.created_by = created_by
        self.calibration = calibration
        self.generation = 0
        """Grows by one with each change."""
        self._journal = journal
        self._records: dict[str, Record] = {}
        self._device = device
        self._shelves = self._empty_shelves()
        self._next_sequence = 0
        self._masks: OrderedDict[tuple[Target, str], Mask] = OrderedDict()
        self._unusable: str | None = None

    def _empty_shelves(self) -> dict[Target, _Shelf]:
        held = MODALITIES if self.calibration is None else TARGETS
        return {target: self._empty_shelf() for target in held}

    def _empty_shelf(self) -> _Shelf:
        return _Shelf(self.settings, self.dimension, self._device)

    # Items

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._records

    def count(self, target: Target) -> int:
        """Items that have a vector of this target."""
        check_target(target)
        return len(self._shelves[target].members) if target in self._shelves else 0

    def counts(self) -> dict[str, int]:
        """Numbers of "items" and of vectors of each target."""
        return {"items": len(self), **{target: self.count(target) for target in TARGETS}}

    def targets(self) -> tuple[Target, ...]:
        """Those of which there are vectors."""
        return tuple(target for target in TARGETS if self.count(target))

    def get(self, item_id: str) -> Item:
        """The item with its stored unit vectors; raises ItemNotFound."""
        record = self._records.get(item_id)
        if record is None:
            raise ItemNotFound(f"gallery {self.name!r} has no item {item_id!r}")
        return self._item(record, with_vectors=True)

    def page(self, offset: int, limit: int, *, with_vectors: bool = False) -> list[Item]:
        """Items offset..offset+limit-1 in order; past the end there are none."""
        if offset < 0 or limit < 0:
            raise ValueError("offset and limit must not be negative")
        records = islice(self._records.values(), offset, offset + limit)
        return [self._item(record, with_vectors=with_vectors) for record in records]

    def _item(self, record: Record, *, with_vectors: bool) -> Item:
        vectors: dict[Target, Floats] = {}
        if with_vectors:
            held = self._targets_of(record)
            vectors = {
                target: shelf.vector(record) for target, shelf in self._shelves.items() if target in held
            }
        return Item(
            id=record.id,
            payload=record.payload,
            text=record.text,
            vectors=vectors,
            preview_version=record.preview_version,
        )

    def preview(self, item_id: str) -> Preview:
        """The preview of an item, read from the journal.

        Raises:
            ItemNotFound, PreviewNotFound, StorageError.
            GalleryCorrupt: the preview is damaged; the gallery can be used on.
        """
        self._require_usable()
        if item_id not in self._records:
            raise ItemNotFound(f"gallery {self.name!r} has no item {item_id!r}")
        found = None if self._journal is None else self._journal.preview(item_id)
        if found is None:
            raise PreviewNotFound(f"gallery {self.name!r} keeps no preview of item {item_id!r}")
        return found

    # Changes

    def upsert(self, items: Sequence[Item]) -> UpsertReport:
        """Add items; one whose id is there already is replaced as a whole.

        Raises:
            DuplicateId, BadItem, BadVector, UnknownTarget, StorageError: nothing was changed.
            GalleryNotFound: another process has deleted the gallery.
        """
        self._require_usable()
        if not items:
            return UpsertReport(0, 0)
        written = prepare(items, self.dimension, anchored=self.calibration is not None)
        _require_distinct(written)
        with self._transaction(write=True):
            moved = self._order(written)
            replaced = sum(record.id in self._records for record in written)
            self._save(written, moved)
        self._settle(written, moved)
        return UpsertReport(len(written) - replaced, replaced)

    def delete(self, ids: Iterable[str]) -> int:
        """Take items out; returns how many were there.

        Raises:
            StorageError: nothing was changed.
            GalleryNotFound: another process has deleted the gallery.
        """
        self._require_usable()
        asked = dict.fromkeys(ids)
        with self._transaction(write=True):
            present = [item_id for item_id in asked if item_id in self._records]
            if present:
                self._save([], present)
        if present:
            self._settle([], present)
        return len(present)

    def refresh(self) -> bool:
        """Take over what other processes have changed; returns whether they have. Microseconds if not.

        Raises:
            GalleryNotFound: another process has deleted the gallery; this one is of no use any more.
            GalleryCorrupt: the file does not add up; the same.
            StorageError: the file cannot be read.
        """
        self._require_usable()
        if self._journal is None or not self._journal.changed():
            return False
        with self._transaction(write=False) as moved_on:
            return moved_on

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[bool]:
        """One of the journal's, with this gallery brought up to date first; yields whether it was not."""
        if self._journal is None:
            yield False
            return
        try:
            with self._journal.transaction(write=write):
                yield self._catch_up(self._journal)
        except (GalleryNotFound, GalleryCorrupt) as error:
            self._unusable = str(error)
            raise

    def _catch_up(self, journal: Journal) -> bool:
        changes = journal.read(self.generation)
        if changes is None:
            return False
        self._unusable = f"gallery {self.name!r} was interrupted while it followed a change; open it again"
        self._masks.clear()
        if changes.everything:
            self._records.clear()
            self._shelves = self._empty_shelves()
        # First all that goes, then all that comes: what comes stands behind what stays.
        self._apply([], self._outdated(changes))
        for records in changes.written:
            self._apply(records, [])
        if self.counts() != changes.counts:
            raise GalleryCorrupt(
                f"gallery {self.name!r} should hold {_in_words(changes.counts)} "
                f"but holds {_in_words(self.counts())}; {REMEDY}"
            )
        self.generation = changes.generation
        self._unusable = None
        return True

    def _outdated(self, changes: Changes) -> list[str]:
        """Ids of the items that are gone, or are to come again at another place."""
        known = ((place, self._records[place.id]) for place in changes.places if place.id in self._records)
        moved = (
            place.id
            for place, record in known
            if (place.sequence, place.modalities) != (record.sequence, record.modalities)
        )
        gone = (item_id for item_id in changes.removed if item_id in self._records)
        return list(dict.fromkeys([*gone, *moved]))

    def _order(self, written: Sequence[Record]) -> list[str]:
        """Gives the records their sequence; returns the ids of those that move to the end."""
        moved = []
        sequence = self._next_sequence
        for record in written:
            old = self._records.get(record.id)
            if old is not None and old.modalities == record.modalities:
                record.sequence = old.sequence
                continue
            if old is not None:
                moved.append(record.id)
            record.sequence = sequence
            sequence += 1
        return moved

    def _targets_of(self, record: Record) -> frozenset[Target]:
        """Of its vectors, with the anchor."""
        return record.modalities if self.calibration is None else record.modalities | {ANCHOR}

    def _save(self, written: Sequence[Record], removed: Sequence[str]) -> None:
        if self._journal is not None:
            self._journal.save(
                generation=self.generation + 1,
                counts=self._counts_after(written, removed),
                written=written,
                removed=removed,
            )

    def _settle(self, written: Sequence[Record], removed: Sequence[str]) -> None:
        """Brings to memory what has been written."""
        self._unusable = f"gallery {self.name!r} was interrupted during a change; open it again"
        self._apply(written, removed)
        self.generation += 1
        self._masks.clear()
        self._unusable = None

    def _counts_after(self, written: Sequence[Record], removed: Sequence[str]) -> dict[str, int]:
        counts = Counter(self.counts())
        for item_id in removed:
            counts.subtract(["items", *self._targets_of(self._records[item_id])])
        gone = set(removed)
        for record in written:
            if record.id in gone or record.id not in self._records:
                counts.update(["items", *record.vectors])
        return dict(counts)

    def _apply(self, written: Sequence[Record], removed: Sequence[str]) -> None:
        gone = [self._records.pop(item_id) for item_id in removed]
        for target, shelf in self._shelves.items():
            shelf.remove([record for record in gone if target in self._targets_of(record)])
            shelf.put([record for record in written if target in record.vectors], target)
        for record in written:
            # The index has the vectors and the journal the JSON and the preview.
            record.vectors, record.payload_json, record.preview = {}, "", None
            if self._journal is None:
                record.preview_version = ""
            self._records[record.id] = record
            self._next_sequence = max(self._next_sequence, record.sequence + 1)

    @property
    def usable(self) -> bool:
        """False when closed, deleted by another process, or interrupted in a change (by lack of memory)."""
        return self._unusable is None

    def close(self) -> None:
        """Lets the file go. The gallery takes no more searches and changes."""
        self._unusable = f"gallery {self.name!r} is closed"
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _require_usable(self) -> None:
        if self._unusable is not None:
            raise GalleryError(self._unusable)

    # Search

    def search(
        self, target: Target, queries: Floats, k: int, filter_: object = None, *, effort: int | None = None
    ) -> list[list[Hit]]:
        """The best k hits of each query [B, D], best first; fewer where fewer match the filter.

        Raises:
            BadVector, BadFilter, UnknownTarget.
        """
        allowed = self.allowed(target, filter_)
        scores, positions = self.search_raw(target, queries, k, allowed, effort=effort)
        return self.hits(target, scores, positions, k)

    def search_raw(
        self,
        target: Target,
        queries: Floats,
        k: int,
        allowed: Mask | None = None,
        *,
        effort: int | None = None,
    ) -> tuple[Floats, Positions]:
        """As `VectorIndex.search`: scores and positions [B, min(k, G)], -inf and -1 past the last allowed.

        One search serves both: `hits` of the result, and `vectors` of its first column, the candidates.
        Positions hold until the next change.

        Raises:
            BadVector: the queries are not finite numbers [B, D].
        """
        self._require_usable()
        shelf = self._shelf(target)
        if not np.isfinite(queries).all():
            raise BadVector("a query holds NaN or infinity")
        return shelf.index.search(queries, k, allowed=allowed, effort=effort)

    def hits(self, target: Target, scores: Floats, positions: Positions, k: int) -> list[list[Hit]]:
        """The first k of each row of what `search_raw` found; pads are left out."""
        members = self._shelf(target).members
        return [
            [
                Hit(
                    (record := members[position]).id,
                    score,
                    record.payload,
                    record.modalities,
                    record.preview_version,
                )
                for score, position in zip(row_scores, row, strict=True)
                if position >= 0
            ]
            for row_scores, row in zip(scores[:, :k].tolist(), positions[:, :k].tolist(), strict=True)
        ]

    def vectors(self, target: Target, positions: Positions) -> Floats:
        """Stored unit vectors at `positions` [...] -> [..., D]; raises IndexError for a pad."""
        return self._shelf(target).index.vectors(positions)

    def positions(self, target: Target, ids: Sequence[str]) -> Positions:
        """Where the items' vectors of the target stand [N]; -1 for an item without one, or no item at all."""
        shelf = self._shelf(target)
        found = np.full(len(ids), -1, dtype=np.int64)
        known = [row for row, item_id in enumerate(ids) if item_id in self._records]
        places, held = shelf._find([self._records[ids[row]] for row in known])
        found[known] = np.where(held, places, -1)
        return found

    def places_of_all(self, targets: Sequence[Target]) -> list[Positions]:
        """Where the items stand that have a vector of every target: [N] a target, in the items' order."""
        shelves = [self._shelf(target) for target in targets]
        common = reduce(np.intersect1d, (shelf._sequences for shelf in shelves))
        return [np.searchsorted(shelf._sequences, common).astype(np.int64) for shelf in shelves]

    def matrix(self, target: Target) -> Floats:
        """All vectors of the target [G, D], read-only, to be used before the next change."""
        return self._shelf(target).index.matrix()

    def allowed(self, target: Target, filter_: object = None) -> Mask | None:
        """Which positions match the filter [G]; None for no filter. Kept until the next change.

        Raises:
            BadFilter.
        """
        shelf = self._shelf(target)
        if filter_ is None:
            return None
        matches = compile_filter(filter_)
        key = (target, canonical(filter_))
        mask = self._masks.get(key)
        if mask is None:
            found = (matches(record.payload) for record in shelf.members)
            mask = np.fromiter(found, dtype=np.bool_, count=len(shelf.members))
            self._masks[key] = mask
            if len(self._masks) > _CACHED_FILTERS:
                self._masks.popitem(last=False)
        self._masks.move_to_end(key)
        return mask

    def _shelf(self, target: Target) -> _Shelf:
        check_target(target)
        if target not in self._shelves:
            # Anchors of a gallery that has none. Not made before: on a GPU an empty index takes memory, too.
            self._shelves[target] = self._empty_shelf()
        return self._shelves[target]


def _in_words(counts: Mapping[str, int]) -> str:
    return "{items} items with {image} image, {text} text and {anchor} anchor vectors".format(**counts)


def _require_distinct(records: Sequence[Record]) -> None:
    item_id, times = Counter(record.id for record in records).most_common(1)[0]
    if times > 1:
        raise DuplicateId(f"item {item_id!r} comes {times} times in one call")


class _Shelf:
    """The vectors of one target: an index, and the record at each of its positions.

    Records stand in order of their sequence, so a record's position is found by bisection and nothing need be
    renumbered when one is removed.
    """

    def __init__(self, settings: IndexSettings, dimension: int, device: str | None) -> None:
        self.index = make_index(settings, dimension, device)
        self.members: list[Record] = []
        self._sequences: Positions = np.empty(0, dtype=np.int64)

    def _find(self, records: Sequence[Record]) -> tuple[Positions, Mask]:
        """Where each record stands or would stand, and whether it does."""
        sequences = np.array([record.sequence for record in records], dtype=np.int64)
        places = np.searchsorted(self._sequences, sequences).astype(np.int64)
        held = places < len(self._sequences)
        held[held] = self._sequences[places[held]] == sequences[held]
        return places, held

    def vector(self, record: Record) -> Floats:
        vector: Floats = self.index.vectors(self._find([record])[0])[0]
        return vector

    def remove(self, records: Sequence[Record]) -> None:
        if not records:
            return
        places, _ = self._find(records)
        keep = np.ones(len(self.members), dtype=np.bool_)
        keep[places] = False
        self.index.remove(places)
        self.members = list(compress(self.members, keep.tolist()))
        self._sequences = self._sequences[keep]

    def put(self, records: Sequence[Record], target: Target) -> None:
        """Replaces those that are here, appends the others."""
        places, held = self._find(records)
        known = list(compress(records, held.tolist()))
        fresh = list(compress(records, (~held).tolist()))
        if known:
            self.index.replace(places[held], _stack(known, target))
            for place, record in zip(places[held].tolist(), known, strict=True):
                self.members[place] = record
        if fresh:
            self.index.add(_stack(fresh, target))
            self.members.extend(fresh)
            sequences = np.array([record.sequence for record in fresh], dtype=np.int64)
            self._sequences = np.concatenate((self._sequences, sequences))


def _stack(records: Sequence[Record], target: Target) -> Floats:
    return np.stack([record.vectors[target] for record in records])
