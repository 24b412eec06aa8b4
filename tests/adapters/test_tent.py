"""Tent against torch's own Adam."""

from __future__ import annotations

import torch

from adapters.tent import TentClassifier, TentClassifierSettings
from tests.adapters.classifier import classifier, run, stream


def test_three_batches_equal_plain_entropy_minimisation_with_adam() -> None:
    model, method = classifier(), TentClassifier(TentClassifierSettings(learning_rate=0.01))
    state, results = run(model, method, method.initial_state(model), stream(3))
    leaves = {name: model.weights[name].clone().requires_grad_() for name in model.groups["norms"]}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for inputs, result in zip(stream(3), results, strict=True):
        logits = model.forward(inputs, leaves).logits
        loss = torch.distributions.Categorical(logits=logits).entropy().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.testing.assert_close(result.answer.answered, logits.detach())
        torch.testing.assert_close(result.outcome.losses["entropy"], float(loss.detach()))
    for name, value in leaves.items():
        torch.testing.assert_close(state.parameters[name], value.detach())


def test_it_answers_from_before_the_update_and_early() -> None:
    model, method = classifier(), TentClassifier(TentClassifierSettings(learning_rate=0.05))
    state = method.initial_state(model)
    inputs = stream(1)[0]
    expected = method.predict(model, state, inputs)
    _, (result,) = run(model, method, state, [inputs])
    assert result.answer.status == "applying"
    torch.testing.assert_close(result.answer.answered, expected)
