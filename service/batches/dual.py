"""Texts or pictures in the dual encoder, whatever they are compared with: items or label texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.base import Method
from adapters.state import AdaptationState
from encoders.base import Encoder, Modality
from service import pipeline
from service.batches.base import OnAnswer, given
from service.guard.canaries import CheckCanaries
from service.messages import Query, Sample
from service.pipeline import Outcome, Ranked, SearchSide, StageTimes
from service.tracks import Track


@dataclass(frozen=True)
class DualQueries:
    """What goes into one of the encoder's towers, and what it is ranked against.

    asked     texts or pictures, all of one kind
    k         hits
    canaries  of the side and modality, if there are any
    """

    encoder: Encoder
    asked: Sequence[Query | Sample]
    side: SearchSide
    k: int
    times: StageTimes
    canaries: Callable[[Modality], CheckCanaries | None] = lambda modality: None

    @property
    def modality(self) -> Modality:
        return "text" if self.asked[0].text is not None else "image"

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
                canaries=self.canaries(self.modality),
            )
        )

    def _encoded(self) -> dict[str, Any]:
        """The pipeline's arguments: the tower, and the queries as it takes them."""
        started = time.perf_counter()
        tower = self.encoder.towers[self.modality]
        if self.modality == "text":
            inputs = tower.prepare([given(one.text) for one in self.asked])
        else:
            inputs = tower.prepare([given(one.pixels) for one in self.asked])
        self.times.encode_ms += (time.perf_counter() - started) * 1e3
        return {"tower": tower, "inputs": inputs}
