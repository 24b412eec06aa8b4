"""/classify of the real server with a small untrained classifier: streams, sockets, odd clients, shutdown."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from typer.testing import CliRunner

from attune import AttuneError, Client
from benchmarks.server import server_process
from encoders.cav_mae import save_cav_mae
from service.cli import app
from tests.encoders.av import CONFIG, lively_weights
from tests.service.http.pictures import encoded, png
from tests.service.http.sounds import tone, wav

COLOURS = ("red", "blue", "green", "yellow", "white", "gray")


def sample(number: int = 0) -> dict[str, str]:
    return {
        "audio": encoded(wav(tone(0.7, amplitude=0.1 + number % 7 / 10))),
        "image": encoded(png(40, 40, COLOURS[number % len(COLOURS)])),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier with a calibration, made as a user would make it."""
    folder, data = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("data")
    save_cav_mae(CONFIG, lively_weights(), folder)
    lines = ["audio\timage\tlabel"]
    for i, colour in enumerate(COLOURS):
        (data / f"{i}.wav").write_bytes(wav(tone(0.7, amplitude=0.1 + i / 10)))
        (data / f"{i}.png").write_bytes(png(40, 40, colour))
        lines.append(f"{i}.wav\t{i}.png\ta")
    (data / "labels.tsv").write_text("\n".join(lines))
    arguments = ["--model", str(folder), "--data", str(data), "--device", "cpu"]
    made = CliRunner().invoke(
        app, ["calibrate", *arguments, "--out", str(folder / "calibration.safetensors")]
    )
    assert made.exit_code == 0, made.output
    return folder


def server(
    model: Path, folder: Path, **settings: object
) -> AbstractContextManager[tuple[str, subprocess.Popen[bytes]]]:
    """A server of the classifier alone."""
    usual = {"classify_method": "brimpr", "demo_gallery_items": 0, "torch_threads": 1}
    return server_process(folder, classifier=model, **{**usual, **settings})


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(
        model,
        tmp_path_factory.mktemp("server"),
        classify_line_timeout_s=1,
        classify_write_timeout_s=1,
        classify_line_bytes=200_000,
    ) as (url, _):
        yield url


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


class RawStream:
    """A streaming request on a bare socket, to behave as no library would. Close it with `with`."""

    def __init__(self, address: str, query: str = "", buffer_bytes: int | None = None) -> None:
        url = httpx.URL(address)
        self.socket = socket.socket()
        if buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.settimeout(30)
        self.socket.connect((url.host, url.port))
        self.socket.sendall(
            f"POST /classify?{query} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
            "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        self._answer = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._answer.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def send_for_ever(self, data: bytes) -> None:
        while True:
            self.send(data)

    def line(self) -> dict[str, Any]:
        """The next line of the answer, past headers and the lengths of chunks."""
        while not (line := self._answer.readline()).startswith(b"{"):
            assert line, "the connection ended"
        return dict(json.loads(line))

    def ended(self) -> bool:
        """Whether the server closes the connection without another line."""
        return b"{" not in self._answer.read()


def as_line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def test_answers_flow_while_lines_are_sent_and_bad_ones_fail_alone(address: str) -> None:
    with RawStream(address, "adapt=off") as stream:
        stream.send(as_line(sample() | {"id": "a"}))
        first = stream.line()
        assert (first["index"], first["id"], first["missing"]) == (0, "a", [])
        assert {label["label"] for label in first["labels"]} == {"a", "b", "c"}
        stream.send(b"{broken\n" + b"x" * 300_000 + b"\n" + as_line({"image": sample()["image"]}))
        assert stream.line()["error"]["code"] == "not_json"
        assert stream.line()["error"]["code"] == "too_large"
        assert stream.line()["missing"] == ["audio"]
        stream.socket.sendall(b"0\r\n\r\n")
        assert stream.ended()


def test_client_of_one_byte_at_a_time_is_told_and_ended(address: str) -> None:
    with RawStream(address) as stream:
        stream.send(b"{")
        assert stream.line()["error"]["code"] == "timeout"
        assert stream.ended()


def test_client_that_stops_reading_is_ended(address: str) -> None:
    """It sends on until the server, which cannot get its answers out, closes the connection."""
    lines = as_line({"id": "y" * 500}) * 100
    with (
        RawStream(address, buffer_bytes=4096) as stream,
        pytest.raises(OSError, match=r"reset|pipe|aborted"),
    ):
        stream.send_for_ever(lines)


def test_client_that_leaves_in_the_middle_harms_no_other(address: str, client: Client) -> None:
    with RawStream(address, "adapt=sync&batch=4") as stream:
        stream.send(as_line(sample()) * 3 + b'{"aud')
    assert client.classify(**sample_files(), adapt="off").results[0].labels


def sample_files(number: int = 0) -> dict[str, Any]:
    return {
        "audio": wav(tone(0.7, amplitude=0.1 + number % 7 / 10)),
        "image": png(40, 40, COLOURS[number % len(COLOURS)]),
    }


def test_stream_over_a_socket_adapts_batch_by_batch(client: Client) -> None:
    samples = ({"id": str(i), **sample_files(i)} for i in range(13))
    lines = list(client.classify_stream(samples, stream="door", adapt="sync", batch=6, max_wait_ms=60_000))
    assert [line.result().id for line in lines] == [str(i) for i in range(13)]
    told = [line.adaptation for line in lines]
    assert all(one is not None and one.method == "brimpr" for one in told)
    assert {one.batch_size for one in told[:12] if one is not None} == {6}
    assert client.describe_stream("door")["version"] == 2, "the last batch, of one, is not learned from"


def test_batch_of_one_is_answered_and_not_learned_from(client: Client) -> None:
    answer = client.classify(**sample_files(), stream="single", adapt="sync")
    assert answer.adaptation.status == "skipped"
    assert answer.adaptation.reason
    assert answer.results[0].labels


def test_missing_modality_is_said(client: Client) -> None:
    samples = [sample_files(), {"audio": sample_files()["audio"]}, {"image": sample_files()["image"]}]
    answer = client.classify(samples, adapt="off")
    assert [each.missing for each in answer.results] == [(), ("video",), ("audio",)]


def test_silent_sound_and_labels_of_ones_own(client: Client) -> None:
    import numpy as np

    assert client.classify(audio=wav(np.zeros(8000)), adapt="off").results[0].missing == ("video",)
    answer = client.classify(text="two red circles", labels=["circle", "square"], adapt="off")
    assert answer.adaptation.direction == "text->text"
    assert sum(label.probability for label in answer.results[0].labels) == pytest.approx(1, abs=1e-5)


def test_page_of_another_origin_opens_no_socket(address: str) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    url = address.replace("http", "ws") + "/classify"
    with pytest.raises(InvalidStatus) as refused, connect(url, origin="http://evil.example"):  # type: ignore[arg-type]
        pass
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "forbidden"
    with connect(url, origin=address, compression=None) as own:  # type: ignore[arg-type]
        own.send(json.dumps({"options": {"adapt": "off"}}))
        own.send(json.dumps(sample()))
        assert json.loads(own.recv())["index"] == 0


def test_shutdown_answers_what_was_read_and_says_so(model: Path, tmp_path: Path) -> None:
    with (
        server(model, tmp_path) as (address, process),
        Client(address) as client,
        RawStream(address, "adapt=sync&batch=8&max_wait_ms=60000") as stream,
    ):
        stream.send(as_line(sample()))
        wait = threading.Event()

        def samples() -> Iterator[dict[str, Any]]:
            yield sample_files()
            wait.wait(60)

        socketed = client.classify_stream(samples(), adapt="off")
        assert next(socketed).index == 0
        process.send_signal(signal.SIGTERM)
        assert stream.line()["index"] == 0
        assert "shutting down" in stream.line()["error"]["message"]
        assert stream.ended()
        with pytest.raises(AttuneError, match="shutting down"):
            next(socketed)
        wait.set()
        assert process.wait(60) in (0, -signal.SIGTERM), "uvicorn passes the signal on when it is done"
        log = (tmp_path / "server.log").read_text()
        assert "WebSocket /" not in log, "a line of uvicorn's, with the URL"
        assert '"event": "websocket"' in log
