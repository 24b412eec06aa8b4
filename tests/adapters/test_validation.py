"""Completions in states that come from outside: what fits is taken, whatever was tampered with is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters.base import StateMismatch
from adapters.calmrl import CalMRL, CalMRLClassifier
from adapters.completion import Completion, remember
from adapters.latent import LatentModel, Loading
from adapters.registry import make_classify_method, make_method
from adapters.state import AdaptationState
from adapters.validation import check_classifier_state, check_state
from tests.adapters import classifier as av
from tests.adapters.streams import D, batch, completing_tower, run, start


@pytest.fixture
def state() -> AdaptationState:
    """Of calmrl, after complete batches."""
    tower, method = completing_tower(), CalMRL()
    return run(method, start(method, tower), [batch(0), batch(1)], tower)[0]


def check(state: AdaptationState, dimension: int = D) -> None:
    check_state(state, fingerprint="small", parameters=completing_tower().parameters, dimension=dimension)


def widened(count: int) -> Completion:
    """A latent of this size, most of it empty."""
    given = completing_tower().completion
    assert given is not None
    loadings = tuple(Loading(torch.zeros(D, count).double(), p.mean, p.noise) for p in given.model.loadings)
    return replace(given, model=LatentModel(loadings), statistics=())


@pytest.mark.parametrize("name", ["source", "tcr", "tcr_untrain", "calmrl"])
def test_a_state_of_any_method_may_carry_a_completion(name: str) -> None:
    tower, method = completing_tower(), make_method(name)
    carrying = start(method, tower)
    remember(carrying, tower.completion)
    check(carrying)
    check(run(method, carrying, [batch(0), batch(1)], tower)[0])


def test_a_latent_of_all_features_is_the_largest(state: AdaptationState) -> None:
    remember(state, widened(2 * D))
    check(state)
    remember(state, widened(2 * D + 1))
    with pytest.raises(StateMismatch, match="larger than what it is of"):
        check(state)


def _without_unit(state: AdaptationState) -> None:
    del state.numbers["latent.unit"]


def _not_unit(state: AdaptationState) -> None:
    state.numbers["latent.unit"] = 0.0


def _half_a_batch(state: AdaptationState) -> None:
    state.numbers["latent.batches"] = 0.5


def _before_the_first_batch(state: AdaptationState) -> None:
    state.numbers["latent.batches"] = -1.0


def _numbers_alone(state: AdaptationState) -> None:
    state.tensors = {name: value for name, value in state.tensors.items() if not name.startswith("latent/")}


def _without(name: str) -> Callable[[AdaptationState], None]:
    def spoil(state: AdaptationState) -> None:
        del state.tensors[name]

    return spoil


def _changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[AdaptationState], None]:
    def spoil(state: AdaptationState) -> None:
        state.tensors[name] = change(state.tensors[name])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_without_unit, "lacks its numbers"),
        (_not_unit, "another kind of model"),
        (_half_a_batch, "natural number"),
        (_before_the_first_batch, "natural number"),
        (_numbers_alone, "features of image"),
        (_without("latent/text/weight"), "features of text"),
        (_without("latent/novelty"), "novelty"),
        (_changed("latent/text/mean", lambda t: t[:-1]), "latent/text/mean"),
        (_changed("latent/image/weight", lambda t: t[0]), "features of image"),
        (_changed("latent/image/weight", lambda t: t.float()), "64-bit"),
        (_changed("latent/image/weight", lambda t: t * float("nan")), "not finite"),
        (_changed("latent/image/weight", lambda t: t * 1e200), "too large"),
        (_changed("latent/image/noise", lambda t: -t), "not positive"),
        (_changed("latent/text/spread.directions", lambda t: t.repeat(1, 9)), "larger than what it is of"),
        (_changed("latent/text/spread.directions", lambda t: t * 1e200), "makes no numbers"),
    ],
)
def test_a_completion_that_was_tampered_with_is_refused(
    state: AdaptationState, spoil: Callable[[AdaptationState], None], why: str
) -> None:
    check(state)
    spoil(state)
    with pytest.raises(StateMismatch, match=why):
        check(state)


def test_an_unknown_modality_is_refused(state: AdaptationState) -> None:
    state.tensors["latent/sound/weight"] = torch.zeros(D, 4).double()
    with pytest.raises(StateMismatch, match="unknown tensor"):
        check(state)


def test_a_completion_of_another_dimension_is_refused(state: AdaptationState) -> None:
    with pytest.raises(StateMismatch, match="features"):
        check(state, dimension=D + 1)


@pytest.mark.parametrize("name", ["tent", "brimpr", "t3a", "calmrl"])
def test_a_classifiers_state_may_carry_its_own_completion(name: str) -> None:
    model, method = av.classifier(), make_classify_method(name)
    assert model.calibration is not None
    state = method.initial_state(model)
    remember(state, model.calibration.completion)
    check_classifier_state(state, model, method)


def test_an_encoders_completion_does_not_fit_a_classifier(state: AdaptationState) -> None:
    model, method = av.classifier(), CalMRLClassifier()
    other = method.initial_state(model)
    remember(other, completing_tower().completion)
    with pytest.raises(StateMismatch, match="another kind of model"):
        check_classifier_state(other, model, method)
