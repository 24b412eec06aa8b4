"""Stream states: create, commit, reset, evict, persist. Owned by the worker's thread alone.

A stream has a method and one track per (gallery, direction) that its queries take. A track's state is
replaced as a whole, never changed in place, so whoever holds the old one keeps a consistent view.

Where the states go when they are not in memory is a `StateStore`'s business (service/states.py).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import structlog
from pydantic import ValidationError

from adapters.base import BadSettings, Method, StateMismatch
from adapters.registry import METHODS, make_method
from adapters.state import AdaptationState, StateFileError, pack_states, unpack_states
from adapters.validation import check_state
from encoders.base import Encoder, Modality
from service.errors import NotFound, StorageFailed
from service.files import check_stream_name
from service.guard.guard import Guard
from service.guard.settings import GuardSettings
from service.messages import Query, RetrieveJob, Target, TrackKey
from service.metrics import StreamFigures
from service.pipeline import Outcome
from service.queue.base import StateWrite
from service.states import StateStore

log = structlog.get_logger(__name__)

_SLICE = 100
"""Streams that are described at a time."""

_GOOD = "good:"
"""Before a track's name, in a file: the last good state of its guard."""

_SHOWN_FIGURES = ("modality_gap", "modality_gap_target", "uniformity", "entropy_nats")


@dataclass
class Gathering:
    """Answered queries of a track that wait for a full batch (asynchronous mode), in the order they came.

    used         queries of the oldest job that have left already
    stored_used  the same in the store, which jobs leave only with what was learned from them
    left         jobs that have left here, and not yet there
    learning     whether a batch that has left is being learned from
    since        time.monotonic() at which the oldest batch began to gather
    """

    jobs: deque[RetrieveJob] = field(default_factory=deque)
    used: int = 0
    stored_used: int = 0
    left: int = 0
    learning: bool = False
    since: float = 0.0
    _count: int = 0

    def __len__(self) -> int:
        """Queries waiting."""
        return self._count

    def join(self, jobs: Sequence[RetrieveJob]) -> None:
        if not self._count:
            self.since = time.monotonic()
        self.jobs.extend(jobs)
        self._count += sum(job.items for job in jobs)

    def take(self, count: int) -> list[Query]:
        """The oldest `count` queries leave."""
        taken: list[Query] = []
        while self.jobs and len(taken) < count:
            waiting = self.jobs[0].queries[self.used :]
            part = waiting[: count - len(taken)]
            taken.extend(part)
            self.used += len(part)
            if len(part) == len(waiting):
                self.jobs.popleft()
                self.used = 0
                self.left += 1
        self._count -= len(taken)
        self.since = time.monotonic()
        return taken

    def let_go(self) -> int:
        """How many of the oldest jobs the store is to drop, together with a state that says `stored_used`."""
        left, self.left = self.left, 0
        self.stored_used = self.used
        return left

    @classmethod
    def resumed(cls, jobs: Sequence[RetrieveJob], used: int) -> Gathering:
        gathering = cls()
        gathering.join(jobs)
        gathering.used = min(used, jobs[0].items if jobs else 0)
        gathering.stored_used = gathering.used
        gathering._count -= gathering.used
        return gathering


@dataclass
class Track:
    """What one stream knows of one gallery and direction."""

    gallery: str
    direction: str
    state: AdaptationState
    applied: int = 0
    skipped: int = 0
    undone: int = 0
    shed: int = 0
    gathered: Gathering = field(default_factory=Gathering)
    last_reason: str = ""
    drift: dict[str, float] | None = None
    losses: dict[str, float] | None = None
    guard: Guard = field(default_factory=lambda: Guard(GuardSettings()))

    @property
    def name(self) -> str:
        return f"{self.gallery}/{self.direction}"

    @property
    def query_modality(self) -> Modality:
        return "image" if self.direction.startswith("image") else "text"

    @property
    def target(self) -> Target:
        return "image" if self.direction.endswith("image") else "text"

    def commit(self, outcome: Outcome) -> None:
        """Take over what an adaptation came to. An undone one leaves the state as it was."""
        if outcome.state is not None:
            self.state = outcome.state
        if outcome.guard is not None:
            self.guard = replace(outcome.guard, settings=self.guard.settings)
        setattr(self, outcome.status, getattr(self, outcome.status) + 1)
        self.last_reason = outcome.reason
        self.drift = dict(outcome.drift) or None
        self.losses = dict(outcome.losses) or None

    def describe(self) -> dict[str, Any]:
        memory = self.state.tensors.get("memory.likeness")
        return {
            "gallery": self.gallery,
            "direction": self.direction,
            "version": self.state.version,
            "batches": self.state.batches,
            "applied": self.applied,
            "skipped": self.skipped,
            "undone": self.undone,
            "shed": self.shed,
            "gathered": len(self.gathered),
            "memory_size": 0 if memory is None else len(memory),
            "state_bytes": self.state.byte_size(),
            "last_reason": self.last_reason,
            "drift": self.drift,
            "losses": self.losses,
            "guard": self.guard.describe(),
        }

    def byte_size(self) -> int:
        """Bytes of the state and of the last good one."""
        good = self.guard.good
        return self.state.byte_size() + (0 if good is None or good is self.state else good.byte_size())


@dataclass
class Stream:
    name: str
    method_name: str
    settings: dict[str, Any]
    method: Method
    created_at: float
    last_seen: float
    tracks: dict[str, Track] = field(default_factory=dict)
    pinned: bool = False
    """Never leaves memory to make room for others, and never expires."""
    guard: dict[str, Any] = field(default_factory=dict)
    """Settings of the guard over the server's."""
    dirty: bool = True
    adapting: int = 0
    """Adaptations under way; it does not leave memory meanwhile."""
    token: int | None = 0
    """The store's owner token when this was loaded; see StateStore."""

    @property
    def version(self) -> int:
        return sum(track.state.version for track in self.tracks.values())

    def byte_size(self) -> int:
        return sum(track.byte_size() for track in self.tracks.values())

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pinned": self.pinned,
            "method": self.method_name,
            "settings": self.settings,
            "guard": self.guard,
            "version": self.version,
            "batches": sum(track.state.batches for track in self.tracks.values()),
            "created_at": self.created_at,
            "last_seen": self.last_seen,
            "tracks": [track.describe() for track in self.tracks.values()],
        }


class StreamStore:
    """The streams of one worker.

    At most `max_in_memory` streams and `max_bytes` of states are held, pinned streams and the one in use
    aside; the longest unused leave.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        states: StateStore,
        default_method: str,
        default_settings: Mapping[str, Any],
        guard: Mapping[str, Any] | None = None,
        max_in_memory: int,
        max_bytes: int = 1 << 62,
        on_eviction: Callable[[], None] = lambda: None,
    ) -> None:
        make_method(default_method, default_settings)  # a wrong default fails at start, not at a query
        self._encoder = encoder
        self._states = states
        self._default = (default_method, dict(default_settings))
        self._guard = GuardSettings(**(guard or {})).model_dump()
        self._max_in_memory = max_in_memory
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, Stream] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._ungathered: dict[str, list[str]] = {}
        self._deleted: set[str] = set()
        self._unsaved: deque[Stream] = deque()
        self._on_eviction = on_eviction

    @property
    def keeps_gatherings(self) -> bool:
        """Whether gathered queries are stored and survive this process."""
        return self._states.deferred

    # -- finding ------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted({*self._states.names(), *(stream.name for stream in self.held())})

    def describe_all(self) -> Generator[None, None, list[dict[str, Any]]]:
        """Every stream, by name; of those not in memory what was stored of them.

        In slices, because there may be thousands.
        """
        names = self.names()
        found: list[dict[str, Any]] = []
        for start in range(0, len(names), _SLICE):
            found += self._describe(names[start : start + _SLICE])
            yield
        return found

    def _describe(self, names: Sequence[str]) -> list[dict[str, Any]]:
        cards = {name: held.describe() for name in names if (held := self._current(name)) is not None}
        stored = [name for name in names if name not in cards]
        cards |= {
            name: card
            for name, card in zip(stored, self._states.cards(stored), strict=True)
            if card is not None
        }
        return [cards[name] for name in names if name in cards]

    def find(self, name: str) -> Stream:
        """The stream, from memory or the store. Raises NotFound."""
        check_stream_name(name)
        stream = self._current(name) or self._load(name)
        if stream is None:
            raise NotFound(f"there is no stream {name!r}", code="unknown_stream")
        return self._hold(stream)

    def find_or_create(self, name: str) -> Stream:
        check_stream_name(name)
        token = self._states.owner_token(name)
        return self._hold(self._current(name) or self._load(name) or self._new(name, token))

    def _new(self, name: str, token: int | None) -> Stream:
        method, settings = self._default
        now = time.time()
        return Stream(name, method, settings, make_method(method, settings), now, now, token=token)

    def count(self) -> int:
        """Streams in memory. May be called from any thread."""
        return len(self._held)

    def byte_size(self) -> int:
        """Bytes of the states in memory, as of their last save. May be called from any thread."""
        return self._bytes

    def figures(self) -> list[StreamFigures]:
        """What every stream in memory shows of itself. May be called from any thread."""
        return [
            StreamFigures(
                stream=stream.name,
                direction=track.direction,
                version=track.state.version,
                last_used=stream.last_seen,
                pinned=stream.pinned,
                **{name: (track.drift or {}).get(name) for name in _SHOWN_FIGURES},
            )
            for stream in list(self._held.values())
            for track in list(stream.tracks.values())
        ]

    def held(self) -> Iterator[Stream]:
        return (stream for stream in list(self._held.values()) if self._owned(stream))

    def is_current(self, stream: Stream) -> bool:
        """Whether this very object still is the stream: not deleted, nor taken over by another worker."""
        return self._held.get(stream.name) is stream and self._owned(stream)

    def _current(self, name: str) -> Stream | None:
        stream = self._held.get(name)
        if stream is not None and not self._owned(stream):
            self._drop(name)  # another worker may have written it since: read it again
            return None
        return stream

    def _owned(self, stream: Stream) -> bool:
        return stream.token is not None and stream.token == self._states.owner_token(stream.name)

    def track(self, stream: Stream, key: TrackKey) -> Track:
        """The stream's track for these queries, made at its first query."""
        track = stream.tracks.get(key.name)
        if track is None:
            track = Track(key.gallery, key.direction, self._source_state(stream.method, key.direction))
            stream.tracks[key.name] = track
            self._set_guards(stream)
        stream.last_seen = time.time()
        stream.dirty = True
        return track

    def _source_state(self, method: Method, direction: str) -> AdaptationState:
        modality: Modality = "image" if direction.startswith("image") else "text"
        return method.initial_state(
            fingerprint=self._encoder.fingerprint, parameters=self._encoder.towers[modality].parameters
        )

    # -- changing -----------------------------------------------------------------------------------

    def configure(
        self,
        name: str,
        method: str | None,
        settings: Mapping[str, Any] | None,
        pinned: bool | None = None,
        guard: Mapping[str, Any] | None = None,
    ) -> tuple[Stream, bool]:
        """Choose method and settings, whether the stream is pinned, and settings of its guard over the
        server's. -> (stream, was reset).

        Another method starts from the source state. What is None stays as it is. Without `settings`,
        those of the old method stay if the method stays, else the defaults apply.
        """
        stream = self.find_or_create(name)
        chosen = method or stream.method_name
        kept = stream.settings if chosen == stream.method_name else {}
        wanted = dict(settings) if settings is not None else kept
        built = make_method(chosen, wanted)
        if guard is not None:
            self._guard_settings(guard)  # wrong ones change nothing
        reset = chosen != stream.method_name and bool(stream.tracks)
        before = copy(stream)
        stream.method_name, stream.settings, stream.method = chosen, wanted, built
        stream.guard = stream.guard if guard is None else dict(guard)
        stream.pinned = stream.pinned if pinned is None else pinned
        if chosen != before.method_name:
            self._ungather(stream)
            stream.tracks = {}
        self._save_or_revert(stream, before)
        self._set_guards(stream, forgive=True)
        stream.dirty = True
        return stream, reset

    def _guard_settings(self, over: Mapping[str, Any]) -> GuardSettings:
        """The server's with some changed. Raises BadSettings."""
        try:
            return GuardSettings(**{**self._guard, **over})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadSettings(f"guard: {where}: {first['msg']}, got {first['input']!r}") from error

    def _set_guards(self, stream: Stream, *, forgive: bool = False) -> None:
        """Give the guards of a stream's tracks their settings and names."""
        settings = self._guard_settings(stream.guard)
        for name, track in stream.tracks.items():
            guard = track.guard.configured(settings) if forgive else track.guard
            track.guard = replace(guard, settings=settings, stream=stream.name, track=name)

    def reset(self, name: str) -> Stream:
        """Back to the source state; method and settings stay."""
        stream = self.find(name)
        before = copy(stream)
        self._ungather(stream)
        stream.tracks = {}
        self._save_or_revert(stream, before)
        return stream

    def restore(
        self, name: str, *, method: str, settings: Mapping[str, Any], tracks: Mapping[str, Track]
    ) -> Stream:
        stream = self.find_or_create(name)
        before = copy(stream)
        self._ungather(stream)
        stream.method_name, stream.settings = method, dict(settings)
        stream.method, stream.tracks = make_method(method, settings), dict(tracks)
        self._set_guards(stream)
        self._save_or_revert(stream, before)
        return stream

    def _save_or_revert(self, stream: Stream, before: Stream) -> None:
        """A change is only made once it is stored: what is reported must survive a crash."""
        stream.dirty = True
        if self._states.deferred:  # it is stored in one go with the answer that reports it
            return
        try:
            self.save(stream)
        except StorageFailed:
            for field_ in fields(stream):
                setattr(stream, field_.name, getattr(before, field_.name))
            raise

    def delete(self, name: str) -> None:
        self._ungather(self.find(name))
        self._drop(name)
        if self._states.deferred:
            self._deleted.add(name)
        else:
            self._states.delete(name)

    # -- the store ----------------------------------------------------------------------------------

    def write(self, name: str, *, always: bool = False) -> StateWrite | None:
        """What the store is to be told of a stream with the next settlement; None: nothing.

        That is its state if it has changed (or `always`), or that it is gone. Stores that are not deferred
        are told by `save`.
        """
        if not self._states.deferred:
            return None
        ungathered = tuple(self._ungathered.pop(name, ()))
        stream = self._current(name)
        if stream is None:
            gone = name in self._deleted
            self._deleted.discard(name)
            token = self._states.owner_token(name)
            return StateWrite(name, token, None, {}, ungathered=ungathered) if gone else None
        if not stream.dirty and not always:
            return None
        stream.dirty = False
        self.measure(stream)
        data = pack_stream(stream, kind="stream")
        card = stream.describe()
        return StateWrite(name, stream.token, data, card, pinned=stream.pinned, ungathered=ungathered)

    def _ungather(self, stream: Stream) -> None:
        """What the stream's tracks have gathered leaves with them, in the store too."""
        if self._states.deferred:
            # All tracks: the jobs of a batch that is being learned from have left here, but not there.
            self._ungathered.setdefault(stream.name, []).extend(stream.tracks)

    def save(self, stream: Stream) -> None:
        self._states.save(stream.name, pack_stream(stream, kind="stream"))
        self.measure(stream)
        stream.dirty = False

    @property
    def saving(self) -> bool:
        """Whether `save_dirty` had no time for all and is to go on."""
        return bool(self._unsaved)

    def save_dirty(self, *, for_s: float | None = None) -> None:
        """Save what changed; with `for_s` only for about so long, where it left off.

        A stream that cannot be saved stays dirty and is tried again.
        """
        if self._states.deferred:
            return
        if for_s is None or not self._unsaved:
            self._unsaved = deque(stream for stream in self.held() if stream.dirty)
        until = None if for_s is None else time.monotonic() + for_s
        while self._unsaved:
            stream = self._unsaved.popleft()
            if stream.dirty and self.is_current(stream):
                self._try_to_save(stream)
            if until is not None and time.monotonic() >= until:
                return

    def _try_to_save(self, stream: Stream) -> None:
        try:
            self.save(stream)
        except StorageFailed as error:
            log.exception("stream_not_saved", stream=stream.name, why=str(error))

    def _hold(self, stream: Stream) -> Stream:
        if stream.name not in self._held:
            self._held[stream.name] = stream
            self.measure(stream)
        self._held.move_to_end(stream.name)
        if len(self._held) > self._max_in_memory or self._bytes > self._max_bytes:
            self._make_room(stream)
        return stream

    def _make_room(self, in_use: Stream) -> None:
        for oldest in self._in_surplus(in_use):
            if oldest.dirty and not self._states.deferred:
                try:
                    self.save(oldest)
                except StorageFailed as error:
                    log.exception("stream_not_evicted", stream=oldest.name, why=str(error))
                    return
            self._drop(oldest.name)
            self._on_eviction()

    def _in_surplus(self, in_use: Stream) -> list[Stream]:
        """Those that have to leave, the longest unused first."""
        surplus: list[Stream] = []
        staying: list[Stream] = []
        streams, size = len(self._held), self._bytes
        for oldest in self._held.values():
            if streams <= self._max_in_memory and size <= self._max_bytes:
                break
            if oldest is in_use or oldest.pinned or oldest.adapting:
                staying.append(oldest)
                continue
            surplus.append(oldest)
            streams, size = streams - 1, size - self._sizes[oldest.name]
        for stream in staying:  # so that not every new stream has to look past them again
            self._held.move_to_end(stream.name)
        return surplus

    def measure(self, stream: Stream) -> None:
        """Take note of how large the stream's states are now."""
        size = stream.byte_size()
        self._bytes += size - self._sizes.get(stream.name, 0)
        self._sizes[stream.name] = size

    def _drop(self, name: str) -> None:
        self._held.pop(name, None)
        self._bytes -= self._sizes.pop(name, 0)

    def _load(self, name: str) -> Stream | None:
        # Before the read: what changes in between makes it out of date.
        token = self._states.owner_token(name)
        data = self._states.load(name)
        if data is None:
            return self._gathered_only(name, token)
        try:
            stream = self._unpack(name, data)
        except (StateFileError, StateMismatch, BadSettings) as error:
            # A stream must not stop answering because its old state is of no use any more.
            aside = self._states.set_aside(name)
            log.exception("stream_state_refused", stream=name, why=str(error), kept_as=aside)
            return self._gathered_only(name, token)
        stream.token = token
        return stream

    def _gathered_only(self, name: str, token: int | None) -> Stream | None:
        """A stream of which nothing but gathered queries is stored; None if there are none."""
        stream = self._new(name, token)
        self._resume_gathering(stream, {})
        return stream if stream.tracks else None

    def _unpack(self, name: str, data: bytes) -> Stream:
        header, tracks = unpack_tracks(data, self._encoder)
        stream = Stream(
            name=name,
            method_name=header["method"],
            settings=header["settings"],
            method=make_method(header["method"], header["settings"]),
            created_at=header["created_at"],
            last_seen=header["last_seen"],
            tracks=tracks,
            pinned=header.get("pinned", False),
            guard=header.get("guard", {}),
            dirty=False,
        )
        self._set_guards(stream)
        self._resume_gathering(stream, header)
        return stream

    def _resume_gathering(self, stream: Stream, header: Mapping[str, Any]) -> None:
        """The queries that were answered but not yet learned from when the stream was last held."""
        for name, jobs in self._states.gathered(stream.name).items():
            if not jobs:
                continue
            if name not in stream.tracks:
                direction = jobs[0].key.direction
                state = self._source_state(stream.method, direction)
                stream.tracks[name] = Track(jobs[0].key.gallery, direction, state)
                self._set_guards(stream)
            used = header.get("tracks", {}).get(name, {}).get("gathered_used", 0)
            stream.tracks[name].gathered = Gathering.resumed(jobs, used)


def pack_stream(stream: Stream, *, kind: str, **about: Any) -> bytes:
    """A stream's states and what is known of them, as one file. `about` goes into the header.

    A snapshot leaves the guards out: what it restores is judged anew.
    """
    guarded = kind == "stream"
    header = {
        "kind": kind,
        "stream": stream.name,
        "method": stream.method_name,
        "settings": stream.settings,
        "created_at": stream.created_at,
        "last_seen": stream.last_seen,
        "pinned": stream.pinned,
        "guard": stream.guard,
        "card": stream.describe(),
        "tracks": {
            key: {
                "gallery": track.gallery,
                "direction": track.direction,
                "applied": track.applied,
                "skipped": track.skipped,
                "undone": track.undone,
                "shed": track.shed,
                "gathered_used": track.gathered.stored_used,
                "drift": track.drift,
                "losses": track.losses,
                **({"guard": track.guard.to_plain()} if guarded else {}),
            }
            for key, track in stream.tracks.items()
        },
        **about,
    }
    states = {key: track.state for key, track in stream.tracks.items()}
    for key, track in stream.tracks.items():
        if guarded and track.guard.good is not None:
            states[_GOOD + key] = track.guard.good
    return pack_states(states, header=header)


def unpack_tracks(data: bytes, encoder: Encoder) -> tuple[dict[str, Any], dict[str, Track]]:
    """The header and the tracks of a packed stream, checked against the encoder.

    Raises StateFileError (not a whole, unaltered file), StateMismatch (another encoder or method).
    """
    states, header = unpack_states(data, device=encoder.device)
    try:
        method = header["method"]
        if method not in METHODS:
            raise StateMismatch(f"the file was made by method {method!r}, which this version does not have")
        tracks = {key: _track(key, states[key], about) for key, about in header["tracks"].items()}
        for key, about in header["tracks"].items():
            if "guard" in about:
                tracks[key].guard = Guard.from_plain(
                    about["guard"], settings=GuardSettings(), stream=header["stream"], track=key,
                    good=states.get(_GOOD + key), dimension=encoder.dimension,
                )  # fmt: skip
    except ValueError as error:
        raise StateFileError(f"the file's guard is damaged: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise StateFileError(f"the file lacks {error}") from error
    for track in tracks.values():
        for state in (track.state, track.guard.good):
            if state is not None:
                _check(track, state, method, encoder)
    return header, tracks


def _check(track: Track, state: AdaptationState, method: str, encoder: Encoder) -> None:
    if state.method != method:
        raise StateMismatch(f"{track.name} was made by {state.method!r}, the stream by {method!r}")
    check_state(
        state,
        fingerprint=encoder.fingerprint,
        parameters=encoder.towers[track.query_modality].parameters,
        dimension=encoder.dimension,
    )


def _track(key: str, state: AdaptationState, about: Mapping[str, Any]) -> Track:
    track = Track(
        gallery=about["gallery"],
        direction=about["direction"],
        state=state,
        applied=int(about["applied"]),
        skipped=int(about["skipped"]),
        undone=int(about["undone"]),
        shed=int(about["shed"]),
        drift=about["drift"],
        losses=about["losses"],
    )
    if key != track.name or track.direction not in DIRECTIONS:
        raise StateFileError(f"unknown track {key[:100]!r}")
    return track


DIRECTIONS = tuple(f"{query}->{target}" for query in ("image", "text") for target in ("image", "text"))
