"""A gallery: items with ids and payloads, and one vector index for each target modality.

Letters: B queries, G items that have a vector of the target, D features, k wanted hits.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, islice
from typing import Protocol

import numpy as np

from index.base import (
    TARGETS,
    BadVector,
    DuplicateId,
    Floats,
    GalleryError,
    IndexSettings,
    ItemNotFound,
    Mask,
    Positions,
    Target,
)
from index.factory import make_index
from index.filters import canonical, compile_filter
from index.items import Hit, Item, Record, UpsertReport, check_target, prepare

# Bit masks of filters that are kept until the next change, 100 kB each at 100k items.
_CACHED_FILTERS = 64


class Journal(Protocol):
    """Where a gallery writes a change before it counts. One call is one transaction: all of it or nothing."""

    def save(
        self,
        *,
        generation: int,
        counts: Mapping[str, int],
        written: Sequence[Record],
        removed: Sequence[str],
    ) -> None:
        """Removes ids, writes records with their vectors, then generation and counts; durable on return.

        Raises:
            StorageError: nothing was changed.
        """

    def close(self) -> None: ...


class Gallery:
    """Items in the order of their arrival, found by their vectors.

    One thread owns a gallery and makes all calls; there are no locks. A change is written to the journal
    first and to memory after, so one that fails leaves the gallery as it was.

    A replaced item keeps its place, unless the modalities of its vectors change: then it moves to the end. So
    every vector index is in the order of the items, and a gallery loaded from its file has the positions it
    had before.

    Scores are inner products of the query with stored unit vectors: the cosine, for unit queries.
    """

    def __init__(
        self,
        name: str,
        dimension: int,
        fingerprint: str,
        settings: IndexSettings,
        created_at: float,
        *,
        journal: Journal | None = None,
        device: str | None = None,
    ) -> None:
        """An empty gallery. `created_at` in seconds since 1970; `device` is for the torch backend."""
        self.name = name
        self.dimension = dimension
        self.fingerprint = fingerprint
        self.settings = settings
        self.created_at = created_at
        self.generation = 0
        """Grows by one with each change."""
        self._journal = journal
        self._records: dict[str, Record] = {}
        self._shelves = {target: _Shelf(settings, dimension, device) for target in TARGETS}
        self._next_sequence = 0
        self._masks: OrderedDict[tuple[Target, str], Mask] = OrderedDict()
        self._unusable: str | None = None

    # Items

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._records

    def count(self, target: Target) -> int:
        """Items that have a vector of this modality."""
        return len(self._shelf(target).members)

    def counts(self) -> dict[str, int]:
        """Numbers of "items" and of vectors of each target."""
        return {"items": len(self), **{target: self.count(target) for target in TARGETS}}

    def targets(self) -> tuple[Target, ...]:
        """Modalities of which there are vectors."""
        return tuple(target for target in TARGETS if self._shelves[target].members)

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
            shelves = self._shelves.items()
            vectors = {target: shelf.vector(record) for target, shelf in shelves if shelf.holds(record)}
        return Item(id=record.id, payload=record.payload, text=record.text, vectors=vectors)

    # Changes

    def upsert(self, items: Sequence[Item]) -> UpsertReport:
        """Add items; one whose id is there already is replaced as a whole.

        Raises:
            DuplicateId, BadItem, BadVector, UnknownTarget, StorageError: nothing was changed.
        """
        self._require_usable()
        if not items:
            return UpsertReport(0, 0)
        written = prepare(items, self.dimension)
        _require_distinct(written)
        moved = self._order(written)
        replaced = sum(record.id in self._records for record in written)
        self._commit(written, moved)
        return UpsertReport(len(written) - replaced, replaced)

    def delete(self, ids: Iterable[str]) -> int:
        """Take items out; returns how many were there.

        Raises:
            StorageError: nothing was changed.
        """
        self._require_usable()
        present = [item_id for item_id in dict.fromkeys(ids) if item_id in self._records]
        if present:
            self._commit([], present)
        return len(present)

    def load(self, records: Sequence[Record], *, generation: int) -> None:
        """Fill an empty gallery with what its journal held. `records` come in the order of their sequence."""
        if self._records:
            raise ValueError("only an empty gallery can be loaded")
        self._apply(records, [])
        self._next_sequence = records[-1].sequence + 1 if records else 0
        self.generation = generation

    def _order(self, written: Sequence[Record]) -> list[str]:
        """Gives the records their sequence; returns the ids of those that move to the end."""
        moved = []
        sequence = self._next_sequence
        for record in written:
            old = self._records.get(record.id)
            if old is not None and self._modalities(old) == set(record.vectors):
                record.sequence = old.sequence
                continue
            if old is not None:
                moved.append(record.id)
            record.sequence = sequence
            sequence += 1
        return moved

    def _modalities(self, record: Record) -> set[Target]:
        return {target for target, shelf in self._shelves.items() if shelf.holds(record)}

    def _commit(self, written: Sequence[Record], removed: Sequence[str]) -> None:
        if self._journal is not None:
            self._journal.save(
                generation=self.generation + 1,
                counts=self._counts_after(written, removed),
                written=written,
                removed=removed,
            )
        self._unusable = f"gallery {self.name!r} was interrupted during a change; open it again"
        self._apply(written, removed)
        self._next_sequence = max(self._next_sequence, 1 + max((r.sequence for r in written), default=-1))
        self.generation += 1
        self._masks.clear()
        self._unusable = None

    def _counts_after(self, written: Sequence[Record], removed: Sequence[str]) -> dict[str, int]:
        counts = Counter(self.counts())
        for item_id in removed:
            counts.subtract(["items", *self._modalities(self._records[item_id])])
        gone = set(removed)
        for record in written:
            if record.id in gone or record.id not in self._records:
                counts.update(["items", *record.vectors])
        return dict(counts)

    def _apply(self, written: Sequence[Record], removed: Sequence[str]) -> None:
        gone = [self._records.pop(item_id) for item_id in removed]
        for target, shelf in self._shelves.items():
            shelf.remove([record for record in gone if shelf.holds(record)])
            shelf.put([record for record in written if target in record.vectors], target)
        for record in written:
            # The index has the vectors and the journal the JSON.
            record.vectors, record.payload_json = {}, ""
            self._records[record.id] = record

    @property
    def usable(self) -> bool:
        """False when closed, or when a change was interrupted after it was written (by lack of memory)."""
        return self._unusable is None

    def close(self) -> None:
        """Lets the file go. The gallery takes no more searches and changes."""
        self._unusable = f"gallery {self.name!r} is closed"
        if self._journal is not None:
            self._journal.close()
            self._journal = None

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
                Hit(members[position].id, score, members[position].payload)
                for score, position in zip(row_scores, row, strict=True)
                if position >= 0
            ]
            for row_scores, row in zip(scores[:, :k].tolist(), positions[:, :k].tolist(), strict=True)
        ]

    def vectors(self, target: Target, positions: Positions) -> Floats:
        """Stored unit vectors at `positions` [...] -> [..., D]; raises IndexError for a pad."""
        return self._shelf(target).index.vectors(positions)

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
        return self._shelves[target]


def _require_distinct(records: Sequence[Record]) -> None:
    item_id, times = Counter(record.id for record in records).most_common(1)[0]
    if times > 1:
        raise DuplicateId(f"item {item_id!r} comes {times} times in one call")


class _Shelf:
    """The vectors of one modality: an index, and the record at each of its positions.

    Records stand in order of their sequence, so a record's position is found by bisection and nothing need be
    renumbered when one is removed.
    """

    def __init__(self, settings: IndexSettings, dimension: int, device: str | None) -> None:
        self.index = make_index(settings, dimension, device)
        self.members: list[Record] = []
        self._sequences: Positions = np.empty(0, dtype=np.int64)

    def holds(self, record: Record) -> bool:
        return bool(self._find([record])[1][0])

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
