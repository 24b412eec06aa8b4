from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from fastapi import FastAPI

from service.http.app import create_app, create_health_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio


async def test_probes_of_a_ready_server(http: httpx.AsyncClient) -> None:
    assert (await http.get("/livez")).json() == {"status": "alive"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    assert (await http.get("/")).json()["docs"] == "/docs"
    assert (await http.get("/models")).json()["encoder"]["name"] == "fake"


async def test_server_that_loads_is_alive_but_not_ready(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ready, engine.why_not_ready = False, "building the demo gallery"
    assert (await http.get("/livez")).status_code == 200
    response = await http.get("/readyz")
    assert "building the demo gallery" in failure(response, 503, "not_ready")["message"]
    assert response.headers["retry-after"] == "1"
    assert "attune_ready 0.0" in (await http.get("/metrics")).text


async def test_server_without_an_engine_is_not_ready(settings: Settings) -> None:
    transport = httpx.ASGITransport(create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/metrics", "/models", "/galleries"):
            failure(await client.get(path), 503, "not_ready")


async def test_metrics_count_requests_by_route_and_not_by_name(http: httpx.AsyncClient) -> None:
    for name in ("demo", "none-1", "none-2"):
        await http.get(f"/galleries/{name}")
    await http.get("/nothing/here")
    await http.request("BREW", "/livez")
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    text = response.text
    assert 'attune_http_requests_total{method="GET",route="/galleries/{gallery}",status="200"} 1.0' in text
    assert 'attune_http_requests_total{method="GET",route="/galleries/{gallery}",status="404"} 2.0' in text
    assert 'attune_http_requests_total{method="GET",route="unknown",status="404"} 1.0' in text
    assert 'attune_http_requests_total{method="other",route="/livez",status="405"} 1.0' in text
    assert "none-1" not in text


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_answer_head_too(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    assert (await http.head(path)).status_code == 200
    engine.ready = False
    assert (await http.head(path)).status_code == (503 if path == "/readyz" else 200)


class TestHealthApp:
    """What a process shows that answers no queries itself."""

    @pytest.fixture
    async def http(self, engine: FakeEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(create_health_app(settings, engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
            yield client

    async def test_probes_and_metrics_are_there(self, http: httpx.AsyncClient, engine: FakeEngine) -> None:
        for path in ("/livez", "/readyz", "/metrics", "/"):
            assert (await http.get(path)).status_code == 200
        assert "docs" not in (await http.get("/")).json()
        engine.ready, engine.why_not_ready = False, "waiting for Redis"
        assert "waiting for Redis" in failure(await http.get("/readyz"), 503, "not_ready")["message"]

    @pytest.mark.parametrize(
        "path", ["/retrieve", "/models", "/galleries", "/admin/streams", "/docs", "/openapi.json"]
    )
    async def test_nothing_else_is(self, http: httpx.AsyncClient, path: str) -> None:
        failure(await http.get(path), 404, "unknown_route")


@pytest.mark.parametrize("create", [create_app, create_health_app])
async def test_application_starts_what_it_serves_and_closes_it(
    create: Callable[..., FastAPI], engine: FakeEngine, settings: Settings
) -> None:
    async def start(given: Settings) -> FakeEngine:
        assert given is settings
        return engine

    app = create(settings, start=start)
    async with app.router.lifespan_context(app):
        assert app.state.engine is engine
        assert engine.ready
    assert not engine.ready, "it was not closed"


@pytest.mark.parametrize("create", [create_app, create_health_app])
async def test_application_remembers_why_it_did_not_start(
    create: Callable[..., FastAPI], settings: Settings
) -> None:
    async def start(given: Settings) -> FakeEngine:
        raise RuntimeError("no encoder")

    app = create(settings, start=start)
    with pytest.raises(RuntimeError):
        async with app.router.lifespan_context(app):
            pass
    assert str(app.state.start_error) == "no encoder"


async def test_given_engine_stays_its_owners(engine: FakeEngine, settings: Settings) -> None:
    app = create_app(settings, engine)
    async with app.router.lifespan_context(app):
        pass
    assert engine.ready
