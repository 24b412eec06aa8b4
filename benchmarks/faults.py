"""What a deployment on Redis loses when its parts are killed, paused and cut off under load: nothing.

    python -m benchmarks.faults --cycles 100 --json faults.json [--seed 0] [--workers 2] [--apis 2]

A real Redis, API processes and workers; clients over HTTP that know what each stream must have learned
(benchmarks/fault_load.py). A cycle is one fault, chosen at random, and the wait until every stream that it
touches has had an answer again. In the end each stream's states, taken whenever it was reset and at its end,
are compared bit by bit with those of the same batches in one undisturbed process.

lost      queries or batches that were answered as learned from and are not in the state
doubled   those that are in the state twice, or were refused for good and are in it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cluster import Cluster, Process, cluster, until
from benchmarks.console import machine, versions
from benchmarks.fault_load import Addresses, Kind, StreamClient, Tally, replay
from service.engine import running_engine
from service.redis.keys import PARTITIONS
from service.settings import Settings

RECOVERY_S = 90.0
_SAMPLE_S = 0.25

BUSY: Mapping[Kind, float] = {"sync": 6, "single": 2, "reset": 0.4, "snapshot": 0.8, "restore": 0.8, "off": 1}
TYPING: Mapping[Kind, float] = {"single": 8, "sync": 1, "reset": 0.5, "snapshot": 0.5, "restore": 0.5}
FROZEN: Mapping[Kind, float] = {"off": 1}


class Load:
    """Clients with streams of their own, all of one cluster."""

    def __init__(self, running: Cluster, *, streams: int, seed: int, pause_s: float) -> None:
        self.tally = Tally()
        self.addresses = Addresses()
        late_s = float(str(running.settings["redis_timeout_s"])) + 0.3
        names = [f"{('busy', 'typing')[number % 2]}{number}" for number in range(streams - 1)]
        self.clients = [
            StreamClient(
                name, seed=seed, weights=_weights(name), addresses=self.addresses, tally=self.tally,
                late_s=late_s, pause_s=pause_s,
            )
            for name in [*names, "frozen"]
        ]  # fmt: skip

    def start(self) -> None:
        for client in self.clients:
            client.start()
        until(lambda: all(client.answered_at for client in self.clients), RECOVERY_S)

    def finish(self) -> None:
        for client in self.clients:
            client.stop()
        for client in self.clients:
            client.join()


def _weights(name: str) -> Mapping[Kind, float]:
    return BUSY if name.startswith("busy") else TYPING if name.startswith("typing") else FROZEN


@dataclass
class Fault:
    """One fault.

    streams  those whose recovery counts, by name; empty: all
    after    what is left to do when they have recovered
    at       time.monotonic() from which recovery counts
    """

    kind: str
    at: float
    streams: frozenset[str] = frozenset()
    after: Callable[[], None] = lambda: None


@dataclass
class Cycle:
    kind: str
    seconds: float
    recovery_s: list[float]
    stuck: list[str]


class Chaos:
    """Chooses faults and makes them. The cluster is brought back to its size in the background."""

    def __init__(self, running: Cluster, load: Load, *, workers: int, apis: int, seed: int) -> None:
        self._cluster = running
        self._load = load
        self._size = {"worker": workers, "api": apis}
        self._rng = random.Random(seed)
        self._lease_s = float(str(running.settings["lease_s"]))
        self._kinds: dict[str, tuple[float, Callable[[], Fault | None]]] = {
            "worker killed": (3, self.kill_worker),
            "worker stopped": (1, self.stop_worker),
            "worker added": (1, self.add_worker),
            "worker paused past its lease": (3, self.pause_worker),
            "all workers killed": (0.5, self.kill_workers),
            "API killed": (2, self.kill_api),
            "Redis killed": (3, self.kill_redis),
            "Redis paused": (2, self.pause_redis),
            "connections cut": (3, self.cut_connections),
            "leases taken away": (3, self.take_leases),
        }

    def make(self, kind: str | None = None) -> Fault:
        """A fault of a kind, as soon as it can be made; without one, of a kind that can be made now."""
        kinds = list(self._kinds)
        while True:
            (chosen,) = [kind] if kind else self._rng.choices(kinds, [self._kinds[each][0] for each in kinds])
            with suppress(redis.RedisError, OSError):
                fault = self._kinds[chosen][1]()
                if fault is not None:
                    return fault
            self.tend()
            time.sleep(0.1)

    @property
    def kinds(self) -> list[str]:
        return list(self._kinds)

    def tend(self) -> None:
        """Start what is missing; clients use what is ready. Called often, never waits."""
        self._cluster.forget_dead()
        for role, processes in (("worker", self._cluster.workers), ("api", self._cluster.apis)):
            while len(processes) < self._size[role]:
                self._cluster.start(role)  # type: ignore[arg-type]
        self._load.addresses.set([api.address for api in self._cluster.apis if api.alive])

    # -- faults -------------------------------------------------------------------------------------

    def kill_worker(self) -> Fault | None:
        return self._of_worker("worker killed", Process.kill)

    def stop_worker(self) -> Fault | None:
        return self._of_worker("worker stopped", Process.terminate)

    def add_worker(self) -> Fault | None:
        """A third worker joins; when its streams go on it leaves again."""
        if len(self._cluster.workers) > self._size["worker"]:
            return None
        added = self._cluster.start("worker")
        until(lambda: bool(self._cluster.partitions_of(added)) or not added.alive, RECOVERY_S)
        return Fault("worker added", time.monotonic(), after=added.terminate)

    def pause_worker(self) -> Fault | None:
        """Paused until others own its streams, then woken: whatever it still writes is refused."""
        worker = self._ready_worker()
        if worker is None:
            return None
        owned, streams = self._cluster.partitions_of(worker), self._streams_of(worker)
        at = time.monotonic()
        worker.pause()
        until(lambda: not (owned & self._cluster.partitions_of(worker)), RECOVERY_S)

        def wake() -> None:
            worker.resume()

        # Half of the time it wakes as soon as its leases have run out, else when the others have gone on.
        if self._rng.random() < 0.5:
            wake()
            return Fault("worker paused past its lease", at, streams)
        return Fault("worker paused past its lease", at, streams, after=wake)

    def kill_workers(self) -> Fault | None:
        at = time.monotonic()
        for worker in self._cluster.workers:
            worker.kill()
        return Fault("all workers killed", at)

    def kill_api(self) -> Fault | None:
        ready = [api for api in self._cluster.apis if api.ready]
        if len(ready) < 2:
            return None
        at = time.monotonic()
        self._rng.choice(ready).kill()
        return Fault("API killed", at)

    def kill_redis(self) -> Fault | None:
        at = time.monotonic()
        self._cluster.redis.kill()
        time.sleep(self._rng.random() * 1.5)
        self._cluster.redis.start()
        return Fault("Redis killed", at)

    def pause_redis(self) -> Fault | None:
        at = time.monotonic()
        self._cluster.redis.pause()
        time.sleep(self._rng.random() * 3 * self._lease_s)
        self._cluster.redis.resume()
        return Fault("Redis paused", at)

    def cut_connections(self) -> Fault | None:
        """Every command under way ends without its answer, whether it was executed or not."""
        at = time.monotonic()
        with self._cluster.redis.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return Fault("connections cut", at)

    def take_leases(self) -> Fault | None:
        """Deleted in the middle of the work: everything begun is delivered a second time, at once."""
        at, keys = time.monotonic(), self._cluster.keys
        with self._cluster.redis.client() as client:
            client.delete(*self._rng.sample([keys.lease(p) for p in range(PARTITIONS)], PARTITIONS // 2))
        return Fault("leases taken away", at)

    def _of_worker(self, kind: str, act: Callable[[Process], None]) -> Fault | None:
        worker = self._ready_worker()
        if worker is None:
            return None
        streams, at = self._streams_of(worker), time.monotonic()
        act(worker)
        return Fault(kind, at, streams)

    def _ready_worker(self) -> Process | None:
        """One of those that own partitions, if another does too."""
        owning = [worker for worker in self._cluster.workers if self._cluster.partitions_of(worker)]
        owning = [worker for worker in owning if worker.alive and not worker.paused and not worker.leaving]
        return self._rng.choice(owning) if len(owning) > 1 else None

    def _streams_of(self, worker: Process) -> frozenset[str]:
        names = [client.name for client in self._load.clients]
        return frozenset(name for name in names if self._cluster.owner(name) is worker)


class Moves:
    """Counts partitions that change hands, by looking often."""

    def __init__(self, running: Cluster) -> None:
        self.count = 0
        self._cluster = running
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moves", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        last: dict[int, str] = {}
        while not self._stopping.wait(_SAMPLE_S):
            with suppress(redis.RedisError, OSError):
                now = self._cluster.holders()
                self.count += sum(last.get(p, worker) != worker for p, worker in now.items())
                last |= now


@dataclass
class Run:
    """All that a run came to."""

    cycles: list[Cycle] = field(default_factory=list)
    moves: int = 0
    leftovers: dict[str, int] = field(default_factory=dict)
    checks: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0


def run_cycle(chaos: Chaos, load: Load, kind: str | None = None) -> Cycle:
    """One fault, and the wait for an answer to every stream that it touches."""
    started = time.monotonic()
    fault = chaos.make(kind)
    waiting = {
        client.name: client for client in load.clients if not fault.streams or client.name in fault.streams
    }
    recovery_s: list[float] = []
    while waiting and time.monotonic() - fault.at < RECOVERY_S:
        chaos.tend()
        for client in list(waiting.values()):
            if client.succeeded_at > fault.at:
                recovery_s.append(client.answered_at - fault.at)
                del waiting[client.name]
        time.sleep(0.02)
    fault.after()
    for name in waiting:
        load.tally.blame(queries=0, what=f"{name}: no answer within {RECOVERY_S:.0f} s of: {fault.kind}")
    return Cycle(fault.kind, time.monotonic() - started, recovery_s, sorted(waiting))


def shown(cycle: Cycle, tally: Tally) -> str:
    return (
        f"{cycle.kind}: {cycle.seconds:.1f} s; {tally.answered} answered, "
        f"{sum(tally.failed.values())} failed, {tally.lost} lost, {tally.doubled} doubled"
    )


def come_to_rest(running: Cluster) -> dict[str, int]:
    """What is left when nothing is asked any more; it has a while to go."""
    until(lambda: not running.leftovers(), 30)
    return running.leftovers()


def check_gatherings(running: Cluster, load: Load) -> None:
    """The stored gatherings are as long as the clients' own."""
    for client in load.clients:
        stored = running.gathered(client.name)
        if stored != client.gathered:
            load.tally.blame(
                queries=stored - client.gathered,
                what=f"{client.name}: {stored} stored, {client.gathered} gathered",
            )


def compare(running: Cluster, load: Load, on_deed: Callable[[], None] = lambda: None) -> dict[str, list[str]]:
    """Each stream's states against those of an undisturbed run, in their order."""
    with tempfile.TemporaryDirectory(prefix="attune-undisturbed-") as folder:
        shutil.copytree(running.data_folder / "galleries", Path(folder) / "galleries")
        ours = {
            name: running.settings[name]
            for name in ("encoder", "torch_threads", "demo_gallery_items", "guard")
        }
        ours["guard"] = json.loads(str(ours["guard"]))
        settings = Settings(**ours, gather_min_items=64, data_folder=Path(folder))  # type: ignore[arg-type]
        return asyncio.run(_replay_all(settings, load, on_deed))


async def _replay_all(settings: Settings, load: Load, on_deed: Callable[[], None]) -> dict[str, list[str]]:
    async with running_engine(settings) as engine:
        return {
            client.name: await replay(engine, client.name, client.history, on_deed) for client in load.clients
        }


def run(
    *,
    cycles: int,
    seed: int,
    workers: int,
    apis: int,
    streams: int,
    pause_s: float,
    only: str | None = None,
    console: Console,
) -> dict[str, Any]:
    result, started = Run(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        cluster(apis=apis, workers=workers, lease_s=1, redis_timeout_s=1) as running,
    ):
        load = Load(running, streams=streams, seed=seed, pause_s=pause_s)
        chaos = Chaos(running, load, workers=workers, apis=apis, seed=seed)
        chaos.tend()
        moves = Moves(running)
        load.start()
        task = progress.add_task("faults", total=cycles)
        told = 0
        for _ in range(cycles):
            cycle = run_cycle(chaos, load, only)
            result.cycles.append(cycle)
            tally = load.tally
            progress.update(task, advance=1, description=shown(cycle, tally))
            if not console.is_terminal:
                console.print(f"{len(result.cycles)} {shown(cycle, tally)}")
            while told < len(tally.trouble):
                console.print(tally.trouble[told])
                told += 1
        load.finish()
        result.moves = moves.count
        moves.stop()
        result.leftovers = come_to_rest(running)
        check_gatherings(running, load)
        deeds = sum(len(client.history) for client in load.clients)
        task = progress.add_task("undisturbed run", total=deeds)
        torch.set_num_threads(1)
        result.checks = compare(running, load, lambda: progress.advance(task))
        result.seconds = time.monotonic() - started
        if load.tally.trouble or any(any(found) for found in result.checks.values()):
            kept = Path(tempfile.mkdtemp(prefix="attune-faults-logs-"))
            for log in running.folder.glob("*.log"):
                shutil.copy(log, kept)
            console.print(f"logs: {kept}")
    return report(result, load, seed=seed, workers=workers, apis=apis)


def report(result: Run, load: Load, *, seed: int, workers: int, apis: int) -> dict[str, Any]:
    tally = load.tally
    states = [found for checks in result.checks.values() for found in checks]
    return {
        "seed": seed,
        "workers": workers,
        "apis": apis,
        "streams": len(load.clients),
        "seconds": round(result.seconds, 1),
        "cycles": len(result.cycles),
        "cycles_by_fault": dict(Counter(cycle.kind for cycle in result.cycles)),
        "sent": sum(tally.sent.values()),
        "sent_by_kind": dict(tally.sent),
        "accepted": tally.answered + tally.failed_but_done,
        "answered": tally.answered,
        "failed": dict(tally.failed),
        "failed_but_done": tally.failed_but_done,
        "batches_adapted": sum(
            deed.action in ("sync", "gather") for client in load.clients for deed in client.history
        ),
        "lost": tally.lost,
        "doubled": tally.doubled,
        "trouble": tally.trouble,
        "leftovers": result.leftovers,
        "states_compared": len(states),
        "states_equal": states.count(""),
        "states_unequal": {
            f"{name}, check {number}": found
            for name, checks in result.checks.items()
            for number, found in enumerate(checks)
            if found
        },
        "ownership_moves": result.moves,
        "recovery_s": recovery(result.cycles),
        "versions": versions(),
        "machine": machine(),
    }


def recovery(cycles: Sequence[Cycle]) -> dict[str, dict[str, float]]:
    """From the fault to the answer of a stream's first request that was sent after it, by kind of fault."""
    times: dict[str, list[float]] = {}
    for cycle in cycles:
        times.setdefault(cycle.kind, []).extend(cycle.recovery_s)
        times.setdefault("all", []).extend(cycle.recovery_s)
    return {kind: _spread(values) for kind, values in times.items() if values}


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        "median": round(statistics.median(ordered), 2),
        "p95": round(p95, 2),
        "max": round(ordered[-1], 2),
        "count": len(ordered),
    }


def clean(found: Mapping[str, Any]) -> bool:
    """Whether nothing was lost, doubled, left over or unequal."""
    return (
        not found["lost"]
        and not found["doubled"]
        and not found["trouble"]
        and not found["leftovers"]
        and found["states_compared"] == found["states_equal"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="at least 2, so that one may die")
    parser.add_argument("--apis", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument(
        "--pause-s", type=float, default=0.1, help="mean pause of a client between two requests"
    )
    parser.add_argument("--only", help="this kind of fault, and no other")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # leave no process behind
    console = Console(stderr=True)
    found = run(
        cycles=options.cycles, seed=options.seed, workers=options.workers, apis=options.apis,
        streams=options.streams, pause_s=options.pause_s, only=options.only, console=console,
    )  # fmt: skip
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2))
    Console().print_json(json.dumps(found))
    sys.exit(0 if clean(found) else 1)


if __name__ == "__main__":
    main()
