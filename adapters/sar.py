"""SAR: sharpness-aware and reliable entropy minimisation (ICLR 2023; methods.md 2.4, 3.5).

Norm parameters of all but the last blocks of both towers learn from sure samples, towards flat minima:

    sel   H_i < E0;             g1 = gradient of mean_sel H;    w' = w + rho g1 / ||g1||
    kept  i in sel, H'_i < E0;  g2 = gradient of mean_kept H' at w';    Adam on w with g2

A moving average of mean_kept H' below `reset_constant` means collapse: the source weights come back. As
released the average and Adam's moments survive that (two settings), and where nothing is selected Adam still
steps on its momentum. The forward at w' sees the selected samples only, as nothing else of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from adapters.base import Forward, StepReport
from adapters.classification import Answer, Artefact, Inputs, Slices, TwoStream, require_group, source_values
from adapters.gallery import GalleryMethod, GallerySettings, kth_smallest
from adapters.losses import masked_mean, softmax_entropy
from adapters.optimizer import AdamWSettings, adamw_step, all_finite, gradients, sharpest_nearby
from adapters.selection import entropy_margin
from adapters.settings import MethodSettings
from adapters.state import AdaptationState, OptimizerState

_GROUP = "early_norms"
_AVERAGE = "entropy_average"
"""Nats; absent before the first sample was kept."""


class _Sharpness(MethodSettings):
    """What both forms have: the step aside, and the recovery."""

    rho: float = Field(0.05, gt=0, le=10, description="How far off the gradient is taken (SAM).")
    average_momentum: float = Field(0.9, ge=0, lt=1, description="What the average entropy keeps.")
    reset_constant: float = Field(
        0.2, ge=0, le=100, description="Average entropy (nats) below which the source weights come back."
    )
    ema_clear_on_reset: bool = Field(
        False, description="Forget the average then (released: no, so it may fire again)."
    )
    moments_clear_on_reset: bool = Field(
        False, description="Forget the optimiser's moments then (released: no)."
    )


class SARSettings(GallerySettings, _Sharpness):
    """Every constant of the released code."""

    margin_fraction: float = Field(
        0.4, gt=0, le=1, description="The k-th smallest entropy is the margin, k this share of the batch."
    )


class SAR(GalleryMethod):
    """Retrieval form: sure are those up to the k-th smallest entropy over the gallery's items, and all norm
    parameters of the query's encoder learn.

    Where none of them is sure at w' the average takes a zero, as released, but no update is made [ours].
    """

    name = "sar"
    settings: SARSettings

    def __init__(self, settings: SARSettings | None = None) -> None:
        super().__init__(settings or SARSettings())

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        assert forward.again is not None
        entropy = softmax_entropy(self.logits(forward.queries, forward))
        margin = kth_smallest(entropy.detach(), self.settings.margin_fraction)
        rows = (entropy.detach() <= margin).nonzero().squeeze(1)
        first = entropy[rows].mean()
        grads = gradients(first, state.parameters)
        nearby = sharpest_nearby(state.parameters, grads, radius=self.settings.rho)
        again = softmax_entropy(self.logits(forward.again.encode(nearby, rows), forward))
        kept = again.detach() < margin
        second = masked_mean(again, kept)
        grads_nearby = gradients(second, nearby)
        both = {f"nearby.{name}": value for name, value in grads_nearby.items()}
        finite = all_finite({"loss": first.detach(), **grads, **both})
        # The recovery needs the average, so here the device is waited for, behind all its work.
        count, value = torch.stack([kept.sum().double(), second.detach().double()]).tolist()
        if count:
            adamw_step(state, grads_nearby, self._adamw)
        average = _average(state, value, self.settings)
        recovered = _recover(state, forward.again.source, self.settings)
        losses = {
            "entropy": first.detach(),
            "entropy_nearby": second.detach(),
            "entropy_average": first.new_tensor(average),
            "recovered": first.new_tensor(float(recovered)),
        }
        return StepReport(losses=losses, applied=True, finite=finite)


def _average(state: AdaptationState, entropy: float, settings: _Sharpness) -> float:
    """Take an entropy into the state's moving average, which is returned."""
    keep, old = settings.average_momentum, state.numbers.get(_AVERAGE)
    state.numbers[_AVERAGE] = entropy if old is None else keep * old + (1 - keep) * entropy
    return float(state.numbers[_AVERAGE])


@torch.no_grad()
def _recover(state: AdaptationState, source: Mapping[str, Tensor], settings: _Sharpness) -> bool:
    """Bring the source weights back where the average entropy is too low; whether it was."""
    if state.numbers.get(_AVERAGE, float("inf")) >= settings.reset_constant:
        return False
    for name, value in state.parameters.items():
        value.copy_(source[name])
    if settings.ema_clear_on_reset:
        del state.numbers[_AVERAGE]
    if settings.moments_clear_on_reset:
        state.optimizer = OptimizerState()
    return True


class SARClassifierSettings(_Sharpness):
    """Every constant of the released code."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam.")
    entropy_fraction: float = Field(
        0.4, gt=0, le=1, description="Samples below this share of log C nats are learned from (E0)."
    )


class SARClassifier:
    name = "sar"
    adapts = True
    needs: frozenset[Artefact] = frozenset()
    fewest = 1
    takes_incomplete = False

    def __init__(self, settings: SARClassifierSettings | None = None) -> None:
        self.settings = settings or SARClassifierSettings()
        self._adam = AdamWSettings(self.settings.learning_rate, weight_decay=0.0)

    def check(self, model: TwoStream) -> None:
        require_group(self, model, _GROUP)

    def initial_state(self, model: TwoStream) -> AdaptationState:
        return AdaptationState(self.name, model.fingerprint, source_values(model, _GROUP))

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        return model.forward(inputs, state.parameters).logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        logits = model.forward(inputs, state.parameters).logits
        yield Answer(logits.detach())
        margin = entropy_margin(self.settings.entropy_fraction, model.label_count)
        entropy = softmax_entropy(logits)
        rows = (entropy.detach() < margin).nonzero().squeeze(1)
        counted = {"selected": logits.new_full((), len(rows))}
        if not len(rows):
            zeros = {name: torch.zeros_like(value) for name, value in state.parameters.items()}
            adamw_step(state, zeros, self._adam)
            _recover(state, model.weights, self.settings)
            return StepReport(losses=counted, applied=True, finite=all_finite({"logits": logits.detach()}))
        first = entropy[rows].mean()
        grads = gradients(first, state.parameters)
        nearby = sharpest_nearby(state.parameters, grads, radius=self.settings.rho)
        yield None
        again = softmax_entropy(model.forward(inputs[rows], nearby).logits)
        kept = again.detach() < margin
        second = masked_mean(again, kept)
        yield None
        grads_nearby = gradients(second, nearby)
        both = {f"nearby.{name}": value for name, value in grads_nearby.items()}
        finite = all_finite({"logits": logits.detach(), "loss": first.detach(), **grads, **both})
        adamw_step(state, grads_nearby, self._adam)
        losses = {"entropy": first.detach()}
        if self._average(state, second.detach(), kept):
            losses["entropy_nearby"] = second.detach()
        _recover(state, model.weights, self.settings)
        return StepReport(losses={**losses, **counted}, applied=True, finite=finite)

    def _average(self, state: AdaptationState, entropy: Tensor, kept: Tensor) -> bool:
        """Take the mean of the kept into the average, if any was kept.

        The recovery needs the number, so here the device is waited for, behind all its work.
        """
        count, value = torch.stack([kept.sum().double(), entropy.double()]).tolist()
        if not count:
            return False
        _average(state, value, self.settings)
        return True
