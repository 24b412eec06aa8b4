"""A dual encoder of a few hundred numbers, for tests of everything around the real ones.

Texts become counts of letters, pictures means of a 4x4 grid; each tower is LayerNorm -> Linear -> unit rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.base import Modality
from encoders.preprocessing import ImageSpec

SIDE = 8
FEATURES = 16


class ToyTower:
    def __init__(self, modality: Modality, inputs: int, generator: torch.Generator) -> None:
        self.modality = modality
        self.parameters: dict[str, Tensor] = {
            "norm.weight": torch.ones(inputs),
            "norm.bias": torch.zeros(inputs),
        }
        self._weight = torch.randn(FEATURES, inputs, generator=generator)
        self.forwards = 0

    def prepare(self, items: Sequence[str] | Sequence[np.ndarray]) -> Tensor:
        if self.modality == "text":
            rows = [[float(str(text).lower().count(chr(97 + i))) for i in range(26)] for text in items]
            return torch.tensor(rows)
        pictures = torch.from_numpy(np.stack([np.asarray(item) for item in items])).float() / 255
        return F.adaptive_avg_pool2d(pictures, 4).flatten(1)

    def encode(self, inputs: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        self.forwards += 1
        used = self.parameters if parameters is None else parameters
        hidden = F.layer_norm(inputs, inputs.shape[1:], used["norm.weight"], used["norm.bias"])
        features = F.normalize(hidden @ self._weight.T, dim=-1)
        return features if parameters is not None else features.detach()


class ToyEncoder:
    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name = "toy"
        self.dimension = FEATURES
        self.fingerprint = f"toy-{seed}"
        self.temperature = 0.07
        self.device = torch.device("cpu")
        self.dtype_name = "fp32"
        self.image_spec = ImageSpec(height=SIDE, width=SIDE)
        self.towers: dict[Modality, ToyTower] = {
            "image": ToyTower("image", 48, generator),
            "text": ToyTower("text", 26, generator),
        }


def picture(seed: int) -> np.ndarray:
    """uint8 [3, SIDE, SIDE]"""
    return np.random.default_rng(seed).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)


WORDS = [
    "red",
    "green",
    "blue",
    "large",
    "small",
    "cat",
    "dog",
    "tree",
    "house",
    "river",
    "cloud",
    "stone",
    "bird",
    "fish",
    "boat",
]


def sentence(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 5))
