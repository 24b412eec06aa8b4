"""The small float64 encoder that the retrieval goldens were recorded with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.base import Modality


class ToyTower:
    """ln1 -> fc1 -> GELU -> ln2 -> fc2 -> unit rows, in the dtype of its weights. Inputs are flattened."""

    modality: Modality = "image"

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        trainable: Sequence[str],
        epsilon: float,
        shape: Sequence[int] | None = None,
    ) -> None:
        """`shape` of a picture, where the inputs are pictures."""
        self._shape = shape
        self._weights = dict(weights)
        self._epsilon = epsilon
        self.parameters: Mapping[str, Tensor] = {name: self._weights[name] for name in trainable}

    def prepare(self, items: Sequence[str] | Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Arrays [B, ...] -> [B, features]."""
        return torch.as_tensor(np.asarray(items)).to(self._weights["fc1.weight"].dtype).flatten(1)

    def pictures(self, inputs: Any) -> Tensor:
        return inputs.unflatten(1, self._shape)

    def prepare_tensors(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(1)

    def encode(self, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        weights = {**self._weights, **(parameters or {})}
        hidden = self._norm(inputs, weights, "ln1")
        hidden = F.gelu(F.linear(hidden, weights["fc1.weight"], weights["fc1.bias"]))
        hidden = self._norm(hidden, weights, "ln2")
        return F.normalize(F.linear(hidden, weights["fc2.weight"]), dim=1)

    def _norm(self, hidden: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(hidden, weight.shape, weight, bias, self._epsilon)
