"""Server-sent events, message by message: what is told, when nothing is, and what a slow client costs."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from service.cli.serve import abort_streams
from service.errors import QueueUnreachable
from service.http import events
from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.live import Connection
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio

Event = tuple[str, dict[str, Any]]


class Listening(Connection):
    """One GET of /admin/events; the client reads event by event."""

    def __init__(self, app: FastAPI, query: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(app, query, headers)
        self._scope |= {
            "type": "http",
            "method": "GET",
            "scheme": "http",
            "path": "/admin/events",
            "raw_path": b"/admin/events",
        }
        self.put({"type": "http.request", "body": b"", "more_body": False})
        self.ids: list[int] = []

    def leave(self) -> None:
        self.put({"type": "http.disconnect"})

    async def opened(self) -> dict[str, str]:
        """The headers."""
        start = await self.message()
        assert start["status"] == 200
        assert (await self.message())["body"] == b"retry: 2000\n\n"
        return {name.decode(): value.decode() for name, value in start["headers"]}

    async def event(self) -> Event:
        body = (await self.message())["body"].decode()
        assert body.endswith("\n\n")
        fields = dict(line.split(": ", 1) for line in body.strip().splitlines())
        self.ids.append(int(fields["id"]))
        return fields["event"], json.loads(fields["data"])

    async def next(self, kind: str) -> dict[str, Any]:
        """The next event of this kind; others are passed over."""
        while True:
            name, data = await self.event()
            if name == kind:
                return data


@pytest.fixture
def settings() -> Settings:
    return Settings(events_interval_s=0.05, event_connections=2)


@pytest.fixture
def app(engine: FakeEngine, settings: Settings) -> FastAPI:
    return create_app(settings, engine)


async def add(engine: FakeEngine, *names: str) -> None:
    for name in names:
        await engine.configure_stream(name)


def names(streams: dict[str, Any]) -> list[str]:
    return [card["name"] for card in streams["streams"]]


async def test_first_all_streams_are_told_then_only_what_changed(app: FastAPI, engine: FakeEngine) -> None:
    await add(engine, "a", "b", "c")
    engine.waiting = {"b": 3}
    async with Listening(app) as listening:
        headers = await listening.opened()
        assert headers["content-type"].startswith("text/event-stream")
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
        first = await listening.next("streams")
        assert (first["whole"], first["total"], first["gone"]) == (True, 3, [])
        assert names(first) == ["c", "b", "a"]
        assert [card["waiting"] for card in first["streams"]] == [0, 3, 0]
        engine.streams["b"]["version"] = 7
        second = await listening.next("streams")
        assert (second["whole"], names(second), second["gone"]) == (False, ["b"], [])
        assert second["streams"][0]["version"] == 7
        del engine.streams["a"]
        third = await listening.next("streams")
        assert (names(third), third["gone"], third["total"]) == ([], ["a"], 2)
        assert listening.ids == list(range(1, len(listening.ids) + 1))
        listening.leave()


async def test_where_the_queue_is_not_known_waiting_is_null(app: FastAPI, engine: FakeEngine) -> None:
    await add(engine, "a")
    async with Listening(app) as listening:
        await listening.opened()
        assert (await listening.next("streams"))["streams"][0]["waiting"] is None
        listening.leave()


async def test_the_server_is_told_with_its_streams(app: FastAPI, engine: FakeEngine) -> None:
    await add(engine, "a", "b")
    async with Listening(app) as listening:
        await listening.opened()
        server = await listening.next("server")
        assert (server["ready"], server["streams"], server["worker"]) == (True, 2, None)
        figures = {"ready", "queue", "worker", "workers", "streams_in_memory", "streams"}
        assert set(server) == {"at", "version", *figures}
        await add(engine, "c")
        assert (await listening.next("server"))["streams"] == 3
        listening.leave()


async def test_the_server_is_told_again_though_nothing_changed(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RENEW_S", 0.1)
    async with Listening(app) as listening:
        await listening.opened()
        first, second = await listening.next("server"), await listening.next("server")
        assert first.pop("at") < second.pop("at")
        assert first == second
        listening.leave()


async def test_where_nothing_changes_a_beat_is_sent(
    app: FastAPI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BEAT_S", 0.2)
    async with Listening(app) as listening:
        await listening.opened()
        told = {(await listening.event())[0], (await listening.event())[0]}
        assert told == {"server", "streams"}
        assert (await listening.message())["body"] == b": beat\n\n"
        assert (await listening.message())["body"] == b": beat\n\n"
        listening.leave()


async def test_most_are_shown_and_who_falls_behind_them_is_gone(app: FastAPI, engine: FakeEngine) -> None:
    await add(engine, "a", "b", "c")
    async with Listening(app, "most=2") as listening:
        await listening.opened()
        first = await listening.next("streams")
        assert (names(first), first["total"]) == (["c", "b"], 3)
        engine.streams["a"] = engine.streams.pop("a")  # used again
        second = await listening.next("streams")
        assert (names(second), second["gone"], second["total"]) == (["a"], ["b"], 3)
        listening.leave()


async def test_all_listeners_share_one_poller_that_ends_with_the_last(
    app: FastAPI, engine: FakeEngine
) -> None:
    await add(engine, "a", "b", "c")
    assert not app.state.events.polling
    before = asyncio.all_tasks()
    async with Listening(app, "most=1") as one:
        await one.opened()
        await one.next("streams")
        async with Listening(app, "most=3") as other:
            await other.opened()
            assert names(await other.next("streams")) == ["c", "b", "a"]
            asked = len(engine.listed)
            engine.streams["c"]["version"] = 2
            assert (names(await one.next("streams")), names(await other.next("streams"))) == (["c"], ["c"])
            # Both were told of one look, which asked for what the one wants that wants most.
            assert set(engine.listed[asked:]) == {3}
            other.leave()
        assert app.state.events.polling
        one.leave()
    assert not app.state.events.polling
    async with asyncio.timeout(10):
        await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)


async def test_a_slow_client_gets_the_latest_and_no_backlog(app: FastAPI, engine: FakeEngine) -> None:
    await add(engine, "a")
    async with Listening(app) as slow, Listening(app) as quick:
        await slow.opened()
        await slow.next("streams")
        await quick.opened()
        await quick.next("streams")
        slow.reading.clear()
        for version in range(1, 6):
            engine.streams["a"]["version"] = version
            assert (await quick.next("streams"))["streams"][0]["version"] == version
        slow.reading.set()
        told = []
        while not told or told[-1] < 5:
            told += [card["version"] for card in (await slow.next("streams"))["streams"]]
        # What was on its way when it stopped reading, and the latest.
        assert len(told) <= 2
        slow.leave()
        quick.leave()


async def test_an_event_of_many_streams_is_written_in_pieces(app: FastAPI, engine: FakeEngine) -> None:
    await add(engine, "a")
    engine.streams["a"]["note"] = "x" * (2 * events.PIECE_BYTES)
    async with Listening(app) as listening:
        await listening.opened()
        pieces = [(await listening.message())["body"]]
        while not pieces[-1].endswith(b"\n\n"):
            pieces.append((await listening.message())["body"])
        assert [len(piece) for piece in pieces[:-1]] == [events.PIECE_BYTES] * 2
        assert b"".join(pieces).count(b"x") >= 2 * events.PIECE_BYTES
        listening.leave()


async def test_a_client_that_reads_nothing_is_given_up(engine: FakeEngine) -> None:
    app = create_app(Settings(events_interval_s=0.05, classify_write_timeout_s=0.2), engine)
    async with Listening(app) as listening:
        await listening.opened()
        listening.reading.clear()
        await listening.ended()
    assert not app.state.events.polling


async def test_trouble_is_told_once_and_the_poller_goes_on(app: FastAPI, engine: FakeEngine) -> None:
    await add(engine, "a")
    async with Listening(app) as listening:
        await listening.opened()
        await listening.next("streams")
        engine.failure = QueueUnreachable("Redis does not answer; try again")
        name = ""
        while name != "trouble":
            name, data = await listening.event()
        assert data == {"message": "Redis does not answer; try again"}
        assert (await listening.next("server"))["ready"] is False
        engine.failure = None
        name = ""
        while name != "streams":
            name, data = await listening.event()
            assert name != "trouble"
        # Nothing has changed, and yet: it is over.
        assert (data["whole"], data["streams"], data["gone"]) == (False, [], [])
        listening.leave()


async def test_trouble_of_our_own_tells_nothing_of_the_inside(app: FastAPI, engine: FakeEngine) -> None:
    engine.failure = ValueError("/secret/path")
    async with Listening(app) as listening:
        await listening.opened()
        message = (await listening.next("trouble"))["message"]
        assert "secret" not in message
        listening.leave()


async def test_a_server_that_is_not_ready_any_more_says_so(app: FastAPI, engine: FakeEngine) -> None:
    async with Listening(app) as listening:
        await listening.opened()
        assert (await listening.next("server"))["ready"] is True
        engine.ready, engine.why_not_ready = False, "Redis does not answer"
        assert "Redis does not answer" in (await listening.next("trouble"))["message"]
        listening.leave()


async def test_too_many_listeners_are_refused(app: FastAPI, http: httpx.AsyncClient) -> None:
    async with Listening(app) as one, Listening(app) as two:
        await one.opened()
        await two.opened()
        async with Listening(app) as three:
            start, body = await three.message(), await three.message()
        assert start["status"] == 503
        assert json.loads(body["body"])["error"]["code"] == "too_many_connections"
        one.leave()
        await one.ended()
        async with Listening(app) as four:
            await four.opened()
            four.leave()
        two.leave()


async def test_a_shutdown_ends_every_listener_at_once(app: FastAPI) -> None:
    async with Listening(app) as one, Listening(app) as two:
        await one.opened()
        await two.opened()
        await two.next("streams")
        await app.state.live_streams.close(10.0)
        for listening in (one, two):
            message = await listening.message()
            while message.get("more_body"):
                message = await listening.message()
            assert message["body"] == b""
    assert not app.state.events.polling


def test_a_shutdown_does_not_wait_for_clients_that_stopped_reading() -> None:
    def connection(scope: dict[str, Any] | None) -> Mock:
        return Mock(scope=scope)

    streaming = connection({"attune": {"streamed": True}})
    others = [connection(None), connection({}), connection({"attune": {"queries": 1}})]
    abort_streams([streaming, *others])
    streaming.transport.abort.assert_called_once_with()
    assert not any(other.transport.abort.called for other in others)


async def test_who_comes_during_the_shutdown_is_sent_away(app: FastAPI) -> None:
    await app.state.live_streams.close(10.0)
    async with Listening(app) as listening:
        assert (await listening.message())["status"] == 503


@pytest.mark.parametrize("settings", [Settings(admin_key=SecretStr("k" * 20))])
async def test_the_admin_key_is_asked_for_before_anything_is_told(app: FastAPI) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        async with Listening(app, headers=headers) as listening:
            start, body = await listening.message(), await listening.message()
        assert start["status"] == 401
        assert json.loads(body["body"])["error"]["code"] == "unauthorized"
    assert not app.state.events.polling


async def test_a_page_of_another_site_gets_no_place(app: FastAPI, http: httpx.AsyncClient) -> None:
    failure(await http.get("/admin/events", headers={"Sec-Fetch-Site": "cross-site"}), 403, "forbidden")


@pytest.mark.parametrize("most", ["0", "-1", "1001", "x", ""])
async def test_a_silly_most_is_refused(http: httpx.AsyncClient, most: str) -> None:
    failure(await http.get(f"/admin/events?most={most}"), 422, "invalid_request")


async def test_a_starting_server_does_not_begin_the_stream(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.ready, engine.why_not_ready = False, "starting"
    failure(await http.get("/admin/events"), 503, "not_ready")


async def test_a_listing_that_takes_long_is_made_less_often(
    app: FastAPI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes 10 s of the worker's time: a second one comes after 100 s, not after 0.05 s."""
    monkeypatch.setattr(events, "RENEW_S", 0.2)
    engine.listing_takes_s = 10.0
    async with Listening(app) as listening:
        await listening.opened()
        for _ in range(2):
            await listening.next("server")
        assert len(engine.listed) == 1
        listening.leave()
