"""One gallery and target, as the pipeline searches it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from adapters.base import Classes
from index.gallery import Gallery
from service.messages import Target
from service.pipeline import NEAREST_CLASSES, Ranking

_copies: WeakKeyDictionary[Gallery, tuple[int, Target, Tensor]] = WeakKeyDictionary()
"""Of galleries whose vectors a method took for classes; one thread owns them."""


class GallerySide:
    """See service.pipeline.SearchSide."""

    def __init__(self, gallery: Gallery, target: Target, device: torch.device) -> None:
        self._gallery, self._target, self._device = gallery, target, device

    def search(self, features: Tensor, k: int) -> Ranking:
        scores, positions = self._gallery.search_raw(self._target, to_numpy(features), k)
        return Ranking(scores, positions, self._gallery.generation)

    def vectors(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(self._gallery.vectors(self._target, positions)).to(self._device)

    def classes(self, features: Tensor, most: int) -> Classes:
        gallery, target = self._gallery, self._target
        if gallery.count(target) <= most:
            return Classes(self._all(), gallery.generation)
        _, positions = gallery.search_raw(target, to_numpy(features), min(NEAREST_CLASSES, most))
        return Classes(self.vectors(np.unique(positions[positions >= 0])), None)

    def _all(self) -> Tensor:
        """Every vector, copied once in a gallery's generation: torch takes no view that is read-only."""
        generation, target = self._gallery.generation, self._target
        known = _copies.get(self._gallery)
        if known is None or known[:2] != (generation, target):
            copied = torch.from_numpy(self._gallery.matrix(target).copy()).to(self._device)
            known = _copies[self._gallery] = (generation, target, copied)
        return known[2]


def to_numpy(features: Tensor) -> np.ndarray:
    """[B, D] fp32 on the host; no copy where the features already are."""
    array: np.ndarray = features.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array
