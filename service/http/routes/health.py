"""Probes and numbers. Open to all, so that orchestrators and Prometheus need no key."""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotReady
from service.http.dependencies import EngineDep
from service.http.openapi import answers
from service.http.page import file_response, prefers_page
from service.http.responses import json_response
from service.http.schemas import StatusShown
from service.metrics import CONTENT_TYPE
from service.version import VERSION
from service.web.files import Console

router = APIRouter(tags=["health"])


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def about(request: Request) -> Response:
    """The console for browsers, a card for everybody else."""
    console = cast(Console | None, request.app.state.console)
    if console is not None and prefers_page(request):
        return file_response(request, console.page, vary="Accept, Accept-Encoding")
    card = {"name": "attune", "version": VERSION}
    if request.app.openapi_url is not None:
        card |= {"docs": "/docs", "openapi": "/openapi.json"}
    return json_response(card, headers={"Vary": "Accept"})


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Does the process answer?", responses=answers(StatusShown, "It does."))
async def livez() -> Response:
    return json_response({"status": "alive"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Does it answer queries?", responses=answers(StatusShown, "It does."))
async def readyz(engine: EngineDep) -> Response:
    """503 while the model loads and after the shutdown began."""
    return json_response({"status": "ready"})


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text format."}},
    response_class=Response,
)
async def metrics(request: Request) -> Response:
    engine = request.app.state.engine
    if engine is None:
        raise NotReady("the server is starting")
    engine.metrics.set_ready(engine.ready)
    return Response(engine.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
