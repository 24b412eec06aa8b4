"""Stream states: create, commit, reset, evict, persist. Owned by the worker's thread alone.

A stream has a method and one track per (gallery, direction) that its queries take. A track's state is
replaced as a whole, never changed in place, so whoever holds the old one keeps a consistent view.

On disk: `streams/NAME.state`, one file a stream, written atomically.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from adapters.base import BadSettings, Method, StateMismatch
from adapters.registry import METHODS, make_method
from adapters.state import AdaptationState, StateFileError, pack_states, unpack_states
from adapters.validation import check_state
from encoders.base import Encoder, Modality
from service.errors import NotFound, StorageFailed
from service.files import check_stream_name, write_atomically
from service.messages import Query, Target, TrackKey
from service.pipeline import Outcome

log = structlog.get_logger(__name__)

_SUFFIX = ".state"


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
    gathered: list[Query] = field(default_factory=list)
    """Answered queries that wait for a full batch (asynchronous mode)."""
    gathered_since: float = 0.0
    last_reason: str = ""
    drift: dict[str, float] | None = None
    losses: dict[str, float] | None = None

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
        }


@dataclass
class Stream:
    name: str
    method_name: str
    settings: dict[str, Any]
    method: Method
    created_at: float
    last_seen: float
    tracks: dict[str, Track] = field(default_factory=dict)
    dirty: bool = True

    @property
    def version(self) -> int:
        return sum(track.state.version for track in self.tracks.values())

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "method": self.method_name,
            "settings": self.settings,
            "version": self.version,
            "batches": sum(track.state.batches for track in self.tracks.values()),
            "created_at": self.created_at,
            "last_seen": self.last_seen,
            "tracks": [track.describe() for track in self.tracks.values()],
        }


class StreamStore:
    """All streams of one encoder. At most `max_in_memory` are held; the longest unused go to disk."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        folder: Path,
        default_method: str,
        default_settings: Mapping[str, Any],
        max_in_memory: int,
    ) -> None:
        make_method(default_method, default_settings)  # a wrong default fails at start, not at a query
        self._encoder = encoder
        self._folder = folder
        self._default = (default_method, dict(default_settings))
        self._max_in_memory = max_in_memory
        self._held: OrderedDict[str, Stream] = OrderedDict()

    # -- finding ------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        on_disk = {path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")}
        return sorted(on_disk | set(self._held))

    def describe_all(self) -> list[dict[str, Any]]:
        """Every stream, by name. Those on disk are read but not taken into memory."""
        found = (self._held.get(name) or self._load(name) for name in self.names())
        return [stream.describe() for stream in found if stream is not None]

    def find(self, name: str) -> Stream:
        """The stream, from memory or disk. Raises NotFound."""
        check_stream_name(name)
        stream = self._held.get(name) or self._load(name)
        if stream is None:
            raise NotFound(f"there is no stream {name!r}", code="unknown_stream")
        return self._hold(stream)

    def find_or_create(self, name: str) -> Stream:
        check_stream_name(name)
        stream = self._held.get(name) or self._load(name)
        if stream is None:
            method, settings = self._default
            now = time.time()
            stream = Stream(name, method, settings, make_method(method, settings), now, now)
        return self._hold(stream)

    def count(self) -> int:
        """Streams in memory. May be called from any thread."""
        return len(self._held)

    def held(self) -> Iterator[Stream]:
        return iter(list(self._held.values()))

    def is_current(self, stream: Stream) -> bool:
        """Whether this very object still is the stream (it was not deleted meanwhile)."""
        return self._held.get(stream.name) is stream

    def track(self, stream: Stream, key: TrackKey) -> Track:
        """The stream's track for these queries, made at its first query."""
        track = stream.tracks.get(key.name)
        if track is None:
            track = Track(key.gallery, key.direction, self._source_state(stream.method, key.direction))
            stream.tracks[key.name] = track
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
        self, name: str, method: str | None, settings: Mapping[str, Any] | None
    ) -> tuple[Stream, bool]:
        """Choose method and settings. Another method starts from the source state. -> (stream, was reset).

        Without `settings`, those of the old method stay if the method stays, else the defaults apply.
        """
        stream = self.find_or_create(name)
        chosen = method or stream.method_name
        kept = stream.settings if chosen == stream.method_name else {}
        wanted = dict(settings) if settings is not None else kept
        built = make_method(chosen, wanted)
        reset = chosen != stream.method_name and bool(stream.tracks)
        before = (stream.method_name, stream.settings, stream.method, stream.tracks)
        stream.method_name, stream.settings, stream.method = chosen, wanted, built
        if chosen != before[0]:
            stream.tracks = {}
        self._save_or_revert(stream, before)
        return stream, reset

    def reset(self, name: str) -> Stream:
        """Back to the source state; method and settings stay."""
        stream = self.find(name)
        before = (stream.method_name, stream.settings, stream.method, stream.tracks)
        stream.tracks = {}
        self._save_or_revert(stream, before)
        return stream

    def restore(
        self, name: str, *, method: str, settings: Mapping[str, Any], tracks: Mapping[str, Track]
    ) -> Stream:
        stream = self.find_or_create(name)
        before = (stream.method_name, stream.settings, stream.method, stream.tracks)
        stream.method_name, stream.settings = method, dict(settings)
        stream.method, stream.tracks = make_method(method, settings), dict(tracks)
        self._save_or_revert(stream, before)
        return stream

    def _save_or_revert(
        self, stream: Stream, before: tuple[str, dict[str, Any], Method, dict[str, Track]]
    ) -> None:
        """A change is only made once it is on disk: what is reported must survive a crash."""
        try:
            self.save(stream)
        except StorageFailed:
            stream.method_name, stream.settings, stream.method, stream.tracks = before
            raise

    def delete(self, name: str) -> None:
        self.find(name)
        self._held.pop(name, None)
        self._path(name).unlink(missing_ok=True)

    # -- files --------------------------------------------------------------------------------------

    def save(self, stream: Stream) -> None:
        write_atomically(self._path(stream.name), pack_stream(stream, kind="stream"))
        stream.dirty = False

    def save_dirty(self) -> None:
        """Save what changed. A stream that cannot be saved stays dirty and is tried again."""
        for stream in self.held():
            if stream.dirty:
                try:
                    self.save(stream)
                except StorageFailed as error:
                    log.exception("stream_not_saved", stream=stream.name, why=str(error))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _hold(self, stream: Stream) -> Stream:
        self._held[stream.name] = stream
        self._held.move_to_end(stream.name)
        while len(self._held) > self._max_in_memory:
            oldest = next(iter(self._held.values()))
            if oldest.dirty:
                try:
                    self.save(oldest)
                except StorageFailed as error:
                    log.exception("stream_not_evicted", stream=oldest.name, why=str(error))
                    break
            del self._held[oldest.name]
        return stream

    def _load(self, name: str) -> Stream | None:
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            return self._unpack(name, path.read_bytes())
        except (StateFileError, StateMismatch, BadSettings) as error:
            # A stream must not stop answering because its old state is of no use any more.
            aside = path.with_suffix(".refused")
            path.replace(aside)
            log.exception("stream_state_refused", stream=name, why=str(error), kept_as=aside.name)
            return None

    def _unpack(self, name: str, data: bytes) -> Stream:
        header, tracks = unpack_tracks(data, self._encoder)
        return Stream(
            name=name,
            method_name=header["method"],
            settings=header["settings"],
            method=make_method(header["method"], header["settings"]),
            created_at=header["created_at"],
            last_seen=header["last_seen"],
            tracks=tracks,
            dirty=False,
        )


def pack_stream(stream: Stream, *, kind: str, **about: Any) -> bytes:
    """A stream's states and what is known of them, as one file. `about` goes into the header."""
    header = {
        "kind": kind,
        "stream": stream.name,
        "method": stream.method_name,
        "settings": stream.settings,
        "created_at": stream.created_at,
        "last_seen": stream.last_seen,
        "tracks": {
            key: {
                "gallery": track.gallery,
                "direction": track.direction,
                "applied": track.applied,
                "skipped": track.skipped,
                "undone": track.undone,
                "shed": track.shed,
                "drift": track.drift,
                "losses": track.losses,
            }
            for key, track in stream.tracks.items()
        },
        **about,
    }
    return pack_states({key: track.state for key, track in stream.tracks.items()}, header=header)


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
    except (KeyError, TypeError, AttributeError) as error:
        raise StateFileError(f"the file lacks {error}") from error
    for track in tracks.values():
        if track.state.method != method:
            raise StateMismatch(f"{track.name} was made by {track.state.method!r}, the stream by {method!r}")
        check_state(
            track.state,
            fingerprint=encoder.fingerprint,
            parameters=encoder.towers[track.query_modality].parameters,
            dimension=encoder.dimension,
        )
    return header, tracks


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
