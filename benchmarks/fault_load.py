"""Load whose every effect is known: clients over HTTP that record what their streams must have learned.

One thread a stream, one request at a time. A request whose outcome its client cannot know (a broken
connection, a 503 or 504) is settled before the next one: the stream itself says, by its version and its
gathered queries, whether it was done. Any other figure than the two possible ones is a loss or a doubling.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import torch

from adapters.state import AdaptationState, unpack_states
from service.engine import Engine
from service.messages import Query, RetrieveRequest

BATCH = 64
_CLIENT_TIMEOUT_S = 90.0
_SETTLE_S = 60.0

Action = Literal["sync", "gather", "reset", "snapshot", "restore", "check"]
Kind = Literal["sync", "single", "off", "reset", "snapshot", "restore"]


@dataclass(frozen=True)
class Deed:
    """Something that happened to a stream, once. `state`: its exported state at that point, for a check."""

    action: Action
    texts: tuple[str, ...] = ()
    name: str = ""
    state: bytes = b""


@dataclass(frozen=True)
class Figures:
    """What a stream says of itself: batches applied since it was reset or restored, queries gathered."""

    version: int
    gathered: int

    @property
    def queries(self) -> int:
        return BATCH * self.version + self.gathered


@dataclass(frozen=True)
class Outcome:
    """What a client saw. ok: an answer; unknown: it may have been done nevertheless."""

    code: str
    body: Any = None

    @property
    def ok(self) -> bool:
        return self.code == "ok"

    @property
    def unknown(self) -> bool:
        return self.code not in _NOT_DONE and not self.ok


_NOT_DONE = ("refused", "queue_full", "unknown_stream")


@dataclass
class Tally:
    """Counts of all clients together."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failed_but_done: int = 0
    failed_not_done: int = 0
    lost: int = 0
    doubled: int = 0
    trouble: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, outcome: Outcome) -> None:
        with self.lock:
            self.sent[kind] += 1
            if outcome.ok:
                self.answered += 1
            else:
                self.failed[outcome.code] += 1

    def settle(self, done: bool) -> None:
        with self.lock:
            self.failed_but_done += done
            self.failed_not_done += not done

    def blame(self, *, queries: int, what: str) -> None:
        """queries: too many (above 0) or too few."""
        with self.lock:
            self.doubled += max(queries, 0)
            self.lost += max(-queries, 0)
            self.trouble.append(what)


class Addresses:
    """The API processes that clients may use now."""

    def __init__(self) -> None:
        self._all: list[str] = []

    def set(self, addresses: Sequence[str]) -> None:
        self._all = list(addresses)

    def choose(self, rng: random.Random) -> str | None:
        addresses = self._all
        return rng.choice(addresses) if addresses else None


class StreamClient:
    """One stream's client, in a thread of its own. `history` is what the stream has been through."""

    def __init__(
        self, name: str, *, seed: int, weights: Mapping[Kind, float], addresses: Addresses, tally: Tally,
        late_s: float, pause_s: float = 0.05,
    ) -> None:  # fmt: skip
        """late_s: after so long, a request that Redis has not seen is refused by it."""
        self.name = name
        self.history: list[Deed] = []
        self.succeeded_at = 0.0
        """When the last answered request was sent, and `answered_at` when its answer came."""
        self.answered_at = 0.0
        self._rng = random.Random(f"{seed}/{name}")
        self._weights = dict(weights)
        self._addresses = addresses
        self._tally = tally
        self._late_s = late_s
        self._pause_s = pause_s
        self._version = 0
        self._applying = False
        self._gathered: list[str] = []
        self._snapshots: dict[str, int] = {}
        self._made = 0
        self._stopping = threading.Event()
        self._http = httpx.Client(timeout=_CLIENT_TIMEOUT_S)
        self._thread = threading.Thread(target=self._run, name=f"client-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self) -> None:
        """The last request is settled, and the stream's end state is in its history."""
        self._thread.join()

    def _run(self) -> None:
        kinds, weights = list(self._weights), list(self._weights.values())
        try:
            while not self._stopping.is_set():
                (kind,) = self._rng.choices(kinds, weights)
                self.do(kind)
                self._stopping.wait(self._rng.random() * 2 * self._pause_s)
            self._check()
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
            self._tally.blame(queries=0, what=f"{self.name}: the client broke: {trace}")
        finally:
            self._http.close()

    @property
    def gathered(self) -> int:
        """Queries that its stream must have gathered."""
        return len(self._gathered)

    # -- what a client does -------------------------------------------------------------------------

    def do(self, kind: Kind) -> None:
        """One request of a kind, settled."""
        if kind in ("reset", "snapshot", "restore"):
            self._control(kind)
        elif kind == "single":
            for _ in range(self._rng.randint(1, BATCH)):
                if not self._stopping.is_set():
                    self._single()
        elif kind == "sync":
            self._sync()
        else:
            self._retrieve("off", self._texts(1))

    def _sync(self) -> None:
        texts = self._texts(BATCH)
        outcome = self._retrieve("sync", texts)
        done = Figures(self._version + 1, len(self._gathered))
        if outcome.ok and outcome.body["adaptation"]["status"] in ("applied", "applying"):
            self._expect_version(outcome, [self._version + 1])
            self._applying = outcome.body["adaptation"]["status"] == "applying"
        elif not self._was_done(outcome, done):
            return
        self._version += 1
        self.history.append(Deed("sync", texts))

    def _single(self) -> None:
        (text,) = texts = self._texts(1)
        outcome = self._retrieve("async", texts)
        full = len(self._gathered) + 1 == BATCH
        done = Figures(self._version + full, 0 if full else len(self._gathered) + 1)
        if outcome.ok and outcome.body["adaptation"]["status"] == "queued":
            # It may be answered while the last update of the batch before it is still being made.
            self._expect_version(outcome, [self._version, self._version - self._applying])
            if full:
                self._settle([done])
        elif not self._was_done(outcome, done):
            return
        self._gathered.append(text)
        if full:
            self.history.append(Deed("gather", tuple(self._gathered)))
            self._version, self._gathered = self._version + 1, []

    def _control(self, kind: Kind) -> None:
        if not self._version:  # before its first batch there may be no stream, and nothing to tell apart
            return
        if kind == "snapshot":
            self._snapshot()
        elif kind == "reset":
            self._check()
            outcome = self._ask("POST", f"/admin/streams/{self.name}/reset", "reset")
            if self._moved(outcome, 0):
                self.history.append(Deed("reset"))
        else:
            others = [name for name, version in self._snapshots.items() if version != self._version]
            if others:
                name = self._rng.choice(others)
                path = f"/admin/streams/{self.name}/snapshots/{name}/restore"
                if self._moved(self._ask("POST", path, "restore"), self._snapshots[name]):
                    self.history.append(Deed("restore", name=name))

    def _moved(self, outcome: Outcome, version: int) -> bool:
        """Whether a reset or restore, which ends in `version`, was done."""
        if outcome.ok:
            if outcome.body["version"] != version:
                self._blame(
                    Figures(outcome.body["version"], 0), [Figures(version, 0)], "answer of a control job"
                )
        elif not self._was_done(outcome, Figures(version, 0)):
            return False
        self._version, self._gathered, self._applying = version, [], False
        return True

    def _snapshot(self) -> str:
        """Made for certain, however often it takes. -> its name"""
        while True:
            self._made += 1
            name = f"s{self._made}"
            outcome = self._ask(
                "POST", f"/admin/streams/{self.name}/snapshots", "snapshot", json={"name": name}
            )
            if outcome.ok and outcome.body["version"] != self._version:
                found = Figures(outcome.body["version"], len(self._gathered))
                self._blame(found, [Figures(self._version, len(self._gathered))], "snapshot")
            if outcome.ok or (outcome.unknown and self._has_snapshot(name)):
                self._snapshots[name] = self._version
                self.history.append(Deed("snapshot", name=name))
                return name

    def _has_snapshot(self, name: str) -> bool:
        time.sleep(self._late_s)
        listed = self._surely("GET", f"/admin/streams/{self.name}/snapshots", "list")
        made = name in [card["name"] for card in listed.body["snapshots"]]
        self._tally.settle(made)
        return made

    def _check(self) -> None:
        """Put the stream's state, as it is now, into the history."""
        if not self.history:
            return
        self._settle([Figures(self._version, len(self._gathered))])
        name = self._snapshot()
        exported = self._surely("GET", f"/admin/streams/{self.name}/snapshots/{name}/export", "export")
        self.history.append(Deed("check", state=exported.body))

    # -- what may have happened ---------------------------------------------------------------------

    def _was_done(self, outcome: Outcome, done: Figures) -> bool:
        """Of a request that was not answered as hoped: whether the stream is as if it had been done."""
        if not outcome.ok and not outcome.unknown:
            self._tally.settle(False)
            return False
        time.sleep(self._late_s)  # by then Redis refuses it if it has not seen it yet
        before = Figures(self._version, len(self._gathered))
        settled = self._settle([before, done]) == done and before != done
        if not outcome.ok:
            self._tally.settle(settled)
        return settled

    def _settle(self, possible: Sequence[Figures]) -> Figures:
        """Which of the possible figures the stream has, once nothing of it is under way."""
        end = time.monotonic() + _SETTLE_S
        while True:
            found = self._figures()
            if found in possible:
                self._applying = False
                return found
            if time.monotonic() > end:
                self._blame(found, possible, "stream")
                return possible[0]
            time.sleep(0.02)

    def _figures(self) -> Figures:
        outcome = self._surely("GET", f"/admin/streams/{self.name}", "describe")
        if not outcome.ok:
            return Figures(0, 0)
        return Figures(outcome.body["version"], sum(track["gathered"] for track in outcome.body["tracks"]))

    def _expect_version(self, outcome: Outcome, possible: Sequence[int]) -> None:
        told = outcome.body["adaptation"]["state_version"]
        if told not in possible:
            self._blame(Figures(told, 0), [Figures(version, 0) for version in possible], "answer")

    def _blame(self, found: Figures, possible: Sequence[Figures], where: str) -> None:
        """Take over what is there, so that one fault is counted once; the end states tell it apart anyway."""
        sums = [figures.queries for figures in possible]
        surplus = found.queries - (max(sums) if found.queries > max(sums) else min(sums))
        self._tally.blame(
            queries=surplus, what=f"{self.name}: {where} says {found}, possible were {list(possible)}"
        )
        self._version += found.version - possible[0].version

    # -- HTTP ---------------------------------------------------------------------------------------

    def _texts(self, count: int) -> tuple[str, ...]:
        start, self._made = self._made, self._made + count
        colours = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
        shapes = ("star", "boat", "tree", "house", "circle", "square", "triangle", "cross")
        return tuple(
            f"{self._rng.choice(('a', 'one', 'the'))} {self._rng.choice(colours)} {self._rng.choice(shapes)} "
            f"and a {self._rng.choice(colours)} {self._rng.choice(shapes)} {self.name} {number}"
            for number in range(start, start + count)
        )

    def _retrieve(self, mode: str, texts: Sequence[str]) -> Outcome:
        body = {"queries": [{"text": text} for text in texts], "stream": self.name, "adapt": mode, "k": 1}
        return self._ask("POST", "/retrieve", mode, json=body)

    def _surely(self, method: str, path: str, kind: str) -> Outcome:
        """Ask for something that changes nothing until it is answered, if only by 404."""
        end = time.monotonic() + 2 * _SETTLE_S
        while True:
            outcome = self._ask(method, path, kind)
            if outcome.ok or outcome.code == "unknown_stream":
                return outcome
            if time.monotonic() > end:
                raise RuntimeError(f"{path} is not answered: {outcome.code}")
            time.sleep(0.05)

    def _ask(self, method: str, path: str, kind: str, **what: Any) -> Outcome:
        address = self._addresses.choose(self._rng)
        while address is None:
            time.sleep(0.05)
            address = self._addresses.choose(self._rng)
        sent_at = time.monotonic()
        outcome = self._try(method, address + path, **what)
        self._tally.count(kind, outcome)
        if outcome.ok:
            self.succeeded_at, self.answered_at = sent_at, time.monotonic()
        if outcome.code == "deadline_exceeded":  # told, but no fault lasts that long
            self._tally.blame(
                queries=0, what=f"{self.name}: {kind} not answered in time at {time.time():.1f}"
            )
        return outcome

    def _try(self, method: str, url: str, **what: Any) -> Outcome:
        try:
            answer = self._http.request(method, url, **what)
        except httpx.ConnectError:
            return Outcome("refused")
        except httpx.TimeoutException:
            self._tally.blame(
                queries=0, what=f"{self.name}: no outcome within {_CLIENT_TIMEOUT_S} s of {url}"
            )
            return Outcome("no_outcome")
        except httpx.HTTPError:
            return Outcome("connection_broken")
        if answer.is_success:
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            return Outcome("ok", answer.json() if is_json else answer.content)
        return Outcome(answer.json()["error"]["code"])


# -- the undisturbed run -----------------------------------------------------------------------------


async def replay(
    engine: Engine, stream: str, history: Sequence[Deed], on_deed: Callable[[], None] = lambda: None
) -> list[str]:
    """Do to an engine in this process what the stream went through. -> what each check differs in."""
    checks: list[str] = []
    name = ""
    for deed in history:
        if deed.action in ("sync", "gather"):
            await _learn(engine, stream, deed)
        elif deed.action == "reset":
            await engine.reset_stream(stream)
        elif deed.action == "snapshot":
            name = deed.name
            await engine.create_snapshot(stream, name)
        elif deed.action == "restore":
            await engine.restore_snapshot(stream, deed.name)
        else:
            checks.append(difference(deed.state, await engine.export_snapshot(stream, name)))
        on_deed()
    return checks


async def _learn(engine: Engine, stream: str, deed: Deed) -> None:
    queries = tuple(Query(text=text) for text in deed.texts)
    before = await _batches(engine, stream)
    mode: Literal["sync", "async"] = "sync" if deed.action == "sync" else "async"
    await engine.retrieve(RetrieveRequest(queries=queries, stream=stream, k=1, adapt=mode))
    while await _batches(engine, stream) == before:  # the last update comes after the answer
        pass


async def _batches(engine: Engine, stream: str) -> int:
    described: dict[str, int] = {card["name"]: card["batches"] for card in await engine.list_streams()}
    return described.get(stream, 0)


def difference(one: bytes, other: bytes) -> str:
    """What two packed streams differ in, bit by bit; of the ids of batches only the number counts."""
    ours, theirs = _touched(one), _touched(other)
    if ours.keys() != theirs.keys():
        return f"tracks {sorted(ours)}, undisturbed {sorted(theirs)}"
    return "; ".join(filter(None, (_difference(ours[key], theirs[key]) for key in ours)))


def _touched(packed: bytes) -> dict[str, AdaptationState]:
    """By track. One that has only gathered so far is there in one run and not yet in the other."""
    return {key: state for key, state in unpack_states(packed)[0].items() if state.batches}


def _difference(one: AdaptationState, other: AdaptationState) -> str:
    found = [
        f"{name} {ours}, undisturbed {theirs}"
        for name, ours, theirs in (
            ("version", one.version, other.version),
            ("batches", one.batches, other.batches),
            ("numbers", one.numbers, other.numbers),
            ("batch ids", len(set(one.applied_batches)), len(other.applied_batches)),
        )
        if ours != theirs
    ]
    for group in ("parameters", "steps", "exp_avg", "exp_avg_sq", "tensors"):
        ours, theirs = _tensors(one, group), _tensors(other, group)
        if ours.keys() != theirs.keys():
            found.append(f"names of {group}")
        else:
            count = sum(not torch.equal(_bits(ours[name]), _bits(theirs[name])) for name in ours)
            found += [f"{count} of {len(ours)} {group}"] if count else []
    return ", ".join(found)


def _tensors(state: AdaptationState, group: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = getattr(state, group, None) or getattr(state.optimizer, group, {})
    return tensors


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
