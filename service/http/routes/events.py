"""What happens on the server, as server-sent events. Admin key where set."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from service.errors import Forbidden
from service.http.auth import Admin
from service.http.dependencies import EngineDep, SettingsDep, note
from service.http.events import Broadcaster, EventStream

router = APIRouter(prefix="/admin/events", tags=["streams"], dependencies=[Admin])
EXAMPLE = (
    "retry: 2000\n\n"
    'id: 1\nevent: server\ndata: {"at": 1767225600.1, "ready": true, "queue": {"items": 3}, '
    '"streams": 2, ...}\n\n'
    'id: 2\nevent: streams\ndata: {"at": 1767225600.1, "total": 2, "whole": true, "gone": [], '
    '"streams": [{"name": "shop-7", "version": 3, "waiting": 0, ...}]}\n\n'
)


@router.get(
    "",
    summary="Server and streams as they change",
    responses={
        200: {
            "description": "Server-sent events, without end: `server`, `streams`, `trouble`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": EXAMPLE}},
        }
    },
    response_class=Response,
)
async def events(
    request: Request,
    _engine: EngineDep,
    settings: SettingsDep,
    most: Annotated[int, Query(ge=1, le=1000, description="Streams that are shown: the last used.")] = 200,
) -> Response:
    """`streams` has the cards of the `most` last used streams at first (`whole`), then of those that have
    changed; `gone` names those that are not among them any more. See docs/operations.md."""
    if request.headers.get("sec-fetch-site") == "cross-site":  # it would take a place for nothing
        raise Forbidden("requests from web pages of other sites are refused")
    note(request, streamed=True)
    state = request.app.state
    return EventStream(
        cast(Broadcaster, state.events),
        state.live_streams,
        most=most,
        write_timeout_s=settings.classify_write_timeout_s,
    )
