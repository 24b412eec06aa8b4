"""What travels between the routes, the queue and the worker. Plain data, no torch, no HTTP.

Letters: B queries of a batch, D features, H x W pixels of the encoder's input, n frames of a sound.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Task = Literal["retrieve", "classify"]
Mode = Literal["sync", "async", "off"]
AskedMode = Literal["auto", "sync", "async", "off"]
QueryKind = Literal["text", "image", "image+text", "embedding"]
SampleKind = Literal["audio+video", "audio", "video", "image", "text"]
Target = Literal["image", "text", "anchor"]
"""What of an item is compared: its picture's or text's embedding, or the anchor of both (docs/missing.md)."""
AskedTarget = Literal["auto", "image", "text", "anchor"]
Status = Literal["applied", "applying", "queued", "skipped", "undone", "off"]


def _bytes(*arrays: np.ndarray | None) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


WHAT_A_QUERY_IS = "a query is a text, a picture or both together, or an embedding alone"


@dataclass(frozen=True)
class Query:
    """One thing to answer: a text, a picture, both together (a composed query), or an embedding alone.

    text       as the client wrote it
    pixels     uint8 [3, H, W], already of the encoder's input size
    embedding  float32 [D], finite, not zero
    """

    text: str | None = None
    pixels: np.ndarray | None = None
    embedding: np.ndarray | None = None

    @property
    def kind(self) -> QueryKind:
        if self.text is not None:
            return "text" if self.pixels is None else "image+text"
        return "image" if self.pixels is not None else "embedding"

    @property
    def byte_size(self) -> int:
        """Of its arrays."""
        return _bytes(self.pixels, self.embedding)


@dataclass(frozen=True)
class RetrieveRequest:
    """One call of /retrieve, validated, pictures decoded."""

    queries: tuple[Query, ...]
    gallery: str | None = None
    """None: the server's default gallery."""
    stream: str = "default"
    k: int = 10
    target: AskedTarget = "auto"
    adapt: AskedMode = "auto"
    filter: Mapping[str, Any] | None = None
    deadline_ms: float | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    """Request id and trace context, for the logs and spans of whoever does the work."""


@dataclass(frozen=True)
class Sample:
    """One thing to classify. At least one of the three.

    fbank   float32 [n, mel bins], log mel energies: neither padded nor normalised
    pixels  uint8 [3, H, W], one frame at the classifier's size, or (zero-shot) a picture at the encoder's
    text    as the client wrote it (zero-shot)
    """

    fbank: np.ndarray | None = None
    pixels: np.ndarray | None = None
    text: str | None = None

    @property
    def kind(self) -> SampleKind:
        """What the classifier sees of it; for zero-shot see `zero_shot_kind`."""
        if self.text is not None:
            return "text"
        if self.fbank is not None:
            return "audio" if self.pixels is None else "audio+video"
        return "video"

    @property
    def zero_shot_kind(self) -> Literal["image", "text"]:
        return "text" if self.text is not None else "image"

    @property
    def missing(self) -> tuple[str, ...]:
        """The modalities that the classifier would see and does not."""
        there = {"audio": self.fbank is not None, "video": self.pixels is not None}
        return tuple(modality for modality, present in there.items() if not present)

    @property
    def byte_size(self) -> int:
        """Of its arrays."""
        return _bytes(self.fbank, self.pixels)


@dataclass(frozen=True)
class ClassifyRequest:
    """One call of /classify, validated, sound and pictures decoded.

    labels    texts to choose from (zero-shot, by the dual encoder); None: the classifier's own labels
    template  each label's sentence, with `{}` for the label
    """

    samples: tuple[Sample, ...]
    stream: str = "default"
    top: int = 5
    adapt: AskedMode = "auto"
    labels: tuple[str, ...] | None = None
    template: str = "{}"
    deadline_ms: float | None = None
    trace: Mapping[str, str] = field(default_factory=dict)


CLASSES = "classes"
"""In a track's key, in the place of a gallery: the classifier's own labels."""
LABELS = "labels:"
"""Likewise, before a digest: labels given as texts. No gallery's name holds a colon."""

TrackKind = QueryKind | Literal["audio+video"]
TrackTarget = Target | Literal["label"]
COMPOSED: TrackKind = "image+text"
"""Queries of galleries with a calibration share a track, whatever they lack."""


@dataclass(frozen=True)
class TrackKey:
    """Which adaptation state a query belongs to.

    gallery  its name; `CLASSES`, or `LABELS` and a digest, for what is classified
    """

    stream: str
    gallery: str
    query_kind: TrackKind
    target: TrackTarget

    @property
    def direction(self) -> str:
        return f"{self.query_kind}->{self.target}"

    @property
    def name(self) -> str:
        """Unique within a stream: `gallery/direction`."""
        return f"{self.gallery}/{self.direction}"


@dataclass(frozen=True)
class Part:
    """One modality of a query, an item or a sample.

    observed    whether it was given; else it was imputed from the others
    confidence  0..1, how much of it is known; 1 where it was given
    """

    observed: bool
    confidence: float


@dataclass(frozen=True)
class Completeness:
    """What a query or sample had and what was made up, where a calibration completes it.

    parts    by modality
    novelty  0..1, the share of clean samples that are less unusual; None: not known
    """

    parts: Mapping[str, Part]
    novelty: float | None = None


@dataclass(frozen=True)
class RankedHit:
    """An item that was found.

    parts            of the item, by modality; None where no calibration completes the gallery's items
    preview_version  of the preview that the gallery keeps of the item; empty: none
    """

    id: str
    score: float
    payload: Mapping[str, Any]
    parts: Mapping[str, Part] | None = None
    preview_version: str = ""


@dataclass(frozen=True)
class Adaptation:
    """What happened to the batch that a query was part of.

    state_version  version of the state whose parameters ranked the answer
    status         applied: all updates of this batch are in; applying: answered before the last update;
                   queued: will adapt in the background; skipped, undone, off: did not adapt, see reason
    batch_size     queries that were encoded together
    """

    method: str
    mode: Mode
    direction: str
    state_version: int
    status: Status
    reason: str
    batch_size: int


@dataclass(frozen=True)
class Timings:
    """Milliseconds. `total_ms` runs from the acceptance of the request to its answer."""

    wait_ms: float = 0.0
    encode_ms: float = 0.0
    search_ms: float = 0.0
    adapt_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class JobAnswer:
    """The answer to one job: hits per query in the job's order, best first.

    completeness  of each query; None where none is completed
    """

    hits: tuple[tuple[RankedHit, ...], ...]
    adaptation: Adaptation
    timings: Timings
    completeness: tuple[Completeness, ...] | None = None


@dataclass(frozen=True)
class AdaptationPart:
    """The adaptation of the queries of one kind, for a request that mixes kinds."""

    query_indices: tuple[int, ...]
    adaptation: Adaptation


@dataclass(frozen=True)
class RetrieveAnswer:
    """The answer to a request: hits in query order; one part per kind of query (nearly always one)."""

    hits: tuple[tuple[RankedHit, ...], ...]
    parts: tuple[AdaptationPart, ...]
    timings: Timings
    gallery: str
    stream: str
    completeness: tuple[Completeness | None, ...] | None = None
    """Of each query, where a calibration completes some."""


@dataclass(frozen=True)
class LabelScore:
    label: str
    index: int
    """Place of the label in the label list."""
    probability: float


@dataclass(frozen=True)
class SampleAnswer:
    """The answer to one sample.

    labels        best first, at most as many as asked for
    entropy_nats  of the probabilities of all labels, 0 <= entropy <= log(labels)
    missing       modalities that the sample lacked, of those that the classifier sees
    completed_by  what made up for what was missing: the model's own path or imputation; empty: nothing was
    completeness  what was imputed and how surely; None where no calibration knows
    """

    labels: tuple[LabelScore, ...]
    entropy_nats: float
    missing: tuple[str, ...] = ()
    completed_by: Literal["", "model", "imputation"] = ""
    completeness: Completeness | None = None


@dataclass(frozen=True)
class ClassifyJobAnswer:
    """The answer to one job of classification: samples in the job's order."""

    samples: tuple[SampleAnswer, ...]
    adaptation: Adaptation
    timings: Timings


@dataclass(frozen=True)
class ClassifyAnswer:
    """The answer to a request: samples in its order; one part per kind of sample (nearly always one)."""

    samples: tuple[SampleAnswer, ...]
    parts: tuple[AdaptationPart, ...]
    timings: Timings
    stream: str
    model: str


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class QueryJob(ABC):
    """Queries of one request, one kind and at most one batch: what the queue holds and the worker answers.

    kind            what the queries are; those of different kinds are not encoded together
    accepted_at     time.monotonic() at acceptance
    again           whether a worker began it before, and may have answered it, but did not finish it
    frozen_because  why a query that asked to adapt is answered by the source model (mode `off`); empty: it
                    asked so
    """

    key: TrackKey
    mode: Mode
    id: str = field(default_factory=new_id, kw_only=True)
    accepted_at: float = field(default=0.0, kw_only=True)
    deadline_at: float | None = field(default=None, kw_only=True)
    again: bool = field(default=False, kw_only=True)
    frozen_because: str = field(default="", kw_only=True)
    trace: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    @property
    @abstractmethod
    def asked(self) -> Sequence[Query | Sample]:
        """Its queries, in order."""

    @property
    def kind(self) -> str:
        return self.key.query_kind

    @property
    def items(self) -> int:
        return len(self.asked)

    @property
    def byte_size(self) -> int:
        """Of its arrays."""
        return sum(one.byte_size for one in self.asked)


@dataclass(frozen=True)
class RetrieveJob(QueryJob):
    queries: tuple[Query, ...]
    k: int
    filter: Mapping[str, Any] | None = None

    @property
    def asked(self) -> tuple[Query, ...]:
        return self.queries

    @property
    def kind(self) -> QueryKind:
        """Of its queries: those of one track may have different modalities (see COMPOSED)."""
        return self.queries[0].kind


@dataclass(frozen=True)
class ClassifyJob(QueryJob):
    """`labels` and `template` as in ClassifyRequest; all samples are of one kind."""

    samples: tuple[Sample, ...]
    top: int
    labels: tuple[str, ...] | None = None
    template: str = "{}"

    @property
    def asked(self) -> tuple[Sample, ...]:
        return self.samples

    @property
    def kind(self) -> str:
        """Of the classifier's samples, which share a track whatever they lack, also what they have."""
        return self.key.query_kind if self.labels is not None else self.samples[0].kind


@dataclass(frozen=True)
class NewItem:
    """A gallery item as the client sent it; whatever has no vector yet is encoded with the source model."""

    id: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    pixels: np.ndarray | None = None
    embeddings: Mapping[Target, np.ndarray] = field(default_factory=dict)
    """Ready vectors float32 [D] by modality, instead of text or pixels."""
    preview: bytes | None = None
    """A small WebP of the picture, for people."""


@dataclass(frozen=True)
class Canary:
    """A query of a gallery (text or picture) whose right answer is known: the item `answer`."""

    query: Query
    answer: str


@dataclass(frozen=True)
class ControlJob:
    """Anything but a query: it changes or reads what the worker owns, in order with the queries.

    action     name of one of the worker's actions
    stream     the stream whose queries must not overtake it, or None
    gallery    the gallery that it changes, or None
    items      what it counts in the queue (gallery items to encode; 0 for all else)
    again      whether it may have been done before, by a worker that died before it could say so
    """

    action: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    stream: str | None = None
    gallery: str | None = None
    items: int = 0
    again: bool = False
    id: str = field(default_factory=new_id)
    deadline_at: float | None = None


Job = QueryJob | ControlJob


def stream_of(job: Job) -> str | None:
    """The stream whose order this job keeps; None for a job that reads and writes no stream state."""
    if isinstance(job, ControlJob):
        return job.stream
    return None if job.mode == "off" else job.key.stream


def home_of(job: Job) -> str:
    """What decides which worker does the job. Jobs of one home keep their order.

    Where no order matters the job's own id decides, so that such work spreads over all workers.
    """
    stream = stream_of(job)
    if stream is not None:
        return stream
    if isinstance(job, ControlJob) and job.gallery is not None:
        return f"gallery/{job.gallery}"  # no stream name holds a slash
    return job.id


def batch_group(job: QueryJob) -> tuple[str, ...]:
    """Jobs of one group may be encoded together. Queries in mode `off` share the source model.

    What was begun before makes the same batch again, so that a stream ends where it would have ended: at most
    one batch of a stream is under way when its worker dies.
    """
    key = job.key
    stream = "" if job.mode == "off" else key.stream
    return (job.mode, stream, key.gallery, job.kind, key.target, "again" if job.again else "")
