"""DeYO: entropy is not enough for test-time adaptation (ICLR 2024; methods.md 2.6, 3.6).

Norm parameters of all but the last blocks of both towers learn from samples that are sure, and that stop
being sure when the patches of spectrogram and frame are shuffled, which shows that shapes decided:

    selected  H_i < deyo_fraction log C,   PLPD_i = p_i[c] - p'_i[c] > plpd_threshold,   c = argmax p_i
    loss      mean_selected (exp(E0 - H_i) + exp(PLPD_i)) H_i,   the weight without gradient

Only the sure samples are passed a second time, without gradient. Nothing selected: no update. Random numbers
are counted, so that a state restores exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapters.base import Forward, StepReport
from adapters.classification import (
    Answer,
    Artefact,
    Inputs,
    Modality,
    Slices,
    TwoStream,
    generator,
    require_group,
    source_values,
)
from adapters.gallery import GalleryMethod, GallerySettings, kth_smallest
from adapters.losses import softmax_entropy
from adapters.optimizer import AdamWSettings, all_finite, descend
from adapters.selection import confidence_weight, entropy_margin, prediction_drop, shuffle_patches
from adapters.settings import MethodSettings
from adapters.state import AdaptationState

Noise = Callable[[Modality, tuple[int, int]], Tensor]


class DeYOSettings(GallerySettings):
    """Every constant of the released driver."""

    margin_fraction: float = Field(
        0.5, gt=0, le=1, description="Queries below the k-th smallest entropy are looked at, k this share."
    )
    weight_fraction: float = Field(
        0.4, gt=0, le=1, description="Share of those kept whose k-th smallest entropy is E0 of the weights."
    )
    plpd_threshold: float = Field(
        0.0, ge=-1, le=1, description="Smallest loss of probability by shuffling; for pictures alone."
    )
    patch_len: int = Field(4, ge=1, le=64, description="Patches a side that are shuffled.")
    detach_e0: bool = Field(False, description="Whether E0 is a constant of the loss (released: no).")
    seed: int = Field(0, ge=0, le=2**31, description="Of the shuffling.")


QueryNoise = Callable[[tuple[int, int]], Tensor]


class DeYO(GalleryMethod):
    """Retrieval form: entropies are over the gallery's items, and the weights as released,

        w_i = 1 / (exp(H_i - E0) + 0.1) + exp(PLPD_i) + 0.1,    H_i and PLPD_i without gradient, E0 with it.

    Texts are not shuffled: all sure ones are learned from.
    """

    name = "deyo"
    settings: DeYOSettings

    def __init__(self, settings: DeYOSettings | None = None, *, noise: QueryNoise | None = None) -> None:
        """`noise` replaces the random numbers that patches are sorted by, [n, patches]."""
        super().__init__(settings or DeYOSettings())
        self._noise = noise

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        state = super().initial_state(fingerprint=fingerprint, parameters=parameters)
        state.numbers |= {"seed": self.settings.seed, "draws": 0}
        return state

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        logits = self.logits(forward.queries, forward)
        entropy = softmax_entropy(logits)
        margin = kth_smallest(entropy.detach(), self.settings.margin_fraction)
        sure = (entropy.detach() < margin).nonzero().squeeze(1)
        if not len(sure):
            return StepReport(losses=_counts(logits, 0, 0), reason="no query is sure")
        drop = self._drop(state, forward, sure, logits.detach()[sure])
        if drop is None:  # texts
            rows, drop = sure, torch.zeros_like(margin).expand(len(sure))
        else:
            kept = (drop > self.settings.plpd_threshold).nonzero().squeeze(1)
            rows, drop = sure[kept], drop[kept]
        counts = _counts(logits, len(sure), len(rows))
        if not len(rows):
            return StepReport(losses=counts, reason="no sure query rests on shapes")
        loss = self._loss(entropy[rows], drop)
        finite = descend(loss, state, self._adamw)
        losses = {**counts, "total": loss.detach(), "drop": drop.mean()}
        return StepReport(losses=losses, applied=True, finite=finite)

    @torch.no_grad()
    def _drop(self, state: AdaptationState, forward: Forward, rows: Tensor, logits: Tensor) -> Tensor | None:
        """PLPD of the rows; None for texts."""
        assert forward.again is not None
        if forward.again.shuffled is None:
            return None
        shape = (len(rows), self.settings.patch_len**2)
        random = generator(state)
        order_by = self._noise(shape) if self._noise else torch.rand(shape, generator=random)
        shuffled = forward.again.shuffled(state.parameters, rows, order_by)
        return prediction_drop(logits, self.logits(shuffled, forward))

    def _loss(self, entropy: Tensor, drop: Tensor) -> Tensor:
        count = int(self.settings.weight_fraction * len(entropy))
        e0 = entropy.kthvalue(count).values if count else entropy.new_tensor(torch.inf)
        if self.settings.detach_e0:
            e0 = e0.detach()
        weight = 1 / ((entropy.detach() - e0).exp() + 0.1) + drop.exp() + 0.1
        return (weight * entropy).mean()


def _counts(logits: Tensor, sure: int, selected: int) -> dict[str, Tensor]:
    return {"sure": logits.new_full((), sure), "selected": logits.new_full((), selected)}


class DeYOClassifierSettings(MethodSettings):
    """Every constant of the released code."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam.")
    deyo_fraction: float = Field(
        0.5, gt=0, le=1, description="Samples below this share of log C nats are looked at."
    )
    weight_fraction: float = Field(
        0.4, gt=0, le=1, description="Share of log C nats where a sample's entropy weight is 1 (E0)."
    )
    plpd_threshold: float = Field(
        0.2, ge=-1, le=1, description="Smallest loss of probability by shuffling. Original: 0.2 or 0.3."
    )
    patch_len: int = Field(4, ge=1, le=64, description="Patches a side that are shuffled.")
    seed: int = Field(0, ge=0, le=2**31, description="Of the shuffling.")


class DeYOClassifier:
    name = "deyo"
    adapts = True
    needs: frozenset[Artefact] = frozenset()
    fewest = 1
    takes_incomplete = False

    def __init__(self, settings: DeYOClassifierSettings | None = None, *, noise: Noise | None = None) -> None:
        """`noise` replaces the random numbers that patches are sorted by, [n, patches], audio first."""
        self.settings = settings or DeYOClassifierSettings()
        self._adam = AdamWSettings(self.settings.learning_rate, weight_decay=0.0)
        self._noise = noise

    def check(self, model: TwoStream) -> None:
        require_group(self, model, "early_norms")

    def initial_state(self, model: TwoStream) -> AdaptationState:
        return AdaptationState(
            self.name,
            model.fingerprint,
            source_values(model, "early_norms"),
            numbers={"seed": self.settings.seed, "draws": 0},
        )

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        return model.forward(inputs, state.parameters).logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        logits = model.forward(inputs, state.parameters).logits
        entropy = softmax_entropy(logits)
        sure = self._sure(entropy.detach(), model.label_count)
        rows, drop = sure, entropy.detach()[sure]
        if len(sure):
            yield None
            drop = self._drop(model, state, inputs[sure], logits.detach()[sure])
            kept = (drop > self.settings.plpd_threshold).nonzero().squeeze(1)
            rows, drop = sure[kept], drop[kept]
        yield Answer(logits.detach(), learns=len(rows) > 0)
        counted = {"sure": logits.new_full((), len(sure)), "selected": logits.new_full((), len(rows))}
        if not len(rows):
            finite = all_finite({"logits": logits.detach()})
            reason = "no sample is sure" if not len(sure) else "no sure sample rests on shapes"
            return StepReport(losses=counted, finite=finite, reason=reason)
        loss = self._loss(entropy[rows], drop, model.label_count)
        finite = descend(loss, state, self._adam, also={"logits": logits.detach()})
        losses = {"total": loss.detach(), "drop": drop.mean()}
        return StepReport(losses={**losses, **counted}, applied=True, finite=finite)

    def _sure(self, entropy: Tensor, classes: int) -> Tensor:
        return (entropy < entropy_margin(self.settings.deyo_fraction, classes)).nonzero().squeeze(1)

    @torch.no_grad()
    def _drop(self, model: TwoStream, state: AdaptationState, inputs: Inputs, logits: Tensor) -> Tensor:
        """PLPD of samples [n] with their logits [n, C]."""
        shuffled = self._shuffle(state, inputs)
        return prediction_drop(logits, model.forward(shuffled, state.parameters).logits)

    def _shuffle(self, state: AdaptationState, inputs: Inputs) -> Inputs:
        """Both modalities, each sample's patches in an order of its own; a spectrogram is one channel."""
        random = generator(state)
        assert inputs.audio is not None
        assert inputs.video is not None
        shape = (len(inputs), self.settings.patch_len**2)
        draw = self._noise or (lambda _, size: torch.rand(size, generator=random))
        audio = shuffle_patches(inputs.audio.unsqueeze(1), draw("audio", shape)).squeeze(1)
        video = shuffle_patches(inputs.video, draw("video", shape))
        whole: Any = inputs  # the model's own dataclass
        return replace(whole, audio=audio, video=video)

    def _loss(self, entropy: Tensor, drop: Tensor, classes: int) -> Tensor:
        margin = entropy_margin(self.settings.weight_fraction, classes)
        weight = confidence_weight(entropy, margin=margin) + drop.exp()
        return (weight * entropy).mean()
