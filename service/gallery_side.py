"""One gallery and target, as the pipeline searches it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from index.gallery import Gallery
from service.messages import Target
from service.pipeline import Ranking


class GallerySide:
    """See service.pipeline.SearchSide."""

    def __init__(self, gallery: Gallery, target: Target, device: torch.device) -> None:
        self._gallery, self._target, self._device = gallery, target, device

    def search(self, features: Tensor, k: int) -> Ranking:
        scores, positions = self._gallery.search_raw(self._target, to_numpy(features), k)
        return Ranking(scores, positions, self._gallery.generation)

    def vectors(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(self._gallery.vectors(self._target, positions)).to(self._device)


def to_numpy(features: Tensor) -> np.ndarray:
    """[B, D] fp32 on the host; no copy where the features already are."""
    array: np.ndarray = features.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array
