"""What every registered method keeps to, whatever it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.registry import METHODS, make_method
from adapters.state import AdaptationState, pack_states, unpack_states
from tests.adapters.streams import (
    AnyTower,
    G,
    SmallTower,
    adapt_one,
    assert_identical,
    batch,
    everything,
    inputs_for,
    run,
    small_tower,
    start,
)

every_method = pytest.mark.parametrize("name", list(METHODS))
learning = pytest.mark.parametrize("name", [name for name in METHODS if make_method(name).learns])

BATCHES = [batch(seed) for seed in range(3)]


def towers_of(tower: AnyTower) -> list[Any]:
    return [tower] if isinstance(tower, SmallTower) else list(tower.towers.values())


def after_three(name: str) -> AdaptationState:
    tower, method = small_tower(name), make_method(name)
    return run(method, start(method, tower), BATCHES, tower)[0]


@every_method
def test_its_name_is_the_registered_one(name: str) -> None:
    method = make_method(name)
    assert method.name == name
    assert isinstance(method.settings, METHODS[name].settings)
    assert METHODS[name].summary


@every_method
def test_frozen_weights_and_source_values_are_never_touched(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    run(method, start(method, tower), BATCHES, tower)
    fresh = small_tower(name)
    for used, unused in zip(towers_of(tower), towers_of(fresh), strict=True):
        assert torch.equal(used.first, unused.first)
        assert torch.equal(used.second, unused.second)
    for parameter, value in fresh.parameters.items():
        assert torch.equal(tower.parameters[parameter], value)
        assert not tower.parameters[parameter].requires_grad


@every_method
def test_the_source_state_copies_the_parameters(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    state = start(method, tower)
    assert (state.method, state.fingerprint, state.version, state.batches) == (name, "small", 0, 0)
    for parameter, value in state.parameters.items():
        value.add_(1.0)
        assert torch.equal(tower.parameters[parameter] + 1, value)


@every_method
def test_adapting_works_on_a_clone(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    state, _ = run(method, start(method, tower), BATCHES[:1], tower)
    before = everything(state)
    result = adapt_one(method, state, BATCHES[1], tower)
    assert_identical(state, before)
    assert result.outcome.state is not state


@every_method
def test_a_committed_state_carries_no_graph(name: str) -> None:
    state = after_three(name)
    for value in everything(state).values():
        if isinstance(value, torch.Tensor):
            assert not value.requires_grad
    assert all(not value.requires_grad for value in state.parameters.values())
    assert all(not value.requires_grad for value in state.tensors.values())


@every_method
def test_every_batch_is_counted_and_applied_ones_raise_the_version(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    state, results = run(method, start(method, tower), BATCHES, tower)
    applied = [result.outcome.status for result in results].count("applied")
    assert state.batches == 3
    assert state.version == applied == len(state.applied_batches)
    assert applied == (3 if method.adapts else 0)


@learning
def test_a_learning_method_moves_every_parameter(name: str) -> None:
    """SAR's recovery would put them back: on so small a gallery its average entropy is low from the start."""
    tower, method = small_tower(name), make_method(name, {"reset_constant": 0.0} if name == "sar" else {})
    state = run(method, start(method, tower), BATCHES, tower)[0]
    for parameter, value in small_tower(name).parameters.items():
        assert not torch.equal(state.parameters[parameter], value)


@every_method
def test_the_answer_is_a_complete_ranking_of_unit_rows(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    _, results = run(method, start(method, tower), BATCHES, tower)
    for result in results:
        lengths = torch.linalg.vector_norm(result.answer.features, dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
        assert not result.answer.features.requires_grad
        assert (result.answer.ranking.positions.argsort(1).argsort(1).max(1) == G - 1).all()
        assert (result.answer.ranking.scores[:, :-1] >= result.answer.ranking.scores[:, 1:]).all()


@every_method
def test_the_same_stream_gives_the_same_state_bit_for_bit(name: str) -> None:
    assert_identical(after_three(name), after_three(name))


@every_method
def test_a_stream_from_the_source_state_forgets_the_one_before(name: str) -> None:
    """A reset is a new source state: the method itself remembers nothing."""
    tower, method = small_tower(name), make_method(name)
    run(method, start(method, tower), [batch(seed) for seed in range(20, 25)], tower)
    state, _ = run(method, start(method, tower), BATCHES, tower)
    assert_identical(state, after_three(name))


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packing_and_unpacking_after_three_batches_is_exact_and_continues_exactly(
    name: str, dtype: torch.dtype
) -> None:
    tower, method = small_tower(name, dtype), make_method(name)
    inputs = [batch(seed, dtype=dtype) for seed in range(6)]
    state, _ = run(method, start(method, tower), inputs[:3], tower)
    states, header = unpack_states(pack_states({"track": state}, header={"stream": "a"}))
    assert header == {"stream": "a"}
    assert_identical(states["track"], state)
    unbroken, expected = run(method, state, inputs[3:], tower)
    continued, found = run(method, states["track"], inputs[3:], tower)
    assert_identical(continued, unbroken)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.answer.features, other.answer.features)


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_leave_the_state_alone(name: str, bad: float) -> None:
    tower, method = small_tower(name), make_method(name)
    state, _ = run(method, start(method, tower), BATCHES, tower)
    before = everything(state)
    inputs = batch(7)
    inputs[3, 2] = bad
    result = adapt_one(method, state, inputs, tower)
    assert result.outcome.status == "undone"
    assert result.outcome.state is None
    assert result.told.status == "undone"
    assert_identical(state, before)
    after, _ = run(method, state, [batch(8)], tower)
    assert all(torch.isfinite(v).all() for v in everything(after).values() if isinstance(v, torch.Tensor))


@every_method
@pytest.mark.parametrize("size", [1, 2, 64])
def test_batches_of_any_size_are_answered(name: str, size: int) -> None:
    tower, method = small_tower(name), make_method(name)
    state, results = run(method, start(method, tower), [batch(0, size), batch(1, 1)], tower)
    assert [len(result.answer.features) for result in results] == [size, 1]
    assert all(torch.isfinite(v).all() for v in everything(state).values() if isinstance(v, torch.Tensor))


@every_method
def test_identical_queries_get_identical_answers(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    _, results = run(method, start(method, tower), [batch(0, 1).repeat(64, 1)] * 2, tower)
    for result in results:
        torch.testing.assert_close(result.answer.features, result.answer.features[:1].expand(64, -1))


@every_method
def test_a_query_alone_is_answered_before_and_after_adapting_without_changing_the_state(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    for state in (start(method, tower), after_three(name)):
        before = everything(state)
        answer = method.answer_alone(state, tower.encode(inputs_for(tower, batch(9, 1))))
        assert answer.shape == (1, 8)
        assert torch.isfinite(answer).all()
        assert_identical(state, before)


@every_method
def test_drift_is_finite_and_within_its_bounds(name: str) -> None:
    tower, method = small_tower(name), make_method(name)
    _, results = run(method, start(method, tower), BATCHES, tower)
    for result in results:
        drift = result.outcome.drift
        assert 0 <= drift["modality_gap"] <= 2
        assert 0 <= drift["uniformity"] <= 1
        assert 0 <= drift["entropy_nats"] <= 2.303
        assert -4 <= drift["source_likeness"] <= 4


@every_method
def test_settings_cannot_be_changed_afterwards(name: str) -> None:
    settings = make_method(name).settings
    for field in type(settings).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(settings, field, 1)
    with pytest.raises(ValueError):
        settings.anything = 1  # type: ignore[attr-defined]
