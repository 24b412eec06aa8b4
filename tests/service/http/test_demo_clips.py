from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from demo.clips import LABELS, SPLITS, label_of, make_clip
from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio

FIRST = SPLITS["test"]


async def listed(http: httpx.AsyncClient, **params: Any) -> Any:
    response = await http.get("/demo/clips", params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def test_clips_are_listed_with_labels_and_places(http: httpx.AsyncClient) -> None:
    page = await listed(http, start=1, count=2)
    assert page["labels"] == list(LABELS)
    assert page["clips"][0] == {
        "id": "clip-2000001",
        "label": make_clip(FIRST + 1).label,
        "audio": "/demo/clips/2000001/audio.wav",
        "image": "/demo/clips/2000001/image.png",
    }
    assert [clip["id"] for clip in page["clips"]] == ["clip-2000001", "clip-2000002"]
    assert len((await listed(http))["clips"]) == 8


async def test_every_twelve_clips_hold_each_label_once(http: httpx.AsyncClient) -> None:
    # The split does not begin with a whole dozen: 2,000,000 is 4 short of a multiple of 12.
    clips = (await listed(http, start=4, count=12))["clips"]
    assert {clip["label"] for clip in clips} == set(LABELS)


@pytest.mark.parametrize("number", [FIRST, FIRST + 17, FIRST + 999_999])
async def test_files_are_those_of_the_clip(http: httpx.AsyncClient, number: int) -> None:
    clip = make_clip(number)
    assert label_of(number) == clip.label
    audio = await http.get(f"/demo/clips/{number}/audio.wav")
    samples, rate = soundfile.read(io.BytesIO(audio.content), dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(samples, clip.waveform, atol=1e-4)
    image = await http.get(f"/demo/clips/{number}/image.png")
    with Image.open(io.BytesIO(image.content), formats=["PNG"]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), clip.frame)
    for response, kind in ((audio, "audio/wav"), (image, "image/png")):
        assert response.headers["content-type"] == kind
        assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-site"


@pytest.mark.parametrize(
    "params",
    [
        {"start": -1}, {"start": 1_000_000}, {"start": 999_999, "count": 2}, {"count": 0}, {"count": 257},
        {"count": "many"}, {"start": "1" * 400},
    ],
)  # fmt: skip
async def test_places_outside_the_split_are_refused(http: httpx.AsyncClient, params: Any) -> None:
    failure(await http.get("/demo/clips", params=params), 422, "invalid_request")


async def test_last_clip_can_be_had(http: httpx.AsyncClient) -> None:
    assert [clip["id"] for clip in (await listed(http, start=999_999, count=1))["clips"]] == ["clip-2999999"]


@pytest.mark.parametrize("number", ["0", "1999999", "3000000", "-1", "abc", "1" * 400])
async def test_clips_of_other_splits_cannot_be_had(http: httpx.AsyncClient, number: str) -> None:
    for name in ("audio.wav", "image.png"):
        failure(await http.get(f"/demo/clips/{number}/{name}"), 422, "invalid_request")


async def test_config_says_that_there_are_clips(http: httpx.AsyncClient) -> None:
    assert (await http.get("/console/config")).json()["demo"] == {"clips": True}


@pytest.mark.parametrize("classifier", ["", "/models/other"])
async def test_server_with_another_classifier_has_no_clips(classifier: str) -> None:
    transport = httpx.ASGITransport(create_app(Settings(classifier=classifier), FakeEngine()))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        for path in ("/demo/clips", "/demo/clips/2000001/audio.wav", "/demo/clips/2000001/image.png"):
            failure(await client.get(path), 404, "no_demo")
        assert (await client.get("/console/config")).json()["demo"] == {"clips": False}
