"""Many streams on one worker: what a new one costs, a held one, one that has left memory, and all together.

    python -m benchmarks.streams                      10,000 streams, embedded and with a Redis of its own
    python -m benchmarks.streams --streams 1000 --part redis
    python -m benchmarks.streams --part memory        what one stream takes, with this encoder and with CLIP

The demo encoder answers texts in this process, without HTTP. Every stream gets one query (asynchronous), then
one small synchronous batch that it adapts on. Then the server starts again with room for a tenth of them.
Times are to be compared within a run: `late over early` is the median of the last tenth of the streams over
that of the first, so anything in the path that grows with the streams shows there.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis
from pydantic import SecretStr
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.console import machine, make_console, versions
from benchmarks.redis_server import redis_server
from benchmarks.stream_memory import weigh_all
from demo.scenes import scenes
from service.engine import Engine, running_engine
from service.http import logs
from service.messages import AskedMode, Query, RetrieveAnswer, RetrieveRequest
from service.redis.keys import Keys
from service.redis.maintenance import status
from service.settings import Settings

console = Console(stderr=True)

ADAPT_QUERIES = 4
PINNED = 5
_NAMESPACE = "bench"


class Run:
    """One server after the other on the same folder (and Redis), and what was measured of them."""

    def __init__(self, streams: int, probes: int, folder: Path, redis_url: str | None) -> None:
        self.names = [f"stream-{n}" for n in range(streams)]
        self._probes = probes
        self._folder = folder
        self._redis_url = redis_url
        self._texts = [scene.caption for scene in scenes("test", 200)]
        self._random = random.Random(0)
        self.found: dict[str, Any] = {"streams": streams, "with_redis": redis_url is not None}

    def settings(self, *, max_streams: int) -> Settings:
        return Settings(
            data_folder=self._folder,
            max_streams=max_streams,
            batch_max_wait_ms=0.0,
            redis_url=None if self._redis_url is None else SecretStr(self._redis_url),
            redis_namespace=_NAMESPACE,
        )

    async def measure(self) -> dict[str, Any]:
        async with running_engine(self.settings(max_streams=len(self.names) + 1)) as engine:
            await self._fill(engine)
            await self._use(engine)
        gc.collect()  # what the first server held is no cost of the second
        room = max(PINNED + 1, len(self.names) // 10)
        async with running_engine(self.settings(max_streams=room)) as engine:
            await self._overflow(engine, room)
        if self._redis_url is not None:
            self._weigh_redis(self._redis_url)
        return self.found

    # -- all streams fit ----------------------------------------------------------------------------

    async def _fill(self, engine: Engine) -> None:
        one = ["alone"] * self._probes
        await self._each("warm up", one, lambda name: self._ask(engine, name))
        alone = await self._each("one stream only", one, lambda name: self._ask(engine, name))
        before = resident_bytes()
        first = await self._each("first query of a stream", self.names, lambda name: self._ask(engine, name))
        adapted = await self._each(
            "one adaptation of each", self.names, lambda name: self._ask(engine, name, ADAPT_QUERIES, "sync")
        )
        self.found["query_of_the_only_stream"] = _times(alone)
        self.found["first_query_of_a_stream"] = _times(first)
        self.found["adaptation"] = _times(adapted)
        self.found["resident_bytes_a_stream"] = (resident_bytes() - before) / len(self.names)
        self.found["state_bytes_a_stream"] = _metric(engine, "attune_stream_bytes") / (len(self.names) + 1)

    async def _use(self, engine: Engine) -> None:
        held = await self._each(
            "query of a held stream", self._chosen(), lambda name: self._ask(engine, name)
        )
        self.found["query_of_a_held_stream"] = _times(held)
        began = time.perf_counter()
        listing = asyncio.ensure_future(engine.list_streams())
        beside: list[float] = []
        while not listing.done():
            asked = time.perf_counter()
            await self._ask(engine, self.names[0], mode="off")
            beside.append(time.perf_counter() - asked)
        self.found["list"] = {
            "streams": len(listing.result()),
            "ms": 1e3 * (time.perf_counter() - began),
            "slowest_query_beside_it_ms": 1e3 * max(beside),
        }

    # -- one in ten fits ----------------------------------------------------------------------------

    async def _overflow(self, engine: Engine, room: int) -> None:
        pinned = self.names[:PINNED]
        for name in pinned:
            await engine.configure_stream(name, pinned=True)
        missed = [name for name in self.names[PINNED:] for _ in range(2)][: 2 * max(self._probes, 2 * room)]
        taken = await self._each("streams that have left", missed, lambda name: self._ask(engine, name))
        self.found["max_streams"] = room
        self.found["query_that_loads_its_stream"] = _times(taken[::2])
        self.found["query_right_after"] = _times(taken[1::2])
        self.found["evictions"] = _metric(engine, "attune_stream_evictions_total")
        self.found["streams_in_memory"] = _metric(engine, "attune_streams")
        self.found["pinned_that_left"] = sorted(set(pinned) - _shown_streams(engine))

    def _weigh_redis(self, url: str) -> None:
        with redis.Redis.from_url(url) as client:
            memory = status(client, Keys(_NAMESPACE), lease_s=4.0, sample=500)["memory"]
        self.found["redis_bytes_a_stream"] = {row["kind"]: row["bytes"] / len(self.names) for row in memory}

    # -- asking -------------------------------------------------------------------------------------

    def _chosen(self) -> list[str]:
        return self._random.choices(self.names, k=self._probes)

    async def _each(
        self, title: str, names: Sequence[str], ask: Callable[[str], Awaitable[Any]]
    ) -> list[float]:
        """Seconds of each."""
        taken = []
        for name in track(names, title, console=console):
            began = time.perf_counter()
            await ask(name)
            taken.append(time.perf_counter() - began)
        return taken

    async def _ask(
        self, engine: Engine, stream: str, count: int = 1, mode: AskedMode = "async"
    ) -> RetrieveAnswer:
        queries = tuple(Query(text=text) for text in self._random.choices(self._texts, k=count))
        return await engine.retrieve(RetrieveRequest(queries=queries, stream=stream, adapt=mode))


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux)."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _metric(engine: Engine, name: str) -> float:
    return engine.metrics.value(name)


def _shown_streams(engine: Engine) -> set[str]:
    """Streams with figures of their own in the metrics: those in memory, pinned ones first."""
    return set(
        re.findall(r'attune_stream_state_version\{[^}]*stream="([^"]+)"', engine.metrics.render().decode())
    )


def _times(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    tenth = max(1, len(seconds) // 10)
    return {
        "p50_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "max_ms": 1e3 * ordered[-1],
        "late_over_early": statistics.median(seconds[-tenth:]) / statistics.median(seconds[:tenth]),
    }


# -- the command -------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__.split("\n")[0])
    made.add_argument("--streams", type=int, default=10_000)
    made.add_argument(
        "--probes", type=int, default=1000, help="queries of a phase that does not take every stream"
    )
    made.add_argument("--part", choices=["embedded", "redis", "memory", "all"], default="all")
    made.add_argument("--json", type=Path, help="write everything measured here")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    found: dict[str, Any] = {"machine": machine(), "versions": versions()}
    out = make_console()
    if asked.part in ("memory", "all"):
        found["memory"] = weigh_all()
        out.print(_memory_table(found["memory"]))
    for part in ("embedded", "redis"):
        if asked.part not in (part, "all"):
            continue
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attune-bench-")))
            url = stack.enter_context(redis_server()).url if part == "redis" else None
            run = Run(asked.streams, asked.probes, folder, url)
            found[part] = asyncio.run(run.measure())
        out.print(_table(part, found[part]))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


def _memory_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Bytes of a stream with one track")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "track" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.0f}" for value in row.values()))
    return table


def _table(part: str, found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['streams']} streams, {part}")
    for column in ("", "p50 ms", "p99 ms", "max ms", "late over early"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in found.items():
        if isinstance(value, dict) and "p50_ms" in value:
            row = [f"{value[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms", "late_over_early")]
            table.add_row(name.replace("_", " "), *row)
        elif isinstance(value, dict):
            for inner, number in value.items():
                table.add_row(f"{name.replace('_', ' ')}: {inner.replace('_', ' ')}", f"{number:,.1f}")
        elif not isinstance(value, bool):
            table.add_row(name.replace("_", " "), f"{value:,.0f}" if isinstance(value, float) else str(value))
    return table


if __name__ == "__main__":
    logs.configure("warning")
    sys.exit(main())
