"""From a request to /classify, as JSON or as a form, to samples and options; and options out of a URL.

application/json       {"samples": [...], options}
multipart/form-data    fields audio, image, clip (files) and text, in order; the options as fields

In a form `audio` and `image` pair up: either begins the next sample where the present one has such a field
already. `clip` and `text` are a sample each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

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
from service.http.classify_schemas import ClassifyBody, ClassifyOptions, SampleBody
from service.http.errors import Refusal
from service.http.samples import Content, RawSample
from service.settings import Settings

NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
ACCEPTED = "application/json, multipart/form-data or application/x-ndjson"
_FILES = frozenset({"audio", "image", "clip"})
_PAIRED = frozenset({"audio", "image"})

Options = TypeVar("Options", bound=ClassifyOptions)


@dataclass(frozen=True)
class Asked:
    """A request as it was sent; `ids` as the samples had them."""

    samples: Sequence[RawSample]
    ids: Sequence[str | None]
    options: ClassifyOptions


async def read_classify(request: Request, settings: Settings) -> Asked:
    """Read the body whole. Raises TooLarge, Refusal (400, 413, 415, 422)."""
    kind = media_type(request)
    if is_json(kind):
        asked = await _of_json(request, settings)
    elif kind == "multipart/form-data":
        asked = await _of_form(request, settings)
    else:
        raise unsupported(kind, ACCEPTED)
    if len(asked.samples) > settings.max_queries_per_request:
        raise TooLarge(
            f"the request has {len(asked.samples)} samples; the server takes "
            f"{settings.max_queries_per_request}",
            details={"max_samples": settings.max_queries_per_request},
        )
    return asked


async def _of_json(request: Request, settings: Settings) -> Asked:
    if request.query_params:
        raise Refusal(422, "invalid_request", "with a JSON body the options belong into it, not into the URL")
    body = parse_json(ClassifyBody, await read_bytes(request, settings.max_body_bytes))
    samples = [RawSample.of_body(f"samples[{i}]", sample) for i, sample in enumerate(body.samples)]
    check_labels(body, settings)
    return Asked(samples, [sample.id for sample in body.samples], body)


async def _of_form(request: Request, settings: Settings) -> Asked:
    most = 2 * settings.max_queries_per_request + 1
    samples: list[RawSample] = []
    fields: list[tuple[str, str]] = list(request.query_params.multi_items())
    parts = limited(request, settings.max_body_bytes).form(
        max_files=most, max_fields=most + settings.max_labels + 32, max_part_size=settings.max_body_bytes
    )
    async with parts as form:
        for name, value in form.multi_items():
            if name in _FILES:
                content = await value.read() if isinstance(value, UploadFile) else value
                _add(samples, name, content)
            elif isinstance(value, UploadFile):
                raise Refusal(422, "invalid_request", "files are sent as the fields audio, image or clip")
            elif name == "text":
                text = parse_fields(SampleBody, {"text": value}).text
                samples.append(RawSample(f"samples[{len(samples)}]", text=text))
            else:
                fields.append((name, value))
    if not samples:
        raise Refusal(
            422, "invalid_request", "the form has no sample: send a field audio, image, clip or text"
        )
    return Asked(samples, [None] * len(samples), options_of(ClassifyOptions, fields, settings))


def _add(samples: list[RawSample], name: str, content: Content) -> None:
    """Put a file where it belongs: beside the other one of its pair, or into a sample of its own."""
    file: dict[str, Any] = {name: content}
    last = set(samples[-1].given) if samples else set()
    if name in _PAIRED and last == _PAIRED - {name}:
        samples[-1] = replace(samples[-1], **file)
    else:
        samples.append(replace(RawSample(f"samples[{len(samples)}]"), **file))


def options_of(model: type[Options], fields: Iterable[tuple[str, str]], settings: Settings) -> Options:
    """Options that arrive as text; `labels` is repeated, once a label. Raises Refusal 422, TooLarge."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name == "labels":
            values.setdefault("labels", []).append(value)
        elif name in values:
            raise Refusal(422, "invalid_request", f"{name[:60]}: given twice")
        else:
            values[name] = value
    options = parse_fields(model, values)
    check_labels(options, settings)
    return options


def check_labels(options: ClassifyOptions, settings: Settings) -> None:
    """Raises TooLarge for more labels than the server takes."""
    if options.labels is not None and len(options.labels) > settings.max_labels:
        raise TooLarge(
            f"labels: there are {len(options.labels)}; the server takes {settings.max_labels}",
            details={"max_labels": settings.max_labels},
        )
