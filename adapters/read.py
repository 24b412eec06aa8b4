"""READ: reliable fusion under modality bias (Yang et al., ICLR 2024; methods.md 2.3, 3.7).

Queries, keys and values of the joint blocks learn, which decide how the modalities mix:

    loss = mean_i( -m_i log m_i ) - H(softmax(sum_i p_i)),   m_i the largest probability of sample i

Answers come from a second forward after the update. What learns lies behind the towers, so they are passed
once, without a graph, and the second forward is the joint blocks alone. With several joint blocks all of
them learn.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from adapters.base import Forward, StepReport
from adapters.classification import Answer, Artefact, Inputs, Slices, TwoStream, source_values
from adapters.gallery import GalleryMethod, GallerySettings
from adapters.losses import balance_entropy, reliable_confidence
from adapters.optimizer import AdamWSettings, descend
from adapters.settings import MethodSettings
from adapters.state import AdaptationState


class READSettings(GallerySettings):
    """Every constant of the released code of the retrieval form, which trains norm parameters instead."""


class READ(GalleryMethod):
    """The same loss over the gallery's items; norm parameters of the query's encoder learn."""

    name = "read"

    def __init__(self, settings: READSettings | None = None) -> None:
        super().__init__(settings or READSettings())

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        logits = self.logits(forward.queries, forward)
        sure, balance = reliable_confidence(logits), balance_entropy(logits)
        loss = sure - balance
        finite = descend(loss, state, self._adamw)
        losses = {"total": loss.detach(), "confidence": sure.detach(), "balance": balance.detach()}
        return StepReport(losses=losses, applied=True, finite=finite)


class READClassifierSettings(MethodSettings):
    """Every constant of the released code."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam.")


class READClassifier:
    name = "read"
    adapts = True
    needs: frozenset[Artefact] = frozenset()
    fewest = 1
    takes_incomplete = False

    def __init__(self, settings: READClassifierSettings | None = None) -> None:
        self.settings = settings or READClassifierSettings()
        self._adam = AdamWSettings(self.settings.learning_rate, weight_decay=0.0)

    def check(self, model: TwoStream) -> None:
        """It works with every model."""

    def initial_state(self, model: TwoStream) -> AdaptationState:
        return AdaptationState(self.name, model.fingerprint, source_values(model, "joint_attention"))

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        return model.forward(inputs, state.parameters).logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        tokens = _behind_towers(model, inputs)
        yield None
        logits = _logits(model, state, tokens)
        sure, balance = reliable_confidence(logits), balance_entropy(logits)
        finite = descend(sure - balance, state, self._adam, also={"logits": logits.detach()})
        yield None
        with torch.no_grad():
            answer = _logits(model, state, tokens)
        yield Answer(answer, learns=False)  # it has learned already
        losses = {"confidence": sure.detach(), "balance": balance.detach()}
        return StepReport(losses=losses, applied=True, finite=finite)


@torch.no_grad()
def _behind_towers(model: TwoStream, inputs: Inputs) -> Tensor:
    """Tokens of both towers, [B, N, D]."""
    embedded = model.embed(inputs)
    towers = [model.tower_packed(name, [embedded[name]])[0].tokens for name in ("audio", "video")]
    return torch.cat(towers, dim=1)


def _logits(model: TwoStream, state: AdaptationState, tokens: Tensor) -> Tensor:
    (pooled,) = model.joint_packed([(tokens, "plain")], state.parameters)
    return model.head(pooled)[0]
