"""The guard inside the adaptation of a batch: what is computed, what is learned, what is committed."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters.registry import make_method
from adapters.state import AdaptationState
from benchmarks.exact import ExactSide
from benchmarks.online import BatchResult, adapt_batch
from encoders.load import load_encoder
from service.guard.canaries import Canaries
from service.guard.guard import Guard
from service.guard.settings import GuardSettings
from service.pipeline import Outcome, StageTimes, adapt
from tests.adapters.streams import SmallTower, assert_identical, batch, gallery, start

SIZE = 32


class CountingTower(SmallTower):
    """Counts the rows that are encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def encode(self, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        self.rows += len(inputs)
        return super().encode(inputs, parameters)


def guard(**settings: Any) -> Guard:
    """Looser than the defaults: this tower is tiny and its figures jump."""
    loose = {"unusual_ratio": 8.0, "max_source_likeness_rise": 2.0, "max_modality_gap_rise": 1.0}
    return Guard(GuardSettings(**{**loose, "max_similarity_fall": 1.0, "max_distance": 10.0, **settings}))


METHOD = make_method("tcr", {"learning_rate": 1e-3})


def one(
    state: AdaptationState,
    watched: Guard | None,
    inputs: Tensor,
    *,
    tower: SmallTower | None = None,
    method: Any = METHOD,
    name: str = "b",
) -> BatchResult:
    return adapt_batch(
        tower=tower or SmallTower(),
        inputs=inputs,
        side=ExactSide(gallery()),
        k=5,
        method=method,
        state=state,
        batch_id=name,
        guard=watched,
    )


def several(
    count: int, watched: Guard | None, method: Any = METHOD
) -> tuple[AdaptationState, Guard | None, list[BatchResult]]:
    tower = SmallTower()
    state, results = start(method, tower), []
    for number in range(count):
        result = one(state, watched, batch(number, SIZE), method=method, name=f"b{number}")
        state, watched = result.next_state(state), result.outcome.guard
        results.append(result)
    return state, watched, results


def finish(slices: Generator[None, None, Outcome]) -> Outcome:
    while True:
        try:
            next(slices)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def crowd() -> Tensor:
    """Near-duplicates."""
    return batch(0, 1).repeat(SIZE, 1) + 1e-3 * torch.randn(
        SIZE, 6, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", ["tcr", "tcr_untrain"])
def test_a_guard_that_finds_nothing_changes_no_bit(name: str) -> None:
    method = make_method(name)
    free, _, expected = several(6, None, method)
    watched, after, results = several(6, guard(), method)
    assert_identical(watched, free)
    assert after is not None
    assert after.batches == 6
    assert after.events == ()
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result.answer.features, wanted.answer.features)
        assert result.told.version == wanted.told.version
        assert result.outcome.drift == wanted.outcome.drift


def test_the_source_model_sees_a_quarter_of_the_batch_once_the_state_has_learned() -> None:
    tower, state = CountingTower(), start(METHOD, SmallTower())
    first = one(state, guard(), batch(0, SIZE), tower=tower)
    assert tower.rows == 3 * SIZE
    assert first.outcome.guard is not None
    assert first.outcome.guard.latest["agreement"] == 1.0
    tower.rows = 0
    second = one(first.next_state(state), first.outcome.guard, batch(1, SIZE), tower=tower)
    assert tower.rows == 3 * SIZE + SIZE // 4
    assert second.outcome.guard is not None
    assert second.outcome.guard.latest["distance"] == first.outcome.drift["distance"] > 0


def test_a_method_without_training_needs_no_forward_of_the_source() -> None:
    method, tower = make_method("tcr_untrain"), CountingTower()
    state, watched = start(method, tower), guard()
    for number in range(3):
        result = one(state, watched, batch(number, SIZE), tower=tower, method=method)
        state, watched = result.next_state(state), result.outcome.guard or watched
    assert tower.rows == 3 * SIZE


def test_figures_of_both_models_are_those_of_the_same_queries() -> None:
    state, watched, _ = several(3, guard(sample_fraction=1.0))
    inputs, tower = batch(7, SIZE), SmallTower()
    result = one(state, watched, inputs)
    assert result.outcome.guard is not None
    latest = result.outcome.guard.latest
    for prefix, parameters in (("source", None), ("adapted", state.parameters)):
        features = tower.encode(inputs, parameters)
        nearest = (features @ gallery().T).max(1)
        assert latest[f"{prefix}.top1_similarity"] == pytest.approx(nearest.values.mean().item(), rel=1e-5)


def test_a_crowded_batch_is_answered_by_the_state_as_it_is() -> None:
    state, watched, _ = several(3, guard())
    result = one(state, watched, crowd())
    assert result.outcome.status == result.told.status == "skipped"
    assert result.outcome.state is None
    assert result.outcome.event is not None
    assert result.told.version == state.version
    with torch.no_grad():
        assert torch.equal(result.answer.features, SmallTower().encode(crowd(), state.parameters))
    assert result.answer.ranking.positions.shape == (SIZE, 5)


def test_a_rollback_is_bit_exact_and_one_version_further() -> None:
    state, watched, _ = several(8, guard(healthy_batches=4))
    assert watched is not None
    good = watched.good
    assert good is not None
    assert good.version < state.version
    strict = replace(watched, settings=guard(max_distance=1e-6).settings)
    result = one(state, strict, batch(9, SIZE), name="late")
    after = result.outcome.state
    assert after is not None
    assert (result.outcome.status, result.told.version, after.version) == ("skipped", 9, 9)
    assert_identical(replace(after, version=good.version, applied_batches=good.applied_batches), good)
    assert after.applied_batches == state.applied_batches
    with torch.no_grad():
        assert torch.equal(result.answer.features, SmallTower().encode(batch(9, SIZE), good.parameters))


def test_a_reset_at_a_new_shift_learns_the_batch_from_the_source_in_one_version() -> None:
    state, watched, _ = several(6, guard(unusual_ratio=3.0))
    inputs = [batch(20 + number, SIZE) * torch.linspace(3, -3, 6) for number in range(2)]
    first = one(state, watched, inputs[0], name="x")
    assert first.outcome.status == "skipped"
    assert first.outcome.state is None
    second = one(state, first.outcome.guard, inputs[1], name="y")
    after = second.outcome.state
    assert after is not None
    assert (second.outcome.status, after.version, second.told.version) == ("applied", 7, 7)
    assert after.applied_batches == (*state.applied_batches, "y")
    fresh = one(start(METHOD, SmallTower()), None, inputs[1], name="y").outcome.state
    assert fresh is not None
    assert_identical(replace(after, version=1, applied_batches=("y",)), fresh)


def test_a_state_that_is_not_finite_goes_back_to_the_source_and_the_answer_is_the_source_model() -> None:
    state, watched, _ = several(2, guard())
    broken = replace(
        state, parameters={name: value * float("nan") for name, value in state.parameters.items()}
    )
    result = one(broken, watched, batch(5, SIZE))
    assert result.outcome.state is not None
    assert_identical(
        replace(result.outcome.state, version=0, applied_batches=()), start(METHOD, SmallTower())
    )
    assert torch.equal(result.answer.features, SmallTower().encode(batch(5, SIZE)))


def test_queries_the_source_model_cannot_encode_are_undone_and_not_judged() -> None:
    state = start(METHOD, SmallTower())
    inputs = batch(0, SIZE)
    inputs[3, 2] = float("nan")
    result = one(state, guard(), inputs)
    assert result.outcome.status == "undone"
    assert result.outcome.state is None


def test_a_batch_undone_after_a_reset_still_commits_the_reset() -> None:
    state, watched, _ = several(6, guard(unusual_ratio=3.0))
    inputs = [batch(20 + number, SIZE) * torch.linspace(3, -3, 6) for number in range(2)]
    first = one(state, watched, inputs[0])
    diverging = make_method("tcr", {"weight_uni": 1e308, "uniformity_temperature": 1.0})
    second = one(state, first.outcome.guard, inputs[1], method=diverging)
    assert second.outcome.status == "undone"
    after = second.outcome.state
    assert after is not None
    assert (after.version, second.told.version) == (7, 7)
    assert_identical(replace(after, version=0, applied_batches=()), start(METHOD, SmallTower()))


def test_a_batch_computed_again_comes_to_the_same() -> None:
    state, watched, _ = several(5, guard())
    assert watched is not None
    plain = json.loads(json.dumps(watched.to_plain(), allow_nan=False))
    stored = Guard.from_plain(
        plain, settings=watched.settings, stream="", track="", good=watched.good, dimension=8
    )
    for inputs in (batch(30, SIZE), crowd(), batch(31, SIZE) * 3):
        here, there = one(state, watched, inputs), one(state, stored, inputs)
        assert here.outcome.reason == there.outcome.reason
        assert here.outcome.guard is not None
        assert there.outcome.guard is not None
        ours, theirs = here.outcome.guard.to_plain(), there.outcome.guard.to_plain()
        ours.pop("events")
        theirs.pop("events")
        assert ours == theirs
        assert_identical(here.next_state(state), there.next_state(state))


def test_canaries_are_checked_when_due_and_their_fall_takes_the_state_back() -> None:
    state, watched, _ = several(4, guard(canary_every_batches=4))
    tower, side, inputs = SmallTower(), ExactSide(gallery()), batch(40, 12)
    answers = side.search(tower.encode(inputs), 1).positions[:, 0]
    canaries = Canaries(tower=tower, inputs=inputs, answers=answers, side=side)
    assert canaries.check(tower.parameters).fall() == 0.0
    spoilt = replace(state, parameters={name: -value for name, value in state.parameters.items()})
    assert canaries.check(spoilt.parameters).fall() > 0.5
    outcome = finish(
        adapt(
            tower=tower,
            inputs=batch(4, SIZE),
            side=side,
            k=1,
            method=METHOD,
            state=spoilt,
            batch_id="c",
            times=StageTimes(),
            guard=watched,
            canaries=canaries.check,
        )
    )
    assert outcome.event is not None
    assert outcome.state is not None
    assert outcome.event.finding == "canaries"
    assert outcome.event.figures["canary_fall"] > 0.5
    assert outcome.state.version == state.version + 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_batch_of_any_size_can_be_watched(size: int) -> None:
    state, watched, _ = several(2, guard())
    result = one(state, watched, batch(8, size))
    assert result.outcome.status == "applied"
    assert result.outcome.guard is not None
    assert result.outcome.guard.batches == 3


def test_the_policy_warn_learns_from_near_duplicates_and_tells() -> None:
    state, watched, _ = several(3, guard(policy="warn"))
    result = one(state, watched, crowd())
    assert result.outcome.status == "applied"
    assert result.outcome.event is not None
    assert result.outcome.event.action == "warn"


def test_without_learning_the_answer_still_names_every_query() -> None:
    method = make_method("tcr_untrain")
    state, watched, _ = several(3, guard(), method)
    result = one(state, watched, crowd(), method=method)
    assert result.told.status == "skipped"
    assert result.answer.features.shape[0] == SIZE


@pytest.mark.parametrize("modality", ["image", "text"])
def test_chosen_rows_of_a_prepared_batch_encode_as_they_would_in_the_batch(modality: Any) -> None:
    from demo import demo_encoder_path

    encoder = load_encoder(str(demo_encoder_path()), device="cpu", dtype="fp32")
    spec, tower = encoder.image_spec, encoder.towers[modality]
    rng = np.random.default_rng(0)
    texts = ["a red dog " * int(rng.integers(1, 8)) for _ in range(48)]
    pictures = list(rng.integers(0, 256, (24, 3, spec.height, spec.width), dtype=np.uint8))
    inputs = tower.prepare(texts if modality == "text" else pictures)
    rows = torch.arange(0, len(inputs), 5)
    torch.testing.assert_close(tower.encode(inputs[rows]), tower.encode(inputs)[rows], rtol=0, atol=3e-6)
