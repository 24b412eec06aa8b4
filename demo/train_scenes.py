"""Train the demo encoder, a small genuine CLIPModel, from scratch on procedural scenes.

    python -m demo.train_scenes --out DIR            the recipe of the committed weights
    python -m demo.train_scenes --out DIR --minutes 3    the same schedule squeezed into three minutes
    python -m demo.train_scenes --out DIR --calibrate    only its calibration, of an encoder that is there

The loss is CLIP's symmetric InfoNCE (Radford et al. 2021, figure 3). Pictures see only small shifts and
changes of light: the encoder knows clean pictures, so that drifting queries hurt it and adapting has
something to repair.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress, track
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from adapters.calibration import Calibration, save_calibration
from adapters.completion import Completion, fit_completion
from demo.gallery import make_vectors
from demo.measure import DRAWN_SIZE, embed_texts, recall
from demo.scenes import Scene, render, scenes, vocabulary
from encoders.load import load_encoder

__all__ = ["Recipe", "build_model", "build_processor", "build_tokenizer", "calibrate", "main", "train"]

IMAGE_SIZE = 72  # pixels that the encoder sees: 6 x 6 patches of 12
CHECKPOINT = "checkpoint.pt"
CALIBRATION = "calibration.safetensors"
CALIBRATION_SCENES = 2000
REPORT_STEPS = 250
SERIES = 4  # scenes
CONTEXT = 40  # tokens, begin and end included
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, apart from the machine's rounding."""

    train_scenes: int = 24_000
    steps: int = 4_000
    batch: int = 128
    learning_rate: float = 1e-3
    warmup_share: float = 0.06
    weight_decay: float = 0.05
    shorten_share: float = 0.15
    split_word_share: float = 0.1
    series_after_steps: int = 750
    seed: int = 0


# ------------------------------------------------------------------------------------------------------
# Model, tokenizer, processor


def build_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over the words of the scenes, their beginnings and endings, and single letters.

    A misspelt word therefore becomes a known beginning, letters and perhaps a known ending, seldom [UNK].
    """
    words = vocabulary()
    begins = {word[:cut] for word in words for cut in range(2, len(word))}
    ends = {f"##{word[cut:]}" for word in words for cut in range(1, len(word) - 1)}
    pieces = [*SPECIAL.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS), *",.!?-'"]
    pieces += words + sorted(begins.difference(words)) + sorted(ends)
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.WordPiece(numbers, unk_token=SPECIAL["unk_token"], max_input_chars_per_word=40)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[(mark, numbers[mark]) for mark in ("[BOS]", "[EOS]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """A CLIPModel with random weights: picture tower 5 x 160, text tower 4 x 128, embeddings of 128."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        # The text tower pools at the first token with this id. It must not be 2: for that value transformers
        # keeps an old behaviour and takes the largest id instead.
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=5,
        image_size=IMAGE_SIZE,
        patch_size=12,
        projection_dim=128,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    return CLIPModel._from_config(config, attn_implementation="eager")


def build_processor(tokenizer: PreTrainedTokenizerFast) -> CLIPProcessor:
    """Squash to the encoder's size (no crop: a crop could lose an object), scale, normalise."""
    pictures = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)


# ------------------------------------------------------------------------------------------------------
# Data


def draw_pictures(listed: Sequence[Scene], *, workers: int = 2) -> NDArray[np.uint8]:
    """Pictures as the encoder sees them, uint8 [N, 72, 72, 3]."""
    out = np.empty((len(listed), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        drawn = pool.imap(_draw, listed, chunksize=64)
        for number, picture in enumerate(track(drawn, "drawing scenes", total=len(listed))):
            out[number] = picture
    return out


def _draw(scene: Scene) -> NDArray[np.uint8]:
    small = render(scene, DRAWN_SIZE).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(small)


def cached_pictures(listed: Sequence[Scene], cache: Path, name: str) -> NDArray[np.uint8]:
    """Pictures from `cache`, drawn first when they are not there."""
    path = cache / f"{name}-{IMAGE_SIZE}px-{len(listed)}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, draw_pictures(listed))
    pictures: NDArray[np.uint8] = np.load(path)
    return pictures


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> normalised float [B, 3, H, W], the processor's arithmetic."""
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def lightly_changed(pixels: Tensor, dice: random.Random, reach: int = 3) -> Tensor:
    """Shift each quarter of the batch by up to `reach` pixels; change its contrast and light by up to 6 %."""
    parts = []
    for part in pixels.chunk(4):
        wide = functional.pad(part, (reach,) * 4, mode="replicate")
        top, left = dice.randint(0, 2 * reach), dice.randint(0, 2 * reach)
        moved = wide[:, :, top : top + part.shape[2], left : left + part.shape[3]]
        parts.append(moved * dice.uniform(0.94, 1.06) + dice.uniform(-0.12, 0.12))
    return torch.cat(parts)


def spoken(caption: str, recipe: Recipe, dice: random.Random) -> str:
    """The caption, sometimes shortened as people do, sometimes with one word torn into sub-words."""
    words = caption.split()
    if dice.random() < recipe.shorten_share:
        words = _shortened(words, dice)
    if dice.random() < recipe.split_word_share:
        words = _torn(words, dice)
    return " ".join(words)


def _shortened(words: list[str], dice: random.Random) -> list[str]:
    """Leave out the words of size, or the place at the end of the caption."""
    if dice.random() < 0.5:
        return [word for word in words if word not in {"small", "tiny", "large", "big"}]
    starts = [number for number, word in enumerate(words) if word in {"on", "in", "at"}]
    return words[: starts[-1]]


def _torn(words: list[str], dice: random.Random) -> list[str]:
    """Mistype one letter of one word, so that letters and parts of words get a meaning too."""
    number = dice.randrange(len(words))
    word = words[number]
    if len(word) < 4:
        return words
    place = dice.randrange(1, len(word))
    letter = dice.choice(LETTERS[:26])
    return [*words[:number], word[:place] + letter + word[place + 1 :], *words[number + 1 :]]


# ------------------------------------------------------------------------------------------------------
# Training and measuring


@dataclass
class Trainer:
    """What one update needs."""

    model: CLIPModel
    optimiser: torch.optim.Optimizer
    processor: CLIPProcessor
    recipe: Recipe

    def step(self, number: int, done: float, pictures: NDArray[np.uint8], captions: Sequence[str]) -> float:
        """One update at the share `done` of the schedule; the loss before it, in nats."""
        dice = random.Random(self.recipe.seed * 1_000_003 + number)
        rate = self.recipe.learning_rate * schedule(done, self.recipe.warmup_share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        pixels = lightly_changed(to_pixels(pictures), dice)
        said = [spoken(caption, self.recipe, dice) for caption in captions]
        loss = self._loss(pixels, self.processor.tokenizer(said, padding=True, return_tensors="pt"))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100.0))  # CLIP section 2.5
        return loss.item()

    def _loss(self, pixels: Tensor, tokens: Any) -> Tensor:
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images = self.model.get_image_features(pixels).pooler_output
            texts = self.model.get_text_features(**tokens).pooler_output
        return info_nce(images.float(), texts.float(), self.model.logit_scale)

    def recall(self, pixels: Tensor, captions: Sequence[str]) -> tuple[float, float]:
        """R@1 in percent: image to text, text to image."""
        self.model.eval()
        with torch.inference_mode():
            images = functional.normalize(self.model.get_image_features(pixels).pooler_output, dim=1)
        texts = embed_texts(self.model, self.processor, captions)
        return recall(images, texts)[0], recall(texts, images)[0]

    def save(self, path: Path, number: int) -> None:
        states = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save({**states, "step": number}, path)

    def load(self, path: Path) -> int:
        """Take up a checkpoint; the number of the next step."""
        held = torch.load(path, weights_only=True)
        self.model.load_state_dict(held["model"])
        self.optimiser.load_state_dict(held["optimiser"])
        return int(held["step"])


def new_trainer(recipe: Recipe) -> Trainer:
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]  # norms, biases, temperature
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    return Trainer(model, optimiser, build_processor(tokenizer), recipe)


def train(
    out: Path, recipe: Recipe, *, cache: Path, minutes: float | None = None, resume: bool = False
) -> None:
    """Train, saving a checkpoint every REPORT_STEPS, and write the finished encoder to `out`.

    `minutes` ends the schedule at that time at the latest; the result then depends on the machine's speed.
    """
    trainer = new_trainer(recipe)
    listed, held_out = scenes("train", recipe.train_scenes), scenes("dev", 500)
    pictures = cached_pictures(listed, cache, "train")
    dev_pixels = to_pixels(cached_pictures(held_out, cache, "dev"))
    dev_captions = [scene.caption for scene in held_out]
    out.mkdir(parents=True, exist_ok=True)
    first = trainer.load(out / CHECKPOINT) if resume else 0
    begin, budget_s = time.monotonic(), math.inf if minutes is None else 60 * minutes
    with Progress() as progress:
        bar = progress.add_task("training", total=recipe.steps, completed=first)
        for number, rows in enumerate(_batches(listed, recipe, first), start=first):
            elapsed_s = time.monotonic() - begin
            done = max(number / recipe.steps, elapsed_s / budget_s)
            if done >= 1:
                break
            loss = trainer.step(number, done, pictures[rows], [listed[i].caption for i in rows])
            progress.update(bar, completed=int(done * recipe.steps), description=f"loss {loss:.3f}")
            if (number + 1) % REPORT_STEPS == 0:
                found = "dev R@1 {} / {}".format(*trainer.recall(dev_pixels, dev_captions))
                progress.console.print(f"step {number + 1}, {elapsed_s:.0f} s, loss {loss:.3f}, {found}")
                trainer.save(out / CHECKPOINT, number + 1)
    print("end: dev R@1 {} / {}".format(*trainer.recall(dev_pixels, dev_captions)))
    trainer.model.eval().save_pretrained(out)
    trainer.processor.save_pretrained(out)
    (out / CHECKPOINT).unlink(missing_ok=True)  # of use only while the schedule was unfinished


def calibrate(folder: Path, *, count: int = CALIBRATION_SCENES) -> Completion:
    """Fit what a picture says of its caption and the other way round, and write it beside the weights.

    To clean scenes of split "dev", whose captions the encoder was not trained on: it knows those of its
    training better than any it will meet.
    """
    encoder = load_encoder(str(folder), device="cpu")
    vectors = make_vectors(encoder, scenes("dev", count))
    embeddings = {"image": torch.from_numpy(vectors.image), "text": torch.from_numpy(vectors.text)}
    slices = fit_completion(embeddings, unit=True)
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            completion: Completion = ended.value
            break
    about = {"data": "scenes dev", "pairs": count}
    save_calibration(
        Calibration(encoder.fingerprint, completion=completion, about=about), folder / CALIBRATION
    )
    return completion


def _batches(listed: Sequence[Scene], recipe: Recipe, first: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each batch: a fresh order every epoch, the same again after a resume.

    After `series_after_steps` a batch is made of series of SERIES scenes with the same place and colours,
    which only shapes, textures, sizes and order tell apart.

    Raises: ValueError when there are fewer scenes than one batch holds.
    """
    per_epoch = len(listed) // recipe.batch
    if per_epoch == 0:
        raise ValueError(f"a batch of {recipe.batch} needs at least as many scenes, got {len(listed)}")
    kinds = _kinds(listed)
    for number in range(first, recipe.steps):
        rng = np.random.default_rng((recipe.seed, number // per_epoch))
        order = rng.permutation(len(listed))
        if number >= recipe.series_after_steps:
            order = _in_series(order, kinds, rng)
        start = number % per_epoch * recipe.batch
        yield order[start : start + recipe.batch]


def _kinds(listed: Sequence[Scene]) -> NDArray[np.int64]:
    """One number for all scenes with the same place and colours."""
    names = [f"{scene.background} {sorted(thing.colour for thing in scene.things)}" for scene in listed]
    numbers: NDArray[np.int64] = np.unique(names, return_inverse=True)[1]
    return numbers


def _in_series(
    order: NDArray[np.int64], kinds: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sort scenes of one kind together, cut into series, and shuffle the series."""
    together = order[np.argsort(kinds[order], kind="stable")]
    whole = len(together) // SERIES * SERIES
    series = rng.permutation(together[:whole].reshape(-1, SERIES))
    return np.concatenate([series.ravel(), together[whole:]])


def info_nce(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy in nats; row i [B, D] of both belongs together. CLIP figure 3."""
    images, texts = functional.normalize(images, dim=1), functional.normalize(texts, dim=1)
    logits = logit_scale.exp() * images @ texts.T  # [B, B]
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def schedule(done: float, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then a half cosine down to 2 %."""
    if done < warmup:
        return max(done, 1e-3) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: python -m demo.train_scenes --out DIR [--minutes N] [--seed S] [--resume] ..."""
    plain = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m demo.train_scenes", description="Train the demo encoder."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoder and its checkpoint")
    parser.add_argument("--steps", type=int, default=plain.steps)
    parser.add_argument("--batch", type=int, default=plain.batch)
    parser.add_argument("--train-scenes", type=int, default=plain.train_scenes)
    parser.add_argument("--learning-rate", type=float, default=plain.learning_rate)
    parser.add_argument("--seed", type=int, default=plain.seed)
    parser.add_argument("--minutes", type=float, help="end the schedule at this time at the latest")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", action="store_true", help="train nothing, calibrate what is in --out")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    default_cache = Path(tempfile.gettempdir()) / "attune-scenes"
    parser.add_argument("--cache", type=Path, default=default_cache, help="drawn pictures are kept here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = Recipe(
        train_scenes=given.train_scenes,
        steps=given.steps,
        batch=given.batch,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    if not given.calibrate:
        train(given.out, recipe, cache=given.cache, minutes=given.minutes, resume=given.resume)
    found = calibrate(given.out)
    print(f"{given.out / CALIBRATION}: latent {found.model.latent}, {found.about['relative_error']}")


if __name__ == "__main__":
    main()
