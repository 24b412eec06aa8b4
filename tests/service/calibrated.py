"""Calibrations of the toy models, made of made-up numbers that two modalities share."""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from adapters.calibration import PARTS, Calibration, pack_calibration
from adapters.completion import Completion, fit_completion
from tests.toy import FEATURES, ToyClassifier, ToyEncoder

Returned = TypeVar("Returned")


def to_the_end(slices: Generator[Any, None, Returned]) -> Returned:
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            found: Returned = ended.value
            return found


def related(seed: int, count: int = 60, size: int = FEATURES) -> torch.Tensor:
    """[2, count, size]: what the halves share, and noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 3, generator=generator) @ torch.randn(3, 2 * size, generator=generator)
    noisy = shared + 0.3 * torch.randn(count, 2 * size, generator=generator)
    return torch.stack([noisy[:, :size], noisy[:, size:]])


@lru_cache
def encoder_completion(seed: int = 0) -> Completion:
    image, text = F.normalize(related(seed), dim=-1)
    return to_the_end(fit_completion({"image": image, "text": text}, unit=True, latent=3))


def encoder_file(seed: int = 0, *, fingerprint: str | None = None, **about: Any) -> bytes:
    """Of the toy encoder; another seed is another content."""
    fingerprint = ToyEncoder().fingerprint if fingerprint is None else fingerprint
    return pack_calibration(Calibration(fingerprint, completion=encoder_completion(seed), about=about))


@lru_cache
def classifier_completion(seed: int = 0) -> Completion:
    model = ToyClassifier()
    both = related(seed, size=model.width)
    parts = dict(zip(PARTS, (*both, both.mean(0)), strict=True))
    return to_the_end(fit_completion(parts, unit=False, latent=3))


def classifier_file(seed: int = 0) -> bytes:
    return pack_calibration(Calibration(ToyClassifier().fingerprint, completion=classifier_completion(seed)))
