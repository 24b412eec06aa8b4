"""Answered queries on their way to a batch: turns, limits, and what the store is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapters.registry import make_method
from service.gathering import Gatherings, GatherLimits
from service.messages import ClassifyJob, Query, RetrieveJob, Sample, TrackKey
from service.tasks import Chosen
from service.tracks import Gathering, Stream, Track
from tests.toy import ToyEncoder

ENCODER = ToyEncoder()
METHOD = make_method("tcr", {})


def job(*texts: str) -> RetrieveJob:
    key = TrackKey("s", "g", "text", "image")
    return RetrieveJob(key, "async", tuple(Query(text=text) for text in texts), 1)


def pair(name: str = "s") -> tuple[Stream, Track]:
    source = ENCODER.towers["text"].parameters
    state = METHOD.initial_state(fingerprint=ENCODER.fingerprint, parameters=source)
    track = Track("g", "text->image", state)
    return Stream(name, {"retrieve": Chosen("tcr", {}, METHOD)}, 0.0, 0.0, tracks={track.name: track}), track


def gatherings(**limits: Any) -> tuple[Gatherings, list[int]]:
    shed: list[int] = []
    values = {"batch_size": 3, "min_items": 2, "max_age_s": 1e9, "capacity_items": 6, "total_items": 100}
    made = Gatherings(
        GatherLimits(**{**values, **limits}), on_shed=lambda stream, track, count: shed.append(count)
    )
    return made, shed


def always(stream: Stream, track: Track) -> bool:
    return True


def words(queries: Any) -> list[str]:
    return [query.text for query in queries]


def test_a_batch_takes_the_oldest_queries_and_may_split_a_job() -> None:
    made, _ = gatherings()
    stream, track = pair()
    first, second = job("a", "b"), job("c", "d", "e")
    made.join(stream, track, [first])
    assert made.next_batch(is_current=always) is None
    made.join(stream, track, [second])
    gathered = made.next_batch(is_current=always)
    assert gathered is not None
    (batch,) = gathered.batches
    assert (words(batch.queries), batch.id) == (["a", "b", "c"], f"{first.id}+0")
    assert made.learned(gathered).drop == 1
    assert track.gathered.stored_used == 1
    made.join(stream, track, [job("f")])
    gathered = made.next_batch(is_current=always)
    assert gathered is not None
    (batch,) = gathered.batches
    assert (words(batch.queries), batch.id) == (["d", "e", "f"], f"{second.id}+1")
    assert made.learned(gathered).drop == 2
    assert (len(track.gathered), track.gathered.stored_used) == (0, 0)


def test_a_gathering_goes_on_where_it_was_stored() -> None:
    resumed = Gathering.resumed([job("a", "b", "c"), job("d")], used=2)
    assert len(resumed) == 2
    assert [(part.start, words(part.asked)) for part in resumed.take(5)] == [(2, ["c"]), (0, ["d"])]
    assert resumed.let_go() == 2
    assert len(Gathering.resumed([], used=4)) == 0
    assert len(Gathering.resumed([job("a")], used=9)) == 0


def test_queries_beyond_the_capacity_leave_unlearned() -> None:
    made, shed = gatherings(batch_size=6, capacity_items=6)
    stream, track = pair()
    writes = [made.join(stream, track, [job(*"abc")]), made.join(stream, track, [job(*"defg")])]
    assert [(write.drop, len(write.join)) for write in writes] == [(0, 1), (0, 1)]
    assert (shed, track.shed, len(track.gathered), track.gathered.used) == ([1], 1, 6, 1)


def test_what_is_being_learned_from_leaves_the_store_only_when_that_is_stored() -> None:
    made, _ = gatherings(capacity_items=3)
    stream, track = pair()
    made.join(stream, track, [job(*"abc")])
    batch = made.next_batch(is_current=always)
    assert batch is not None
    write = made.join(stream, track, [job(*"defg")])  # one too many, while a, b, c are learned from
    assert write.drop == 0
    assert made.learned(batch).drop == 1
    assert (words(track.gathered.jobs[0].asked), track.gathered.stored_used) == (["d", "e", "f", "g"], 1)


def test_streams_take_turns() -> None:
    made, _ = gatherings()
    one, other = pair("one"), pair("other")
    made.join(*one, [job(*"aaaaaa")])
    made.join(*other, [job(*"bbb")])
    order = []
    while (batch := made.next_batch(is_current=always)) is not None:
        order.append(batch.stream.name)
        made.learned(batch)
    assert order == ["one", "other", "one"]


def test_when_all_together_hold_too_much_the_next_in_turn_leaves() -> None:
    made, shed = gatherings(total_items=8, capacity_items=6)
    pairs = [pair("a"), pair("b")]
    for stream, track in pairs:
        made.join(stream, track, [job(*"vwxyz")])
    overflow = made.overflow(is_current=always)
    assert overflow is not None
    assert (overflow[0].name, overflow[1].drop, shed) == ("a", 1, [5])
    assert made.overflow(is_current=always) is None


def test_pictures_and_sounds_together_stay_below_their_bytes() -> None:
    """Two samples of 6 KiB each fit, the third makes the oldest gathering leave."""
    made, shed = gatherings(total_bytes=13 << 10)
    key = TrackKey("s", "classes", "audio+video", "label")
    sample = Sample(fbank=np.zeros((32, 32), np.float32), pixels=np.zeros((2, 32, 32), np.uint8))
    pairs = [pair("a"), pair("b"), pair("c")]
    for stream, track in pairs:
        assert made.overflow(is_current=always) is None
        made.join(stream, track, [ClassifyJob(key, "async", (sample,), 1)])
    overflow = made.overflow(is_current=always)
    assert overflow is not None
    assert (overflow[0].name, shed) == ("a", [1])
    assert pairs[0][1].gathered.byte_size == 0
    assert made.overflow(is_current=always) is None


def test_a_stream_that_is_gone_is_forgotten() -> None:
    made, _ = gatherings()
    stream, track = pair()
    made.join(stream, track, [job(*"abc")])
    assert made.next_batch(is_current=lambda stream, track: False) is None
    assert len(made) == 0


@pytest.mark.parametrize(("count", "idle"), [(3, 0.0), (2, 5.0), (1, 5.0)])
def test_the_worker_sleeps_until_a_gathering_is_due(count: int, idle: float) -> None:
    made, _ = gatherings()
    made.join(*pair(), [job(*"x" * count)])
    assert made.idle_for_s(5.0) == idle
    assert made.due() == (count >= 3)


# -- queries of several kinds ---------------------------------------------------------------------------


def pictures(*numbers: int) -> RetrieveJob:
    """A job of the same track whose queries are pictures."""
    queries = tuple(Query(pixels=np.full((3, 1, 1), number, np.uint8)) for number in numbers)
    return RetrieveJob(TrackKey("s", "g", "text", "image"), "async", queries, 1)


def kinds(gathered: Any) -> list[list[Any]]:
    return [
        [query.text or int(query.pixels[0, 0, 0]) for query in batch.queries] for batch in gathered.batches
    ]


def test_what_leaves_together_is_sorted_by_kind() -> None:
    made, shed = gatherings(batch_size=6)
    stream, track = pair()
    jobs = [job("a"), pictures(1, 2), job("b", "c"), pictures(3)]
    made.join(stream, track, jobs)
    gathered = made.next_batch(is_current=always)
    assert gathered is not None
    assert kinds(gathered) == [["a", "b", "c"], [1, 2, 3]]
    assert [batch.id for batch in gathered.batches] == [f"{jobs[0].id}+0", f"{jobs[1].id}+0"]
    assert [batch.first for batch in gathered.batches] == jobs[:2]
    assert (made.learned(gathered).drop, shed, len(track.gathered)) == (4, [], 0)


def test_a_pattern_that_alternates_with_every_query_neither_starves_nor_waits() -> None:
    made, shed = gatherings(batch_size=6, capacity_items=12)
    stream, track = pair()
    for number in range(6):
        made.join(stream, track, [job(f"t{number}"), pictures(number)])
    found = []
    while made.idle_for_s(1.0) == 0.0:
        gathered = made.next_batch(is_current=always)
        assert gathered is not None  # whatever is due can be taken
        found += kinds(gathered)
        made.learned(gathered)
    assert found == [["t0", "t1", "t2"], [0, 1, 2], ["t3", "t4", "t5"], [3, 4, 5]]
    assert (shed, len(made)) == ([], 0)


def test_too_few_of_a_kind_leave_unlearned() -> None:
    made, shed = gatherings(batch_size=4)
    stream, track = pair()
    made.join(stream, track, [job("a"), pictures(1), job("b", "c", "d")])
    gathered = made.next_batch(is_current=always)
    assert gathered is not None
    assert kinds(gathered) == [["a", "b", "c"]]
    assert (shed, track.shed, stream.dirty) == ([1], 1, True)
    assert (made.learned(gathered).drop, track.gathered.stored_used) == (2, 2)


def test_a_full_gathering_teaches_by_the_kind_of_which_there_is_most() -> None:
    made, shed = gatherings(batch_size=5, min_items=5)
    stream, track = pair()
    made.join(stream, track, [pictures(1, 2), job("a", "b", "c")])
    gathered = made.next_batch(is_current=always)
    assert gathered is not None
    assert (kinds(gathered), shed) == ([["a", "b", "c"]], [2])


def test_an_old_gathering_waits_until_there_is_enough_of_one_kind() -> None:
    made, shed = gatherings(batch_size=6, min_items=3, max_age_s=0.0)
    stream, track = pair()
    made.join(stream, track, [job("a"), pictures(1), job("b"), pictures(2)])
    assert made.next_batch(is_current=always) is None
    assert made.idle_for_s(5.0) == 5.0  # the worker does not look again and again
    made.join(stream, track, [job("c")])
    assert made.idle_for_s(5.0) == 0.0
    gathered = made.next_batch(is_current=always)
    assert gathered is not None
    assert (kinds(gathered), shed) == ([["a", "b", "c"]], [2])


def test_beyond_the_capacity_the_oldest_leave_whatever_their_kind() -> None:
    made, shed = gatherings(batch_size=4, capacity_items=4)
    stream, track = pair()
    made.join(stream, track, [job("a"), pictures(1, 2), job("b", "c", "d")])
    assert shed == [2]
    gathered = made.next_batch(is_current=always)
    assert gathered is not None
    assert kinds(gathered) == [["b", "c", "d"]]  # and picture 2, alone, leaves unlearned
    assert track.shed == 3


def test_a_stored_gathering_knows_its_kinds_again() -> None:
    resumed = Gathering.resumed([pictures(1, 2, 3), job("a", "b")], used=2)
    assert (len(resumed), resumed.most_alike) == (3, 2)
