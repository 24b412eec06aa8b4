"""The one table from errors to HTTP, and the one body of every failure:

    {"error": {"code": "queue_full", "message": "...", "details": {...}}}

`code` is stable and for programs, `message` for people. Nothing that a client sent is repeated at length,
and nothing of the server's inside is told: what is in no table becomes 500 "internal".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.errors import ServiceError, status_and_code
from service.http.responses import json_response
from service.settings import GALLERY_NAME, STREAM_NAME

MAX_SCHEMA_ERRORS = 20
MAX_SHOWN_CHARACTERS = 200

BY_STATUS: Mapping[int, str] = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "unknown_route",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
}

NAME_RULES: Mapping[str, str] = {
    GALLERY_NAME: "a name has lower-case letters, digits, '.', '_' and '-', starts with a letter or digit "
    "and holds no '..'",
    STREAM_NAME: "a name has letters, digits, '.', '_' and '-', starts with a letter or digit "
    "and holds no '..'",
}
"""Patterns in words."""


class Refusal(ServiceError):
    """A request that the HTTP layer itself turns down."""

    def __init__(self, status: int, code: str, message: str, *, details: Mapping[str, Any] | None = None):
        super().__init__(message, code=code, details=details)
        self.status = status


@dataclass(frozen=True)
class Failure:
    """A failure as it goes over the wire."""

    status: int
    code: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        error = {"code": self.code, "message": self.message, "details": self.details}
        return json_response({"error": error}, status=self.status, headers=self.headers)


def failure_of(error: BaseException) -> Failure | None:
    """The failure that stands for `error`; None for errors that nobody raises on purpose."""
    if isinstance(error, RequestValidationError | ValidationError):
        return _of_service_error(invalid(error.errors()))
    if isinstance(error, ServiceError):
        return _of_service_error(error)
    if isinstance(error, HTTPException):
        return _of_http_exception(error)
    status, code = status_and_code(error)
    return None if code == "internal" else Failure(status, code, str(error))


def internal(request_id: str) -> Failure:
    """What a client learns of an unexpected error: the id under which the log has the rest."""
    return Failure(
        500,
        "internal",
        "an unexpected error happened in the server; its log has more under this request id",
        {"request_id": request_id},
    )


async def respond(request: Request, error: Exception) -> Response:
    """The handler for what the framework itself raises; all other errors reach the middleware."""
    failure = failure_of(error) or internal("")
    if failure.code == "unknown_route":
        failure = replace(failure, message=f"there is no {shorten(request.url.path)}; see /docs")
    request.scope.setdefault("attune", {})["code"] = failure.code
    return failure.response()


def invalid(mistakes: Iterable[Mapping[str, Any]]) -> Refusal:
    """Schema errors of pydantic as one refusal: 400 for what is no JSON, else 422 with the fields."""
    listed = [_schema_error(mistake) for mistake in mistakes]
    first = listed[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "not_json", f"the body is not valid JSON: {first['message']}")
    more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
    message = f"{first['field']}: {first['message']}{more}" if first["field"] else f"{first['message']}{more}"
    return Refusal(422, "invalid_request", message, details={"errors": listed[:MAX_SCHEMA_ERRORS]})


def shorten(text: str, characters: int = MAX_SHOWN_CHARACTERS) -> str:
    """`text`, cut where it would fill a log or a screen."""
    return text if len(text) <= characters else f"{text[:characters]}..."


def _schema_error(mistake: Mapping[str, Any]) -> dict[str, str]:
    message = str(mistake["msg"]).removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    if mistake["type"] == "string_pattern_mismatch":
        message = NAME_RULES.get(mistake["ctx"]["pattern"], message)
    return {
        "field": field_path(mistake["loc"]),
        "message": shorten(message),
        "type": str(mistake["type"]),
    }


def field_path(location: Iterable[str | int]) -> str:
    """("queries", 3, "text") -> "queries[3].text"."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{shorten(part, 60)}" if path else shorten(part, 60)
    return path


def _of_service_error(error: ServiceError) -> Failure:
    seconds = getattr(error, "retry_after_s", None)
    headers = {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Failure(error.status, error.code, str(error), error.details, headers)


def _of_http_exception(error: HTTPException) -> Failure:
    code = BY_STATUS.get(error.status_code, "http_error")
    headers = dict(error.headers or {})
    message = str(error.detail)
    if error.status_code == 405:
        message = f"this route does not answer that method, only {headers.get('Allow', 'others')}"
    return Failure(error.status_code, code, shorten(message), {}, headers)
