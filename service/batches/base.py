"""What the worker needs to know of a batch, whatever is asked in it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, Protocol

from adapters.state import AdaptationState
from service.messages import Adaptation, QueryJob, Timings
from service.pipeline import EarlyAnswer, Outcome, StageTimes
from service.tracks import Track

OnAnswer = Callable[[EarlyAnswer[Any]], None]


class Batch(Protocol):
    """Queries that go through a model together.

    What answers them (`answered`) is of the batch's own type: the worker only hands it back. `prepare` is
    run to its end first, each of the other functions is called once or never; `times` adds up what they take.
    """

    times: StageTimes

    @property
    def size(self) -> int:
        """Queries."""

    @property
    def source_because(self) -> str:
        """Why no stream's state can play a part and the source model answers; empty: one can."""

    def unlearned_because(self, method: Any) -> str:
        """Why a stream's state answers but its method cannot learn from these queries; empty: it can."""

    def prepare(self) -> Generator[None, None, None]:
        """What has to be there before the batch can be answered, in slices between which others are."""

    def answer(self, method: Any, state: AdaptationState | None) -> Any:
        """By a stream's current state, or by the source model (both None). Changes nothing."""

    def adapt(
        self,
        track: Track,
        method: Any,
        *,
        batch_id: str,
        on_answer: OnAnswer | None = None,
        answer_before_last_update: bool = True,
    ) -> Generator[None, None, Outcome]:
        """Let the track's state learn from the batch, on a clone; see service.pipeline.adapt."""

    def answers(
        self, jobs: Sequence[Any], answered: Any, adaptation: Adaptation, timings: Sequence[Timings]
    ) -> list[Any]:
        """What each job is answered with. `jobs` are the batch's, in order."""


def nothing() -> Generator[None, None, None]:
    """The slices of a batch that needs no preparation."""
    yield from ()


def uncompleted_because(method: Any) -> str:
    """Why a method of retrieval cannot learn from queries that nothing completes; empty: it can."""
    if not method.needs_completion:
        return ""
    return f"{method.name} learns from queries that a gallery's calibration completes"


def rows_of(jobs: Sequence[QueryJob]) -> list[slice]:
    """Which of the batch's rows each job holds."""
    starts = [0]
    for job in jobs:
        starts.append(starts[-1] + job.items)
    return [slice(start, stop) for start, stop in pairwise(starts)]


def given(value: Any) -> Any:
    assert value is not None  # the queue groups jobs by kind, so a query of this batch has this field
    return value
