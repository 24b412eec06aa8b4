"""What completing costs beside encoding, and what fitting costs. Letters: B samples of a batch, d features.

Both are timed in turns, so the shares are of one run; embeddings are drawn, as their values change no time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.completion import Completion, Progress, fit_completion
from adapters.two_stream_completion import representations
from benchmarks.embedding import Progress as Done
from demo import demo_classifier_path, demo_encoder_path
from demo.scenes import scenes
from encoders.audiovisual import AVInputs
from encoders.base import Encoder, Modality
from encoders.cav_mae import CavMae, load_cav_mae
from encoders.load import load_encoder

BATCH = 64
LATENT = 64
FIT_SAMPLES, FIT_MODALITIES, FIT_FEATURES = 10_000, 3, 512

Part = Callable[[], object]


def measure_cost(model: str, rounds: int, bar: Callable[[str, int], Done]) -> list[dict[str, Any]]:
    """Rows of an encoder's two towers, of the demo's classifier, and of a fit. Raises EncoderError."""
    encoder = load_encoder(str(demo_encoder_path()) if model == "demo" else model, device="cpu")
    classifier = load_cav_mae(Path(demo_classifier_path()), device="cpu")
    made = fitted(("image", "text"), encoder.dimension, unit=True)
    rows = []
    done = bar("completing", 4)
    kinds: tuple[Modality, ...] = ("image", "text")
    for kind in kinds:
        rows.append({"part": f"{kind}s", "of": encoder.name, **_encoding(encoder, kind, made, rounds)})
        done(1)
    for given in ("audio", "video"):
        row = {"part": f"{given} alone", "of": "demo classifier"}
        rows.append({**row, **_classifying(classifier, given, rounds)})
        done(1)
    return [*rows, _fitting(bar)]


def fitted(names: Sequence[str], size: int, *, unit: bool) -> Completion:
    """To drawn samples, with a latent of `LATENT` or as large as there can be one."""
    return drain(fit_completion(_drawn(names, 500, size, unit), unit=unit, latent=min(LATENT, size - 1)))


def _drawn(names: Sequence[str], count: int, size: int, unit: bool) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(count, LATENT, generator=random)
    found = {}
    for name in names:
        values = latent @ torch.randn(LATENT, size, generator=random) / 8
        values = values + torch.randn(count, size, generator=random) * torch.linspace(2, 0.2, size)
        found[name] = F.normalize(values, dim=1) if unit else values
    return found


def drain(slices: Any, step: Callable[[Progress], None] = lambda at: None) -> Completion:
    while True:
        try:
            step(next(slices))
        except StopIteration as ended:
            found: Completion = ended.value
            return found


def _encoding(encoder: Encoder, kind: Modality, completion: Completion, rounds: int) -> dict[str, float]:
    """Shares of a batch's encode time, preparing the items not counted."""
    tower = encoder.towers[kind]
    inputs = tower.prepare(_items(encoder, kind))
    features = tower.encode(inputs)

    def complete() -> None:
        completion.anchors(completion.complete({kind: features}))

    return _shares(
        lambda: tower.encode(inputs), complete, lambda: completion.novelty_of({kind: features}), rounds
    )


def _items(encoder: Encoder, kind: Modality) -> list[Any]:
    if kind == "text":
        return [scene.caption for scene in scenes("test", BATCH)]
    spec, random = encoder.image_spec, np.random.default_rng(0)
    return list(random.integers(0, 256, (BATCH, 3, spec.height, spec.width), dtype=np.uint8))


@torch.no_grad()
def _classifying(model: CavMae, given: str, rounds: int) -> dict[str, float]:
    """Shares of the model's own path for the same batch."""
    random, config = np.random.default_rng(0), model.config
    sounds = list(
        random.normal(-5, 4, (BATCH, config.audio.frames, config.audio.mel_bins)).astype(np.float32)
    )
    frames = list(
        random.integers(0, 256, (BATCH, 3, config.image.height, config.image.width), dtype=np.uint8)
    )
    whole = model.prepare(sounds, frames)
    inputs = AVInputs(whole.audio, None) if given == "audio" else AVInputs(None, whole.video)
    completion = fitted(("audio", "video", "fused"), config.width, unit=False)
    part: Mapping[str, Tensor] = representations(model, inputs)

    def complete() -> None:
        model.head(completion.complete(part).embeddings["fused"])

    return _shares(lambda: model.forward(inputs), complete, lambda: completion.novelty_of(part), rounds)


def _shares(encode: Part, complete: Part, novelty: Part, rounds: int) -> dict[str, float]:
    """Milliseconds, medians; shares in percent are medians of the shares of each round."""
    times: list[tuple[float, ...]] = []
    for _ in range(rounds + 1):
        times.append(tuple(_milliseconds(part) for part in (encode, complete, novelty)))
    warm = times[1:]
    return {
        "encode_ms": statistics.median(encoding for encoding, _, _ in warm),
        "complete_ms": statistics.median(completing for _, completing, _ in warm),
        "novelty_ms": statistics.median(ranking for _, _, ranking in warm),
        "complete_percent": 100
        * statistics.median(completing / encoding for encoding, completing, _ in warm),
        "with_novelty_percent": 100
        * statistics.median((completing + ranking) / encoding for encoding, completing, ranking in warm),
    }


def _milliseconds(part: Part) -> float:
    began = time.perf_counter()
    part()
    return 1000 * (time.perf_counter() - began)


def _fitting(bar: Callable[[str, int], Done]) -> dict[str, Any]:
    """A fit of a given latent size: once without the samples that are held out, once to all."""
    names = tuple(f"modality {number}" for number in range(FIT_MODALITIES))
    values = _drawn(names, FIT_SAMPLES, FIT_FEATURES, unit=True)
    iterations: list[Progress] = []
    bar(f"fitting {FIT_SAMPLES} x {FIT_MODALITIES} x {FIT_FEATURES}", 1)
    began, cpu_began = time.perf_counter(), time.process_time()
    completion = drain(fit_completion(values, unit=True, latent=LATENT), iterations.append)
    return {
        "part": "fit",
        "of": f"{FIT_SAMPLES} x {FIT_MODALITIES} x {FIT_FEATURES}, latent {LATENT}",
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "iterations": len(iterations),
        "converged": completion.about["converged"],
    }
