"""What retrieval baselines have in common that take the gallery's items for classes (methods.md 2.1-2.6).

    o = q Z^T / T,    Z the gallery's vectors [C, D]

They come from classification, and their entropies are over all items. Norm parameters of the query's encoder
learn, K steps a batch; answers come from the last step's forward. A gallery of more than `most_classes` items
is stood for by the items nearest to the batch [ours].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from adapters.base import Classes, Forward, at_least_fp32
from adapters.drift import batch_drift
from adapters.optimizer import AdamWSettings
from adapters.settings import MethodSettings
from adapters.state import AdaptationState


class GallerySettings(MethodSettings):
    steps: int = Field(3, ge=1, le=20, description="Forward, loss, backward and update per batch (K).")
    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="AdamW. Released: 3e-4, and 3e-5 for text queries with BLIP."
    )
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW, decoupled.")
    temperature: float = Field(0.01, gt=0, le=10, description="Softmax temperature over the gallery (T).")
    learn_from_shift: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Smallest shift from clean batches (1: none) to learn from, where a calibration "
        "tells it; 0: all [ours].",
    )
    most_classes: int = Field(
        50_000, ge=2, le=10_000_000, description="Items taken for classes; of a larger gallery the nearest."
    )


class GalleryMethod:
    """All of a method but its loss. Subclasses have a `name` and `learn`."""

    name: str
    adapts = True
    learns = True
    rectifies = False
    predict_after_update = False
    needs_completion = False

    def __init__(self, settings: GallerySettings) -> None:
        self.settings: GallerySettings = settings
        self.steps = settings.steps
        self.most_classes = settings.most_classes
        self.learn_from_shift = settings.learn_from_shift
        self._adamw = AdamWSettings(settings.learning_rate, settings.weight_decay)

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        copies = {name: value.detach().clone() for name, value in parameters.items()}
        return AdaptationState(method=self.name, fingerprint=fingerprint, parameters=copies)

    def observe(self, state: AdaptationState, forward: Forward) -> None:
        """What it remembers it remembers when it learns."""

    def answer(self, state: AdaptationState, forward: Forward) -> Tensor:
        return forward.queries.detach()

    def answer_alone(self, state: AdaptationState, queries: Tensor) -> Tensor:
        return queries

    @torch.no_grad()
    def drift(self, state: AdaptationState, forward: Forward) -> Mapping[str, Tensor]:
        return batch_drift(at_least_fp32(forward.queries.detach()), forward.candidates, temperature=0.02)

    def classes(self, forward: Forward) -> Classes:
        if forward.classes is None:
            raise ValueError(f"{self.name} compares with the gallery, and the forward has none")
        return forward.classes

    def logits(self, queries: Tensor, forward: Forward) -> Tensor:
        """[B, D] -> [B, C] fp64: at T = 0.01 they lie near 100, and entropies in their last digits."""
        rows = at_least_fp32(queries)
        return (rows @ self.classes(forward).vectors.to(rows.dtype).T).double() / self.settings.temperature


def kth_smallest(values: Tensor, fraction: float) -> Tensor:
    """The k-th smallest of [B], k = floor(fraction B); of a batch too small for that the smallest [ours]."""
    return values.kthvalue(max(1, int(fraction * len(values)))).values
