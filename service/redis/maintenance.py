"""What a deployment holds in Redis, and the removal of what no lifetime removes.

Both may run at any time beside workers and API processes. Every removal is decided and done in one script
(service/redis/scripts/gc_*.lua), so nothing can come into use between the look and the removal; why each
is safe stands there. Keys are found with SCAN, a thousand at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import redis
from redis.exceptions import ResponseError

from service.redis.connection import Scripts
from service.redis.keys import (
    API_ALIVE_MS,
    GATHERING_TTL_S,
    GROUP,
    LAYOUT_VERSION,
    PARTITIONS,
    RESULTS_TTL_MS,
    WITHDRAWN_TTL_S,
    Keys,
)

SCRIPTS = ("gc_begun", "gc_consumers", "gc_gatherings", "gc_index", "gc_processes", "recount")

WORKER_GONE_MS = 120_000
"""Twice the longest lease: a worker unheard of for so long owns nothing."""
API_GONE_MS = API_ALIVE_MS + RESULTS_TTL_MS
"""No result that an API process unheard of for so long could still be waiting for is alive."""
RECOUNT_BYTES = 128 << 20
"""Beyond, the waiting items are not recounted: reading the entries would hold Redis up for seconds."""

_SAMPLE = 200
_CHUNK = 500
_SCAN_COUNT = 1000

T = TypeVar("T")


# -- status ------------------------------------------------------------------------------------------


def status(client: redis.Redis, keys: Keys, *, lease_s: float, sample: int = _SAMPLE) -> dict[str, Any]:
    """Everything of a deployment in plain values.

    lease_s   a worker counts as alive for twice that
    sample    keys of one kind whose memory is measured; where there are more, the rest is estimated

    Raises what the client raises.
    """
    now_ms = _now_ms(client)
    partitions, owners = _partitions(client, keys, now_ms)
    memory, layouts = _memory(client, keys, sample)
    waiting: Any = client.get(keys.waiting)
    info: Any = client.info()
    return {
        "namespace": keys.namespace,
        "layout_version": LAYOUT_VERSION,
        "other_layouts": layouts,
        "redis_version": info["redis_version"],
        "redis_memory_bytes": info["used_memory"],
        "redis_max_memory_bytes": info.get("maxmemory", 0),
        "append_only_file": bool(info.get("aof_enabled")),
        "workers": [
            {"worker": name, "seen_s": age_s, "alive": age_s <= 2 * lease_s, "partitions": owners[name]}
            for name, age_s in _members(client, keys.workers, now_ms)
        ],
        "apis": [
            {"api": name, "seen_s": age_s, "alive": age_s * 1e3 <= API_ALIVE_MS}
            for name, age_s in _members(client, keys.apis, now_ms)
        ],
        "partitions_owned": sum(owners.values()),
        "partitions_free": PARTITIONS - sum(owners.values()),
        "waiting_items": int(waiting or 0),
        "streams": client.zcard(keys.streams),
        "gatherings": sum(partition["gatherings"] for partition in partitions),
        "partitions": [p for p in partitions if p["entries"] or p["pending"] or p["gatherings"]],
        "memory": memory,
    }


def _now_ms(client: redis.Redis) -> float:
    """Redis' own clock, which all processes go by."""
    seconds, microseconds = client.time()
    return float(seconds * 1e3 + microseconds / 1e3)


def _members(client: redis.Redis, key: str, now_ms: float) -> list[tuple[str, float]]:
    """Processes and seconds since they were heard of, the latest first."""
    found: Any = client.zrevrange(key, 0, -1, withscores=True)
    return [(name.decode(), round(max(0.0, now_ms - score) / 1e3, 3)) for name, score in found]


def _partitions(client: redis.Redis, keys: Keys, now_ms: float) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Each partition; and how many each worker owns."""
    with client.pipeline(transaction=False) as pipe:
        for p in range(PARTITIONS):
            pipe.get(keys.lease(p))
            pipe.xlen(keys.queue(p))
            pipe.xpending(keys.queue(p), GROUP)
            pipe.zcard(keys.gatherings(p))
        replies = pipe.execute(raise_on_error=False)
    partitions: list[dict[str, Any]] = []
    owners: Counter[str] = Counter()
    for p in range(PARTITIONS):
        lease, entries, pending, gatherings = replies[4 * p : 4 * p + 4]
        for reply in (lease, entries, gatherings):
            if isinstance(reply, Exception):
                raise reply
        owner = None if lease is None else lease.decode().rpartition(":")[0]
        if owner is not None:
            owners[owner] += 1
        if isinstance(pending, ResponseError):  # no worker has ever owned it
            pending = {}
        partitions.append(
            {
                "partition": p,
                "owner": owner,
                "entries": entries,
                "pending": pending.get("pending", 0),
                "oldest_pending_s": _age_s(pending.get("min"), now_ms),
                "gatherings": gatherings,
            }
        )
    return partitions, owners


def _age_s(entry: bytes | None, now_ms: float) -> float | None:
    """An entry begins with the milliseconds at which it came."""
    return None if entry is None else round(max(0.0, now_ms - int(entry.partition(b"-")[0])) / 1e3, 3)


def _memory(client: redis.Redis, keys: Keys, sample: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Bytes by kind of key, the largest first; and how many keys of other layouts there are."""
    counts: Counter[str] = Counter()
    measured: defaultdict[str, list[bytes]] = defaultdict(list)
    layouts: Counter[str] = Counter()
    for key in _scan(client, keys):
        layout, kind = _layout_and_kind(keys, key)
        if layout != str(LAYOUT_VERSION):
            layouts[layout] += 1
            continue
        counts[kind] += 1
        if len(measured[kind]) < sample:  # SCAN's order has nothing to do with names or age
            measured[kind].append(key)
    rows = []
    for kind, count in counts.items():
        sizes = _sizes(client, measured[kind])
        mean = sum(sizes) / max(len(sizes), 1)
        rows.append(
            {
                "kind": kind,
                "keys": count,
                "bytes": round(mean * count),
                "bytes_a_key": round(mean),
                "estimated": len(measured[kind]) < count,
            }
        )
    return sorted(rows, key=lambda row: -row["bytes"]), dict(layouts)


def _layout_and_kind(keys: Keys, key: bytes) -> tuple[str, str]:
    layout, _, rest = key.decode(errors="replace").removeprefix(f"{keys.namespace}:").partition(":")
    return layout, rest.partition(":")[0]


def _sizes(client: redis.Redis, keys: Iterable[bytes]) -> list[int]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.memory_usage(key)
        return [size for size in pipe.execute() if size is not None]  # None: it went meanwhile


def _scan(client: redis.Redis, keys: Keys) -> Iterator[bytes]:
    """Keys of the namespace, of all layouts; a name has no character that MATCH would read as a pattern."""
    seen: Iterator[bytes] = client.scan_iter(f"{keys.namespace}:*", count=_SCAN_COUNT)
    return seen


# -- gc ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """What was removed, or with `dry_run` would have been; counts of what each line says.

    waiting_was, waiting_is  items waiting as the counter stood, and as counted; `waiting_is` is None where
                             so much waits that it was not counted
    """

    consumers_of_dead_workers: int
    streams_without_state: int
    empty_gatherings: int
    orphaned_gatherings: int
    attempts: int
    withdrawn: int
    results_of_dead_apis: int
    workers: int
    apis: int
    old_layout_keys: int
    old_layouts_in_use: tuple[str, ...]
    waiting_was: int
    waiting_is: int | None
    dry_run: bool


def collect(
    client: redis.Redis,
    keys: Keys,
    *,
    dry_run: bool = False,
    older_than_s: float = 3_600.0,
    old_layouts: bool = False,
) -> Collected:
    """Remove what no lifetime removes.

    older_than_s  a gathering without use for so long goes, if its stream has no state
    old_layouts   also the keys of other layout versions of this namespace, unless a process uses them

    Queries in a gathering have been answered; they only have not been learned from. Raises what the client
    raises; what was removed until then stays removed, and the next run does the rest.
    """
    return _Collection(client, keys, dry_run, older_than_s).run(old_layouts)


class _Collection:
    def __init__(self, client: redis.Redis, keys: Keys, dry_run: bool, older_than_s: float) -> None:
        self._client = client
        self._keys = keys
        self._dry_run = dry_run
        self._older_than_s = older_than_s
        self._scripts = Scripts(client, SCRIPTS)
        self._removes = "" if dry_run else "1"

    def run(self, old_layouts: bool) -> Collected:
        empty, orphaned = self._sum(self._gatherings(p) for p in range(PARTITIONS))
        attempts, withdrawn = self._sum(self._begun(p) for p in range(PARTITIONS))
        workers, apis, results = self._processes()
        layout_keys, in_use = self._old_layouts() if old_layouts else (0, ())
        waiting_was, waiting_is = self._recount()
        return Collected(
            consumers_of_dead_workers=sum(self._consumers(p) for p in range(PARTITIONS)),
            streams_without_state=self._index(),
            empty_gatherings=empty,
            orphaned_gatherings=orphaned,
            attempts=attempts,
            withdrawn=withdrawn,
            results_of_dead_apis=results,
            workers=workers,
            apis=apis,
            old_layout_keys=layout_keys,
            old_layouts_in_use=in_use,
            waiting_was=waiting_was,
            waiting_is=waiting_is,
            dry_run=self._dry_run,
        )

    def _consumers(self, p: int) -> int:
        names = self._keys
        found: int = self._scripts.gc_consumers(
            keys=[names.queue(p), names.workers, names.lease(p)],
            args=[self._removes, GROUP, WORKER_GONE_MS],
        )
        return found

    def _index(self) -> int:
        names = self._keys
        found = 0
        streams = self._client.zscan_iter(names.streams, count=_CHUNK)
        for chunk in _chunks(name.decode() for name, _ in streams):
            found += self._scripts.gc_index(
                keys=[names.streams, *map(names.stream, chunk)], args=[self._removes, *chunk]
            )
        return found

    def _gatherings(self, p: int) -> tuple[int, int]:
        names = self._keys
        found = []
        members = self._client.zscan_iter(names.gatherings(p), count=_CHUNK)
        for chunk in _chunks(name.decode() for name, _ in members):
            parts = [name.partition("/") for name in chunk]
            pairs = [(names.gathering(stream, track), names.stream(stream)) for stream, _, track in parts]
            found.append(
                self._scripts.gc_gatherings(
                    keys=[names.gatherings(p), *(key for pair in pairs for key in pair)],
                    args=[self._removes, GATHERING_TTL_S, int(self._older_than_s), *chunk],
                )
            )
        return self._sum(found)

    def _begun(self, p: int) -> tuple[int, int]:
        names = self._keys
        entries = [entry for entry, _ in self._client.hscan_iter(names.attempts(p), count=_CHUNK)]
        entries += list(self._client.sscan_iter(names.withdrawn(p), count=_CHUNK))
        return self._sum(
            self._scripts.gc_begun(
                keys=[names.queue(p), names.attempts(p), names.withdrawn(p)],
                args=[self._removes, GROUP, WITHDRAWN_TTL_S, *chunk],
            )
            for chunk in _chunks(dict.fromkeys(entries))
        )

    def _processes(self) -> tuple[int, int, int]:
        names = self._keys
        head = names.results("")
        found = self._client.scan_iter(f"{head}*", count=_SCAN_COUNT)
        apis = [key.decode().removeprefix(head) for key in found]
        workers, dead_apis, results = self._scripts.gc_processes(
            keys=[names.workers, names.apis, *map(names.results, apis)],
            args=[self._removes, WORKER_GONE_MS, API_GONE_MS, *apis],
        )
        return workers, dead_apis, results

    def _old_layouts(self) -> tuple[int, tuple[str, ...]]:
        """Keys removed; and the layouts that were left alone, because a process of theirs is alive."""
        uses: dict[str, bool] = {}
        found = 0
        for chunk in _chunks(_scan(self._client, self._keys)):
            gone = []
            for key in chunk:
                layout, _ = _layout_and_kind(self._keys, key)
                if layout == str(LAYOUT_VERSION) or not layout.isdecimal():
                    continue
                if layout not in uses:
                    uses[layout] = self._in_use(layout)
                if not uses[layout]:
                    gone.append(key)
            if gone and not self._dry_run:
                self._client.unlink(*gone)
            found += len(gone)
        return found, tuple(sorted(layout for layout, used in uses.items() if used))

    def _in_use(self, layout: str) -> bool:
        since_ms = _now_ms(self._client) - WORKER_GONE_MS
        head = f"{self._keys.namespace}:{layout}:"
        try:
            return any(self._client.zcount(head + name, since_ms, "+inf") for name in ("workers", "apis"))
        except ResponseError:  # of a kind that this version does not know: better left alone
            return True

    def _recount(self) -> tuple[int, int | None]:
        queues = [self._keys.queue(p) for p in range(PARTITIONS)]
        if sum(_sizes(self._client, [key.encode() for key in queues])) > RECOUNT_BYTES:
            waiting: Any = self._client.get(self._keys.waiting)
            return int(waiting or 0), None
        was, counted = self._scripts.recount(keys=[self._keys.waiting, *queues], args=[self._removes])
        return was, counted

    @staticmethod
    def _sum(pairs: Iterable[Iterable[int]]) -> tuple[int, int]:
        first = second = 0
        for a, b in pairs:
            first, second = first + a, second + b
        return first, second


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
