"""Any other tower of a VisionTextDualEncoder: the Hugging Face module as it is, with its norms swapped in per
call.

No stem is split off, so K steps repeat the embedding; the towers in `transformer_bodies.py` are faster.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from encoders.base import UnsupportedEncoder
from encoders.blocks import Values
from encoders.towers import Prepared, Tokens, norm_names


class _Whole(nn.Module):
    """Tower and projection under their names in the whole model, so that names of parameters agree."""

    def __init__(self, model: Any, tower: str, projection: str) -> None:
        super().__init__()
        self.add_module(tower, model.get_submodule(tower))
        self.add_module(projection, model.get_submodule(projection))
        self._tower, self._projection = tower, projection

    def forward(self, **inputs: Tensor) -> Tensor:
        pooled = self.get_submodule(self._tower)(**inputs, return_dict=True).pooler_output
        projected: Tensor = self.get_submodule(self._projection)(pooled)
        return projected


class _GenericBody:
    def __init__(self, model: Any, *, tower: str, projection: str, autocast: torch.dtype | None) -> None:
        self.norms: Sequence[str] = norm_names(model, tower)
        self._whole = _Whole(model, tower, projection)
        self._dtype = model.get_submodule(projection).weight.dtype
        self._autocast = autocast
        # functional_call writes the values into the shared module for the length of the call.
        self._lock = threading.Lock()

    def _call(self, values: Values, device: torch.device, **inputs: Tensor) -> Tensor:
        autocast = torch.autocast(device.type, self._autocast) if self._autocast else nullcontext()
        with self._lock, autocast:
            features: Tensor = functional_call(self._whole, dict(values), (), inputs)
            return features


class GenericImageBody:
    def __init__(self, model: Any, *, autocast: torch.dtype | None) -> None:
        _require_pooler(model.vision_model)
        self._body = _GenericBody(
            model, tower="vision_model", projection="visual_projection", autocast=autocast
        )
        self.norms = self._body.norms

    def stem(self, pixels: Tensor) -> Prepared:
        return Prepared(pixels.to(self._body._dtype))

    def __call__(self, prepared: Prepared, values: Values) -> Tensor:
        return self._body._call(values, prepared.hidden.device, pixel_values=prepared.hidden)


class GenericTextBody:
    def __init__(self, model: Any, *, autocast: torch.dtype | None) -> None:
        _require_pooler(model.text_model)
        self._body = _GenericBody(model, tower="text_model", projection="text_projection", autocast=autocast)
        self.norms = self._body.norms

    def stem(self, tokens: Tokens) -> Prepared:
        return Prepared(tokens.ids, mask=tokens.attention_mask)

    def __call__(self, prepared: Prepared, values: Values) -> Tensor:
        assert prepared.mask is not None
        return self._body._call(
            values, prepared.hidden.device, input_ids=prepared.hidden, attention_mask=prepared.mask
        )


def _require_pooler(tower: nn.Module) -> None:
    if hasattr(tower, "pooler") and tower.pooler is None:
        raise UnsupportedEncoder(
            f"{type(tower).__name__} was made without a pooling layer, so it gives no single feature"
        )
