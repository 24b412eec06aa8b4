"""The real server over real HTTP, with the demo encoder: what a user does in the first hour."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import subprocess
import threading
import time
import zlib
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from attune import AsyncClient, AttuneError, Client
from benchmarks.corruptions.shift import Shift
from benchmarks.datasets import load_split
from benchmarks.server import running_server, server_process


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_a_caption_finds_its_scene_and_a_picture_its_caption(address: str, client: Client) -> None:
    item = client.list_items("demo", limit=1)["items"][0]
    answer = client.retrieve(text=item["text"], k=5)
    assert item["id"] in [hit.id for hit in answer.hits]
    assert answer.adaptation.direction == "text->image"
    assert set(answer.timings_ms) == {"wait", "encode", "search", "adapt", "total"}


def test_every_form_of_a_picture_gives_the_same_answer(address: str, client: Client) -> None:
    data = png()
    first = client.retrieve(image=data, k=3, adapt="off")
    form = httpx.post(f"{address}/retrieve", files={"image": data}, data={"k": "3", "adapt": "off"}).json()
    raw = httpx.post(
        f"{address}/retrieve",
        params={"k": 3, "adapt": "off"},
        content=data,
        headers={"content-type": "image/png"},
    ).json()
    expected = [hit.id for hit in first.hits]
    assert [hit["id"] for hit in form["results"][0]["hits"]] == expected
    assert [hit["id"] for hit in raw["results"][0]["hits"]] == expected


def test_a_gallery_of_ones_own(client: Client, scenes_folder: Path) -> None:
    data = load_split(scenes_folder, "test")
    client.create_gallery("own", index={"kind": "hnsw"})
    seen: list[int] = []
    items = [
        {"id": f"s{n}", "image": path, "text": data.captions[n], "payload": {"n": n}}
        for n, path in enumerate(data.images[:100])
    ]
    total = client.upsert_items("own", items, on_progress=seen.append)
    assert (total["added"], seen[-1]) == (100, 100)
    answer = client.retrieve(
        text=[data.captions[n] for n in range(20)], gallery="own", k=10, adapt="off", filter={"n": {"lt": 50}}
    )
    assert all(hit.payload["n"] < 50 for hits in answer.results for hit in hits)
    found = [f"s{n}" in [hit.id for hit in hits] for n, hits in enumerate(answer.results)]
    assert sum(found) >= 15
    assert client.delete_items("own", ["s1", "nothing"]) == 1
    client.delete_gallery("own")
    with pytest.raises(AttuneError) as refusal:
        client.describe_gallery("own")
    assert refusal.value.status == 404


def test_a_stream_learns_is_kept_and_put_back(client: Client, scenes_folder: Path, tmp_path: Path) -> None:
    data = load_split(scenes_folder, "test")
    rng = np.random.default_rng(0)
    noisy = [
        Image.fromarray(
            Shift.parse("gaussian_noise:2").image(np.asarray(Image.open(path).convert("RGB")), rng)
        )
        for path in data.images[:64]
    ]
    source = client.retrieve(image=noisy, adapt="off", k=10)
    adapted = client.retrieve(image=noisy, adapt="sync", stream="camera", k=10)
    assert adapted.adaptation.state_version == 1
    assert [[hit.id for hit in hits] for hits in adapted.results] != [
        [hit.id for hit in hits] for hits in source.results
    ]
    stream = client.describe_stream("camera")
    assert stream["version"] == 1
    assert stream["tracks"][0]["memory_size"] == 19  # floor(0.3 * 64)
    client.create_snapshot("camera", "one")
    client.export_snapshot("camera", "one", tmp_path / "one.attune")
    assert client.reset_stream("camera")["version"] == 0
    assert client.restore_snapshot("camera", "one")["version"] == 1
    client.import_snapshot("copy", tmp_path / "one.attune", name="one")
    assert client.restore_snapshot("copy", "one")["version"] == 1
    client.delete_stream("copy", force=True)
    with pytest.raises(AttuneError):
        client.describe_stream("copy")


def test_single_queries_gather_and_adapt_in_the_background(client: Client) -> None:
    captions = [item["text"] for item in client.list_items("demo", limit=70)["items"]]
    for caption in captions[:64]:
        assert client.retrieve(text=caption, stream="typing").adaptation.status == "queued"
    for _ in range(600):
        if client.describe_stream("typing")["version"]:
            break
        time.sleep(0.05)
    answer = client.retrieve(text=captions[64], stream="typing")
    assert answer.adaptation.state_version == 1


def test_the_asynchronous_client_does_the_same(address: str) -> None:
    async def many() -> list[str]:
        async with AsyncClient(address) as client:
            answers = await asyncio.gather(
                *(client.retrieve(text=f"a red star {n}", adapt="off") for n in range(8))
            )
            return [answer.adaptation.status for answer in answers]

    assert asyncio.run(many()) == ["off"] * 8


def test_metrics_count_what_was_answered(address: str, client: Client) -> None:
    client.retrieve(text="a red star", adapt="off")
    text = httpx.get(f"{address}/metrics").text
    assert 'attune_queries_answered_total{direction="text->image",mode="off",status="off"}' in text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400),
        (b'{"queries": []}', 422),
        (b'{"queries": [{"text": "x"}], "k": 0}', 422),
        (b'{"queries": [{"text": "x"}], "gallery": "nowhere"}', 404),
        (b'{"queries": [{"text": "x"}], "stream": "../../etc"}', 422),
        (b'{"queries": [{"text": ""}]}', 422),
        (b'{"queries": [{"image": "%%%"}]}', 422),
        (b'{"queries": [{"embedding": [1, 2, 3]}]}', 422),
        (b'{"queries": [{"text": "x"}], "adapt": "maybe"}', 422),
        (b'{"queries": [{"text": "x"}], "filter": {"a": {"sideways": 1}}}', 422),
    ],
)
def test_a_clients_mistake_gets_the_one_error_shape(address: str, body: bytes, status: int) -> None:
    answer = httpx.post(f"{address}/retrieve", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {status, 400 if status == 422 else status}
    assert set(answer.json()["error"]) == {"code", "message", "details"}


def test_a_decompression_bomb_is_refused_from_its_header(address: str) -> None:
    bomb = bytearray(png())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the PNG header
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    answer = httpx.post(f"{address}/retrieve", content=bytes(bomb), headers={"content-type": "image/png"})
    assert answer.status_code == 413
    assert "error" in answer.json()


def test_a_client_that_hangs_up_leaves_the_server_well(address: str, client: Client) -> None:
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(
        {"queries": [{"text": f"word {n}"} for n in range(64)], "adapt": "sync", "stream": "gone"}
    )
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                + f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
    assert client.retrieve(text="a red star", adapt="off").hits


def killable(folder: Path) -> AbstractContextManager[tuple[str, subprocess.Popen[bytes]]]:
    """A server on a data folder of its own; the test may kill it."""
    # These tests send many texts that are almost the same.
    return server_process(folder, demo_gallery_items=40, torch_threads=1, guard='{"policy": "off"}')


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    texts = [f"a red star number {n}" for n in range(32)]
    with killable(tmp_path) as (address, process), Client(address) as client:
        client.create_gallery("kept")
        client.upsert_items("kept", [{"id": f"t{n}", "text": text} for n, text in enumerate(texts)])
        client.retrieve(text=texts, stream="s", adapt="sync")
        version = client.describe_stream("s")["version"]
        client.create_snapshot("s", "kept")
        client.configure_stream("set", method="tcr_untrain", settings={"scale": 1.5})
        process.send_signal(signal.SIGKILL)
        process.wait()
    with killable(tmp_path) as (address, _), Client(address) as client:
        assert client.describe_gallery("kept")["items"] == 32
        assert client.restore_snapshot("s", "kept")["version"] == version == 1
        assert client.describe_stream("set")["settings"] == {"scale": 1.5}
        assert client.retrieve(text=texts[3], gallery="kept", target="text", adapt="off").hits[0].id == "t3"


def test_a_shutdown_answers_what_was_accepted_and_saves_the_states(tmp_path: Path) -> None:
    answered: list[int] = []
    refused: list[str] = []

    def ask(address: str, number: int) -> None:
        with Client(address, timeout_s=60, retries=0) as client:
            try:
                texts = [f"{number} {row} blue boat" for row in range(64)]
                answer = client.retrieve(text=texts, stream="s", adapt="sync")
                answered.append(answer.adaptation.state_version or 0)
            except AttuneError as error:
                refused.append(error.code)

    with killable(tmp_path) as (address, process):
        threads = [threading.Thread(target=ask, args=(address, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        while not answered:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert len(answered) + len(refused) == 6
    assert sorted(answered) == list(range(1, len(answered) + 1))
    with killable(tmp_path) as (address, _), Client(address) as client:
        assert client.describe_stream("s")["version"] == len(answered)


def test_an_admin_key_guards_streams_and_gallery_changes() -> None:
    with running_server(demo_gallery_items=20, admin_key="secret-key", torch_threads=1) as url:
        with Client(url) as stranger:
            assert stranger.retrieve(text="a red star").hits
            for forbidden in (
                stranger.list_streams,
                lambda: stranger.create_gallery("x"),
                lambda: stranger.delete_gallery("demo"),
            ):
                with pytest.raises(AttuneError) as refusal:
                    forbidden()
                assert refusal.value.status == 401
        with Client(url, admin_key="secret-key") as owner:
            assert [stream["name"] for stream in owner.list_streams()] == ["default"]
