from __future__ import annotations

import asyncio
import base64
import io
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from anyio import CapacityLimiter
from PIL import Image

from attune import AsyncClient
from benchmarks.corruptions import IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS, corrupt_image, corrupt_text
from benchmarks.corruptions.audio import AUDIO_CORRUPTIONS, NoiseBeds, corrupt_audio
from service.errors import TooLarge
from service.http import corruptions
from service.http.app import create_app
from service.http.corruption_schemas import CorruptBody, CorruptQuery
from service.http.corruptions import Corruption, Room, corrupt_all, share_of
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.pictures import bomb, encoded, png
from tests.service.http.shape import failure
from tests.service.http.sounds import announcing, sound, tone, wav

pytestmark = pytest.mark.anyio

TEXT = "two brown dogs run over the green grass"


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def data_of(uri: str, kind: str) -> bytes:
    head = f"data:{kind};base64,"
    assert uri.startswith(head)
    return base64.b64decode(uri.removeprefix(head), validate=True)


def picture_of(query: dict[str, str]) -> np.ndarray:
    assert set(query) == {"image"}
    with Image.open(io.BytesIO(data_of(query["image"], "image/png")), formats=["PNG"]) as image:
        return np.asarray(image)


def sound_of(query: dict[str, str]) -> tuple[np.ndarray, int]:
    assert set(query) == {"audio"}
    file = io.BytesIO(data_of(query["audio"], "audio/wav"))
    assert soundfile.info(file).subtype == "PCM_16"
    file.seek(0)
    samples, rate = soundfile.read(file, dtype="float32")
    return samples, int(rate)


async def corrupt(http: httpx.AsyncClient, name: str, *queries: dict[str, str], **options: Any) -> Any:
    """The corrupted queries."""
    body = {"corruption": name, "queries": queries, **options}
    response = await http.post("/corruptions", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["corruption"] == name
    return answer["queries"]


@pytest.fixture
def tight() -> Settings:
    return Settings(
        max_queries_per_request=3,
        max_text_characters=50,
        max_image_bytes=2000,
        max_image_pixels=5000,
        max_audio_bytes=10_000,
        max_audio_seconds=1.0,
    )


@pytest.fixture
async def narrow(tight: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with small limits."""
    transport = httpx.ASGITransport(create_app(tight, FakeEngine()))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        yield client


async def test_list_has_the_corruptions_of_the_benchmarks_in_their_order(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/corruptions")).json()
    assert [entry["name"] for entry in listed["image"]] == list(IMAGE_CORRUPTIONS)
    assert [entry["name"] for entry in listed["audio"]] == list(AUDIO_CORRUPTIONS)
    assert [entry["name"] for entry in listed["text"]] == list(TEXT_CORRUPTIONS)
    assert {entry["group"] for entry in listed["image"]} == {"noise", "blur", "weather", "digital"}
    assert all(entry["severities"] == [1, 2, 3, 4, 5] for entry in listed["image"] + listed["audio"])
    texts = {entry["name"]: entry for entry in listed["text"]}
    assert texts["CS"] == {
        "name": "CS", "group": "character", "summary": "neighbouring characters swapped",
        "severities": [1, 2, 3, 4, 5, 6, 7], "available": True, "why": "",
    }  # fmt: skip
    assert texts["Formal"]["available"] is False
    assert "model" in texts["Formal"]["why"]
    assert texts["Formal"]["severities"] == [1]


@pytest.mark.parametrize("style", ["imagenet_c", "mm_robustness"])
async def test_picture_is_what_the_benchmarks_make_of_it(http: httpx.AsyncClient, style: Any) -> None:
    array = noise(60, 40)
    query = {"image": f"data:image/png;base64,{encoded(as_png(array))}"}
    made = await corrupt(http, "fog", query, query, severity=3, style=style, seed=5)
    for place in range(2):
        expected = corrupt_image(array, "fog", 3, np.random.default_rng([5, place]), style=style, scale=True)
        np.testing.assert_array_equal(picture_of(made[place]), expected)


async def test_text_is_what_the_benchmarks_make_of_it(http: httpx.AsyncClient) -> None:
    made = await corrupt(http, "CS", {"text": TEXT}, {"text": TEXT}, severity=7, seed=1)
    expected = [corrupt_text(TEXT, "CS", 7, np.random.default_rng([1, place])) for place in range(2)]
    assert made == [{"text": text} for text in expected]
    assert TEXT != expected[0] != expected[1]


@pytest.mark.parametrize("name", ["gaussian_noise", "rain"])
async def test_sound_is_what_the_benchmarks_make_of_it(http: httpx.AsyncClient, name: str) -> None:
    (made,) = await corrupt(http, name, {"audio": encoded(wav(rate=22_050))}, severity=4)
    samples, rate = sound_of(made)
    clean, _ = soundfile.read(io.BytesIO(wav(rate=22_050)), dtype="float32")
    expected = corrupt_audio(clean, name, 4, np.random.default_rng([0, 0]), NoiseBeds(22_050))
    assert rate == 22_050
    np.testing.assert_array_equal(samples, expected)


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (300, 1)])
async def test_picture_of_hardly_any_pixels_can_be_corrupted(
    http: httpx.AsyncClient, name: str, size: tuple[int, int]
) -> None:
    for style in ("imagenet_c", "mm_robustness"):
        (made,) = await corrupt(http, name, {"image": encoded(png(*size))}, style=style)
        assert picture_of(made).size == 3 * size[0] * size[1]


async def test_large_picture_is_reduced_first(http: httpx.AsyncClient) -> None:
    (made,) = await corrupt(http, "contrast", {"image": encoded(png(1300, 650))})
    assert picture_of(made).shape == (256, 512, 3)


async def test_fast_sound_is_resampled_and_channels_are_mixed(http: httpx.AsyncClient) -> None:
    stereo = np.stack([tone(rate=96_000), -tone(rate=96_000)], axis=1)
    (made,) = await corrupt(http, "gaussian_noise", {"audio": encoded(wav(stereo, 96_000))}, severity=1)
    samples, rate = sound_of(made)
    assert (samples.shape, rate) == ((4800,), 48_000)
    assert float(np.std(samples)) == pytest.approx(0.08, rel=0.1), "both channels cancel; the noise is left"


@pytest.mark.parametrize("format", ["FLAC", "OGG"])
async def test_other_formats_of_sound_are_read(http: httpx.AsyncClient, format: str) -> None:
    uri = f"data:audio/{format.lower()};codecs=x;base64,{encoded(sound(format=format))}"
    (made,) = await corrupt(http, "wind", {"audio": uri})
    assert sound_of(made)[0].shape == (1600,)


async def test_same_seed_repeats_and_another_does_not(http: httpx.AsyncClient) -> None:
    query = {"image": encoded(png(20, 20))}
    first = await corrupt(http, "gaussian_noise", query, query, seed=2**63 - 1)
    assert first == await corrupt(http, "gaussian_noise", query, query, seed=2**63 - 1)
    assert first[0] != first[1]
    assert first[0] not in await corrupt(http, "gaussian_noise", query, query, seed=1)


async def test_severity_left_out_is_five_or_the_highest_there_is(http: httpx.AsyncClient) -> None:
    for name, query in (("fog", {"image": encoded(png())}), ("CS", {"text": TEXT})):
        response = await http.post("/corruptions", json={"corruption": name, "queries": [query]})
        assert response.json()["severity"] == 5


async def test_queries_decide_which_of_two_namesakes_is_meant(http: httpx.AsyncClient) -> None:
    (picture,) = await corrupt(http, "gaussian_noise", {"image": encoded(png())})
    (heard,) = await corrupt(http, "gaussian_noise", {"audio": encoded(wav())})
    assert picture_of(picture).shape == (5, 10, 3)
    assert sound_of(heard)[0].shape == (1600,)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"corruption": "fogg", "queries": [{"image": encoded(png())}]}, "unknown_corruption", "'fog'"),
        ({"corruption": "ocr", "queries": [{"text": TEXT}]}, "unknown_corruption", "'OCR'"),
        ({"corruption": "fog", "queries": [{"text": TEXT}]}, "unknown_corruption", "of texts"),
        ({"corruption": "OCR", "queries": [{"image": encoded(png())}]}, "unknown_corruption", "of pictures"),
        ({"corruption": "snow", "queries": [{"audio": encoded(wav())}]}, "unknown_corruption", "of sounds"),
        (
            {"corruption": "fog", "severity": 6, "queries": [{"image": encoded(png())}]},
            "unknown_severity",
            "1, 2",
        ),
        ({"corruption": "CS", "severity": 0, "queries": [{"text": TEXT}]}, "unknown_severity", "not 0"),
        ({"corruption": "Formal", "severity": 2, "queries": [{"text": TEXT}]}, "unknown_severity", "1, not"),
        ({"corruption": "Formal", "queries": [{"text": TEXT}]}, "missing_tool", "a model"),
        (
            {"corruption": "CS", "style": "mm_robustness", "queries": [{"text": TEXT}]},
            "invalid_request",
            "style",
        ),
        ({"corruption": "CS", "style": "other", "queries": [{"text": TEXT}]}, "invalid_request", "style"),
        ({"corruption": "CS", "seed": -1, "queries": [{"text": TEXT}]}, "invalid_request", "seed"),
        ({"corruption": "CS", "queries": []}, "invalid_request", "queries"),
        ({"corruption": "CS", "queries": [{}]}, "invalid_request", "one of"),
        ({"corruption": "CS", "queries": [{"text": " "}]}, "invalid_request", "blank"),
        ({"corruption": "CS", "queries": [{"text": "a", "image": "b"}]}, "invalid_request", "no second"),
        ({"corruption": "CS", "queries": [{"text": "a"}, {"image": "b"}]}, "invalid_request", "mixed"),
        ({"corruption": "CS", "queries": [{"text": "a"}], "level": 3}, "invalid_request", "level"),
        ({"corruption": "fog", "queries": [{"image": "not base64"}]}, "bad_image", "queries[0].image"),
        ({"corruption": "fog", "queries": [{"image": encoded(b"GIF89a")}]}, "bad_image", "queries[0].image"),
        ({"corruption": "fog", "queries": [{"image": "https://x/y.png"}]}, "bad_image", "not fetched"),
        ({"corruption": "rain", "queries": [{"audio": encoded(b"RIFF")}]}, "bad_audio", "queries[0].audio"),
        ({"corruption": "rain", "queries": [{"audio": encoded(wav(tone(0.01)))}]}, "bad_audio", "25 ms"),
    ],
)
async def test_bad_request_is_refused(http: httpx.AsyncClient, body: Any, code: str, said: str) -> None:
    assert said in failure(await http.post("/corruptions", json=body), 422, code)["message"]


@pytest.mark.parametrize(
    ("name", "query", "code"),
    [
        ("fog", {"image": encoded(bomb())}, "image_too_large"),
        ("fog", {"image": encoded(png(100, 51))}, "image_too_large"),
        ("fog", {"image": encoded(bytes(2001))}, "image_too_large"),
        ("rain", {"audio": encoded(announcing(3000.0))}, "bad_audio"),
        (
            "rain",
            {"audio": encoded(wav(tone(1.1, rate=8000), rate=8000, subtype="PCM_U8"))},
            "audio_too_long",
        ),
        ("rain", {"audio": encoded(bytes(10_001))}, "audio_too_long"),
        ("CS", {"text": "a" * 51}, "too_large"),
    ],
)
async def test_what_is_too_large_is_refused_before_it_is_decoded(
    narrow: httpx.AsyncClient, name: str, query: dict[str, str], code: str
) -> None:
    body = {"corruption": name, "queries": [query]}
    failure(await narrow.post("/corruptions", json=body), 422 if code.startswith("bad") else 413, code)


async def test_too_many_queries_are_refused(narrow: httpx.AsyncClient) -> None:
    assert len(await corrupt(narrow, "CS", *[{"text": TEXT}] * 3)) == 3
    body = {"corruption": "CS", "queries": [{"text": TEXT}] * 4}
    error = failure(await narrow.post("/corruptions", json=body), 413, "too_large")
    assert error["details"] == {"max_queries": 3}


async def test_answer_cannot_become_many_times_the_request() -> None:
    transport = httpx.ASGITransport(create_app(Settings(max_body_bytes=100_000), FakeEngine()))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        plain = {"image": encoded(png(512, 512))}
        assert len(plain["image"]) < 5000
        body = {"corruption": "gaussian_noise", "queries": [plain] * 8}
        assert "fewer" in failure(await client.post("/corruptions", json=body), 413, "too_large")["message"]


async def test_first_bad_query_is_named(http: httpx.AsyncClient) -> None:
    queries = [{"image": encoded(png())}, {"image": "?"}, {"image": "!"}]
    error = failure(
        await http.post("/corruptions", json={"corruption": "fog", "queries": queries}), 422, "bad_image"
    )
    assert error["details"] == {"field": "queries[1].image"}


async def test_after_a_bad_query_the_rest_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def apply(self: Corruption, place: int, query: CorruptQuery, room: Room) -> dict[str, str]:
        seen.append(place)
        raise TooLarge("too large")

    monkeypatch.setattr(Corruption, "apply", apply)
    body = CorruptBody(corruption="CS", queries=[CorruptQuery(text="a")] * 20)
    with pytest.raises(TooLarge):
        await corrupt_all(corruption_of(body), body.queries, CapacityLimiter(4), CapacityLimiter(2))
    assert set(seen) <= {0, 1}, "two threads of four may be at work"


def corruption_of(body: CorruptBody) -> Corruption:
    return Corruption.of_request(body, Settings())


async def test_however_many_corrupt_half_of_the_threads_are_left_to_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, release, busy = CapacityLimiter(4), threading.Event(), threading.Semaphore(0)
    share = share_of(threads)

    def apply(self: Corruption, place: int, query: CorruptQuery, room: Room) -> dict[str, str]:
        busy.release()
        assert release.wait(10)
        return {"text": "a"}

    monkeypatch.setattr(Corruption, "apply", apply)
    body = CorruptBody(corruption="CS", queries=[CorruptQuery(text="a")] * 3)
    corruption = corruption_of(body)
    works = [asyncio.create_task(corrupt_all(corruption, body.queries, threads, share)) for _ in range(5)]
    for _ in range(2):
        assert await asyncio.to_thread(busy.acquire, True, 10)
    assert threads.borrowed_tokens == 2
    release.set()
    assert [len(made) for made in await asyncio.gather(*works)] == [3] * 5
    assert share.borrowed_tokens == 0


async def test_other_requests_get_their_turn_between_corruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, release, busy = CapacityLimiter(2), threading.Event(), threading.Event()

    def apply(self: Corruption, place: int, query: CorruptQuery, room: Room) -> dict[str, str]:
        busy.set()
        assert release.wait(10)
        return {"text": "a"}

    monkeypatch.setattr(Corruption, "apply", apply)
    body = CorruptBody(corruption="CS", queries=[CorruptQuery(text="a")] * 5)
    work = asyncio.create_task(corrupt_all(corruption_of(body), body.queries, threads, share_of(threads)))
    await asyncio.to_thread(busy.wait, 10)
    assert threads.borrowed_tokens == 1
    release.set()
    assert len(await work) == 5


class TestRateLimits:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(rate_limit_per_key="10/minute", rate_limit_per_stream="6/minute")

    async def test_corrupted_queries_count_for_the_key_and_for_no_stream(
        self, http: httpx.AsyncClient
    ) -> None:
        await corrupt(http, "CS", *[{"text": TEXT}] * 8)
        body = {"corruption": "CS", "queries": [{"text": TEXT}] * 3}
        refused = await http.post("/corruptions", json=body)
        assert failure(refused, 429, "rate_limited")["details"]["by"] == "key"
        assert refused.headers["retry-after"]


class TestWithoutThePackage:
    @pytest.fixture(autouse=True)
    def _hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corruptions, "find_spec", lambda name: None)

    async def test_there_are_no_corruptions(self, http: httpx.AsyncClient) -> None:
        assert "benchmarks" in failure(await http.get("/corruptions"), 404, "no_corruptions")["message"]
        body = {"corruption": "CS", "queries": [{"text": TEXT}]}
        failure(await http.post("/corruptions", json=body), 404, "no_corruptions")
        assert (await http.get("/console/config")).json()["corruptions"] is False


class TestClient:
    @pytest.fixture
    async def client(self) -> AsyncIterator[AsyncClient]:
        transport = httpx.ASGITransport(create_app(Settings(), FakeEngine()))
        async with AsyncClient("http://attune", transport=transport) as client:
            yield client

    async def test_client_gets_texts_and_files_back(self, client: AsyncClient) -> None:
        picture = png(20, 20)
        (text,) = await client.corrupt("CS", text=TEXT, severity=7, seed=2)
        assert text == corrupt_text(TEXT, "CS", 7, np.random.default_rng([2, 0]))
        first, second = await client.corrupt(
            "fog", image=[picture, Image.new("RGB", (8, 4))], style="mm_robustness"
        )
        assert isinstance(first, bytes)
        with Image.open(io.BytesIO(first)) as image:
            assert (image.format, image.size) == ("PNG", (20, 20))
        assert second != first
        (heard,) = await client.corrupt("rain", audio=wav())
        assert isinstance(heard, bytes)
        assert soundfile.info(io.BytesIO(heard)).frames == 1600

    async def test_client_lists_and_refuses_mixtures(self, client: AsyncClient) -> None:
        assert (await client.corruptions())["audio"][0]["name"] == "gaussian_noise"
        for given in ({}, {"text": "a", "image": png()}):
            with pytest.raises(ValueError, match="one of them"):
                await client.corrupt("fog", **given)  # type: ignore[arg-type]


async def test_config_says_that_there_are_corruptions(http: httpx.AsyncClient) -> None:
    assert (await http.get("/console/config")).json()["corruptions"] is True


def test_corruptions_and_clips_load_no_torch() -> None:
    """Nor does an installation without the benchmarks fail at the import."""
    queries = [("CS", {"text": "a"}), ("fog", {"image": encoded(png())}), ("rain", {"audio": encoded(wav())})]
    program = f"""
import asyncio, sys
from anyio import CapacityLimiter
from service.http.corruption_schemas import CorruptBody
from service.http.corruptions import Corruption, catalogue, corrupt_all, share_of
from service.http.routes import console, corruptions, demo
from service.settings import Settings
assert not any(name.startswith("benchmarks") for name in sys.modules)
async def main():
    for name, query in {queries!r}:
        body = CorruptBody.model_validate({{"corruption": name, "queries": [query]}})
        threads = CapacityLimiter(2)
        await corrupt_all(Corruption.of_request(body, Settings()), body.queries, threads, share_of(threads))
asyncio.run(main())
catalogue()
demo._files(demo.FIRST)
sys.exit(bool({{"torch", "transformers", "faiss", "scipy"}} & set(sys.modules)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
