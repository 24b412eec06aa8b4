"""What runs here: the encoder, the methods with their settings, the queue."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from service.http.auth import Key
from service.http.dependencies import EngineDep
from service.http.responses import json_response

router = APIRouter(tags=["models"])

_SHOWN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Encoder, methods with the schema of their settings, queue.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


@router.get("/models", summary="Encoder, methods and live numbers", dependencies=[Key], responses=_SHOWN)
async def models(engine: EngineDep) -> Response:
    return json_response(engine.describe_models())
