"""A stream's states as one file, and back: what the store keeps, and snapshots. Files may come from users."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.base import AdapterError, BadSettings, StateMismatch
from adapters.registry import METHODS_OF, Task
from adapters.state import AdaptationState, StateFileError, pack_states, unpack_states
from index.base import CalibrationMark
from service.errors import BadRequest, NotFound
from service.files import check_calibration_name
from service.guard.guard import Guard
from service.guard.settings import GuardSettings
from service.history import History
from service.tasks import Chosen, Tasks, is_track
from service.tracks import Stream, Track

LABEL_SETS = 16
"""Label sets that one stream may adapt to at most."""

MOST_TRACKS = 1000
"""Of a file from outside; every answer that shows the stream shows them all."""

MOST_COUNT = 2**53
"""Counts of batches stay below it, so that every reader of JSON takes them for what they are."""
_MOST_FIGURES = 64
"""Of a batch; methods have a dozen."""
_FIGURE = re.compile(r"[\w.]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{16}")
_GOOD = "good:"
"""Before a track's name, in a file: the last good state of its guard."""
_HISTORY = "history:"
"""Likewise: its history, in the place of a state, so that the file's digest covers it."""


@dataclass(frozen=True)
class Unpacked:
    """A file's content, checked.

    methods       of each task that the file tells of
    calibrations  likewise, where one was attached
    refused       why the classifier's part cannot be used here; empty: it can, or there is none
    """

    header: dict[str, Any]
    methods: dict[Task, Chosen]
    tracks: dict[str, Track]
    calibrations: dict[Task, CalibrationMark] = field(default_factory=dict)
    refused: str = ""


def pack_stream(stream: Stream, *, kind: str, **about: Any) -> bytes:
    """A stream's states and what is known of them, as one file. `about` goes into the header.

    A snapshot leaves the guards out: what it restores is judged anew.
    """
    guarded = kind == "stream"
    header = {
        "kind": kind,
        "stream": stream.name,
        **stream.methods["retrieve"].describe(),
        "classify": stream.methods["classify"].describe() if "classify" in stream.methods else None,
        "created_at": stream.created_at,
        "last_seen": stream.last_seen,
        "pinned": stream.pinned,
        "guard": stream.guard,
        "calibrations": {task: mark._asdict() for task, mark in stream.calibrations.items()},
        **({"uncalibrated": dict(stream.uncalibrated)} if guarded else {}),
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
        if len(track.history):
            states[_HISTORY + key] = AdaptationState("", "", {}, tensors=track.history.to_tensors())
    return pack_states(states, header=header)


def unpack_stream(data: bytes, tasks: Tasks, *, whole: bool = True) -> Unpacked:
    """The inverse of `pack_stream`, checked against the models and methods of this process.

    With `whole` the file must fit in all its parts; without, a classifier's part that does not is left out.

    Raises StateFileError (not a whole, unaltered file), StateMismatch (another model or method), BadSettings.
    """
    states, header = unpack_states(data, device=tasks.encoder.device)
    try:
        methods: dict[Task, Chosen] = {"retrieve": _chosen(tasks, "retrieve", header)}
        tracks = {key: _track(key, states[key], about) for key, about in header["tracks"].items()}
        calibrations = _calibrations(header.get("calibrations", {}))
        for key, about in header["tracks"].items():
            if "guard" in about:
                tracks[key].guard = Guard.from_plain(
                    about["guard"], settings=GuardSettings(), stream=header["stream"], track=key,
                    good=states.get(_GOOD + key), dimension=tasks.encoder.dimension,
                )  # fmt: skip
            if _HISTORY + key in states:
                tracks[key].history = History.from_tensors(states[_HISTORY + key].tensors)
    except ValueError as error:
        raise StateFileError(f"the file's guard is damaged: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise StateFileError(f"the file lacks {error}") from error
    if whole and len(tracks) > MOST_TRACKS:
        raise StateFileError(f"the file has more than {MOST_TRACKS} tracks")
    if len({track.gallery for track in tracks.values() if track.on_labels}) > LABEL_SETS:
        raise StateFileError(f"the file has more than {LABEL_SETS} label sets")
    for track in tracks.values():
        if track.task == "retrieve":
            _check(tasks, track, methods["retrieve"])
    return _with_classifier(tasks, Unpacked(header, methods, tracks, calibrations), whole=whole)


def _with_classifier(tasks: Tasks, found: Unpacked, *, whole: bool) -> Unpacked:
    """Check the classifier's part too. Raises StateMismatch, BadSettings if it is to be `whole`."""
    plain = found.header.get("classify")
    mine = [track for track in found.tracks.values() if track.task == "classify"]
    if plain is None and not mine:
        return found
    try:
        if plain is None:
            raise StateFileError("the file has a classifier's state but no method of it")
        if tasks.classifier is None and not mine:
            return replace(found, methods=found.methods | _set_by(plain))
        chosen = _chosen(tasks, "classify", plain)
        for track in mine:
            _check(tasks, track, chosen)
    except (KeyError, TypeError, StateFileError, AdapterError, NotFound) as error:
        if whole:
            if isinstance(error, StateFileError | StateMismatch | BadSettings):
                raise
            raise StateMismatch(f"the classifier's part does not fit: {error}") from error
        tracks = {name: track for name, track in found.tracks.items() if track.task == "retrieve"}
        kept = _set_by(plain) if tasks.classifier is None else {}
        return replace(found, methods=found.methods | kept, tracks=tracks, refused=str(error))
    return replace(found, methods={**found.methods, "classify": chosen})


def _calibrations(plain: Mapping[Any, Any]) -> dict[Task, CalibrationMark]:
    """Files from before there were calibrations tell of none. Raises StateFileError."""
    found: dict[Task, CalibrationMark] = {}
    for task, mark in plain.items():
        match task, mark:
            case "retrieve" | "classify", {"name": str(name), "digest": str(digest)} if _is_mark(
                name, digest
            ):
                found[task] = CalibrationMark(name, digest)
            case _:
                raise StateFileError(f"the file's calibration of {str(task)[:20]!r} is none")
    return found


def _is_mark(name: str, digest: str) -> bool:
    try:
        return check_calibration_name(name) == name and _DIGEST.fullmatch(digest) is not None
    except BadRequest:
        return False


def _set_by(plain: Any) -> dict[Task, Chosen]:
    """What was chosen for a classifier, kept for when there is one again."""
    match plain:
        case {"method": str(name), "settings": dict(settings)} if name in METHODS_OF["classify"]:
            return {"classify": Chosen(name, settings, None)}
    return {}


def _chosen(tasks: Tasks, task: Task, plain: Mapping[str, Any]) -> Chosen:
    """The method that a file names."""
    name = plain["method"]
    if not isinstance(name, str) or name not in METHODS_OF[task]:
        raise StateMismatch(
            f"the file was made by method {str(name)[:50]!r}, which this version does not have"
        )
    settings = plain["settings"]
    if not isinstance(settings, dict):
        raise StateFileError("the file's method settings are no table")
    return tasks.choose(task, name, settings)


def _check(tasks: Tasks, track: Track, chosen: Chosen) -> None:
    for state in (track.state, track.guard.good):
        if state is not None:
            tasks.check(state, track.direction, chosen)


def _track(key: str, state: AdaptationState, about: Mapping[str, Any]) -> Track:
    track = Track(
        gallery=about["gallery"],
        direction=about["direction"],
        state=state,
        applied=_count(about["applied"]),
        skipped=_count(about["skipped"]),
        undone=_count(about["undone"]),
        shed=_count(about["shed"]),
        drift=_figures(about["drift"]),
        losses=_figures(about["losses"]),
    )
    if key != track.name or not is_track(track.gallery, track.direction):
        raise StateFileError(f"unknown track {key[:100]!r}")
    return track


def is_number(value: object) -> bool:
    """Whether it can be a float, if not a finite one: JSON's integers have no end."""
    return type(value) is float or (type(value) is int and abs(value) < MOST_COUNT)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < MOST_COUNT:
        raise StateFileError("the file has a count that is none")
    return value


def _figures(plain: Any) -> dict[str, float] | None:
    """What the last batch came to: it is shown, plotted and counted, so it must be numbers, and few."""
    if plain is None:
        return None
    if not isinstance(plain, dict) or len(plain) > _MOST_FIGURES:
        raise StateFileError(f"the file's figures are no table of at most {_MOST_FIGURES}")
    for name, value in plain.items():
        if not _FIGURE.fullmatch(name) or not is_number(value):
            raise StateFileError("the file has figures that are no numbers")
    return {name: float(value) for name, value in plain.items()}
