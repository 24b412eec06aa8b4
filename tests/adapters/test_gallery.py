"""The retrieval baselines that take the gallery for classes: their formulas and rules at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base import Again, Classes, Forward
from adapters.deyo import DeYO, DeYOSettings
from adapters.gallery import kth_smallest
from adapters.losses import softmax_entropy
from adapters.registry import METHODS, make_method
from adapters.rest_like import _decoupled
from adapters.state import AdaptationState
from benchmarks.exact import ExactSide
from benchmarks.online import adapt_batch
from encoders.base import PictureTower
from service.pipeline import NEAREST_CLASSES
from tests.adapters.streams import (
    D,
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

BASELINES = [name for name in METHODS if make_method(name).most_classes]


def one_forward(method: Any, state: AdaptationState, inputs: Tensor, **over: Any) -> Forward:
    tower = SmallTower()
    for value in state.parameters.values():
        value.requires_grad_(True)
    queries = tower.encode(inputs, state.parameters)
    candidates = gallery()[(queries @ gallery().T).argmax(1)]
    again = Again(
        tower.parameters,
        lambda parameters, rows: tower.encode(inputs if rows is None else inputs[rows], parameters),
    )
    return Forward(queries, candidates, 0, **{"classes": Classes(gallery(), 0), "again": again, **over})


def logits_of(inputs: Tensor, temperature: float) -> Tensor:
    return SmallTower().encode(inputs) @ gallery().T / temperature


def test_there_are_the_six_of_the_benchmark() -> None:
    assert set(BASELINES) == {"tent", "eata", "sar", "read", "shot", "deyo"}


@pytest.mark.parametrize("name", BASELINES)
def test_they_need_the_gallery(name: str) -> None:
    method = make_method(name)
    state = start(method, SmallTower())
    with pytest.raises(ValueError, match="compares with the gallery"):
        method.learn(state, one_forward(method, state, batch(0), classes=None))


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_batches_leave_finite_parameters(name: str, size: int) -> None:
    tower, method = SmallTower(), make_method(name)
    state, results = run(method, start(method, tower), [batch(seed, size) for seed in range(4)], tower)
    assert all(result.outcome.status != "undone" for result in results)
    assert all(bool(torch.isfinite(value).all()) for value in state.parameters.values())


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_query_many_times_leaves_finite_parameters(name: str) -> None:
    tower, method = SmallTower(), make_method(name)
    same = batch(0, 1).expand(10, -1).clone()
    state, results = run(method, start(method, tower), [same, same], tower)
    assert all(result.outcome.status != "undone" for result in results)
    assert all(bool(torch.isfinite(value).all()) for value in state.parameters.values())


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_not_finite_is_undone(name: str) -> None:
    tower, method = SmallTower(), make_method(name)
    before = start(method, tower)
    result = adapt_one(method, before, torch.full((10, 6), math.nan, dtype=torch.float64), tower)
    assert result.outcome.status == "undone"
    assert_identical(before, everything(start(method, tower)))


@pytest.mark.parametrize("name", BASELINES)
def test_a_large_gallery_is_stood_for_by_the_items_nearest_to_the_batch(name: str) -> None:
    """Of 1,000 items 300 are allowed, so every query's 256 nearest are taken, each once."""
    vectors = F.normalize(torch.randn(1000, D, generator=torch.Generator().manual_seed(3)).double(), dim=-1)
    side, tower = ExactSide(vectors), SmallTower()
    found = side.classes(tower.encode(batch(0, 2)), 300)
    assert found.version is None
    assert NEAREST_CLASSES <= len(found.vectors) <= 2 * NEAREST_CLASSES
    assert len(torch.unique(found.vectors, dim=0)) == len(found.vectors)
    method = make_method(name, {"most_classes": 300})
    result = adapt_batch(
        tower=tower, inputs=batch(0), side=side, k=5, method=method, state=start(method, tower), batch_id="a"
    )
    assert result.outcome.status == "applied"


def test_the_kth_smallest_is_the_smallest_of_too_small_a_batch() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    assert float(kth_smallest(values, 0.4)) == 2.0
    assert float(kth_smallest(values[:2], 0.4)) == 1.0


def test_tent_lowers_the_mean_entropy_over_all_items() -> None:
    method = make_method("tent", {"temperature": 0.1})
    state = start(method, SmallTower())
    report = method.learn(state, one_forward(method, state, batch(0)))
    torch.testing.assert_close(report.losses["entropy"], softmax_entropy(logits_of(batch(0), 0.1)).mean())


def test_shot_counts_labels_only_where_they_are_sure() -> None:
    logits = logits_of(batch(0), 0.1)
    largest, label = logits.softmax(-1).max(-1)
    threshold = float(largest.sort().values[-4])
    method = make_method("shot", {"temperature": 0.1, "threshold": threshold})
    state = start(method, SmallTower())
    report = method.learn(state, one_forward(method, state, batch(0)))
    sure = largest > threshold
    assert int(sure.sum()) == 3
    torch.testing.assert_close(report.losses["labels"], F.cross_entropy(logits[sure], label[sure]))
    method = make_method("shot", {"temperature": 10.0})
    state = start(method, SmallTower())
    assert float(method.learn(state, one_forward(method, state, batch(0))).losses["labels"]) == 0.0


@pytest.mark.parametrize("clear", [False, True])
def test_sar_recovers_the_source_weights_and_forgets_only_what_it_is_told_to(clear: bool) -> None:
    method = make_method(
        "sar",
        {"reset_constant": 100.0, "ema_clear_on_reset": clear, "moments_clear_on_reset": clear, "steps": 1},
    )
    state, _ = run(method, start(method, SmallTower()), [batch(0)], SmallTower())
    for name, value in SmallTower().parameters.items():
        assert torch.equal(state.parameters[name], value)
    assert ("entropy_average" in state.numbers) is not clear
    assert bool(state.optimizer.steps) is not clear


def test_sar_makes_no_update_where_nothing_stays_sure() -> None:
    """At the point beside, here, all queries are alike, and as unsure as can be."""
    method = make_method("sar", {"reset_constant": 0.0, "rho": 1e-9, "steps": 1})
    state = start(method, SmallTower())
    forward = one_forward(method, state, batch(0, 1))
    assert forward.again is not None
    higher = Again(forward.again.source, lambda parameters, rows: 0 * forward.queries)
    report = method.learn(state, one_forward(method, state, batch(0, 1), again=higher))
    assert float(report.losses["entropy_nearby"]) == 0.0
    assert not state.optimizer.steps


def test_eata_compares_with_an_average_and_drops_it_when_the_gallery_changes() -> None:
    method = make_method("eata", {"temperature": 0.1, "d_margin": 1e-6})
    state = start(method, SmallTower())
    first = method.learn(state, one_forward(method, state, batch(0)))
    again = method.learn(state, one_forward(method, state, batch(0)))
    assert int(first.losses["selected"]) == 4
    assert int(again.losses["selected"]) == 0
    changed = method.learn(state, one_forward(method, state, batch(0), classes=Classes(gallery(), 1)))
    assert int(changed.losses["selected"]) == 4
    other = Classes(gallery()[:20], None)
    assert (
        int(method.learn(state, one_forward(method, state, batch(0), classes=other)).losses["selected"]) == 4
    )
    assert "probability_average" not in state.tensors


def test_eata_moves_on_its_momentum_where_nothing_is_selected_unless_it_is_told_not_to() -> None:
    for skip in (False, True):
        method = make_method("eata", {"temperature": 0.1, "d_margin": 1e-6, "skip_empty": skip})
        state = start(method, SmallTower())
        method.learn(state, one_forward(method, state, batch(0)))
        before = {name: value.detach().clone() for name, value in state.parameters.items()}
        report = method.learn(state, one_forward(method, state, batch(0)))
        moved = any(not torch.equal(state.parameters[name], value) for name, value in before.items())
        assert moved is not skip
        assert report.applied is not skip


def test_deyo_learns_from_texts_without_shuffling_them() -> None:
    method = make_method("deyo", {"temperature": 0.1})
    state = start(method, SmallTower())
    report = method.learn(state, one_forward(method, state, batch(0)))
    assert int(report.losses["selected"]) == int(report.losses["sure"]) == 4


class Pictures(SmallTower):
    """Its inputs are pictures of 6 values, 1 x 2 x 3."""

    def pictures(self, inputs: Any) -> Tensor:
        return inputs.reshape(-1, 1, 2, 3)

    def prepare_tensors(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(1)


def test_deyo_learns_from_pictures_whose_shuffling_takes_their_certainty() -> None:
    """A single patch cannot be shuffled: nothing is taken."""
    assert isinstance(Pictures(), PictureTower)
    assert not isinstance(SmallTower(), PictureTower)
    for patches, threshold, expected in ((1, 0.0, 0), (2, -1.0, 4)):
        settings = DeYOSettings(temperature=0.1, patch_len=patches, plpd_threshold=threshold, steps=1)
        method = DeYO(settings, noise=lambda shape: torch.arange(float(shape[1])).expand(shape))
        tower = Pictures()
        result = adapt_batch(
            tower=tower,
            inputs=batch(0),
            side=ExactSide(gallery()),
            k=G,
            method=method,
            state=start(method, tower),
            batch_id="a",
        )
        assert result.outcome.losses["selected"] == expected
        assert result.outcome.status == ("applied" if expected else "skipped")


def test_a_batch_whose_last_step_selects_nothing_still_counts_its_earlier_steps() -> None:
    calls = iter([True, False, False])

    class Picky(DeYO):
        def learn(self, state: AdaptationState, forward: Forward) -> Any:
            report = super().learn(state, forward)
            return report if next(calls) else type(report)(losses=report.losses, reason="nothing")

    tower, method = SmallTower(), Picky(DeYOSettings(temperature=0.1))
    result = adapt_one(method, start(method, tower), batch(0), tower)
    assert result.outcome.status == "applied"
    assert result.outcome.state is not None
    assert result.outcome.state.version == 1


def test_rest_like_never_goes_against_the_source_model() -> None:
    """The part of the gradient that points against keeping the source's predictions is left out."""
    grads, keep = (
        [torch.tensor([1.0, 0.0]), torch.tensor([2.0])],
        [torch.tensor([-1.0, 1.0]), torch.tensor([0.0])],
    )
    kept, cosine = _decoupled(grads, keep)
    inner = sum((g * k).sum() for g, k in zip(kept, keep, strict=True))
    assert float(cosine) < 0
    assert float(inner) == pytest.approx(0.0, abs=1e-6)
    same, cosine = _decoupled(grads, [-part for part in keep])
    assert float(cosine) > 0
    assert all(torch.equal(one, other) for one, other in zip(same, grads, strict=True))


def test_rest_like_with_no_conflict_is_tcr() -> None:
    """At the source state the kept prediction is the batch's own, whose gradient is zero."""
    tower = SmallTower()
    ours, theirs = make_method("rest_like", {"steps": 1}), make_method("tcr", {"steps": 1})
    first, _ = run(ours, start(ours, tower), [batch(0)], tower)
    second, _ = run(theirs, start(theirs, tower), [batch(0)], tower)
    for name, value in first.parameters.items():
        torch.testing.assert_close(value, second.parameters[name])
