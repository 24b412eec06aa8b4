from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio
KEY = "k3y-of-the-test"

NEEDS_KEY = [
    ("POST", "/galleries"),
    ("DELETE", "/galleries/demo"),
    ("POST", "/galleries/demo/items"),
    ("POST", "/galleries/demo/items/delete"),
    ("GET", "/galleries/demo/canaries"),
    ("PUT", "/galleries/demo/canaries"),
    ("GET", "/admin/streams"),
    ("GET", "/admin/streams/s"),
    ("GET", "/admin/streams/s/history"),
    ("PUT", "/admin/streams/s"),
    ("DELETE", "/admin/streams/s"),
    ("POST", "/admin/streams/s/reset"),
    ("GET", "/admin/streams/s/snapshots"),
    ("POST", "/admin/streams/s/snapshots"),
    ("POST", "/admin/streams/s/snapshots/import"),
    ("POST", "/admin/streams/s/snapshots/n/restore"),
    ("GET", "/admin/streams/s/snapshots/n/compare"),
    ("DELETE", "/admin/streams/s/snapshots/n"),
    ("GET", "/admin/streams/s/snapshots/n/export"),
    ("GET", "/admin/events"),
    ("GET", "/admin/calibrations"),
    ("POST", "/admin/calibrations"),
    ("GET", "/admin/calibrations/c"),
    ("DELETE", "/admin/calibrations/c"),
    ("GET", "/admin/calibrations/c/export"),
]
NEEDS_API_KEY = [
    ("GET", "/models"),
    ("GET", "/galleries"),
    ("GET", "/galleries/demo"),
    ("GET", "/galleries/demo/items"),
    ("GET", "/galleries/demo/items/scene-0"),
    ("GET", "/galleries/demo/previews/scene-0"),
    ("POST", "/retrieve"),
    ("POST", "/classify"),
    ("GET", "/corruptions"),
    ("POST", "/corruptions"),
    ("GET", "/demo/clips"),
    ("GET", "/demo/clips/2000001/audio.wav"),
    ("GET", "/demo/clips/2000001/image.png"),
]
BODIES = {
    "/retrieve": {"queries": [{"text": "a"}]},
    "/classify": {"samples": [{"text": "a"}], "labels": ["a", "b"]},
    "/corruptions": {"corruption": "CS", "queries": [{"text": "a"}]},
}
NEEDS_NONE = [
    ("GET", "/"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/console/config"),
]


@pytest.fixture
def settings() -> Settings:
    return Settings(admin_key=SecretStr(KEY))


@pytest.mark.parametrize(("method", "path"), NEEDS_KEY)
async def test_route_is_closed_without_the_right_key(http: httpx.AsyncClient, method: str, path: str) -> None:
    missing = await http.request(method, path)
    assert "admin key" in failure(missing, 401, "unauthorized")["message"]
    assert missing.headers["www-authenticate"] == "Bearer"
    for headers in (
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"X-Attune-Admin-Key": KEY + "x"},
        {"X-Attune-Admin-Key": b"k\xe9y"},
        {"Authorization": "Bearer "},
    ):
        response = await http.request(method, path, headers=headers)  # type: ignore[arg-type]
        failure(response, 401, "unauthorized")


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"X-Attune-Admin-Key": KEY}, {"authorization": f"bearer {KEY}"}],
)
async def test_right_key_opens_the_routes(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await http.get("/admin/streams", headers=headers)).status_code == 200
    created = await http.post("/galleries", json={"name": "shop"}, headers=headers)
    assert created.status_code == 201


async def test_every_route_is_in_one_of_the_lists(http: httpx.AsyncClient) -> None:
    """A new route must say here which key it needs."""
    listed = {(method, _template(path)) for method, path in NEEDS_NONE + NEEDS_API_KEY + NEEDS_KEY}
    paths = (await http.get("/openapi.json")).json()["paths"]
    documented = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert documented == listed - {("GET", "/")}


def _template(path: str) -> str:
    path = path.replace("/galleries/demo", "/galleries/{gallery}").replace("/scene-0", "/{id}")
    path = path.replace("/clips/2000001", "/clips/{number}")
    path = path.replace("/calibrations/c", "/calibrations/{calibration}")
    return path.replace("/streams/s", "/streams/{stream}").replace("/snapshots/n", "/snapshots/{snapshot}")


async def test_open_routes_need_no_key(http: httpx.AsyncClient) -> None:
    for path in ("/", "/livez", "/readyz", "/metrics", "/models", "/galleries", "/galleries/demo/items"):
        assert (await http.get(path)).status_code == 200
    response = await http.post("/retrieve", json={"queries": [{"text": "a"}]})
    assert response.status_code == 200


class TestWithApiKeys:
    """A server with two API keys beside the admin key."""

    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(admin_key=SecretStr(KEY), api_keys=(SecretStr("first-key"), SecretStr("second-key")))

    @pytest.mark.parametrize(("method", "path"), NEEDS_API_KEY)
    async def test_route_is_closed_without_a_key(
        self, http: httpx.AsyncClient, engine: FakeEngine, method: str, path: str
    ) -> None:
        missing = await http.request(method, path)
        assert "API key" in failure(missing, 401, "unauthorized")["message"]
        assert missing.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic first-key"},
            {"X-Attune-Api-Key": "first-ke"},
            {"X-Attune-Api-Key": "first-key,second-key"},
            {"X-Attune-Api-Key": b"k\xe9y"},
            {"X-Attune-Api-Key": ""},
            {"X-Attune-Admin-Key": "wrong"},
        ):
            response = await http.request(method, path, headers=headers)  # type: ignore[arg-type]
            failure(response, 401, "unauthorized")
        assert engine.requests == []

    @pytest.mark.parametrize(("method", "path"), NEEDS_API_KEY)
    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer first-key"},
            {"Authorization": "bearer second-key"},
            {"X-Attune-Api-Key": "second-key"},
            {"Authorization": f"Bearer {KEY}"},
            {"X-Attune-Admin-Key": KEY},
            {"X-Attune-Api-Key": KEY},
        ],
    )
    async def test_any_api_key_and_the_admin_key_open_it(
        self, http: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
    ) -> None:
        body = BODIES.get(path)
        assert (await http.request(method, path, json=body, headers=headers)).status_code == 200

    @pytest.mark.parametrize(("method", "path"), NEEDS_KEY)
    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer first-key"},
            {"X-Attune-Api-Key": "first-key"},
            {"X-Attune-Admin-Key": "first-key"},
            {"X-Attune-Api-Key": KEY},
        ],
    )
    async def test_api_key_opens_no_admin_route(
        self, http: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
    ) -> None:
        failure(await http.request(method, path, headers=headers), 401, "unauthorized")

    @pytest.mark.parametrize(("method", "path"), NEEDS_NONE)
    async def test_probes_stay_open(self, http: httpx.AsyncClient, method: str, path: str) -> None:
        assert (await http.request(method, path)).status_code == 200

    async def test_body_is_not_read_before_the_key_is_right(self, http: httpx.AsyncClient) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            raise AssertionError("the body was read")
            yield b""

        headers = {"X-Attune-Api-Key": "wrong", "Content-Type": "application/json"}
        failure(await http.post("/retrieve", content=chunks(), headers=headers), 401, "unauthorized")

    async def test_no_key_is_logged(self, http: httpx.AsyncClient) -> None:
        with capture_logs() as logs:
            await http.get("/models", headers={"X-Attune-Api-Key": "first-key"})
            await http.get("/models", headers={"X-Attune-Api-Key": "wrong-key"})
        assert [line["status"] for line in logs] == [200, 401]
        assert "-key" not in str(logs)


async def test_page_of_another_site_cannot_change_anything(http: httpx.AsyncClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "X-Attune-Admin-Key": KEY}
    response = await http.post("/retrieve", files=[("text", (None, "a"))], headers=headers)
    failure(response, 403, "forbidden")
    failure(await http.post("/admin/streams/s/reset", headers=headers), 403, "forbidden")
    assert (await http.get("/models", headers=headers)).status_code == 200
    same = {"Sec-Fetch-Site": "same-origin"}
    body = {"queries": [{"text": "a"}]}
    assert (await http.post("/retrieve", json=body, headers=same)).status_code == 200
