"""A web page whose name is made to lead to this machine must not drive a server without an admin key."""

from __future__ import annotations

import httpx
import pytest
from pydantic import SecretStr

from service.settings import Settings
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio

OWN = [
    "127.0.0.1:8080",
    "localhost:8080",
    "[::1]:8080",
    "192.168.1.7",
    "attune",
    "a.localhost:80",
    "Shop.Example.",
]
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil.example:8080",
    "[::1].evil",
]


@pytest.mark.parametrize("settings", [Settings(allowed_hosts=("shop.example",))])
@pytest.mark.parametrize("host", OWN)
async def test_own_names_and_addresses_are_answered(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/admin/streams", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("path", ["/", "/admin/streams", "/livez"])
@pytest.mark.parametrize("host", FOREIGN)
async def test_foreign_name_is_refused(http: httpx.AsyncClient, host: str, path: str) -> None:
    error = failure(await http.get(path, headers={"Host": host}), 403, "forbidden")

    assert "allowed_hosts" in error["message"]


KEY = SecretStr("k3y")
AUTHORIZED = {"Authorization": "Bearer k3y"}


@pytest.mark.parametrize("settings", [Settings(admin_key=KEY)])
async def test_foreign_name_is_refused_where_some_routes_want_no_key(http: httpx.AsyncClient) -> None:
    failure(await http.get("/galleries", headers={"Host": "evil.example", **AUTHORIZED}), 403, "forbidden")


@pytest.mark.parametrize(
    "settings",
    [
        Settings(admin_key=KEY, api_keys=(SecretStr("other"),)),
        Settings(admin_key=KEY, host="0.0.0.0"),
    ],
)
async def test_any_name_will_do_where_all_wants_a_key_or_others_are_served(http: httpx.AsyncClient) -> None:
    headers = {"Host": "attune.example", **AUTHORIZED}

    assert (await http.get("/admin/streams", headers=headers)).status_code == 200
