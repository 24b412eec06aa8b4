"""What is known of one stream: its methods, and a track for each place where it adapts.

A track's state is replaced as a whole, never changed in place, so whoever holds the old one keeps a
consistent view.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.completion import Completion, remember
from adapters.registry import Task
from adapters.state import AdaptationState
from index.base import CalibrationMark
from service.guard.guard import Guard
from service.guard.settings import GuardSettings
from service.history import History
from service.messages import COMPOSED, LABELS, Query, QueryJob, Sample
from service.pipeline import Outcome
from service.tasks import Chosen, task_of


@dataclass(frozen=True)
class Portion:
    """What leaves a gathering of one job: those `asked`, the first of which is its query number `start`."""

    job: QueryJob
    start: int
    asked: Sequence[Query | Sample]


@dataclass
class Gathering:
    """Answered queries of a track that wait for a full batch (asynchronous mode), in the order they came.

    They may be of several kinds, such as samples that lack a modality among complete ones.

    byte_size    of the jobs' arrays, whatever of the oldest has left
    used         queries of the oldest job that have left already
    stored_used  the same in the store, which jobs leave only with what was learned from them
    left         jobs that have left here, and not yet there
    learning     whether a batch that has left is being learned from
    since        time.monotonic() at which the oldest batch began to gather
    """

    jobs: deque[QueryJob] = field(default_factory=deque)
    used: int = 0
    stored_used: int = 0
    left: int = 0
    learning: bool = False
    since: float = 0.0
    byte_size: int = 0
    _kinds: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        """Queries waiting."""
        return self._kinds.total()

    @property
    def most_alike(self) -> int:
        """Queries waiting of the kind of which there are most."""
        return max(self._kinds.values(), default=0)

    def join(self, jobs: Sequence[QueryJob]) -> None:
        if not len(self):
            self.since = time.monotonic()
        self.jobs.extend(jobs)
        self.byte_size += sum(job.byte_size for job in jobs)
        for job in jobs:
            self._kinds[job.kind] += job.items

    def take(self, count: int) -> list[Portion]:
        """The oldest `count` queries leave, whatever their kinds."""
        taken: list[Portion] = []
        while self.jobs and count > 0:
            job, start = self.jobs[0], self.used
            waiting = job.asked[start:]
            part = waiting[:count]
            taken.append(Portion(job, start, part))
            count -= len(part)
            self._kinds[job.kind] -= len(part)
            self.used += len(part)
            if len(part) == len(waiting):
                self.byte_size -= self.jobs.popleft().byte_size
                self.used = 0
                self.left += 1
        self.since = time.monotonic()
        return taken

    def let_go(self) -> int:
        """How many of the oldest jobs the store is to drop, together with a state that says `stored_used`."""
        left, self.left = self.left, 0
        self.stored_used = self.used
        return left

    @classmethod
    def resumed(cls, jobs: Sequence[QueryJob], used: int) -> Gathering:
        gathering = cls()
        gathering.join(jobs)
        if jobs:
            gathering.used = min(used, jobs[0].items)
            gathering.stored_used = gathering.used
            gathering._kinds[jobs[0].kind] -= gathering.used
        return gathering


@dataclass
class Track:
    """What one stream knows of one gallery (or label set) and direction."""

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
    history: History = field(default_factory=History)
    guard: Guard = field(default_factory=lambda: Guard(GuardSettings()))
    attached: Callable[[], Completion | None] = lambda: None
    """What the stream's calibration completes its queries by, before anything is learned."""

    @property
    def name(self) -> str:
        return f"{self.gallery}/{self.direction}"

    @property
    def task(self) -> Task:
        return task_of(self.direction)

    @property
    def on_labels(self) -> bool:
        """Whether it adapts to labels given as texts, instead of a gallery."""
        return self.gallery.startswith(LABELS)

    @property
    def guarded(self) -> bool:
        """The guard compares features with what is searched, which the classifier has not."""
        return self.task == "retrieve"

    @property
    def completed(self) -> bool:
        """Whether a calibration completes what its queries lack."""
        return self.task == "classify" or self.direction == f"{COMPOSED}->anchor"

    def with_completion(self, completion: Completion | None) -> Track:
        """One whose states complete by this; None: by nothing of their own. What was learned stays.

        A gathering that is being learned from stays behind: that ends with a state of this one's.
        """
        state = carrying(self.state, completion)
        good = self.guard.good
        if good is not None:
            good = state if good is self.state else carrying(good, completion)
        return replace(
            self,
            state=state,
            guard=replace(self.guard, good=good),
            gathered=Gathering() if self.gathered.learning else self.gathered,
        )

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
        number = self.applied + self.skipped + self.undone
        self.history = self.history.then(outcome, batch=number, version=self.state.version, at=time.time())

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
            "recent": self.history.recent,
            "guard": {**self.guard.describe(), **({} if self.guarded else _UNGUARDED)},
        }

    def byte_size(self) -> int:
        """Bytes of the state, of the last good one and of the history."""
        good = self.guard.good
        kept = 0 if good is None or good is self.state else good.byte_size()
        return self.state.byte_size() + kept + self.history.byte_size()


@dataclass
class Stream:
    name: str
    methods: dict[Task, Chosen]
    """Of each task that this process has a model for, or that the stream has come with."""
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
    calibrations: Mapping[Task, CalibrationMark] = field(default_factory=dict)
    """What completes the queries of its tracks, by task; without one, that of their gallery or classifier."""
    uncalibrated: Mapping[Task, str] = field(default_factory=dict)
    """Why a track has begun without the task's calibration."""

    def chosen(self, track: Track) -> Chosen:
        """The method that learns on one of its tracks."""
        return self.methods[track.task]

    def tracks_of(self, task: Task) -> dict[str, Track]:
        return {name: track for name, track in self.tracks.items() if track.task == task}

    @property
    def label_sets(self) -> set[str]:
        """Of its tracks on labels given as texts."""
        return {track.gallery for track in self.tracks.values() if track.on_labels}

    @property
    def version(self) -> int:
        return sum(track.state.version for track in self.tracks.values())

    def byte_size(self) -> int:
        return sum(track.byte_size() for track in self.tracks.values())

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pinned": self.pinned,
            **self.methods["retrieve"].describe(),
            "classify": self.methods["classify"].describe() if "classify" in self.methods else None,
            "guard": self.guard,
            "calibrations": {
                task: {**mark._asdict(), "warning": self.uncalibrated.get(task, "")}
                for task, mark in self.calibrations.items()
            },
            "version": self.version,
            "batches": sum(track.state.batches for track in self.tracks.values()),
            "created_at": self.created_at,
            "last_seen": self.last_seen,
            "tracks": [track.describe() for track in self.tracks.values()],
        }


def carrying(state: AdaptationState, completion: Completion | None) -> AdaptationState:
    """A state that is the same but for its completion, and shares all else with the given one."""
    other = replace(state, numbers=dict(state.numbers))
    remember(other, completion)
    return other


_UNGUARDED = {"policy": "off", "why": "the guard does not watch the classifier's tracks"}
