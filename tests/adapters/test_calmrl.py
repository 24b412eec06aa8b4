"""CalMRL as a method: what its losses are, what is constant, and streams that lack whatever they lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.anchors import alignment_loss, anchors_of, instance_loss
from adapters.base import Forward
from adapters.calibration import PARTS
from adapters.calmrl import (
    CalMRL,
    CalMRLClassifier,
    CalMRLClassifierSettings,
    CalMRLSettings,
    held,
    losses,
    rate,
)
from adapters.completion import Completion, fit_completion, remember, remembered
from adapters.latent import LatentModel
from adapters.state import AdaptationState
from adapters.two_stream_completion import CompletedTwoStream, completion_of, representations
from encoders.audiovisual import AVInputs
from tests.adapters import classifier as av
from tests.adapters.streams import (
    adapt_one,
    assert_identical,
    batch,
    completing_tower,
    everything,
    inputs_for,
    run,
    start,
)

ENCODED = ("image", "text")
PATTERNS = ["", "image", "text"]


def three(samples: int = 60, seed: int = 0) -> tuple[Completion, Mapping[str, Tensor]]:
    """A completion of three modalities, and samples of its kind."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    latent = normal(samples, 3)
    parts = {name: latent @ normal(3, 7) + 0.3 * normal(samples, 7) for name in PARTS}
    return av.run_to_end(fit_completion(parts, unit=False, latent=3)), parts


def total(completion: Completion, observed: Mapping[str, Tensor]) -> Tensor:
    columns = completion.views(held(completion.complete(observed)))
    return sum(losses(columns, anchors_of(columns).vectors, CalMRLSettings()).values(), torch.zeros(()))


def turned(completion: Completion, seed: int = 4) -> Completion:
    """The same model with another basis of the latent."""
    random = torch.Generator().manual_seed(seed)
    size = completion.model.latent
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))
    loadings = tuple(replace(part, weight=part.weight @ rotation) for part in completion.model.loadings)
    return replace(completion, model=LatentModel(loadings))


# -- the losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["", "audio", "video", "fused"])
def test_loss_and_gradient_do_not_depend_on_the_latents_basis(lacks: str) -> None:
    completion, parts = three()
    found = []
    for model in (completion, turned(completion)):
        given = {name: part[:5].clone().requires_grad_() for name, part in parts.items() if name != lacks}
        loss = total(model, given)
        found.append((loss.detach(), *torch.autograd.grad(loss, list(given.values()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lacks", ["", "audio", "fused"])
def test_the_gradient_is_that_of_differences(lacks: str) -> None:
    """What is imputed is held fixed in the differences, as it is in the gradient."""
    completion, parts = three()
    given = {name: part[:4].clone().requires_grad_() for name, part in parts.items() if name != lacks}
    completed = completion.complete(given)
    made = {name: completed.embeddings[name].detach() for name in completed.imputed}

    def loss(*values: Tensor) -> Tensor:
        seen = dict(zip(given, values, strict=True))
        every = replace(completed, embeddings={name: {**seen, **made}[name] for name in PARTS})
        columns = completion.views(every)
        return sum(losses(columns, anchors_of(columns).vectors, CalMRLSettings()).values(), torch.zeros(()))

    values = tuple(given.values())
    assert torch.autograd.gradcheck(loss, values)
    for ours, theirs in zip(
        torch.autograd.grad(total(completion, given), values),
        torch.autograd.grad(loss(*values), values),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_sample_alone_learns_by_alignment_only() -> None:
    completion, parts = three()
    columns = completion.views(completion.complete({name: part[:1] for name, part in parts.items()}))
    assert list(losses(columns, anchors_of(columns).vectors, CalMRLSettings())) == ["align"]


def test_what_was_imputed_is_constant() -> None:
    completion, parts = three()
    audio = parts["audio"][:4].clone().requires_grad_()
    completed = completion.complete({"audio": audio})
    assert completed.embeddings["fused"].requires_grad
    kept = held(completed)
    assert [name for name, part in kept.embeddings.items() if part.requires_grad] == ["audio"]


def test_anchors_have_the_gradient_of_differences_and_a_finite_one_where_values_meet() -> None:
    random = torch.Generator().manual_seed(0)
    columns = F.normalize(torch.randn(4, 6, 3, generator=random, dtype=torch.float64), dim=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: anchors_of(z).vectors, (columns,))
    assert torch.autograd.gradcheck(lambda z: anchors_of(z).singular_values, (columns,))
    same = columns[:, :, :1].expand(-1, -1, 3).detach().clone()
    orthogonal = torch.eye(6, 3, dtype=torch.float64).expand(4, -1, -1).clone()
    for given in (same.requires_grad_(), orthogonal.requires_grad_()):
        loss = alignment_loss(given) + instance_loss(anchors_of(given).vectors)
        (gradient,) = torch.autograd.grad(loss, given)
        assert torch.isfinite(gradient).all()


# -- online EM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "samples", "forget", "expected"),
    [(0, 64, None, 7**-0.7), (9, 64, None, 16**-0.7), (0, 1000, 0.05, 0.05), (0, 16, 0.04, 0.01)],
)
def test_the_rate_falls_with_the_batches_and_a_small_batch_moves_less(
    batches: int, samples: int, forget: float | None, expected: float
) -> None:
    completion = replace(three()[0], batches=batches)
    assert rate(completion, samples, forget) == pytest.approx(expected)


def test_complete_batches_teach_the_completion_once_a_batch() -> None:
    tower, method = completing_tower(), CalMRL(CalMRLSettings(steps=3))
    state, _ = run(method, start(method, tower), [batch(0), batch(1)], tower)
    own = remembered(state, ENCODED)
    assert own is not None
    assert own.batches == 2
    assert tower.completion is not None
    assert not torch.equal(own.model.loadings[0].weight, tower.completion.model.loadings[0].weight)


@pytest.mark.parametrize("lacks", ["image", "text"])
def test_what_was_imputed_never_teaches_the_completion(lacks: str) -> None:
    tower, method = completing_tower(), CalMRL()
    result = adapt_one(method, start(method, tower), batch(0), tower, lacks=lacks)
    assert result.outcome.status == "applied"
    assert result.outcome.state is not None
    assert remembered(result.outcome.state, ENCODED) is None


def test_the_completion_can_be_told_not_to_learn() -> None:
    tower, method = completing_tower(), CalMRL(CalMRLSettings(online=False))
    state, _ = run(method, start(method, tower), [batch(0)], tower)
    assert remembered(state, ENCODED) is None


def test_a_completion_that_keeps_no_sums_stays_as_it_is() -> None:
    tower, method = completing_tower(), CalMRL()
    assert tower.completion is not None
    still = replace(tower, completion=replace(tower.completion, statistics=()))
    state, results = run(method, start(method, still), [batch(0)], still)
    assert (results[0].outcome.status, remembered(state, ENCODED)) == ("applied", None)


def test_sums_that_belong_to_no_samples_do_not_stop_the_stream() -> None:
    """Such a state can come from outside: its matrices are then no covariances."""
    tower, method = completing_tower(), CalMRL()
    assert tower.completion is not None
    broken = tuple(replace(part, bb=-part.bb) for part in tower.completion.statistics)
    state = start(method, tower)
    remember(state, replace(tower.completion, statistics=broken))
    after, results = run(method, state, [batch(0)], tower)
    assert results[0].outcome.status == "applied"
    own = remembered(after, ENCODED)
    assert own is not None
    assert own.batches == 0


# -- queries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", PATTERNS)
def test_every_pattern_moves_the_parameters_of_what_is_there_and_no_others(lacks: str) -> None:
    tower, method = completing_tower(), CalMRL()
    result = adapt_one(method, start(method, tower), batch(0), tower, lacks=lacks)
    assert result.outcome.state is not None
    for name, value in tower.parameters.items():
        moved = not torch.equal(result.outcome.state.parameters[name], value)
        assert moved == (not name.startswith(f"{lacks}/") or not lacks), name


def test_queries_that_nothing_completes_are_answered_and_not_learned_from() -> None:
    tower, method = completing_tower(), CalMRL()
    plain = replace(tower, completion=None)
    state = start(method, tower)
    result = adapt_one(method, state, batch(0), plain)
    assert result.outcome.status == "skipped"
    assert "calibration" in result.outcome.reason
    assert torch.isfinite(result.answer.features).all()


def test_spoilt_embeddings_are_reported_and_teach_nothing() -> None:
    tower, method = completing_tower(), CalMRL()
    state = start(method, tower)
    for value in state.parameters.values():
        value.requires_grad_()
    inputs = inputs_for(tower, batch(0))
    inputs.parts["image"][3, 2] = float("nan")
    features, completed = tower.encode_completed(inputs, state.parameters)
    before = everything(state)
    report = method.learn(
        state, Forward(features, features.detach(), 0, completed=completed, completion=tower.completion)
    )
    assert report.finite is not None
    assert not bool(report.finite)
    assert_identical(state, before)


@pytest.mark.parametrize("kind", ["constant", "twice", "alone"])
@pytest.mark.parametrize("lacks", PATTERNS)
def test_degenerate_batches_leave_a_finite_state(kind: str, lacks: str) -> None:
    tower, method = completing_tower(), CalMRL()
    rows = {"constant": batch(0, 1).expand(8, -1), "twice": batch(0, 4).repeat(2, 1), "alone": batch(0, 1)}
    state = start(method, tower)
    for _ in range(3):
        result = adapt_one(method, state, rows[kind].clone(), tower, lacks=lacks)
        assert result.outcome.status == "applied"
        state = result.next_state(state)
    assert all(torch.isfinite(v).all() for v in everything(state).values() if isinstance(v, Tensor))


def survives(patterns: list[str]) -> AdaptationState:
    tower, method = completing_tower(), CalMRL(CalMRLSettings(steps=1))
    state = start(method, tower)
    for number, lacks in enumerate(patterns):
        result = adapt_one(method, state, batch(number), tower, lacks=lacks, name=f"batch {number}")
        assert result.outcome.status == "applied", number
        assert all(value == value for value in result.outcome.losses.values())
        state = result.next_state(state)
    assert all(torch.isfinite(v).all() for v in everything(state).values() if isinstance(v, Tensor))
    return state


def test_a_modality_may_disappear_for_good() -> None:
    """Its parameters and moments stay as they were when it was last seen; the completion too."""
    state = survives(["", "", ""] + ["image"] * 60)
    until = survives(["", "", ""])
    for name, value in until.parameters.items():
        if name.startswith("image/"):
            assert torch.equal(state.parameters[name], value)
            assert float(state.optimizer.steps[name]) == 3
        else:
            assert not torch.equal(state.parameters[name], value)
    one, other = remembered(state, ENCODED), remembered(until, ENCODED)
    assert one is not None
    assert other is not None
    assert one.batches == other.batches == 3
    assert torch.equal(one.model.loadings[0].weight, other.model.loadings[0].weight)


def test_a_modality_may_appear_late() -> None:
    state = survives(["image"] * 60 + ["", ""])
    own = remembered(state, ENCODED)
    assert own is not None
    assert own.batches == 2
    assert float(state.optimizer.steps["image/norm.weight"]) == 2
    assert float(state.optimizer.steps["text/norm.weight"]) == 62


# -- samples --------------------------------------------------------------------------------------------


def lacking(inputs: AVInputs, modality: str) -> AVInputs:
    return AVInputs(
        None if modality == "audio" else inputs.audio, None if modality == "video" else inputs.video
    )


def fresh(**settings: Any) -> tuple[CalMRLClassifier, AdaptationState]:
    method = CalMRLClassifier(CalMRLClassifierSettings(**settings))
    return method, method.initial_state(av.classifier())


@pytest.mark.parametrize("lacks", ["", "audio", "video"])
@pytest.mark.parametrize("group", ["norms", "early_norms", "joint_attention"])
def test_a_group_learns_from_what_it_has_a_part_in(lacks: str, group: str) -> None:
    model = av.classifier()
    if not model.groups[group]:
        pytest.skip(f"the small model has no {group}")
    method, state = fresh(group=group)
    result = av.adapt_one(model, method, state, lacking(av.samples(1), lacks))
    if group == "joint_attention" and lacks:
        assert result.outcome.status == "skipped"
        assert f"without {lacks}" in result.outcome.reason
        return
    assert result.outcome.status == "applied"
    assert result.outcome.state is not None
    other = result.outcome.state.parameters
    assert set(other) == set(model.groups[group])
    assert any(not torch.equal(other[name], value) for name, value in state.parameters.items())


def test_samples_that_lack_sound_leave_the_sounds_tower_alone() -> None:
    model = av.classifier()
    method, state = fresh()
    result = av.adapt_one(model, method, state, lacking(av.samples(1), "audio"))
    assert result.outcome.state is not None
    for name, value in result.outcome.state.parameters.items():
        if name.startswith("blocks_a"):
            assert torch.equal(value, state.parameters[name]), name


def test_a_completed_model_answers_and_what_it_answered_with_is_not_differentiated() -> None:
    model = av.classifier()
    assert model.calibration is not None
    assert model.calibration.completion is not None
    completed = CompletedTwoStream(model, model.calibration.completion)
    method, state = fresh()
    inputs = lacking(av.samples(1), "video")
    result = av.adapt_one(completed, method, state, inputs)  # type: ignore[arg-type]
    expected = completed.forward(inputs).logits
    torch.testing.assert_close(result.answer.answered, expected)
    assert result.outcome.status == "applied"


def test_the_states_completion_goes_before_the_models() -> None:
    model = av.classifier()
    method, state = fresh()
    assert model.calibration is not None
    assert completion_of(model, state) is model.calibration.completion
    after, _ = av.run(model, method, state, [av.samples(1), lacking(av.samples(2), "audio"), av.samples(3)])
    own = remembered(after, PARTS)
    assert own is not None
    assert own.batches == 2
    assert completion_of(model, after) is own


def test_samples_of_any_pattern_in_any_order_keep_the_stream_alive() -> None:
    model = av.classifier()
    method, state = fresh(learning_rate=1e-2)
    order = [""] * 2 + ["video"] * 20 + [""] + ["audio", "video"] * 10 + ["audio"] * 10
    batches = [lacking(av.samples(number), lacks) for number, lacks in enumerate(order)]
    state, results = av.run(model, method, state, batches)
    assert [result.outcome.status for result in results] == ["applied"] * len(order)
    assert all(torch.isfinite(v).all() for v in everything(state).values() if isinstance(v, Tensor))
    own = remembered(state, PARTS)
    assert own is not None
    assert own.batches == order.count("")


def test_the_answers_model_reads_the_same_representations_as_the_losses() -> None:
    model = av.classifier()
    method, state = fresh()
    inputs = av.samples(5)
    fused = representations(model, inputs)["fused"]
    torch.testing.assert_close(model.head(fused)[0], method.predict(model, state, inputs))
