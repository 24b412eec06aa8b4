"""Which samples a method learns from, and how much each counts: pure functions, shared by the methods.

Letters: B samples, C classes or gallery items, H x W pixels, n patches a side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def entropy_margin(fraction: float, classes: int) -> float:
    """That share of the largest entropy there is, log C, in nats."""
    return fraction * math.log(classes)


def not_redundant(probabilities: Tensor, average: Tensor | None, *, margin: float) -> Tensor:
    """Rows that differ from the running average. [B, C], [C] -> bool [B]; without an average: all.

    EATA: |cos(average, p_i)| < margin.
    """
    if average is None:
        return torch.ones(len(probabilities), dtype=torch.bool, device=probabilities.device)
    return F.cosine_similarity(average.unsqueeze(0), probabilities, dim=-1).abs() < margin


def confidence_weight(entropy: Tensor, *, margin: float) -> Tensor:
    """exp(margin - H), without gradient: 1 at the margin, more below it. nats [B] -> [B]"""
    return torch.exp(margin - entropy.detach())


def prediction_drop(logits: Tensor, corrupted: Tensor) -> Tensor:
    """DeYO's PLPD: how much less likely the predicted class is after the corruption. [B, C] twice -> [B]

    p_i[c] - p'_i[c] with c = argmax p_i; in [-1, 1]. High where the prediction rests on shapes.
    """
    probability, predicted = logits.softmax(-1).max(-1)
    return probability - corrupted.softmax(-1).gather(-1, predicted.unsqueeze(-1)).squeeze(-1)


def shuffle_patches(pictures: Tensor, order_by: Tensor) -> Tensor:
    """Each picture's n x n patches in another order. [B, channels, H, W], [B, n * n] -> [B, channels, H, W]

    Output patch r (row-major) is input patch argsort(order_by)[r]. A picture whose sides n does not divide
    is resized to sides that it does, and back (bilinear, as DeYO's release does).
    """
    side = math.isqrt(order_by.shape[1])
    height, width = pictures.shape[-2:]
    if min(height, width) < side:
        raise ValueError(f"a picture of {height} x {width} has no {side} x {side} patches")
    fitting = (height // side * side, width // side * side)
    resized = _resize(pictures, fitting)
    patches = _grid(resized, side)  # [B, n * n, channels, h, w]
    order = order_by.argsort(dim=1).to(pictures.device)
    shuffled = patches.gather(1, order[:, :, None, None, None].expand_as(patches))
    return _resize(_ungrid(shuffled, side), (height, width))


def _resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return F.interpolate(pictures, size=size, mode="bilinear", align_corners=False, antialias=True)


def _grid(pictures: Tensor, side: int) -> Tensor:
    """[B, channels, n * h, n * w] -> [B, n * n, channels, h, w]"""
    batch, channels, height, width = pictures.shape
    cut = pictures.reshape(batch, channels, side, height // side, side, width // side)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def _ungrid(patches: Tensor, side: int) -> Tensor:
    """The inverse of `_grid`."""
    batch, _, *cell = patches.shape
    cut = patches.reshape(batch, side, side, *cell)
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def moving_average(old: Tensor | None, new: Tensor, *, keep: float = 0.9) -> Tensor:
    """keep * old + (1 - keep) * new, without gradient; the first value counts in full."""
    return new.detach().clone() if old is None else keep * old + (1 - keep) * new.detach()
