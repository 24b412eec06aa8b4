"""EATA: efficient test-time model adaptation without forgetting (ICML 2022; methods.md 2.5, 3.4).

Norm parameters learn from samples that are sure and unlike those before, and are held where the source needs
them:

    selected   H_i < E0,  |cos(a, p_i)| < d     a: running average of the selected p
    loss       mean_selected exp(E0 - H_i) H_i  +  alpha sum_p F_p (w_p - w_p^0)^2

F are squared gradients on clean samples (`attune calibrate`); alpha = 0 does without. Nothing selected: no
update. Defaults are BriMPR's release of EATA; the original takes d = 0.05 and alpha = 2000.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from adapters.base import Classes, Forward, StepReport
from adapters.classification import (
    Answer,
    Artefact,
    Inputs,
    Slices,
    TwoStream,
    require_calibration,
    source_values,
)
from adapters.gallery import GalleryMethod, GallerySettings, kth_smallest
from adapters.losses import anchor_penalty, masked_mean, softmax_entropy
from adapters.optimizer import AdamWSettings, all_finite, descend
from adapters.selection import confidence_weight, entropy_margin, moving_average, not_redundant
from adapters.settings import MethodSettings
from adapters.state import AdaptationState

_AVERAGE = "probability_average"
"""[C], of the samples learned from so far; absent before the first."""
_GALLERY = "average_of_generation"
"""Of the gallery whose items the average is over."""


class EATASettings(GallerySettings):
    """Every constant of the released driver."""

    margin_fraction: float = Field(
        0.4, gt=0, le=1, description="The k-th smallest entropy is the margin, k this share of the batch."
    )
    weight_margin_nats: float = Field(
        0.4, ge=0, le=100, description="Entropy at which a sample's weight is 1 (released: the same 0.4)."
    )
    d_margin: float = Field(
        0.05, gt=0, le=1.1, description="Largest cosine with the average prediction; above 1: no such filter."
    )
    average_momentum: float = Field(0.9, ge=0, lt=1, description="What the average prediction keeps.")
    skip_empty: bool = Field(
        False, description="No update where nothing is selected (released: momentum and decay still move)."
    )


class EATA(GalleryMethod):
    """Retrieval form, without a Fisher penalty: sure are those up to the k-th smallest entropy over the
    gallery's items. The average prediction is dropped when the gallery changes [ours].
    """

    name = "eata"
    settings: EATASettings

    def __init__(self, settings: EATASettings | None = None) -> None:
        super().__init__(settings or EATASettings())

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        logits = self.logits(forward.queries, forward)
        entropy = softmax_entropy(logits)
        sure = entropy.detach() <= kth_smallest(entropy.detach(), self.settings.margin_fraction)
        chosen = self._choose(state, logits.detach().softmax(-1), sure, self.classes(forward))
        weighted = confidence_weight(entropy, margin=self.settings.weight_margin_nats) * entropy
        loss = masked_mean(weighted, chosen)
        count = chosen.sum()
        if self.settings.skip_empty and not int(count):
            return StepReport.skipped("no query is sure and new enough")
        finite = descend(loss, state, self._adamw)
        losses = {"entropy": loss.detach(), "sure": sure.sum(), "selected": count}
        return StepReport(losses=losses, applied=True, finite=finite)

    @torch.no_grad()
    def _choose(
        self, state: AdaptationState, probabilities: Tensor, sure: Tensor, classes: Classes
    ) -> Tensor:
        """Rows to learn from, bool [B]; their predictions go into the average."""
        average = state.tensors.get(_AVERAGE)
        if classes.version is None or state.numbers.get(_GALLERY) != classes.version:
            average = None
        chosen = sure & not_redundant(probabilities, average, margin=self.settings.d_margin)
        if classes.version is None:
            state.tensors.pop(_AVERAGE, None)
        elif bool(chosen.any()):
            mean = probabilities[chosen].mean(0)
            state.tensors[_AVERAGE] = moving_average(average, mean, keep=self.settings.average_momentum)
            state.numbers[_GALLERY] = classes.version
        return chosen


class EATAClassifierSettings(MethodSettings):
    """Every constant of the released code."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam.")
    entropy_fraction: float = Field(
        0.4, gt=0, le=1, description="Samples below this share of log C nats are learned from (E0)."
    )
    d_margin: float = Field(
        0.1, gt=0, le=1.1, description="Largest cosine with the average prediction; above 1: no such filter."
    )
    average_momentum: float = Field(0.9, ge=0, lt=1, description="What the average prediction keeps.")
    fisher_alpha: float = Field(
        1.0, ge=0, le=1e6, description="Weight of the Fisher penalty; 0: none, and no calibration is needed."
    )


class EATAClassifier:
    name = "eata"
    adapts = True
    fewest = 1
    takes_incomplete = False

    def __init__(self, settings: EATAClassifierSettings | None = None) -> None:
        self.settings = settings or EATAClassifierSettings()
        self.needs: frozenset[Artefact] = frozenset({"fisher"} if self.settings.fisher_alpha else ())
        self._adam = AdamWSettings(self.settings.learning_rate, weight_decay=0.0)

    def check(self, model: TwoStream) -> None:
        require_calibration(self, model)

    def initial_state(self, model: TwoStream) -> AdaptationState:
        return AdaptationState(self.name, model.fingerprint, source_values(model, "norms"))

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        return model.forward(inputs, state.parameters).logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        logits = model.forward(inputs, state.parameters).logits
        entropy = softmax_entropy(logits)
        margin = entropy_margin(self.settings.entropy_fraction, model.label_count)
        rows = self._select(state, logits.detach(), entropy.detach(), margin)
        counted = {"selected": logits.new_full((), len(rows))}
        yield Answer(logits.detach(), learns=len(rows) > 0)
        if not len(rows):
            finite = all_finite({"logits": logits.detach()})
            return StepReport(losses=counted, finite=finite, reason="no sample is sure and new enough")
        chosen = entropy[rows]
        weighted = (confidence_weight(chosen, margin=margin) * chosen).mean()
        penalty = self._penalty(model, state)
        loss = weighted + penalty
        finite = descend(loss, state, self._adam, also={"logits": logits.detach()})
        losses = {"total": loss.detach(), "entropy": weighted.detach(), "fisher": penalty.detach()}
        return StepReport(losses={**losses, **counted}, applied=True, finite=finite)

    def _select(self, state: AdaptationState, logits: Tensor, entropy: Tensor, margin: float) -> Tensor:
        """Rows to learn from, int64 [n]; their predictions go into the average."""
        probabilities = logits.softmax(-1)
        average = state.tensors.get(_AVERAGE)
        new = not_redundant(probabilities, average, margin=self.settings.d_margin)
        rows = ((entropy < margin) & new).nonzero().squeeze(1)
        if len(rows):
            mean = probabilities[rows].mean(0)
            state.tensors[_AVERAGE] = moving_average(average, mean, keep=self.settings.average_momentum)
        return rows

    def _penalty(self, model: TwoStream, state: AdaptationState) -> Tensor:
        fisher = model.calibration.fisher if model.calibration is not None else None
        if not self.settings.fisher_alpha or fisher is None:
            return torch.zeros((), device=model.device)
        return self.settings.fisher_alpha * anchor_penalty(state.parameters, model.weights, fisher)
