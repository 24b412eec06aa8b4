"""What streams beyond the papers hold, how two of them are compared, and which settings are tried."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch

from adapters.base import BadSettings
from adapters.registry import make_method
from benchmarks.beyond.cost import learns_every
from benchmarks.beyond.figures import compare, error_of_mean
from benchmarks.beyond.plans import PROTOCOLS, Orders, Plan, Query, Sizes
from benchmarks.beyond.sweep import tried
from benchmarks.beyond.tables import means
from benchmarks.beyond.topics import by_label, by_topic
from benchmarks.corruptions import CLEAN, Shift
from benchmarks.datasets import DatasetError
from benchmarks.protocol import near_copies

SHIFTS = [Shift.parse(name) for name in ("clean", "fog:2", "motion_blur:5")]


def sizes(**given: object) -> Sizes:
    return Sizes(**{"shifts": SHIFTS, "queries": 30, "batch": 4, "seed": 0, **given})  # type: ignore[arg-type]


def plans(protocol: str, orders: Orders | None = None, **given: object) -> list[Plan]:
    return list(PROTOCOLS[protocol](sizes(**given), orders or {}))


def queries(plan: Plan) -> list[Query]:
    return [query for planned in plan.scored for query in planned.queries]


def test_a_continual_stream_changes_its_shift_while_the_queries_go_on() -> None:
    first, guarded, *_ = plans("continual", change_every=3, rounds=2)
    segments = [planned.segment for planned in first.batches]
    parts = [segments[begin : begin + 3] for begin in range(0, 18, 3)]
    assert all(len(set(part)) == 1 for part in parts)
    assert sorted(part[0] for part in parts) == sorted(map(str, SHIFTS * 2))
    assert [query.position for query in queries(first)] == [number % 30 for number in range(18 * 4)]
    changes = [number for number in range(1, 18) if segments[number] != segments[number - 1]]
    assert [number for number, planned in enumerate(first.batches) if planned.after] == changes
    assert guarded.guarded
    assert guarded.control is first
    assert guarded.batches == first.batches


def test_the_shifts_come_in_another_order_under_another_seed_and_in_the_same_again() -> None:
    assert plans("continual") == plans("continual")
    assert [plan.name for plan in plans("continual")] == ["order 1"] * 2 + ["order 2"] * 2
    found = {
        tuple(planned.segment for planned in plan.batches)
        for seed in range(8)
        for plan in plans("continual", seed=seed)
    }
    assert len(found) > 3


def test_a_mixed_stream_asks_every_query_once_and_has_each_shift_as_often() -> None:
    for plan in plans("mixed"):
        asked = queries(plan)
        assert [query.position for query in asked] == list(range(30))
        assert [sum(query.shift == shift for query in asked) for shift in SHIFTS] == [10, 10, 10]
        assert any(len({query.shift for query in planned.queries}) > 1 for planned in plan.batches)


def test_a_long_stream_passes_over_clean_queries_in_other_orders() -> None:
    (plan,) = plans("long_clean", passes=3)
    asked = queries(plan)
    assert {query.shift.name for query in asked} == {CLEAN}
    turns = [[query.position for query in asked[30 * turn : 30 * turn + 30]] for turn in range(3)]
    assert [sorted(turn) for turn in turns] == [list(range(30))] * 3
    assert turns[0] != turns[1] != turns[2]
    assert {planned.segment for planned in plan.batches if not planned.after} == {"pass 1"}


def test_a_correlated_stream_stands_beside_the_shuffled_one() -> None:
    made = plans("correlated", {"backwards": range(29, -1, -1)})
    assert [(plan.name, plan.variant) for plan in made] == [
        (str(shift), order) for shift in SHIFTS for order in ("shuffled", "backwards")
    ]
    shuffled, backwards = ([query.position for query in queries(plan)] for plan in made[:2])
    assert shuffled == backwards[::-1] == list(range(30))


def test_tiny_batches_ask_the_same_queries() -> None:
    made = plans("tiny", tiny=(1, 7))
    assert {len(planned.queries) for planned in made[0].batches} == {1}
    assert [len(planned.queries) for planned in made[1].batches] == [7, 7, 7, 7, 2]
    assert queries(made[0]) == queries(made[1])


def test_copies_come_between_batches_that_stay_as_they_are() -> None:
    without, copied, guarded = plans("near_duplicates", copies=2)[:3]
    assert queries(without) == queries(copied) == queries(guarded)
    copies = [number for number, planned in enumerate(copied.batches) if planned.copies_of is not None]
    assert copies == [2, 3, 6, 7]
    assert len({copied.batches[number].copies_of for number in copies}) == 4
    assert [planned.after for planned in copied.scored] == [False] * 2 + [True] * 6
    assert (copied.guarded, guarded.guarded) == (False, True)
    assert guarded.control is without


def test_too_few_queries_for_copies_are_said_plainly() -> None:
    with pytest.raises(DatasetError, match="at least three batches of queries, not 2"):
        plans("near_duplicates", queries=8)


def test_in_real_time_the_same_stream_does_not_wait() -> None:
    waiting, in_time = plans("realistic")[:2]
    assert in_time.in_real_time
    assert not waiting.in_real_time
    assert in_time.batches == waiting.batches
    assert in_time.control is waiting


@pytest.mark.parametrize(
    ("cost", "every"), [(0.9, 1), (1.0, 1), (1.1, 1), (1.2, 2), (3.0, 3), (3.05, 3), (3.4, 4)]
)
def test_a_method_learns_from_as_many_batches_as_its_cost_lets_it(cost: float, every: int) -> None:
    assert learns_every(cost) == every


def test_labels_stay_together_and_every_position_comes_once() -> None:
    labels = ["b", "a", "b", "c", "a", "b"]
    order = by_label(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(6))
    assert len(list(groupby(labels[position] for position in order))) == 3


def test_topics_are_clusters_of_the_features() -> None:
    """Two groups at right angles, mixed: one comes after the other."""
    rows = torch.eye(4)[[0, 1] * 8] + 0.01 * torch.arange(16).unsqueeze(1)
    order = by_topic(torch.nn.functional.normalize(rows, dim=1), 2, np.random.default_rng(0))
    assert sorted(order) == list(range(16))
    assert len(list(groupby(position % 2 for position in order))) == 2


def test_two_methods_are_compared_query_by_query() -> None:
    """R@1: hits 1, 0, 0 against 0, 0, 0, so mean 1/3, s = sqrt(1/3) and s / sqrt(3) = 1/3.

    R@10: 1, 1, 0 against 1, 1, 1.
    """
    figures = compare(np.array([0, 3, 20]), np.array([2, 3, 1]), np.arange(3))
    assert figures["r1"] == pytest.approx(100 / 3)
    assert figures["other_r1"] == 0
    assert figures["gain_r1"] == figures["error_r1"] == pytest.approx(100 / 3)
    assert figures["gain_r10"] == pytest.approx(-100 / 3)
    assert figures["answers"] == 3
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(np.array([0]), np.array([0, 1]), np.array([0]))


def test_asking_again_does_not_make_an_error_smaller() -> None:
    values, asked = np.array([1.0, 0.0, -1.0, 0.0, 1.0]), np.arange(5)
    once = error_of_mean(values, asked)
    assert once == pytest.approx(values.std(ddof=1) / 5**0.5)
    assert error_of_mean(np.tile(values, 3), np.tile(asked, 3)) == pytest.approx(once)
    assert error_of_mean(np.tile(values, 3), np.arange(15)) < once


def test_a_mean_over_streams_is_by_variant_and_method_and_only_of_complete_ones() -> None:
    def stream(shift: str, method: str, gain: float) -> dict[str, object]:
        figures = {"whole": {"gain_r1": gain, "error_r1": 2.0}}
        return {"shift": shift, "variant": "", "method": method, "seed": 0, "figures": figures}

    (mean,) = means([stream("a", "tcr", 1.0), stream("b", "tcr", 3.0), stream("a", "tent", 9.0)])
    assert mean["method"] == "tcr"
    assert mean["figures"] == {"whole": {"gain_r1": 2.0, "error_r1": 2.0}}


def test_settings_are_tried_one_at_a_time_or_in_all_combinations() -> None:
    methods = {name: make_method(name, {}) for name in ("source", "tcr", "tcr_untrain")}
    sweeps = ["steps=1,3", "tcr.temperature=0.02,0.1", "batch=2"]
    single = tried(methods, sweeps, grid=False)
    assert [one.label for one in single] == [
        *methods,
        "tcr steps=1",
        "tcr steps=3",
        "tcr temperature=0.02",
        "tcr temperature=0.1",
        "tcr batch=2",
        "tcr_untrain batch=2",
    ]
    assert single[3].method.steps == 1
    assert (single[3].batch, single[7].batch) == (None, 2)
    grid = tried(methods, sweeps, grid=True)
    assert "tcr steps=1 temperature=0.1 batch=2" in [one.label for one in grid]
    assert len(grid) == 3 + 4 + 1


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("steps", "is not"),
        ("steps=", "is not"),
        ("steps=one", "is not"),
        ("stpes=1,2", "none of source, tcr has a setting 'stpes'"),
        ("tent.steps=1", "has a setting 'steps'"),
        ("steps=0", "steps"),
        ("batch=1.5", "whole number"),
    ],
)
def test_a_wrong_sweep_is_refused(sweep: str, message: str) -> None:
    methods = {name: make_method(name, {}) for name in ("source", "tcr")}
    with pytest.raises(BadSettings, match=message):
        tried(methods, [sweep], grid=False)


def test_near_copies_are_near_and_are_copies() -> None:
    picture = np.full((3, 8, 8), 3, np.uint8)
    copies = near_copies(picture, 5, np.random.default_rng(0))
    assert len(copies) == 5
    assert all(int(copy.max()) <= 9 for copy in copies)
    assert not np.array_equal(copies[0], copies[1])
    caption = "two brown horses are standing beside an old wooden fence"
    texts = near_copies(caption, 5, np.random.default_rng(0))
    assert all(sorted(text) == sorted(caption) for text in texts)
    assert set(texts) != {caption}
