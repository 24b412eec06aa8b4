"""What the benchmarks do to queries, for whoever wants to see a stream drift."""

from __future__ import annotations

from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from service.http.auth import CallerDep, Key
from service.http.bodies import json_body
from service.http.corruption_schemas import CorruptBody, CorruptedShown, CorruptionsShown
from service.http.corruptions import Corruption, catalogue, corrupt_all, require_installed
from service.http.dependencies import (
    DecodersDep,
    EngineDep,
    LimitsDep,
    SettingsDep,
    note,
    unless_client_leaves,
)
from service.http.openapi import CORRUPT_EXAMPLE, answers, json_request
from service.http.responses import json_response

router = APIRouter(tags=["corruptions"], dependencies=[Depends(require_installed)])


@router.get(
    "/corruptions",
    summary="List corruptions of pictures, texts and sounds",
    dependencies=[Key],
    responses=answers(CorruptionsShown, "Names in the order of the benchmarks."),
)
async def list_corruptions() -> Response:
    """404 `no_corruptions` where the installation lacks them. docs/corruptions.md describes them all."""
    return json_response(await to_thread.run_sync(catalogue))


@router.post(
    "/corruptions",
    summary="Corrupt queries",
    responses=answers(CorruptedShown, "The queries, corrupted, in their order."),
    openapi_extra=json_request(CorruptBody, CORRUPT_EXAMPLE),
)
async def corrupt(
    caller: CallerDep,  # before the body, which nobody sends without a key
    body: Annotated[CorruptBody, json_body(CorruptBody)],
    request: Request,
    engine: EngineDep,
    settings: SettingsDep,
    decoders: DecodersDep,
    limits: LimitsDep,
) -> Response:
    """All of one modality. Pictures come back as PNG, at most 512 pixels long; sounds as WAV, mono."""
    corruption = await to_thread.run_sync(Corruption.of_request, body, settings)
    note(request, queries=len(body.queries))
    if limits is not None:
        await limits.charge(caller=caller, stream=None, queries=len(body.queries), metrics=engine.metrics)
    share: CapacityLimiter = request.app.state.corruptors
    made = await unless_client_leaves(request, corrupt_all(corruption, body.queries, decoders, share))
    return json_response(
        {
            "corruption": corruption.name,
            "severity": corruption.severity,
            "seed": corruption.seed,
            "queries": made,
        }
    )
