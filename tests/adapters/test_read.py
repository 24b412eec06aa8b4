"""READ against the plain formula, and how few passes it takes."""

from __future__ import annotations

from typing import Any

import torch

from adapters.losses import balance_entropy, reliable_confidence
from adapters.read import READClassifier, READClassifierSettings
from encoders.cav_mae import CavMae
from tests.adapters.classifier import CONFIG, classifier, run, small_weights, stream


def test_two_batches_equal_the_plain_formula_and_answer_after_the_update() -> None:
    model, method = classifier(), READClassifier(READClassifierSettings(learning_rate=0.01))
    state, results = run(model, method, method.initial_state(model), stream(2))
    leaves = {name: model.weights[name].clone().requires_grad_() for name in model.groups["joint_attention"]}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for inputs, result in zip(stream(2), results, strict=True):
        p = model.forward(inputs, leaves).logits.softmax(1)
        largest = p.max(1).values
        confidence = (largest * (1 - largest.log() + torch.log(torch.tensor(torch.e**-1)))).mean()
        summed = p.sum(0).softmax(0)
        balance = -(summed * summed.log()).sum()
        adam.zero_grad()
        (confidence - balance).backward()
        adam.step()
        torch.testing.assert_close(result.answer.answered, model.forward(inputs, leaves).logits.detach())
        torch.testing.assert_close(
            result.outcome.losses["confidence"], float(confidence.detach()), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(result.outcome.losses["balance"], float(balance.detach()))
    for name, leaf in leaves.items():
        torch.testing.assert_close(state.parameters[name], leaf.detach())


def test_queries_keys_and_values_of_the_joint_block_are_what_learns() -> None:
    state = READClassifier().initial_state(classifier())
    assert list(state.parameters) == ["blocks_u.0.attn.qkv.weight", "blocks_u.0.attn.qkv.bias"]


class Counting(CavMae):
    """Counts the passes through each tower."""

    def tower_packed(self, modality: Any, *arguments: Any, **named: Any) -> Any:
        self.passed = [*getattr(self, "passed", []), modality]
        return super().tower_packed(modality, *arguments, **named)


def test_the_towers_are_passed_once() -> None:
    model, method = Counting(CONFIG, small_weights()), READClassifier()
    run(model, method, method.initial_state(model), stream(1, dtype=torch.float32))
    assert model.passed == ["audio", "video"]


def test_sure_rows_are_confident_and_even_batches_are_balanced() -> None:
    """One-hot rows: -m log m = 0. Every class once: the summed probabilities are even, H = log 3."""
    sure = torch.eye(3, dtype=torch.float64) * 1000
    assert float(reliable_confidence(sure)) == 0
    torch.testing.assert_close(float(balance_entropy(sure)), float(torch.tensor(3.0).double().log()))
    even = torch.zeros(2, 4, dtype=torch.float64)
    torch.testing.assert_close(float(reliable_confidence(even)), float(torch.tensor(4.0).double().log()) / 4)
