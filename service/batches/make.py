"""From jobs, waiting or gathered, to the batch they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from adapters.completion import Completion
from encoders.base import Encoder
from service.batches.base import Batch
from service.batches.classifier import ClassifierBatch
from service.batches.labels import LabelBatch, LabelSides
from service.batches.retrieval import RetrievalBatch
from service.canaries import CanaryStore
from service.classification import MissingBy
from service.errors import NotFound
from service.galleries import Galleries
from service.gathering import GatheredBatch
from service.messages import ClassifyJob, QueryJob, RetrieveJob
from service.pipeline import MeasureShift
from service.tasks import Classifier


class Batches:
    """Makes batches of what this process has: an encoder, galleries, perhaps a classifier."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        galleries: Galleries,
        canaries: CanaryStore,
        classifier: Classifier | None,
        batch_size: int,
        classify_missing: MissingBy = "auto",
        clean: Callable[[], Completion | None] = lambda: None,
    ) -> None:
        """`clean`: what is known of clean pictures and texts, if anything."""
        self._encoder = encoder
        self._galleries = galleries
        self._canaries = canaries
        self._classifier = classifier
        self._batch_size = batch_size
        self._classify_missing = classify_missing
        self._clean = clean
        self._sides = LabelSides(encoder, batch_size=batch_size)

    def takes_long(self, job: QueryJob) -> bool:
        """Whether much has to be encoded before the job itself can be answered."""
        if not isinstance(job, ClassifyJob) or job.labels is None:
            return False
        return len(job.labels) > self._batch_size and not self._sides.holds(job.template, job.labels)

    def of(self, jobs: Sequence[QueryJob]) -> Batch:
        """Jobs of one batch group. Raises what the gallery raises, NotFound (`no_classifier`)."""
        asked = [one for job in jobs for one in job.asked]
        return self._made(jobs[0], asked, k=max(getattr(job, "k", 1) for job in jobs))

    def gathered(self, batch: GatheredBatch) -> Batch:
        """Likewise, of what was answered before and is learned from now."""
        return self._made(batch.first, batch.queries, k=1)

    def _made(self, first: QueryJob, asked: Sequence[Any], *, k: int) -> Batch:
        if isinstance(first, RetrieveJob):
            name = first.key.gallery
            return RetrievalBatch(
                first,
                asked,
                k=k,
                encoder=self._encoder,
                gallery=self._galleries.usable(name),
                completion=self._galleries.completion(name) if first.key.target == "anchor" else None,
                canaries=self._canaries,
                shift=self._shift(first.kind),
            )
        job = cast(ClassifyJob, first)
        if job.labels is not None:
            return LabelBatch(
                job, asked, encoder=self._encoder, sides=self._sides, shift=self._shift(job.kind)
            )
        if self._classifier is None:
            raise NotFound("this worker has no classifier", code="no_classifier")
        return ClassifierBatch(asked, classifier=self._classifier, missing_by=self._classify_missing)

    def _shift(self, kind: str) -> MeasureShift | None:
        """How far queries of this kind are from clean ones, if that is known."""
        clean = self._clean()
        if clean is None or kind not in clean.modalities or not clean.statistics:
            return None
        return partial(clean.shift, kind)
