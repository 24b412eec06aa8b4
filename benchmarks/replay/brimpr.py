"""Replayers of BriMPR's goldens: whole streams with recorded masks, and its losses with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adapters.alignment import (
    adaptive_temperature,
    instance_contrast,
    soft_cross_entropy,
    statistics_distance,
)
from adapters.brimpr import BriMPR, BriMPRSettings, History
from adapters.calibration import PARTS, Calibration, LayerStatistics, SourceStatistics, source_statistics
from adapters.optimizer import gradients
from adapters.state import AdaptationState
from benchmarks.replay.classification import Answered, RecordedNoise, run_batches
from benchmarks.replay.compare import Comparison
from benchmarks.replay.golden import Golden
from benchmarks.replay.replayer import Replayer
from benchmarks.replay.tiny_cav_mae import av_batches, av_samples, cav_mae_of, is_audio_video
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae


def _is_stream(golden: Golden) -> bool:
    return is_audio_video(golden) and {"init.prompts_a", "noise_a", "outputs"} <= set(golden.arrays)


def _replay_stream(comparison: Comparison) -> None:
    golden = comparison.golden
    model, batches = cav_mae_of(golden), av_batches(golden)
    statistics = source_statistics(model, av_samples(golden, "source"))
    model.calibration = Calibration(model.fingerprint, statistics)
    noise = RecordedNoise({"audio": comparison.take("noise_a"), "video": comparison.take("noise_v")})
    method = BriMPR(_settings(golden), noise=noise)
    start = method.initial_state(model)
    start.parameters = {
        name: torch.from_numpy(comparison.take(f"init.{name}")) for name in ("prompts_a", "prompts_v")
    }
    _check_first_gradient(comparison, model, method, batches[0], start.clone())
    stream = run_batches(model, method, batches, state=start, before_each=noise.turn_to)
    comparison.check("outputs", torch.cat([batch.logits for batch in stream]).numpy())
    for name in ("prompts_a", "prompts_v"):
        comparison.check(name, torch.stack([batch.state.parameters[name] for batch in stream]).numpy())
    _check_losses(comparison, stream)


def _settings(golden: Golden) -> BriMPRSettings:
    constant = golden.constant
    return BriMPRSettings(
        learning_rate=float(constant("lr")),
        prompts=int(constant("num_prompts")),
        prompt_layers=int(constant("prompt_layers")),
        mask_ratio=float(constant("mask")),
        temperature_scale=float(constant("a")),
        temperature_centre=float(constant("b")),
        tau=float(constant("tau")),
    )


def _check_first_gradient(
    comparison: Comparison, model: CavMae, method: BriMPR, inputs: AVInputs, state: AdaptationState
) -> None:
    for value in state.parameters.values():
        value.requires_grad_(True)
    passes = method.passes(model, state, inputs)
    assert model.calibration is not None
    terms = method.losses(passes, model.calibration.statistics)
    loss = terms["pmgfa"] + terms["cmer"] + terms["iicl"]
    grads = gradients(loss, state.parameters)
    comparison.check("grad0_a", grads["prompts_a"].numpy())
    comparison.check("grad0_v", grads["prompts_v"].numpy())


_LOSSES = {
    "loss": "total",
    "ce_amv": "masked_audio",
    "ce_avm": "masked_video",
    "nce": "iicl",
    "adatp": "teacher_temperature",
}
_DISTANCES = {"dist_a": "distance_audio", "dist_v": "distance_video", "dist_u": "distance_fused"}


def _check_losses(comparison: Comparison, stream: Sequence[Answered]) -> None:
    reports = [batch.outcome.losses for batch in stream]
    for array, name in _LOSSES.items():
        comparison.check(array, [report[name] for report in reports])
    for array, name in _DISTANCES.items():
        found = [report[name] for report in reports]
        comparison.check(array, found, comparison.golden.array(array).mean(axis=1))  # reports hold means


# -- losses ---------------------------------------------------------------------------------------------


def _is_losses(golden: Golden) -> bool:
    return {"ce_student", "ce_teacher", "nce_a", "detect_a", "z_a"} <= set(golden.arrays)


def _replay_losses(comparison: Comparison) -> None:
    distances = _check_alignment(comparison)
    for array in comparison.golden.arrays:
        if array.startswith("adatp_a"):
            scale, centre = array.removeprefix("adatp_a").split("_b")
            got = adaptive_temperature(distances["fused"].mean(), scale=float(scale), centre=float(centre))
            comparison.check(array, float(got))
        elif array.startswith("nce_tau"):
            _check_contrast(comparison, array.removeprefix("nce_tau"))
    total = distances["audio"].mean() + distances["video"].mean()
    comparison.check("lambda_a", float(distances["video"].mean() / total))
    comparison.check("lambda_v", float(distances["audio"].mean() / total))
    student = _leaf(comparison.take("ce_student"))
    teacher = torch.from_numpy(comparison.take("ce_teacher")) / _recorded_temperature(comparison.golden)
    rows = soft_cross_entropy(student, teacher)
    comparison.check("ce_rows", rows.detach().numpy())
    comparison.check("ce_grad", torch.autograd.grad(rows.mean(), student)[0].numpy())
    _check_detector(comparison)


def _leaf(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64)).requires_grad_(True)


def _check_alignment(comparison: Comparison) -> dict[str, Tensor]:
    features = {part: _leaf(comparison.take(f"features_{part[0]}")) for part in ("audio", "video")}
    features["fused"] = torch.from_numpy(comparison.take("features_u"))
    source = SourceStatistics(
        *(
            LayerStatistics(
                torch.from_numpy(comparison.take(f"src_std_{letter}")),
                torch.from_numpy(comparison.take(f"src_mean_{letter}")),
            )
            for letter in "avu"
        )
    )
    distances = {part: statistics_distance(features[part], getattr(source, part)) for part in PARTS}
    for part, letter in zip(PARTS, "avu", strict=True):
        comparison.check(f"dist_{letter}", distances[part].detach().numpy())
    loss = distances["audio"].mean() + distances["video"].mean()
    comparison.check("loss_align", float(loss.detach()))
    for part in ("audio", "video"):
        (gradient,) = torch.autograd.grad(loss, features[part], retain_graph=True)
        comparison.check(f"grad_{part[0]}", gradient.numpy())
    return {part: value.detach() for part, value in distances.items()}


def _check_contrast(comparison: Comparison, tau: str) -> None:
    audio, video = _leaf(comparison.take("nce_a")), _leaf(comparison.take("nce_v"))
    loss = instance_contrast(audio, video, temperature=float(tau))
    comparison.check(f"nce_tau{tau}", float(loss.detach()))
    for letter, gradient in zip("av", torch.autograd.grad(loss, [audio, video]), strict=True):
        comparison.check(f"nce_grad_{letter}_tau{tau}", gradient.numpy())


def _recorded_temperature(golden: Golden) -> float:
    """`ce_rows` is described as "adatp=1.13"."""
    said = str(golden.described.get("ce_rows", {}).get("doc", ""))
    return float(said.partition("=")[2] or 1.0)


def _check_detector(comparison: Comparison) -> None:
    events: list[tuple[int, int]] = []
    for number, letter in enumerate("av"):
        history, scores = History(window=10, threshold=5.0), []
        for batch, value in enumerate(comparison.take(f"detect_{letter}")):
            scores.append(float(history.score(float(value))))
            if history.jumps(float(value)):
                events.append((batch, number))
        comparison.check(f"z_{letter}", scores)
    comparison.check("restore_events", sorted(events))


REPLAYERS: tuple[Replayer, ...] = (
    Replayer("BriMPR stream", _is_stream, _replay_stream),
    Replayer("BriMPR losses", _is_losses, _replay_losses),
)
