"""The judge of the fault benchmark must see what it is there for: losses, doublings, states that differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import torch

from adapters.state import AdaptationState, OptimizerState, pack_states
from benchmarks.fault_load import Addresses, Figures, StreamClient, Tally, difference
from benchmarks.faults import Cycle, clean, recovery


class Stream:
    """A stand-in for the service: learns what it is sent, unless `forgets` or `repeats`."""

    def __init__(self) -> None:
        self.version = 0
        self.gathered = 0
        self.forgets = self.repeats = False
        self.breaks: list[str] = []
        """Outcomes of the next queries: `before` or `after` the work the connection breaks."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/retrieve":
            tracks = [{"gathered": self.gathered}]
            return httpx.Response(200, json={"version": self.version, "tracks": tracks})
        broken = self.breaks.pop(0) if self.breaks else ""
        if broken == "before":
            raise httpx.RemoteProtocolError("broken")
        sync = b'"sync"' in request.content
        self.learn(sync)
        if broken == "after":
            raise httpx.RemoteProtocolError("broken")
        status = "applying" if sync else "queued"
        told = self.version + (self.forgets and sync) - (self.repeats and sync)
        return httpx.Response(200, json={"adaptation": {"status": status, "state_version": told}})

    def learn(self, sync: bool) -> None:
        self.version += sync * (not self.forgets) + sync * self.repeats
        self.gathered += not sync
        if self.gathered == 64:
            self.version, self.gathered = self.version + 1, 0


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def client(stream: Stream, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> StreamClient:
    monkeypatch.setattr("benchmarks.fault_load._SETTLE_S", 0.05)
    addresses = Addresses()
    addresses.set(["http://there"])
    made = StreamClient("s", seed=0, weights={}, addresses=addresses, tally=tally, late_s=0.0)
    made._http.close()
    made._http = httpx.Client(transport=httpx.MockTransport(stream))
    return made


def actions(client: StreamClient) -> list[str]:
    return [deed.action for deed in client.history]


def test_batches_that_are_learned_once_are_no_trouble(client: StreamClient, tally: Tally) -> None:
    for _ in range(3):
        client.do("sync")
    client._settle([Figures(3, 0)])
    assert actions(client) == ["sync"] * 3
    assert (tally.answered, tally.lost, tally.doubled, tally.trouble) == (4, 0, 0, [])


def test_a_batch_that_is_forgotten_is_lost(client: StreamClient, stream: Stream, tally: Tally) -> None:
    stream.forgets = True
    client.do("sync")
    client._settle([Figures(1, 0)])
    assert (tally.lost, tally.doubled) == (64, 0)


def test_a_batch_that_is_learned_twice_is_doubled(client: StreamClient, stream: Stream, tally: Tally) -> None:
    stream.repeats = True
    client.do("sync")
    client._settle([Figures(1, 0)])
    assert (tally.lost, tally.doubled) == (0, 64)


@pytest.mark.parametrize(("broken", "learned"), [("before", []), ("after", ["sync"])])
def test_the_stream_itself_says_whether_a_broken_request_was_done(
    client: StreamClient, stream: Stream, tally: Tally, broken: str, learned: Sequence[str]
) -> None:
    stream.breaks = [broken]
    client.do("sync")
    assert actions(client) == learned
    assert (tally.failed_but_done, tally.failed_not_done) == (len(learned), 1 - len(learned))
    assert tally.trouble == []


def test_a_broken_single_query_is_gathered_once_or_not_at_all(
    client: StreamClient, stream: Stream, tally: Tally
) -> None:
    for number in range(65):
        stream.breaks = [("before", "after", "")[number % 3]]
        client._single()
    assert client.gathered == stream.gathered
    assert (stream.version, tally.trouble) == (0, [])
    while stream.version == 0:
        stream.breaks = ["after"]
        client._single()
    assert (client.gathered, stream.gathered, tally.trouble) == (0, 0, [])
    assert [len(deed.texts) for deed in client.history] == [64]


def test_a_query_that_vanishes_from_the_gathering_is_lost(
    client: StreamClient, stream: Stream, tally: Tally
) -> None:
    for _ in range(3):
        client._single()
    stream.gathered -= 1
    client._settle([Figures(0, 3)])
    assert (tally.lost, tally.doubled) == (1, 0)


def packed(change: Callable[[AdaptationState], None] = lambda state: None) -> bytes:
    state = AdaptationState(
        "tcr",
        "print",
        {"weight": torch.ones(3)},
        OptimizerState({"weight": torch.ones(1)}, {"weight": torch.ones(3)}, {"weight": torch.ones(3)}),
        {"memory": torch.ones(2, 3)},
        {"target": 0.5},
        version=2,
        batches=2,
        applied_batches=("a", "b"),
    )
    change(state)
    return pack_states({"g/text->image": state}, header={})


def test_equal_states_do_not_differ_though_their_batches_have_other_names() -> None:
    assert difference(packed(), packed(lambda state: setattr(state, "applied_batches", ("c", "d")))) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.parameters["weight"].mul_(1 + 1e-7),
        lambda state: state.optimizer.exp_avg_sq["weight"].add_(1e-6),
        lambda state: state.tensors.update(memory=torch.zeros(2, 3)),
        lambda state: state.tensors.update(more=torch.zeros(1)),
        lambda state: state.numbers.update(target=0.25),
        lambda state: setattr(state, "version", 3),
        lambda state: setattr(state, "batches", 3),
        lambda state: setattr(state, "applied_batches", ("a", "a")),
    ],
)
def test_the_smallest_difference_of_states_is_seen(change: Callable[[AdaptationState], None]) -> None:
    assert difference(packed(change), packed()) != ""


def test_recovery_times_are_told_by_fault_and_together() -> None:
    cycles = [Cycle("one", 1.0, [0.5, 1.5], []), Cycle("two", 1.0, [4.0], []), Cycle("none", 1.0, [], [])]
    assert recovery(cycles) == {
        "one": {"median": 1.0, "p95": 1.5, "max": 1.5, "count": 2},
        "two": {"median": 4.0, "p95": 4.0, "max": 4.0, "count": 1},
        "all": {"median": 1.5, "p95": 4.0, "max": 4.0, "count": 3},
    }


@pytest.mark.parametrize(
    "flaw",
    [
        {"lost": 1}, {"doubled": 1}, {"trouble": ["x"]}, {"leftovers": {"waiting": 1}}, {"states_equal": 1},
    ],
)  # fmt: skip
def test_one_flaw_is_enough_to_fail_a_run(flaw: dict[str, Any]) -> None:
    good = {"lost": 0, "doubled": 0, "trouble": [], "leftovers": {}, "states_compared": 2, "states_equal": 2}
    assert clean(good)
    assert not clean(good | flaw)
