"""Bodies in: the size is limited while reading, the content type is checked, JSON is parsed once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Depends
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Message

from service.errors import TooLarge
from service.http.dependencies import SettingsDep
from service.http.errors import Refusal, invalid, shorten

Model = TypeVar("Model", bound=BaseModel)


def json_body(model: type[Model], *, empty_is: Model | None = None) -> Any:
    """A dependency that reads the request's JSON body as `model`; no body at all is `empty_is` where given.

    Raises:
        TooLarge, Refusal: 413 too many bytes, 415 another content type, 400 no JSON, 422 against the schema.
    """

    async def read(request: Request, settings: SettingsDep) -> Model:
        data = await read_bytes(request, settings.max_body_bytes)
        if not data and empty_is is not None:
            return empty_is
        require_json(request)
        return parse_json(model, data)

    return Depends(read)


def media_type(request: Request) -> str:
    """The content type without its parameters, in lower case; "" if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def require_json(request: Request) -> None:
    """Raises Refusal 415 unless the body is announced as JSON."""
    kind = media_type(request)
    if not is_json(kind):
        raise unsupported(kind, "application/json")


def unsupported(kind: str, accepted: str) -> Refusal:
    sent = f"the content type is {shorten(kind, 80)!r}" if kind else "there is no Content-Type header"
    return Refusal(415, "unsupported_media_type", f"{sent}; this route takes {accepted}")


def parse_json(model: type[Model], data: bytes) -> Model:
    """`data` as `model`, without guessing types ("5" is no number). Raises Refusal 400 or 422."""
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_url=False)) from None


def parse_fields(model: type[Model], fields: dict[str, Any]) -> Model:
    """Values that arrive as text (forms, URLs) as `model`. Raises Refusal 422."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_url=False)) from None


async def read_bytes(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be longer."""
    return await limited(request, limit_bytes).body()


def limited(request: Request, limit_bytes: int) -> Request:
    """The same request, whose body stops with TooLarge at `limit_bytes`, announced or not."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit_bytes:
        raise _too_large(limit_bytes)
    return Request(request.scope, _counting(request.receive, limit_bytes))


def _counting(
    receive: Callable[[], Awaitable[Message]], limit_bytes: int
) -> Callable[[], Awaitable[Message]]:
    seen = 0

    async def receive_counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit_bytes:
            raise _too_large(limit_bytes)
        return message

    return receive_counted


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than the {limit_bytes} bytes that are accepted",
        details={"max_bytes": limit_bytes},
    )
