"""Measure the demo encoder on unseen scenes, clean and corrupted: the figures of its model card.

    python -m demo.measure [--weights DIR] [--count 1000] [--json FILE]

Picture corruptions follow ImageNet-C (Hendrycks and Dietterich 2019) at severity 5 on pictures of 128 pixels;
lengths, given there for 224 pixels, shrink with the picture. Only queries are corrupted, never the gallery.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from transformers import AutoProcessor, CLIPModel

from demo import demo_encoder_path
from demo.scenes import Scene, render, scenes

__all__ = [
    "QUERIES",
    "defocus_blur",
    "embed_pictures",
    "embed_texts",
    "fog",
    "gaussian_noise",
    "main",
    "measure",
]

Picture = NDArray[np.float64]  # [H, W, 3], 0..1
DRAWN_SIZE = 128  # pixels
REFERENCE_SIZE = 224  # pixels; ImageNet-C gives its lengths for this size
KS = (1, 5, 10)


def gaussian_noise(picture: Picture, rng: np.random.Generator, *, sigma: float = 0.38) -> Picture:
    """Add noise of standard deviation sigma to every channel."""
    return np.clip(picture + rng.normal(0.0, sigma, picture.shape), 0, 1)


def defocus_blur(
    picture: Picture, rng: np.random.Generator, *, radius: float = 10.0, soft: float = 0.5
) -> Picture:
    """Average over a disc; `radius` in pixels of a picture of 224, `soft` blurs the disc's rim, in pixels."""
    del rng
    kernel = _disc(radius * picture.shape[0] / REFERENCE_SIZE, soft)
    side = kernel.shape[0] // 2
    channels = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(1)  # [3, 1, H, W]
    wide = functional.pad(channels, (side,) * 4, mode="reflect")
    blurred = functional.conv2d(wide, torch.from_numpy(kernel)[None, None])
    return np.asarray(blurred.squeeze(1).permute(1, 2, 0).clamp(0, 1))


def _disc(radius: float, soft: float) -> NDArray[np.float64]:
    reach = math.ceil(radius + 2 * soft)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(rows, columns)
    disc = np.clip((radius - distance) / (2 * soft) + 0.5, 0, 1)
    return np.asarray(disc / disc.sum(), dtype=np.float64)


def fog(picture: Picture, rng: np.random.Generator, *, strength: float = 3.0, decay: float = 1.4) -> Picture:
    """Mix in a cloud made by midpoint displacement; less `decay` means finer detail."""
    height, width = picture.shape[:2]
    side = 1 << math.ceil(math.log2(max(height, width)))
    cloud = _plasma(rng, side, decay)[:height, :width, None]
    top = picture.max()
    return np.asarray(np.clip((picture + strength * cloud) * top / (top + strength), 0, 1))


def _plasma(rng: np.random.Generator, side: int, decay: float) -> NDArray[np.float64]:
    """Diamond-square height map [side, side], 0..1, wrapping at its edges; side is a power of two."""
    heights = np.zeros((side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        squares = (pairs + np.roll(pairs, -1, axis=1)) / 4
        heights[half::step, half::step] = squares + _wobbles(rng, wobble, squares.shape)
        centres = heights[half::step, half::step]
        above = (centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)) / 4
        beside = (centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)) / 4
        heights[::step, half::step] = above + _wobbles(rng, wobble, above.shape)
        heights[half::step, ::step] = beside + _wobbles(rng, wobble, beside.shape)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return np.asarray(heights / heights.max(), dtype=np.float64)


def _wobbles(rng: np.random.Generator, wobble: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.asarray(wobble * rng.uniform(-1, 1, shape))


def mistyped(caption: str, rng: np.random.Generator, *, share: float = 0.5) -> str:
    """Replace one letter in about `share` of the words of four letters or more."""
    words = caption.split()
    for number, word in enumerate(words):
        if len(word) >= 4 and rng.random() < share:
            place, letter = int(rng.integers(len(word))), chr(97 + int(rng.integers(26)))
            words[number] = word[:place] + letter + word[place + 1 :]
    return " ".join(words)


Corruption = Callable[[Picture, np.random.Generator], Picture]
QUERIES: dict[str, Corruption | None] = {
    "clean": None,
    "gaussian noise": gaussian_noise,
    "defocus blur": defocus_blur,
    "fog": fog,
}


def corrupted(pictures: Sequence[Image.Image], corruption: Corruption | None) -> list[Image.Image]:
    """Corrupted copies; picture i always gets the same noise."""
    if corruption is None:
        return list(pictures)
    out = []
    for number, picture in enumerate(pictures):
        changed = corruption(np.asarray(picture) / 255.0, np.random.default_rng(number))
        out.append(Image.fromarray(np.round(255 * changed).astype(np.uint8)))
    return out


@torch.inference_mode()
def embed_pictures(
    model: CLIPModel, processor: Any, pictures: Sequence[Image.Image], *, batch: int = 100
) -> Tensor:
    """Unit vectors [B, D]."""
    parts = []
    for start in range(0, len(pictures), batch):
        inputs = processor.image_processor(pictures[start : start + batch], return_tensors="pt")
        parts.append(model.get_image_features(**inputs).pooler_output)
    return functional.normalize(torch.cat(parts), dim=1)


@torch.inference_mode()
def embed_texts(model: CLIPModel, processor: Any, captions: Sequence[str], *, batch: int = 100) -> Tensor:
    """Unit vectors [B, D]."""
    parts = []
    for start in range(0, len(captions), batch):
        part = list(captions[start : start + batch])
        inputs = processor.tokenizer(part, padding=True, truncation=True, return_tensors="pt")
        parts.append(model.get_text_features(**inputs).pooler_output)
    return functional.normalize(torch.cat(parts), dim=1)


def recall(queries: Tensor, gallery: Tensor, ks: Sequence[int] = KS) -> list[float]:
    """Recall at each k in percent; query i [B, D] belongs to gallery item i [B, D]; ties count as found."""
    scores = queries @ gallery.T  # [B, B]
    better = (scores > scores.diagonal().unsqueeze(1)).sum(dim=1)
    return [round(100 * (better < k).double().mean().item(), 1) for k in ks]


def measure(weights: Path, listed: Sequence[Scene]) -> dict[str, list[float]]:
    """Recall at 1, 5 and 10 in percent, by direction and kind of query."""
    model = CLIPModel.from_pretrained(weights, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(weights, local_files_only=True)
    drawn = [render(scene, DRAWN_SIZE) for scene in track(listed, "drawing scenes")]
    captions = [scene.caption for scene in listed]
    texts = embed_texts(model, processor, captions)
    figures, pictures = {}, embed_pictures(model, processor, drawn)
    for name, corruption in track(QUERIES.items(), "measuring", total=len(QUERIES)):
        queries = embed_pictures(model, processor, corrupted(drawn, corruption))
        figures[f"image to text, {name}"] = recall(queries, texts)
    figures["text to image, clean"] = recall(texts, pictures)
    wrong = [mistyped(caption, np.random.default_rng(number)) for number, caption in enumerate(captions)]
    figures["text to image, mistyped"] = recall(embed_texts(model, processor, wrong), pictures)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: print the table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(prog="python -m demo.measure", description="Measure the demo encoder.")
    parser.add_argument(
        "--weights", type=Path, default=None, help="folder of the encoder; default: the demo's"
    )
    parser.add_argument("--split", choices=("dev", "test", "gallery"), default="test")
    parser.add_argument("--count", type=int, default=1000, help="number of scenes")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    given = parser.parse_args(arguments)
    figures = measure(given.weights or demo_encoder_path(), scenes(given.split, given.count))
    print("| queries | R@1 | R@5 | R@10 |\n|---|---|---|---|")
    for name, values in figures.items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
