"""Queries of a gallery: answered with its nearest items."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.base import Method
from adapters.state import AdaptationState
from encoders.base import Encoder
from index.gallery import Gallery
from service.batches.base import OnAnswer, given, nothing, rows_of
from service.batches.dual import DualQueries
from service.canaries import CanaryStore
from service.gallery_side import GallerySide, to_numpy
from service.messages import Adaptation, JobAnswer, Query, RankedHit, RetrieveJob, Target, Timings
from service.pipeline import Outcome, Ranked, Ranking, StageTimes
from service.tracks import Track


class RetrievalBatch:
    """See service.batches.base.Batch. Answered with a Ranked."""

    def __init__(
        self,
        first: RetrieveJob,
        queries: Sequence[Query],
        *,
        k: int,
        encoder: Encoder,
        gallery: Gallery,
        canaries: CanaryStore,
    ) -> None:
        """`first`: a job of the batch, which all have gallery, kind, target and mode with."""
        assert first.key.target in ("image", "text")
        self.times = StageTimes()
        self.unlearned_because = ""
        self._first = first
        self._queries = queries
        self._gallery = gallery
        self._target: Target = first.key.target
        self._side = GallerySide(gallery, self._target, encoder.device)
        self._dual = DualQueries(
            encoder,
            queries,
            self._side,
            k,
            self.times,
            canaries=lambda modality: canaries.check(first.key.gallery, modality, self._target),
        )

    @property
    def size(self) -> int:
        return len(self._queries)

    @property
    def source_because(self) -> str:
        if self._first.kind == "embedding":
            return "an embedding does not pass through the encoder"
        if self._first.mode != "off" and not self._gallery.count(self._target):
            return f"the gallery has no {self._target} vectors"
        return ""

    def prepare(self) -> Generator[None, None, None]:
        return nothing()

    def answer(self, method: Method | None, state: AdaptationState | None) -> Ranked:
        if self._first.kind == "embedding":
            return self._near()
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
        jobs: Sequence[RetrieveJob],
        answered: Ranked,
        adaptation: Adaptation,
        timings: Sequence[Timings],
    ) -> list[Any]:
        features, ranking = answered
        if ranking.generation != self._gallery.generation:  # changed since, maybe by another process
            ranking = self._side.search(features, self._dual.k)
        return [
            JobAnswer(self._hits(job, features[rows], ranking, rows), adaptation, times)
            for job, rows, times in zip(jobs, rows_of(jobs), timings, strict=True)
        ]

    def _near(self) -> Ranked:
        """The items near ready embeddings."""
        vectors = torch.from_numpy(np.stack([given(query.embedding) for query in self._queries]))
        features = torch.nn.functional.normalize(vectors, dim=-1)
        started = time.perf_counter()
        ranking = self._side.search(features, self._dual.k)
        self.times.search_ms = (time.perf_counter() - started) * 1e3
        return Ranked(features, ranking)

    def _hits(
        self, job: RetrieveJob, features: Tensor, ranking: Ranking, rows: slice
    ) -> tuple[tuple[RankedHit, ...], ...]:
        gallery, target = self._gallery, self._target
        scores, positions = ranking.scores[rows], ranking.positions[rows]
        if job.filter is not None:
            allowed = gallery.allowed(target, job.filter)
            scores, positions = gallery.search_raw(target, to_numpy(features), job.k, allowed)
        found = gallery.hits(target, scores, positions, job.k)
        return tuple(tuple(RankedHit(hit.id, hit.score, hit.payload) for hit in hits) for hits in found)
