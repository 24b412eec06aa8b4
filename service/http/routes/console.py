"""What the console is made of, and what it has to know of this server before it asks anything.

Open to all: none of it is a secret, and the page is where a key is typed in.
"""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFound
from service.http.corruptions import installed
from service.http.dependencies import SettingsDep
from service.http.errors import shorten
from service.http.openapi import answers
from service.http.page import file_response
from service.http.responses import json_response
from service.http.schemas import ConsoleConfigShown
from service.settings import Settings
from service.version import VERSION
from service.web.files import Console

router = APIRouter(tags=["console"])


@router.get(
    "/console/config",
    summary="What a page has to know of this server",
    responses=answers(ConsoleConfigShown, "Its limits, and whether it asks for keys."),
)
async def config(request: Request, settings: SettingsDep) -> Response:
    """404 `no_console` with `console = false`."""
    if not settings.console:
        raise NotFound("this server serves no console", code="no_console")
    return json_response(_config(settings), headers={"Cache-Control": "no-store"})


@router.head("/console/assets/{name}", include_in_schema=False)
@router.get("/console/assets/{name}", include_in_schema=False)
async def asset(request: Request, name: str) -> Response:
    console = cast(Console | None, request.app.state.console)
    file = None if console is None else console.assets.get(name)
    if file is None:
        raise NotFound(f"the console has no file {shorten(name, 80)!r}", code="unknown_asset")
    return file_response(request, file)


def _config(settings: Settings) -> dict[str, object]:
    return {
        "version": VERSION,
        "keys": {"admin": settings.admin_key is not None, "api": bool(settings.api_keys)},
        "default_gallery": settings.default_gallery,
        "preview_pixels": settings.preview_pixels,
        "demo": {"clips": settings.classifier == "demo"},
        "corruptions": installed(),
        "limits": {
            "queries": settings.max_queries_per_request,
            "items": settings.max_items_per_request,
            "k": settings.max_k,
            "text_characters": settings.max_text_characters,
            "image_bytes": settings.max_image_bytes,
            "image_pixels": settings.max_image_pixels,
            "body_bytes": settings.max_body_bytes,
            "snapshot_bytes": settings.max_snapshot_bytes,
            "audio_bytes": settings.max_audio_bytes,
            "audio_seconds": settings.max_audio_seconds,
            "labels": settings.max_labels,
            "batch_size": settings.batch_size,
        },
    }
