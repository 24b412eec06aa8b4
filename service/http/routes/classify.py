"""/classify: labels of sound and pictures, one request at a time or streaming."""

from __future__ import annotations

from contextlib import ExitStack
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from service.errors import ServiceError
from service.http.auth import CallerDep, caller_of, key_in_headers, refuse_foreign_socket
from service.http.bodies import media_type
from service.http.classify_queries import NDJSON, check_labels, options_of, read_classify
from service.http.classify_schemas import ClassifyAnswerShown, FirstMessage, LiveOptions
from service.http.classify_stream import LiveStream, OpenStreams, Served, error_body
from service.http.classify_transport import NdjsonAnswer, Socket, close_code, report
from service.http.dependencies import (
    DecodersDep,
    EngineDep,
    LimitsDep,
    SettingsDep,
    carrier,
    engine_of,
    note,
    unless_client_leaves,
)
from service.http.errors import Refusal, failure_of, internal
from service.http.openapi import answers, classify_request
from service.http.responses import classify_body, json_response
from service.http.samples import Decoder, decode_samples
from service.messages import ClassifyRequest
from service.settings import Settings

router = APIRouter(tags=["classify"])
KEY_WITHIN_S = 10.0
"""Seconds in which a WebSocket without a key in its headers must send one."""


@router.post(
    "/classify",
    summary="Classify sound and pictures, or anything by labels given as texts",
    responses=answers(ClassifyAnswerShown, "Labels in the order of the samples."),
    openapi_extra=classify_request(),
)
async def classify(
    request: Request,
    caller: CallerDep,
    engine: EngineDep,
    settings: SettingsDep,
    decoders: DecodersDep,
    limits: LimitsDep,
) -> Response:
    """Samples as JSON or as a form; or streaming, one sample a line, as NDJSON or over a WebSocket here.

    See docs/classify.md for streaming.
    """
    if media_type(request) in NDJSON:
        live = options_of(LiveOptions, request.query_params.multi_items(), settings)
        note(request, stream=live.stream, streamed=True)
        served = Served(settings, engine, decoders, limits, caller, carrier(request))
        return NdjsonAnswer(LiveStream(live, served), _streams(request), settings)
    asked = await read_classify(request, settings)
    options = asked.options
    note(request, stream=options.stream, queries=len(asked.samples))
    decoder = Decoder.of_request(options, settings, engine)
    if limits is not None:
        await limits.charge(
            caller=caller, stream=options.stream, queries=len(asked.samples), metrics=engine.metrics
        )
    wanted = ClassifyRequest(
        samples=await decode_samples(asked.samples, decoder, decoders),
        stream=options.stream,
        top=options.top,
        adapt=options.adapt,
        labels=None if options.labels is None else tuple(options.labels),
        template=options.template,
        deadline_ms=options.deadline_ms,
        trace=carrier(request),
    )
    answer = await unless_client_leaves(request, engine.classify(wanted))
    versions = [part.adaptation.state_version for part in answer.parts]
    note(
        request,
        state_version=versions[0],
        adaptation=answer.parts[0].adaptation.status,
        **({"state_versions": versions} if len(versions) > 1 else {}),
    )
    return json_response(classify_body(asked.ids, answer))


@router.websocket("/classify")
async def classify_live(websocket: WebSocket) -> None:
    """One sample a message; answers come as they are there."""
    settings = cast(Settings, websocket.app.state.settings)
    refuse_foreign_socket(websocket.headers, settings.websocket_origins)
    key = key_in_headers(websocket.headers)
    if key is not None:
        caller_of(websocket, settings, key)  # a wrong one is refused before anything is accepted
    engine_of(websocket)
    keyless = bool(settings.api_keys) and key is None
    with ExitStack() as place:
        place.enter_context(_streams(websocket).place(proved=not keyless))
        await websocket.accept()
        socket = Socket(websocket, settings)
        try:
            await _serve(websocket, socket, settings, key, place)
        except ServiceError as error:
            failure = failure_of(error) or internal("")
            note(websocket, code=failure.code)
            await socket.write(error_body(failure))
            await socket.close(close_code(error), failure.code)


async def _serve(
    websocket: WebSocket, socket: Socket, settings: Settings, key: str | None, place: ExitStack
) -> None:
    keyless = bool(settings.api_keys) and key is None
    idle_s = settings.classify_idle_timeout_s
    first, line = await socket.first(min(KEY_WITHIN_S, idle_s) if keyless else idle_s, _streams(websocket))
    caller = caller_of(websocket, settings, key if key is not None else first.key)
    if keyless:
        place.close()
        place.enter_context(_streams(websocket).place())
    options = _options(websocket, first, settings)
    note(websocket, stream=options.stream)
    state = websocket.app.state
    served = Served(settings, engine_of(websocket), state.decoders, state.limits, caller, carrier(websocket))
    stream = LiveStream(options, served)
    with _streams(websocket).stopped_by(stream.stop):
        try:
            await stream.run(socket.lines(line), socket.write, socket.watch())
        finally:
            note(websocket, **report(stream))
    ended = stream.ended_early
    await socket.close(close_code(ended), "" if ended is None else ended.code)


def _options(websocket: WebSocket, first: FirstMessage, settings: Settings) -> LiveOptions:
    """From the URL, or from the first message. Raises Refusal 422 for both."""
    if first.options is None:
        return options_of(LiveOptions, websocket.query_params.multi_items(), settings)
    if websocket.query_params:
        raise Refusal(422, "invalid_request", "options come in the URL or in the first message, not in both")
    check_labels(first.options, settings)
    return first.options


def _streams(connection: Request | WebSocket) -> OpenStreams:
    return cast(OpenStreams, connection.app.state.live_streams)
