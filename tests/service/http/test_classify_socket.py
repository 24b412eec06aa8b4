"""/classify over a WebSocket."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from structlog.testing import capture_logs

from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.live import Ndjson, Socket
from tests.service.http.pictures import encoded, png

pytestmark = pytest.mark.anyio
PICTURE = {"image": encoded(png())}
KEYED = Settings(admin_key=SecretStr("admin"), api_keys=(SecretStr("k3y"),))
END = {"end": True}
CLOSED = {"close": 1000, "reason": ""}


@pytest.fixture
def app(settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(settings, engine)


async def test_messages_are_answered_like_lines(app: FastAPI) -> None:
    async with Socket(app, "top=1") as over_socket, Ndjson(app, "top=1") as over_http:
        await over_socket.accepted()
        for client in (over_socket, over_http):
            client.send(PICTURE | {"id": "a"}, "{", PICTURE | {"top": 3})
        for _ in range(3):
            one, other = await over_socket.line(), await over_http.line()
            one.pop("labels", None), other.pop("labels", None)  # the fake engine counts on
            assert one == other
        over_socket.send(END)
        over_http.finish()
        assert await over_socket.line() == CLOSED


async def test_first_message_may_be_the_options(app: FastAPI, engine: FakeEngine) -> None:
    async with Socket(app) as client:
        await client.accepted()
        client.send({"options": {"labels": ["a", "b"], "top": 1, "stream": "door"}}, {"text": "words"})
        line = await client.line()
        assert (line["index"], line["labels"]) == (0, [{"label": "a", "probability": 0.5}])
        client.send({"options": {"top": 2}}, {"text": "words", "labels": ["c", "d"]}, {"text": "more"}, END)
        lines = [await client.line() for _ in range(3)]
        assert [line.get("error", {}).get("code") for line in lines] == [
            "options_fixed",
            "options_fixed",
            None,
        ]
        assert await client.line() == CLOSED
    assert {request.labels for request in engine.classified} == {("a", "b")}


@pytest.mark.parametrize(
    ("query", "first", "code"),
    [
        ("", {"options": {"top": 0}}, "invalid_request"),
        ("", {"options": {"colour": 1}}, "invalid_request"),
        ("", {"options": {"batch": 65}}, "invalid_request"),
        ("", {"options": 3}, "invalid_request"),
        ("top=1", {"options": {"top": 1}}, "invalid_request"),
        ("top=0", PICTURE, "invalid_request"),
        ("", {"options": {"labels": [f"l{i}" for i in range(1001)]}}, "too_large"),
    ],
)
async def test_bad_options_are_told_and_close_the_socket(
    app: FastAPI, query: str, first: object, code: str
) -> None:
    async with Socket(app, query) as client:
        await client.accepted()
        client.send(first)
        line = await client.line()
        assert set(line) == {"error"}
        assert line["error"]["code"] == code
        assert await client.line() == {"close": 1008, "reason": code}


async def test_binary_and_blank_messages(app: FastAPI) -> None:
    async with Socket(app) as client:
        await client.accepted()
        client.send(PICTURE, " ")
        client.send_bytes(png())
        client.send(PICTURE, END)
        lines = [await client.line() for _ in range(3)]
        assert [line["index"] for line in lines] == [0, 1, 2]
        assert lines[1]["error"]["code"] == "unsupported_media_type"
        assert await client.line() == CLOSED


@pytest.mark.parametrize("settings", [Settings(classify_line_bytes=1024)])
async def test_message_over_the_limit_fails_alone(app: FastAPI) -> None:
    async with Socket(app) as client:
        await client.accepted()
        client.send(PICTURE, "x" * 2000, PICTURE, END)
        codes = [(await client.line()).get("error", {}).get("code") for _ in range(3)]
        assert codes == [None, "too_large", None]


async def test_client_that_leaves_withdraws_what_it_asked(app: FastAPI, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    async with Socket(app) as client:
        await client.accepted()
        client.send(PICTURE)
        while not engine.classified:
            await asyncio.sleep(0)
        client.leave()
        await client.ended()
    assert engine.cancelled == 1
    assert app.state.live_streams.count == 0


@pytest.mark.parametrize("settings", [Settings(classify_idle_timeout_s=0.05)])
@pytest.mark.parametrize("messages", [[], [PICTURE]], ids=["at once", "later"])
async def test_socket_without_messages_is_closed(app: FastAPI, messages: list[object]) -> None:
    async with Socket(app) as client:
        await client.accepted()
        client.send(*messages)
        for _ in messages:
            assert "labels" in await client.line()
        assert (await client.line())["error"]["code"] == "timeout"
        assert await client.line() == {"close": 1008, "reason": "timeout"}


async def test_shutdown_is_told_and_closes_with_going_away(app: FastAPI) -> None:
    async with Socket(app) as client:
        await client.accepted()
        client.send(PICTURE)
        assert "labels" in await client.line()
        await app.state.live_streams.close(20)
        assert (await client.line())["error"]["code"] == "not_ready"
        assert await client.line() == {"close": 1001, "reason": "not_ready"}
    async with Socket(app) as late:
        status, error = await late.refused()
        assert (status, error["code"]) == (503, "not_ready")


async def test_socket_that_has_said_nothing_yet_is_told_of_the_shutdown_too(app: FastAPI) -> None:
    async with Socket(app) as client:
        await client.accepted()
        await app.state.live_streams.close(20)
        assert (await client.line())["error"]["code"] == "not_ready"
        assert await client.line() == {"close": 1001, "reason": "not_ready"}


@pytest.mark.parametrize("settings", [Settings(classify_connections=1)])
async def test_sockets_are_limited(app: FastAPI) -> None:
    async with Socket(app) as one:
        await one.accepted()
        async with Socket(app) as other:
            status, error = await other.refused()
            assert (status, error["code"]) == (503, "too_many_connections")
        one.leave()


async def test_engine_that_is_not_ready_refuses_the_handshake(app: FastAPI, engine: FakeEngine) -> None:
    engine.ready, engine.why_not_ready = False, "loading"
    async with Socket(app) as client:
        assert (await client.refused())[0] == 503


@pytest.mark.parametrize(
    ("origin", "host", "opens"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("https://Shop.example", "shop.example", True),
        ("https://other.example", "localhost:8080", True),  # named by the setting
        ("http://evil.example", "localhost:8080", False),
        ("http://localhost:3000", "localhost:8080", False),
        ("https://other.example.evil", "localhost:8080", False),
        ("null", "localhost:8080", False),
        ("file://", "", False),
        ("", "localhost:8080", False),
    ],
)
@pytest.mark.parametrize(
    "settings", [Settings(websocket_origins=("https://other.example",), allowed_hosts=("shop.example",))]
)
async def test_page_of_another_origin_opens_no_socket(
    app: FastAPI, origin: str, host: str, opens: bool
) -> None:
    async with Socket(app, headers={"Origin": origin, "Host": host}) as client:
        if opens:
            await client.accepted()
            client.leave()
        else:
            status, error = await client.refused()
            assert (status, error["code"]) == (403, "forbidden")


@pytest.mark.parametrize("settings", [KEYED])
class TestWithApiKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer k3y"},
            {"X-Attune-Api-Key": "k3y"},
            {"X-Attune-Admin-Key": "admin"},
        ],
    )
    async def test_key_in_the_headers_opens(self, app: FastAPI, headers: dict[str, str]) -> None:
        async with Socket(app, headers=headers) as client:
            await client.accepted()
            client.send(PICTURE, END)
            assert "labels" in await client.line()

    async def test_wrong_key_in_the_headers_refuses_the_handshake(self, app: FastAPI) -> None:
        async with Socket(app, headers={"Authorization": "Bearer wrong"}) as client:
            status, error = await client.refused()
            assert (status, error["code"]) == (401, "unauthorized")

    async def test_key_in_the_first_message_opens(self, app: FastAPI) -> None:
        with capture_logs() as logs:
            async with Socket(app) as client:
                await client.accepted()
                client.send({"key": "k3y", "options": {"stream": "s"}}, PICTURE, END)
                assert "labels" in await client.line()
                assert await client.line() == CLOSED
        assert "k3y" not in str(logs)
        assert [(line["event"], line["status"], line["close"], line["stream"]) for line in logs] == [
            ("websocket", 101, 1000, "s")
        ]

    @pytest.mark.parametrize("first", [{"key": "wrong"}, PICTURE, {"options": {}}, "{"])
    async def test_without_the_key_nothing_is_answered(
        self, app: FastAPI, engine: FakeEngine, first: object
    ) -> None:
        async with Socket(app) as client:
            await client.accepted()
            client.send(first)
            assert (await client.line())["error"]["code"] == "unauthorized"
            assert await client.line() == {"close": 1008, "reason": "unauthorized"}
        assert engine.classified == []

    async def test_key_is_awaited_for_a_while_only(
        self, app: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.http.routes.classify.KEY_WITHIN_S", 0.05)
        async with Socket(app) as client:
            await client.accepted()
            assert (await client.line())["error"]["code"] == "timeout"
            assert (await client.line())["close"] == 1008


@pytest.mark.parametrize(
    "settings", [KEYED.model_copy(update={"classify_connections": 1})], ids=["one connection"]
)
async def test_sockets_without_a_key_take_no_place_of_those_with_one(app: FastAPI) -> None:
    async with Socket(app) as keyless:
        await keyless.accepted()
        async with Socket(app) as other:
            assert (await other.refused())[0] == 503
        async with Socket(app, headers={"X-Attune-Api-Key": "k3y"}) as client:
            await client.accepted()
            client.send(PICTURE)
            assert "labels" in await client.line()
            keyless.send({"key": "k3y"})
            assert (await keyless.line())["error"]["code"] == "too_many_connections"
            assert (await keyless.line())["close"] == 1013
            client.send(END)
    assert app.state.live_streams.count == 0


async def test_unexpected_error_closes_without_internals(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the secret inside")

    monkeypatch.setattr("service.http.routes.classify.check_labels", broken)
    with capture_logs() as logs:
        async with Socket(app) as client:
            await client.accepted()
            client.send({"options": {}})
            assert await client.line() == {"close": 1011, "reason": "internal"}
    assert [line["event"] for line in logs] == ["unexpected error", "websocket"]


async def test_other_paths_have_no_socket(app: FastAPI) -> None:
    client = Socket(app)
    client._scope["path"] = "/retrieve"
    async with client:
        message = await client.message()
        assert message["type"] in ("websocket.close", "websocket.http.response.start")
