"""The small audio-video classifier of the av_* goldens, run through the real CAV-MAE code."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import torch

from benchmarks.replay.golden import Golden, GoldenError, load_golden
from encoders.audio import AudioSpec
from encoders.audiovisual import AVInputs
from encoders.cav_mae import EPS, CavMae, CavMaeConfig
from encoders.preprocessing import ImageSpec


def is_audio_video(golden: Golden) -> bool:
    return {"embed_dim", "audio_shape", "image_shape"} <= set(golden.constants)


def cav_mae_of(golden: Golden) -> CavMae:
    """The golden's model, with the weights that its sidecar names, in the dtype it was computed in."""
    constant = golden.constant
    if float(constant("ln_eps")) != EPS:
        raise GoldenError(f"the model's norms have epsilon {EPS:g}, recorded is {constant('ln_eps')}")
    frames, mel_bins = constant("audio_shape")
    _, height, width = constant("image_shape")
    config = CavMaeConfig(
        labels=tuple(str(number) for number in range(int(constant("num_classes")))),
        width=int(constant("embed_dim")),
        heads=int(constant("heads")),
        depth=int(constant("modality_specific_depth")),
        joint_depth=int(constant("joint_blocks")),
        mlp_ratio=int(constant("mlp_ratio")),
        patch=int(constant("patch")),
        audio=AudioSpec(frames=int(frames), mel_bins=int(mel_bins)),
        image=ImageSpec(height=int(height), width=int(width)),
    )
    weights = {name: torch.from_numpy(array) for name, array in _beside(golden, "weights").arrays.items()}
    return CavMae(config, weights, dtype=_dtype(golden))


def av_samples(golden: Golden, which: Literal["source", "target"]) -> AVInputs:
    """All samples of one kind, as prepared inputs."""
    beside = _beside(golden, "inputs")
    scale = re.search(r"/\s*(\d+)", str(beside.constant("scale")))
    if scale is None:
        raise GoldenError("the inputs' sidecar does not say by what they are divided")
    audio, video = (
        torch.from_numpy(beside.array(f"{which}_{kind}").astype(np.float64) / float(scale[1])).to(
            _dtype(golden)
        )
        for kind in ("audio", "video")
    )
    return AVInputs(audio, video)


def av_batches(golden: Golden) -> list[AVInputs]:
    """The target samples in batches of the recorded sizes."""
    samples = av_samples(golden, "target")
    sizes = [int(size) for size in golden.constant("batch_sizes")]
    return [samples[rows] for rows in torch.split(torch.arange(len(samples)), sizes)]


def _dtype(golden: Golden) -> torch.dtype:
    return torch.float32 if golden.constants.get("dtype") == "float32" else torch.float64


def _beside(golden: Golden, kind: Literal["weights", "inputs"]) -> Golden:
    """The golden that holds the weights or inputs: named by the sidecar, else the usual name."""
    file = str(golden.constants.get(kind, f"av_{kind}.npz")).split(" ")[0]
    return load_golden((golden.folder / file).with_suffix(".json"))
