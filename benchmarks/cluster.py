"""A deployment of one's own: a real Redis, API processes and workers, to be killed, paused and cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx
import redis

from benchmarks.redis_server import RedisServer
from benchmarks.server import free_port
from service.redis.keys import GROUP, PARTITIONS, Keys, partition_of

START_S = 120.0
NAMESPACE = "faults"

Role = Literal["api", "worker", "all"]

SETTINGS: Mapping[str, object] = {
    "encoder": "demo",
    "demo_gallery_items": 100,
    "torch_threads": 1,
    "lease_s": 1,
    "redis_timeout_s": 1,
    "redis_namespace": NAMESPACE,
    "request_timeout_s": 60,
    "shutdown_grace_s": 10,
    # Gathered queries adapt in full batches only, so that the same queries give the same batches again.
    "gather_min_items": 64,
    "guard": '{"policy": "off"}',
}


class Process:
    """One `attune serve`. It is started by the constructor; `wait_until_ready` waits for it."""

    def __init__(self, role: Role, folder: Path, settings: Mapping[str, object], number: int) -> None:
        self.role = role
        self.name = f"{role}-{number}"
        self.log = folder / f"{self.name}.log"
        self.paused = False
        self.leaving = False
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        values = {"role": role, "port": port, **settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
        environment |= {f"ATTUNE_{name.upper()}": str(value) for name, value in values.items()}
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "service.cli", "serve"]
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        if not self.alive or self.paused:
            return False
        try:
            return httpx.get(f"{self.address}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_until_ready(self) -> None:
        """Raises RuntimeError with the process's last words."""
        if not until(lambda: self.ready or not self.alive, START_S) or not self.alive:
            raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """As an operator stops it; it may take its time."""
        self.leaving = True
        self.signal(signal.SIGTERM)

    def pause(self) -> None:
        self.paused = True
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)
        self.paused = False

    def wait(self, timeout_s: float = 60.0) -> int:
        return self._process.wait(timeout_s)

    def signal(self, number: int) -> None:
        if self.alive:
            self._process.send_signal(number)


class Cluster:
    """`redis`, `apis` and `workers` (dead ones included until `forget_dead`)."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.data_folder = folder / "data"
        # With `everysec` a killed Redis loses what it acknowledges while it synchronises its file.
        self.redis = RedisServer(folder, appendfsync="always")
        self.redis.start()
        self.keys = Keys(NAMESPACE)
        self.settings = {**SETTINGS, "redis_url": self.redis.url, "data_folder": self.data_folder, **settings}
        self.apis: list[Process] = []
        self.workers: list[Process] = []
        self._started = 0

    def start(self, role: Role, **settings: object) -> Process:
        """A process of its own, not yet ready. Role `all` counts as an API process here."""
        self._started += 1
        process = Process(role, self.folder, {**self.settings, **settings}, self._started)
        (self.workers if role == "worker" else self.apis).append(process)
        return process

    def close(self) -> None:
        self.redis.resume()
        for process in [*self.apis, *self.workers]:
            process.resume()
            process.kill()
        self.redis.kill()

    def forget_dead(self) -> None:
        self.apis = [process for process in self.apis if process.alive]
        self.workers = [process for process in self.workers if process.alive]

    # -- what Redis says ----------------------------------------------------------------------------

    def holders(self) -> dict[int, str]:
        """Partition -> the worker's name in its lease. Raises RedisError."""
        with self.redis.client() as client:
            leases = client.mget([self.keys.lease(p) for p in range(PARTITIONS)])
        return {p: lease.decode().rpartition(":")[0] for p, lease in enumerate(leases) if lease}

    def partitions_of(self, worker: Process) -> set[int]:
        mark = f"-{worker.pid}-"
        return {p for p, name in self.holders().items() if mark in name}

    def owner(self, stream: str) -> Process | None:
        name = self.holders().get(partition_of(stream), "")
        return next((worker for worker in self.workers if f"-{worker.pid}-" in name), None)

    def leftovers(self) -> dict[str, int]:
        """What an idle deployment must not have: everything that is not zero."""
        with self.redis.client() as client:
            pipe = client.pipeline(transaction=False)
            for p in range(PARTITIONS):
                pipe.xlen(self.keys.queue(p))
                pipe.hlen(self.keys.attempts(p))
                pipe.exists(self.keys.queue(p))
            rows: list[Any] = pipe.execute()
            queued, attempts, exists = sum(rows[::3]), sum(rows[1::3]), rows[2::3]
            pending = sum(
                client.xpending(self.keys.queue(p), GROUP)["pending"] for p in range(PARTITIONS) if exists[p]
            )
            waiting = int(client.get(self.keys.waiting) or 0)
        found = {"waiting": waiting, "queued": queued, "pending": pending, "attempts": attempts}
        return {name: count for name, count in found.items() if count}

    def gathered(self, stream: str) -> int:
        """Jobs in the stream's gatherings, as stored."""
        with self.redis.client() as client:
            pattern = f"{self.keys.prefix}gathering:{stream}/*"
            return sum(client.llen(key) for key in client.scan_iter(pattern, count=1000))


@contextmanager
def cluster(*, apis: int, workers: int, **settings: object) -> Iterator[Cluster]:
    """A deployment that is ready; `settings` as names and values of service/settings.py."""
    with tempfile.TemporaryDirectory(prefix="attune-faults-") as folder:
        running = Cluster(Path(folder), settings)
        try:
            for _ in range(workers):
                running.start("worker")
            for _ in range(apis):
                running.start("api")
            for process in [*running.workers, *running.apis]:
                process.wait_until_ready()
            yield running
        finally:
            running.close()


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for `condition`; whether it came true in time. Redis may be away meanwhile."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with suppress(redis.RedisError, OSError):
            if condition():
                return True
        time.sleep(0.02)
    return False
