"""Sound and pictures in the audio-video classifier: answered with its own labels."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from adapters.classification import ClassifyMethod, Inputs
from adapters.state import AdaptationState
from service import classification
from service.batches.base import OnAnswer, given, nothing
from service.batches.scores import classified
from service.messages import Adaptation, ClassifyJob, Sample, Timings
from service.pipeline import Outcome, StageTimes
from service.tasks import Classifier
from service.tracks import Track


class ClassifierBatch:
    """See service.batches.base.Batch. Answered with logits [B, C]."""

    def __init__(self, samples: Sequence[Sample], *, classifier: Classifier) -> None:
        """`samples` have all the same modalities."""
        self.times = StageTimes()
        self.source_because = ""
        self._samples = samples
        self._classifier = classifier

    @property
    def size(self) -> int:
        return len(self._samples)

    @property
    def missing(self) -> tuple[str, ...]:
        return self._samples[0].missing

    def unlearned_because(self, method: ClassifyMethod) -> str:
        """Most methods compare modalities, and what the model makes of one alone is another path."""
        if not self.missing or method.takes_incomplete:
            return ""
        return f"the samples lack {' and '.join(self.missing)}"

    def prepare(self) -> Generator[None, None, None]:
        return nothing()

    def answer(self, method: ClassifyMethod | None, state: AdaptationState | None) -> Tensor:
        return classification.answer(
            model=self._classifier, method=method, state=state, inputs=self._inputs, times=self.times
        )

    def adapt(
        self,
        track: Track,
        method: ClassifyMethod,
        *,
        batch_id: str,
        on_answer: OnAnswer | None = None,
        answer_before_last_update: bool = True,
    ) -> Generator[None, None, Outcome]:
        return (
            yield from classification.adapt(
                model=self._classifier,
                method=method,
                state=track.state,
                inputs=self._inputs,
                batch_id=batch_id,
                times=self.times,
                on_answer=on_answer,
                answer_before_last_update=answer_before_last_update,
            )
        )

    def answers(
        self,
        jobs: Sequence[ClassifyJob],
        answered: Tensor,
        adaptation: Adaptation,
        timings: Sequence[Timings],
    ) -> list[Any]:
        return list(classified(jobs, answered, self._classifier.labels, self.missing, adaptation, timings))

    @cached_property
    def _inputs(self) -> Inputs:
        started = time.perf_counter()
        there = {"audio": "audio" not in self.missing, "video": "video" not in self.missing}
        fbanks = [given(sample.fbank) for sample in self._samples] if there["audio"] else None
        frames = [given(sample.pixels) for sample in self._samples] if there["video"] else None
        inputs = self._classifier.prepare(fbanks, frames)
        self.times.encode_ms += (time.perf_counter() - started) * 1e3
        return inputs
