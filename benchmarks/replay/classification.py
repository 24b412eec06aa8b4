"""Replayers of the av_* goldens: streams of classification through the service's pipeline.

Letters: N samples of the stream, B of a batch, C classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.brimpr import BriMPR, BriMPRSettings
from adapters.calibration import Calibration, fisher_values, source_statistics
from adapters.classification import ClassifyMethod, Modality
from adapters.deyo import DeYOClassifier
from adapters.registry import CLASSIFY_METHODS, make_classify_method
from adapters.state import AdaptationState
from benchmarks.replay.compare import Comparison
from benchmarks.replay.golden import Golden, GoldenError
from benchmarks.replay.replayer import Replayer
from benchmarks.replay.stream import NotReplayableError
from benchmarks.replay.tiny_cav_mae import av_batches, av_samples, cav_mae_of, is_audio_video
from encoders.audiovisual import AV_MODALITIES, AVInputs
from encoders.cav_mae import CavMae, sincos_positions
from service.classification import adapt
from service.pipeline import EarlyAnswer, Outcome, StageTimes


@dataclass(frozen=True)
class MethodReplay:
    """How a method's recorded names translate.

    settings  constant of the sidecar -> setting of the method (not needed where the names agree)
    nats      the same for margins that are recorded in nats, and set as shares of log C
    losses    names in the batch's report, one for each column of `loss`; columns without a name hold 0
    skipped   what is recorded as the loss of a batch that had none
    counts    recorded array -> name in the report, one value a batch
    numbers   recorded array -> name among the state's numbers after each batch
    keeps_moments   whether the released reset left Adam's moments as they were; ours never does
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    nats: Mapping[str, str] = field(default_factory=dict)
    losses: Sequence[str] = ()
    skipped: float = math.nan
    counts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    keeps_moments: bool = False


# A new method's goldens are replayed by one more entry here.
METHOD_REPLAYS: Mapping[str, MethodReplay] = {
    "source": MethodReplay(),
    "tent": MethodReplay(losses=("entropy",)),
    "t3a": MethodReplay(settings={"filter_K": "filter_k"}),
    "eata": MethodReplay(
        nats={"e_margin": "entropy_fraction"}, losses=("total",), counts={"n_selected2": "selected"}
    ),
    "sar": MethodReplay(
        nats={"margin_e0": "entropy_fraction"},
        losses=("entropy",),
        numbers={"ema": "entropy_average"},
        keeps_moments=True,
    ),
    "deyo": MethodReplay(
        nats={"deyo_margin": "deyo_fraction", "margin_e0": "weight_fraction"},
        losses=("total",),
        skipped=0.0,
        counts={"n_selected1": "sure", "n_selected2": "selected"},
    ),
    "read": MethodReplay(losses=("confidence", "balance")),
}


@dataclass(frozen=True)
class Answered:
    """One batch of a replayed stream: its logits [B, C], what became of it, and the state behind it."""

    logits: Tensor
    outcome: Outcome
    state: AdaptationState


def run_batches(
    model: CavMae,
    method: ClassifyMethod,
    batches: Sequence[AVInputs],
    *,
    state: AdaptationState | None = None,
    before_each: Callable[[int], None] | None = None,
) -> list[Answered]:
    """A stream from `state`, or the source state. before_each(n) is called before batch n."""
    method.check(model)
    state = state or method.initial_state(model)
    found: list[Answered] = []
    for number, inputs in enumerate(batches):
        if before_each is not None:
            before_each(number)
        answers: list[EarlyAnswer[Tensor]] = []
        slices = adapt(
            model=model,
            method=method,
            state=state,
            inputs=inputs,
            batch_id=str(number),
            times=StageTimes(),
            on_answer=answers.append,
        )
        outcome = _last(slices)
        state = outcome.state or state
        found.append(Answered(answers[0].answered, outcome, state))
    return found


def _last(slices: Any) -> Outcome:
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            return ended.value


# -- streams --------------------------------------------------------------------------------------------


def _is_stream(golden: Golden) -> bool:
    known = str(golden.constants.get("method", "")).lower() in METHOD_REPLAYS
    return known and is_audio_video(golden) and "outputs" in golden.arrays


def _replay_stream(comparison: Comparison) -> None:
    golden = comparison.golden
    name = str(golden.constant("method")).lower()
    if name not in CLASSIFY_METHODS:
        raise NotReplayableError(f"method {name}")
    replay, model = METHOD_REPLAYS[name], cav_mae_of(golden)
    if "fisher_batches" in golden.constants:
        _measure_fisher(comparison, model)
    method, before_each = _method(comparison, name, replay)
    batches = av_batches(golden)
    stream = run_batches(model, method, batches, before_each=before_each)
    comparison.check("outputs", _outputs(stream))
    _check_losses(comparison, stream, replay)
    _check_parameters(comparison, stream)
    if comparison.has("post_reset_outputs"):
        again = _first_rows(batches, len(golden.array("post_reset_outputs")))
        later = (lambda number: before_each(len(batches) + number)) if before_each else None
        state = method.initial_state(model)
        if replay.keeps_moments:
            state.optimizer = stream[-1].state.optimizer.clone()
        comparison.check(
            "post_reset_outputs",
            _outputs(run_batches(model, method, again, state=state, before_each=later)),
        )


def _outputs(stream: Sequence[Answered]) -> np.ndarray:
    return torch.cat([batch.logits for batch in stream]).numpy()


def _first_rows(batches: Sequence[AVInputs], rows: int) -> list[AVInputs]:
    """As many of the first batches as have that many samples together."""
    taken: list[AVInputs] = []
    while sum(len(batch) for batch in taken) < rows:
        taken.append(batches[len(taken)])
    return taken


def _method(
    comparison: Comparison, name: str, replay: MethodReplay
) -> tuple[ClassifyMethod, Callable[[int], None] | None]:
    """The golden's method with the sidecar's constants as settings, and with its recorded noise."""
    constants = comparison.golden.constants
    most = math.log(int(comparison.golden.constant("num_classes")))
    known = CLASSIFY_METHODS[name].settings.model_fields
    named = {replay.settings.get(key, key): value for key, value in constants.items()}
    named["learning_rate"] = named.pop("lr", None)
    named |= {setting: float(constants[key]) / most for key, setting in replay.nats.items()}
    settings = {key: value for key, value in named.items() if key in known and value is not None}
    method = make_classify_method(name, settings)
    if isinstance(method, DeYOClassifier) and comparison.has("rand_a"):
        noise = RecordedNoise({"audio": comparison.take("rand_a"), "video": comparison.take("rand_v")})
        return DeYOClassifier(method.settings, noise=noise), noise.turn_to
    return method, None


class RecordedNoise:
    """Random numbers of a golden instead of drawn ones: [batches, B, n] of each modality, NaN pads."""

    def __init__(self, recorded: Mapping[Modality, np.ndarray]) -> None:
        self._recorded = recorded
        self._batch = 0

    def turn_to(self, batch: int) -> None:
        self._batch = batch

    def __call__(self, modality: Modality, shape: tuple[int, int]) -> Tensor:
        rows = self._recorded[modality][self._batch]
        rows = rows[~np.isnan(rows).any(axis=1)]
        if rows.shape != shape:
            raise GoldenError(f"noise of {shape} is needed where {rows.shape} was recorded")
        return torch.from_numpy(rows)


def _measure_fisher(comparison: Comparison, model: CavMae) -> None:
    """Fisher values of the source samples, in batches `first..last`, compared with the recorded ones."""
    said = str(comparison.golden.constant("fisher_batches"))
    samples = av_samples(comparison.golden, "source")
    ranges = re.findall(r"(\d+)\.\.(\d+)", said)
    if not ranges:
        raise GoldenError(f"fisher_batches says no samples: {said}")
    batches = [samples[torch.arange(int(first), int(last) + 1)] for first, last in ranges]
    fisher = fisher_values(model, batches)
    for name, value in fisher.items():
        if comparison.has(f"fisher.{name}"):
            comparison.check(f"fisher.{name}", value.numpy())
    model.calibration = Calibration(model.fingerprint, fisher=fisher)


def _check_losses(comparison: Comparison, stream: Sequence[Answered], replay: MethodReplay) -> None:
    reports = [batch.outcome.losses for batch in stream]
    if comparison.has("loss") and replay.losses:
        columns = comparison.golden.array("loss").shape[1]
        names = [*replay.losses, *[""] * (columns - len(replay.losses))]
        rows = [[report.get(name, replay.skipped) if name else 0.0 for name in names] for report in reports]
        comparison.check("loss", rows)
    for array, name in replay.counts.items():
        if comparison.has(array):
            comparison.check(array, [report[name] for report in reports])
    for array, name in replay.numbers.items():
        if comparison.has(array):
            comparison.check(array, [batch.state.numbers.get(name, math.nan) for batch in stream])


def _check_parameters(comparison: Comparison, stream: Sequence[Answered]) -> None:
    for array in comparison.golden.arrays:
        if array.startswith("params."):
            name = array.removeprefix("params.")
            every = [_parameter(batch.state, name) for batch in stream]
            comparison.check(array, torch.stack(every).numpy())


def _parameter(state: AdaptationState, name: str) -> Tensor:
    """A parameter of the state; recorded queries, keys and values are rows of one matrix here."""
    part = re.search(r"\.attn\.([qkv])\.", name)
    if part is None:
        return state.parameters[name]
    packed = state.parameters[name.replace(part[0], ".attn.qkv.")]
    return packed.chunk(3)["qkv".index(part[1])]


# -- the model itself -----------------------------------------------------------------------------------


def _is_forward(golden: Golden) -> bool:
    return is_audio_video(golden) and {"t3a_features", "logits"} <= set(golden.arrays)


def _replay_forward(comparison: Comparison) -> None:
    golden = comparison.golden
    model = cav_mae_of(golden)
    samples = av_samples(golden, "target")
    inputs = samples[torch.arange(len(golden.array("logits")))]
    output = model.forward(inputs)
    comparison.check("logits", output.logits.numpy())
    comparison.check("t3a_features", output.features.numpy())
    comparison.check("joint_attention", _joint_attention(model, inputs).numpy())
    _check_statistics(comparison, model)
    for array in golden.arrays:
        if array.endswith(".prompts_a"):
            _check_prompted(comparison, model, inputs, array.removesuffix("prompts_a"))
        elif array.startswith("sincos_"):
            _check_positions(comparison, array)


def _joint_attention(model: CavMae, inputs: AVInputs) -> Tensor:
    """Of the first joint block, [N, N], the mean over samples and heads."""
    embedded, weights = model.embed(inputs), model.weights
    tokens = torch.cat([model.tower(name, embedded[name]).tokens for name in AV_MODALITIES], dim=1)
    norm, product = ([weights[f"blocks_u.0.{part}.{of}"] for of in ("weight", "bias")] for part in _FIRST)
    normed = torch.nn.functional.layer_norm(tokens, norm[0].shape, norm[0], norm[1])
    projected = torch.nn.functional.linear(normed, product[0], product[1])
    heads = projected.reshape(*projected.shape[:2], 3, model.config.heads, -1).permute(2, 0, 3, 1, 4)
    scores = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(heads.shape[-1])
    return scores.softmax(-1).mean((0, 1))


_FIRST = ("norm1", "attn.qkv")


def _check_statistics(comparison: Comparison, model: CavMae) -> None:
    found = source_statistics(model, av_samples(comparison.golden, "source"))
    for letter, part in (("a", found.audio), ("v", found.video), ("u", found.fused)):
        comparison.check(f"src_std_{letter}", part.std.numpy())
        comparison.check(f"src_mean_{letter}", part.mean.numpy())


def _check_prompted(comparison: Comparison, model: CavMae, inputs: AVInputs, prefix: str) -> None:
    """The prompted forward, and all passes of BriMPR with the recorded masks."""

    def take(name: str) -> Tensor:
        return torch.from_numpy(comparison.take(prefix + name))

    prompts = {"audio": take("prompts_a"), "video": take("prompts_v")}
    comparison.check(f"{prefix}test_logits", model.forward(inputs, prompts=prompts).logits.numpy())  # type: ignore[arg-type]
    noise: dict[Modality, Tensor] = {"audio": take("noise_a"), "video": take("noise_v")}
    method = BriMPR(BriMPRSettings(), noise=lambda modality, _: noise[modality])
    state = AdaptationState(
        method.name,
        model.fingerprint,
        {"prompts_a": prompts["audio"], "prompts_v": prompts["video"]},
        numbers={"seed": 0, "draws": 0},
    )
    passes = method.passes(model, state, inputs)
    found = {
        "logits": passes.logits,
        "ca": passes.audio,
        "cv": passes.video,
        "features_a": passes.features["audio"],
        "features_v": passes.features["video"],
        "features_u": passes.fused.unsqueeze(1),
        "logits_avm": passes.without_video,
        "logits_amv": passes.without_audio,
    }
    for name, value in found.items():
        comparison.check(prefix + name, value.detach().numpy())


def _check_positions(comparison: Comparison, array: str) -> None:
    """sincos_WIDTH_ROWSxCOLUMNS; of wide ones every n-th column was recorded."""
    named = re.fullmatch(r"sincos_(\d+)_(\d+)x(\d+)", array)
    if named is None:
        return
    width, rows, columns = (int(number) for number in named.groups())
    recorded = comparison.golden.array(array)
    comparison.check(array, sincos_positions(width, rows, columns)[:, :: width // recorded.shape[1]].numpy())


REPLAYERS: tuple[Replayer, ...] = (
    Replayer("audio-video stream", _is_stream, _replay_stream),
    Replayer("audio-video model", _is_forward, _replay_forward),
)
