"""Trains a small CAV-MAE, first of all the demo's classifier on the clips of `demo/clips.py`.

    python -m demo.train_clips --out demo/weights/clips-cavmae

makes clips, trains, measures, calibrates and writes weights, calibration and model card. `train` takes any
samples, so other data need only to become `Samples`.

What is trained is what is served: `CavMae`'s own functions with the weights as leaves. The loss is the cross
entropy of whole samples; of half of each batch also that of the sound alone and of the picture alone (the
model's path for a missing modality), and a contrastive loss between the two, as in CAV-MAE's pre-training.
Samples are clean and change only mildly, so drift is left to adaptation.

Letters: N samples, B of a batch, T frames of a spectrogram, F mel bins, H x W pixels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress, track
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapters.calibration import Calibration, fisher_values, save_calibration, source_statistics
from adapters.completion import Completion
from adapters.two_stream_completion import compare_missing, fit_parts, parts_of
from demo.clips import FRAME_SIZE, LABELS, SAMPLE_RATE, SPLITS, make_clip
from demo.measure_clips import COMPARED, Samples, accuracy, measure, prepared, table
from encoders.audio import AudioSpec, fbank
from encoders.audiovisual import AVInputs, Norms
from encoders.cav_mae import CavMae, CavMaeConfig, fresh_weights, load_cav_mae, save_cav_mae
from encoders.preprocessing import ImageSpec

__all__ = ["Recipe", "Samples", "accuracy", "calibrate", "clip_samples", "main", "train"]

AUDIO_FRAMES = 128
CHECKPOINT = "checkpoint.pt"
REPORT_STEPS = 200
STATISTICS_SAMPLES = 32
FISHER_SAMPLES = 2000
FISHER_BATCH = 64
COMPLETION_SAMPLES = 2000
LATENT = 32
"""Of the completion: labels that follow from it are as right as with 64, and the file is half as large."""
PROMPTS = 10  # as many as BriMPR puts before the tokens of a block


@dataclass(frozen=True)
class Recipe:
    """How to train. `alone_weight` and `contrast_weight` weigh the losses beside that of whole samples.

    prompts  tokens that precede those of every tower block in every second step, random and next to zero:
             prompts before they have learned anything. A large model hardly notices ten of them, one with a
             few dozen tokens has to be told.
    """

    steps: int = 2000
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    alone_weight: float = 0.3
    contrast_weight: float = 0.1
    contrast_temperature: float = 0.1
    prompts: int = 0
    prompt_range: float = 1e-4
    shift_frames: int = 4
    shift_pixels: int = 3
    seed: int = 0


# ------------------------------------------------------------------------------------------------------
# Training


class Trainer:
    """What one update needs: the model as a function, its weights as leaves, and their optimiser."""

    def __init__(
        self, config: CavMaeConfig, recipe: Recipe, start: Mapping[str, Tensor] | None = None
    ) -> None:
        first = fresh_weights(config, recipe.seed) if start is None else start
        self.recipe = recipe
        self.function = CavMae(config, first)
        self.weights = {name: value.detach().clone().requires_grad_() for name, value in first.items()}
        decayed = [value for value in self.weights.values() if value.ndim in (2, 4)]
        free = [value for value in self.weights.values() if value.ndim not in (2, 4)]  # norms, biases, places
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, recipe.learning_rate, recipe.steps, pct_start=0.1, cycle_momentum=False
        )

    def step(self, number: int, samples: Samples) -> float:
        """One update with update number `number`'s random changes; the loss before it, in nats."""
        rng = np.random.default_rng((self.recipe.seed, number))
        samples = lightly_changed(samples, rng, self.recipe)
        inputs = self.function.prepare(list(samples.fbanks.astype(np.float32)), list(samples.frames))
        loss = self._loss(inputs, torch.from_numpy(samples.labels), self._prompts(number, rng))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return loss.item()

    def _prompts(self, number: int, rng: np.random.Generator) -> Tensor | None:
        """Prompts [2, L, P, D] of both towers in every second step, None in the others."""
        config, count, reach = self.function.config, self.recipe.prompts, self.recipe.prompt_range
        if not count or number % 2:
            return None
        drawn = rng.uniform(-reach, reach, (2, config.depth, count, config.width))
        return torch.from_numpy(drawn.astype(np.float32))

    def _loss(self, inputs: AVInputs, labels: Tensor, prompts: Tensor | None = None) -> Tensor:
        half, recipe = max(1, len(labels) // 2), self.recipe
        # The fused attention's backward pass takes three times as long as the plain one's in bf16 on a CPU.
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            both, audio, video = self._pooled(inputs, half, prompts)
        losses = functional.cross_entropy(self._logits(both), labels)
        for alone in (audio, video):
            losses = losses + recipe.alone_weight * functional.cross_entropy(
                self._logits(alone), labels[:half]
            )
        return losses + recipe.contrast_weight * contrast(audio, video, recipe.contrast_temperature)

    def _pooled(self, inputs: AVInputs, half: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the head reads: of whole samples [B, D]; of the first `half` ones by sound, and by picture."""
        embedded = self.function.embed(inputs, self.weights)
        audio, video = (
            self.function.tower(
                name,
                embedded[name],
                values=self.weights,
                prompts=None if prompts is None else prompts[number],
            ).tokens
            for number, name in enumerate(embedded)
        )
        segments: list[tuple[Tensor, Norms]] = [
            (torch.cat([audio, video], dim=1), "plain"),
            (audio[:half], "plain"),
            (audio[:half], "audio"),
            (video[:half], "plain"),
            (video[:half], "video"),
        ]
        both, *alone = (part.float() for part in self.function.joint_packed(segments, self.weights))
        return both, (alone[0] + alone[1]) / 2, (alone[2] + alone[3]) / 2

    def _logits(self, pooled: Tensor) -> Tensor:
        return self.function.head(pooled, self.weights)[0]

    def model(self) -> CavMae:
        """The model as it is now, frozen."""
        weights = {name: value.detach().clone() for name, value in self.weights.items()}
        return CavMae(self.function.config, weights, name=self.function.name)

    def save(self, path: Path, number: int) -> None:
        states = {"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict()}
        weights = {name: value.detach() for name, value in self.weights.items()}
        torch.save({**states, "weights": weights, "step": number}, path)

    def load(self, path: Path) -> int:
        """Take up a checkpoint; the number of the next step."""
        held = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(held["weights"][name])
        self.optimiser.load_state_dict(held["optimiser"])
        self.schedule.load_state_dict(held["schedule"])
        return int(held["step"])


def train(
    config: CavMaeConfig,
    data: Samples,
    recipe: Recipe | None = None,
    *,
    start: Mapping[str, Tensor] | None = None,
    held_out: Samples | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> CavMae:
    """Train a model of `config` on `data` and return it frozen.

    start     weights to begin with; random ones otherwise
    held_out  samples whose accuracy is printed now and then
    folder    where a checkpoint is kept while the training runs; `resume` goes on from it when it is there

    Raises: ValueError when there are fewer samples than one batch holds.
    """
    recipe = recipe or Recipe()
    trainer = Trainer(config, recipe, start)
    checkpoint = None if folder is None else folder / CHECKPOINT
    first = trainer.load(checkpoint) if resume and checkpoint is not None and checkpoint.exists() else 0
    begin = time.monotonic()
    with Progress() as progress:
        bar = progress.add_task("training", total=recipe.steps, completed=first)
        for number, rows in enumerate(_batches(len(data), recipe, first), start=first):
            loss = trainer.step(number, data.rows(rows))
            progress.update(bar, completed=number + 1, description=f"loss {loss:.3f}")
            if (number + 1) % REPORT_STEPS == 0 or number + 1 == recipe.steps:
                found = "" if held_out is None else f", held out {accuracy(trainer.model(), held_out)}"
                elapsed_s = time.monotonic() - begin
                progress.console.print(f"step {number + 1}, {elapsed_s:.0f} s, loss {loss:.3f}{found}")
                if checkpoint is not None:
                    checkpoint.parent.mkdir(parents=True, exist_ok=True)
                    trainer.save(checkpoint, number + 1)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)  # of use only while the training was unfinished
    return trainer.model()


def contrast(audio: Tensor, video: Tensor, temperature: float) -> Tensor:
    """Symmetric cross-entropy in nats; row i [B, D] of both belongs together (CAV-MAE, equation 1)."""
    audio, video = functional.normalize(audio, dim=1), functional.normalize(video, dim=1)
    scores = audio @ video.T / temperature
    own = torch.arange(len(scores))
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def lightly_changed(samples: Samples, rng: np.random.Generator, recipe: Recipe) -> Samples:
    """Each sample a little earlier or later, its frame a few pixels off; what is bared repeats the edge."""
    late = rng.integers(-recipe.shift_frames, recipe.shift_frames + 1, len(samples))
    down, right = rng.integers(-recipe.shift_pixels, recipe.shift_pixels + 1, (2, len(samples)))
    fbanks, frames = np.empty_like(samples.fbanks), np.empty_like(samples.frames)
    times, rows, columns = (np.arange(size) for size in (fbanks.shape[1], *frames.shape[2:]))
    for i in range(len(samples)):
        fbanks[i] = samples.fbanks[i][np.clip(times + late[i], 0, len(times) - 1)]
        picked = samples.frames[i][:, np.clip(rows + down[i], 0, len(rows) - 1)]
        frames[i] = picked[:, :, np.clip(columns + right[i], 0, len(columns) - 1)]
    return Samples(fbanks, frames, samples.labels)


def _batches(count: int, recipe: Recipe, first: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each batch: a fresh order every epoch, the same again after a resume."""
    per_epoch = count // recipe.batch
    if per_epoch == 0:
        raise ValueError(f"a batch of {recipe.batch} needs at least as many samples, got {count}")
    for number in range(first, recipe.steps):
        epoch, place = divmod(number, per_epoch)
        order = np.random.default_rng((recipe.seed, 1 << 32, epoch)).permutation(count)
        yield order[place * recipe.batch : (place + 1) * recipe.batch]


# ------------------------------------------------------------------------------------------------------
# Calibration


def calibrate(model: CavMae, data: Samples, held_out: Samples | None = None) -> Calibration:
    """What clean training data tell: source statistics of the first 32 samples, Fisher values of the first
    2000, a completion fitted to these.

    held_out  samples by which the model's own path for a missing modality is compared with imputation
    """
    head, batches = data.rows(slice(STATISTICS_SAMPLES)), data.rows(slice(FISHER_SAMPLES))
    ((inputs, _),) = prepared(model, head)
    steps = track(list(range(0, len(batches), FISHER_BATCH)), "Fisher values")
    fisher = fisher_values(
        model, (inputs for (inputs, _), _ in zip(prepared(model, batches, FISHER_BATCH), steps, strict=True))
    )
    completion = complete(model, data.rows(slice(COMPLETION_SAMPLES)))
    about: dict[str, Any] = {
        "statistics_samples": len(head),
        "fisher_samples": len(batches),
        "fisher_batch": FISHER_BATCH,
    }
    if held_out is not None:
        about["missing"] = compare_missing(model, completion, prepared(model, held_out))
    return Calibration(model.fingerprint, source_statistics(model, inputs), fisher, completion, about)


def complete(model: CavMae, data: Samples) -> Completion:
    """The completion of clean samples; of a few, or of a small model, its latent is smaller."""
    parts, there = parts_of(model, (inputs for inputs, _ in prepared(model, data)))
    slices = fit_parts(parts, there, latent=min(LATENT, len(data) - 1, model.width - 1))
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            completion: Completion = ended.value
            return completion


# ------------------------------------------------------------------------------------------------------
# The demo's clips


def clip_samples(count: int, seed: int, *, workers: int = 2) -> Samples:
    """The clips of the seeds seed, seed + 1, ... as samples; spectrograms float16."""
    spec = AudioSpec(frames=AUDIO_FRAMES)
    fbanks = np.empty((count, spec.frames, spec.mel_bins), dtype=np.float16)
    frames = np.empty((count, 3, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = pool.imap(_sample, range(seed, seed + count), chunksize=64)
        for number, (values, frame, label) in enumerate(track(made, "making clips", total=count)):
            fbanks[number], frames[number], labels[number] = values, frame, label
    return Samples(fbanks, frames, labels)


def _sample(seed: int) -> tuple[NDArray[np.float16], NDArray[np.uint8], int]:
    clip = make_clip(seed)
    values = fbank(clip.waveform, AudioSpec(frames=AUDIO_FRAMES)).astype(np.float16)
    return values, np.moveaxis(clip.frame, -1, 0), clip.index


def cached_clips(split: str, count: int, cache: Path) -> Samples:
    """The first clips of a split from `cache`, made first when they are not there."""
    path = cache / f"{split}-{FRAME_SIZE}px-{count}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = clip_samples(count, SPLITS[split])
        np.savez(path, fbanks=made.fbanks, frames=made.frames, labels=made.labels)
    with np.load(path) as held:
        return Samples(held["fbanks"], held["frames"], held["labels"])


def clip_config(data: Samples) -> CavMaeConfig:
    """The demo model's sizes; spectrograms are normalised by the mean and spread of `data`."""
    values = data.fbanks[:2000].astype(np.float64)
    spec = AudioSpec(
        sample_rate=SAMPLE_RATE,
        frames=AUDIO_FRAMES,
        mean=round(float(values.mean()), 3),
        std=round(float(values.std()), 3),
    )
    image = ImageSpec(FRAME_SIZE, FRAME_SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return CavMaeConfig(LABELS, width=96, heads=3, depth=4, patch=16, audio=spec, image=image)


def last_stage(recipe: Recipe) -> Recipe:
    """A quarter of the steps more, at a third of the rate, half of them with prompts."""
    rate = recipe.learning_rate / 3
    return replace(recipe, steps=max(1, recipe.steps // 4), learning_rate=rate, prompts=PROMPTS)


def train_in_stages(
    data: Samples, recipe: Recipe, *, held_out: Samples | None, out: Path, resume: bool
) -> CavMae:
    """The demo's model in its two stages; `resume` takes up what an interrupted run left in `out`."""
    first = out / "first-stage"
    if resume and (first / "model.safetensors").exists():
        model = load_cav_mae(first, device="cpu")
    else:
        config = clip_config(data)
        model = train(config, data, recipe, held_out=held_out, folder=first, resume=resume)
        save_cav_mae(model.config, model.weights, first)
    last = last_stage(recipe)
    trained = train(
        model.config, data, last, start=model.weights, held_out=held_out, folder=out, resume=resume
    )
    shutil.rmtree(first)
    return trained


CARD = """\
---
license: apache-2.0
pipeline_tag: video-classification
tags: [cav-mae, audio-visual, synthetic]
---
# clips-cavmae

A small CAV-MAE in its fine-tuned form (two towers, a joint block, a head), trained from scratch on procedural
audio-visual clips (`demo/clips.py`). It is the classifier of Attune's demo and end-to-end tests: it loads
offline in a moment, knows one small world well, and was trained on clean clips only, so that drift hurts it
visibly.

| | sound | frame |
|---|---|---|
| input | {frames} x {mel_bins} log mel filter bank (1.3 s) | {size} x {size} pixels |
| patches of {patch} | {tokens_a} | {tokens_v} |
| tower blocks | {depth} | {depth} |

Width {width}, {heads} heads, {joint_depth} joint block, {count} labels; {parameters:,} parameters, fp32,
{megabytes:.1f} MB. `calibration.safetensors` holds the source statistics of {statistics_samples} training
clips, Fisher values over {fisher_samples}, and a completion of latent size {latent} for clips that lack sound
or picture, fitted to {completion_samples}.

## Use
```python
from demo import demo_classifier_path
from encoders.cav_mae import load_cav_mae

model = load_cav_mae(demo_classifier_path())
```

## Data
Twelve events, each a thing that is seen and a sound that is heard:
{labels}.
Half of the things have two sounds and half of the sounds belong to two things, so one modality alone names
two clips of three at best. Place, size, turn, colour, background, clutter, pitch, loudness, onset and a mild
noise vary by seed; splits have seeds of their own.

## Recipe
`python -m demo.train_clips --out DIR`: {steps:,} steps of {batch} clips out of {clips:,}, AdamW, rate
{learning_rate:g} with warm-up and cosine, weight decay {weight_decay:g}, bf16 autocast, seed {seed}.

- Cross entropy of whole clips.
- For half of each batch also that of the sound alone and of the frame alone, weight {alone_weight:g}, and a
  contrastive loss between the two as in CAV-MAE's pre-training, weight {contrast_weight:g}.
- {last_steps:,} steps more at a third of the rate, every second one with {last_prompts} untrained prompts
  before the tokens of each tower block: among so few tokens they would disturb a model that never saw any.
- Spectrograms shift by up to {shift_frames} frames, pictures by up to {shift_pixels} pixels; nothing else
  is changed.

These weights are that recipe's, trained in {minutes:.0f} minutes on two cores with other work beside it.
Rounding differs between machines, so another run gives other weights of like quality.

## Quality
`python -m demo.measure_clips`: {measured:,} unseen clips of split "test", percent named rightly. Every shift
is a stream of its own in batches of 64, and methods start from the source state. The default rate of BriMPR,
1e-4, is the paper's, whose streams are longer; for short ones as here 1e-3 serves better where the shift is
strong.

{figures}

{missing}## Limits
- It knows the things and sounds above and nothing else; a photograph or a recording means nothing to it.
- Figures say how this model fares on clips like those it was trained on. They are no evidence about CAV-MAE,
  and gains of adaptation on it do not carry over to recordings by themselves.

Weights and data: Apache-2.0, as the project.
"""


def missing_table(missing: Mapping[str, Any]) -> str:
    """Who is right how often where a modality is hidden; nothing where that was not measured."""
    if not missing:
        return ""
    count = next(iter(missing.values()))["samples"]
    rows = "\n".join(
        f"| {hidden} | {100 * counts['model']:.1f} | {100 * counts['imputation']:.1f} |"
        for hidden, counts in missing.items()
    )
    told = (
        f'{count:,} unseen clips of split "dev" with one modality hidden, percent named rightly by the '
        "model's own path for that and by imputation:"
    )
    return f"{told}\n\n| hidden | own path | imputation |\n|---|---|---|\n{rows}\n\n"


def card(model: CavMae, recipe: Recipe, clips: int, minutes: float, *, measured: int = 640) -> str:
    """The model card, with figures measured now. The model has its calibration."""
    config, calibration = model.config, model.calibration
    parameters = sum(value.numel() for value in model.weights.values())
    facts = {
        **asdict(recipe),
        **{f"last_{name}": value for name, value in asdict(last_stage(recipe)).items()},
        **{name: getattr(config, name) for name in ("width", "heads", "depth", "joint_depth", "patch")},
        **calibration.about,
        "latent": calibration.completion.about["latent"],
        "completion_samples": calibration.completion.about["samples"],
        "missing": missing_table(calibration.about.get("missing", {})),
        "frames": config.audio.frames,
        "mel_bins": config.audio.mel_bins,
        "size": config.image.height,
        "tokens_a": config.tokens("audio"),
        "tokens_v": config.tokens("video"),
        "count": len(config.labels),
        "labels": textwrap.fill(", ".join(config.labels), 105),
        "parameters": parameters,
        "megabytes": 4 * parameters / 1e6,
        "clips": clips,
        "minutes": minutes,
        "measured": measured,
        "figures": table(measure(model, measured, tuple(COMPARED)), tuple(COMPARED)),
    }
    return CARD.format(**facts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: python -m demo.train_clips --out DIR [--steps N] [--seed S] [--resume] ..."""
    plain = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m demo.train_clips", description="Train the demo's classifier of clips."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its checkpoint")
    parser.add_argument("--steps", type=int, default=plain.steps)
    parser.add_argument("--batch", type=int, default=plain.batch)
    parser.add_argument("--train-clips", type=int, default=12_000)
    parser.add_argument("--learning-rate", type=float, default=plain.learning_rate)
    parser.add_argument("--seed", type=int, default=plain.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    default_cache = Path(tempfile.gettempdir()) / "attune-clips"
    parser.add_argument("--cache", type=Path, default=default_cache, help="clips as arrays are kept here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = replace(
        plain, steps=given.steps, batch=given.batch, learning_rate=given.learning_rate, seed=given.seed
    )
    data = cached_clips("train", given.train_clips, given.cache)
    dev = cached_clips("dev", 480, given.cache)
    begin = time.monotonic()
    model = train_in_stages(data, recipe, held_out=dev, out=given.out, resume=given.resume)
    minutes = (time.monotonic() - begin) / 60
    save_cav_mae(model.config, model.weights, given.out)
    model.calibration = calibrate(model, data, dev)
    save_calibration(model.calibration, given.out / "calibration.safetensors")
    (given.out / "README.md").write_text(card(model, recipe, len(data), minutes), encoding="utf-8")


if __name__ == "__main__":
    main()
