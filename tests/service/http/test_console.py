from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from service.http.app import create_app, create_health_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
PAGE = '<!doctype html><script type="module" src="/console/assets/main-ABCD2345.js"></script>'
SCRIPT = "console.log('attune');" * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    built = tmp_path / "built"
    (built / "deeper").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("outside")
    (built / "index.html").write_text(PAGE)
    (built / "main-ABCD2345.js").write_text(SCRIPT)
    (built / "icon-2345ABCD.svg").write_text("<svg/>")
    (built / "licences.txt").write_text("MIT")
    (built / "sources.sha256").write_text("0")
    (built / "deeper" / "more.js").write_text("1")
    return built


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(console_folder=folder)


def client_of(settings: Settings) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(settings, FakeEngine()))
    return httpx.AsyncClient(transport=transport, base_url="http://attune")


@pytest.fixture
async def plain(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client that says nothing about encodings."""
    async with client_of(settings) as client:
        client.headers["accept-encoding"] = "identity"
        yield client


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/html;q=0.9, application/json;q=0.5"])
async def test_browser_gets_the_page(plain: httpx.AsyncClient, accept: str) -> None:
    response = await plain.get("/", headers={"accept": accept})
    assert response.text == PAGE
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["vary"] == "Accept, Accept-Encoding"
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/json",
        "text/html, application/json",
        "text/html;q=0",
        "text/html;q=x",
        "",
        ";;,,q=1",
    ],
)
async def test_everybody_else_gets_the_card(plain: httpx.AsyncClient, accept: str) -> None:
    response = await plain.get("/", headers={"accept": accept})
    assert response.json() | {"version": ""} == {
        "name": "attune", "version": "", "docs": "/docs", "openapi": "/openapi.json",
    }  # fmt: skip
    assert response.headers["vary"] == "Accept"


async def test_page_and_assets_are_held_to_this_server(plain: httpx.AsyncClient) -> None:
    for path in ("/", "/console/assets/main-ABCD2345.js"):
        headers = (await plain.get(path, headers={"accept": BROWSER})).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert policy["trusted-types"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert (
            headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        )
        assert headers["permissions-policy"] == "camera=(self), microphone=(self)"


async def test_page_is_sent_again_only_when_it_has_changed(
    plain: httpx.AsyncClient, folder: Path, settings: Settings
) -> None:
    headers = {"accept": BROWSER}
    etag = (await plain.get("/", headers=headers)).headers["etag"]
    again = await plain.get("/", headers=headers | {"if-none-match": f'"other", {etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"]
    (folder / "index.html").write_text(PAGE + " ")
    assert (await plain.get("/", headers=headers)).text == PAGE, "files are read once"
    async with client_of(settings) as restarted:
        assert (await restarted.get("/", headers=headers | {"if-none-match": etag})).text == PAGE + " "


async def test_assets_with_a_hash_in_their_name_may_be_kept_for_ever(plain: httpx.AsyncClient) -> None:
    script = await plain.get("/console/assets/main-ABCD2345.js")
    assert script.text == SCRIPT
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    icon = await plain.get("/console/assets/icon-2345ABCD.svg")
    assert icon.headers["content-type"] == "image/svg+xml"
    unhashed = await plain.get("/console/assets/licences.txt")
    assert unhashed.headers["cache-control"] == "no-cache"


async def test_texts_travel_compressed_where_that_is_accepted(plain: httpx.AsyncClient) -> None:
    path = "/console/assets/main-ABCD2345.js"
    async with plain.stream("GET", path, headers={"accept-encoding": "br, gzip;q=0.5"}) as response:
        sent = b"".join([part async for part in response.aiter_raw()])
        assert response.headers["content-encoding"] == "gzip"
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert gzip.decompress(sent).decode() == SCRIPT
    for refusal in ("identity", "gzip;q=0"):
        response = await plain.get(path, headers={"accept-encoding": refusal})
        assert "content-encoding" not in response.headers
        assert response.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "name",
    [
        "index.html", "none.js", "sources.sha256", "deeper", "deeper/more.js", "..%2Fsecret.txt",
        "../secret.txt",
        "%2e%2e/secret.txt", "..", "%2Fetc%2Fpasswd", "main-ABCD2345.js%00", "x" * 3000,
    ],
)  # fmt: skip
async def test_nothing_else_can_be_asked_for(plain: httpx.AsyncClient, name: str) -> None:
    response = await plain.get(f"/console/assets/{name}")
    assert response.status_code == 404
    assert "outside" not in response.text
    assert len(response.content) < 500


async def test_page_and_assets_answer_head_too(plain: httpx.AsyncClient) -> None:
    for path in ("/", "/console/assets/main-ABCD2345.js"):
        response = await plain.head(path, headers={"accept": BROWSER})
        assert response.status_code == 200
        assert int(response.headers["content-length"]) > 0


async def test_without_the_console_there_is_only_the_card(folder: Path) -> None:
    async with client_of(Settings(console=False, console_folder=folder)) as client:
        assert (await client.get("/", headers={"accept": BROWSER})).json()["name"] == "attune"
        for path in ("/console/config", "/console/assets/main-ABCD2345.js"):
            assert (await client.get(path)).status_code == 404


async def test_missing_build_is_said_and_stops_nothing(tmp_path: Path) -> None:
    with capture_logs() as logs:
        client = client_of(Settings(console_folder=tmp_path / "none"))
    assert [line["log_level"] for line in logs] == ["warning"]
    assert "make console" in logs[0]["why"]
    async with client:
        assert (await client.get("/", headers={"accept": BROWSER})).json()["name"] == "attune"
        assert (await client.get("/console/config")).status_code == 200
        failure(await client.get("/console/assets/main.js"), 404, "unknown_asset")


async def test_process_that_answers_no_queries_has_no_console(settings: Settings) -> None:
    transport = httpx.ASGITransport(create_health_app(settings, FakeEngine()))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        assert (await client.get("/", headers={"accept": BROWSER})).json()["name"] == "attune"
        failure(await client.get("/console/config"), 404, "unknown_route")


class TestConfig:
    async def test_config_holds_limits_and_which_keys_are_asked_for(self, http: httpx.AsyncClient) -> None:
        config = (await http.get("/console/config")).json()
        assert config["keys"] == {"admin": False, "api": False}
        assert config["default_gallery"] == "demo"
        assert config["limits"]["queries"] == 256
        assert config["limits"]["audio_seconds"] == 60.0
        assert set(config["limits"]) == {
            "queries", "items", "k", "text_characters", "image_bytes", "image_pixels", "body_bytes",
            "snapshot_bytes", "audio_bytes", "audio_seconds", "labels", "batch_size",
        }  # fmt: skip

    async def test_page_assets_and_config_need_no_key_and_tell_none(self, folder: Path) -> None:
        settings = Settings(
            admin_key=SecretStr("admin-secret"), api_keys=(SecretStr("api-secret"),), console_folder=folder
        )
        async with client_of(settings) as client:
            page = await client.get("/", headers={"accept": BROWSER})
            config = await client.get("/console/config")
            asset = await client.get("/console/assets/main-ABCD2345.js")
            assert page.status_code == asset.status_code == 200
            assert config.json()["keys"] == {"admin": True, "api": True}
            assert not [response for response in (page, config, asset) if "secret" in response.text]
            failure(await client.get("/galleries"), 401, "unauthorized")

    async def test_config_is_there_before_the_server_is_ready(
        self, http: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.ready = False
        assert (await http.get("/console/config")).status_code == 200
