"""TCR through the service's loop: its rules over batches and at the edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.base import Forward
from adapters.losses import modality_gap, softmax_entropy, uniformity
from adapters.memory import read_memory
from adapters.registry import make_method
from adapters.state import AdaptationState
from adapters.tcr import TCR, TCRSettings
from benchmarks.exact import ExactSide
from benchmarks.online import adapt_batch
from tests.adapters.streams import (
    G,
    SmallTower,
    adapt_one,
    assert_identical,
    batch,
    everything,
    gallery,
    run,
    start,
)


def tcr(**settings: Any) -> TCR:
    return TCR(TCRSettings(**settings))


def test_the_answer_is_that_of_the_weights_after_all_but_the_last_update() -> None:
    tower, inputs = SmallTower(), batch(0)
    one = tcr(steps=1)
    first = adapt_one(one, start(one, tower), inputs, tower)
    assert torch.equal(first.answer.features, tower.encode(inputs))

    two = tcr(steps=2)
    second = adapt_one(two, start(two, tower), inputs, tower)
    assert first.outcome.state is not None
    torch.testing.assert_close(second.answer.features, tower.encode(inputs, first.outcome.state.parameters))
    assert second.told.status == "applying"


def test_predict_after_update_answers_from_the_committed_parameters() -> None:
    tower, inputs = SmallTower(), batch(0)
    method = tcr(predict_after_update=True)
    result = adapt_one(method, start(method, tower), inputs, tower)
    assert result.outcome.state is not None
    torch.testing.assert_close(result.answer.features, tower.encode(inputs, result.outcome.state.parameters))
    assert result.told.status == "applied"


def test_each_loss_is_the_formula_on_the_last_forward() -> None:
    """One step from the source state; the memory holds the 3 most source-like of this batch's 10 pairs."""
    tower, inputs = SmallTower(), batch(0)
    method = tcr(steps=1, temperature=0.5)
    result = adapt_one(method, start(method, tower), inputs, tower)
    queries = tower.encode(inputs)
    candidates = gallery()[(queries @ gallery().T).argmax(1)]
    assert result.outcome.state is not None
    memory = read_memory(result.outcome.state)
    assert memory is not None
    assert len(memory) == 3
    entropy = softmax_entropy(queries @ candidates.T / 0.5)
    chosen = entropy[entropy <= memory.entropy.max()]
    rem = (chosen * (1 - chosen / (memory.entropy.max() + 1e-3))).mean()
    losses = result.outcome.losses
    assert losses["rem"] == pytest.approx(rem.item())
    assert losses["uni"] == pytest.approx(uniformity(queries).item())
    assert losses["emg"] == pytest.approx((modality_gap(queries, candidates) - memory.gap()).item() ** 2)
    assert losses["reliable_fraction"] == pytest.approx(len(chosen) / 10)


def test_a_weight_of_zero_takes_a_loss_out() -> None:
    tower, inputs = SmallTower(), batch(0)
    ends = [
        run(method, start(method, tower), [inputs], tower)[0].parameters["norm.weight"]
        for method in (tcr(), tcr(weight_rem=0), tcr(weight_uni=0), tcr(weight_emg=0))
    ]
    for i in range(4):
        for j in range(i):
            assert not torch.equal(ends[i], ends[j])


def test_with_all_weights_zero_only_the_decay_acts() -> None:
    """Three updates of a zero gradient: w (1 - 0.01 * 0.5)^3."""
    tower = SmallTower()
    method = tcr(weight_rem=0, weight_uni=0, weight_emg=0, learning_rate=0.01, weight_decay=0.5)
    state, _ = run(method, start(method, tower), [batch(0)], tower)
    torch.testing.assert_close(state.parameters["norm.weight"], torch.ones(6, dtype=torch.float64) * 0.995**3)


def test_the_memory_grows_once_per_batch_and_freezes() -> None:
    tower = SmallTower()
    method = tcr(memory_batches=2)
    state, sizes, kept = start(method, tower), [], []
    for seed in range(4):
        state, _ = run(method, state, [batch(seed)], tower)
        memory = read_memory(state)
        assert memory is not None
        sizes.append(len(memory))
        kept.append(memory.likeness)
    assert sizes == [3, 6, 6, 6]
    assert torch.equal(kept[1], kept[3])


def test_the_memory_holds_the_first_forward_of_a_batch() -> None:
    tower, inputs = SmallTower(), batch(0)
    method = tcr()
    state, _ = run(method, start(method, tower), [inputs], tower)
    memory = read_memory(state)
    assert memory is not None
    rows = tower.encode(inputs)
    assert all((rows == query).all(1).any() for query in memory.queries)


def test_no_reliable_query_leaves_the_other_losses_to_work() -> None:
    """A ceiling below every entropy of the batch: L_REM is 0, where the released code gives NaN."""
    tower = SmallTower()
    method = tcr(memory_batches=1)
    state, _ = run(method, start(method, tower), [batch(0)], tower)
    state.tensors["memory.entropy"] = torch.full_like(state.tensors["memory.entropy"], -1.0)
    result = adapt_one(method, state, batch(1), tower)
    assert result.outcome.status == "applied"
    assert result.outcome.losses["rem"] == 0.0
    assert result.outcome.losses["reliable_fraction"] == 0.0
    assert result.outcome.state is not None
    moved = result.outcome.state.parameters["norm.weight"]
    assert torch.isfinite(moved).all()
    assert not torch.equal(moved, state.parameters["norm.weight"])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_first_batch_too_small_for_an_entry_remembers_one_pair(size: int) -> None:
    tower = SmallTower()
    method = tcr()
    state, results = run(method, start(method, tower), [batch(0, size)], tower)
    memory = read_memory(state)
    assert memory is not None
    assert len(memory) == 1
    assert results[0].outcome.status == "applied"
    assert all(torch.isfinite(value).all() for value in state.parameters.values())


def test_a_batch_of_one_is_certain_so_only_the_decay_of_its_uniformity_remains() -> None:
    """One query over one candidate: H = 0, L_UNI = exp(0) = 1, gap equal to the remembered one."""
    tower = SmallTower()
    method = tcr(steps=1)
    result = adapt_one(method, start(method, tower), batch(0, 1), tower)
    assert result.outcome.losses["rem"] == 0.0
    assert result.outcome.losses["uni"] == 1.0
    assert result.outcome.losses["emg"] == pytest.approx(0.0, abs=1e-20)


def test_sixty_four_identical_queries_do_no_harm() -> None:
    tower = SmallTower()
    method = tcr()
    state, results = run(method, start(method, tower), [batch(0, 1).repeat(64, 1)] * 3, tower)
    assert [result.outcome.status for result in results] == ["applied"] * 3
    assert all(torch.isfinite(value).all() for value in state.parameters.values())
    assert len(results[-1].answer.ranking.positions) == 64


def test_a_loss_that_is_not_finite_undoes_the_batch() -> None:
    """A remembered entropy of NaN makes L_REM NaN while the features are fine."""
    tower = SmallTower()
    method = tcr(memory_batches=1)
    state, _ = run(method, start(method, tower), [batch(0)], tower)
    state.tensors["memory.queries"] = torch.full_like(state.tensors["memory.queries"], float("nan"))
    before = everything(state)
    result = adapt_one(method, state, batch(1), tower)
    assert result.outcome.status == "undone"
    assert result.outcome.state is None
    assert result.next_state(state) is state
    assert torch.isfinite(result.answer.features).all(), "the batch is still answered"
    after = everything(state)
    assert all(
        torch.equal(torch.nan_to_num(after[name]), torch.nan_to_num(value))
        for name, value in before.items()
        if isinstance(value, torch.Tensor)
    )


def test_learning_without_having_observed_says_so() -> None:
    tower = SmallTower()
    method = tcr()
    state = start(method, tower)
    rows = tower.encode(batch(0), {n: v.requires_grad_(True) for n, v in state.parameters.items()})
    with pytest.raises(ValueError, match="only after `observe`"):
        method.learn(state, Forward(rows, rows.detach(), 0))


def test_half_precision_features_are_compared_in_single() -> None:
    rows = torch.nn.functional.normalize(
        torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    method = tcr()
    state = start(method, SmallTower())
    method.observe(state, Forward(rows.bfloat16(), rows.bfloat16(), 0))
    assert state.tensors["memory.queries"].dtype == torch.float32
    assert method.drift(state, Forward(rows.bfloat16(), rows, 0))["modality_gap"].dtype == torch.float32


def test_continuing_is_the_same_whether_or_not_the_last_batch_is_short() -> None:
    """A short last batch (3 queries, no entry) leaves the memory alone and still learns."""
    tower = SmallTower()
    method = tcr()
    state, _ = run(method, start(method, tower), [batch(0)], tower)
    memory = state.tensors["memory.queries"].clone()
    after, results = run(method, state, [batch(1, 3)], tower)
    assert torch.equal(after.tensors["memory.queries"], memory)
    assert results[0].outcome.status == "applied"
    assert after.version == 2


def test_drift_names_the_target_once_there_is_a_memory() -> None:
    tower = SmallTower()
    method = make_method("tcr")
    _, results = run(method, start(method, tower), [batch(0)], tower)
    drift = results[0].outcome.drift
    assert set(drift) == {
        "modality_gap",
        "uniformity",
        "entropy_nats",
        "source_likeness",
        "modality_gap_target",
        "update_norm",
        "distance",
    }
    queries = tower.encode(batch(0))
    candidates = gallery()[(queries @ gallery().T).argmax(1)]
    assert drift["modality_gap"] == pytest.approx(modality_gap(queries, candidates).item())


def test_the_state_given_is_never_changed() -> None:
    tower = SmallTower()
    method = tcr()
    state, _ = run(method, start(method, tower), [batch(0)], tower)
    before = everything(state)
    adapt_one(method, state, batch(1), tower)
    assert_identical(state, before)


def measured(value: float) -> Any:
    return lambda features: torch.tensor(value)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_batch_that_looks_clean_is_remembered_and_answered_but_not_learned_from(steps: int) -> None:
    tower, inputs = SmallTower(), batch(0)
    method = tcr(learn_from_shift=2.5, steps=steps)
    before = start(method, tower)
    result = adapt_batch(
        tower=tower,
        inputs=inputs,
        side=ExactSide(gallery()),
        k=G,
        method=method,
        state=before,
        batch_id="a",
        shift=measured(1.0),
    )
    after = result.outcome.state
    assert (result.outcome.status, result.told.status) == ("skipped", "skipped")
    assert result.told.reason == result.outcome.reason == "the batch looks clean: its shift is below 2.5"
    assert result.outcome.drift["shift"] == 1.0
    assert after is not None
    assert (after.version, after.batches) == (0, 1)
    assert_identical(AdaptationState("tcr", "small", after.parameters), everything(start(method, tower)))
    assert read_memory(after) is not None
    torch.testing.assert_close(result.answer.features, tower.encode(inputs))
    assert (result.answer.ranking.positions.argsort(1).argsort(1).max(1) == G - 1).all()


def test_a_shifted_batch_is_learned_from_and_so_is_every_batch_where_no_shift_is_known() -> None:
    tower, inputs, side = SmallTower(), batch(0), ExactSide(gallery())
    method = tcr(learn_from_shift=2.5)
    plain = adapt_one(tcr(), start(tcr(), tower), inputs, tower).outcome.state
    assert plain is not None
    for shift in (measured(2.5), None):
        result = adapt_batch(
            tower=tower, inputs=inputs, side=side, k=G, method=method, state=start(method, tower),
            batch_id="batch", shift=shift,
        )  # fmt: skip
        assert result.outcome.status == "applied"
        assert result.outcome.state is not None
        for name, value in plain.parameters.items():
            assert torch.equal(result.outcome.state.parameters[name], value)


def test_without_the_setting_a_clean_batch_is_learned_from_and_its_shift_is_shown() -> None:
    tower, method = SmallTower(), tcr()
    result = adapt_batch(
        tower=tower, inputs=batch(0), side=ExactSide(gallery()), k=G, method=method,
        state=start(method, tower), batch_id="batch", shift=measured(1.0),
    )  # fmt: skip
    assert (result.outcome.status, result.outcome.drift["shift"]) == ("applied", 1.0)


def test_a_batch_that_is_known_to_be_shifted_is_learned_from_at_the_rate_for_that() -> None:
    tower, side = SmallTower(), ExactSide(gallery())

    def parameters_after(shift: Any, **settings: Any) -> dict[str, torch.Tensor]:
        method = tcr(**settings)
        result = adapt_batch(
            tower=tower, inputs=batch(0), side=side, k=G, method=method, state=start(method, tower),
            batch_id="batch", shift=shift,
        )  # fmt: skip
        assert result.outcome.state is not None
        return result.outcome.state.parameters

    gated = {"learn_from_shift": 2.5, "shifted_learning_rate": 1e-3}
    known, fast = parameters_after(measured(9.0), **gated), parameters_after(None, learning_rate=1e-3)
    unknown, usual = parameters_after(None, **gated), parameters_after(None)
    for name in known:
        assert torch.equal(known[name], fast[name])
        assert torch.equal(unknown[name], usual[name])
        assert not torch.equal(known[name], usual[name])
