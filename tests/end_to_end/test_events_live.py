"""/admin/events of the real server: what a listener sees of queries, and a shutdown that does not wait."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from attune import Client
from benchmarks.server import server_process

TEXTS = [f"a red circle and {number} blue squares" for number in range(16)]


def server(folder: Path, **settings: object) -> AbstractContextManager[tuple[str, subprocess.Popen[bytes]]]:
    """A small server without a classifier, which looks for news often."""
    usual = {
        "demo_gallery_items": 50,
        "torch_threads": 1,
        "events_interval_s": 0.1,
        "guard": '{"policy": "off"}',
    }
    return server_process(folder, "--classifier", "", **{**usual, **settings})


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """At most 60 s of them: there always are more."""
    name = ""
    until = time.monotonic() + 60
    for line in response.iter_lines():
        assert time.monotonic() < until, "what was waited for did not come"
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def test_a_listener_sees_a_stream_learn_and_the_shutdown_does_not_wait_for_it(tmp_path: Path) -> None:
    """The grace for work under way is far longer than the test waits."""
    with (
        server(tmp_path, shutdown_grace_s=600, admin_key="k" * 20) as (address, process),
        Client(address, admin_key="k" * 20) as client,
    ):
        assert httpx.get(f"{address}/admin/events").status_code == 401
        listening = httpx.stream(
            "GET", f"{address}/admin/events", headers={"Authorization": f"Bearer {'k' * 20}"}, timeout=60
        )
        with listening as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            told = events(response)
            first = next(data for name, data in told if name == "streams")
            assert (first["whole"], first["streams"]) == (True, [])
            client.retrieve(TEXTS, stream="shop", adapt="sync")
            cards = (card for name, data in told if name == "streams" for card in data["streams"])
            card = next(card for card in cards if card["version"] == 1)
            assert (card["name"], card["waiting"]) == ("shop", 0)
            assert card["tracks"][0]["recent"]["status"] == ["applied"]
            server_now = next(data for name, data in told if name == "server" and data["streams"] == 1)
            assert server_now["ready"] is True
            assert server_now["queue"]["capacity"] > 0
            assert server_now["worker"]["adapting"] in ("none", "sync", "background")

            (track,) = client.stream_history("shop")["tracks"].values()
            assert (track["batch"], track["version"]) == ([1], [1])
            client.create_snapshot("shop", "one")
            client.retrieve(TEXTS, stream="shop", adapt="sync")
            (apart,) = client.compare_snapshots("shop", "one")["tracks"].values()
            assert apart["distance"] > 0

            process.send_signal(signal.SIGTERM)
            list(told)  # ends by itself
        assert process.wait(60) in (0, -signal.SIGTERM), "uvicorn passes the signal on when it is done"
    lines = [
        json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines() if line[0] == "{"
    ]
    logged = [line for line in lines if line.get("route") == "/admin/events"]
    assert [line["status"] for line in logged] == [401, 200]
