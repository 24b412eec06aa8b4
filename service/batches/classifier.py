"""Sound and pictures in the audio-video classifier: answered with its own labels."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from adapters.calibration import PARTS
from adapters.classification import ClassifyMethod, Inputs, TwoStream
from adapters.state import AdaptationState
from adapters.two_stream_completion import CompletedTwoStream
from encoders.audiovisual import AV_MODALITIES
from service import classification
from service.batches.base import OnAnswer, given, nothing
from service.batches.scores import BatchCompletion, classified
from service.classification import MissingBy
from service.messages import Adaptation, ClassifyJob, Part, Sample, Timings
from service.pipeline import Outcome, StageTimes
from service.tasks import Classifier
from service.tracks import Track


class ClassifierBatch:
    """See service.batches.base.Batch. Answered with logits [B, C]."""

    def __init__(
        self, samples: Sequence[Sample], *, classifier: Classifier, missing_by: MissingBy = "auto"
    ) -> None:
        """`samples` have all the same modalities."""
        self.times = StageTimes()
        self.source_because = ""
        self._samples = samples
        self._classifier = classifier
        self._missing_by = missing_by
        self._completed: CompletedTwoStream | None = None

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
            model=self._model(state), method=method, state=state, inputs=self._inputs, times=self.times
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
                model=self._model(track.state),
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
        return list(
            classified(jobs, answered, self._classifier.labels, self._completion(), adaptation, timings)
        )

    def _model(self, state: AdaptationState | None) -> TwoStream:
        """The classifier, completed where something is known that can."""
        self._completed = classification.completed(
            self._classifier, state, missing=self.missing, by=self._missing_by
        )
        return self._completed or self._classifier

    def _completion(self) -> BatchCompletion:
        completed, missing = self._completed, self.missing
        if completed is None:
            return BatchCompletion(missing, by="model" if missing else "")
        given = PARTS if not missing else tuple(name for name in AV_MODALITIES if name not in missing)
        confidence = completed.completion.confidence(given)
        novelty = completed.novelty()
        return BatchCompletion(
            missing,
            by="" if not missing else "imputation" if completed.imputes else "model",
            parts={name: Part(name in given, value) for name, value in confidence.items()},
            novelty=None if novelty is None else tuple(novelty.tolist()),
        )

    @cached_property
    def _inputs(self) -> Inputs:
        started = time.perf_counter()
        there = {"audio": "audio" not in self.missing, "video": "video" not in self.missing}
        fbanks = [given(sample.fbank) for sample in self._samples] if there["audio"] else None
        frames = [given(sample.pixels) for sample in self._samples] if there["video"] else None
        inputs = self._classifier.prepare(fbanks, frames)
        self.times.encode_ms += (time.perf_counter() - started) * 1e3
        return inputs
