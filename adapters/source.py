"""Source: the frozen model (methods.md 2.0). The baseline of every comparison; it never adapts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base import Forward, StepReport, at_least_fp32
from adapters.classification import Answer, Artefact, Inputs, Slices, TwoStream
from adapters.drift import batch_drift
from adapters.settings import MethodSettings
from adapters.state import AdaptationState


class SourceSettings(MethodSettings):
    """The frozen model has nothing to set."""


class Source:
    name = "source"
    steps = 1
    adapts = False
    learns = False
    rectifies = False
    most_classes = 0
    needs_completion = False
    learn_from_shift = 0.0
    predict_after_update = False

    def __init__(self, settings: SourceSettings | None = None) -> None:
        self.settings = settings or SourceSettings()

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        return AdaptationState(method=self.name, fingerprint=fingerprint, parameters={})

    def observe(self, state: AdaptationState, forward: Forward) -> None:
        """Nothing is remembered."""

    def answer(self, state: AdaptationState, forward: Forward) -> Tensor:
        return forward.queries.detach()

    def answer_alone(self, state: AdaptationState, queries: Tensor) -> Tensor:
        return queries

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        return StepReport.skipped("the source model does not adapt")

    @torch.no_grad()
    def drift(self, state: AdaptationState, forward: Forward) -> Mapping[str, Tensor]:
        return batch_drift(at_least_fp32(forward.queries), forward.candidates, temperature=0.02)


class SourceClassifier:
    """The same for classification."""

    name = "source"
    adapts = False
    needs: frozenset[Artefact] = frozenset()
    fewest = 1
    takes_incomplete = False

    def __init__(self, settings: SourceSettings | None = None) -> None:
        self.settings = settings or SourceSettings()

    def check(self, model: TwoStream) -> None:
        """It works with every model."""

    def initial_state(self, model: TwoStream) -> AdaptationState:
        return AdaptationState(method=self.name, fingerprint=model.fingerprint, parameters={})

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        return model.forward(inputs).logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        yield Answer(self.predict(model, state, inputs), learns=False)
        return StepReport.skipped("the source model does not adapt")
