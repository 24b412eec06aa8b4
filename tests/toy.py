"""Models of a few hundred numbers, for tests of everything around the real ones.

Dual encoder: texts become counts of letters, pictures means of a 4x4 grid; each tower is LayerNorm -> Linear
-> unit rows. Classifier: mean mel energies beside such a grid, zeros for what a sample lacks; LayerNorm ->
Linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.calibration import Calibration
from encoders.audio import AudioSpec
from encoders.audiovisual import AVInputs, AVModality, AVOutput, Norms, TowerOutput
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


MEL_BINS = 8
FRAMES = 12
LABELS = ("bell", "dog", "rain", "train", "voice")


class ToyClassifier:
    """Adapted by the norm alone: methods that want towers or attention are not for it."""

    depth = 1

    def __init__(self, seed: int = 0, labels: Sequence[str] = LABELS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name = "toy-classifier"
        self.fingerprint = f"toy-classifier-{seed}"
        self.labels = tuple(labels)
        self.label_count = len(labels)
        self.device = torch.device("cpu")
        self.dtype_name = "fp32"
        self.audio_spec = AudioSpec(frames=FRAMES, mel_bins=MEL_BINS)
        self.image_spec = ImageSpec(height=SIDE, width=SIDE)
        self.width = MEL_BINS + 48
        norm = {"norm.weight": torch.ones(self.width), "norm.bias": torch.zeros(self.width)}
        self.weights: dict[str, Tensor] = {
            **norm,
            "head.weight": torch.randn(len(labels), self.width, generator=generator),
        }
        self.groups: Mapping[str, tuple[str, ...]] = {
            "norms": tuple(norm),
            "early_norms": tuple(norm),
            "joint_attention": (),
        }
        self.calibration: Calibration | None = None

    def prepare(self, fbanks: Sequence[np.ndarray] | None, pictures: Sequence[np.ndarray] | None) -> AVInputs:
        audio = None if fbanks is None else torch.stack([torch.tensor(one).mean(0) for one in fbanks])
        video = None if pictures is None else torch.from_numpy(np.stack(pictures)).float() / 255
        return AVInputs(None if audio is None else audio.unsqueeze(1), video)

    def forward(
        self, inputs: AVInputs, values: Mapping[str, Tensor] | None = None, prompts: object = None
    ) -> AVOutput:
        towers = {
            name: self.tower_packed(name, [tokens])[0].tokens for name, tokens in self.embed(inputs).items()
        }
        pooled = self.fuse(towers, values)
        logits, hidden = self.head(pooled, values)
        return AVOutput(logits, hidden, pooled)

    def embed(self, inputs: AVInputs, values: Mapping[str, Tensor] | None = None) -> dict[AVModality, Tensor]:
        """One token each: its own numbers in their places, zeros in the other's."""
        found: dict[AVModality, Tensor] = {}
        if inputs.audio is not None:
            found["audio"] = F.pad(inputs.audio.mean(1), (0, 48)).unsqueeze(1)
        if inputs.video is not None:
            grid = F.adaptive_avg_pool2d(inputs.video, 4).flatten(1)
            found["video"] = F.pad(grid, (MEL_BINS, 0)).unsqueeze(1)
        return found

    def tower_packed(
        self,
        modality: AVModality,
        token_sets: Sequence[Tensor],
        *,
        values: Mapping[str, Tensor] | None = None,
        prompts: Tensor | None = None,
        features: bool = False,
    ) -> list[TowerOutput]:
        means = token_sets[0].mean(1, keepdim=True) if features else None
        return [TowerOutput(tokens, None if i else means) for i, tokens in enumerate(token_sets)]

    def joint_packed(
        self, segments: Sequence[tuple[Tensor, Norms]], values: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        return [tokens.sum(1) for tokens, _ in segments]

    def fuse(self, tokens: Mapping[AVModality, Tensor], values: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.joint_packed([(torch.cat(list(tokens.values()), dim=1), "plain")])[0]

    def head(self, pooled: Tensor, values: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        used = {**self.weights, **(values or {})}
        hidden = F.layer_norm(pooled, pooled.shape[1:], used["norm.weight"], used["norm.bias"])
        return hidden @ used["head.weight"].T, hidden


def sound(seed: int, frames: int = FRAMES) -> np.ndarray:
    """Log mel energies, float32 [frames, MEL_BINS]."""
    return np.random.default_rng(seed).normal(-5, 4, (frames, MEL_BINS)).astype(np.float32)


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
