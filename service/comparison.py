"""What two states of a stream differ by: two snapshots, or a snapshot and the stream as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapters.registry import Task
from adapters.state import AdaptationState
from index.base import CalibrationMark
from service.stream_files import Unpacked
from service.tasks import Chosen, Tasks
from service.tracks import Stream, Track

FARTHEST = 12
"""Parameters of a track that are named."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    name        the snapshot's; None: the stream as it is
    created_at  seconds since 1970; of the stream as it is: now
    """

    name: str | None
    created_at: float
    methods: Mapping[Task, Chosen]
    tracks: Mapping[str, Track]
    calibrations: Mapping[Task, CalibrationMark] = field(default_factory=dict)

    @classmethod
    def of_snapshot(cls, name: str, found: Unpacked) -> Side:
        made = found.header.get("snapshot_at")
        created_at = float(made) if isinstance(made, int | float) else 0.0
        return cls(name, created_at, found.methods, found.tracks, found.calibrations)

    @classmethod
    def of_stream(cls, stream: Stream, *, now: float) -> Side:
        return cls(None, now, stream.methods, stream.tracks, stream.calibrations)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "created_at": self.created_at,
            "version": sum(track.state.version for track in self.tracks.values()),
            "batches": sum(track.state.batches for track in self.tracks.values()),
            **self.methods["retrieve"].describe(),
            "classify": self.methods["classify"].describe() if "classify" in self.methods else None,
            "calibrations": {task: mark._asdict() for task, mark in self.calibrations.items()},
        }

    def source(self, track: Track, tasks: Tasks) -> Mapping[str, Tensor]:
        """The values at which one of its tracks began; empty where this process has no model for it."""
        chosen = self.methods.get(track.task)
        if chosen is None or chosen.method is None:
            return {}
        return tasks.source_state(chosen.method, track.direction).parameters


def compare(first: Side, second: Side, tasks: Tasks) -> dict[str, Any]:
    """Both sides, and their tracks by name. Methods, galleries and label sets may differ."""
    names = [*first.tracks, *(name for name in second.tracks if name not in first.tracks)]
    return {
        "first": first.describe(),
        "second": second.describe(),
        "tracks": {name: _compare_track(name, first, second, tasks) for name in names},
    }


@torch.no_grad()
def _compare_track(name: str, first: Side, second: Side, tasks: Tasks) -> dict[str, Any]:
    one, other = first.tracks.get(name), second.tracks.get(name)
    shown: dict[str, Any] = {
        "in": "second" if one is None else "first" if other is None else "both",
        "first": None if one is None else _track(one, first.source(one, tasks)),
        "second": None if other is None else _track(other, second.source(other, tasks)),
        "distance": None,
        "parameters": [],
    }
    if one is None or other is None:
        return shown
    source = {**first.source(one, tasks), **second.source(other, tasks)}
    apart = _apart(one.state.parameters, other.state.parameters, source)
    sizes = {name: value.numel() for name, value in one.state.parameters.items()}
    farthest = sorted(apart, key=lambda name: -apart[name])[:FARTHEST]
    return shown | {
        "distance": _together(apart),
        "parameters": [
            {"name": name, "size": sizes[name], "distance": apart[name]} for name in farthest if apart[name]
        ],
    }


def _track(track: Track, source: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "version": track.state.version,
        "batches": track.state.batches,
        "applied": track.applied,
        "skipped": track.skipped,
        "undone": track.undone,
        "drift": track.drift,
        "losses": track.losses,
        "distance_from_source": _together(_apart(track.state.parameters, source, source)),
        "memory_size": _memory_size(track.state),
    }


def _memory_size(state: AdaptationState) -> int:
    memory = state.tensors.get("memory.likeness")
    return 0 if memory is None else len(memory)


def _apart(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], source: Mapping[str, Tensor]
) -> dict[str, float]:
    """||a - b|| of each parameter that both have in one shape, over ||source|| of all of these.

    The squares add up to that of the distance over all. Empty: nothing can be compared.
    """
    names = [
        name
        for name in one
        if name in other and name in source and one[name].shape == other[name].shape == source[name].shape
    ]
    if not names:
        return {}
    ours, theirs, began = ([group[name] for name in names] for group in (one, other, source))
    apart = torch.stack(list(torch._foreach_norm(torch._foreach_sub(ours, theirs))))
    length = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(began))))
    if not length:
        return {}
    return dict(zip(names, (apart / length).tolist(), strict=True))


def _together(apart: Mapping[str, float]) -> float | None:
    return sum(value**2 for value in apart.values()) ** 0.5 if apart else None
