"""From a request to /retrieve, in any of its three forms, to queries and options.

application/json       {"queries": [...], options}; a query may have a text and a picture together
multipart/form-data    fields image (files) and text, repeated as wanted, in order; the options as fields
image/*, or bytes      the body is one picture; the options are in the URL

In a form every field image or text is a query of its own, and so is a body: both together take JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.requests import Request

from service.errors import TooLarge
from service.http.bodies import (
    is_json,
    limited,
    media_type,
    parse_fields,
    parse_json,
    read_bytes,
    unsupported,
)
from service.http.engine import Engine
from service.http.errors import Refusal
from service.http.images import ImageLimits, ImageSource, decode_all
from service.http.schemas import QueryBody, RetrieveBody, RetrieveOptions
from service.messages import Query
from service.settings import Settings

ACCEPTED = "application/json, multipart/form-data, image/* or application/octet-stream"


@dataclass(frozen=True)
class RawQuery:
    """A query as it was sent: text, image or both, or an embedding alone. `field` names it in errors."""

    field: str
    text: str | None = None
    image: bytes | str | None = None
    embedding: Sequence[float] | None = None


async def read_retrieve(request: Request, settings: Settings) -> tuple[list[RawQuery], RetrieveOptions]:
    """Read the body whole. Raises TooLarge, Refusal (400, 413, 415, 422)."""
    kind = media_type(request)
    if is_json(kind):
        queries, options = await _of_json(request, settings)
    elif kind == "multipart/form-data":
        queries, options = await _of_form(request, settings)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        queries, options = await _of_bytes(request, settings)
    else:
        raise unsupported(kind, ACCEPTED)
    _check_limits(queries, options, settings)
    return queries, options


async def _of_json(request: Request, settings: Settings) -> tuple[list[RawQuery], RetrieveOptions]:
    if request.query_params:
        raise Refusal(422, "invalid_request", "with a JSON body the options belong into it, not into the URL")
    body = parse_json(RetrieveBody, await read_bytes(request, settings.max_body_bytes))
    queries = [
        RawQuery(f"queries[{i}]", query.text, query.image, query.embedding)
        for i, query in enumerate(body.queries)
    ]
    return queries, body


async def _of_form(request: Request, settings: Settings) -> tuple[list[RawQuery], RetrieveOptions]:
    most = settings.max_queries_per_request + 1
    queries: list[RawQuery] = []
    fields: list[tuple[str, str]] = list(request.query_params.multi_items())
    parts = limited(request, settings.max_body_bytes).form(
        max_files=most, max_fields=most + 32, max_part_size=settings.max_body_bytes
    )
    async with parts as form:
        for name, value in form.multi_items():
            field = f"queries[{len(queries)}]"
            if name == "image":
                content = await value.read() if isinstance(value, UploadFile) else value
                queries.append(RawQuery(field, image=content))
            elif isinstance(value, UploadFile):
                raise Refusal(422, "invalid_request", "files are sent as the field `image`")
            elif name == "text":
                queries.append(RawQuery(field, text=parse_fields(QueryBody, {"text": value}).text))
            else:
                fields.append((name, value))
    if not queries:
        raise Refusal(422, "invalid_request", "the form has no query: send at least one field image or text")
    return queries, _options(fields)


async def _of_bytes(request: Request, settings: Settings) -> tuple[list[RawQuery], RetrieveOptions]:
    options = _options(request.query_params.multi_items())
    limit = min(settings.max_body_bytes, settings.max_image_bytes)
    return [RawQuery("queries[0]", image=await read_bytes(request, limit))], options


def _options(fields: Iterable[tuple[str, str]]) -> RetrieveOptions:
    """Options that arrive as text; `filter` is JSON."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name in values:
            raise Refusal(422, "invalid_request", f"{name[:60]}: given twice")
        values[name] = _filter(value) if name == "filter" else value
    return parse_fields(RetrieveOptions, values)


def _filter(text: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        raise Refusal(422, "invalid_request", "filter: in a form or URL it is a JSON object") from None


def _check_limits(queries: Sequence[RawQuery], options: RetrieveOptions, settings: Settings) -> None:
    if len(queries) > settings.max_queries_per_request:
        raise TooLarge(
            f"the request has {len(queries)} queries; the server takes {settings.max_queries_per_request}",
            details={"max_queries": settings.max_queries_per_request},
        )
    if options.k > settings.max_k:
        raise Refusal(
            422, "invalid_request", f"k: at most {settings.max_k}", details={"max_k": settings.max_k}
        )
    for query in queries:
        if query.text is not None:
            check_text(f"{query.field}.text", query.text, settings)


def check_text(field: str, text: str, settings: Settings) -> None:
    """Raises TooLarge for a text that is longer than the server accepts."""
    if len(text) > settings.max_text_characters:
        raise TooLarge(
            f"{field}: the text has {len(text)} characters; the server takes {settings.max_text_characters}",
            details={"field": field, "max_characters": settings.max_text_characters},
        )


async def decode_queries(
    raw: Sequence[RawQuery], settings: Settings, engine: Engine, threads: CapacityLimiter
) -> tuple[Query, ...]:
    """Queries as the engine takes them: pictures as pixels, embeddings as checked vectors."""
    sources = [ImageSource(f"{query.field}.image", query.image) for query in raw if query.image is not None]
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    decoded = iter(await decode_all(sources, engine.image_spec, limits, threads))
    return tuple(_query(query, next(decoded) if query.image is not None else None, engine) for query in raw)


def _query(raw: RawQuery, pixels: np.ndarray | None, engine: Engine) -> Query:
    if raw.embedding is not None:
        return Query(embedding=vector(f"{raw.field}.embedding", raw.embedding, engine.dimension))
    return Query(text=raw.text, pixels=pixels)


def vector(field: str, numbers: Sequence[float], dimension: int) -> np.ndarray:
    """float32 [D]. Raises Refusal 422 for the wrong size, overflow and the zero vector."""
    if len(numbers) != dimension:
        raise _bad_vector(field, f"has {len(numbers)} numbers; the encoder's vectors have {dimension}")
    with np.errstate(over="ignore"):
        values = np.asarray(numbers, dtype=np.float64).astype(np.float32)
    if not np.isfinite(values).all():
        raise _bad_vector(field, "has a number beyond the range of 32-bit floats")
    if not np.linalg.norm(values) > 0:
        raise _bad_vector(field, "is zero; it points nowhere")
    return values


def _bad_vector(field: str, what: str) -> Refusal:
    return Refusal(422, "bad_embedding", f"{field}: {what}", details={"field": field})
