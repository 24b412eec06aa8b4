"""Streams and their snapshots: what was learnt, and how to keep, move and drop it. Admin key where set."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from service.http.auth import Admin
from service.http.bodies import json_body, media_type, read_bytes, unsupported
from service.http.dependencies import EngineDep, SettingsDep, note
from service.http.engine import Card
from service.http.errors import Refusal
from service.http.openapi import answers, bytes_request, json_request
from service.http.responses import json_response, no_content
from service.http.schemas import (
    ComparisonShown,
    HistoryShown,
    NewSnapshot,
    SnapshotPath,
    SnapshotShown,
    SnapshotsShown,
    StreamConfiguration,
    StreamPath,
    StreamShown,
    StreamsShown,
)
from service.settings import STREAM_NAME

router = APIRouter(prefix="/admin/streams", tags=["streams"], dependencies=[Admin])


def _answer(request: Request, card: Card, status: int = 200) -> Response:
    """`card` of a stream or a snapshot; its version goes into the log."""
    note(request, state_version=card.get("version"))
    return json_response(card, status=status)


@router.get("", summary="All streams", responses=answers(StreamsShown, "In memory and on disk."))
async def list_streams(engine: EngineDep) -> Response:
    return json_response({"streams": await engine.list_streams()})


@router.get("/{stream}", summary="One stream", responses=answers(StreamShown, "With its tracks and drift."))
async def describe_stream(stream: StreamPath, engine: EngineDep, request: Request) -> Response:
    return _answer(request, await engine.describe_stream(stream))


@router.get(
    "/{stream}/history",
    summary="What the last batches of a stream came to",
    responses=answers(HistoryShown, "Columns by track, oldest first."),
)
async def stream_history(stream: StreamPath, engine: EngineDep) -> Response:
    return json_response(await engine.stream_history(stream))


@router.put(
    "/{stream}",
    summary="Set a stream's method, guard, calibration, and whether it is pinned",
    responses=answers(StreamShown, "The stream; `reset` says whether its states were dropped."),
    openapi_extra=json_request(StreamConfiguration, {"method": "tcr", "settings": {"steps": 3}}),
)
async def configure_stream(
    stream: StreamPath,
    body: Annotated[StreamConfiguration, json_body(StreamConfiguration)],
    engine: EngineDep,
    request: Request,
) -> Response:
    return _answer(
        request,
        await engine.configure_stream(
            stream,
            body.method,
            body.settings,
            body.pinned,
            body.guard,
            task=body.task,
            calibration=body.calibration,
        ),
    )


@router.delete("/{stream}", summary="Delete a stream", status_code=204)
async def delete_stream(
    stream: StreamPath,
    engine: EngineDep,
    force: Annotated[bool, Query(description="Delete its snapshots too; else they refuse it.")] = False,
) -> Response:
    await engine.delete_stream(stream, force=force)
    return no_content()


@router.post(
    "/{stream}/reset", summary="Back to the source model", responses=answers(StreamShown, "The stream.")
)
async def reset_stream(stream: StreamPath, engine: EngineDep, request: Request) -> Response:
    return _answer(request, await engine.reset_stream(stream))


@router.get(
    "/{stream}/snapshots", summary="A stream's snapshots", responses=answers(SnapshotsShown, "Oldest first.")
)
async def list_snapshots(stream: StreamPath, engine: EngineDep) -> Response:
    return json_response({"snapshots": await engine.list_snapshots(stream)})


@router.post(
    "/{stream}/snapshots",
    summary="Take a snapshot",
    status_code=201,
    responses=answers(SnapshotShown, "The snapshot.", 201),
    openapi_extra=json_request(
        NewSnapshot, {"name": "before", "note": "before the new cameras"}, required=False
    ),
)
async def create_snapshot(
    stream: StreamPath,
    body: Annotated[NewSnapshot, json_body(NewSnapshot, empty_is=NewSnapshot())],
    engine: EngineDep,
    request: Request,
) -> Response:
    return _answer(request, await engine.create_snapshot(stream, body.name, body.note), 201)


# Before the routes with a snapshot's name in this place, which would take "import" for one.
@router.post(
    "/{stream}/snapshots/import",
    summary="Import a snapshot file",
    status_code=201,
    responses=answers(SnapshotShown, "The snapshot; restore it to use it.", 201),
    openapi_extra=bytes_request("A file made by export."),
)
async def import_snapshot(
    stream: StreamPath,
    engine: EngineDep,
    settings: SettingsDep,
    request: Request,
    name: Annotated[
        str | None,
        Query(min_length=1, max_length=64, pattern=STREAM_NAME, description="None: the name in the file."),
    ] = None,
) -> Response:
    if media_type(request) != "application/octet-stream":
        raise unsupported(media_type(request), "application/octet-stream")
    data = await read_bytes(request, settings.max_snapshot_bytes)
    if not data:
        raise Refusal(422, "invalid_request", "the body is empty; it should be a snapshot file")
    return _answer(request, await engine.import_snapshot(stream, name, data), 201)


@router.post(
    "/{stream}/snapshots/{snapshot}/restore",
    summary="Restore a snapshot",
    responses=answers(StreamShown, "The stream, as it was then."),
)
async def restore_snapshot(
    stream: StreamPath, snapshot: SnapshotPath, engine: EngineDep, request: Request
) -> Response:
    return _answer(request, await engine.restore_snapshot(stream, snapshot))


@router.get(
    "/{stream}/snapshots/{snapshot}/compare",
    summary="What a snapshot and another one, or the stream, differ by",
    responses=answers(ComparisonShown, "Both sides, and their tracks by name."),
)
async def compare_snapshots(
    stream: StreamPath,
    snapshot: SnapshotPath,
    engine: EngineDep,
    other: Annotated[
        str | None,
        Query(
            alias="with",
            min_length=1,
            max_length=64,
            pattern=STREAM_NAME,
            description="The other snapshot. None: the stream as it is.",
        ),
    ] = None,
) -> Response:
    return json_response(await engine.compare_snapshots(stream, snapshot, other))


@router.delete("/{stream}/snapshots/{snapshot}", summary="Delete a snapshot", status_code=204)
async def delete_snapshot(stream: StreamPath, snapshot: SnapshotPath, engine: EngineDep) -> Response:
    await engine.delete_snapshot(stream, snapshot)
    return no_content()


@router.get(
    "/{stream}/snapshots/{snapshot}/export",
    summary="A snapshot as a file",
    responses={200: {"content": {"application/octet-stream": {}}, "description": "One safetensors file."}},
    response_class=Response,
)
async def export_snapshot(stream: StreamPath, snapshot: SnapshotPath, engine: EngineDep) -> Response:
    data = await engine.export_snapshot(stream, snapshot)
    # Both names match STREAM_NAME, so they need no quoting in a header.
    disposition = f'attachment; filename="{stream}-{snapshot}.attune"'
    return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": disposition})
