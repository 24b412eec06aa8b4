"""Trains the small CAV-MAE on real digits: written ones (MNIST) paired with spoken ones.

    python -m benchmarks.av_digits train --data FOLDER --out DIR

writes a model folder with its calibration for benchmarks.classification, and prints clean accuracies. Data
and weights stay outside of the project: the recordings are CC BY-SA. Letters as in demo/train_clips.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adapters.calibration import save_calibration
from benchmarks.av_data import AVData, pair_digits, read_frame, read_waveform
from benchmarks.console import make_console
from benchmarks.datasets import DatasetError
from demo.train_clips import Recipe, Samples, accuracy, calibrate, last_stage, train
from encoders.audio import AudioSpec, fbank
from encoders.cav_mae import CavMaeConfig, load_cav_mae, save_cav_mae
from encoders.preprocessing import ImageSpec

FRAMES = 96
"""0.96 s; half of the spoken digits last 0.42 s, few longer than this."""
SIDE = 64
RECIPE = Recipe(steps=1200, batch=64)


def digit_config(labels: tuple[str, ...], mean: float = -5.081, std: float = 4.4849) -> CavMaeConfig:
    """Two towers of four blocks and one joint block, 96 wide: 48 tokens of sound, 16 of the picture."""
    image = ImageSpec(SIDE, SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    audio = AudioSpec(frames=FRAMES, mean=mean, std=std)
    return CavMaeConfig(labels, width=96, heads=4, depth=4, patch=16, audio=audio, image=image)


def as_samples(data: AVData, config: CavMaeConfig) -> Samples:
    """Clean samples as arrays: raw filter banks padded with zeros, frames, labels."""
    fbanks = np.zeros((len(data), config.audio.frames, config.audio.mel_bins), np.float32)
    frames = np.zeros((len(data), 3, config.image.height, config.image.width), np.uint8)
    labels = np.array([sample.label for sample in data.samples], np.int64)

    def fill(number: int) -> None:
        sample = data.samples[number]
        waveform, frame = read_waveform(sample, config.audio), read_frame(sample, config.image)
        if waveform is None or frame is None:
            raise DatasetError(f"sample {sample.id!r} lacks a modality")
        values = fbank(waveform, config.audio)
        fbanks[number, : len(values)] = values
        frames[number] = np.moveaxis(frame, -1, 0)

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(len(data))))
    return Samples(fbanks, frames, labels)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.av_digits", description="Trains a small classifier of real digits."
    )
    made.add_argument("command", choices=("train",))
    made.add_argument("--data", required=True, type=Path, help="folder with mnist.npz and audio_labels.tsv")
    made.add_argument("--out", required=True, type=Path, help="folder for model and calibration")
    made.add_argument("--steps", type=int, default=RECIPE.steps)
    made.add_argument("--pairs", type=int, default=15_000, help="training pairs (default 15000)")
    made.add_argument("--start", type=Path, help="go on from this model instead of training one first")
    made.add_argument(
        "--used-to-prompts",
        action="store_true",
        help="a last stage with untrained prompts before the tokens, as the demo's classifier has",
    )
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = make_console()
    torch.set_num_threads(options.threads)
    try:
        training = pair_digits(options.data, "train", options.pairs)
        test = pair_digits(options.data, "test")
        config = digit_config(training.labels)
        began = time.monotonic()
        samples, held_out = as_samples(training, config), as_samples(test, config)
    except DatasetError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    console.print(f"{training.note}; {test.note}; decoded in {time.monotonic() - began:.0f} s")
    recipe = replace(RECIPE, steps=options.steps, seed=options.seed)
    if options.start is None:
        model = train(config, samples, recipe)
    else:
        model = load_cav_mae(options.start, device="cpu")
    if options.used_to_prompts:
        model = train(model.config, samples, last_stage(recipe), start=model.weights)
    save_cav_mae(model.config, model.weights, options.out)
    save_calibration(calibrate(model, samples), options.out / "calibration.safetensors")
    console.print(f"clean accuracy in percent: {accuracy(model, held_out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
