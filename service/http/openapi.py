"""The documentation of bodies that the routes read themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http.classify_schemas import (
    ClassifyAnswerShown,
    ClassifyBody,
    ClassifyOptions,
    LineShown,
    LiveOptions,
    SampleBody,
)
from service.http.corruption_schemas import CorruptBody
from service.http.schemas import (
    CanariesBody,
    ErrorBody,
    ItemIds,
    ItemsBody,
    NewCalibration,
    NewGallery,
    NewSnapshot,
    RetrieveAnswerShown,
    RetrieveBody,
    RetrieveOptions,
    StreamConfiguration,
)

BODIES: tuple[type[BaseModel], ...] = (
    RetrieveBody,
    RetrieveOptions,
    ClassifyBody,
    ClassifyOptions,
    SampleBody,
    LineShown,
    NewGallery,
    NewCalibration,
    CanariesBody,
    ItemsBody,
    ItemIds,
    StreamConfiguration,
    NewSnapshot,
    CorruptBody,
)
_REF = "#/components/schemas/{model}"

ERROR_EXAMPLE = {
    "error": {
        "code": "queue_full",
        "message": "1024 queries are waiting already; come back in 2 s",
        "details": {"retry_after_s": 2.0},
    }
}
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {
        "model": ErrorBody,
        "description": text,
        "content": {"application/json": {"example": ERROR_EXAMPLE}},
    }
    for status, text in (
        ("4XX", "The request is refused; 429 carries Retry-After."),
        ("5XX", "The server cannot answer; 503 carries Retry-After."),
    )
}

RETRIEVE_EXAMPLES = {
    "text": {"summary": "one text", "value": {"queries": [{"text": "a red circle above a blue square"}]}},
    "batch": {
        "summary": "a batch of one stream, adapted to before the answer",
        "value": {
            "queries": [{"text": "a red circle"}, {"text": "two green triangles"}],
            "stream": "shop-7",
            "k": 5,
            "adapt": "sync",
            "filter": {"colour": {"in": ["red", "green"]}},
        },
    },
    "composed": {
        "summary": "a text and a picture together, in a gallery with a calibration",
        "value": {
            "queries": [{"text": "the same in blue", "image": "data:image/png;base64,iVBORw0KGgo..."}],
            "gallery": "products",
        },
    },
    "image": {
        "summary": "a picture as data URI",
        "value": {"queries": [{"image": "data:image/png;base64,iVBORw0KGgo..."}], "stream": "camera-3"},
    },
}
RETRIEVE_ANSWER_EXAMPLE = {
    "results": [
        {
            "hits": [
                {
                    "id": "scene-17",
                    "score": 0.8123,
                    "payload": {"caption": "a red circle"},
                    "preview": "/galleries/demo/previews/scene-17?v=7071c5598a1b",
                }
            ]
        }
    ],
    "adaptation": {
        "method": "tcr",
        "mode": "async",
        "direction": "text->image",
        "state_version": 3,
        "status": "queued",
        "reason": "",
        "batch_size": 1,
    },
    "timings_ms": {"wait": 0.4, "encode": 5.1, "search": 0.2, "adapt": 0.0, "total": 6.0},
    "gallery": "demo",
    "stream": "default",
}

_OBSERVED = {"observed": True, "confidence": 1.0}
_IMPUTED = {"observed": False, "confidence": 0.74}
COMPLETED_ANSWER_EXAMPLE = {
    **RETRIEVE_ANSWER_EXAMPLE,
    "results": [
        {
            "hits": [
                {
                    "id": "product-3",
                    "score": 0.8712,
                    "payload": {},
                    "parts": {"image": _OBSERVED, "text": _IMPUTED},
                }
            ],
            "query": {"parts": {"image": _IMPUTED, "text": _OBSERVED}, "novelty": 0.43},
        }
    ],
    "gallery": "products",
}

CLASSIFY_EXAMPLES = {
    "clip": {
        "summary": "a sound and a picture",
        "value": {
            "samples": {"id": "7", "audio": "UklGRi...", "image": "data:image/png;base64,iVBORw0KGgo..."}
        },
    },
    "batch": {
        "summary": "a batch of one stream, adapted to before the answer; the second has no picture",
        "value": {
            "samples": [{"audio": "UklGRi...", "image": "/9j/4AAQ..."}, {"audio": "UklGRi..."}],
            "stream": "door-2",
            "adapt": "sync",
            "top": 3,
        },
    },
    "zero-shot": {
        "summary": "a text by labels given as texts; pictures likewise",
        "value": {
            "samples": [{"text": "two red circles"}],
            "labels": ["circle", "square"],
            "template": "a picture of a {}",
        },
    },
}
CLASSIFY_ANSWER_EXAMPLE = {
    "results": [
        {
            "id": "7",
            "labels": [
                {"label": "phone ringing", "probability": 0.8123},
                {"label": "bell struck", "probability": 0.1011},
            ],
            "entropy_nats": 0.71,
            "missing": [],
            "completed_by": "",
        }
    ],
    "adaptation": {
        "method": "brimpr",
        "mode": "async",
        "direction": "audio+video->label",
        "state_version": 3,
        "status": "queued",
        "reason": "",
        "batch_size": 1,
    },
    "timings_ms": {"wait": 0.4, "encode": 21.5, "search": 0.0, "adapt": 0.0, "total": 22.3},
    "stream": "default",
    "model": "demo",
}
CORRUPT_EXAMPLE = {
    "corruption": "fog",
    "severity": 5,
    "seed": 7,
    "queries": [{"image": "data:image/png;base64,iVBORw0KGgo..."}],
}
LINE_EXAMPLE = (
    '{"index": 0, "labels": [{"label": "bell struck", "probability": 0.8}], "entropy_nats": 0.7, ...}\n'
    '{"index": 1, "error": {"code": "not_json", "message": "...", "details": {}}}\n'
)


def json_request(
    model: type[BaseModel], example: Mapping[str, Any], *, required: bool = True
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` as JSON."""
    content = {"application/json": {"schema": _reference(model), "example": example}}
    return {"requestBody": {"required": required, "content": content}}


def retrieve_request() -> dict[str, Any]:
    """`openapi_extra` of /retrieve: its three forms."""
    options = _option_fields()
    picture = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "image": {"type": "array", "items": picture, "description": "Pictures, one field each."},
            "text": {"type": "array", "items": {"type": "string"}, "description": "Texts, one field each."},
            **options,
        },
    }
    content: dict[str, Any] = {
        "application/json": {"schema": _reference(RetrieveBody), "examples": RETRIEVE_EXAMPLES},
        "multipart/form-data": {
            "schema": form,
            "examples": {
                "picture": {
                    "summary": "curl -F image=@photo.jpg -F k=5 URL/retrieve",
                    "value": {"image": ["(the file's bytes)"], "k": 5, "stream": "camera-3"},
                }
            },
        },
    }
    raw = {"schema": picture, "example": "(curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg')"}
    content |= {"image/*": raw, "application/octet-stream": raw}
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": f"For a raw picture or a form: {schema.get('description', '')}",
        }
        for name, schema in options.items()
    ]
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def classify_request() -> dict[str, Any]:
    """`openapi_extra` of /classify: its three forms over HTTP."""
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "audio": {"type": "array", "items": file, "description": "Sounds, one field each."},
            "image": {
                "type": "array",
                "items": file,
                "description": "Pictures; each goes with the sound beside it.",
            },
            "clip": {"type": "array", "items": file, "description": "Short videos, a sample each."},
            "text": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Texts, a sample each; only with labels.",
            },
            **_fields_of(ClassifyOptions),
        },
    }
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": f"For NDJSON, and for forms where they have it: {schema.get('description', '')}",
        }
        for name, schema in _fields_of(LiveOptions).items()
    ]
    content = {
        "application/json": {"schema": _reference(ClassifyBody), "examples": CLASSIFY_EXAMPLES},
        "multipart/form-data": {
            "schema": form,
            "examples": {
                "pair": {
                    "summary": "curl -F audio=@a.wav -F image=@a.png -F top=3 URL/classify",
                    "value": {"audio": ["(the file's bytes)"], "image": ["(the file's bytes)"], "top": 3},
                }
            },
        },
        "application/x-ndjson": {
            "schema": {
                "type": "string",
                "description": "One sample a line (SampleBody), as many as wanted. Answers come line by line "
                "(LineShown) while lines are still sent.",
            },
            "example": '{"audio": "UklGRi...", "image": "/9j/4AAQ..."}\n{"audio": "UklGRi..."}\n',
        },
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def json_or_bytes_request(
    model: type[BaseModel], example: Mapping[str, Any], description: str
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` as JSON, or a file."""
    body = json_request(model, example)
    body["requestBody"]["content"] |= bytes_request(description)["requestBody"]["content"]
    return body


def bytes_request(description: str) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is a file."""
    schema = {"type": "string", "format": "binary", "description": description}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": schema}},
        }
    }


def answers(model: type[BaseModel], description: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers with `model`."""
    entry: dict[str, Any] = {"model": model, "description": description}
    if model is RetrieveAnswerShown:
        examples = {
            "plain": {"summary": "hits", "value": RETRIEVE_ANSWER_EXAMPLE},
            "completed": {"summary": "of a gallery with a calibration", "value": COMPLETED_ANSWER_EXAMPLE},
        }
        entry["content"] = {"application/json": {"examples": examples}}
    if model is ClassifyAnswerShown:
        entry["content"] = {
            "application/json": {"example": CLASSIFY_ANSWER_EXAMPLE},
            "application/x-ndjson": {"schema": {"type": "string"}, "example": LINE_EXAMPLE},
        }
    return {status: entry}


def document(app: FastAPI) -> None:
    """Make `app.openapi()` know the bodies that FastAPI does not read."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for name, body in _body_schemas().items():
                components.setdefault(name, body)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _body_schemas() -> dict[str, Any]:
    _, shared = models_json_schema([(model, "validation") for model in BODIES], ref_template=_REF)
    definitions: dict[str, Any] = shared["$defs"]
    return definitions


def _option_fields() -> dict[str, Any]:
    """The options of /retrieve as they look in forms and URLs, where a filter is JSON text."""
    fields = _fields_of(RetrieveOptions)
    fields["filter"] = {"type": "string", "description": f"{fields['filter']['description']} As JSON."}
    return fields


def _fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `model` for a form or a URL, which has no null: a field is absent or has a value."""
    fields: dict[str, Any] = {}
    for name, field in model.model_json_schema(ref_template=_REF)["properties"].items():
        values = [choice for choice in field.get("anyOf", ()) if choice["type"] != "null"]
        fields[name] = values[0] | {"description": field["description"]} if values else field
    return fields


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
