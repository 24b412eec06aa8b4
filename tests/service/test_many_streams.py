"""What must not grow with the number of streams, and what leaves memory when they are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.engine import Engine
from service.gathering import Gatherings, GatherLimits
from service.messages import ControlJob, Query, RetrieveJob, RetrieveRequest, TrackKey
from service.queue.memory import MemoryQueue
from service.states import FileStates
from service.streams import StreamStore
from service.tasks import Tasks
from service.tracks import Stream, Track
from tests.service.test_engine import texts
from tests.toy import ToyEncoder

ENCODER = ToyEncoder()


class CountedStates(FileStates):
    """Knows what was saved, in order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.saved: list[str] = []

    def save(self, name: str, data: bytes) -> None:
        self.saved.append(name)
        super().save(name, data)


@pytest.fixture
def states(tmp_path: Path) -> CountedStates:
    return CountedStates(tmp_path / "streams")


@pytest.fixture
def store(states: CountedStates) -> Callable[..., StreamStore]:
    def make(**limits: Any) -> StreamStore:
        return StreamStore(
            tasks=Tasks(ENCODER, defaults={"retrieve": ("tcr", {})}), states=states,
            **{"max_in_memory": 1000} | limits,
        )  # fmt: skip

    return make


def held(streams: StreamStore) -> list[str]:
    return [stream.name for stream in streams.held()]


def used(streams: StreamStore, *names: str) -> None:
    """Each is asked something."""
    for name in names:
        streams.track(streams.find_or_create(name), TrackKey(name, "g", "text", "text"))


# -- memory ------------------------------------------------------------------------------------------


def latest(streams: StreamStore, most: int) -> tuple[list[str], int]:
    slices = streams.describe_latest(most)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            return [card["name"] for card in done.value["streams"]], done.value["total"]


def test_the_last_used_streams_are_described_wherever_they_are(store: Callable[..., StreamStore]) -> None:
    streams = store(max_in_memory=3)
    used(streams, "a", "b", "c", "a", "d", "e")  # b and c are on disk
    assert latest(streams, 2) == (["e", "d"], 5)
    assert latest(streams, 4) == (["e", "d", "a", "c"], 5)
    assert latest(streams, 100) == (["e", "d", "a", "c", "b"], 5)
    assert held(streams) == ["a", "d", "e"]


def test_no_file_is_opened_where_memory_has_enough(
    store: Callable[..., StreamStore], states: CountedStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = store(max_in_memory=3)
    used(streams, *(f"s{n}" for n in range(10)))
    opened: list[str] = []
    monkeypatch.setattr(states, "cards", lambda names: opened.extend(names) or [])
    assert latest(streams, 3) == (["s9", "s8", "s7"], 10)
    assert opened == []


def test_where_nothing_is_stored_nothing_is_described(store: Callable[..., StreamStore]) -> None:
    assert latest(store(), 5) == ([], 0)


def test_the_longest_unused_streams_leave_and_are_saved_first(
    store: Callable[..., StreamStore], states: CountedStates
) -> None:
    streams = store(max_in_memory=3)
    used(streams, "a", "b", "c", "a", "d", "e")
    assert held(streams) == ["a", "d", "e"]
    assert states.saved == ["b", "c"]


def test_pinned_streams_never_leave(store: Callable[..., StreamStore]) -> None:
    streams = store(max_in_memory=3)
    for name in ("p1", "p2"):
        streams.configure(name, None, None, pinned=True)
    used(streams, *(f"s{n}" for n in range(20)))
    assert sorted(held(streams)) == ["p1", "p2", "s19"]
    streams.configure("p1", None, None, pinned=False)
    used(streams, "s20", "s21")
    assert sorted(held(streams)) == ["p2", "s20", "s21"]


def test_more_pinned_streams_than_there_is_room_for_leave_room_for_the_one_in_use(
    store: Callable[..., StreamStore],
) -> None:
    streams = store(max_in_memory=2)
    pinned = [f"p{n}" for n in range(4)]
    for name in pinned:
        streams.configure(name, None, None, pinned=True)
    used(streams, "a", "b", "a")
    assert sorted(held(streams)) == ["a", *pinned]


def test_states_beyond_the_memory_allowed_leave(store: Callable[..., StreamStore]) -> None:
    one = store()
    used(one, "a")
    (stream,) = one.held()
    streams = store(max_bytes=3 * stream.byte_size())
    for name in "abcdef":
        used(streams, name)
        streams.measure(streams.find(name))
    used(streams, "g")
    assert held(streams) == ["d", "e", "f", "g"]


def test_a_pinned_stream_is_looked_past_once_not_for_every_new_stream(
    store: Callable[..., StreamStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = store(max_in_memory=60)
    pinned = [f"p{n}" for n in range(50)]
    for name in pinned:
        streams.configure(name, None, None, pinned=True)
    used(streams, *(f"s{n}" for n in range(10)))
    looks = 0

    def looked(stream: Stream) -> bool:
        nonlocal looks
        looks += 1
        return stream.__dict__["pinned"]

    monkeypatch.setattr(Stream, "pinned", property(looked, lambda s, value: s.__dict__.update(pinned=value)))
    names = [f"t{n}" for n in range(10)]
    for name in names:
        streams.find_or_create(name)
    assert set(held(streams)) == {*pinned, *names}
    assert looks < 50 + 5 * len(names)


# -- saving ------------------------------------------------------------------------------------------


def test_changed_streams_are_saved_a_slice_at_a_time(
    store: Callable[..., StreamStore], states: CountedStates
) -> None:
    streams = store()
    used(streams, "a", "b", "c")
    streams.save_dirty(for_s=0.0)
    assert (states.saved, streams.saving) == (["a"], True)
    streams.delete("b")
    streams.save_dirty(for_s=0.0)
    assert states.saved == ["a"]
    streams.save_dirty(for_s=0.0)
    assert (states.saved, streams.saving) == (["a", "c"], False)
    streams.save_dirty(for_s=0.0)
    assert states.saved == ["a", "c"]


def test_at_the_end_everything_is_saved_whatever_was_under_way(
    store: Callable[..., StreamStore], states: CountedStates
) -> None:
    streams = store()
    used(streams, "a", "b", "c")
    streams.save_dirty(for_s=0.0)
    used(streams, "a", "d")
    streams.save_dirty()
    assert sorted(states.saved) == ["a", "a", "b", "c", "d"]
    assert not streams.saving


# -- the list ----------------------------------------------------------------------------------------


def test_the_list_comes_in_slices_of_streams_in_memory_and_stored(
    store: Callable[..., StreamStore],
) -> None:
    streams = store(max_in_memory=50)
    names = sorted(f"s{n:03}" for n in range(250))
    used(streams, *names)
    slices = streams.describe_all()
    count = 0
    while True:
        try:
            next(slices)
        except StopIteration as end:
            cards = end.value
            break
        count += 1
    assert count == 3
    assert [card["name"] for card in cards] == names


@pytest.mark.anyio
async def test_lists_and_batches_that_adapt_come_at_the_same_time(engine: Engine) -> None:
    async def adapt(stream: str) -> Any:
        return await engine.retrieve(RetrieveRequest(queries=texts(16), stream=stream, adapt="sync"))

    answers = await asyncio.gather(
        *(work for n in range(5) for work in (adapt(f"s{n}"), engine.list_streams(), engine.list_streams()))
    )
    assert all(len(answer.hits) == 16 for answer in answers[::3])
    assert [card["name"] for card in await engine.list_streams()] == [f"s{n}" for n in range(5)]


# -- gatherings --------------------------------------------------------------------------------------


class Looks:
    """Counts how many tracks are looked at."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, stream: Stream, track: Track) -> bool:
        self.count += 1
        return True


@pytest.fixture
def gather(store: Callable[..., StreamStore]) -> Callable[..., Gatherings]:
    def make(streams: int, **limits: int) -> Gatherings:
        values = {"batch_size": 8, "min_items": 4, "max_age_s": 0, "capacity_items": 16, "total_items": 1000}
        made = Gatherings(GatherLimits(**values | limits), on_shed=lambda stream, track, count: None)
        known = store()
        for n in range(streams):
            key = TrackKey(f"s{n}", "g", "text", "text")
            stream = known.find_or_create(key.stream)
            made.join(stream, known.track(stream, key), [RetrieveJob(key, "async", (Query(text="x"),), 1)])
        return made

    return make


def test_streams_that_hold_too_little_are_not_looked_at_for_every_batch(
    gather: Callable[..., Gatherings],
) -> None:
    made, looks = gather(300), Looks()
    assert made.next_batch(is_current=looks) is None
    assert made.overflow(is_current=looks) is None
    assert (len(made), made.due(), made.idle_for_s(1.0), looks.count) == (300, 0, 1.0, 0)


def test_when_all_hold_too_much_together_only_the_first_is_looked_at(
    gather: Callable[..., Gatherings],
) -> None:
    made, looks = gather(300, total_items=298), Looks()
    losers = []
    while (overflow := made.overflow(is_current=looks)) is not None:
        losers.append(overflow[0].name)
    assert (losers, looks.count, len(made)) == (["s0", "s1"], 2, 298)


def test_tracks_of_streams_that_are_gone_are_forgotten_in_time(
    gather: Callable[..., Gatherings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gather(30)
    monkeypatch.setattr("service.gathering._SWEEP_S", 0.0)
    assert made.next_batch(is_current=lambda stream, track: stream.name == "s7") is None
    assert len(made) == 1


# -- taking over -------------------------------------------------------------------------------------


def test_jobs_for_later_give_way_to_all_others() -> None:
    queue = MemoryQueue(capacity_items=10)

    def take() -> list[str | None]:
        jobs = queue.take(max_items=1, max_wait_s=0, timeout_s=0, accept=lambda job: True)
        return [job.stream for job in jobs if isinstance(job, ControlJob)]

    queue.put_later([ControlJob("adopt", stream="a"), ControlJob("adopt", stream="b")])
    queue.put([ControlJob("reset_stream", stream="urgent")])
    assert (take(), take()) == (["urgent"], ["a"])
    queue.put([ControlJob("reset_stream", stream="urgent")])
    assert (take(), take(), take()) == (["urgent"], ["b"], [])
    queue.put_later([ControlJob("adopt", stream="c")])
    assert queue.take(max_items=1, max_wait_s=0, timeout_s=0, accept=lambda job: False) == []
    queue.close()
    assert take() == []
