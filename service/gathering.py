"""Which tracks have gathered queries, whose turn it is to adapt, who gives way when they are too many.

A track may gather queries of several kinds, which do not go through a model together: samples that lack
sound among complete ones, texts among composed queries. What leaves is always the oldest, because the store
drops what was learned from as it keeps it, in order. So the oldest queries, a full batch of them, are taken
together and sorted by kind into batches that are learned from one after another and stored as one. A stream
whose pattern changes with every query learns from as much as one whose pattern never does.

A kind of which there are fewer than `min_items` among them leaves unlearned (counted as shed), unless there
are most of it: so little is not waited for, and every full gathering teaches something. A gathering that is
not full becomes due with age only once it holds `min_items` of one kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.messages import Query, QueryJob, Sample
from service.queue.base import GatherWrite
from service.tracks import Portion, Stream, Track

_SWEEP_S = 5.0


@dataclass(frozen=True)
class GatherLimits:
    """See the settings of the same names; sizes in queries, but for `total_bytes`."""

    batch_size: int
    min_items: int
    max_age_s: float
    capacity_items: int
    total_items: int
    total_bytes: int = 1 << 62


@dataclass(frozen=True)
class GatheredBatch:
    """Queries of one kind that left their gathering to be learned from. `first` is the job of the oldest."""

    first: QueryJob
    queries: Sequence[Query | Sample]
    id: str


@dataclass(frozen=True)
class Gathered:
    """All that left a gathering at once: a batch of each kind, in the order of their oldest queries."""

    stream: Stream
    track: Track
    batches: Sequence[GatheredBatch]


class Gatherings:
    """The tracks of all streams that hold gathered queries, the one whose turn is next first.

    There may be thousands, of which most hold too few to be learned from; so what is done for every batch
    looks only at those that hold enough, and at the first of all.
    """

    def __init__(self, limits: GatherLimits, *, on_shed: Callable[[Stream, Track, int], None]) -> None:
        self._limits = limits
        self._on_shed = on_shed
        self._tracks: dict[tuple[str, str], tuple[Stream, Track]] = {}
        self._enough: dict[tuple[str, str], tuple[Stream, Track]] = {}
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}
        self._items = 0
        self._bytes = 0
        self._swept_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._tracks)

    def due(self) -> int:
        """Tracks that hold a full batch. May be called from any thread."""
        return sum(len(track.gathered) >= self._limits.batch_size for _, track in list(self._enough.values()))

    def watch(self, stream: Stream) -> None:
        """Take note of what the stream's tracks hold already."""
        for track in stream.tracks.values():
            if self._tracks.get((stream.name, track.name), (None, None))[1] is not track:
                self._note(stream, track)  # else it keeps its turn

    def join(self, stream: Stream, track: Track, jobs: Sequence[QueryJob]) -> GatherWrite:
        """Answered jobs join the track's gathering; beyond its capacity its oldest queries leave."""
        track.gathered.join(jobs)
        self._shed(stream, track, len(track.gathered) - self._limits.capacity_items)
        self._note(stream, track)
        return self._write(stream, track, join=tuple(jobs))

    def _write(self, stream: Stream, track: Track, join: Sequence[QueryJob] = ()) -> GatherWrite:
        # The oldest in the store are those that are being learned from: they leave when that is stored.
        drop = 0 if track.gathered.learning else track.gathered.let_go()
        return GatherWrite(stream.name, stream.token, track.name, drop=drop, join=join)

    def learned(self, gathered: Gathered) -> GatherWrite:
        """What the store is told of the gathering when all that left it at once is done with."""
        gathered.track.gathered.learning = False
        return self._write(gathered.stream, gathered.track)

    def overflow(self, *, is_current: Callable[[Stream, Track], bool]) -> tuple[Stream, GatherWrite] | None:
        """If all gatherings together hold too much: the one whose turn is next leaves unlearned."""
        while self._items > self._limits.total_items or self._bytes > self._limits.total_bytes:
            self._sweep(is_current)
            key, (stream, track) = next(iter(self._tracks.items()))
            self._forget(key)
            if is_current(stream, track):
                self._shed(stream, track, len(track.gathered))
                return stream, self._write(stream, track)
        return None

    def idle_for_s(self, longest_s: float) -> float:
        """Seconds until the next gathering falls due, at most `longest_s`."""
        now = time.monotonic()
        for _, track in self._enough.values():
            if len(track.gathered) >= self._limits.batch_size:
                return 0.0
            longest_s = min(longest_s, track.gathered.since + self._limits.max_age_s - now)
        return max(longest_s, 0.0)

    def next_batch(
        self, *, is_current: Callable[[Stream, Track], bool], everything: bool = False
    ) -> Gathered | None:
        """The queries of the first gathering that is full, or old enough and not too small."""
        limits = self._limits
        now = time.monotonic()
        self._sweep(is_current)
        for key, (stream, track) in list(self._enough.items()):
            if not is_current(stream, track):
                self._forget(key)
                continue
            old = everything or now - track.gathered.since >= limits.max_age_s
            if len(track.gathered) < limits.batch_size and not old:
                continue
            batches, rest = _sorted(track.gathered.take(limits.batch_size), self._fewest)
            track.gathered.learning = True
            self._count_shed(stream, track, rest)
            self._forget(key)
            self._note(stream, track)  # to the back: other streams have their turn
            return Gathered(stream, track, batches)
        return None

    @property
    def _fewest(self) -> int:
        """Of one kind, that make a batch where there are more of another."""
        return min(self._limits.min_items, self._limits.batch_size)

    def _note(self, stream: Stream, track: Track) -> None:
        """Take note of how much the track holds now. It keeps its turn if it has one."""
        key, count = (stream.name, track.name), len(track.gathered)
        if not count:
            self._forget(key)
            return
        self._count(key, (count, track.gathered.byte_size))
        self._tracks[key] = (stream, track)
        if count >= self._limits.batch_size or track.gathered.most_alike >= self._fewest:
            self._enough[key] = (stream, track)
        else:
            self._enough.pop(key, None)

    def _forget(self, key: tuple[str, str]) -> None:
        self._tracks.pop(key, None)
        self._enough.pop(key, None)
        self._count(key, (0, 0))

    def _count(self, key: tuple[str, str], now: tuple[int, int]) -> None:
        """Queries and bytes that the track holds now."""
        items, size = self._counts.pop(key, (0, 0))
        self._items += now[0] - items
        self._bytes += now[1] - size
        if now[0]:
            self._counts[key] = now

    def _sweep(self, is_current: Callable[[Stream, Track], bool]) -> None:
        """Now and then forget all tracks of streams that were deleted, reset, evicted or lost."""
        if time.monotonic() - self._swept_at < _SWEEP_S:
            return
        for key, pair in list(self._tracks.items()):
            if not is_current(*pair):
                self._forget(key)
        self._swept_at = time.monotonic()

    def _shed(self, stream: Stream, track: Track, surplus: int) -> None:
        if surplus > 0:
            track.gathered.take(surplus)
            self._count_shed(stream, track, surplus)

    def _count_shed(self, stream: Stream, track: Track, count: int) -> None:
        """So many have left unlearned."""
        if count:
            track.shed += count
            stream.dirty = True
            self._on_shed(stream, track, count)


def _sorted(portions: Sequence[Portion], fewest: int) -> tuple[list[GatheredBatch], int]:
    """A batch of each kind, and how many queries are of kinds with too few; see the module's head."""
    kinds: dict[str, list[Portion]] = {}
    for portion in portions:
        kinds.setdefault(portion.job.kind, []).append(portion)
    sizes = {kind: sum(len(part.asked) for part in parts) for kind, parts in kinds.items()}
    most = max(sizes, key=lambda kind: sizes[kind])
    batches = [
        GatheredBatch(
            parts[0].job,
            [one for part in parts for one in part.asked],
            f"{parts[0].job.id}+{parts[0].start}",
        )
        for kind, parts in kinds.items()
        if kind == most or sizes[kind] >= fewest
    ]
    return batches, sum(sizes.values()) - sum(len(batch.queries) for batch in batches)
