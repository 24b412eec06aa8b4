"""One batch through the service's own adaptation loop, waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.base import Method
from adapters.state import AdaptationState
from encoders.base import Adaptable
from service.guard.guard import Guard
from service.pipeline import EarlyAnswer, MeasureShift, Outcome, Ranked, SearchSide, StageTimes, adapt


@dataclass(frozen=True)
class BatchResult:
    """answer: the ranked batch; told: what was said of it; outcome: how it ended; times: ms by stage."""

    answer: Ranked
    told: EarlyAnswer[Ranked]
    outcome: Outcome
    times: StageTimes

    def next_state(self, state: AdaptationState) -> AdaptationState:
        """The state of the next batch: the committed one, or the old one where the batch was undone."""
        return state if self.outcome.state is None else self.outcome.state


def adapt_batch(
    *,
    tower: Adaptable,
    inputs: Any,
    side: SearchSide,
    k: int,
    method: Method,
    state: AdaptationState,
    batch_id: str,
    guard: Guard | None = None,
    shift: MeasureShift | None = None,
) -> BatchResult:
    """Answer and adapt one batch from start to end (service.pipeline.adapt)."""
    answers: list[EarlyAnswer[Ranked]] = []
    times = StageTimes()
    slices = adapt(
        tower=tower,
        inputs=inputs,
        side=side,
        k=k,
        method=method,
        state=state,
        batch_id=batch_id,
        times=times,
        on_answer=answers.append,
        guard=guard,
        shift=shift,
    )
    while True:
        try:
            next(slices)
        except StopIteration as end:
            (told,) = answers
            return BatchResult(told.answered, told, end.value, times)
