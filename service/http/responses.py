"""JSON out. Answers are plain dictionaries made by our own code, so nothing is validated a second time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.responses import Response

from service.messages import (
    Adaptation,
    AdaptationPart,
    ClassifyAnswer,
    Completeness,
    Part,
    RankedHit,
    RetrieveAnswer,
    SampleAnswer,
    Timings,
)


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as JSON; a number that is not finite becomes null, which JSON has."""
    body = to_json(content, inf_nan_mode="null")
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def no_content() -> Response:
    return Response(status_code=204)


def answer_body(answer: RetrieveAnswer) -> dict[str, Any]:
    """The wire form of an answer. `parts` is there only where the request mixed kinds of queries, and a
    result's `query` only where a calibration has completed it."""
    parts = answer.parts
    completeness = answer.completeness or (None,) * len(answer.hits)
    body: dict[str, Any] = {
        "results": [
            {"hits": [_hit(hit, answer.gallery) for hit in hits], **_query(known)}
            for hits, known in zip(answer.hits, completeness, strict=True)
        ],
        "adaptation": _adaptation_of_all(parts),
        "timings_ms": _timings(answer.timings),
        "gallery": answer.gallery,
        "stream": answer.stream,
    }
    if len(parts) > 1:
        body["parts"] = _parts(parts)
    return body


def classify_body(ids: Sequence[str | None], answer: ClassifyAnswer) -> dict[str, Any]:
    """The wire form of an answer of /classify; `ids` as the samples had them."""
    body: dict[str, Any] = {
        "results": [_sample(id, sample) for id, sample in zip(ids, answer.samples, strict=True)],
        "adaptation": _adaptation_of_all(answer.parts),
        "timings_ms": _timings(answer.timings),
        "stream": answer.stream,
        "model": answer.model,
    }
    if len(answer.parts) > 1:
        body["parts"] = _parts(answer.parts)
    return body


def line_body(index: int, id: str | None, answer: ClassifyAnswer, place: int) -> dict[str, Any]:
    """One line of a streamed answer: the sample at `place` of what was asked together."""
    part = next(part for part in answer.parts if place in part.query_indices)
    return {
        "index": index,
        **_sample(id, answer.samples[place]),
        "adaptation": _adaptation(part.adaptation),
        "timings_ms": _timings(answer.timings),
    }


def _sample(id: str | None, sample: SampleAnswer) -> dict[str, Any]:
    named = {} if id is None else {"id": id}
    known = sample.completeness
    return {
        **named,
        "labels": [{"label": score.label, "probability": score.probability} for score in sample.labels],
        "entropy_nats": sample.entropy_nats,
        "missing": list(sample.missing),
        "completed_by": sample.completed_by,
        **({} if known is None else {"parts": _completed_parts(known.parts), "novelty": known.novelty}),
    }


def item_body(gallery: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """The wire form of an item as the engine describes it."""
    body = dict(item)
    version = body.pop("preview_version", "")
    if version:
        body["preview"] = _preview(gallery, body["id"], version)
    return body


def _preview(gallery: str, item: str, version: str) -> str:
    """Where the item's preview is had: a path that every id can be part of."""
    return f"/galleries/{gallery}/previews/{quote(item, safe='')}?v={version}"


def _hit(hit: RankedHit, gallery: str) -> dict[str, Any]:
    body: dict[str, Any] = {"id": hit.id, "score": hit.score, "payload": hit.payload}
    if hit.parts is not None:
        body["parts"] = _completed_parts(hit.parts)
    if hit.preview_version:
        body["preview"] = _preview(gallery, hit.id, hit.preview_version)
    return body


def _query(known: Completeness | None) -> dict[str, Any]:
    if known is None:
        return {}
    return {"query": {"parts": _completed_parts(known.parts), "novelty": known.novelty}}


def _completed_parts(parts: Mapping[str, Part]) -> dict[str, Any]:
    return {name: {"observed": part.observed, "confidence": part.confidence} for name, part in parts.items()}


def _adaptation(adaptation: Adaptation) -> dict[str, Any]:
    return {
        "method": adaptation.method,
        "mode": adaptation.mode,
        "direction": adaptation.direction,
        "state_version": adaptation.state_version,
        "status": adaptation.status,
        "reason": adaptation.reason,
        "batch_size": adaptation.batch_size,
    }


def _adaptation_of_all(parts: Sequence[AdaptationPart]) -> dict[str, Any]:
    return _adaptation(parts[0].adaptation) if len(parts) == 1 else _mixed(parts[0].adaptation)


def _parts(parts: Sequence[AdaptationPart]) -> list[dict[str, Any]]:
    return [{"query_indices": part.query_indices, **_adaptation(part.adaptation)} for part in parts]


def _mixed(first: Adaptation) -> dict[str, Any]:
    return {
        "method": first.method,
        "mode": first.mode,
        "direction": "mixed",
        "state_version": None,
        "status": "mixed",
        "reason": "see parts",
        "batch_size": None,
    }


def _timings(timings: Timings) -> dict[str, float]:
    return {
        "wait": round(timings.wait_ms, 3),
        "encode": round(timings.encode_ms, 3),
        "search": round(timings.search_ms, 3),
        "adapt": round(timings.adapt_ms, 3),
        "total": round(timings.total_ms, 3),
    }
