"""Measure the demo's classifier on unseen clips, clean and shifted: the figures of its model card.

    python -m demo.measure_clips [--weights DIR] [--count 640] [--column source ...] [--json FILE]

A shift falls on the sound before its filter bank, on the frame, or on both. Every shift is a stream of its
own, in batches of 64, answered in order by a method that starts from the source state (the online protocol).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.progress import track
from torch import Tensor

from adapters.calibration import load_calibration
from adapters.registry import make_classify_method
from demo import demo_classifier_path
from demo.clips import SPLITS, Clip, make_clip
from encoders.audio import AudioSpec, fbank
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae, load_cav_mae

__all__ = [
    "COMPARED",
    "SHIFTS",
    "Samples",
    "Shift",
    "accuracy",
    "main",
    "measure",
    "online_accuracy",
    "prepared",
    "shifted_samples",
    "table",
]

Waveform = NDArray[np.float32]  # [n] within -1..1
Frame = NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True)
class Samples:
    """Samples of one kind, in order.

    fbanks  float16 or float32 [N, T, F], raw log mel; shorter ones are padded with zeros
    frames  uint8 [N, 3, H, W], RGB, of the model's size
    labels  int64 [N], places in the model's labels
    """

    fbanks: NDArray[np.floating]
    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.fbanks) == len(self.frames) == len(self.labels):
            raise ValueError("samples need as many spectrograms as frames and labels")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: NDArray[np.int64] | slice) -> Samples:
        return Samples(self.fbanks[rows], self.frames[rows], self.labels[rows])


@dataclass(frozen=True)
class Shift:
    """What happens to the sound and to the frame of every clip; None: nothing."""

    sound: Callable[[Waveform, np.random.Generator], Waveform] | None = None
    frame: Callable[[Frame, np.random.Generator], Frame] | None = None


def noisy_sound(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """White noise of deviation 0.03; the clips peak at 0.06 to 0.4."""
    noise = rng.normal(0.0, 0.03, len(waveform))
    return np.clip(waveform + noise, -1, 1).astype(np.float32)


def noisy_frame(frame: Frame, rng: np.random.Generator) -> Frame:
    """Noise of deviation 0.18 of the range in every channel."""
    return _as_bytes(frame + rng.normal(0.0, 0.18 * 255, frame.shape))


def blurred_frame(frame: Frame, rng: np.random.Generator) -> Frame:
    """Gaussian blur of 3 pixels."""
    del rng
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(3)))


def bright_frame(frame: Frame, rng: np.random.Generator) -> Frame:
    """Half of the way to white."""
    del rng
    return _as_bytes(0.5 * frame.astype(np.float64) + 0.5 * 255)


def _as_bytes(values: NDArray[np.float64]) -> Frame:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


SHIFTS: Mapping[str, Shift] = {
    "clean": Shift(),
    "sound: noise": Shift(noisy_sound),
    "frame: noise": Shift(None, noisy_frame),
    "frame: blur": Shift(None, blurred_frame),
    "frame: brightness": Shift(None, bright_frame),
    "both: noise": Shift(noisy_sound, noisy_frame),
    "both: noise, blur": Shift(noisy_sound, blurred_frame),
}


def prepared(model: CavMae, data: Samples, batch: int = 64) -> Iterator[tuple[AVInputs, Tensor]]:
    """Batches of the model's inputs and their labels int64 [B], in order."""
    for start in range(0, len(data), batch):
        part = data.rows(slice(start, start + batch))
        inputs = model.prepare(list(part.fbanks.astype(np.float32)), list(part.frames))
        yield inputs, torch.from_numpy(part.labels)


@torch.inference_mode()
def accuracy(model: CavMae, data: Samples) -> dict[str, float]:
    """Share of samples named rightly, in percent: by "both", and by "audio" and "video" alone."""
    right = {"both": 0, "audio": 0, "video": 0}
    for inputs, labels in prepared(model, data):
        seen = {"both": inputs, "audio": AVInputs(inputs.audio, None), "video": AVInputs(None, inputs.video)}
        for name, part in seen.items():
            right[name] += int((model.forward(part).logits.argmax(1) == labels).sum())
    return {name: round(100 * count / len(data), 1) for name, count in right.items()}


COMPARED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "source": ("source", {}),
    "brimpr": ("brimpr", {}),
    "brimpr, rate 1e-3": ("brimpr", {"learning_rate": 1e-3}),
}
"""Columns of the card's table: a method and its settings."""


def shifted_samples(clips: Sequence[Clip], shift: Shift, spec: AudioSpec) -> Samples:
    """Clips as samples; the same clips and shift give the same noise."""
    fbanks, frames = [], []
    for number, clip in enumerate(clips):
        rng = np.random.default_rng(number)
        waveform, frame = clip.waveform, clip.frame
        if shift.sound is not None:
            waveform = shift.sound(waveform, rng)
        if shift.frame is not None:
            frame = shift.frame(frame, rng)
        fbanks.append(fbank(waveform, spec))
        frames.append(np.moveaxis(frame, -1, 0))
    return Samples(np.stack(fbanks), np.stack(frames), np.array([clip.index for clip in clips]))


def online_accuracy(
    model: CavMae, name: str, data: Samples, settings: Mapping[str, Any] | None = None, *, batch: int = 64
) -> float:
    """Percent named rightly while the method `name` learns from one batch after the other."""
    method = make_classify_method(name, settings)
    method.check(model)
    state, right = method.initial_state(model), 0
    for value in state.parameters.values():
        value.requires_grad_(True)
    for inputs, labels in prepared(model, data, batch):
        for answer in method.adapt(model, state, inputs):
            if answer is not None:
                right += int((answer.logits.argmax(1) == labels).sum())
    return 100 * right / len(data)


def measure(model: CavMae, count: int, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """Percent named rightly of `count` unseen clips, by shift and column; "clean" also by one modality."""
    seeds = range(SPLITS["test"], SPLITS["test"] + count)
    clips = [make_clip(seed) for seed in track(seeds, "making clips")]
    figures: dict[str, dict[str, float]] = {}
    for name, shift in track(SHIFTS.items(), "measuring", total=len(SHIFTS)):
        data = shifted_samples(clips, shift, model.audio_spec)
        figures[name] = {
            column: online_accuracy(model, COMPARED[column][0], data, COMPARED[column][1])
            for column in columns
        }
        if name == "clean":
            alone = accuracy(model, data)
            figures["clean, sound alone"] = {"source": alone["audio"]}
            figures["clean, frame alone"] = {"source": alone["video"]}
    return figures


def table(figures: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """The figures as a Markdown table."""
    lines = ["| clips | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, row in figures.items():
        cells = (f"{row[column]:.1f}" if column in row else "" for column in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: print the table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.measure_clips", description="Measure the demo's classifier."
    )
    parser.add_argument("--weights", type=Path, default=None, help="folder of the model; default: the demo's")
    parser.add_argument("--count", type=int, default=640, help="number of clips")
    parser.add_argument("--column", action="append", choices=tuple(COMPARED), help="may be repeated")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    given = parser.parse_args(arguments)
    folder, columns = given.weights or demo_classifier_path(), given.column or list(COMPARED)
    model = load_cav_mae(folder, device="cpu")
    model.calibration = load_calibration(folder / "calibration.safetensors", model)
    torch.manual_seed(0)
    figures = measure(model, given.count, columns)
    print(table(figures, columns))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
