"""Which tracks have gathered queries, whose turn it is to adapt, who gives way when they are too many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.messages import Query, RetrieveJob
from service.queue.base import GatherWrite
from service.streams import Stream, Track


@dataclass(frozen=True)
class GatherLimits:
    """See the settings of the same names; sizes in queries."""

    batch_size: int
    min_items: int
    max_age_s: float
    capacity_items: int
    total_items: int


@dataclass(frozen=True)
class GatheredBatch:
    """Queries that left their gathering to be learned from. `write`: what the store is told afterwards."""

    stream: Stream
    track: Track
    queries: Sequence[Query]
    id: str
    write: GatherWrite


class Gatherings:
    """The tracks of all streams that hold gathered queries, the one whose turn is next first."""

    def __init__(self, limits: GatherLimits, *, on_shed: Callable[[Stream, int], None]) -> None:
        self._limits = limits
        self._on_shed = on_shed
        self._tracks: dict[tuple[str, str], tuple[Stream, Track]] = {}

    def __len__(self) -> int:
        return len(self._tracks)

    def due(self) -> int:
        """Tracks that hold a full batch. May be called from any thread."""
        return sum(len(track.gathered) >= self._limits.batch_size for _, track in list(self._tracks.values()))

    def watch(self, stream: Stream) -> None:
        """Take note of what the stream's tracks hold already."""
        for track in stream.tracks.values():
            if len(track.gathered):
                self._tracks.setdefault((stream.name, track.name), (stream, track))

    def join(self, stream: Stream, track: Track, jobs: Sequence[RetrieveJob]) -> GatherWrite:
        """Answered jobs join the track's gathering; beyond its capacity its oldest queries leave."""
        track.gathered.join(jobs)
        self._tracks[stream.name, track.name] = (stream, track)
        drop = self._shed(stream, track, len(track.gathered) - self._limits.capacity_items)
        return GatherWrite(stream.name, stream.token, track.name, drop=drop, join=tuple(jobs))

    def overflow(self) -> tuple[Stream, GatherWrite] | None:
        """If all gatherings together hold too much: the one whose turn is next leaves unlearned."""
        limits = self._limits
        if len(self._tracks) * limits.capacity_items <= limits.total_items:
            return None
        if sum(len(track.gathered) for _, track in self._tracks.values()) <= limits.total_items:
            return None
        stream, track = self._tracks.pop(next(iter(self._tracks)))
        return stream, GatherWrite(
            stream.name, stream.token, track.name, drop=self._shed(stream, track, len(track.gathered))
        )

    def idle_for_s(self, longest_s: float) -> float:
        """Seconds until the next gathering falls due, at most `longest_s`."""
        now = time.monotonic()
        for _, track in self._tracks.values():
            if len(track.gathered) >= self._limits.batch_size:
                return 0.0
            if len(track.gathered) >= self._limits.min_items:
                longest_s = min(longest_s, track.gathered.since + self._limits.max_age_s - now)
        return max(longest_s, 0.0)

    def next_batch(
        self, *, is_current: Callable[[Stream, Track], bool], everything: bool = False
    ) -> GatheredBatch | None:
        """The queries of the first gathering that is full, or old enough and not too small."""
        limits = self._limits
        now = time.monotonic()
        for key, (stream, track) in list(self._tracks.items()):
            if not is_current(stream, track) or not len(track.gathered):
                del self._tracks[key]
                continue
            count = len(track.gathered)
            old = everything or now - track.gathered.since >= limits.max_age_s
            if count < limits.batch_size and not (old and count >= limits.min_items):
                continue
            first, used = track.gathered.jobs[0].id, track.gathered.used
            queries, done = track.gathered.take(limits.batch_size)
            del self._tracks[key]
            if len(track.gathered):  # to the back: other streams have their turn
                self._tracks[key] = (stream, track)
            write = GatherWrite(stream.name, stream.token, track.name, drop=done)
            return GatheredBatch(stream, track, queries, f"{first}+{used}", write)
        return None

    def _shed(self, stream: Stream, track: Track, surplus: int) -> int:
        if surplus <= 0:
            return 0
        _, done = track.gathered.take(surplus)
        track.shed += surplus
        stream.dirty = True
        self._on_shed(stream, surplus)
        return done
