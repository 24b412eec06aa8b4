"""AdamW over an explicit state against torch.optim.AdamW."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.optimizer import AdamWSettings, adamw_step, all_finite, descend, gradients, sharpest_nearby
from adapters.state import AdaptationState

SETTINGS = AdamWSettings(learning_rate=0.05, weight_decay=0.1)
SHAPES = {"a": (3,), "b": (2, 4), "c": (1,)}


def values(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()
    }


def steps(grads: list[dict[str, Tensor]]) -> tuple[AdaptationState, dict[str, Tensor]]:
    """The same gradients through ours and torch's; a name that is missing has no gradient."""
    ours = AdaptationState(method="tcr", fingerprint="none", parameters=values(0))
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in values(0).items()}
    optimizer = torch.optim.AdamW(theirs.values(), lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for grad in grads:
        adamw_step(ours, grad, SETTINGS)
        for name, parameter in theirs.items():
            parameter.grad = grad[name].clone() if name in grad else None
        optimizer.step()
    return ours, {name: parameter.detach() for name, parameter in theirs.items()}


def assert_same(ours: AdaptationState, theirs: dict[str, Tensor]) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours.parameters[name], value, rtol=1e-13, atol=1e-15)


def test_five_steps_equal_torch() -> None:
    assert_same(*steps([values(seed) for seed in range(1, 6)]))


def test_an_absent_gradient_neither_moves_decays_nor_counts() -> None:
    grads = [values(seed) for seed in range(1, 6)]
    for number in (0, 2, 3):
        del grads[number]["b"]
    ours, theirs = steps(grads)
    assert_same(ours, theirs)
    assert ours.optimizer.steps["b"].item() == 2
    assert ours.optimizer.steps["a"].item() == 5


def test_a_parameter_that_never_has_a_gradient_stays_as_it_was_and_has_no_moments() -> None:
    ours, theirs = steps([{"a": values(1)["a"]}, {"a": values(2)["a"]}])
    assert_same(ours, theirs)
    assert torch.equal(ours.parameters["b"], values(0)["b"])
    assert set(ours.optimizer.steps) == set(ours.optimizer.exp_avg) == set(ours.optimizer.exp_avg_sq) == {"a"}


def test_a_zero_gradient_decays_and_keeps_the_momentum() -> None:
    zero = {name: torch.zeros_like(value) for name, value in values(0).items()}
    ours, theirs = steps([values(1), zero, zero])
    assert_same(ours, theirs)
    without, _ = steps([values(1)])
    assert not torch.equal(ours.parameters["a"], without.parameters["a"])


def test_the_first_zero_gradient_decays_only() -> None:
    """w (1 - 0.05 * 0.1) = 0.995 w."""
    zero = {name: torch.zeros_like(value) for name, value in values(0).items()}
    ours, _ = steps([zero])
    torch.testing.assert_close(ours.parameters["a"], values(0)["a"] * 0.995)


def test_the_first_step_moves_by_the_learning_rate_against_the_sign() -> None:
    """m / (1 - 0.9) over sqrt(v / (1 - 0.999)) is g / |g|: decay, then 0.05 against the gradient's sign."""
    ours, _ = steps([values(1)])
    expected = values(0)["b"] * 0.995 - 0.05 * values(1)["b"].sign()
    torch.testing.assert_close(ours.parameters["b"], expected)


def test_no_gradient_at_all_changes_nothing() -> None:
    state = AdaptationState(method="tcr", fingerprint="none", parameters=values(0))
    adamw_step(state, {}, SETTINGS)
    assert torch.equal(state.parameters["a"], values(0)["a"])


def test_gradients_leave_out_what_the_loss_does_not_reach() -> None:
    leaves = {name: value.requires_grad_(True) for name, value in values(0).items()}
    loss = (leaves["a"] ** 2).sum() + 0 * leaves["c"].sum()
    found = gradients(loss, leaves)
    assert set(found) == {"a", "c"}
    torch.testing.assert_close(found["a"], 2 * leaves["a"].detach())
    assert torch.equal(found["c"], torch.zeros_like(found["c"]))


def test_all_finite_finds_a_single_bad_value_anywhere() -> None:
    assert all_finite(values(0)).item() is True
    assert all_finite({}).item() is True
    for bad in (float("nan"), float("inf"), -float("inf")):
        damaged = values(0)
        damaged["b"][1, 2] = bad
        assert all_finite(damaged).item() is False


def test_descending_is_one_step_along_the_gradient_and_says_whether_all_was_finite() -> None:
    """loss = 3 a: the first Adam step is the learning rate against the gradient's sign."""
    settings = AdamWSettings(learning_rate=0.05, weight_decay=0.0)
    for also, expected in ((torch.tensor(1.0), True), (torch.tensor(float("nan")), False)):
        state = AdaptationState("tent", "none", {"a": torch.tensor([1.0], requires_grad=True)})
        finite = descend(3 * state.parameters["a"].sum(), state, settings, also={"logits": also})
        assert bool(finite) is expected
        torch.testing.assert_close(state.parameters["a"].detach(), torch.tensor([0.95]))


def test_the_sharpest_point_nearby_is_a_radius_away_and_changes_nothing() -> None:
    """Gradients (3, 4) have norm 5: half a radius-1 step moves by 0.3 and 0.4. `c` has none."""
    parameters = {name: torch.zeros(1, requires_grad=True) for name in "abc"}
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    nearby = sharpest_nearby(parameters, grads, radius=0.5)
    assert list(nearby) == ["a", "b", "c"]
    torch.testing.assert_close(torch.cat(list(nearby.values())).detach(), torch.tensor([0.3, 0.4, 0.0]))
    assert all(value.requires_grad and value.is_leaf for value in nearby.values())
    assert all(float(value.detach()) == 0 for value in parameters.values())


def test_gradients_of_zeros_move_nothing_nearby() -> None:
    nearby = sharpest_nearby({"a": torch.ones(2)}, {"a": torch.zeros(2)}, radius=0.5)
    assert nearby["a"].tolist() == [1.0, 1.0]
