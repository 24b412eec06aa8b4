"""POST /retrieve: search, and what was learnt on the way."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.http.auth import CallerDep
from service.http.dependencies import (
    DecodersDep,
    EngineDep,
    LimitsDep,
    SettingsDep,
    carrier,
    note,
    unless_client_leaves,
)
from service.http.openapi import answers, retrieve_request
from service.http.queries import decode_queries, read_retrieve
from service.http.responses import answer_body, json_response
from service.http.schemas import RetrieveAnswerShown
from service.messages import RetrieveRequest

router = APIRouter(tags=["retrieve"])


@router.post(
    "/retrieve",
    summary="Search a gallery by texts, pictures or embeddings",
    responses=answers(RetrieveAnswerShown, "Hits in the order of the queries."),
    openapi_extra=retrieve_request(),
)
async def retrieve(
    request: Request,
    caller: CallerDep,
    engine: EngineDep,
    settings: SettingsDep,
    decoders: DecodersDep,
    limits: LimitsDep,
) -> Response:
    """Queries as JSON, as a form with pictures, or one picture as the body with the options in the URL."""
    raw, options = await read_retrieve(request, settings)
    note(request, stream=options.stream, gallery=options.gallery, queries=len(raw))
    if limits is not None:
        await limits.charge(caller=caller, stream=options.stream, queries=len(raw), metrics=engine.metrics)
    asked = RetrieveRequest(
        queries=await decode_queries(raw, settings, engine, decoders),
        gallery=options.gallery,
        stream=options.stream,
        k=options.k,
        target=options.target,
        adapt=options.adapt,
        filter=options.filter,
        deadline_ms=options.deadline_ms,
        trace=carrier(request),
    )
    answer = await unless_client_leaves(request, engine.retrieve(asked))
    versions = [part.adaptation.state_version for part in answer.parts]
    note(
        request,
        gallery=answer.gallery,
        state_version=versions[0],
        adaptation=answer.parts[0].adaptation.status,
        **({"state_versions": versions} if len(versions) > 1 else {}),
    )
    return json_response(answer_body(answer))
