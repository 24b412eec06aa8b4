"""Stream states: create, commit, reset, evict, persist. Owned by the worker's thread alone.

Where the states go when they are not in memory is a `StateStore`'s business (service/states.py); what a
stream is made of stands in service/tracks.py.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, replace
from functools import partial
from typing import Any, Protocol

import structlog
from pydantic import ValidationError

from adapters.base import BadSettings, StateMismatch
from adapters.completion import Completion
from adapters.registry import Task
from adapters.state import StateFileError
from index.base import CalibrationMark
from service.errors import BadRequest, Conflict, NotFound, StorageFailed
from service.files import check_stream_name
from service.guard.settings import GuardSettings
from service.messages import LABELS, TrackKey
from service.metrics import StreamFigures
from service.queue.base import StateWrite
from service.states import StateStore
from service.stream_files import LABEL_SETS, Unpacked, pack_stream, unpack_stream
from service.tasks import Tasks, task_of
from service.tracks import Gathering, Stream, Track, carrying

log = structlog.get_logger(__name__)

_SLICE = 100
"""Streams that are described at a time."""

_SHOWN_FIGURES = ("modality_gap", "modality_gap_target", "uniformity", "entropy_nats")


class Attachable(Protocol):
    """The calibrations that there are: service.calibrations.Calibrations."""

    def task(self, name: str) -> Task: ...
    def mark(self, name: str) -> CalibrationMark: ...
    def attached(self, mark: CalibrationMark) -> Completion: ...


class StreamStore:
    """The streams of one worker.

    At most `max_in_memory` streams and `max_bytes` of states are held, pinned streams and the one in use
    aside; the longest unused leave.
    """

    def __init__(
        self,
        *,
        tasks: Tasks,
        states: StateStore,
        calibrations: Attachable | None = None,
        guard: Mapping[str, Any] | None = None,
        max_in_memory: int,
        max_bytes: int = 1 << 62,
        on_eviction: Callable[[], None] = lambda: None,
    ) -> None:
        self._tasks = tasks
        self._states = states
        self._calibrations = calibrations
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

    def describe_latest(self, most: int) -> Generator[None, None, dict[str, Any]]:
        """The `most` streams that were used last, and how many there are. In slices.

        -> {"total", "streams", "seconds"}: the last used first, and how long it took, without what was done
        between the slices.
        """
        began = time.perf_counter()
        held = sorted(self.held(), key=lambda stream: stream.last_seen, reverse=True)
        names = [stream.name for stream in held[:most]]
        if len(names) < most or self._states.deferred:  # what one worker alone has not in memory is older
            names = list(dict.fromkeys([*names, *self._states.latest(most)]))
        total = len({*self._states.names(), *(stream.name for stream in held)})
        seconds = time.perf_counter() - began
        found: list[dict[str, Any]] = []
        for start in range(0, len(names), _SLICE):
            yield
            began = time.perf_counter()
            found += self._describe(names[start : start + _SLICE])
            seconds += time.perf_counter() - began
        found.sort(key=lambda card: card["last_seen"], reverse=True)
        return {"total": total, "streams": found[:most], "seconds": seconds}

    def history(self, name: str) -> dict[str, Any]:
        """What the last batches of each of its tracks came to. Raises NotFound."""
        stream = self.find(name)
        return {
            "stream": name,
            "tracks": {key: track.history.columns() for key, track in stream.tracks.items()},
        }

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
        now = time.time()
        return Stream(name, dict(self._tasks.defaults), now, now, token=token)

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
        """The stream's track for these queries, made at its first query. Raises Conflict: too many labels."""
        track = stream.tracks.get(key.name)
        if track is None:
            self._refuse_another_label_set(stream, key.gallery)
            track = self._new_track(stream, key.gallery, key.direction)
        track.attached = partial(self._attached_by_name, stream.name, track.name)
        stream.last_seen = time.time()
        stream.dirty = True
        return track

    def _new_track(self, stream: Stream, gallery: str, direction: str) -> Track:
        method = stream.methods[task_of(direction)].method
        track = Track(gallery, direction, self._tasks.source_state(method, direction))
        completion = self._attached(stream, track)
        if completion is not None:
            track.state = carrying(track.state, completion)
        stream.tracks[track.name] = track
        self._set_guards(stream)
        return track

    def _attached(self, stream: Stream, track: Track) -> Completion | None:
        """What the stream's calibration completes a new track's queries by."""
        mark = stream.calibrations.get(track.task) if track.completed else None
        if mark is None:
            return None
        try:
            if self._calibrations is None:
                raise NotFound("this server keeps no calibrations", code="unknown_calibration")
            return self._calibrations.attached(mark)
        except (NotFound, BadRequest, Conflict) as error:
            log.warning("calibration_gone", stream=stream.name, calibration=mark.name, why=str(error))
            why = f"{error}; new tracks are completed by what their gallery or classifier has"
            stream.uncalibrated = {**stream.uncalibrated, track.task: why}
            return None

    def _attached_by_name(self, stream: str, track: str) -> Completion | None:
        """By names: a track that holds what holds it would not be gone at once when it leaves memory."""
        held = self._held.get(stream)
        return self._attached(held, held.tracks[track]) if held is not None and track in held.tracks else None

    def _refuse_another_label_set(self, stream: Stream, gallery: str) -> None:
        known = stream.label_sets
        if gallery.startswith(LABELS) and gallery not in known and len(known) >= LABEL_SETS:
            raise Conflict(
                f"stream {stream.name!r} adapts to {LABEL_SETS} label sets already; reset it, use another "
                "stream, or ask with adapt=off",
                code="too_many_label_sets",
            )

    # -- changing -----------------------------------------------------------------------------------

    def configure(
        self,
        name: str,
        method: str | None,
        settings: Mapping[str, Any] | None,
        pinned: bool | None = None,
        guard: Mapping[str, Any] | None = None,
        task: Task | None = None,
        calibration: str | None = None,
    ) -> tuple[Stream, bool]:
        """Choose a task's method and settings, whether the stream is pinned, settings of its guard over
        the server's, and its calibration. -> (stream, was reset).

        Another method starts from the source state. What is None stays as it is. Without `settings`,
        those of the old method stay if the method stays, else the defaults apply. Without `task` the method
        says which is meant, else it is retrieval. A calibration is for the task whose model it was made of;
        the empty name detaches that of `task`, or all. What was learned stays. Raises NotFound
        (`no_classifier`, `unknown_calibration`), UnknownMethod, BadSettings, and what the method lacks.
        """
        attached = None if calibration is None else self._named(calibration, task if method is None else None)
        if task is None:
            task = "retrieve" if method is None else self._tasks.task_with(method)
        stream = self.find_or_create(name)
        if attached == {}:
            attached = dict.fromkeys(stream.calibrations)
        old = stream.methods.get(task) or self._tasks.default(task)
        chosen = method or old.name
        kept = old.settings if chosen == old.name else {}
        new = self._tasks.choose(task, chosen, settings if settings is not None else kept)
        if guard is not None:
            self._guard_settings(guard)  # wrong ones change nothing
        leaving = stream.tracks_of(task) if new.name != old.name else {}
        before = copy(stream)
        stream.methods = {**stream.methods, task: new}
        stream.guard = stream.guard if guard is None else dict(guard)
        stream.pinned = stream.pinned if pinned is None else pinned
        self._leave(stream, leaving)
        for of_task, mark in (attached or {}).items():
            self._attach(stream, of_task, mark)
        self._save_or_revert(stream, before)
        self._set_guards(stream, forgive=True)
        stream.dirty = True
        return stream, bool(leaving)

    def _named(self, name: str, task: Task | None) -> dict[Task, CalibrationMark | None]:
        """What `name` attaches, by task; None detaches. Empty: it detaches all there are.

        Raises NotFound, BadRequest, Conflict.
        """
        if not name:
            return {} if task is None else {task: None}
        if self._calibrations is None:
            raise NotFound(f"there is no calibration {name!r}", code="unknown_calibration")
        found = self._calibrations.task(name)
        if task is not None and task != found:
            raise BadRequest(
                f"calibration {name!r} is for {found}, and the request is about {task}",
                code="bad_calibration",
            )
        return {found: self._calibrations.mark(name)}

    def _attach(self, stream: Stream, task: Task, mark: CalibrationMark | None) -> None:
        """Let a calibration complete a task's queries from now on; None: none of the stream's own."""
        if mark is None and task not in stream.calibrations:
            return
        assert mark is None or self._calibrations is not None
        completion = None if mark is None or self._calibrations is None else self._calibrations.attached(mark)
        others = {of: one for of, one in stream.calibrations.items() if of != task}
        stream.calibrations = others if mark is None else {**others, task: mark}
        stream.uncalibrated = {of: why for of, why in stream.uncalibrated.items() if of != task}
        old = {name: track for name, track in stream.tracks_of(task).items() if track.completed}
        tracks = stream.tracks | {name: track.with_completion(completion) for name, track in old.items()}
        self._leave(stream, {name: track for name, track in old.items() if track.gathered.learning})
        stream.tracks = tracks
        log.info(
            "calibration_detached" if mark is None else "calibration_attached",
            stream=stream.name, task=task, **({} if mark is None else mark._asdict()),
        )  # fmt: skip

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
        """Back to the source state; method, settings and calibrations stay."""
        stream = self.find(name)
        before = copy(stream)
        self._leave(stream, stream.tracks)
        stream.uncalibrated = {}
        self._save_or_revert(stream, before)
        return stream

    def restore(self, name: str, found: Unpacked) -> Stream:
        """The stream as it was when the snapshot was made; a task that the snapshot lacks starts anew."""
        stream = self.find_or_create(name)
        before = copy(stream)
        self._leave(stream, stream.tracks)
        stream.methods = {**stream.methods, **found.methods}
        stream.tracks = dict(found.tracks)
        stream.calibrations, stream.uncalibrated = dict(found.calibrations), {}
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
        stream = self.find(name)
        self._leave(stream, stream.tracks)
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

    def _leave(self, stream: Stream, tracks: Mapping[str, Track]) -> None:
        """Some tracks leave the stream, and what they have gathered with them, in the store too."""
        if self._states.deferred:
            # All of them: the jobs of a batch that is being learned from have left here, but not there.
            self._ungathered.setdefault(stream.name, []).extend(tracks)
        stream.tracks = {name: track for name, track in stream.tracks.items() if name not in tracks}

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
        found = unpack_stream(data, self._tasks, whole=False)
        header = found.header
        stream = Stream(
            name=name,
            methods={**self._tasks.defaults, **found.methods},
            created_at=header["created_at"],
            last_seen=header["last_seen"],
            tracks=found.tracks,
            pinned=header.get("pinned", False),
            guard=header.get("guard", {}),
            calibrations=found.calibrations,
            uncalibrated=header.get("uncalibrated", {}),
            dirty=False,
        )
        self._set_guards(stream)
        self._resume_gathering(stream, header)
        if found.refused:
            aside = self._states.set_aside(name)
            log.error("classifier_state_refused", stream=name, why=found.refused, kept_as=aside)
            stream.dirty = True
            if not self._states.deferred:
                self._try_to_save(stream)
        return stream

    def _resume_gathering(self, stream: Stream, header: Mapping[str, Any]) -> None:
        """The queries that were answered but not yet learned from when the stream was last held."""
        for name, jobs in self._states.gathered(stream.name).items():
            if not jobs:
                continue
            key = jobs[0].key
            if task_of(key.direction) not in self._tasks.served:
                continue  # of a classifier that this worker does not have
            track = stream.tracks.get(name) or self._new_track(stream, key.gallery, key.direction)
            used = header.get("tracks", {}).get(name, {}).get("gathered_used", 0)
            track.gathered = Gathering.resumed(jobs, used)
