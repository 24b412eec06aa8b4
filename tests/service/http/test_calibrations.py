from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio
PATH = "/admin/calibrations"
BYTES = {"Content-Type": "application/octet-stream"}


async def test_calibration_is_fitted_listed_described_and_deleted(http: httpx.AsyncClient) -> None:
    made = await http.post(PATH, json={"name": "made", "gallery": "demo", "latent": 4, "samples": 100})
    assert (made.status_code, made.json()["relative_error"]) == (201, {"text": 0.5})
    assert [one["name"] for one in (await http.get(PATH)).json()["calibrations"]] == ["encoder", "made"]
    assert (await http.get(f"{PATH}/made")).json()["latent"] == 16
    assert (await http.delete(f"{PATH}/made")).status_code == 204
    failure(await http.get(f"{PATH}/made"), 404, "unknown_calibration")
    failure(await http.delete(f"{PATH}/encoder"), 409, "calibration_in_use")


async def test_calibration_goes_out_and_comes_in_unchanged(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    out = await http.get(f"{PATH}/encoder/export")
    assert out.headers["content-type"] == "application/octet-stream"
    assert out.headers["content-disposition"] == 'attachment; filename="encoder.safetensors"'
    response = await http.post(f"{PATH}?name=copy", content=out.content, headers=BYTES)
    assert response.status_code == 201
    assert engine.calibrations["copy"] == out.content
    failure(await http.post(f"{PATH}?name=copy", content=b"x", headers=BYTES), 409, "calibration_exists")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "made"},
        {"gallery": "demo"},
        {"name": "../x", "gallery": "demo"},
        {"name": "a" * 65, "gallery": "demo"},
        {"name": "made", "gallery": "../demo"},
        {"name": "made", "gallery": "demo", "latent": 0},
        {"name": "made", "gallery": "demo", "latent": 2.5},
        {"name": "made", "gallery": "demo", "samples": 7},
        {"name": "made", "gallery": "demo", "samples": 20_001},
        {"name": "made", "gallery": "demo", "seed": 1},
        [],
    ],
)
async def test_bad_wish_is_refused(http: httpx.AsyncClient, engine: FakeEngine, body: Any) -> None:
    failure(await http.post(PATH, json=body), 422, "invalid_request")
    assert set(engine.calibrations) == {"encoder"}


async def test_file_needs_a_name_bytes_and_the_right_type(http: httpx.AsyncClient) -> None:
    failure(await http.post(PATH, content=b"x", headers=BYTES), 422, "invalid_request")
    failure(await http.post(f"{PATH}?name=a", content=b"", headers=BYTES), 422, "invalid_request")
    failure(await http.post(f"{PATH}?name=../a", content=b"x", headers=BYTES), 422, "invalid_request")
    failure(await http.post(f"{PATH}?name=a", content=b"x"), 415, "unsupported_media_type")
    body = {"name": "made", "gallery": "demo"}
    failure(await http.post(f"{PATH}?name=a", json=body), 422, "invalid_request")
    broken = await http.post(PATH, content=b"{", headers={"Content-Type": "application/json"})
    assert broken.status_code == 400


@pytest.mark.parametrize("settings", [Settings(max_calibration_bytes=2000, max_body_bytes=1500)])
async def test_files_have_their_own_limit(http: httpx.AsyncClient) -> None:
    assert (await http.post(f"{PATH}?name=a", content=bytes(1900), headers=BYTES)).status_code == 201
    failure(await http.post(f"{PATH}?name=b", content=bytes(2100), headers=BYTES), 413, "too_large")


@pytest.mark.parametrize("name", ["%2e%2e", "a%20b", "a..b", "a" * 65])
async def test_bad_name_is_refused(http: httpx.AsyncClient, name: str) -> None:
    failure(await http.get(f"{PATH}/{name}/export"), 422, "invalid_request")


async def test_gallery_and_stream_name_their_calibration(http: httpx.AsyncClient) -> None:
    made = await http.post("/galleries", json={"name": "shop", "calibration": "encoder"})
    assert made.status_code == 201
    refused = await http.post("/galleries", json={"name": "other", "calibration": "none"})
    failure(refused, 404, "unknown_calibration")
    card = (await http.put("/admin/streams/s", json={"calibration": "encoder"})).json()
    assert card["calibrations"] == {"retrieve": {"name": "encoder"}}
    assert (await http.put("/admin/streams/s", json={"calibration": ""})).json()["calibrations"] == {}
    for name in ("../x", " ", "a" * 65):
        failure(await http.put("/admin/streams/s", json={"calibration": name}), 422, "invalid_request")
        failure(
            await http.post("/galleries", json={"name": "x", "calibration": name}), 422, "invalid_request"
        )
