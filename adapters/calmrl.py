"""CalMRL: streams whose samples lack modalities learn from what was imputed (ICML 2026; methods.md 4.6-4.7).

A completion (adapters/completion.py) makes what a batch lacks from what it has. Norm parameters then learn,
by the singular values and the anchors of each sample's unit columns, observed and imputed:

    L_align     -log softmax(sigma / tau1)_1: the modalities of a sample point to one direction
    L_instance  cross-entropy of U U^T / tau2 against the diagonal: samples keep theirs apart

Imputing and aligning are two steps: what was imputed is constant for the gradient. And the completion goes on
learning, by online EM, from the batches that have everything; what was imputed never teaches it.

Of one modality observed and one imputed, as texts are, the singular values are so far apart that L_align is
next to nothing at the published tau1; what helps under shift is L_instance. A larger tau1 makes L_align felt,
and by itself it harms: embeddings crowd towards what was imputed from them.

Ours: a batch of one learns by L_align alone, because L_instance needs another sample. A batch smaller than
`FULL_BATCH` moves the completion by its share of one. The rate is constant by default, because streams drift,
and the decreasing one, which begins at a quarter, made imputations of clean embeddings worse. The published
matching loss needs a cross-encoder and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.anchors import alignment_loss, anchors_of, instance_loss
from adapters.base import Forward, StepReport, at_least_fp32
from adapters.classification import (
    Answer,
    Artefact,
    Inputs,
    Slices,
    TwoStream,
    require_calibration,
    require_group,
    source_values,
)
from adapters.completion import Completed, Completion, remember, remembered
from adapters.drift import batch_drift
from adapters.optimizer import AdamWSettings, descend
from adapters.settings import MethodSettings
from adapters.state import AdaptationState
from adapters.two_stream_completion import completion_of, representations

FULL_BATCH = 64
"""Complete samples that move the completion by the whole rate."""
_T0, _KAPPA = 6.0, 0.7
_DRIFT_TEMPERATURE = 0.02


class _LossSettings(MethodSettings):
    """What both tasks have in common."""

    alignment_temperature: float = Field(0.05, gt=0, le=10, description="tau1 of L_align.")
    instance_temperature: float = Field(0.1, gt=0, le=10, description="tau2 of L_instance.")
    weight_instance: float = Field(1.0, ge=0, le=100, description="Weight of L_instance.")
    online: bool = Field(True, description="Whether the completion learns from complete batches.")
    forget: float | None = Field(
        0.05,
        gt=0,
        lt=1,
        description="How much of what the completion knows a full batch replaces; none: (t + 6)^-0.7 of "
        "batch t, for a stream that never drifts.",
    )


class CalMRLSettings(_LossSettings):
    steps: int = Field(3, ge=1, le=20, description="Forward, loss, backward and update per batch.")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="AdamW.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW, decoupled.")


class CalMRLClassifierSettings(_LossSettings):
    learning_rate: float = Field(
        1e-3, gt=0, le=1, description="Adam. At 1e-4, other methods' rate, dozens of batches change little."
    )
    group: Literal["norms", "early_norms", "joint_attention"] = Field(
        "norms", description="Which weights learn."
    )


def losses(columns: Tensor, anchors: Tensor, settings: _LossSettings) -> dict[str, Tensor]:
    """Unit columns [B, D, M] and anchors [B, D] -> scalars; no `instance` of a batch of one."""
    terms = {"align": alignment_loss(columns, temperature=settings.alignment_temperature)}
    if len(anchors) > 1:
        terms["instance"] = instance_loss(anchors, temperature=settings.instance_temperature)
    return terms


def _total(terms: Mapping[str, Tensor], settings: _LossSettings) -> Tensor:
    if "instance" not in terms:
        return terms["align"]
    return terms["align"] + settings.weight_instance * terms["instance"]


_SPOILT = StepReport(finite=torch.tensor(False))


def _finite(columns: Tensor) -> bool:
    """Singular values of anything else are an error, not NaN."""
    return bool(torch.isfinite(columns).all())


def held(completed: Completed) -> Completed:
    """The same, what was imputed being constant, everything in fp32 at least."""
    parts = {
        name: at_least_fp32(part if name in completed.observed else part.detach())
        for name, part in completed.embeddings.items()
    }
    return replace(completed, embeddings=parts)


def rate(completion: Completion, samples: int, forget: float | None) -> float:
    """How much of its running sums a batch of so many complete samples replaces."""
    step = forget if forget is not None else (completion.batches + 1 + _T0) ** -_KAPPA
    return step * min(1.0, samples / FULL_BATCH)


def go_on(
    state: AdaptationState, completion: Completion, completed: Completed, settings: _LossSettings
) -> None:
    """One step of online EM from a complete batch, into `state`; where that has no solution all stays."""
    if not settings.online or not completed.complete or not completion.statistics:
        return
    observed = {name: part.detach() for name, part in completed.embeddings.items()}
    samples = len(next(iter(observed.values())))
    try:
        learned = completion.learned(observed, rate=rate(completion, samples, settings.forget))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # sums of no samples, from outside
        return
    if all(
        bool(torch.isfinite(value).all())
        for loading in learned.model.loadings
        for value in (loading.weight, loading.mean, loading.noise)
    ):
        remember(state, learned)


class CalMRL:
    """For queries that a gallery's calibration completes; others are answered and not learned from."""

    name = "calmrl"
    adapts = True
    learns = True
    rectifies = False
    most_classes = 0
    needs_completion = True
    learn_from_shift = 0.0
    predict_after_update = False

    def __init__(self, settings: CalMRLSettings | None = None) -> None:
        self.settings = settings or CalMRLSettings()
        self.steps = self.settings.steps
        self._adamw = AdamWSettings(self.settings.learning_rate, self.settings.weight_decay)

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        copies = {name: value.detach().clone() for name, value in parameters.items()}
        return AdaptationState(method=self.name, fingerprint=fingerprint, parameters=copies)

    def observe(self, state: AdaptationState, forward: Forward) -> None:
        """It remembers no queries; the completion learns behind the last update."""

    def answer(self, state: AdaptationState, forward: Forward) -> Tensor:
        return forward.queries.detach()

    def answer_alone(self, state: AdaptationState, queries: Tensor) -> Tensor:
        return queries

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        if forward.completed is None or forward.completion is None:
            return StepReport.skipped("calmrl learns from queries that a gallery's calibration completes")
        completed, completion = held(forward.completed), forward.completion
        columns = completed.columns
        if not _finite(columns):
            return _SPOILT
        terms = losses(columns, completion.anchors(completed), self.settings)
        loss = _total(terms, self.settings)
        if not loss.requires_grad:
            return StepReport.skipped("nothing that adapts has a part in these queries")
        finite = descend(loss, state, self._adamw)
        if forward.step == self.steps - 1 and completed.complete and bool(finite):
            own = remembered(state, completion.modalities)
            go_on(state, own or completion, completed, self.settings)
        found = {name: value.detach() for name, value in terms.items()}
        return StepReport(losses=found, applied=True, finite=finite)

    @torch.no_grad()
    def drift(self, state: AdaptationState, forward: Forward) -> Mapping[str, Tensor]:
        """`batch_drift`, and where queries are completed their mean novelty among clean samples, 0..1."""
        queries = at_least_fp32(forward.queries.detach())
        figures = dict(batch_drift(queries, forward.candidates, temperature=_DRIFT_TEMPERATURE))
        if forward.completed is not None and forward.completion is not None:
            parts = forward.completed
            observed = {name: part for name, part in parts.embeddings.items() if name in parts.observed}
            figures["novelty"] = forward.completion.novelty_of(observed).mean()
        return figures


class CalMRLClassifier:
    """Its columns are what tower features and fused feature say of the latent (`Completion.views`)."""

    name = "calmrl"
    adapts = True
    needs: frozenset[Artefact] = frozenset({"completion"})
    fewest = 1
    takes_incomplete = True

    def __init__(self, settings: CalMRLClassifierSettings | None = None) -> None:
        self.settings = settings or CalMRLClassifierSettings()
        self._adam = AdamWSettings(self.settings.learning_rate, weight_decay=0.0)

    def check(self, model: TwoStream) -> None:
        require_calibration(self, model)
        require_group(self, model, self.settings.group)

    def initial_state(self, model: TwoStream) -> AdaptationState:
        self.check(model)
        values = source_values(model, self.settings.group)
        return AdaptationState(self.name, model.fingerprint, values)

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        logits: Tensor = model.forward(inputs, state.parameters).logits
        return logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        observed = representations(model, inputs, state.parameters)
        if "fused" in observed:
            logits = model.head(observed["fused"], state.parameters)[0].detach()
        else:
            logits = self.predict(model, state, inputs)
        yield Answer(logits)
        completion = completion_of(model, state)
        assert completion is not None  # `check` has seen it
        completed = held(completion.complete(observed))
        columns = completion.views(completed)
        if not _finite(columns):
            return _SPOILT
        terms = losses(columns, anchors_of(columns).vectors, self.settings)
        loss = _total(terms, self.settings)
        if not loss.requires_grad:
            lacking = " and ".join(completed.imputed)
            return StepReport.skipped(f"{self.settings.group} has no part in samples without {lacking}")
        finite = descend(loss, state, self._adam, also={"logits": logits})
        if completed.complete and bool(finite):
            go_on(state, completion, completed, self.settings)
        found = {name: value.detach() for name, value in terms.items()}
        return StepReport(losses=found, applied=True, finite=finite)
