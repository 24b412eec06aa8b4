"""What every registered method of classification keeps to, whatever it does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters.base import BadSettings
from adapters.classification import Answer, CalibrationMissing
from adapters.registry import CLASSIFY_METHODS, make_classify_method
from adapters.state import AdaptationState, pack_states, unpack_states
from adapters.validation import check_classifier_state
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae, fresh_weights
from tests.adapters.classifier import (
    CONFIG,
    C,
    adapt_one,
    classifier,
    run,
    samples,
    small_weights,
    stream,
)
from tests.adapters.streams import assert_identical, everything

every_method = pytest.mark.parametrize("name", list(CLASSIFY_METHODS))
adapting = pytest.mark.parametrize(
    "name", [name for name in CLASSIFY_METHODS if make_classify_method(name).adapts]
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def after(name: str, batches: int = 3, dtype: torch.dtype = torch.float64) -> AdaptationState:
    model, method = classifier(dtype), make_classify_method(name)
    return run(model, method, method.initial_state(model), stream(batches, dtype=dtype))[0]


def lacking(inputs: AVInputs, modality: str) -> AVInputs:
    return AVInputs(
        None if modality == "audio" else inputs.audio, None if modality == "video" else inputs.video
    )


@every_method
def test_its_name_is_the_registered_one(name: str) -> None:
    method = make_classify_method(name)
    assert method.name == name
    assert isinstance(method.settings, CLASSIFY_METHODS[name].settings)
    assert CLASSIFY_METHODS[name].summary
    assert all(field.description for field in CLASSIFY_METHODS[name].settings.model_fields.values())


@every_method
def test_what_it_needs_of_the_calibration_is_asked_for(name: str) -> None:
    method, model = make_classify_method(name), CavMae(CONFIG, small_weights())
    if method.needs:
        with pytest.raises(CalibrationMissing, match=" and ".join(sorted(method.needs))):
            method.check(model)
    else:
        method.check(model)
    method.check(classifier())


@every_method
@every_dtype
def test_the_models_weights_and_calibration_are_never_written(name: str, dtype: torch.dtype) -> None:
    model = classifier(dtype)
    before = {weight: value.clone() for weight, value in model.weights.items()}
    assert model.calibration is not None
    fisher = {weight: value.clone() for weight, value in (model.calibration.fisher or {}).items()}
    state = after(name, dtype=dtype)
    make_classify_method(name).predict(model, state, samples(40, dtype=dtype))
    for weight, value in model.weights.items():
        assert torch.equal(value, before[weight]), weight
        assert not value.requires_grad
        assert value.grad is None
    for weight, value in (model.calibration.fisher or {}).items():
        assert torch.equal(value, fisher[weight]), weight


@every_method
def test_the_source_state_shares_nothing_with_the_model(name: str) -> None:
    model, method = classifier(), make_classify_method(name)
    before = {weight: value.clone() for weight, value in model.weights.items()}
    state = method.initial_state(model)
    assert (state.method, state.fingerprint, state.version, state.batches) == (name, model.fingerprint, 0, 0)
    for value in [*state.parameters.values(), *state.tensors.values()]:
        assert not value.requires_grad
        value.add_(1)
    assert all(torch.equal(value, before[weight]) for weight, value in model.weights.items())


@every_method
@every_dtype
def test_its_answers_are_logits_of_every_sample(name: str, dtype: torch.dtype) -> None:
    model, method = classifier(dtype), make_classify_method(name)
    _, results = run(model, method, method.initial_state(model), stream(3, dtype=dtype))
    for result in results:
        assert result.answer.answered.shape == (8, C)
        assert result.answer.answered.dtype == dtype
        assert not result.answer.answered.requires_grad
        assert torch.isfinite(result.answer.answered).all()


@every_method
def test_a_model_in_half_precision_is_adapted_in_single(name: str) -> None:
    model, method = classifier(torch.bfloat16), make_classify_method(name)
    batches = stream(3, dtype=torch.float32)
    state, results = run(model, method, method.initial_state(model), batches)
    for result in results:
        assert result.answer.answered.dtype == torch.float32
        assert torch.isfinite(result.answer.answered).all()
        assert result.outcome.status != "undone"
    optimizer = state.optimizer
    for value in [*state.parameters.values(), *optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values()]:
        assert value.dtype == torch.float32


@adapting
def test_the_answer_comes_once_and_owes_nothing_to_an_update_that_follows(name: str) -> None:
    model, method = classifier(), make_classify_method(name)
    state = method.initial_state(model)
    for inputs in stream(4):
        working = state.clone()
        for value in working.parameters.values():
            value.requires_grad_(True)
        slices, given = method.adapt(model, working, inputs), []
        while True:
            try:
                given.append(next(slices))
            except StopIteration as ended:
                report = ended.value
                break
        (answer,) = [found for found in given if isinstance(found, Answer)]
        assert all(found is None for found in given if found is not answer)
        assert report.applied or report.reason
        if answer.learns:  # it came before the update, which did follow
            assert report.applied
            torch.testing.assert_close(answer.logits, method.predict(model, state, inputs))
        working.batches += 1
        state = working.clone()


@adapting
def test_gradients_stay_within_the_state(name: str) -> None:
    model, method = classifier(), make_classify_method(name)
    state, _ = run(model, method, method.initial_state(model), stream(2))
    held = {*state.optimizer.steps, *state.optimizer.exp_avg, *state.optimizer.exp_avg_sq}
    assert held <= set(state.parameters)
    for value in everything(state).values():
        if isinstance(value, torch.Tensor):
            assert not value.requires_grad
            assert value.grad_fn is None


@every_method
def test_adapting_works_on_a_clone(name: str) -> None:
    model, method = classifier(), make_classify_method(name)
    state = after(name, 1)
    before = everything(state)
    result = adapt_one(model, method, state, samples(41))
    assert_identical(state, before)
    assert result.outcome.state is not state


@every_method
def test_every_batch_is_counted_and_applied_ones_raise_the_version(name: str) -> None:
    model, method = classifier(), make_classify_method(name)
    state, results = run(model, method, method.initial_state(model), stream(4))
    applied = [result.outcome.status for result in results].count("applied")
    assert state.batches == 4
    assert state.version == applied == len(state.applied_batches)
    assert (applied > 0) == method.adapts


@adapting
def test_an_adapting_method_changes_its_answers(name: str) -> None:
    model, method = classifier(), make_classify_method(name)
    source = method.predict(model, method.initial_state(model), samples(42))
    assert not torch.equal(method.predict(model, after(name), samples(42)), source)


@every_method
def test_the_same_stream_gives_the_same_state_bit_for_bit(name: str) -> None:
    assert_identical(after(name), after(name))


@every_method
def test_a_reset_is_a_fresh_stream(name: str) -> None:
    """A reset is a new source state: the method itself remembers nothing."""
    model, method = classifier(), make_classify_method(name)
    run(model, method, method.initial_state(model), stream(4, first=60))
    state, _ = run(model, method, method.initial_state(model), stream(3))
    assert_identical(state, after(name))


@every_method
@every_dtype
def test_packing_and_unpacking_is_exact_and_continues_exactly(name: str, dtype: torch.dtype) -> None:
    model, method = classifier(dtype), make_classify_method(name)
    state = after(name, dtype=dtype)
    states, _ = unpack_states(pack_states({"track": state}, header={}))
    assert_identical(states["track"], state)
    rest = stream(3, first=3, dtype=dtype)
    unbroken, expected = run(model, method, state, rest)
    continued, found = run(model, method, states["track"], rest)
    assert_identical(continued, unbroken)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.answer.answered, other.answer.answered)


@every_method
def test_its_states_pass_the_check_of_states_from_outside(name: str) -> None:
    model, method = classifier(), make_classify_method(name)
    check_classifier_state(method.initial_state(model), model, method)
    check_classifier_state(after(name, 4), model, method)


@every_method
@pytest.mark.parametrize("lacks", ["nothing", "audio", "video"])
def test_predicting_reads_only_and_does_without_a_modality(name: str, lacks: str) -> None:
    model, method = classifier(), make_classify_method(name)
    inputs = lacking(samples(43), lacks)
    for state in (method.initial_state(model), after(name)):
        before = everything(state)
        logits = method.predict(model, state, inputs)
        assert logits.shape == (8, C)
        assert torch.isfinite(logits).all()
        assert not logits.requires_grad
        assert_identical(state, before)
        torch.testing.assert_close(method.predict(model, state, inputs[torch.arange(1)]), logits[:1])


@every_method
@pytest.mark.parametrize("lacks", ["audio", "video"])
def test_samples_without_a_modality_are_answered_and_learned_from_where_the_method_takes_them(
    name: str, lacks: str
) -> None:
    model, method = classifier(), make_classify_method(name)
    state = after(name)
    result = adapt_one(model, method, state, lacking(samples(44), lacks))
    assert torch.isfinite(result.answer.answered).all()
    torch.testing.assert_close(
        result.answer.answered, method.predict(model, state, lacking(samples(44), lacks))
    )
    if method.takes_incomplete:
        assert result.outcome.status == "applied"
        assert result.outcome.state is not None
        return
    assert (result.outcome.status, result.outcome.state) == ("skipped", None)
    assert lacks in result.outcome.reason


@every_method
@every_dtype
@pytest.mark.parametrize("size", [1, 2, 17])
def test_batches_of_any_size_are_answered(name: str, dtype: torch.dtype, size: int) -> None:
    model, method = classifier(dtype), make_classify_method(name)
    batches = [samples(seed, size, dtype) for seed in range(3)]
    state, results = run(model, method, method.initial_state(model), batches)
    for result in results:
        assert result.answer.answered.shape == (size, C)
        assert torch.isfinite(result.answer.answered).all()
        assert result.outcome.status != "undone"
    assert all(torch.isfinite(v).all() for v in everything(state).values() if isinstance(v, torch.Tensor))


@adapting
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [slice(3, 4), slice(None)])
def test_input_that_is_not_finite_is_reported_and_does_no_damage(name: str, bad: float, rows: slice) -> None:
    model, method = classifier(), make_classify_method(name)
    state = after(name)
    before = everything(state)
    inputs = samples(45)
    assert inputs.audio is not None
    inputs.audio[rows, 2] = bad
    working = state.clone()
    for value in working.parameters.values():
        value.requires_grad_(True)
    slices = method.adapt(model, working, inputs)
    report = None
    while report is None:
        try:
            next(slices)
        except StopIteration as ended:
            report = ended.value
    assert report.finite is not None
    assert not bool(report.finite)
    result = adapt_one(model, method, state, inputs)
    assert (result.outcome.status, result.outcome.state) == ("undone", None)
    assert_identical(state, before)
    later, _ = run(model, method, state, stream(1, first=50))
    assert all(torch.isfinite(v).all() for v in everything(later).values() if isinstance(v, torch.Tensor))


@every_method
def test_settings_cannot_be_changed_afterwards(name: str) -> None:
    settings = make_classify_method(name).settings
    for field in type(settings).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(settings, field, 1)


@pytest.mark.parametrize("name", ["sar", "deyo"])
def test_a_model_too_small_to_have_what_a_method_adapts_is_refused(name: str) -> None:
    config = replace(CONFIG, depth=2)
    small = CavMae(config, fresh_weights(config))
    with pytest.raises(BadSettings, match="2 blocks"):
        make_classify_method(name).check(small)
