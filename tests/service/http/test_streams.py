from __future__ import annotations

import httpx
import pytest

from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio
BYTES = {"Content-Type": "application/octet-stream"}


async def configure(http: httpx.AsyncClient, name: str = "shop-7") -> None:
    response = await http.put(f"/admin/streams/{name}", json={"method": "tcr", "settings": {"steps": 2}})
    assert response.status_code == 200
    assert response.json()["settings"] == {"steps": 2}


async def test_stream_is_configured_described_listed_reset_and_deleted(http: httpx.AsyncClient) -> None:
    failure(await http.get("/admin/streams/shop-7"), 404, "unknown_stream")
    await configure(http)
    assert (await http.get("/admin/streams/shop-7")).json()["method"] == "tcr"
    assert [stream["name"] for stream in (await http.get("/admin/streams")).json()["streams"]] == ["shop-7"]
    assert (await http.post("/admin/streams/shop-7/reset")).json()["version"] == 0
    assert (await http.delete("/admin/streams/shop-7")).status_code == 204
    failure(await http.delete("/admin/streams/shop-7"), 404, "unknown_stream")


async def test_empty_configuration_makes_a_default_stream(http: httpx.AsyncClient) -> None:
    assert (await http.put("/admin/streams/New", json={})).json()["method"] == "tcr"


async def test_snapshot_is_taken_listed_restored_and_deleted(http: httpx.AsyncClient) -> None:
    await configure(http)
    taken = await http.post("/admin/streams/shop-7/snapshots", json={"name": "before", "note": "x"})
    assert (taken.status_code, taken.json()["note"]) == (201, "x")
    listed = (await http.get("/admin/streams/shop-7/snapshots")).json()["snapshots"]
    assert [snapshot["name"] for snapshot in listed] == ["before"]
    restored = await http.post("/admin/streams/shop-7/snapshots/before/restore")
    assert restored.json()["name"] == "shop-7"
    assert (await http.delete("/admin/streams/shop-7/snapshots/before")).status_code == 204
    failure(await http.post("/admin/streams/shop-7/snapshots/before/restore"), 404, "unknown_snapshot")


async def test_a_snapshot_is_compared_with_another_or_with_the_stream(http: httpx.AsyncClient) -> None:
    await configure(http)
    for name in ("before", "after"):
        await http.post("/admin/streams/shop-7/snapshots", json={"name": name})
    address = "/admin/streams/shop-7/snapshots/before/compare"
    assert (await http.get(address)).json()["second"]["name"] is None
    assert (await http.get(f"{address}?with=after")).json()["second"]["name"] == "after"
    failure(await http.get(f"{address}?with=none"), 404, "unknown_snapshot")
    for wrong in ("", "../x", "a" * 65):
        failure(await http.get(address, params={"with": wrong}), 422, "invalid_request")


async def test_a_streams_history_has_columns_by_track(http: httpx.AsyncClient) -> None:
    failure(await http.get("/admin/streams/shop-7/history"), 404, "unknown_stream")
    await configure(http)
    history = (await http.get("/admin/streams/shop-7/history")).json()
    assert history["stream"] == "shop-7"
    assert history["tracks"]["demo/text->image"]["status"] == ["applied"]


async def test_snapshot_without_a_body_is_named_by_the_server(http: httpx.AsyncClient) -> None:
    await configure(http)
    assert (await http.post("/admin/streams/shop-7/snapshots")).json()["name"] == "v0"


async def test_snapshot_goes_out_and_comes_in_unchanged(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await configure(http)
    await http.post("/admin/streams/shop-7/snapshots", json={"name": "before"})
    out = await http.get("/admin/streams/shop-7/snapshots/before/export")
    assert out.headers["content-type"] == "application/octet-stream"
    assert out.headers["content-disposition"] == 'attachment; filename="shop-7-before.attune"'
    address = "/admin/streams/other/snapshots/import?name=after"
    response = await http.post(address, content=out.content, headers=BYTES)
    assert response.status_code == 201
    assert engine.snapshots["other", "after"] == out.content


async def test_stream_with_snapshots_is_deleted_only_by_force(http: httpx.AsyncClient) -> None:
    await configure(http)
    await http.post("/admin/streams/shop-7/snapshots")
    failure(await http.delete("/admin/streams/shop-7"), 409, "conflict")
    assert (await http.delete("/admin/streams/shop-7?force=true")).status_code == 204


async def test_import_wants_bytes(http: httpx.AsyncClient) -> None:
    address = "/admin/streams/shop-7/snapshots/import"
    failure(await http.post(address, json={}), 415, "unsupported_media_type")
    failure(await http.post(address, content=b"", headers=BYTES), 422, "invalid_request")
    failure(await http.post(f"{address}?name=../x", content=b"x", headers=BYTES), 422, "invalid_request")


@pytest.mark.parametrize("settings", [Settings(max_snapshot_bytes=2000, max_body_bytes=1500)])
async def test_imported_snapshots_have_their_own_limit(http: httpx.AsyncClient) -> None:
    address = "/admin/streams/shop-7/snapshots/import"
    assert (await http.post(address, content=bytes(1900), headers=BYTES)).status_code == 201
    failure(await http.post(address, content=bytes(2100), headers=BYTES), 413, "too_large")


@pytest.mark.parametrize(
    "body", [{"method": ""}, {"method": 3}, {"settings": []}, {"steps": 3}, {"settings": None, "x": 1}]
)
async def test_bad_configuration_is_refused(http: httpx.AsyncClient, body: object) -> None:
    failure(await http.put("/admin/streams/shop-7", json=body), 422, "invalid_request")


@pytest.mark.parametrize("name", ["%2e%2e", "a%20b", "a..b", "-a", "a" * 129])
async def test_bad_stream_name_is_refused(http: httpx.AsyncClient, name: str) -> None:
    # httpx leaves an encoded dot alone only inside a longer path.
    failure(await http.post(f"/admin/streams/{name}/reset"), 422, "invalid_request")


@pytest.mark.parametrize("name", ["%2e%2e", "a%20b", "a..b", "a" * 65])
async def test_bad_snapshot_name_is_refused(http: httpx.AsyncClient, name: str) -> None:
    failure(await http.post(f"/admin/streams/s/snapshots/{name}/restore"), 422, "invalid_request")
    failure(await http.post("/admin/streams/s/snapshots", json={"name": "../x"}), 422, "invalid_request")
