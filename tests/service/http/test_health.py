from __future__ import annotations

import httpx
import pytest

from service.http.app import create_app
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
