"""The guard in a running engine: what streams show of it, keep of it, and let people set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from adapters.base import BadSettings
from adapters.registry import make_method
from adapters.state import StateFileError
from benchmarks.exact import ExactSide
from benchmarks.online import adapt_batch
from service.engine import Engine, running_engine
from service.guard.guard import Guard
from service.guard.settings import GuardSettings
from service.messages import Query, RetrieveRequest
from service.settings import ConfigurationError, Settings, load
from service.stream_files import pack_stream, unpack_stream
from service.tasks import Chosen, Tasks
from service.tracks import Stream, Track
from tests.service.conftest import fill
from tests.toy import ToyEncoder, sentence

pytestmark = pytest.mark.anyio

SIZE = 16


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    """With the guard's defaults."""
    async with running_engine(settings(guard={}), encoder=ToyEncoder()) as running:
        await fill(running)
        yield running


def asked(first: int, *, stream: str = "s", count: int = SIZE, same: bool = False) -> RetrieveRequest:
    texts = [sentence(first if same else first + n) for n in range(count)]
    return RetrieveRequest(
        queries=tuple(Query(text=text) for text in texts), gallery="things", stream=stream, adapt="sync"
    )


async def track_of(engine: Engine, stream: str = "s") -> dict[str, Any]:
    described = await engine.describe_stream(stream)
    track: dict[str, Any] = described["tracks"][0]
    return track


async def test_identical_queries_are_answered_but_not_learned_from(engine: Engine) -> None:
    await engine.retrieve(asked(0))
    before = (await track_of(engine))["version"]
    answer = await engine.retrieve(asked(50, same=True))
    assert answer.parts[0].adaptation.status == "skipped"
    assert answer.parts[0].adaptation.reason.startswith("guard: its queries are almost the same")
    assert len(answer.hits) == SIZE
    track = await track_of(engine)
    assert track["version"] == before
    assert [event["finding"] for event in track["guard"]["events"]] == ["crowded"]
    assert engine.metrics.value("attune_guard_actions_total", action="skip") == 1


async def test_a_stream_can_switch_its_guard_off(engine: Engine) -> None:
    await engine.retrieve(asked(0))
    await engine.configure_stream("s", guard={"policy": "off"})
    answer = await engine.retrieve(asked(50, same=True))
    assert answer.parts[0].adaptation.status != "skipped"
    assert (await track_of(engine))["guard"]["policy"] == "off"


async def test_wrong_guard_settings_change_nothing(engine: Engine) -> None:
    await engine.retrieve(asked(0))
    with pytest.raises(BadSettings, match="policy"):
        await engine.configure_stream("s", method="tcr_untrain", guard={"policy": "panic"})
    described = await engine.describe_stream("s")
    assert (described["method"], described["guard"]) == ("tcr", {})


def test_wrong_guard_settings_stop_the_start() -> None:
    with pytest.raises(ConfigurationError, match="guard"):
        load(guard={"sample": 3})


async def test_the_guard_of_a_stream_survives_a_restart(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(guard={}), encoder=ToyEncoder()) as engine:
        await fill(engine)
        await engine.configure_stream("s", guard={"change_batches": 7})
        for number in range(3):
            await engine.retrieve(asked(number * SIZE))
        await engine.retrieve(asked(50, same=True))
        before = await track_of(engine)
    async with running_engine(settings(guard={}), encoder=ToyEncoder()) as engine:
        after = await track_of(engine)
        described = await engine.describe_stream("s")
    assert after["guard"] == before["guard"]
    assert described["guard"] == {"change_batches": 7}


def _stream_with_a_good_state(encoder: ToyEncoder) -> Stream:
    method = make_method("tcr")
    tower = encoder.towers["text"]
    gallery = tower.encode(tower.prepare([sentence(n) for n in range(40)]))
    state = method.initial_state(fingerprint=encoder.fingerprint, parameters=tower.parameters)
    guard: Guard | None = Guard(GuardSettings(healthy_batches=2, unusual_ratio=100), "s", "g/text->text")
    for number in range(4):
        result = adapt_batch(
            tower=tower,
            inputs=tower.prepare([sentence(100 + number * SIZE + n) for n in range(SIZE)]),
            side=ExactSide(gallery),
            k=3,
            method=method,
            state=state,
            batch_id=f"b{number}",
            guard=guard,
        )
        state, guard = result.next_state(state), result.outcome.guard
    assert guard is not None
    assert guard.good is not None
    track = Track("g", "text->text", state, guard=guard)
    return Stream("s", {"retrieve": Chosen("tcr", {}, method)}, 0.0, 0.0, tracks={track.name: track})


def test_the_last_good_state_is_stored_bit_for_bit_and_counts_in_memory() -> None:
    encoder = ToyEncoder()
    stream = _stream_with_a_good_state(encoder)
    (before,) = stream.tracks.values()
    assert before.guard.good is not None
    assert before.byte_size() == before.state.byte_size() + before.guard.good.byte_size()
    found = unpack_stream(pack_stream(stream, kind="stream"), Tasks(encoder))  # type: ignore[arg-type]
    (after,) = found.tracks.values()
    assert before.guard.good is not None
    assert after.guard.good is not None
    assert after.guard.good.version == before.guard.good.version
    for name, value in before.guard.good.parameters.items():
        assert torch.equal(after.guard.good.parameters[name], value)
        assert torch.equal(
            after.guard.good.optimizer.exp_avg[name], before.guard.good.optimizer.exp_avg[name]
        )
    assert after.guard.to_plain() == before.guard.to_plain()


def test_a_snapshot_leaves_the_guard_behind() -> None:
    encoder = ToyEncoder()
    data = pack_stream(_stream_with_a_good_state(encoder), kind="snapshot")
    (track,) = unpack_stream(data, Tasks(encoder)).tracks.values()  # type: ignore[arg-type]
    assert track.guard.good is None
    assert track.guard.batches == 0


def test_a_forged_guard_in_a_stream_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ToyEncoder()
    stream = _stream_with_a_good_state(encoder)
    (track,) = stream.tracks.values()
    assert track.guard.reference is not None
    forged = track.guard.reference.to_plain() | {"centre": [0.0]}
    plain = track.guard.to_plain() | {"reference": forged}
    monkeypatch.setattr(Guard, "to_plain", lambda self: plain)
    data = pack_stream(stream, kind="stream")
    with pytest.raises(StateFileError, match="guard"):
        unpack_stream(data, Tasks(encoder))  # type: ignore[arg-type]
