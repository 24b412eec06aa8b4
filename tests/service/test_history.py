"""What a track remembers of its last batches: made of outcomes, kept in files, refused when made up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.state import AdaptationState, StateFileError, pack_states, unpack_states
from service.engine import Engine, running_engine
from service.history import FIGURES, KEPT, RECENT, History
from service.http.schemas import HistoryShown
from service.pipeline import Outcome
from service.settings import Settings
from service.stream_files import pack_stream, unpack_stream
from service.tasks import Tasks
from service.tracks import Stream, Track
from tests.service.conftest import fill
from tests.service.test_engine import ask, pictures, settled_version
from tests.toy import ToyEncoder

TRACK = "things/image->text"


def outcome(status: Any = "applied", loss: float | None = 0.5, **drift: float) -> Outcome:
    return Outcome(status, "", None, losses={} if loss is None else {"total": loss}, drift=drift)


def long(count: int) -> History:
    history = History()
    for n in range(1, count + 1):
        history = history.then(outcome(modality_gap=n / 7), batch=n, version=n, at=1e9 + n)
    return history


def test_a_batch_is_remembered_with_what_its_outcome_carries() -> None:
    told = outcome(modality_gap=0.123456789, shift=1.5, update_norm=3.0)
    columns = History().then(told, batch=4, version=9, at=1e9 + 0.12345).columns()
    assert columns == {
        "at": [1e9 + 0.123], "batch": [4], "version": [9], "status": ["applied"], "modality_gap": [0.123457],
        "modality_gap_target": [None], "uniformity": [None], "entropy_nats": [None],
        "source_likeness": [None], "shift": [1.5], "loss": [0.5],
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_a_number_that_is_not_finite_is_unknown(value: float) -> None:
    history = History().then(outcome(uniformity=value), batch=1, version=1, at=1.0)
    assert history.columns()["uniformity"] == [None]
    assert History.from_tensors(history.to_tensors()).columns() == history.columns()


def test_only_the_last_batches_are_kept_in_order() -> None:
    history = long(KEPT + 10)
    columns = history.columns()
    assert {len(column) for column in columns.values()} == {KEPT}
    assert columns["batch"] == list(range(11, KEPT + 11))
    assert history.byte_size() == 48 * KEPT


def test_the_card_has_the_last_few_with_four_digits() -> None:
    history = long(RECENT + 3)
    assert {len(column) for column in history.recent.values()} == {RECENT}
    assert history.recent["version"] == list(range(4, RECENT + 4))
    assert history.recent["modality_gap"][0] == 0.5714  # 4 / 7
    assert list(history.recent) == [
        "at", "version", "status",
        "modality_gap", "modality_gap_target", "uniformity", "entropy_nats", "shift",
    ]  # fmt: skip


def test_an_earlier_history_does_not_change() -> None:
    before = long(3)
    before.then(outcome("skipped"), batch=4, version=3, at=2e9)
    assert len(before) == 3


def _stream(history: History) -> Stream:
    tasks = Tasks(ToyEncoder(), defaults={"retrieve": ("tcr", {})})
    state = tasks.source_state(tasks.defaults["retrieve"].method, "image->text")
    track = Track("things", "image->text", state, history=history)
    return Stream("s", dict(tasks.defaults), 0.0, 0.0, tracks={track.name: track})


@pytest.mark.parametrize("kind", ["stream", "snapshot"])
@pytest.mark.parametrize("count", [0, 1, KEPT])
def test_a_file_brings_it_back_number_for_number(kind: str, count: int) -> None:
    data = pack_stream(_stream(long(count)), kind=kind)
    found = unpack_stream(data, Tasks(ToyEncoder())).tracks[TRACK].history
    assert found.columns() == long(count).columns()
    assert found.recent == long(count).recent


def test_a_file_grows_by_little() -> None:
    """48 bytes a batch, what the card shows of them, and the heads of three tensors."""
    grown = len(pack_stream(_stream(long(KEPT)), kind="stream")) - len(
        pack_stream(_stream(History()), kind="stream")
    )
    assert 48 * KEPT < grown < 48 * KEPT + 3000


def test_a_file_without_a_history_loads() -> None:
    states, header = unpack_states(pack_stream(_stream(long(5)), kind="stream"))
    del states[f"history:{TRACK}"]
    found = unpack_stream(pack_states(states, header=header), Tasks(ToyEncoder()))
    assert len(found.tracks[TRACK].history) == 0


Change = Callable[[dict[str, Tensor]], Any]


def _set(name: str, value: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: tensors.__setitem__(f"history.{name}", value(tensors[f"history.{name}"]))


@pytest.mark.parametrize(
    "change",
    [
        _set("at", lambda at: at[:-1]),
        _set("at", lambda at: at.view(-1, 1)),
        _set("at", lambda at: at.float()),
        _set("at", lambda at: at.fill_(math.nan)),
        _set("at", lambda at: at.fill_(-1.0)),
        _set("at", lambda at: at.fill_(1e300)),
        _set("counts", lambda counts: counts[:, :2].contiguous()),
        _set("counts", lambda counts: counts.fill_(-1)),
        _set("counts", lambda counts: counts.fill_(3)),
        _set("counts", lambda counts: counts.long()),
        _set("figures", lambda figures: figures.fill_(math.inf)),
        _set("figures", lambda figures: figures[:, :-1].contiguous()),
        _set("figures", lambda figures: figures.half()),
        lambda tensors: tensors.pop("history.at"),
        lambda tensors: tensors.__setitem__("more", torch.zeros(1)),
        lambda tensors: tensors.update(
            {name: torch.cat([value] * 60) for name, value in tensors.items()}  # 300 batches
        ),
    ],
)
def test_a_history_that_was_made_up_is_refused(change: Change) -> None:
    states, header = unpack_states(pack_stream(_stream(long(5)), kind="stream"))
    change(states[f"history:{TRACK}"].tensors)
    with pytest.raises(StateFileError):
        unpack_stream(pack_states(states, header=header), Tasks(ToyEncoder()))


def test_what_it_makes_of_a_forged_state_in_its_place_is_a_refusal() -> None:
    states, header = unpack_states(pack_stream(_stream(long(5)), kind="stream"))
    states[f"history:{TRACK}"] = AdaptationState("tcr", "x", {"a": torch.zeros(2)})
    with pytest.raises(StateFileError):
        unpack_stream(pack_states(states, header=header), Tasks(ToyEncoder()))


# -- in an engine -------------------------------------------------------------------------------------


async def history_of(engine: Engine, stream: str = "s") -> dict[str, list[Any]]:
    shown = await engine.stream_history(stream)
    HistoryShown.model_validate(shown)  # as it is documented
    assert shown["stream"] == stream
    columns: dict[str, list[Any]] = shown["tracks"][TRACK]
    return columns


async def learn(engine: Engine, batches: int, *, first: int = 0) -> None:
    for n in range(first, first + batches):
        await ask(engine, pictures(16, start=16 * n), adapt="sync", stream="s")
    await settled_version(engine, "s", first + batches)


@pytest.mark.anyio
async def test_every_batch_of_a_track_is_in_its_history(engine: Engine) -> None:
    await learn(engine, 3)
    columns = await history_of(engine)
    assert (columns["batch"], columns["version"]) == ([1, 2, 3], [1, 2, 3])
    assert columns["status"] == ["applied"] * 3
    assert columns["at"] == sorted(columns["at"])
    assert set(columns) == {"at", "batch", "version", "status", *FIGURES}
    (track,) = (await engine.describe_stream("s"))["tracks"]
    assert columns["modality_gap"][-1] == pytest.approx(track["drift"]["modality_gap"], rel=1e-5)
    assert columns["loss"][-1] == pytest.approx(track["losses"]["total"], rel=1e-5)
    assert track["recent"]["version"] == [1, 2, 3]
    json.dumps(track["recent"], allow_nan=False)


@pytest.mark.anyio
async def test_answers_that_learn_nothing_leave_no_trace(engine: Engine) -> None:
    await learn(engine, 1)
    before = await history_of(engine)
    await ask(engine, pictures(16), adapt="off", stream="s")
    await ask(engine, pictures(1), adapt="async", stream="s")
    assert await history_of(engine) == before


@pytest.mark.anyio
async def test_a_reset_drops_it_and_a_restored_snapshot_brings_its_own(engine: Engine) -> None:
    await learn(engine, 2)
    before = await history_of(engine)
    await engine.create_snapshot("s", "two")
    await learn(engine, 1, first=2)
    assert len((await history_of(engine))["at"]) == 3
    await engine.reset_stream("s")
    assert (await engine.stream_history("s"))["tracks"] == {}
    await engine.restore_snapshot("s", "two")
    assert await history_of(engine) == before
    await learn(engine, 1, first=2)
    assert (await history_of(engine))["batch"] == [1, 2, 3]


@pytest.mark.anyio
async def test_it_survives_a_restart(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as first:
        await fill(first)
        await learn(first, 2)
        before = await history_of(first)
    async with running_engine(settings(), encoder=ToyEncoder()) as second:
        assert await history_of(second) == before
        (track,) = (await second.describe_stream("s"))["tracks"]
        assert track["recent"]["version"] == [1, 2]
