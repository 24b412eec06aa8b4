"""Calibrations: what completes queries, items and samples that lack a modality. Admin key where set."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from service.http.auth import Admin
from service.http.bodies import is_json, media_type, parse_json, read_bytes, unsupported
from service.http.dependencies import EngineDep, SettingsDep, note
from service.http.engine import Card, Engine
from service.http.errors import Refusal
from service.http.openapi import answers, json_or_bytes_request
from service.http.responses import json_response, no_content
from service.http.schemas import CalibrationPath, CalibrationShown, CalibrationsShown, NewCalibration
from service.settings import STREAM_NAME, Settings

router = APIRouter(prefix="/admin/calibrations", tags=["calibrations"], dependencies=[Admin])
FILE = "application/octet-stream"


@router.get(
    "", summary="All calibrations", responses=answers(CalibrationsShown, "Those with the weights first.")
)
async def list_calibrations(engine: EngineDep) -> Response:
    return json_response({"calibrations": await engine.list_calibrations()})


@router.post(
    "",
    summary="Make a calibration from a gallery, or send one",
    status_code=201,
    responses=answers(CalibrationShown, "The calibration.", 201),
    openapi_extra=json_or_bytes_request(
        NewCalibration,
        {"name": "products", "gallery": "products"},
        "A file made by `attune calibrate` or by export; `name` in the URL.",
    ),
)
async def create_calibration(
    engine: EngineDep,
    settings: SettingsDep,
    request: Request,
    name: Annotated[
        str | None, Query(min_length=1, max_length=64, pattern=STREAM_NAME, description="Of a file.")
    ] = None,
) -> Response:
    """As JSON: fitted to the items of a gallery that have a picture and a text. As bytes: a file."""
    kind = media_type(request)
    if kind == FILE:
        card = await _sent(request, engine, settings, name)
    elif not is_json(kind):
        raise unsupported(kind, f"application/json or {FILE}")
    elif name is not None:
        raise Refusal(422, "invalid_request", "a name in the URL is for a file; JSON has its own")
    else:
        card = await _fitted(request, engine, settings)
    return json_response(card, status=201)


async def _sent(request: Request, engine: Engine, settings: Settings, name: str | None) -> Card:
    if name is None:
        raise Refusal(422, "invalid_request", "a file needs a name: ?name=NAME")
    note(request, calibration=name)
    data = await read_bytes(request, settings.max_calibration_bytes)
    if not data:
        raise Refusal(422, "invalid_request", "the body is empty; it should be a calibration file")
    return await engine.put_calibration(name, data)


async def _fitted(request: Request, engine: Engine, settings: Settings) -> Card:
    asked = parse_json(NewCalibration, await read_bytes(request, settings.max_body_bytes))
    note(request, calibration=asked.name, gallery=asked.gallery)
    most = settings.max_calibration_samples
    if asked.samples > most:
        message = f"samples: at most {most} on this server, got {asked.samples}"
        raise Refusal(422, "invalid_request", message, details={"max_samples": most})
    return await engine.fit_calibration(asked.name, asked.gallery, asked.latent, asked.samples)


@router.get(
    "/{calibration}",
    summary="One calibration",
    responses=answers(CalibrationShown, "With the galleries that need it."),
)
async def describe_calibration(calibration: CalibrationPath, engine: EngineDep) -> Response:
    return json_response(await engine.describe_calibration(calibration))


@router.get(
    "/{calibration}/export",
    summary="A calibration as a file",
    responses={200: {"content": {FILE: {}}, "description": "One safetensors file."}},
    response_class=Response,
)
async def export_calibration(calibration: CalibrationPath, engine: EngineDep) -> Response:
    data = await engine.export_calibration(calibration)
    # The name matches STREAM_NAME, so it needs no quoting in a header.
    disposition = f'attachment; filename="{calibration}.safetensors"'
    return Response(data, media_type=FILE, headers={"Content-Disposition": disposition})


@router.delete("/{calibration}", summary="Delete a calibration", status_code=204)
async def delete_calibration(calibration: CalibrationPath, engine: EngineDep) -> Response:
    """Refused while a gallery needs it. Streams keep what they have of it."""
    await engine.delete_calibration(calibration)
    return no_content()
