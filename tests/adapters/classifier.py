"""A small audio-video classifier that is sure of itself, and streams for it.

Letters: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from adapters.calibration import Calibration, fisher_values, source_statistics
from adapters.classification import ClassifyMethod, TwoStream
from adapters.completion import fit_completion
from adapters.state import AdaptationState
from adapters.two_stream_completion import representations
from encoders.audio import AudioSpec
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae, CavMaeConfig, fresh_weights
from encoders.preprocessing import ImageSpec
from service.classification import adapt
from service.pipeline import EarlyAnswer, Outcome, StageTimes

C = 6
Returned = TypeVar("Returned")
CONFIG = CavMaeConfig(
    labels=tuple("abcdef"),
    width=16,
    heads=2,
    depth=3,
    mlp_ratio=2,
    audio=AudioSpec(frames=64, mel_bins=32),
    image=ImageSpec(height=32, width=32),
)


def small_weights() -> dict[str, Tensor]:
    """Norms away from 1 and 0, and a head whose answers are far from even."""
    generator = torch.Generator().manual_seed(3)
    weights = fresh_weights(CONFIG, seed=1)
    for name, value in weights.items():
        if "norm" in name or name.startswith("mlp_head.0"):
            value.add_(torch.randn(value.shape, generator=generator) * 0.3)
    weights["mlp_head.1.weight"].mul_(2.5)
    return weights


@lru_cache
def classifier(dtype: torch.dtype = torch.float64) -> CavMae:
    """Calibrated on samples of its own; nobody may change it."""
    model = CavMae(CONFIG, small_weights(), dtype=dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    clean = [samples(900, 6, exact), samples(901, 6, exact)]
    statistics, fisher = source_statistics(model, clean[0]), fisher_values(model, clean)
    with torch.no_grad():
        parts = representations(model, samples(902, 48, exact))
    completion = run_to_end(fit_completion(parts, unit=False, latent=4))
    model.calibration = Calibration(model.fingerprint, statistics, fisher, completion)
    return model


def run_to_end(slices: Generator[Any, None, Returned]) -> Returned:
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            found: Returned = ended.value
            return found


def samples(seed: int, size: int = 8, dtype: torch.dtype = torch.float64, shift: float = 0.0) -> AVInputs:
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(size, 64, 32, generator=generator, dtype=torch.float64) + shift
    video = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64) - shift
    return AVInputs(audio.to(dtype), video.to(dtype))


def stream(count: int, *, first: int = 0, dtype: torch.dtype = torch.float64) -> list[AVInputs]:
    return [samples(first + number, dtype=dtype, shift=0.5) for number in range(count)]


@dataclass(frozen=True)
class Result:
    """One adapted batch: what was answered, how it ended."""

    answer: EarlyAnswer[Tensor]
    outcome: Outcome


def adapt_one(model: TwoStream, method: ClassifyMethod, state: AdaptationState, inputs: AVInputs) -> Result:
    answers: list[EarlyAnswer[Tensor]] = []
    slices = adapt(
        model=model,
        method=method,
        state=state,
        inputs=inputs,
        batch_id=f"batch-{state.batches}",
        times=StageTimes(),
        on_answer=answers.append,
    )
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            (answer,) = answers
            return Result(answer, ended.value)


def run(
    model: CavMae, method: ClassifyMethod, state: AdaptationState, batches: Sequence[AVInputs]
) -> tuple[AdaptationState, list[Result]]:
    """Batch after batch; the state after the last, and every result."""
    results = []
    for inputs in batches:
        result = adapt_one(model, method, state, inputs)
        state = result.outcome.state or state
        results.append(result)
    return state, results
