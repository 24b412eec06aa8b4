"""SAR against a plain SAM over torch's Adam, and its recovery."""

from __future__ import annotations

import math

import torch

from adapters.losses import softmax_entropy
from adapters.sar import SARClassifier, SARClassifierSettings
from tests.adapters.classifier import C, classifier, run, samples, stream

AVERAGE = "entropy_average"


def test_two_batches_equal_plain_sharpness_aware_adam() -> None:
    model, method = (
        classifier(),
        SARClassifier(SARClassifierSettings(learning_rate=0.01, rho=0.3, entropy_fraction=0.6)),
    )
    state, results = run(model, method, method.initial_state(model), stream(2))
    leaves = {name: model.weights[name].clone().requires_grad_() for name in model.groups["early_norms"]}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    margin, average = 0.6 * math.log(C), None
    for inputs, result in zip(stream(2), results, strict=True):
        logits = model.forward(inputs, leaves).logits
        entropy = softmax_entropy(logits)
        selected = entropy < margin
        entropy[selected].mean().backward()
        norm = torch.sqrt(sum(leaf.grad.square().sum() for leaf in leaves.values()))
        old = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        with torch.no_grad():
            for leaf in leaves.values():
                leaf.add_(0.3 * leaf.grad / (norm + 1e-12))
        adam.zero_grad()
        again = softmax_entropy(model.forward(inputs, leaves).logits)[selected]
        loss = again[again < margin].mean()
        loss.backward()
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(old[name])
        adam.step()
        adam.zero_grad()
        average = float(loss.detach()) if average is None else 0.9 * average + 0.1 * float(loss.detach())
        torch.testing.assert_close(result.answer.answered, logits.detach())
    for name, leaf in leaves.items():
        torch.testing.assert_close(state.parameters[name], leaf.detach())
    assert average is not None
    torch.testing.assert_close(state.numbers[AVERAGE], average)


def test_the_last_blocks_and_what_is_behind_them_stay() -> None:
    model = classifier()
    names = set(SARClassifier().initial_state(model).parameters)
    assert names == {
        f"blocks_{letter}.0.{norm}.{part}"
        for letter in "av"
        for norm in ("norm1", "norm2")
        for part in ("weight", "bias")
    }


def test_without_a_sure_sample_adam_steps_on_its_momentum() -> None:
    """The released code's gradients are zeros then, not absent: the step counts, the momentum acts."""
    model, method = classifier(), SARClassifier(SARClassifierSettings(entropy_fraction=1e-6))
    fresh, (result,) = run(model, method, method.initial_state(model), stream(1))
    assert result.outcome.status == "applied"
    assert result.outcome.losses == {"selected": 0}
    assert AVERAGE not in fresh.numbers
    name = next(iter(fresh.parameters))
    assert float(fresh.optimizer.steps[name]) == 1
    assert torch.equal(fresh.parameters[name], model.weights[name])
    learning = SARClassifier()
    state, _ = run(model, learning, learning.initial_state(model), stream(1))
    later, _ = run(model, method, state, stream(1, first=1))
    assert float(later.optimizer.steps[name]) == 2
    assert not torch.equal(later.parameters[name], state.parameters[name])
    torch.testing.assert_close(later.optimizer.exp_avg[name], 0.9 * state.optimizer.exp_avg[name])
    assert later.numbers == state.numbers


def test_a_collapse_brings_the_source_weights_back_and_keeps_average_and_moments() -> None:
    """As released: the low average stays, so every further batch is taken back too."""
    model, method = classifier(), SARClassifier(SARClassifierSettings(reset_constant=50))
    state, _ = run(model, method, method.initial_state(model), stream(2))
    name = next(iter(state.parameters))
    for parameter, value in state.parameters.items():
        assert torch.equal(value, model.weights[parameter])
    assert state.numbers[AVERAGE] < 50
    assert float(state.optimizer.steps[name]) == 2


def test_average_and_moments_can_be_forgotten_with_the_weights() -> None:
    model = classifier()
    method = SARClassifier(
        SARClassifierSettings(reset_constant=50, ema_clear_on_reset=True, moments_clear_on_reset=True)
    )
    state, _ = run(model, method, method.initial_state(model), stream(2))
    assert state.numbers == {}
    assert state.optimizer.steps == {}
    assert state.version == 2


def test_a_stream_above_the_constant_is_not_taken_back() -> None:
    model, method = classifier(), SARClassifier(SARClassifierSettings(reset_constant=0.01))
    state, _ = run(model, method, method.initial_state(model), [samples(0, shift=0.5)])
    assert any(not torch.equal(value, model.weights[name]) for name, value in state.parameters.items())
