"""What the client gives back, and its one error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Card = dict[str, Any]
"""A description (gallery, item, stream, snapshot) as the server's JSON has it."""


class AttuneError(Exception):
    """The server refused or could not be reached.

    code     the server's code; "unreachable", "timeout" or "bad_answer" where none of its answers came
    status   HTTP status, None without an answer
    details  what the server adds, by code
    """

    def __init__(
        self, code: str, message: str, *, details: Mapping[str, Any] | None = None, status: int | None = None
    ):
        super().__init__(message)
        self.code = code
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.status = status

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


@dataclass(frozen=True)
class Part:
    """One modality of an item or a query.

    observed    whether it was given; else it was imputed
    confidence  how much of it is known, 0 to 1; 1 where it was given
    """

    observed: bool
    confidence: float


@dataclass(frozen=True)
class Completeness:
    """What a query had and what was imputed, by modality.

    novelty  share of the calibration's clean samples that are less unusual, 0 to 1; None: not known
    """

    parts: dict[str, Part]
    novelty: float | None


@dataclass(frozen=True)
class Hit:
    id: str
    score: float
    """Cosine similarity, -1 to 1."""
    payload: dict[str, Any]
    parts: dict[str, Part] | None = None
    """Of the item, by modality; only where anchors were searched."""
    preview: str | None = None
    """Path of its preview on the server; None where there is none. `Client.preview` gets it."""


@dataclass(frozen=True)
class Adaptation:
    """What happened to the batch that queries were part of; see the server's documentation."""

    method: str
    mode: str
    direction: str
    state_version: int | None
    status: str
    reason: str
    batch_size: int | None
    query_indices: tuple[int, ...] = ()
    """Only in `Answer.parts`."""


@dataclass(frozen=True)
class Answer:
    """Hits of each query in order, best first."""

    results: list[list[Hit]]
    adaptation: Adaptation
    timings_ms: dict[str, float]
    gallery: str
    stream: str
    parts: tuple[Adaptation, ...] = ()
    """One entry a kind of query, for a request that mixed kinds."""
    completeness: tuple[Completeness | None, ...] = ()
    """Of each query, where anchors were searched; else empty."""

    @property
    def hits(self) -> list[Hit]:
        """The hits of the first query; of the only one, mostly."""
        return self.results[0]

    @classmethod
    def of_json(cls, body: Mapping[str, Any]) -> Answer:
        return cls(
            results=[[_hit(hit) for hit in result["hits"]] for result in body["results"]],
            adaptation=_adaptation(body["adaptation"]),
            timings_ms=dict(body["timings_ms"]),
            gallery=body["gallery"],
            stream=body["stream"],
            parts=tuple(_adaptation(part) for part in body.get("parts", ())),
            completeness=_completeness(body["results"]),
        )


@dataclass(frozen=True)
class Label:
    label: str
    probability: float


@dataclass(frozen=True)
class Classified:
    """The answer to one sample.

    labels        best first
    entropy_nats  of the probabilities of all labels
    missing       modalities that the sample lacked
    completed_by  what made up for them: "model" (its own path) or "imputation"; empty: nothing was missing
    completeness  of audio, video and what is made of both (fused); None where no calibration knows
    id            as the sample had it
    """

    labels: tuple[Label, ...]
    entropy_nats: float
    missing: tuple[str, ...] = ()
    completed_by: str = ""
    completeness: Completeness | None = None
    id: str | None = None

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[0].label

    @classmethod
    def of_json(cls, body: Mapping[str, Any]) -> Classified:
        return cls(
            labels=tuple(Label(each["label"], each["probability"]) for each in body["labels"]),
            entropy_nats=body["entropy_nats"],
            missing=tuple(body["missing"]),
            completed_by=body["completed_by"],
            completeness=(
                Completeness(_parts(body["parts"]), body["novelty"]) if body.get("parts") else None
            ),
            id=body.get("id"),
        )


@dataclass(frozen=True)
class ClassifyAnswer:
    """The answers in the order of the samples."""

    results: list[Classified]
    adaptation: Adaptation
    timings_ms: dict[str, float]
    stream: str
    model: str
    parts: tuple[Adaptation, ...] = ()
    """One entry a kind of sample, for a request that mixed kinds."""

    @classmethod
    def of_json(cls, body: Mapping[str, Any]) -> ClassifyAnswer:
        return cls(
            results=[Classified.of_json(answer) for answer in body["results"]],
            adaptation=_adaptation(body["adaptation"]),
            timings_ms=dict(body["timings_ms"]),
            stream=body["stream"],
            model=body["model"],
            parts=tuple(_adaptation(part) for part in body.get("parts", ())),
        )


@dataclass(frozen=True)
class StreamedAnswer:
    """What became of one sample of a stream: an answer, or an error.

    index  of the sample, from 0
    """

    index: int
    answer: Classified | None = None
    adaptation: Adaptation | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    error: AttuneError | None = None

    def result(self) -> Classified:
        """The answer. Raises AttuneError if there is an error in its place."""
        if self.answer is None:
            raise self.error or AttuneError("bad_answer", "neither an answer nor an error")
        return self.answer

    @classmethod
    def of_json(cls, body: Mapping[str, Any]) -> StreamedAnswer:
        if "error" in body:
            error = body["error"]
            failure = AttuneError(error["code"], error["message"], details=error["details"])
            return cls(body["index"], error=failure)
        return cls(
            index=body["index"],
            answer=Classified.of_json(body),
            adaptation=_adaptation(body["adaptation"]),
            timings_ms=dict(body["timings_ms"]),
        )


def _hit(body: Mapping[str, Any]) -> Hit:
    return Hit(
        body["id"],
        body["score"],
        body["payload"],
        parts=_parts(body["parts"]) if "parts" in body else None,
        preview=body.get("preview"),
    )


def _completeness(results: Sequence[Mapping[str, Any]]) -> tuple[Completeness | None, ...]:
    known = [result.get("query") for result in results]
    if not any(known):
        return ()
    return tuple(Completeness(_parts(query["parts"]), query["novelty"]) if query else None for query in known)


def _parts(body: Mapping[str, Any]) -> dict[str, Part]:
    return {name: Part(part["observed"], part["confidence"]) for name, part in body.items()}


def _adaptation(body: Mapping[str, Any]) -> Adaptation:
    return Adaptation(
        method=body["method"],
        mode=body["mode"],
        direction=body["direction"],
        state_version=body["state_version"],
        status=body["status"],
        reason=body["reason"],
        batch_size=body["batch_size"],
        query_indices=tuple(body.get("query_indices", ())),
    )
