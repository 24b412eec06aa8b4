from __future__ import annotations

import io
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from encoders import preprocessing
from index.items import version_of
from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import DIMENSION, FakeEngine
from tests.service.http.pictures import encoded, png
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio

_FIRST = f"/galleries/demo/previews/scene-0?v={version_of(b'RIFF of scene 0')}"


async def add(http: httpx.AsyncClient, *items: dict[str, Any]) -> None:
    assert (await http.post("/galleries/demo/items", json={"items": items})).status_code == 200


async def preview_of(http: httpx.AsyncClient, id: str) -> str:
    url: str = (await http.get(f"/galleries/demo/items/{quote(id, safe='')}")).json()["preview"]
    return url


def size_of(preview: bytes | None) -> tuple[int, int]:
    assert preview is not None
    return Image.open(io.BytesIO(preview)).size


async def test_item_added_with_a_picture_has_a_preview(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await add(http, {"id": "p", "image": encoded(png(600, 300))}, {"id": "t", "text": "no picture"})
    url = await preview_of(http, "p")
    assert url.startswith("/galleries/demo/previews/p?v=")
    response = await http.get(url)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    assert response.content == engine.galleries["demo"]["p"].preview
    assert size_of(response.content) == (256, 128)
    assert "preview" not in (await http.get("/galleries/demo/items/t")).json()


async def test_hits_and_pages_say_where_the_preview_is_and_only_where_there_is_one(
    http: httpx.AsyncClient,
) -> None:
    await add(http, {"id": "scene-1", "image": encoded(png())})
    url = await preview_of(http, "scene-1")
    page = (await http.get("/galleries/demo/items")).json()["items"]
    assert [item.get("preview") for item in page] == [_FIRST, url, None, None, None]
    answer = (await http.post("/retrieve", json={"queries": [{"text": "a"}], "k": 3})).json()
    hits = answer["results"][0]["hits"]
    assert [hit.get("preview") for hit in hits] == [_FIRST, url, None]
    assert not any("preview_version" in shown for shown in [*page, *hits])


@pytest.mark.parametrize("id", ["a/b c", "ä?v=1#x", "%2F&v=2", "../x", 'q"<>', "…" * 100])
async def test_every_id_has_a_path_that_leads_to_its_preview(http: httpx.AsyncClient, id: str) -> None:
    await add(http, {"id": id, "image": encoded(png())})
    url = await preview_of(http, id)
    assert url.isascii()
    assert url.count("/") == 4
    assert (await http.get(url)).headers["cache-control"] == "private, max-age=31536000, immutable"


async def test_current_version_is_kept_for_good_and_all_else_is_asked_again(http: httpx.AsyncClient) -> None:
    await add(http, {"id": "p", "image": encoded(png())})
    old = await preview_of(http, "p")
    await add(http, {"id": "p", "image": encoded(png(colour="blue"))})
    new = await preview_of(http, "p")
    assert old != new
    current = await http.get(new)
    assert current.headers["cache-control"] == "private, max-age=31536000, immutable"
    for url in (old, new.partition("?")[0], f"{new}0"):
        response = await http.get(url)
        assert response.headers["cache-control"] == "private, no-cache"
        assert response.content == current.content


@pytest.mark.parametrize("form", ["{tag}", "W/{tag}", '"other", {tag}', "*"])
async def test_client_that_has_it_gets_304(http: httpx.AsyncClient, form: str) -> None:
    await add(http, {"id": "p", "image": encoded(png())})
    url = await preview_of(http, "p")
    tag = (await http.get(url)).headers["etag"]
    assert tag == f'"{url.partition("=")[2]}"'
    response = await http.get(url, headers={"If-None-Match": form.format(tag=tag)})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"] == tag
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"


@pytest.mark.parametrize("sent", ['"000000000000"', "nonsense", '"', ","])
async def test_client_that_has_another_gets_the_preview(http: httpx.AsyncClient, sent: str) -> None:
    await add(http, {"id": "p", "image": encoded(png())})
    response = await http.get("/galleries/demo/previews/p", headers={"If-None-Match": sent})
    assert (response.status_code, response.content[:4]) == (200, b"RIFF")


async def test_preview_can_only_be_taken_for_a_picture(http: httpx.AsyncClient) -> None:
    await add(http, {"id": "p", "image": encoded(png())})
    headers = (await http.get("/galleries/demo/previews/p")).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-site"
    assert "Authorization" in headers["vary"], "it is not shown from a cache to whoever has no key"
    assert headers["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/galleries/demo/previews/scene-2", "unknown_preview"),
        ("/galleries/demo/previews/vector", "unknown_preview"),
        ("/galleries/demo/previews/none", "unknown_item"),
        ("/galleries/none/previews/scene-0", "unknown_gallery"),
    ],
)
async def test_what_has_no_preview_is_404(http: httpx.AsyncClient, path: str, code: str) -> None:
    await add(http, {"id": "vector", "embeddings": {"image": [1.0] * DIMENSION}})
    failure(await http.get(path), 404, code)


async def test_overlong_version_is_refused(http: httpx.AsyncClient) -> None:
    failure(await http.get(f"/galleries/demo/previews/scene-2?v={'0' * 65}"), 422, "invalid_request")


@pytest.mark.parametrize(("pixels", "size"), [(40, (40, 20)), (1024, (600, 300))])
async def test_size_is_a_setting(engine: FakeEngine, pixels: int, size: tuple[int, int]) -> None:
    async with served(engine, Settings(preview_pixels=pixels)) as http:
        await add(http, {"id": "p", "image": encoded(png(600, 300))})
    assert size_of(engine.galleries["demo"]["p"].preview) == size


async def test_no_preview_is_made_where_none_is_kept(engine: FakeEngine) -> None:
    async with served(engine, Settings(preview_pixels=0)) as http:
        await add(http, {"id": "p", "image": encoded(png())})
        assert "preview" not in (await http.get("/galleries/demo/items/p")).json()
    assert engine.galleries["demo"]["p"].preview is None
    assert engine.galleries["demo"]["p"].pixels is not None


async def test_picture_is_decoded_once(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = preprocessing._decode
    monkeypatch.setattr(preprocessing, "_decode", lambda image: decoded.append(1) or decode(image))
    await add(http, {"id": "p", "image": encoded(png())}, {"id": "q", "image": encoded(png(7, 7))})
    assert len(decoded) == 2


async def test_preview_needs_the_key_that_reading_a_gallery_needs(engine: FakeEngine) -> None:
    async with served(engine, Settings(admin_key="admin", api_keys=("reader",))) as http:
        failure(await http.get("/galleries/demo/previews/scene-2"), 401, "unauthorized")
        headers = {"Authorization": "Bearer reader"}
        response = await http.get("/galleries/demo/previews/scene-2", headers=headers)
        failure(response, 404, "unknown_preview")


def served(engine: FakeEngine, settings: Settings) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(settings, engine))
    return httpx.AsyncClient(transport=transport, base_url="http://attune")
