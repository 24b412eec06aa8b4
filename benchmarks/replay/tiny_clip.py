"""The small CLIP of the clip_* goldens: weights in the OpenAI layout, run through the real CLIP encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.replay.compare import Comparison
from benchmarks.replay.golden import Golden, GoldenError, load_golden
from encoders.base import Modality
from encoders.openai_clip import encoder_from_openai, openai_name

_DIRECTIONS: Mapping[str, Modality] = {"i2t": "image", "t2i": "text"}


class OpenAITower:
    """A tower of the project's CLIP: takes ready tensors, calls its parameters by OpenAI's names."""

    def __init__(self, tower: Any) -> None:
        self.modality: Modality = tower.modality
        self._tower = tower
        self._names = {openai_name(name): name for name in tower.parameters}
        self.parameters: Mapping[str, Tensor] = {
            name: tower.parameters[inner] for name, inner in self._names.items()
        }

    def prepare(self, items: Sequence[str] | Sequence[np.ndarray]) -> Any:
        return self._tower.prepare_tensors(torch.from_numpy(np.stack([np.asarray(item) for item in items])))

    def encode(self, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        if parameters is None:
            return self._tower.encode(inputs)
        renamed = {inner: parameters[name] for name, inner in self._names.items()}
        return self._tower.encode(inputs, renamed)


def clip_tower(golden: Golden) -> OpenAITower:
    """The query tower of the golden's direction. Its adaptable parameters must be the recorded ones."""
    weights = _weights(golden)
    encoder = encoder_from_openai(weights, text_heads=int(golden.constant("config")["transformer_heads"]))
    tower = OpenAITower(encoder.towers[_modality(golden)])
    expected = set(golden.constants.get("trainable", tower.parameters))
    if set(tower.parameters) != expected:
        different = sorted(set(tower.parameters) ^ expected)
        raise GoldenError(f"the encoder adapts other parameters than recorded: {', '.join(different)}")
    return tower


def clip_items(comparison: Comparison) -> list[np.ndarray]:
    """Normalised pixels [3, H, W] float32, or token ids [L], one for each query."""
    if _modality(comparison.golden) == "text":
        return list(comparison.take("tokens").astype(np.int64))
    scale = re.search(r"int8\s*/\s*(\d+)", str(comparison.golden.constant("image_scale")))
    if scale is None:
        raise GoldenError("image_scale does not say by what the int8 images are divided")
    return list(comparison.take("images_i8").astype(np.float32) / float(scale[1]))


def _modality(golden: Golden) -> Modality:
    direction = str(golden.constant("direction"))
    if direction not in _DIRECTIONS:
        raise GoldenError(f"unknown direction {direction!r}")
    return _DIRECTIONS[direction]


def _weights(golden: Golden) -> dict[str, Tensor]:
    """The state dict that `constants.weights` names, or else the only clip_weights* of the folder."""
    file = str(golden.constants.get("weights", "clip_weights.npz")).split(" ")[0]
    named = (golden.folder / file).with_suffix(".json")
    others = sorted(golden.folder.glob("clip_weights*.json"))
    beside = load_golden(others[0] if not named.exists() and len(others) == 1 else named)
    return {name: torch.from_numpy(array) for name, array in beside.arrays.items()}
