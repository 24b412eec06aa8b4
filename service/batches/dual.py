"""Texts, pictures or both in the dual encoder, whatever they are compared with: items or label texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.base import Method
from adapters.state import AdaptationState
from service import pipeline
from service.batches.base import OnAnswer
from service.composed import QueryTower, prepared, under
from service.guard.canaries import CheckCanaries
from service.messages import Query, Sample
from service.pipeline import MeasureShift, Outcome, Ranked, SearchSide, StageTimes
from service.tracks import Track


@dataclass(frozen=True)
class DualQueries:
    """What goes into a tower, and what it is ranked against.

    tower     of what is asked, or of both modalities together
    asked     texts, pictures or both, all of one kind
    k         hits
    canaries  of the side, if there are any, as this tower encodes them
    shift     how far features are from clean ones, where that is known
    """

    tower: QueryTower
    asked: Sequence[Query | Sample]
    side: SearchSide
    k: int
    times: StageTimes
    canaries: Callable[[QueryTower], CheckCanaries | None] = lambda tower: None
    shift: MeasureShift | None = None

    def answer(self, method: Method | None, state: AdaptationState | None) -> Ranked:
        return pipeline.answer(
            **self._encoded(), side=self.side, k=self.k, method=method, state=state, times=self.times
        )

    def adapt(
        self,
        track: Track,
        method: Method,
        *,
        batch_id: str,
        on_answer: OnAnswer | None,
        answer_before_last_update: bool,
    ) -> Generator[None, None, Outcome]:
        return (
            yield from pipeline.adapt(
                **self._encoded(),
                side=self.side,
                k=self.k,
                method=method,
                state=track.state,
                batch_id=batch_id,
                times=self.times,
                on_answer=on_answer,
                answer_before_last_update=answer_before_last_update,
                guard=track.guard,
                canaries=self.canaries(under(self.tower, track.state)),
                attached=track.attached,
                shift=self.shift,
            )
        )

    def _encoded(self) -> dict[str, Any]:
        """The pipeline's arguments: the tower, and the queries as it takes them."""
        started = time.perf_counter()
        inputs = prepared(self.tower, self.asked)
        self.times.encode_ms += (time.perf_counter() - started) * 1e3
        return {"tower": self.tower, "inputs": inputs}
