"""Zero-shot: texts or pictures compared with label texts by the dual encoder, adapted as in retrieval."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.base import Classes, Method
from adapters.state import AdaptationState
from encoders.base import Encoder
from service.batches.base import OnAnswer, given, uncompleted_because
from service.batches.dual import DualQueries
from service.batches.scores import BatchCompletion, classified
from service.gallery_side import to_numpy
from service.messages import Adaptation, ClassifyJob, Sample, Timings
from service.pipeline import MeasureShift, Outcome, Ranked, Ranking, StageTimes
from service.tracks import Track

_KEPT_SETS = 32


class LabelSide:
    """Label features as the pipeline searches them; see service.pipeline.SearchSide.

    features  [C, D] unit rows, on the encoder's device
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features.float()  # as a gallery's vectors, whatever the encoder computes in

    @torch.no_grad()
    def search(self, features: Tensor, k: int) -> Ranking:
        scores, positions = torch.topk(features.float() @ self.features.T, min(k, len(self.features)), dim=-1)
        return Ranking(to_numpy(scores), positions.cpu().numpy())

    def classes(self, features: Tensor, most: int) -> Classes:
        return Classes(self.features, 0)  # they never change, and are few

    def vectors(self, positions: np.ndarray) -> Tensor:
        return self.features[torch.from_numpy(positions).to(self.features.device)]


class LabelSides:
    """Label sets that were used lately, encoded by the source model."""

    def __init__(self, encoder: Encoder, *, batch_size: int) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._sides: OrderedDict[tuple[str, tuple[str, ...]], LabelSide] = OrderedDict()

    def holds(self, template: str, labels: Sequence[str]) -> bool:
        return (template, tuple(labels)) in self._sides

    def encode(self, template: str, labels: Sequence[str]) -> Generator[None, None, LabelSide]:
        """In slices of a batch, because there may be many labels; at once where they are held."""
        key = (template, tuple(labels))
        side = self._sides.get(key)
        if side is None:
            side = LabelSide((yield from self._encoded([sentence(template, label) for label in labels])))
        self._sides[key] = side
        self._sides.move_to_end(key)
        while len(self._sides) > _KEPT_SETS:
            self._sides.popitem(last=False)
        return side

    def _encoded(self, sentences: Sequence[str]) -> Generator[None, None, Tensor]:
        tower = self._encoder.towers["text"]
        parts: list[Tensor] = []
        for start in range(0, len(sentences), self._batch_size):
            if parts:
                yield
            with torch.no_grad():
                parts.append(tower.encode(tower.prepare(sentences[start : start + self._batch_size])))
        return torch.cat(parts)


def sentence(template: str, label: str) -> str:
    """Not `str.format`: a client's template must not reach into Python objects."""
    return template.replace("{}", label)


class LabelBatch:
    """See service.batches.base.Batch. Answered with a Ranked of all labels."""

    def __init__(
        self,
        first: ClassifyJob,
        samples: Sequence[Sample],
        *,
        encoder: Encoder,
        sides: LabelSides,
        shift: MeasureShift | None = None,
    ) -> None:
        """`first`: a job of the batch, which all have labels and template with."""
        self.times = StageTimes()
        self.source_because = ""
        self._labels: tuple[str, ...] = given(first.labels)
        self._template = first.template
        self._encoder = encoder
        self._sides = sides
        self._samples = samples
        self._side: LabelSide | None = None
        self._shift = shift

    @property
    def size(self) -> int:
        return len(self._samples)

    def unlearned_because(self, method: Method) -> str:
        return uncompleted_because(method)

    def prepare(self) -> Generator[None, None, None]:
        if self._side is not None:
            return
        slices = self._sides.encode(self._template, self._labels)
        while self._side is None:
            started = time.perf_counter()
            try:
                next(slices)
            except StopIteration as ended:
                self._side = ended.value
            self.times.encode_ms += (time.perf_counter() - started) * 1e3
            if self._side is None:
                yield

    @property
    def _dual(self) -> DualQueries:
        tower = self._encoder.towers[self._samples[0].zero_shot_kind]
        side, labels = given(self._side), len(self._labels)
        return DualQueries(tower, self._samples, side, labels, self.times, shift=self._shift)

    def answer(self, method: Method | None, state: AdaptationState | None) -> Ranked:
        return self._dual.answer(method, state)

    def adapt(
        self,
        track: Track,
        method: Method,
        *,
        batch_id: str,
        on_answer: OnAnswer | None = None,
        answer_before_last_update: bool = True,
    ) -> Generator[None, None, Outcome]:
        return self._dual.adapt(
            track,
            method,
            batch_id=batch_id,
            on_answer=on_answer,
            answer_before_last_update=answer_before_last_update,
        )

    def answers(
        self,
        jobs: Sequence[ClassifyJob],
        answered: Ranked,
        adaptation: Adaptation,
        timings: Sequence[Timings],
    ) -> list[Any]:
        ranking = answered.ranking
        scores = np.empty_like(ranking.scores)
        np.put_along_axis(scores, ranking.positions, ranking.scores, axis=1)  # into the labels' order
        logits = torch.from_numpy(scores) / self._encoder.temperature
        return list(classified(jobs, logits, self._labels, BatchCompletion(), adaptation, timings))
