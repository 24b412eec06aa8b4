from __future__ import annotations

from typing import Any

import httpx
import pytest

from index.base import StorageFull
from tests.service.http.fake_engine import DIMENSION, FakeEngine
from tests.service.http.pictures import bomb, encoded, png
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio


async def test_gallery_is_created_described_listed_and_deleted(http: httpx.AsyncClient) -> None:
    created = await http.post("/galleries", json={"name": "shop", "index": {"kind": "flat"}})
    assert (created.status_code, created.json()["name"]) == (201, "shop")
    assert (await http.get("/galleries/shop")).json()["items"] == 0
    names = [gallery["name"] for gallery in (await http.get("/galleries")).json()["galleries"]]
    assert names == ["demo", "shop"]
    deleted = await http.delete("/galleries/shop")
    assert (deleted.status_code, deleted.content) == (204, b"")
    failure(await http.get("/galleries/shop"), 404, "unknown_gallery")


async def test_gallery_that_exists_is_a_conflict(http: httpx.AsyncClient) -> None:
    failure(await http.post("/galleries", json={"name": "demo"}), 409, "gallery_exists")


async def test_items_are_decoded_added_and_replaced(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    items = [
        {"id": "a/b c", "text": "a scene", "payload": {"n": 1, "nested": {"list": [1, None, "é"]}}},
        {"id": "p", "image": encoded(png())},
        {"id": "v", "embeddings": {"image": [1.0] * DIMENSION, "text": [2.0] * DIMENSION}},
        {"id": "scene-0", "text": "another"},
    ]
    response = await http.post("/galleries/demo/items", json={"items": items})
    assert response.json() == {"added": 3, "replaced": 1, "items": 8}
    stored = engine.galleries["demo"]
    assert stored["p"].pixels is not None
    assert stored["p"].pixels.shape == (3, 6, 8)
    assert stored["v"].embeddings["text"].tolist() == [2.0] * DIMENSION
    assert (await http.get("/galleries/demo/items/a/b c")).json()["payload"] == items[0]["payload"]
    assert (await http.get("/galleries/demo/items/a%2Fb%20c")).json()["id"] == "a/b c"


async def test_items_are_listed_page_by_page(http: httpx.AsyncClient) -> None:
    page = (await http.get("/galleries/demo/items?offset=3&limit=10")).json()
    assert [item["id"] for item in page["items"]] == ["scene-3", "scene-4"]
    assert page["total"] == 5


async def test_items_are_deleted_by_id(http: httpx.AsyncClient) -> None:
    response = await http.post("/galleries/demo/items/delete", json={"ids": ["scene-0", "none"]})
    assert response.json() == {"deleted": 1}
    failure(await http.get("/galleries/demo/items/scene-0"), 404, "unknown_item")


@pytest.mark.parametrize(
    ("item", "status", "code", "words"),
    [
        ({"id": "a"}, 422, "invalid_request", "items[1]: an item needs"),
        ({"id": "a", "embeddings": {}}, 422, "invalid_request", "items[1]: an item needs"),
        ({"id": "", "text": "a"}, 422, "invalid_request", "items[1].id"),
        ({"id": "a" * 513, "text": "a"}, 422, "invalid_request", "items[1].id"),
        ({"id": 5, "text": "a"}, 422, "invalid_request", "items[1].id"),
        ({"text": "a"}, 422, "invalid_request", "items[1].id: Field required"),
        ({"id": "a", "text": ""}, 422, "invalid_request", "items[1].text"),
        ({"id": "a", "text": "a" * 100_000}, 413, "too_large", "items[1].text"),
        ({"id": "a", "image": "@@"}, 422, "bad_image", "items[1].image"),
        ({"id": "a", "image": encoded(bomb())}, 413, "image_too_large", "items[1].image"),
        ({"id": "a", "embeddings": {"text": [1.0]}}, 422, "bad_embedding", "items[1].embeddings.text"),
        ({"id": "a", "embeddings": {"image": [0.0] * 4}}, 422, "bad_embedding", "is zero"),
        ({"id": "a", "text": "a", "payload": [1]}, 422, "invalid_request", "items[1].payload"),
        ({"id": "a", "text": "a", "colour": "red"}, 422, "invalid_request", "items[1].colour"),
    ],
)
async def test_one_bad_item_refuses_the_request(
    http: httpx.AsyncClient, engine: FakeEngine, item: Any, status: int, code: str, words: str
) -> None:
    items = [{"id": "good", "text": "good"}, item]
    response = await http.post("/galleries/demo/items", json={"items": items})
    assert words in failure(response, status, code)["message"]
    assert "good" not in engine.galleries["demo"]


async def test_payload_that_is_not_finite_is_refused(http: httpx.AsyncClient) -> None:
    body = b'{"items": [{"id": "a", "text": "a", "payload": {"deep": [{"n": -Infinity}]}}]}'
    response = await http.post(
        "/galleries/demo/items", content=body, headers={"Content-Type": "application/json"}
    )
    assert "items[0].payload" in failure(response, 422, "invalid_request")["message"]


async def test_too_many_items_are_refused(http: httpx.AsyncClient) -> None:
    items = [{"id": str(i), "text": "a"} for i in range(257)]
    failure(await http.post("/galleries/demo/items", json={"items": items}), 413, "too_large")
    ids = {"ids": [str(i) for i in range(257)]}
    failure(await http.post("/galleries/demo/items/delete", json=ids), 413, "too_large")


@pytest.mark.parametrize(
    "name", ["", "UPPER", "a..b", "../etc", ".hidden", "a/b", "a b", "é", "a" * 65, "x\n"]
)
async def test_bad_gallery_name_is_refused_in_the_body(http: httpx.AsyncClient, name: str) -> None:
    error = failure(await http.post("/galleries", json={"name": name}), 422, "invalid_request")
    assert error["message"].startswith("name: ")
    assert "[a-z" not in error["message"]


@pytest.mark.parametrize(
    "path",
    ["/galleries/%2e%2e", "/galleries/a%00b", "/galleries/..", "/galleries/UPPER", "/galleries/a..b/items"],
)
async def test_bad_gallery_name_is_refused_in_the_path(engine: FakeEngine, path: str, settings: Any) -> None:
    response = await raw_get(engine, settings, path)
    failure(response, 422, "invalid_request")


@pytest.mark.parametrize("path", ["/galleries/..%2f..%2fetc%2fpasswd", "/galleries/a%2fb"])
async def test_name_with_slashes_is_no_route(engine: FakeEngine, path: str, settings: Any) -> None:
    failure(await raw_get(engine, settings, path), 404, "unknown_route")


async def raw_get(engine: FakeEngine, settings: Any, path: str) -> httpx.Response:
    """GET `path` as it stands: httpx would tidy up dots before sending."""
    from urllib.parse import unquote

    from service.http.app import create_app

    app = create_app(settings, engine)

    async def untidied(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": unquote(path), "raw_path": path.encode()}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(untidied), base_url="http://attune") as client:
        return await client.get("/")


@pytest.mark.parametrize("query", ["offset=-1", "limit=0", "limit=1001", "limit=many", "offset=1e30"])
async def test_bad_page_is_refused(http: httpx.AsyncClient, query: str) -> None:
    failure(await http.get(f"/galleries/demo/items?{query}"), 422, "invalid_request")


async def test_full_disk_is_507(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = StorageFull("the disk is full; nothing was changed")
    failure(await http.post("/galleries", json={"name": "shop"}), 507, "storage_full")


async def test_canaries_are_set_and_shown(http: httpx.AsyncClient) -> None:
    body = {
        "canaries": [
            {"text": "a red circle", "answer": "scene-1"},
            {"image": encoded(png()), "answer": "scene-2"},
            {"text": "in blue", "image": encoded(png()), "answer": "scene-3"},
        ]
    }
    answer = await http.put("/galleries/demo/canaries", json=body)
    assert answer.status_code == 200
    assert [canary["kind"] for canary in answer.json()["canaries"]] == ["text", "image", "image+text"]
    assert (await http.get("/galleries/demo/canaries")).json() == answer.json()


@pytest.mark.parametrize(
    "canary",
    [{"answer": "scene-1"}, {"text": "x", "embedding": "1", "answer": "scene-1"}, {"text": "x"}],
)
async def test_a_canary_is_one_query_and_its_answer(http: httpx.AsyncClient, canary: dict[str, str]) -> None:
    answer = await http.put("/galleries/demo/canaries", json={"canaries": [canary]})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_request"
