"""From a request to its jobs, and from their answers to the request's. Pure functions, no torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from encoders.preprocessing import ImageSpec
from index.filters import compile_filter
from service.catalogue import ClassifierCard, GalleryCard
from service.errors import BadRequest, UnsupportedModality
from service.messages import (
    CLASSES,
    COMPOSED,
    LABELS,
    WHAT_A_QUERY_IS,
    AdaptationPart,
    AskedTarget,
    ClassifyAnswer,
    ClassifyJob,
    ClassifyJobAnswer,
    ClassifyRequest,
    Completeness,
    JobAnswer,
    Mode,
    Query,
    QueryJob,
    QueryKind,
    RankedHit,
    RetrieveAnswer,
    RetrieveJob,
    RetrieveRequest,
    Sample,
    SampleAnswer,
    Target,
    Timings,
    TrackKey,
)

Asked = TypeVar("Asked")
Job = TypeVar("Job", bound=QueryJob)


@dataclass(frozen=True)
class Admission:
    """What all jobs of a request have in common; times by time.monotonic()."""

    mode: Mode
    batch_size: int
    accepted_at: float
    deadline_at: float
    trace: Mapping[str, str]

    @property
    def common(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "accepted_at": self.accepted_at,
            "deadline_at": self.deadline_at,
            "trace": self.trace,
        }


@dataclass(frozen=True)
class Placed:
    """A job, and which queries of the request it holds."""

    job: QueryJob
    places: tuple[int, ...]


def _split(
    asked: Sequence[Asked],
    kind_of: Callable[[Asked], str],
    admission: Admission,
    job_of: Callable[[str, tuple[Asked, ...]], QueryJob],
) -> list[Placed]:
    """One job for each kind and batch."""
    by_kind: dict[str, list[int]] = {}
    for position, one in enumerate(asked):
        by_kind.setdefault(kind_of(one), []).append(position)
    placed: list[Placed] = []
    for kind, positions in by_kind.items():
        for start in range(0, len(positions), admission.batch_size):
            places = tuple(positions[start : start + admission.batch_size])
            placed.append(Placed(job_of(kind, tuple(asked[place] for place in places)), places))
    return placed


# -- retrieval ---------------------------------------------------------------------------------------


def retrieval_jobs(
    request: RetrieveRequest, card: GalleryCard, *, dimension: int, admission: Admission
) -> list[Placed]:
    """Raises BadRequest, BadFilter."""
    if request.filter is not None:
        compile_filter(request.filter)  # here, where only this request can fail by it
    for position, query in enumerate(request.queries):
        _check_query(query, position, dimension)

    def job(kind: Any, queries: tuple[Query, ...]) -> RetrieveJob:
        target = _target(request.target, kind, card)
        track = COMPOSED if target == "anchor" and kind != "embedding" else kind
        key = TrackKey(request.stream, card.name, track, target)
        return RetrieveJob(key=key, queries=queries, k=request.k, filter=request.filter, **admission.common)

    return _split(request.queries, lambda query: query.kind, admission, job)


def _check_query(query: Query, position: int, dimension: int) -> None:
    composed = query.text is not None or query.pixels is not None
    if composed == (query.embedding is not None):
        raise BadRequest(f"query {position}: {WHAT_A_QUERY_IS}", code="bad_query")
    if query.embedding is None:
        return
    vector = query.embedding
    if vector.shape != (dimension,):
        raise BadRequest(
            f"query {position}: the embedding has {vector.size} numbers, this encoder's have {dimension}",
            code="bad_embedding",
        )
    if not np.isfinite(vector).all() or not np.any(vector):
        raise BadRequest(f"query {position}: the embedding is zero or not finite", code="bad_embedding")


def _target(asked: AskedTarget, kind: QueryKind, card: GalleryCard) -> Target:
    """`auto`: anchors where a calibration makes them, else the other modality than the query's where the
    gallery has it, else the query's own; for composed queries and embeddings, image."""
    if asked == "auto" and card.calibration is not None:
        return "anchor"
    if asked != "auto":
        if asked == "anchor" and card.calibration is None:
            raise BadRequest(
                f"gallery {card.name!r} has no calibration, so its items have no anchors; "
                f"it has {', '.join(card.targets) or 'no items'}",
                code="empty_target",
            )
        if asked not in card.targets:
            raise BadRequest(
                f"gallery {card.name!r} has no {asked} vectors; "
                f"it has {', '.join(card.targets) or 'no items'}",
                code="empty_target",
            )
        return asked
    preferred: tuple[Target, ...] = ("text", "image") if kind == "image" else ("image", "text")
    return next((target for target in preferred if target in card.targets), preferred[0])


def retrieved(
    request: RetrieveRequest, placed: Sequence[Placed], answers: Sequence[JobAnswer], accepted_at: float
) -> RetrieveAnswer:
    """The answers of the request's jobs in query order."""
    hits: list[tuple[RankedHit, ...]] = [()] * len(request.queries)
    completeness: list[Completeness | None] = [None] * len(request.queries)
    for one, answer in zip(placed, answers, strict=True):
        for place, found in zip(one.places, answer.hits, strict=True):
            hits[place] = found
        if answer.completeness is not None:
            for place, known in zip(one.places, answer.completeness, strict=True):
                completeness[place] = known
    return RetrieveAnswer(
        hits=tuple(hits),
        completeness=tuple(completeness) if any(completeness) else None,
        parts=_parts(placed, answers),
        timings=_timings(answers, accepted_at),
        gallery=placed[0].job.key.gallery,
        stream=request.stream,
    )


# -- classification ----------------------------------------------------------------------------------


def classify_jobs(
    request: ClassifyRequest,
    classifier: ClassifierCard | None,
    *,
    image_spec: ImageSpec,
    admission: Admission,
) -> list[Placed]:
    """`image_spec`: the dual encoder's, for labels given as texts. Raises BadRequest, UnsupportedModality."""
    if not request.samples:
        raise BadRequest("there are no samples", code="no_samples")
    if request.top < 1:
        raise BadRequest("top is at least 1")
    if request.labels is not None:
        return _zero_shot_jobs(request, request.labels, image_spec, admission)
    assert classifier is not None  # the engine refuses the request before
    for position, sample in enumerate(request.samples):
        _check_sample(sample, position, classifier)
    key = TrackKey(request.stream, CLASSES, "audio+video", "label")

    def job(kind: str, samples: tuple[Sample, ...]) -> ClassifyJob:
        return ClassifyJob(key=key, samples=samples, top=request.top, **admission.common)

    return _split(request.samples, lambda sample: sample.kind, admission, job)


def _zero_shot_jobs(
    request: ClassifyRequest, labels: tuple[str, ...], image_spec: ImageSpec, admission: Admission
) -> list[Placed]:
    _check_labels(labels, request.template)
    for position, sample in enumerate(request.samples):
        if sample.fbank is not None:
            raise UnsupportedModality(f"sample {position}: labels given as texts classify no sound")
        if (sample.pixels is None) == (sample.text is None):
            raise BadRequest(f"sample {position}: a picture or a text, one of them", code="bad_sample")
        _check_pixels(sample.pixels, position, image_spec)
    gallery = LABELS + label_digest(labels, request.template)

    def job(kind: Any, samples: tuple[Sample, ...]) -> ClassifyJob:
        return ClassifyJob(
            key=TrackKey(request.stream, gallery, kind, "text"),
            samples=samples,
            top=request.top,
            labels=labels,
            template=request.template,
            **admission.common,
        )

    return _split(request.samples, lambda sample: sample.zero_shot_kind, admission, job)


def label_digest(labels: Sequence[str], template: str) -> str:
    """24 hex digits that tell label sets apart, also where somebody tries that they do not; order counts."""
    return hashlib.sha256(json.dumps([template, list(labels)]).encode()).hexdigest()[:24]


def _check_labels(labels: Sequence[str], template: str) -> None:
    if "{}" not in template:
        raise BadRequest("the template has no {} for the label", code="bad_labels")
    if not labels or not all(label.strip() for label in labels):
        raise BadRequest("labels are texts that are not empty, at least one", code="bad_labels")
    if len(set(labels)) != len(labels):
        raise BadRequest("a label stands twice in the list", code="bad_labels")


def _check_sample(sample: Sample, position: int, classifier: ClassifierCard) -> None:
    if sample.text is not None:
        raise UnsupportedModality(
            f"sample {position}: the classifier takes sound and pictures; texts need `labels`"
        )
    if sample.fbank is None and sample.pixels is None:
        raise BadRequest(f"sample {position}: neither sound nor picture", code="bad_sample")
    if sample.fbank is not None:
        spec, fbank = classifier.audio_spec, sample.fbank
        if fbank.ndim != 2 or fbank.shape[1] != spec.mel_bins or not 1 <= len(fbank) <= spec.frames:
            raise BadRequest(
                f"sample {position}: fbank of shape {list(fbank.shape)}, not of 1 to {spec.frames} frames "
                f"with {spec.mel_bins} bins",
                code="bad_fbank",
            )
        if fbank.dtype != np.float32 or not np.isfinite(fbank).all():
            raise BadRequest(f"sample {position}: fbank holds a number that is not finite", code="bad_fbank")
    _check_pixels(sample.pixels, position, classifier.image_spec)


def _check_pixels(pixels: np.ndarray | None, position: int, spec: ImageSpec) -> None:
    wanted = (3, spec.height, spec.width)
    if pixels is not None and (pixels.shape != wanted or pixels.dtype != np.uint8):
        raise BadRequest(
            f"sample {position}: pixels {pixels.dtype} {list(pixels.shape)}, not uint8 {list(wanted)}",
            code="bad_sample",
        )


def classified(
    request: ClassifyRequest,
    placed: Sequence[Placed],
    answers: Sequence[ClassifyJobAnswer],
    accepted_at: float,
    *,
    model: str,
) -> ClassifyAnswer:
    """The answers of the request's jobs in the samples' order."""
    samples: dict[int, SampleAnswer] = {}
    for one, answer in zip(placed, answers, strict=True):
        samples |= zip(one.places, answer.samples, strict=True)
    return ClassifyAnswer(
        samples=tuple(samples[place] for place in range(len(request.samples))),
        parts=_parts(placed, answers),
        timings=_timings(answers, accepted_at),
        stream=request.stream,
        model=model,
    )


# -- both --------------------------------------------------------------------------------------------


def _parts(
    placed: Sequence[Placed], answers: Sequence[JobAnswer | ClassifyJobAnswer]
) -> tuple[AdaptationPart, ...]:
    """One for each kind. Of several batches the last one's: its state has learned from those before."""
    parts: dict[str, AdaptationPart] = {}
    for one, answer in zip(placed, answers, strict=True):
        kind = one.job.kind
        before = parts[kind].query_indices if kind in parts else ()
        parts[kind] = AdaptationPart((*before, *one.places), answer.adaptation)
    return tuple(parts.values())


def _timings(answers: Sequence[JobAnswer | ClassifyJobAnswer], accepted_at: float) -> Timings:
    each = [answer.timings for answer in answers]
    return Timings(
        wait_ms=each[0].wait_ms,
        encode_ms=sum(timing.encode_ms for timing in each),
        search_ms=sum(timing.search_ms for timing in each),
        adapt_ms=sum(timing.adapt_ms for timing in each),
        total_ms=(time.monotonic() - accepted_at) * 1e3,
    )
