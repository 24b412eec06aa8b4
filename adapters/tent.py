"""Tent: fully test-time adaptation by entropy minimisation (ICLR 2021; methods.md 2.1, 3.2).

    loss = mean_i H(o_i)

Retrieval: norm parameters of the query's encoder learn, K steps a batch; classes are the gallery's items.
Classification: every norm parameter on the way of a sample learns, once a batch. Answers come from the
forward before the (last) update.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from adapters.base import Forward, StepReport
from adapters.classification import Answer, Artefact, Inputs, Slices, TwoStream, source_values
from adapters.gallery import GalleryMethod, GallerySettings
from adapters.losses import softmax_entropy
from adapters.optimizer import AdamWSettings, descend
from adapters.settings import MethodSettings
from adapters.state import AdaptationState


class TentSettings(GallerySettings):
    """Every constant of the released code."""


class Tent(GalleryMethod):
    name = "tent"

    def __init__(self, settings: TentSettings | None = None) -> None:
        super().__init__(settings or TentSettings())

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        loss = softmax_entropy(self.logits(forward.queries, forward)).mean()
        finite = descend(loss, state, self._adamw)
        return StepReport(losses={"entropy": loss.detach()}, applied=True, finite=finite)


class TentClassifierSettings(MethodSettings):
    """Every constant of the released code."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam.")


class TentClassifier:
    name = "tent"
    adapts = True
    needs: frozenset[Artefact] = frozenset()
    fewest = 1
    takes_incomplete = False

    def __init__(self, settings: TentClassifierSettings | None = None) -> None:
        self.settings = settings or TentClassifierSettings()
        self._adam = AdamWSettings(self.settings.learning_rate, weight_decay=0.0)

    def check(self, model: TwoStream) -> None:
        """It works with every model."""

    def initial_state(self, model: TwoStream) -> AdaptationState:
        return AdaptationState(self.name, model.fingerprint, source_values(model, "norms"))

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        return model.forward(inputs, state.parameters).logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        logits = model.forward(inputs, state.parameters).logits
        yield Answer(logits.detach())
        loss = softmax_entropy(logits).mean()
        finite = descend(loss, state, self._adam, also={"logits": logits.detach()})
        return StepReport(losses={"entropy": loss.detach()}, applied=True, finite=finite)
