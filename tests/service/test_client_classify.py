"""The Python client's classification, against a real server around the engine of dictionaries."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from pydantic import SecretStr

from attune import AsyncClient, AttuneError, Client
from service.client.types import Part
from service.errors import QueueFull
from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import CLASSIFIER, FakeEngine
from tests.service.http.pictures import encoded, png
from tests.service.http.sounds import wav
from tests.service.running import running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def app(settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(settings, engine)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with running(app) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, max_wait_s=0.0) as client:
        yield client


def wait_until_empty(app: FastAPI) -> None:
    """Until the server, in its own thread, has let every stream go."""
    end = time.monotonic() + 20
    while app.state.live_streams.count:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_sample_of_files_is_answered_with_typed_labels(
    client: Client, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    answer = client.classify(audio=tmp_path / "a.wav", image=Image.new("RGB", (3, 3)), top=2, stream="s")
    (classified,) = answer.results
    assert (classified.label, classified.labels[1].probability, classified.missing) == ("bell", 0.25, ())
    assert (answer.model, answer.stream, answer.adaptation.method) == ("fake-av", "s", "brimpr")
    assert (classified.completed_by, classified.completeness) == ("", None)
    assert answer.timings_ms["total"] == 1.0
    (asked,) = engine.classified
    assert (asked.top, asked.stream, asked.samples[0].kind) == (2, "s", "audio+video")


def test_samples_of_every_form_are_understood(client: Client, engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    samples: list[dict[str, Any]] = [
        {"id": "0", "audio": wav()},
        {"fbank": np.zeros((3, CLASSIFIER.audio_spec.mel_bins), dtype=np.float32)},
        {"frames": [tmp_path / "a.png", png()], "audio": f"data:audio/wav;base64,{encoded(wav())}"},
        {"image": str(tmp_path / "a.png"), "text": None},
    ]
    answer = client.classify(iter(samples))
    assert [each.missing for each in answer.results] == [("video",), ("video",), (), ("audio",)]
    assert [each.completed_by for each in answer.results] == ["imputation", "imputation", "", "imputation"]
    known = answer.results[3].completeness
    assert known is not None
    assert (known.parts["audio"], known.novelty) == (Part(observed=False, confidence=0.4), 0.75)
    assert [each.id for each in answer.results] == ["0", None, None, None]
    client.classify(samples[0])
    mixed = client.classify([{"text": "a"}, {"image": png()}], labels=("x", "y"), template="a {}")
    assert [part.query_indices for part in mixed.parts] == [(0,), (1,)]


def test_nothing_to_classify_is_refused_before_it_is_sent(client: Client, engine: FakeEngine) -> None:
    for arguments in ({}, {"samples": []}, {"samples": [{}], "text": "a"}):
        with pytest.raises(ValueError, match=r"samples|sample"):
            client.classify(**arguments)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="none"):
        client.classify(audio="none.wav")
    assert engine.classified == []


def test_stream_answers_while_samples_are_still_made(client: Client) -> None:
    answered: queue.Queue[int] = queue.Queue()

    def samples() -> Iterator[dict[str, Any]]:
        for i in range(5):
            yield {"id": str(i), "image": png()}
            assert answered.get(timeout=20) == i, "the next sample waits for the answer to this one"

    count = 0
    for line in client.classify_stream(samples(), top=1, adapt="off"):
        assert line.result().id == str(line.index)
        assert line.adaptation is not None
        assert line.adaptation.mode == "off"
        answered.put(line.index)
        count += 1
    assert count == 5


def test_failed_sample_has_its_error_in_its_place(client: Client) -> None:
    lines = list(client.classify_stream([{"image": png()}, {"image": b"none"}, {"image": png()}]))
    assert [line.index for line in lines] == [0, 1, 2]
    assert [line.error.code if line.error else None for line in lines] == [None, "bad_image", None]
    with pytest.raises(AttuneError, match="picture"):
        lines[1].result()


def test_endless_stream_can_be_left_and_the_server_lets_it_go(
    client: Client, app: FastAPI, engine: FakeEngine
) -> None:
    taken = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for _ in itertools.count():
            taken += 1
            yield {"image": png()}

    stream = client.classify_stream(endless())
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    stream.close()  # type: ignore[attr-defined]
    wait_until_empty(app)
    assert taken < 100_000


def test_error_of_the_samples_reaches_whoever_takes_the_answers(client: Client) -> None:
    def samples() -> Iterator[dict[str, Any]]:
        yield {"image": png()}
        raise FileNotFoundError("the camera is gone")

    with pytest.raises(FileNotFoundError, match="camera"):
        list(client.classify_stream(samples()))


def test_options_that_the_server_refuses_are_an_attune_error(client: Client) -> None:
    with pytest.raises(AttuneError) as failure:
        list(client.classify_stream([{"text": "a"}], labels=["only"]))
    assert failure.value.code == "invalid_request"


@pytest.mark.parametrize("settings", [Settings(classify_idle_timeout_s=0.1)])
def test_stream_that_the_server_ends_is_an_attune_error(client: Client) -> None:
    def samples() -> Iterator[dict[str, Any]]:
        yield {"image": png()}
        failed.wait(20)

    failed = threading.Event()
    stream = client.classify_stream(samples())
    assert next(stream).index == 0
    with pytest.raises(AttuneError) as failure:
        next(stream)
    failed.set()
    assert failure.value.code == "timeout"


@pytest.mark.parametrize("settings", [Settings(admin_key=SecretStr("admin"), api_keys=(SecretStr("k3y"),))])
def test_stream_carries_the_key(url: str) -> None:
    with Client(url, api_key="k3y") as client:
        assert len(list(client.classify_stream([{"image": png()}]))) == 1
    with Client(url, api_key="wrong") as client, pytest.raises(AttuneError) as failure:
        list(client.classify_stream([{"image": png()}]))
    assert (failure.value.code, failure.value.status) == ("unauthorized", 401)


def test_server_that_does_not_run_is_an_attune_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(AttuneError) as failure:
        next(iter(client.classify_stream([])))
    assert failure.value.code == "unreachable"


def test_lines_go_out_and_come_back_as_they_are(client: Client) -> None:
    lines = ["{", json.dumps({"id": "a", "image": encoded(png())})]
    first, second = client.classify_lines(lines, {"top": 1})
    assert first == {"index": 0, "error": first["error"]}
    assert first["error"]["code"] == "not_json"
    assert (second["id"], len(second["labels"])) == ("a", 1)


def test_large_stream_through_a_busy_server_and_a_slow_reader_keeps_its_order(
    client: Client, engine: FakeEngine
) -> None:
    """More than any buffer between the two holds: some 20 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "BMP")
    engine.failures = [QueueFull("full", retry_after_s=0.01) for _ in range(5)]
    stream = client.classify_stream({"id": str(i), "image": buffer.getvalue()} for i in range(200))
    assert [(line.index, line.result().id) for line in stream] == [(i, str(i)) for i in range(200)]


class TestAsync:
    pytestmark = pytest.mark.anyio

    async def test_classify_and_stream(self, url: str) -> None:
        async def samples() -> AsyncIterator[dict[str, Any]]:
            yield {"image": png()}
            yield {"image": b"none"}

        async with AsyncClient(url) as client:
            assert (await client.classify(image=png())).results[0].label == "bell"
            lines = [line async for line in client.classify_stream(samples())]
            assert [line.error is None for line in lines] == [True, False]
            lines = [line async for line in client.classify_stream([{"image": png()}], adapt="sync")]
            assert [line.index for line in lines] == [0]

    async def test_left_stream_is_let_go(self, url: str, app: FastAPI) -> None:
        async with AsyncClient(url) as client:
            stream = client.classify_stream({"image": png()} for _ in itertools.count())
            assert (await anext(stream)).index == 0
            await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.to_thread(wait_until_empty, app)

    async def test_errors(self, url: str) -> None:
        async with AsyncClient(url) as client:
            with pytest.raises(AttuneError, match="labels"):
                [line async for line in client.classify_stream([{"text": "a"}], labels=["only"])]
            with pytest.raises(FileNotFoundError):
                [line async for line in client.classify_stream([{"image": "none.png"}])]
