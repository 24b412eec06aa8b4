from __future__ import annotations

import httpx
import pytest
from pydantic import SecretStr

from service.settings import Settings
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio
KEY = "k3y-of-the-test"

NEEDS_KEY = [
    ("POST", "/galleries"),
    ("DELETE", "/galleries/demo"),
    ("POST", "/galleries/demo/items"),
    ("POST", "/galleries/demo/items/delete"),
    ("GET", "/admin/streams"),
    ("GET", "/admin/streams/s"),
    ("PUT", "/admin/streams/s"),
    ("DELETE", "/admin/streams/s"),
    ("POST", "/admin/streams/s/reset"),
    ("GET", "/admin/streams/s/snapshots"),
    ("POST", "/admin/streams/s/snapshots"),
    ("POST", "/admin/streams/s/snapshots/import"),
    ("POST", "/admin/streams/s/snapshots/n/restore"),
    ("DELETE", "/admin/streams/s/snapshots/n"),
    ("GET", "/admin/streams/s/snapshots/n/export"),
]
NEEDS_NONE = [
    ("GET", "/"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/models"),
    ("GET", "/galleries"),
    ("GET", "/galleries/{gallery}"),
    ("GET", "/galleries/{gallery}/items"),
    ("GET", "/galleries/{gallery}/items/{id}"),
    ("POST", "/retrieve"),
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


async def test_every_route_is_in_one_of_the_two_lists(http: httpx.AsyncClient) -> None:
    """A new route must say here whether it needs the key."""
    listed = set(NEEDS_NONE)
    listed |= {(method, _template(path)) for method, path in NEEDS_KEY}
    paths = (await http.get("/openapi.json")).json()["paths"]
    documented = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert documented == listed - {("GET", "/")}


def _template(path: str) -> str:
    path = path.replace("/galleries/demo", "/galleries/{gallery}")
    return path.replace("/streams/s", "/streams/{stream}").replace("/snapshots/n", "/snapshots/{snapshot}")


async def test_open_routes_need_no_key(http: httpx.AsyncClient) -> None:
    for path in ("/", "/livez", "/readyz", "/metrics", "/models", "/galleries", "/galleries/demo/items"):
        assert (await http.get(path)).status_code == 200
    response = await http.post("/retrieve", json={"queries": [{"text": "a"}]})
    assert response.status_code == 200


async def test_page_of_another_site_cannot_change_anything(http: httpx.AsyncClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "X-Attune-Admin-Key": KEY}
    response = await http.post("/retrieve", files=[("text", (None, "a"))], headers=headers)
    failure(response, 403, "forbidden")
    failure(await http.post("/admin/streams/s/reset", headers=headers), 403, "forbidden")
    assert (await http.get("/models", headers=headers)).status_code == 200
    same = {"Sec-Fetch-Site": "same-origin"}
    body = {"queries": [{"text": "a"}]}
    assert (await http.post("/retrieve", json=body, headers=same)).status_code == 200
