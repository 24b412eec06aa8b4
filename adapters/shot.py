"""SHOT, retrieval form: information maximisation and sure pseudo-labels (ICML 2020; methods.md 2.2).

    loss = mean_i H(o_i) + sum_j pbar_j log(pbar_j + eps) + beta CE
    pbar   mean of the batch's probabilities over the gallery's items
    CE     mean cross-entropy against argmax p_i, of the samples with max p_i > threshold; 0 without any

No gradient is stopped anywhere, as released.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field

from adapters.base import Forward, StepReport
from adapters.gallery import GalleryMethod, GallerySettings
from adapters.losses import masked_mean, softmax_entropy
from adapters.optimizer import descend
from adapters.state import AdaptationState


class SHOTSettings(GallerySettings):
    """Every constant of the released code."""

    threshold: float = Field(0.9, ge=0, le=1, description="Largest probability above which a label counts.")
    label_weight: float = Field(
        0.1, ge=0, le=100, description="Weight of the pseudo-labels; 0: information maximisation alone."
    )
    diversity_epsilon: float = Field(1e-5, gt=0, le=1, description="Inside the logarithm of pbar.")


class SHOT(GalleryMethod):
    name = "shot"
    settings: SHOTSettings

    def __init__(self, settings: SHOTSettings | None = None) -> None:
        super().__init__(settings or SHOTSettings())

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        logits = self.logits(forward.queries, forward)
        probabilities = logits.softmax(-1)
        entropy = softmax_entropy(logits).mean()
        mean = probabilities.mean(0)
        diversity = (mean * (mean + self.settings.diversity_epsilon).log()).sum()
        largest, label = probabilities.max(-1)
        sure = largest > self.settings.threshold
        labels = masked_mean(F.cross_entropy(logits, label, reduction="none"), sure)
        loss = entropy + diversity + self.settings.label_weight * labels
        finite = descend(loss, state, self._adamw)
        parts = {"total": loss, "entropy": entropy, "diversity": diversity, "labels": labels}
        return StepReport(
            losses={name: value.detach() for name, value in parts.items()}, applied=True, finite=finite
        )
