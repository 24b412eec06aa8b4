"""TCR without training: the rectified queries and the rules around them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from adapters.base import Forward
from adapters.losses import modality_gap
from adapters.memory import read_memory
from adapters.tcr_untrain import TCRUntrain, TCRUntrainSettings
from tests.adapters.streams import SmallTower, adapt_one, batch, gallery, run, start


def untrain(**settings: Any) -> TCRUntrain:
    return TCRUntrain(TCRUntrainSettings(**settings))


def test_the_answer_is_equations_12_and_13() -> None:
    tower, inputs = SmallTower(), batch(0)
    method = untrain(scale=1.5)
    result = adapt_one(method, start(method, tower), inputs, tower)
    queries = tower.encode(inputs)
    candidates = gallery()[(queries @ gallery().T).argmax(1)]
    assert result.outcome.state is not None
    memory = read_memory(result.outcome.state)
    assert memory is not None
    mean = queries.mean(0)
    rate = memory.gap() / modality_gap(queries, candidates)
    spread = mean + 1.5 * (queries - mean)
    expected = F.normalize(spread + (1 - rate) * (candidates.mean(0) - mean), dim=-1)
    torch.testing.assert_close(result.answer.features, expected)
    torch.testing.assert_close(
        torch.from_numpy(result.answer.ranking.scores[:, 0]), (expected @ gallery().T).max(1).values
    )


def test_no_parameter_is_held_or_changed() -> None:
    tower = SmallTower()
    method = untrain()
    state, results = run(method, start(method, tower), [batch(seed) for seed in range(3)], tower)
    assert state.parameters == {}
    assert state.optimizer.steps == {}
    assert [result.outcome.status for result in results] == ["applied"] * 3
    assert state.version == 3


def test_the_memory_freezes_but_the_centres_follow() -> None:
    tower = SmallTower()
    method = untrain(memory_batches=1)
    state, _ = run(method, start(method, tower), [batch(0)], tower)
    memory, centre = state.tensors["memory.queries"], state.tensors["centre.queries"]
    state, _ = run(method, state, [batch(1)], tower)
    assert torch.equal(state.tensors["memory.queries"], memory)
    assert not torch.equal(state.tensors["centre.queries"], centre)


def test_queries_on_their_candidates_are_not_moved() -> None:
    """The gap of the batch is 0, so there is nothing to divide by: spread only."""
    rows = gallery()[:6]
    method = untrain()
    state = method.initial_state(fingerprint="none", parameters={})
    forward = Forward(rows, rows, 0)
    method.observe(state, forward)
    mean = rows.mean(0)
    torch.testing.assert_close(method.answer(state, forward), F.normalize(mean + 2 * (rows - mean), dim=-1))


def test_a_query_alone_is_rectified_with_the_last_batch() -> None:
    tower, inputs = SmallTower(), batch(0)
    method = untrain()
    result = adapt_one(method, start(method, tower), inputs, tower)
    assert result.outcome.state is not None
    alone = method.answer_alone(result.outcome.state, tower.encode(inputs[:1]))
    torch.testing.assert_close(alone, result.answer.features[:1])


def test_a_query_alone_before_any_batch_is_left_as_it_is() -> None:
    tower = SmallTower()
    method = untrain()
    queries = tower.encode(batch(0))
    assert torch.equal(method.answer_alone(start(method, tower), queries), queries)


def test_identical_queries_and_a_batch_of_one_stay_unit_rows() -> None:
    tower = SmallTower()
    method = untrain()
    for inputs in (batch(0, 1), batch(0, 1).repeat(64, 1)):
        result = adapt_one(method, start(method, tower), inputs, tower)
        lengths = torch.linalg.vector_norm(result.answer.features, dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
