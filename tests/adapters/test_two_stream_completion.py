from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.classification import TwoStream
from adapters.completion import Completion
from adapters.registry import CLASSIFY_METHODS, make_classify_method
from adapters.state import AdaptationState
from adapters.two_stream_completion import (
    CompletedTwoStream,
    compare_missing,
    fit_parts,
    parts_of,
    representations,
)
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae
from tests.adapters.classifier import C, adapt_one, classifier, run, run_to_end, samples, stream

every_method = pytest.mark.parametrize("name", list(CLASSIFY_METHODS))
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
each_modality = pytest.mark.parametrize("hidden", ["audio", "video"])


def own_completion(model: CavMae) -> Completion:
    assert model.calibration is not None
    completion: Completion = model.calibration.completion
    return completion


def completed(dtype: torch.dtype = torch.float64, **more: Any) -> CompletedTwoStream:
    return CompletedTwoStream(classifier(dtype), own_completion(classifier(dtype)), **more)


def lacking(inputs: AVInputs, hidden: str) -> AVInputs:
    return replace(inputs, **{hidden: None})


def learned(name: str, dtype: torch.dtype = torch.float64) -> AdaptationState:
    model, method = classifier(dtype), make_classify_method(name)
    return run(model, method, method.initial_state(model), stream(3, dtype=dtype))[0]


@every_method
@every_dtype
def test_complete_samples_are_answered_bit_for_bit_as_by_the_model(name: str, dtype: torch.dtype) -> None:
    method, state = make_classify_method(name), learned(name, dtype)
    inputs = samples(7, dtype=dtype)
    mine = method.predict(completed(dtype), state, inputs)
    assert torch.equal(mine, method.predict(classifier(dtype), state, inputs))


@every_method
def test_complete_samples_teach_exactly_what_they_teach_with_the_model_alone(name: str) -> None:
    method = make_classify_method(name)
    state = method.initial_state(classifier())
    plain = adapt_one(classifier(), method, state.clone(), samples(7))
    wrapped = adapt_one(completed(), method, state.clone(), samples(7))
    assert torch.equal(plain.answer.answered, wrapped.answer.answered)
    assert (plain.outcome.state is None) == (wrapped.outcome.state is None)
    if plain.outcome.state is not None and wrapped.outcome.state is not None:
        for key, value in plain.outcome.state.parameters.items():
            assert torch.equal(value, wrapped.outcome.state.parameters[key]), key


@every_method
@each_modality
def test_every_method_predicts_from_what_is_imputed(name: str, hidden: str) -> None:
    """Other answers than on the model's own path, finite ones, and the state is only read."""
    method, state = make_classify_method(name), learned(name)
    before = {key: value.clone() for key, value in state.parameters.items()}
    inputs = lacking(samples(7), hidden)
    imputed = method.predict(completed(), state, inputs)
    own = method.predict(completed(imputes=False), state, inputs)
    assert imputed.shape == (8, C)
    assert bool(imputed.isfinite().all())
    assert not torch.allclose(imputed, own)
    assert torch.equal(own, method.predict(classifier(), state, inputs))
    assert all(torch.equal(value, before[key]) for key, value in state.parameters.items())


@each_modality
def test_imputed_answer_is_the_heads_of_the_completed_feature(hidden: str) -> None:
    model = classifier()
    inputs = lacking(samples(7), hidden)
    there = representations(model, inputs)
    assert set(there) == {"audio", "video"} - {hidden}
    fused = own_completion(model).complete(there).embeddings["fused"]
    found = completed().forward(inputs)
    assert torch.equal(found.pooled, fused)
    assert torch.equal(found.logits, model.head(fused)[0])


def test_representations_are_the_towers_last_features_and_what_the_head_reads() -> None:
    model, inputs = classifier(), samples(7)
    found = representations(model, inputs)
    embedded = model.embed(inputs)
    for name in ("audio", "video"):
        features = model.tower(name, embedded[name], features=True).features
        assert features is not None
        assert torch.equal(found[name], features[:, -1])
    assert torch.equal(found["fused"], model.forward(inputs).pooled)


@each_modality
def test_adapted_values_and_prompts_reach_what_is_imputed(hidden: str) -> None:
    model, inputs = classifier(), lacking(samples(7), hidden)
    weight = model.weights["blocks_a.0.norm1.weight" if hidden == "video" else "blocks_v.0.norm1.weight"]
    name = next(name for name, value in model.weights.items() if value is weight)
    value = weight.clone().requires_grad_()
    prompts = {m: torch.zeros(3, 2, 16, dtype=torch.float64, requires_grad=True) for m in ("audio", "video")}
    completed().forward(inputs, {name: value}, prompts).logits.square().sum().backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None
    assert float(value.grad.abs().sum()) > 0
    for modality, prompt in prompts.items():
        assert (prompt.grad is None) == (modality == hidden)


@every_method
@pytest.mark.parametrize("hidden", ["audio", "video", ""])
def test_what_a_batch_showed_on_the_way_is_what_it_has(name: str, hidden: str) -> None:
    """However a method passes through the model: the source's parts, seen before anything was learned."""
    method = make_classify_method(name)
    inputs = lacking(samples(7), hidden) if hidden else samples(7)
    if hidden and not method.takes_incomplete:
        model = completed()
        method.predict(model, method.initial_state(classifier()), inputs)
    else:
        model = completed()
        adapt_one(model, method, method.initial_state(classifier()), inputs)
    wanted = representations(classifier(), inputs)
    assert set(model.seen) == set(wanted)
    for part, value in wanted.items():
        if name != "brimpr":  # its prompts are before the tokens from the start
            torch.testing.assert_close(model.seen[part], value)
        assert not model.seen[part].requires_grad
    novelty = model.novelty()
    assert novelty is not None
    assert novelty.shape == (8,)
    assert bool(((novelty >= 0) & (novelty <= 1)).all())


def test_brimpr_shows_its_parts_while_it_learns() -> None:
    method, model = make_classify_method("brimpr"), completed()
    adapt_one(model, method, method.initial_state(classifier()), samples(7))
    predicted = completed()
    method.predict(predicted, method.initial_state(classifier()), samples(7))
    for part, value in predicted.seen.items():
        torch.testing.assert_close(model.seen[part], value)


def test_nothing_is_known_of_a_batch_that_did_not_pass() -> None:
    assert completed().novelty() is None


def test_samples_unlike_all_clean_ones_are_novel() -> None:
    model = completed()
    model.forward(samples(7, shift=40.0))
    novelty = model.novelty()
    assert novelty is not None
    assert float(novelty.min()) == 1.0


def test_input_that_is_not_finite_stays_with_its_sample() -> None:
    inputs = lacking(samples(7), "video")
    assert inputs.audio is not None
    inputs.audio[2, 0, 0] = torch.nan
    model = completed()
    logits = model.forward(inputs).logits
    assert logits.isfinite().all(1).tolist() == [row != 2 for row in range(8)]
    novelty = model.novelty()
    assert novelty is not None
    assert float(novelty[2]) == 1.0


def test_model_is_a_two_stream_for_the_type_checker_and_for_methods() -> None:
    model: TwoStream = completed()
    for name in CLASSIFY_METHODS:
        make_classify_method(name).check(model)


# -- measuring --------------------------------------------------------------------------------------


def test_parts_of_incomplete_samples_are_zero_and_said_to_be_missing() -> None:
    batches = [samples(1, 4), lacking(samples(2, 3), "audio"), lacking(samples(3, 2), "video")]
    parts, there = parts_of(classifier(), batches)
    assert there["audio"].tolist() == [True] * 4 + [False] * 3 + [True] * 2
    assert there["video"].tolist() == [True] * 7 + [False] * 2
    assert there["fused"].tolist() == [True] * 4 + [False] * 5
    for name, rows in parts.items():
        assert rows.shape == (9, 16)
        assert bool((rows[~there[name]] == 0).all())
    with pytest.raises(ValueError, match="no samples"):
        parts_of(classifier(), [])


def test_fit_uses_incomplete_samples_too() -> None:
    batches = [samples(1, 30), lacking(samples(2, 5), "audio")]
    completion = run_to_end(fit_parts(*parts_of(classifier(), batches), latent=3))
    assert completion.modalities == ("audio", "video", "fused")
    assert (completion.about["samples"], completion.about["complete_samples"]) == (35, 30)
    assert completion.unit is False
    assert completion.spreads is None


def test_comparison_counts_who_is_right() -> None:
    """Labels are what each way answers, of 8 samples for the model and of 8 others for imputation."""
    model, completion = classifier(), own_completion(classifier())

    def answered(how: Any, inputs: AVInputs, hidden: str) -> Tensor:
        labels: Tensor = how.forward(lacking(inputs, hidden)).logits.argmax(-1)
        return labels

    first, second = samples(7), samples(8)
    labels = [answered(model, first, "audio"), answered(completed(), second, "audio")]
    found = compare_missing(model, completion, [(first, labels[0]), (second, labels[1])])
    assert found["audio"]["samples"] == found["video"]["samples"] == 16
    agreeing = [
        int((answered(how, inputs, hidden) == label).sum())
        for hidden in ("audio", "video")
        for how in (model, completed())
        for inputs, label in zip((first, second), labels, strict=True)
    ]
    assert agreeing[0] == agreeing[3] == 8
    assert found["audio"]["model"] == sum(agreeing[0:2]) / 16
    assert found["audio"]["imputation"] == sum(agreeing[2:4]) / 16
    assert found["video"]["model"] == sum(agreeing[4:6]) / 16
    assert found["video"]["imputation"] == sum(agreeing[6:8]) / 16
    assert compare_missing(model, completion, []) == {}
