"""EATA's selection, average and Fisher penalty."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adapters.base import BadSettings
from adapters.classification import CalibrationMissing
from adapters.eata import EATAClassifier, EATAClassifierSettings
from adapters.losses import anchor_penalty, softmax_entropy
from adapters.registry import make_classify_method
from encoders.cav_mae import CavMae
from tests.adapters.classifier import CONFIG, C, classifier, run, samples, small_weights, stream
from tests.adapters.streams import assert_identical, everything

AVERAGE = "probability_average"


def entropies(logits: Tensor) -> Tensor:
    return softmax_entropy(logits) / math.log(C)


def test_only_sure_samples_enter_the_first_average() -> None:
    model, method = classifier(), EATAClassifier()
    inputs = stream(1)[0]
    logits = model.forward(inputs).logits
    sure = entropies(logits) < 0.4
    assert 0 < int(sure.sum()) < len(sure)
    state, (result,) = run(model, method, method.initial_state(model), [inputs])
    assert result.outcome.losses["selected"] == int(sure.sum())
    torch.testing.assert_close(state.tensors[AVERAGE], logits[sure].softmax(-1).mean(0))


def test_samples_like_the_average_are_not_learned_from_again() -> None:
    model, method = classifier(), EATAClassifier()
    inputs = stream(1)[0]
    state, results = run(model, method, method.initial_state(model), [inputs, inputs])
    assert [result.outcome.status for result in results] == ["applied", "skipped"]
    assert "no sample" in results[1].outcome.reason
    assert results[1].answer.status == "skipped"
    assert state.version == 1


def test_a_batch_without_a_sure_sample_changes_nothing_but_the_count() -> None:
    model, method = classifier(), EATAClassifier(EATAClassifierSettings(entropy_fraction=1e-6))
    state = method.initial_state(model)
    before = everything(state)
    after, (result,) = run(model, method, state, stream(1))
    assert result.outcome.status == "skipped"
    assert_identical(after, {**before, "batches": 1})


def test_the_average_keeps_nine_tenths() -> None:
    model, method = (
        classifier(),
        EATAClassifier(EATAClassifierSettings(d_margin=1.1, learning_rate=1e-12, fisher_alpha=0)),
    )
    one, other = stream(2)
    state, _ = run(model, method, method.initial_state(model), [one])
    first = state.tensors[AVERAGE].clone()
    state, _ = run(model, method, state, [other])
    logits = model.forward(other).logits
    new = logits[entropies(logits) < 0.4].softmax(-1).mean(0)
    torch.testing.assert_close(state.tensors[AVERAGE], 0.9 * first + 0.1 * new)


def test_the_penalty_is_the_weighted_squared_way_from_the_source() -> None:
    """2 * (3 - 1)^2 + 5 * (1 - 2)^2 = 13; `b` has no importance."""
    parameters = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([9.0])}
    anchors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0])}
    assert float(anchor_penalty(parameters, anchors, {"a": torch.tensor([2.0, 5.0])})) == 13
    with pytest.raises(ValueError, match="importance"):
        anchor_penalty(parameters, anchors, {})


def test_a_large_penalty_holds_the_weights_at_the_source() -> None:
    model = classifier()
    moved = []
    for alpha in (0.0, 1e6):
        method = EATAClassifier(EATAClassifierSettings(fisher_alpha=alpha, d_margin=1.1, learning_rate=0.01))
        state, _ = run(model, method, method.initial_state(model), stream(8))
        ways = [(value - model.weights[name]).square().sum() for name, value in state.parameters.items()]
        moved.append(float(sum(ways)))
    assert moved[1] < moved[0] / 2


def test_without_a_penalty_no_calibration_is_needed() -> None:
    bare = CavMae(CONFIG, small_weights(), dtype=torch.float64)
    with pytest.raises(CalibrationMissing, match="fisher"):
        EATAClassifier().check(bare)
    method = EATAClassifier(EATAClassifierSettings(fisher_alpha=0))
    assert method.needs == frozenset()
    method.check(bare)
    _, (result,) = run(bare, method, method.initial_state(bare), [samples(0, shift=0.5)])
    assert result.outcome.status == "applied"


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"entropy_fraction": 0}, {"d_margin": 2}, {"fisher_alpha": -1}, {"average_momentum": 1}):
        with pytest.raises(BadSettings):
            make_classify_method("eata", settings)
