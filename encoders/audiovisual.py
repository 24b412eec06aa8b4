"""What the parts of an audio-video model exchange.

Letters: B samples, T frames of a spectrogram, F mel bins, H x W pixels, N tokens, D width, L tower blocks,
C classes, P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

AVModality = Literal["audio", "video"]
AV_MODALITIES: tuple[AVModality, ...] = ("audio", "video")
Norms = Literal["plain", "audio", "video"]
"""Which of a joint block's three pairs of norms is used."""


@dataclass(frozen=True)
class AVInputs:
    """A prepared batch on the model's device; what its samples lack is None, for all of them alike.

    audio  [B, T, F] normalised log mel spectrograms
    video  [B, 3, H, W] normalised frames, one a sample
    """

    audio: Tensor | None
    video: Tensor | None

    def __post_init__(self) -> None:
        if self.audio is None and self.video is None:
            raise ValueError("a batch needs audio or video")

    @property
    def complete(self) -> bool:
        return self.audio is not None and self.video is not None

    @property
    def missing(self) -> tuple[AVModality, ...]:
        return tuple(name for name in AV_MODALITIES if getattr(self, name) is None)

    def __len__(self) -> int:
        there = self.audio if self.audio is not None else self.video
        assert there is not None
        return len(there)

    def __getitem__(self, rows: Tensor) -> AVInputs:
        """Those rows (int64 [n], or bool [B]) as a batch of their own."""
        return AVInputs(
            None if self.audio is None else self.audio[rows],
            None if self.video is None else self.video[rows],
        )


@dataclass(frozen=True)
class AVOutput:
    """logits [B, C]; features [B, D] behind the head's norm; pooled [B, D] before it. fp32 (fp64 stays)."""

    logits: Tensor
    features: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class TowerOutput:
    """tokens [B, N, D] of the patches, prompts dropped; features [B, L, D] per block where asked for."""

    tokens: Tensor
    features: Tensor | None = None


def at_least_fp32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
