"""/classify while it streams: NDJSON both ways over one request."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from structlog.testing import capture_logs

from service.errors import NotReady, QueueFull
from service.http.app import create_app
from service.http.classify_stream import LineSplitter
from service.http.samples import Decoder, RawSample
from service.messages import Sample
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.live import Ndjson
from tests.service.http.pictures import encoded, png
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio
PICTURE = {"image": encoded(png())}


@pytest.fixture
def app(settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(settings, engine)


def sizes(engine: FakeEngine) -> list[int]:
    return [len(request.samples) for request in engine.classified]


def codes(lines: list[dict[str, Any]]) -> list[str]:
    """Of each line its error's code, or "" for an answer."""
    return [line["error"]["code"] if "error" in line else "" for line in lines]


async def until(met: Any) -> None:
    """Let the application go on until `met()`."""
    async with asyncio.timeout(20):
        while not met():
            await asyncio.sleep(0)


async def test_answers_flow_while_samples_still_arrive(app: FastAPI) -> None:
    async with Ndjson(app) as client:
        client.send(PICTURE | {"id": "a"})
        first = await client.line()
        assert (first["index"], first["id"], first["missing"]) == (0, "a", ["audio"])
        assert (first["completed_by"], first["novelty"]) == ("imputation", 0.75)
        assert first["parts"]["fused"] == {"observed": False, "confidence": 0.4}
        assert first["labels"][0] == {"label": "bell", "probability": 0.5}
        assert first["adaptation"]["direction"] == "audio+video->label"
        assert set(first["timings_ms"]) == {"wait", "encode", "search", "adapt", "total"}
        client.send(PICTURE)
        second = await client.line()
        assert (second["index"], second["labels"][0]["label"]) == (1, "bird")
        assert "id" not in second
        client.finish()
        assert await client.line() == {}


async def test_response_says_what_it_is_and_that_it_ends_the_connection(app: FastAPI) -> None:
    async with Ndjson(app) as client:
        start = await client.message()
        headers = dict(start["headers"])
        assert headers[b"content-type"] == b"application/x-ndjson"
        assert headers[b"connection"] == b"close"
        assert b"content-length" not in headers
        client.finish()


async def test_body_is_asked_for_before_the_response_begins(app: FastAPI) -> None:
    """A server says "100 Continue" when the body is asked for, and no longer once the response has begun."""
    began: list[str] = []
    async with Ndjson(app) as client:
        receive, send = client._receive, client._send

        async def noting_receive() -> Any:
            began.append("receive")
            return await receive()

        async def noting_send(message: Any) -> None:
            began.append(message["type"])
            await send(message)

        client._receive, client._send = noting_receive, noting_send  # type: ignore[method-assign]
        assert await client.started() == 200
        client.finish()
    assert began[:2] == ["receive", "http.response.start"]


async def test_order_is_kept_when_a_later_line_is_ready_first(
    app: FastAPI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_is_done = threading.Event()
    decode = Decoder.decode

    def slow_at_first(self: Decoder, raw: RawSample) -> Sample:
        if raw.image == "first":
            assert second_is_done.wait(20)
            return Sample(text="first")
        second_is_done.set()
        return decode(self, raw)

    monkeypatch.setattr(Decoder, "decode", slow_at_first)
    async with Ndjson(app) as client:
        client.send({"image": "first"}, PICTURE)
        client.finish()
        assert [line["index"] for line in await client.rest()] == [0, 1]
    assert [sample.text for request in engine.classified for sample in request.samples] == ["first", None]


async def test_bad_lines_fail_in_their_place_and_the_stream_goes_on(app: FastAPI) -> None:
    bad: list[Any] = [
        b"{",
        b"\xff\xfe",
        [],
        {"id": "only"},
        {"image": "@@@"},
        {"image": encoded(b"no picture")},
        {"text": "words"},
        PICTURE | {"labels": ["a", "b"]},
        {"options": {"top": 1}},
        PICTURE | {"colour": 1},
        b'{"fbank": [[NaN]]}',
    ]
    async with Ndjson(app) as client:
        for line in bad:
            client.send(PICTURE, line)
        client.send(PICTURE)
        client.finish()
        lines = await client.rest()
    assert [line["index"] for line in lines] == list(range(2 * len(bad) + 1))
    assert codes(lines)[::2] == [""] * (len(bad) + 1)
    assert codes(lines)[1::2] == [
        "not_json",
        "not_json",
        "invalid_request",
        "invalid_request",
        "bad_image",
        "bad_image",
        "unsupported_modality",
        "options_fixed",
        "options_fixed",
        "invalid_request",
        "invalid_request",
    ]
    for line in lines[1::2]:
        assert set(line) == {"index", "error"}
        assert set(line["error"]) == {"code", "message", "details"}


async def test_blank_lines_are_passed_over_and_the_last_needs_no_line_break(app: FastAPI) -> None:
    async with Ndjson(app) as client:
        client.send(b"", b"  \r", PICTURE, b"")
        client.send_part(b'{"image": ')
        client.send_part(b'"@"}')
        client.finish()
        lines = await client.rest()
    assert [(line["index"], code) for line, code in zip(lines, codes(lines), strict=True)] == [
        (0, ""),
        (1, "bad_image"),
    ]


async def test_many_lines_in_one_piece_and_one_line_in_many(app: FastAPI) -> None:
    whole = b'{"image": "%s"}\n' % PICTURE["image"].encode()
    async with Ndjson(app) as client:
        client.send_part(whole * 5)
        for i in range(len(whole)):
            client.send_part(whole[i : i + 1])
        client.finish()
        assert codes(await client.rest()) == [""] * 6


async def test_end_can_be_said_while_the_body_stays_open(app: FastAPI) -> None:
    async with Ndjson(app) as client:
        client.send(PICTURE, {"end": True})
        assert codes(await client.rest()) == [""]


class TestShortLines:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(classify_line_bytes=1024)

    async def test_line_over_the_limit_fails_alone(self, app: FastAPI) -> None:
        async with Ndjson(app) as client:
            client.send(PICTURE)
            for _ in range(100):
                client.send_part(b"x" * 1000)
            client.send_part(b"\n")
            client.send(PICTURE)
            client.finish()
            lines = await client.rest()
        assert codes(lines) == ["", "too_large", ""]
        assert lines[1]["error"]["details"] == {"max_bytes": 1024}

    async def test_all_lines_together_may_be_longer(self, app: FastAPI) -> None:
        async with Ndjson(app) as client:
            client.send(*[PICTURE] * 30)
            client.finish()
            assert codes(await client.rest()) == [""] * 30


def test_line_over_the_limit_is_not_held() -> None:
    splitter = LineSplitter(1000)
    piece = bytes(50_000)
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert list(splitter.feed(piece)) == []
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert list(splitter.feed(b"\nshort\nbegun")) == [None, b"short"]
    assert splitter.begun
    assert list(splitter.rest()) == [b"begun"]


@pytest.mark.parametrize("settings", [Settings(classify_window_items=3)])
async def test_no_more_is_read_than_the_window_holds(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    async with Ndjson(app) as client:
        client.send(*[PICTURE] * 50)
        client.finish()
        await until(lambda: len(engine.classified) == 1)
        for _ in range(100):
            await asyncio.sleep(0)
        # Three in the window, one in the reader's hand, one fetched ahead, one waiting to be put there.
        assert client.taken <= 6
        engine.waits.set()
        assert len(await client.rest()) == 50


@pytest.mark.parametrize("settings", [Settings(classify_window_items=3)])
async def test_nothing_more_is_read_while_the_client_does_not_read(app: FastAPI) -> None:
    async with Ndjson(app) as client:
        assert await client.started() == 200
        client.reading.clear()
        client.send(*[PICTURE] * 50)
        client.finish()
        await until(lambda: client.taken >= 3)
        for _ in range(100):
            await asyncio.sleep(0)
        assert client.taken <= 6
        client.reading.set()
        assert len(await client.rest()) == 50


@pytest.mark.parametrize("settings", [Settings(classify_write_timeout_s=0.05)])
async def test_client_that_stops_reading_is_given_up(app: FastAPI, engine: FakeEngine) -> None:
    with capture_logs() as logs:
        async with Ndjson(app) as client:
            assert await client.started() == 200
            client.reading.clear()
            client.send(PICTURE, PICTURE)
            await client.ended()
    assert app.state.live_streams.count == 0
    assert [line["status"] for line in logs] == [499]


@pytest.mark.parametrize("settings", [Settings(classify_line_timeout_s=0.05)])
async def test_line_that_is_not_whole_in_time_ends_the_stream(app: FastAPI) -> None:
    async with Ndjson(app) as client:
        client.send(PICTURE)
        client.send_part(b'{"ima')
        lines = await client.rest()
    assert codes(lines) == ["", "timeout"]
    assert set(lines[1]) == {"error"}
    assert lines[1]["error"]["details"] == {"limit_s": 0.05}


@pytest.mark.parametrize("settings", [Settings(classify_line_timeout_s=0.2)])
async def test_client_of_single_bytes_is_given_up_though_they_keep_coming(app: FastAPI) -> None:
    async def drip() -> None:
        while True:
            client.send_part(b"x")
            await asyncio.sleep(0.01)

    async with Ndjson(app) as client:
        dripping = asyncio.create_task(drip())
        assert codes(await client.rest()) == ["timeout"]
        dripping.cancel()


@pytest.mark.parametrize("settings", [Settings(classify_idle_timeout_s=0.05)])
async def test_stream_without_lines_ends(app: FastAPI) -> None:
    async with Ndjson(app) as client:
        assert codes(await client.rest()) == ["timeout"]


async def test_client_that_leaves_withdraws_what_it_asked(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    with capture_logs() as logs:
        async with Ndjson(app) as client:
            client.send(PICTURE)
            await until(lambda: engine.classified)
            client.leave()
            await client.ended()
    assert engine.cancelled == 1
    assert app.state.live_streams.count == 0
    assert [line["status"] for line in logs] == [499]


@pytest.mark.parametrize("settings", [Settings(classify_window_items=1)])
async def test_client_that_leaves_is_noticed_while_nothing_is_read(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    async with Ndjson(app) as client:
        client.send(PICTURE)
        await until(lambda: engine.classified)
        client.leave()
        await client.ended()
    assert engine.cancelled == 1


async def test_lines_that_are_ready_together_are_asked_together(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    async with Ndjson(app, "adapt=off&top=2&stream=door") as client:
        client.send(PICTURE)
        await until(lambda: engine.classified)
        client.send(*[PICTURE] * 3)
        client.finish()
        await until(lambda: app.state.decoders.borrowed_tokens == 0 and client.taken == 5)
        for _ in range(100):
            await asyncio.sleep(0)
        engine.waits.set()
        lines = await client.rest()
    assert sizes(engine) == [1, 3]
    assert {(request.adapt, request.top, request.stream) for request in engine.classified} == {
        ("off", 2, "door")
    }
    assert [len(line["labels"]) for line in lines] == [2] * 4


@pytest.mark.parametrize(
    ("settings", "asked", "used"),
    [
        (Settings(), "auto", "async"),
        (Settings(mode="off"), "auto", "off"),
        (Settings(mode="off"), "async", "async"),
        (Settings(mode="sync"), "auto", "sync"),
    ],
)
async def test_auto_is_what_the_server_fixes_and_else_async(
    app: FastAPI, engine: FakeEngine, asked: str, used: str
) -> None:
    async with Ndjson(app, f"adapt={asked}") as client:
        client.send(PICTURE)
        client.finish()
        assert codes(await client.rest()) == [""]
    assert [request.adapt for request in engine.classified] == [used]


async def test_synchronous_lines_gather_to_batches_and_the_rest_is_answered_at_the_end(
    app: FastAPI, engine: FakeEngine
) -> None:
    async with Ndjson(app, "adapt=sync&batch=3&max_wait_ms=60000") as client:
        client.send(*[PICTURE] * 4, b"{", *[PICTURE] * 3)
        client.finish()
        lines = await client.rest()
    assert sizes(engine) == [3, 3, 1]
    assert codes(lines) == [""] * 4 + ["not_json"] + [""] * 3


async def test_batch_that_does_not_fill_is_asked_after_its_wait(app: FastAPI, engine: FakeEngine) -> None:
    async with Ndjson(app, "adapt=sync&batch=8&max_wait_ms=20") as client:
        client.send(PICTURE)
        assert (await client.line())["index"] == 0
        client.finish()
        assert await client.line() == {}
    assert sizes(engine) == [1]


@pytest.mark.parametrize("settings", [Settings(classify_window_items=2)])
async def test_batch_larger_than_the_window_still_fills(app: FastAPI, engine: FakeEngine) -> None:
    async with Ndjson(app, "adapt=sync&batch=5&max_wait_ms=60000") as client:
        client.send(*[PICTURE] * 10)
        assert [(await client.line())["index"] for _ in range(10)] == list(range(10))
        client.finish()
    assert sizes(engine) == [5, 5]


async def test_full_queue_is_waited_for(app: FastAPI, engine: FakeEngine) -> None:
    engine.failures = [QueueFull("full", retry_after_s=0.01) for _ in range(3)]
    async with Ndjson(app) as client:
        client.send(PICTURE)
        client.finish()
        assert codes(await client.rest()) == [""]
    assert len(engine.classified) == 4


async def test_queue_that_stays_full_fails_a_line_at_its_deadline(app: FastAPI, engine: FakeEngine) -> None:
    engine.failure = QueueFull("full", retry_after_s=0.01)
    async with Ndjson(app, "deadline_ms=50") as client:
        client.send(PICTURE)
        assert codes([await client.line()]) == ["deadline_exceeded"]
        engine.failure = None
        client.send(PICTURE)
        client.finish()
        assert codes(await client.rest()) == [""]


async def test_line_without_an_answer_fails_at_its_deadline(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    async with Ndjson(app, "deadline_ms=30") as client:
        client.send(PICTURE)
        line = await client.line()
        assert line["error"]["code"] == "deadline_exceeded"
        engine.waits.set()
        client.send(PICTURE)
        assert codes([await client.line()]) == [""]
        client.finish()
    assert engine.classified[0].deadline_ms is not None
    assert engine.classified[0].deadline_ms <= 30


async def test_error_of_the_engine_is_the_error_of_its_lines(app: FastAPI, engine: FakeEngine) -> None:
    engine.failures = [NotReady("loading"), ZeroDivisionError("the secret inside")]
    with capture_logs() as logs:
        async with Ndjson(app, headers={"X-Request-Id": "my-id"}) as client:
            client.send(PICTURE)
            assert codes([await client.line()]) == ["not_ready"]
            client.send(PICTURE)
            line = await client.line()
            client.send(PICTURE)
            client.finish()
            assert codes(await client.rest()) == [""]
    assert line["error"]["code"] == "internal"
    assert line["error"]["details"] == {"request_id": "my-id"}
    assert "secret" not in str(line)
    assert [entry["event"] for entry in logs] == ["unexpected error", "request"]
    assert (logs[-1]["lines"], logs[-1]["failed"], logs[-1]["status"]) == (3, 2, 200)


@pytest.mark.parametrize("settings", [Settings(rate_limit_per_stream="2/hour")])
async def test_every_line_counts_against_the_limits(app: FastAPI, engine: FakeEngine) -> None:
    async with Ndjson(app, "stream=a") as client:
        client.send(*[PICTURE] * 3)
        client.finish()
        lines = await client.rest()
    assert codes(lines) == ["", "", "rate_limited"]
    assert lines[2]["error"]["details"]["retry_after_s"] > 0
    assert sum(sizes(engine)) == 2


async def test_labels_make_it_zero_shot(app: FastAPI, engine: FakeEngine) -> None:
    async with Ndjson(app, "labels=a%20cat&labels=a%20dog&template=one%20%7B%7D") as client:
        client.send({"text": "miaow"}, PICTURE, {"audio": "AAAA"})
        client.finish()
        lines = await client.rest()
    assert codes(lines) == ["", "", "unsupported_modality"]
    assert lines[1]["adaptation"]["direction"] == "image->text"
    asked = engine.classified[0]
    assert (asked.labels, asked.template) == (("a cat", "a dog"), "one {}")


async def test_shutdown_answers_what_was_read_and_says_so(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    async with Ndjson(app) as client:
        client.send(PICTURE)
        await until(lambda: engine.classified)
        closing = asyncio.create_task(app.state.live_streams.close(20))
        await asyncio.sleep(0)
        engine.waits.set()
        lines = await client.rest()
        await closing
        assert codes(lines) == ["", "not_ready"]
        assert "shutting down" in lines[1]["error"]["message"]
    async with Ndjson(app) as late:
        assert await late.started() == 503


async def test_shutdown_after_the_last_line_only_answers_it(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    async with Ndjson(app) as client:
        client.send(PICTURE)
        client.finish()
        await until(lambda: engine.classified and client.taken == 2)
        closings = [asyncio.create_task(app.state.live_streams.close(20)) for _ in range(2)]
        await asyncio.sleep(0)
        engine.waits.set()
        assert codes(await client.rest()) == [""]
        await asyncio.gather(*closings)


async def test_shutdown_may_come_twice(app: FastAPI, engine: FakeEngine) -> None:
    async with Ndjson(app) as client:
        client.send(PICTURE)
        assert codes([await client.line()]) == [""]
        await asyncio.gather(*(app.state.live_streams.close(20) for _ in range(2)))
        assert codes(await client.rest()) == ["not_ready"]


@pytest.mark.parametrize("settings", [Settings(classify_connections=1)])
async def test_connections_are_limited(app: FastAPI, http: httpx.AsyncClient) -> None:
    async with Ndjson(app) as one:
        assert await one.started() == 200
        async with Ndjson(app) as other:
            assert await other.started() == 503
        one.finish()
    async with Ndjson(app) as again:
        assert await again.started() == 200
        again.finish()


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("k=5", 422, "invalid_request"),
        ("top=0", 422, "invalid_request"),
        ("top=2&top=3", 422, "invalid_request"),
        ("batch=65", 422, "invalid_request"),
        ("labels=a", 422, "invalid_request"),
        ("labels=a&labels=a", 422, "invalid_request"),
        ("labels=a&labels=b&template={0.__class__}", 422, "invalid_request"),
        ("stream=..", 422, "invalid_request"),
        ("max_wait_ms=NaN", 422, "invalid_request"),
    ],
)
async def test_bad_options_are_refused_before_the_body_is_read(
    http: httpx.AsyncClient, query: str, status: int, code: str
) -> None:
    async def never() -> Any:
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Type": "application/x-ndjson"}
    failure(await http.post(f"/classify?{query}", content=never(), headers=headers), status, code)


async def test_server_without_a_classifier_says_so(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.classifier = None
    headers = {"Content-Type": "application/x-ndjson"}
    failure(await http.post("/classify", content=b"", headers=headers), 404, "no_classifier")


@pytest.mark.parametrize("settings", [Settings(admin_key=SecretStr("a"), api_keys=(SecretStr("k"),))])
async def test_stream_needs_the_key(http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    failure(await http.post("/classify", content=b"", headers=headers), 401, "unauthorized")
    keyed = await http.post("/classify", content=b"", headers=headers | {"X-Attune-Api-Key": "k"})
    assert (keyed.status_code, keyed.content) == (200, b"")


async def test_streams_are_counted_but_their_length_is_no_latency(app: FastAPI, engine: FakeEngine) -> None:
    async with Ndjson(app) as client:
        client.finish()
        assert await client.rest() == []
    labels = {"route": "/classify", "method": "POST", "status": "200"}
    assert engine.metrics.value("attune_http_requests_total", **labels) == 1
    assert engine.metrics.value("attune_http_request_seconds_count", route="/classify") == 0
