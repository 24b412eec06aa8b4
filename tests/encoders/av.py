"""A small audio-video classifier with untrained weights, and samples for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from encoders.audio import AudioSpec
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae, CavMaeConfig, fresh_weights

_RELEASED = CavMaeConfig(labels=("a", "b", "c"))
CONFIG = replace(
    _RELEASED,
    width=16,
    heads=2,
    depth=3,
    mlp_ratio=2,
    audio=AudioSpec(frames=64, mel_bins=32),
    image=replace(_RELEASED.image, height=32, width=32, shortest_edge=32),
)


def lively_weights(config: CavMaeConfig = CONFIG) -> dict[str, Tensor]:
    """Untrained ones whose norms and biases differ from each other, so that mixing them up shows."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: value + torch.randn(value.shape, generator=generator) * (0.2 if value.ndim == 1 else 0.02)
        for name, value in fresh_weights(config, seed=1).items()
    }


def classifier(dtype: torch.dtype = torch.float64) -> CavMae:
    return CavMae(CONFIG, lively_weights(), dtype=dtype)


def samples(seed: int = 0, size: int = 5, dtype: torch.dtype = torch.float64) -> AVInputs:
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(size, 64, 32, generator=generator, dtype=torch.float64)
    video = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)
    return AVInputs(audio.to(dtype), video.to(dtype))
