"""Exact search by matrix product, in the dtype of the gallery, as the benchmarks' `SearchSide`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adapters.base import Classes
from service.pipeline import NEAREST_CLASSES, Ranking


class ExactSide:
    """All G vectors of a gallery. vectors [G, D] unit rows, on the encoder's device.

    Equal scores rank by position, so that a ranking never depends on the search routine.
    """

    def __init__(self, vectors: Tensor) -> None:
        if vectors.ndim != 2 or len(vectors) == 0:
            raise ValueError(f"a gallery needs vectors [G, D], not {tuple(vectors.shape)}")
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def scores(self, features: Tensor) -> Tensor:
        """features [B, D] -> similarities [B, G]."""
        return features.to(self._vectors.dtype) @ self._vectors.T

    def search(self, features: Tensor, k: int) -> Ranking:
        scores = self.scores(features)
        k = min(k, len(self))
        if k == 1:
            best, positions = scores.max(dim=1, keepdim=True)
        elif k == len(self):
            best, positions = scores.sort(dim=1, descending=True, stable=True)
        else:
            best, positions = scores.topk(k, dim=1)
        return Ranking(best.cpu().numpy(), positions.cpu().numpy())

    def classes(self, features: Tensor, most: int) -> Classes:
        if len(self) <= most:
            return Classes(self._vectors, 0)
        nearest = self.search(features, min(NEAREST_CLASSES, most)).positions
        return Classes(self.vectors(np.unique(nearest)), None)

    def vectors(self, positions: np.ndarray) -> Tensor:
        return self._vectors[torch.from_numpy(positions).to(self._vectors.device)]
