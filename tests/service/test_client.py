from __future__ import annotations

import inspect
import io
import json
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from structlog.testing import capture_logs

import attune
from attune import AsyncClient, AttuneError, Client, Completeness, Part
from service.client import calls
from service.client.transport import Retries
from service.errors import NotReady, QueueFull
from service.http.app import create_app
from service.settings import Settings
from service.version import VERSION
from tests.service.http.fake_engine import FakeEngine, kinds
from tests.service.http.pictures import png

ROOT = Path(__file__).parents[2]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[AsyncClient]:
    transport = httpx.ASGITransport(create_app(Settings(), engine))
    with capture_logs():
        async with AsyncClient("http://attune", transport=transport, max_wait_s=0.0) as client:
            yield client


def blocking(handler: Callable[[httpx.Request], httpx.Response], **arguments: Any) -> Client:
    return Client("http://attune", transport=httpx.MockTransport(handler), **arguments)


@pytest.mark.anyio
async def test_texts_are_answered_with_typed_hits(client: AsyncClient, engine: FakeEngine) -> None:
    answer = await client.retrieve(text="a red circle", k=2, stream="shop-7", adapt="off")
    assert [(hit.id, hit.score) for hit in answer.hits] == [("scene-0", 1.0), ("scene-1", 0.9)]
    assert answer.hits[0].payload == {"colour": "red", "n": 0}
    assert (answer.adaptation.status, answer.adaptation.state_version, answer.parts) == ("queued", 3, ())
    assert (answer.gallery, answer.stream, answer.timings_ms["total"]) == ("demo", "shop-7", 1.0)
    (asked,) = engine.requests
    assert (asked.k, asked.stream, asked.adapt, asked.target) == (2, "shop-7", "off", "auto")


@pytest.mark.anyio
async def test_queries_of_every_form_are_understood(
    client: AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    queries = ["words", png(), path, Image.new("RGB", (3, 3)), [1.0, 0.0, 0.0, 0.0], {"image": path}]
    answer = await client.retrieve(queries)
    assert len(answer.results) == 6
    assert kinds(engine.requests[-1].queries) == ["text", "image", "image", "image", "embedding", "image"]
    assert [part.query_indices for part in answer.parts] == [(0,), (1, 2, 3, 5), (4,)]
    await client.retrieve([0.0, 1.0, 0.0, 0.0])
    assert kinds(engine.requests[-1].queries) == ["embedding"]
    await client.retrieve(text=["a", "b"], image=str(path), embedding=[[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    assert kinds(engine.requests[-1].queries) == ["text", "text", "image", "embedding", "embedding"]


@pytest.mark.anyio
async def test_text_and_picture_together_are_one_query_with_typed_parts(
    client: AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    engine.completed = True
    both = {"text": "the same in blue", "image": tmp_path / "a.png"}
    answer = await client.retrieve([both, "words", [1.0, 0, 0, 0]], target="anchor")
    assert kinds(engine.requests[-1].queries) == ["image+text", "text", "embedding"]
    assert engine.requests[-1].target == "anchor"
    of_both, of_text, of_embedding = answer.completeness
    assert of_both == Completeness({"image": Part(True, 1.0), "text": Part(True, 1.0)}, 0.25)
    assert of_text is not None
    assert of_text.parts["image"] == Part(False, 0.4)
    assert of_embedding is None
    assert answer.hits[0].parts == {"image": Part(False, 0.5), "text": Part(True, 1.0)}
    await client.retrieve(both)
    assert kinds(engine.requests[-1].queries) == ["image+text"]


@pytest.mark.anyio
async def test_answers_without_anchors_have_no_parts(client: AsyncClient) -> None:
    answer = await client.retrieve("words")
    assert answer.completeness == ()
    assert answer.hits[0].parts is None


def test_a_gallery_is_created_with_a_calibration() -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(201, json={"name": "shop"})

    with blocking(handler) as client:
        client.create_gallery("shop", calibration="encoder")
        client.create_gallery("shop", index={"kind": "flat"})
    assert sent == [{"name": "shop", "calibration": "encoder"}, {"name": "shop", "index": {"kind": "flat"}}]


@pytest.mark.anyio
async def test_galleries_and_items_from_the_client(client: AsyncClient, tmp_path: Path) -> None:
    await client.create_gallery("shop", index={"kind": "flat"})
    (tmp_path / "a.png").write_bytes(png())
    seen: list[int] = []
    items = (
        {"id": f"i/{n}", "text": "t", "image": tmp_path / "a.png", "payload": {"n": n}} for n in range(5)
    )
    total = await client.upsert_items("shop", items, batch_size=2, on_progress=seen.append)
    assert total == {"added": 5, "replaced": 0, "items": 5}
    assert seen == [2, 4, 5]
    assert (await client.get_item("shop", "i/3"))["payload"] == {"n": 3}
    assert (await client.preview("shop", "i/3"))[:4] == b"RIFF"
    path = (await client.get_item("shop", "i/0"))["preview"]
    assert path.startswith("/galleries/shop/previews/i%2F0?v=")
    assert (await client.retrieve("t", gallery="shop", k=1)).hits[0].preview == path
    with pytest.raises(AttuneError) as none:
        await client.preview("demo", "scene-2")
    assert (none.value.code, none.value.status) == ("unknown_preview", 404)
    assert (await client.retrieve("t", k=3)).hits[2].preview is None
    assert (await client.list_items("shop", offset=4))["total"] == 5
    assert await client.delete_items("shop", ["i/0", "none"]) == 1
    assert (await client.describe_gallery("shop"))["items"] == 4
    await client.delete_gallery("shop")
    assert [gallery["name"] for gallery in await client.list_galleries()] == ["demo"]


@pytest.mark.anyio
async def test_streams_and_snapshots_from_the_client(client: AsyncClient, tmp_path: Path) -> None:
    await client.configure_stream("s", method="tcr", settings={"steps": 2})
    assert (await client.describe_stream("s"))["settings"] == {"steps": 2}
    assert (await client.configure_stream("s", pinned=True))["pinned"] is True
    assert (await client.create_snapshot("s", "before", note="n"))["note"] == "n"
    data = await client.export_snapshot("s", "before", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    await client.import_snapshot("s", tmp_path / "file", "again")
    assert [card["name"] for card in await client.list_snapshots("s")] == ["before", "again"]
    assert (await client.restore_snapshot("s", "again"))["name"] == "s"
    assert (await client.compare_snapshots("s", "before"))["second"]["name"] is None
    compared = await client.compare_snapshots("s", "before", "again")
    assert [compared[side]["name"] for side in ("first", "second")] == ["before", "again"]
    assert (await client.stream_history("s"))["tracks"]["demo/text->image"]["version"] == [1]
    await client.delete_snapshot("s", "again")
    assert (await client.reset_stream("s"))["version"] == 0
    with pytest.raises(AttuneError, match="has snapshots") as conflict:
        await client.delete_stream("s")
    assert (conflict.value.code, conflict.value.status) == ("conflict", 409)
    await client.delete_stream("s", force=True)
    assert await client.list_streams() == []
    assert (await client.models())["encoder"]["name"] == "fake"


@pytest.mark.anyio
async def test_calibrations_from_the_client(client: AsyncClient, tmp_path: Path) -> None:
    assert [card["name"] for card in await client.list_calibrations()] == ["encoder"]
    assert (await client.fit_calibration("made", "demo", latent=4, samples=9))["name"] == "made"
    data = await client.export_calibration("made", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data == b"5 items, latent 4, samples 9"
    assert (await client.fit_calibration("plain", "demo"))["name"] == "plain"
    assert await client.export_calibration("plain") == b"5 items, latent None, samples 5000"
    assert (await client.add_calibration("again", tmp_path / "file"))["bytes"] == len(data)
    assert (await client.add_calibration("bytes", b"abc"))["bytes"] == 3
    with pytest.raises(AttuneError) as conflict:
        await client.add_calibration("again", data)
    assert conflict.value.code == "calibration_exists"
    card = await client.configure_stream("s", calibration="made")
    assert card["calibrations"] == {"retrieve": {"name": "made"}}
    assert (await client.configure_stream("s", calibration=""))["calibrations"] == {}
    await client.delete_calibration("made")
    with pytest.raises(AttuneError) as unknown:
        await client.describe_calibration("made")
    assert unknown.value.code == "unknown_calibration"


@pytest.mark.anyio
async def test_error_of_the_server_keeps_its_code_and_details(client: AsyncClient) -> None:
    with pytest.raises(AttuneError) as failure:
        await client.retrieve(text=" ")
    error = failure.value
    assert (error.code, error.status) == ("invalid_request", 422)
    assert error.details["errors"][0]["field"] == "queries[0].text"
    assert str(error).endswith("[invalid_request]")


@pytest.mark.anyio
async def test_busy_server_is_asked_again_and_then_given_up(client: AsyncClient, engine: FakeEngine) -> None:
    engine.failures = [QueueFull("full", retry_after_s=5), NotReady("starting")]
    assert (await client.retrieve(text="a")).hits
    assert len(engine.requests) == 3
    engine.failure = QueueFull("full", retry_after_s=5)
    with pytest.raises(AttuneError) as failure:
        await client.retrieve(text="a")
    assert (failure.value.code, failure.value.details["retry_after_s"]) == ("queue_full", 5)
    assert len(engine.requests) == 3 + 4


@pytest.mark.anyio
async def test_readiness_is_awaited(client: AsyncClient, engine: FakeEngine) -> None:
    assert await client.ready()
    await client.wait_ready()
    engine.ready = False
    with pytest.raises(AttuneError) as failure:
        await client.wait_ready(timeout_s=0.0)
    assert failure.value.code == "not_ready"


def test_blocking_client_waits_as_long_as_the_server_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    answers = [(429, {"Retry-After": "2"}), (503, {"Retry-After": "600"}), (503, {}), (200, {})]

    def handler(request: httpx.Request) -> httpx.Response:
        status, headers = answers.pop(0)
        return httpx.Response(status, headers=headers, json={"encoder": {}})

    with blocking(handler, max_wait_s=4.0) as client:
        assert client.models() == {"encoder": {}}
    assert waits == [2.0, 4.0, 0.8]


def test_other_failures_are_not_tried_again() -> None:
    for status in (400, 404, 409, 422, 500, 504):
        assert Retries().wait_s(httpx.Response(status, headers={"Retry-After": "1"}), 0) is None
    assert Retries(times=0).wait_s(httpx.Response(429), 0) is None


def test_key_and_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_URL", "http://elsewhere:99")
    monkeypatch.setenv("ATTUNE_ADMIN_KEY", "k")
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"streams": []})

    with Client(transport=httpx.MockTransport(handler)) as client:
        assert client.list_streams() == []
    assert str(seen[0].url) == "http://elsewhere:99/admin/streams"
    assert seen[0].headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("error", "code"),
    [(httpx.ConnectError("refused"), "unreachable"), (httpx.ReadTimeout("slow"), "timeout")],
)
def test_server_that_cannot_be_reached_is_an_attune_error(error: Exception, code: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    with blocking(handler) as client:
        with pytest.raises(AttuneError) as failure:
            client.models()
        assert not client.ready()
    assert (failure.value.code, failure.value.status) == (code, None)


@pytest.mark.parametrize("status", [200, 502])
def test_answer_that_is_no_json_is_an_attune_error(status: int) -> None:
    with (
        blocking(lambda request: httpx.Response(status, text="<html>")) as client,
        pytest.raises(AttuneError) as failure,
    ):
        client.models()
    assert (failure.value.code, failure.value.status) == ("bad_answer", status)


def test_names_are_quoted_in_the_path() -> None:
    assert calls.get_item("g", "a/b?c #").path == "/galleries/g/items/a%2Fb%3Fc%20%23"


def test_large_pictures_make_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BATCH_CHARACTERS", 100)
    items = [{"id": str(n), "image": bytes(30)} for n in range(5)]
    assert [len(batch) for batch in calls.item_batches(items, 64)] == [2, 2, 1]
    assert [len(batch) for batch in calls.item_batches(items, 1)] == [1] * 5
    assert list(calls.item_batches([], 64)) == []


def test_nothing_to_look_for_is_refused_before_it_is_sent() -> None:
    with blocking(lambda request: httpx.Response(500)) as client, pytest.raises(ValueError, match="nothing"):
        client.retrieve()


def test_pillow_image_is_sent_without_loss() -> None:
    import base64

    image = Image.new("RGB", (2, 2), "blue")
    decoded = Image.open(io.BytesIO(base64.b64decode(calls.image_text(image))))
    assert decoded.getpixel((1, 1)) == (0, 0, 255)
    assert calls.image_text("data:image/png;base64,AAAA") == "data:image/png;base64,AAAA"


def public(client: type) -> Iterator[tuple[str, inspect.Signature]]:
    for name, method in inspect.getmembers(client, inspect.isfunction):
        if not name.startswith("_"):
            yield name, inspect.signature(method)


def test_both_clients_have_the_same_methods_and_documentation() -> None:
    assert dict(public(Client)) == dict(public(AsyncClient))
    for name, _ in public(Client):
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__


def test_client_imports_neither_torch_nor_the_server() -> None:
    heavy = "('torch', 'fastapi', 'transformers', 'faiss', 'numpy', 'PIL')"
    script = f"import sys, attune; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION == attune.__version__


def test_an_api_key_travels_beside_the_admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_API_KEY", "reader")
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    with Client("http://x", admin_key="owner", transport=httpx.MockTransport(answer)) as client:
        client.models()
    assert seen[0].headers["authorization"] == "Bearer owner"
    assert seen[0].headers["x-attune-api-key"] == "reader"
