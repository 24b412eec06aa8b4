"""What Redis costs: the query stream, the commit of a state, and the whole server.

    python -m benchmarks.redis                        all parts, with a Redis of its own
    python -m benchmarks.redis --part queue           the query stream from end to end, against memory
    python -m benchmarks.redis --part commit          settling with states of 0.1, 1 and 4 MB, against files
    python -m benchmarks.redis --part engine          embedded, role `all` with Redis, API and worker apart

Nothing of a model runs in the first two parts: a thread takes jobs and settles them with a ready answer. It
is in this process (`together`, as with role `all`) or in another one (`apart`, as a worker). Machines differ
and drift, so everything compared is measured in turns within one run, and the ratios are what to quote.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis as RedisClient
from rich.console import Console
from rich.progress import track
from rich.table import Table

from attune import Client
from benchmarks.console import machine, make_console, versions
from benchmarks.redis_server import redis_server
from benchmarks.server import running_server
from service.http import logs
from service.messages import (
    Adaptation,
    Job,
    JobAnswer,
    Query,
    RankedHit,
    RetrieveJob,
    Timings,
    TrackKey,
)
from service.metrics import Metrics
from service.queue.base import JobQueue, Settlement, StateWrite, Submitter
from service.queue.memory import MemoryQueue
from service.redis.connection import Clock, Scripts, connect, connect_async
from service.redis.keys import PARTITIONS, Keys, partition_of
from service.redis.leases import Leases
from service.redis.queue import Limits, RedisQueue
from service.redis.submitter import RedisSubmitter
from service.states import FileStates

PAYLOAD_SIDES = {1: 18, 50: 129, 500: 408}
"""Kilobytes of a job -> side of the square picture of 3 bytes a pixel that it carries."""
STATE_MB = (0.1, 1.0, 4.0)
TURNS = 4
_CAPACITY = 4096
_TIMEOUT_S = 30.0
_HITS = tuple(RankedHit(f"item-{n}", 0.5, {"text": "a small red circle", "n": n}) for n in range(10))
ANSWER = JobAnswer((_HITS,), Adaptation("tcr", "async", "image->text", 1, "queued", "", 1), Timings())

console = Console(stderr=True)


# -- the ends of the query stream ---------------------------------------------------------------------


class Consumer(threading.Thread):
    """Takes jobs as the worker does and settles each batch at once, with what `state` makes of it."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(name="bench-consumer", daemon=True)
        self.state: Callable[[Sequence[Job]], StateWrite | None] = _no_state
        self.settled_s: list[float] = []
        self._queue = queue
        self._ended = False

    def run(self) -> None:
        while not self._ended:
            jobs = self._queue.take(max_items=64, max_wait_s=0.0, timeout_s=0.5, accept=lambda job: True)
            if jobs:
                settlement = Settlement(results=[(job, ANSWER) for job in jobs], state=self.state(jobs))
                began = time.perf_counter()
                self._queue.settle(settlement)
                self.settled_s.append(time.perf_counter() - began)

    def end(self) -> None:
        self._ended = True
        self._queue.wake()
        self.join()


def _no_state(jobs: Sequence[Job]) -> StateWrite | None:
    return None


@contextmanager
def memory_queue() -> Iterator[MemoryQueue]:
    """Both ends in one, with a consumer."""
    queue = MemoryQueue(capacity_items=_CAPACITY)
    consumer = Consumer(queue)
    consumer.start()
    try:
        yield queue
    finally:
        consumer.end()


@dataclass
class WorkersEnd:
    """The end of the query stream in Redis where the model would be."""

    leases: Leases
    queue: RedisQueue
    consumer: Consumer

    @classmethod
    def start(cls, url: str, keys: Keys) -> WorkersEnd:
        """Joins as a worker and waits until it owns every partition."""
        clock = Clock()
        leases = Leases(_connect(url), keys, worker="bench", lease_s=10.0, clock=clock)
        queue = RedisQueue(
            client=_connect(url), reader=_connect(url), keys=keys, leases=leases, clock=clock,
            metrics=Metrics(),
            limits=Limits(capacity_items=_CAPACITY, prefetch_items=256, max_attempts=5, stream_ttl_s=0),
        )  # fmt: skip
        queue.start()
        while len(leases.held()) < PARTITIONS:
            time.sleep(0.01)
        consumer = Consumer(queue)
        consumer.start()
        return cls(leases, queue, consumer)

    def stop(self) -> None:
        self.consumer.end()
        self.queue.close()
        self.leases.stop()


def _connect(url: str) -> RedisClient:
    return connect(url, timeout_s=5.0)


def _serve_apart(url: str, keys: Keys, ready: Event, done: Event) -> None:
    """A process of its own with the worker's end."""
    logs.configure("warning")
    end = WorkersEnd.start(url, keys)
    ready.set()
    done.wait()
    end.stop()


@contextmanager
def workers_end(url: str, keys: Keys) -> Iterator[WorkersEnd]:
    end = WorkersEnd.start(url, keys)
    try:
        yield end
    finally:
        end.stop()


@contextmanager
def workers_end_apart(url: str, keys: Keys) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_serve_apart, args=(url, keys, ready, done), daemon=True)
    process.start()
    try:
        if not ready.wait(_TIMEOUT_S):
            raise RuntimeError("the worker's process did not start")
        yield
    finally:
        done.set()
        process.join(_TIMEOUT_S)


@asynccontextmanager
async def api_end(url: str, keys: Keys) -> AsyncIterator[RedisSubmitter]:
    """The end where the routes would be."""
    client, reader = connect_async(url, timeout_s=_TIMEOUT_S), connect_async(url, timeout_s=_TIMEOUT_S)
    submitter = RedisSubmitter(
        client=client, reader=reader, keys=keys, api="bench", clock=Clock(), capacity_items=_CAPACITY,
        max_job_bytes=64 << 20, timeout_s=5.0,
    )  # fmt: skip
    hello = asyncio.ensure_future(_say_hello(Scripts(client), keys, submitter))
    submitter.start()
    while not submitter.up:
        await asyncio.sleep(0.01)
    try:
        yield submitter
    finally:
        hello.cancel()
        await submitter.close()
        await client.aclose()
        await reader.aclose()


async def _say_hello(scripts: Scripts, keys: Keys, submitter: RedisSubmitter) -> None:
    while True:
        await scripts.hello(
            keys=[keys.apis, keys.waiting, keys.workers, keys.encoder, keys.galleries], args=["bench", 20_000]
        )
        submitter.up = True
        await asyncio.sleep(1.0)


# -- the query stream --------------------------------------------------------------------------------


@dataclass
class Taken:
    """Seconds of each job, and of all together."""

    each: list[float] = field(default_factory=list)
    wall: float = 0.0

    def figures(self) -> dict[str, float]:
        ordered = sorted(self.each)
        return {
            "p50_ms": 1e3 * statistics.median(ordered),
            "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
            "jobs_per_s": len(ordered) / self.wall,
        }


def stream_names(spread: str, count: int = 32) -> list[str]:
    """Streams whose jobs share a batch, a partition only, or neither."""
    if spread == "one stream":
        return ["stream"] * count
    names = (f"stream-{n}" for n in range(1 << 20))
    if spread == "one partition":
        return [
            name for name, _ in zip((n for n in names if partition_of(n) == 0), range(count), strict=False)
        ]
    by_partition: dict[int, str] = {}
    for name in names:
        by_partition.setdefault(partition_of(name), name)
        if len(by_partition) == count:
            break
    return list(by_partition.values())


async def compare_queues(url: str, *, jobs: int, payloads: Sequence[int]) -> list[dict[str, Any]]:
    workloads = [
        (kilobytes, clients, spread)
        for kilobytes in payloads
        for clients, spreads in ((1, ("many partitions",)), (32, SPREADS))
        for spread in spreads
    ]
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        together, apart = Keys("together"), Keys("apart")
        stack.enter_context(workers_end(url, together))
        stack.enter_context(workers_end_apart(url, apart))
        submitters: dict[str, Submitter] = {
            "memory": stack.enter_context(memory_queue()),
            "together": await stack.enter_async_context(api_end(url, together)),
            "apart": await stack.enter_async_context(api_end(url, apart)),
        }
        for kilobytes, clients, spread in track(workloads, "query stream", console=console):
            taken = {name: Taken() for name in submitters}
            for turn in range(TURNS + 1):
                for name, submitter in submitters.items():
                    into = taken[name] if turn else Taken()  # the first turn warms up
                    await _turn(submitter, into, kilobytes, clients, spread, -(-jobs // TURNS))
            rows.append(_row(taken, payload_kb=kilobytes, clients=clients, streams=spread))
    return rows


SPREADS = ("one stream", "one partition", "many partitions")


async def _turn(
    submitter: Submitter, taken: Taken, kilobytes: int, clients: int, spread: str, jobs: int
) -> None:
    names = stream_names(spread)
    side = PAYLOAD_SIDES[kilobytes]
    query = Query(pixels=np.zeros((3, side, side), np.uint8))
    numbers = iter(range(jobs))

    async def client() -> None:
        for number in numbers:
            key = TrackKey(names[number % len(names)], "gallery", "image", "text")
            job = RetrieveJob(key=key, mode="async", queries=(query,), k=10, accepted_at=time.monotonic())
            began = time.perf_counter()
            await submitter.ask([job], timeout_s=_TIMEOUT_S)
            taken.each.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    taken.wall += time.perf_counter() - began


def _row(taken: dict[str, Taken], **about: Any) -> dict[str, Any]:
    figures = {name: one.figures() for name, one in taken.items()}
    memory = figures["memory"]
    for name in ("together", "apart"):
        ratios = {f"{figure}_over_memory": figures[name][figure] / memory[figure] for figure in memory}
        added = figures[name]["p50_ms"] - memory["p50_ms"]
        figures[name] |= {**ratios, "added_p50_ms": added}
    return {**about, "jobs": len(taken["memory"].each), **figures}


# -- the commit of a state ---------------------------------------------------------------------------


async def compare_commits(url: str, *, commits: int, sizes_mb: Sequence[float]) -> list[dict[str, Any]]:
    """Time of one settlement: without a state, with one, and that of saving the same bytes to a file."""
    keys = Keys("commit")
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder, workers_end(url, keys) as end:
        files = FileStates(Path(folder))
        async with api_end(url, keys) as submitter:
            return [await _commits(size_mb, commits, submitter, end, files) for size_mb in sizes_mb]


async def _commits(
    size_mb: float, commits: int, submitter: Submitter, end: WorkersEnd, files: FileStates
) -> dict[str, Any]:
    data = np.random.default_rng(0).bytes(int(size_mb * 1e6))
    seconds: dict[str, list[float]] = {"without": [], "with": [], "file": []}

    def write(jobs: Sequence[Job]) -> StateWrite:
        return StateWrite("stream", end.leases.token("stream"), data, {"name": "stream"})

    for turn in track(range(commits + 1), f"commits of {size_mb} MB", console=console):
        for kind in ("without", "with"):
            end.consumer.state = write if kind == "with" else _no_state
            end.consumer.settled_s.clear()
            await _turn(submitter, Taken(), 1, 1, "one stream", 1)
            while not end.consumer.settled_s:  # the answer may be here before `settle` returns there
                await asyncio.sleep(0.001)
            seconds[kind] += end.consumer.settled_s
        began = time.perf_counter()
        await asyncio.to_thread(files.save, "stream", data)
        seconds["file"].append(time.perf_counter() - began)
        if turn == 0:  # it warms up
            seconds = {kind: [] for kind in seconds}
    end.consumer.state = _no_state
    return _commit_row(size_mb, seconds)


def _commit_row(size_mb: float, seconds: dict[str, list[float]]) -> dict[str, Any]:
    ms = {kind: 1e3 * statistics.median(taken) for kind, taken in seconds.items()}
    return {
        "state_mb": size_mb,
        "commits": len(seconds["file"]),
        "settle_without_ms": ms["without"],
        "settle_with_ms": ms["with"],
        "file_ms": ms["file"],
        "with_over_without": ms["with"] / ms["without"],
        "with_over_file": ms["with"] / ms["file"],
    }


# -- the whole server --------------------------------------------------------------------------------


DEPLOYMENTS = ("embedded", "all with Redis", "api + worker")


def compare_servers(url: str, *, requests: int, encoder: str) -> list[dict[str, Any]]:
    """The same texts over HTTP, one request at a time, by each deployment in turns."""
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(Client(address, timeout_s=600))
            for name, address in _servers(stack, url, encoder).items()
        }
        rows = []
        for size, mode in ((1, "off"), (1, "async"), (64, "off"), (64, "sync")):
            count = requests if size == 1 else max(TURNS, requests // 16)
            seconds = _ask_in_turns(clients, size, mode, count)
            rows.append(_server_row(seconds, size, mode))
    return rows


def _servers(stack: ExitStack, url: str, encoder: str) -> dict[str, str]:
    def start(**settings: Any) -> str:
        return stack.enter_context(running_server(encoder=encoder, **settings))

    found = {"embedded": start()}
    found["all with Redis"] = start(redis_url=url, redis_namespace="bench-all")
    start(redis_url=url, redis_namespace="bench-apart", role="worker")
    found["api + worker"] = start(redis_url=url, redis_namespace="bench-apart", role="api")
    return found


def _ask_in_turns(clients: dict[str, Client], size: int, mode: str, count: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    texts = _texts(clients["embedded"])
    for turn in track(range(TURNS + 1), f"{size} a request, {mode}", console=console):
        for name, client in clients.items():
            taken = []
            for number in range(-(-count // TURNS)):
                queries = [texts[(number * size + row) % len(texts)] for row in range(size)]
                began = time.perf_counter()
                client.retrieve(queries, adapt=mode, stream=f"bench-{mode}")
                taken.append(time.perf_counter() - began)
            if mode == "async":
                _wait_for_background(client, f"bench-{mode}")
            if turn:  # the first one warms up
                seconds[name] += taken
    return seconds


def _texts(client: Client) -> list[str]:
    page = client.list_items(client.models()["default_gallery"], limit=256)
    return [item["text"] for item in page["items"] if item["text"]]


def _wait_for_background(client: Client, stream: str, longest_s: float = 10.0) -> None:
    """Until no full batch waits, so that no deployment pays for the adaptation of another."""
    until = time.monotonic() + longest_s
    before = -1
    while time.monotonic() < until:
        tracks = client.describe_stream(stream)["tracks"]
        seen = sum(track["batches"] for track in tracks)
        if seen == before and all(track["gathered"] < 64 for track in tracks):
            return
        before = seen
        time.sleep(0.2)


def _server_row(seconds: dict[str, list[float]], size: int, mode: str) -> dict[str, Any]:
    base = seconds["embedded"]
    row: dict[str, Any] = {"queries_a_request": size, "mode": mode, "requests": len(base)}
    p50 = {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
    for name in DEPLOYMENTS:
        row[name] = {
            "p50_ms": p50[name],
            "p99_ms": 1e3 * sorted(seconds[name])[min(len(base) - 1, int(0.99 * len(base)))],
            "p50_over_embedded": p50[name] / p50["embedded"],
            "added_ms_a_query": (p50[name] - p50["embedded"]) / size,
        }
    return row


# -- the command -------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.redis", description=__doc__.split("\n")[0])
    made.add_argument("--part", choices=["queue", "commit", "engine", "all"], default="all")
    made.add_argument("--jobs", type=int, default=1000, help="jobs a workload and transport (queue)")
    made.add_argument(
        "--payloads", type=int, nargs="+", choices=sorted(PAYLOAD_SIDES), default=sorted(PAYLOAD_SIDES)
    )
    made.add_argument("--commits", type=int, default=50, help="commits a size (commit)")
    made.add_argument("--requests", type=int, default=320, help="single-text requests a deployment (engine)")
    made.add_argument("--encoder", default="demo", help="demo, or a folder with a dual encoder (engine)")
    made.add_argument("--json", type=Path, help="write everything measured here")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    found: dict[str, Any] = {"machine": machine(), "versions": versions()}
    out = make_console()
    with redis_server() as server:
        if asked.part in ("queue", "all"):
            found["queue"] = asyncio.run(compare_queues(server.url, jobs=asked.jobs, payloads=asked.payloads))
            out.print(_queue_table(found["queue"]))
        if asked.part in ("commit", "all"):
            found["commit"] = asyncio.run(
                compare_commits(server.url, commits=asked.commits, sizes_mb=STATE_MB)
            )
            out.print(_commit_table(found["commit"]))
        if asked.part in ("engine", "all"):
            found["engine"] = compare_servers(server.url, requests=asked.requests, encoder=asked.encoder)
            out.print(_server_table(found["engine"]))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _queue_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ["KB", "clients", "streams in", "", "p50 ms", "p99 ms", "jobs/s", "added p50 ms"]
    columns += ["p50 over memory", "jobs/s over memory"]
    body = []
    for row in rows:
        for name in ("memory", "together", "apart"):
            found = row[name]
            body.append((
                str(row["payload_kb"]), str(row["clients"]), row["streams"], name,
                *(f"{found[figure]:.{digits}f}" if figure in found else ""
                  for figure, digits in (("p50_ms", 2), ("p99_ms", 2), ("jobs_per_s", 0), ("added_p50_ms", 2),
                                         ("p50_ms_over_memory", 1), ("jobs_per_s_over_memory", 3))),
            ))  # fmt: skip
    return _table("The query stream: in memory, through Redis together and apart", columns, body)


def _commit_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = (
        "state MB",
        "settle without ms",
        "settle with ms",
        "file ms",
        "with over without",
        "with over file",
    )
    names = ("settle_without_ms", "settle_with_ms", "file_ms", "with_over_without", "with_over_file")
    body = [(f"{row['state_mb']:g}", *(f"{row[name]:.2f}" for name in names)) for row in rows]
    return _table("Commit of a state", columns, body)


def _server_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("queries", "mode", "deployment", "p50 ms", "p99 ms", "over embedded", "added ms a query")
    body = [
        (
            str(row["queries_a_request"]), row["mode"], name, f"{row[name]['p50_ms']:.2f}",
            f"{row[name]['p99_ms']:.2f}", f"{row[name]['p50_over_embedded']:.2f}",
            f"{row[name]['added_ms_a_query']:.3f}",
        )
        for row in rows
        for name in DEPLOYMENTS
    ]  # fmt: skip
    return _table("Whole server over HTTP", columns, body)


if __name__ == "__main__":
    logs.configure("warning")
    sys.exit(main())
