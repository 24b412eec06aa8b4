"""DeYO's two filters, its weights and its random numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from adapters.classification import Modality
from adapters.deyo import DeYOClassifier, DeYOClassifierSettings
from adapters.losses import softmax_entropy
from adapters.selection import shuffle_patches
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae
from tests.adapters.classifier import CONFIG, C, classifier, run, small_weights, stream
from tests.adapters.streams import assert_identical, everything


def drawn(modality: Modality, shape: tuple[int, int]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(modality) + ord(modality[0])))


def test_one_batch_equals_the_plain_formula() -> None:
    model = classifier()
    method = DeYOClassifier(DeYOClassifierSettings(learning_rate=0.01, plpd_threshold=0.05), noise=drawn)
    (inputs,) = stream(1)
    state, (result,) = run(model, method, method.initial_state(model), [inputs])
    leaves = {name: model.weights[name].clone().requires_grad_() for name in model.groups["early_norms"]}
    logits = model.forward(inputs, leaves).logits
    entropy = softmax_entropy(logits)
    sure = [row for row in range(8) if entropy[row] < 0.5 * math.log(C)]
    assert inputs.audio is not None
    assert inputs.video is not None
    corrupted = AVInputs(
        shuffle_patches(inputs.audio[sure][:, None], drawn("audio", (len(sure), 16)))[:, 0],
        shuffle_patches(inputs.video[sure], drawn("video", (len(sure), 16))),
    )
    before, behind = logits[sure].softmax(1).detach(), model.forward(corrupted).logits.softmax(1)
    terms = []
    for place, row in enumerate(sure):
        predicted = int(before[place].argmax())
        drop = float(before[place, predicted] - behind[place, predicted])
        if drop > 0.05:
            weight = math.exp(0.4 * math.log(C) - float(entropy[row].detach())) + math.exp(drop)
            terms.append(weight * entropy[row])
    assert 0 < len(terms) < len(sure) < 8
    loss = torch.stack(terms).mean()
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    loss.backward()
    adam.step()
    for name, leaf in leaves.items():
        torch.testing.assert_close(state.parameters[name], leaf.detach())
    losses = result.outcome.losses
    assert (losses["sure"], losses["selected"]) == (len(sure), len(terms))
    torch.testing.assert_close(losses["total"], float(loss.detach()))


class Counting(CavMae):
    """Counts the samples of every forward."""

    def forward(self, inputs: Any, *arguments: Any, **named: Any) -> Any:
        self.passed = [*getattr(self, "passed", []), len(inputs)]
        return super().forward(inputs, *arguments, **named)


def test_only_sure_samples_are_passed_again() -> None:
    model, method = Counting(CONFIG, small_weights(), dtype=torch.float64), DeYOClassifier()
    _, (result,) = run(model, method, method.initial_state(model), stream(1))
    assert model.passed == [8, int(result.outcome.losses["sure"])]
    assert model.passed[1] < 8


def test_without_a_sure_sample_nothing_is_drawn_and_nothing_changes() -> None:
    model = Counting(CONFIG, small_weights(), dtype=torch.float64)
    method = DeYOClassifier(DeYOClassifierSettings(deyo_fraction=1e-6))
    state = method.initial_state(model)
    before = everything(state)
    after, (result,) = run(model, method, state, stream(1))
    assert (result.outcome.status, result.outcome.reason) == ("skipped", "no sample is sure")
    assert model.passed == [8]
    assert_identical(after, {**before, "batches": 1})


def test_where_no_sample_rests_on_shapes_only_the_draw_is_counted() -> None:
    model, method = classifier(), DeYOClassifier(DeYOClassifierSettings(plpd_threshold=1.0))
    state = method.initial_state(model)
    before = everything(state)
    after, (result,) = run(model, method, state, stream(1))
    assert result.outcome.reason == "no sure sample rests on shapes"
    assert result.answer.status == "skipped"
    assert_identical(after, {**before, "batches": 1, "numbers/draws": 1})


def test_the_seed_decides_and_batches_draw_anew() -> None:
    model, (inputs,) = classifier(), stream(1)
    drops = []
    for seed in (0, 0, 1):
        method = DeYOClassifier(DeYOClassifierSettings(seed=seed, plpd_threshold=-1, learning_rate=1e-12))
        _, results = run(model, method, method.initial_state(model), [inputs, inputs])
        drops.append([result.outcome.losses["drop"] for result in results])
    assert drops[0] == drops[1]
    assert drops[0] != drops[2]
    assert drops[0][0] != drops[0][1]
