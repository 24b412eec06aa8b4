"""Queries of a gallery: answered with its nearest items."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.base import Method
from adapters.completion import Completion
from adapters.state import AdaptationState
from encoders.base import Encoder
from index.gallery import Gallery
from service.batches.base import OnAnswer, given, nothing, rows_of, uncompleted_because
from service.batches.dual import DualQueries
from service.canaries import CanaryStore
from service.composed import ComposedTower, QueryTower
from service.gallery_side import GallerySide, to_numpy
from service.messages import (
    Adaptation,
    Completeness,
    JobAnswer,
    Part,
    Query,
    RankedHit,
    RetrieveJob,
    Target,
    Timings,
)
from service.pipeline import MeasureShift, Outcome, Ranked, Ranking, StageTimes
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
        completion: Completion | None,
        canaries: CanaryStore,
        shift: MeasureShift | None = None,
    ) -> None:
        """`first`: a job of the batch, which all have gallery, kind, target and mode with.

        `completion`: the gallery's; None where its anchors are not searched.
        """
        target = first.key.target
        assert target != "label"
        self.times = StageTimes()
        self._first = first
        self._queries = queries
        self._gallery = gallery
        self._target: Target = target
        self._completion = completion
        self._side = GallerySide(gallery, target, encoder.device)
        self._k = k
        self._known_parts: dict[frozenset[Target], Mapping[str, Part]] = {}
        self._dual = DualQueries(
            self._tower(encoder),
            queries,
            self._side,
            k,
            self.times,
            canaries=lambda tower: canaries.check(first.key.gallery, first.kind, target, tower),
            shift=shift if completion is None else None,  # anchors are no embeddings of one modality
        )

    def _tower(self, encoder: Encoder) -> QueryTower:
        """Plain queries of one modality of items keep to their own tower."""
        if self._completion is not None or self._first.kind == "image+text":
            return ComposedTower(encoder.towers, self._completion)
        return encoder.towers["image" if self._first.kind == "image" else "text"]

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

    def unlearned_because(self, method: Method) -> str:
        return uncompleted_because(method) if self._completion is None else ""

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
        features, ranking = answered.features, answered.ranking
        if ranking.generation != self._gallery.generation:  # changed since, maybe by another process
            ranking = self._side.search(features, self._k)
        completeness = self._completeness(answered)
        return [
            JobAnswer(
                self._hits(job, features[rows], ranking, rows),
                adaptation,
                times,
                None if completeness is None else completeness[rows],
            )
            for job, rows, times in zip(jobs, rows_of(jobs), timings, strict=True)
        ]

    def _completeness(self, answered: Ranked) -> tuple[Completeness, ...] | None:
        """Of each query; None where the answer's are not completed."""
        completed, completion = answered.completed, answered.completion
        if completed is None or completion is None:
            return None
        parts = _parts(completed.observed, completed.confidence)
        if not completion.knows_novelty(completed.observed):
            return (Completeness(parts),) * self.size
        given = {name: completed.embeddings[name] for name in completed.observed}
        return tuple(Completeness(parts, novelty) for novelty in completion.novelty_of(given).tolist())

    def _near(self) -> Ranked:
        """The items near ready embeddings."""
        vectors = torch.from_numpy(np.stack([given(query.embedding) for query in self._queries]))
        features = torch.nn.functional.normalize(vectors, dim=-1)
        started = time.perf_counter()
        ranking = self._side.search(features, self._k)
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
        return tuple(
            tuple(
                RankedHit(
                    hit.id,
                    hit.score,
                    hit.payload,
                    self._parts_of_items(hit.modalities),
                    hit.preview_version,
                )
                for hit in hits
            )
            for hits in found
        )

    def _parts_of_items(self, modalities: frozenset[Target]) -> Mapping[str, Part] | None:
        """Of items that have these by themselves."""
        if self._completion is None:
            return None
        if modalities not in self._known_parts:
            confidence = self._completion.confidence(tuple(modalities))
            self._known_parts[modalities] = _parts(modalities, confidence)
        return self._known_parts[modalities]


def _parts(observed: Collection[str], confidence: Mapping[str, float]) -> dict[str, Part]:
    return {name: Part(name in observed, known) for name, known in confidence.items()}
