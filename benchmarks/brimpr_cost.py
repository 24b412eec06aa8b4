"""What BriMPR costs, as ratios of one run: packed passes, the plain sequence of passes, one source forward.

The release runs both towers twice and the joint block seven times, one after the other. Attune sends full and
masked tokens through a tower together and the six differentiable joint passes in one call; a GPU computes
each as one, a CPU one after the other, where packing copies more than it saves (`--pack` does it all the
same). The sums are equal. Every variant is timed in turn, round by round, so that a busy machine disturbs
all alike.

    python -m benchmarks.brimpr_cost --model full --batch-size 2 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.base import at_least_fp32
from adapters.brimpr import BriMPR, Passes, pick
from adapters.calibration import Calibration, source_statistics
from adapters.optimizer import gradients
from adapters.state import AdaptationState
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae, CavMaeConfig, fresh_weights, load_cav_mae


@dataclass(frozen=True)
class Step:
    """What a variant computed, for comparison: the loss and its gradients."""

    loss: Tensor
    grads: dict[str, Tensor]


def packed_step(model: CavMae, method: BriMPR, state: AdaptationState, inputs: AVInputs) -> Step:
    """As it is served, but for the update."""
    return _step(method, model, state, method.passes(model, state, inputs))


def plain_step(model: CavMae, method: BriMPR, state: AdaptationState, inputs: AVInputs) -> Step:
    """The same passes one after the other, as in the release."""
    embedded = model.embed(inputs)
    kept = method.kept_tokens(state, embedded)
    tokens: dict[str, Tensor] = {}
    features: dict[Any, Tensor] = {}
    for modality, prompts in (
        ("audio", state.parameters["prompts_a"]),
        ("video", state.parameters["prompts_v"]),
    ):
        whole = model.tower(modality, embedded[modality], prompts=prompts, features=True)  # type: ignore[arg-type,index]
        assert whole.features is not None
        tokens[modality], features[modality] = whole.tokens, whole.features
        masked = pick(embedded[modality], kept[modality])  # type: ignore[index]
        tokens[f"masked_{modality}"] = model.tower(modality, masked, prompts=prompts).tokens  # type: ignore[arg-type]
    with torch.no_grad():
        fused = model.joint(torch.cat([tokens["audio"], tokens["video"]], dim=1))
        logits = model.head(fused)[0]
    audio, video = tokens["audio"], tokens["video"]
    masked_v = model.joint(torch.cat([audio, tokens["masked_video"]], dim=1))
    masked_a = model.joint(torch.cat([tokens["masked_audio"], video], dim=1))
    passes = Passes(
        logits=logits,
        fused=at_least_fp32(fused),
        without_audio=model.head(masked_a)[0],
        without_video=model.head(masked_v)[0],
        audio=(model.joint(audio) + model.joint(audio, norms="audio")) / 2,
        video=(model.joint(video) + model.joint(video, norms="video")) / 2,
        features=features,
    )
    return _step(method, model, state, passes)


def _step(method: BriMPR, model: CavMae, state: AdaptationState, passes: Passes) -> Step:
    assert model.calibration is not None
    terms = method.losses(passes, model.calibration.statistics)
    loss = terms["pmgfa"] + terms["cmer"] + terms["iicl"]
    return Step(loss.detach(), gradients(loss, state.parameters))


def measure(model: CavMae, *, batch_size: int, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each variant (median over rounds), their ratios, and how far their results differ."""
    inputs = _random_inputs(model, batch_size)
    with torch.no_grad():
        statistics_ = source_statistics(model, _random_inputs(model, max(batch_size, 2), seed=1))
    model.calibration = Calibration(model.fingerprint, statistics_)
    method = BriMPR()
    state = method.initial_state(model)

    def run_source() -> None:
        with torch.no_grad():
            model.forward(inputs)

    variants: dict[str, Callable[[], Any]] = {
        "source": run_source,
        "plain": lambda: plain_step(model, method, _leaves(state), inputs),
        "packed": lambda: packed_step(model, method, _leaves(state), inputs),
    }
    one, other = variants["plain"](), variants["packed"]()  # warm-up, and the comparison
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            _wait(model)
            times[name].append(time.perf_counter() - started)
        tell(f"round {number + 1} of {rounds}")
    seconds = {name: statistics.median(found) for name, found in times.items()}
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "packed_to_plain": seconds["packed"] / seconds["plain"],
        "packed_to_source": seconds["packed"] / seconds["source"],
        "plain_to_source": seconds["plain"] / seconds["source"],
        "loss_difference": float((one.loss - other.loss).abs()),
        "largest_relative_gradient_difference": max(
            float((one.grads[name] - other.grads[name]).norm() / one.grads[name].norm()) for name in one.grads
        ),
    }


def _leaves(state: AdaptationState) -> AdaptationState:
    """A copy to learn with."""
    copy = state.clone()
    for value in copy.parameters.values():
        value.requires_grad_(True)
    return copy


def _wait(model: CavMae) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _random_inputs(model: CavMae, count: int, seed: int = 0) -> AVInputs:
    random = torch.Generator().manual_seed(seed)
    audio, image = model.audio_spec, model.image_spec
    shapes = ((count, audio.frames, audio.mel_bins), (count, 3, image.height, image.width))
    sound, picture = (torch.randn(shape, generator=random).to(model.device) for shape in shapes)
    return AVInputs(sound, picture)


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.brimpr_cost", description=__doc__)
    made.add_argument("--model", default="full", help="full (the released sizes, random weights) or a folder")
    made.add_argument("--batch-size", type=int, default=2)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--device", default="auto")
    made.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    made.add_argument("--pack", action="store_true", help="as one also on a CPU")
    made.add_argument("--json", type=Path, help="where to write the figures")
    asked = made.parse_args(arguments)
    model = _model(asked.model, asked.device, asked.dtype)
    model.packs = model.packs or asked.pack
    found = measure(
        model,
        batch_size=asked.batch_size,
        rounds=asked.rounds,
        tell=lambda line: print(line, file=sys.stderr),
    )
    found = {"model": asked.model, "dtype": asked.dtype, "packed": model.packs, **found}
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


def _model(name: str, device: str, dtype: str) -> CavMae:
    if name != "full":
        return load_cav_mae(name, device=device, dtype=dtype)
    from encoders.load import pick_device

    config = CavMaeConfig(labels=tuple(f"class {number}" for number in range(50)))
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return CavMae(config, fresh_weights(config), device=pick_device(device), dtype=kinds[dtype])


if __name__ == "__main__":
    sys.exit(main())
