"""Preparing queries and embedding galleries, each once.

Letters: N items, D features.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.corruptions import Shift
from benchmarks.datasets import CaptionedImages, digest_of
from encoders.base import Encoder, Modality
from encoders.preprocessing import clean_caption, open_image, pixels

Progress = Callable[[int], None]

GALLERY_BATCH = 64
_CACHE_FORMAT = 1


def default_cache() -> Path:
    """Where gallery embeddings are kept: XDG_CACHE_HOME or ~/.cache, below it attune/benchmarks."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "attune" / "benchmarks"


def generator_for(seed: int, shift: Shift, item: int) -> np.random.Generator:
    """The generator of one item under one shift: it depends on neither order nor limit."""
    return np.random.default_rng([seed, zlib.crc32(str(shift).encode()), item])


def prepare_images(
    paths: Sequence[Path],
    numbers: Sequence[int],
    encoder: Encoder,
    shift: Shift,
    *,
    seed: int,
    scale: bool,
    done: Progress,
) -> list[np.ndarray]:
    """Corrupted and resized pictures: N arrays uint8 [3, H, W]. `numbers` seed each item's corruption."""

    def prepare(path: Path, number: int) -> np.ndarray:
        image = open_image(path.read_bytes())
        rng = generator_for(seed, shift, number)
        corrupted = shift.image(np.asarray(image), rng, scale=scale)
        done(1)
        return pixels(Image.fromarray(corrupted), encoder.image_spec)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(prepare, paths, numbers))


def prepare_texts(
    captions: Sequence[str],
    numbers: Sequence[int],
    shift: Shift,
    *,
    seed: int,
    done: Progress,
    clean: Callable[[str], str] = clean_caption,
) -> list[str]:
    """Corrupted captions, then cleaned as the papers do."""
    prepared = []
    for caption, number in zip(captions, numbers, strict=True):
        prepared.append(clean(shift.text(caption, generator_for(seed, shift, number))))
        done(1)
    return prepared


def embed(encoder: Encoder, modality: Modality, items: Sequence[Any], done: Progress) -> Tensor:
    """Source embeddings [N, D] of prepared items."""
    tower = encoder.towers[modality]
    parts = []
    for batch in batches(items, GALLERY_BATCH):
        parts.append(tower.encode(tower.prepare(batch)))
        done(len(batch))
    return torch.cat(parts)


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def gallery_embeddings(
    encoder: Encoder, data: CaptionedImages, modality: Modality, *, cache: Path | None, done: Progress
) -> Tensor:
    """Clean embeddings of all pictures or all captions, [N, D] on the encoder's device.

    They are kept in `cache` under the encoder's fingerprint and the data's digest; None keeps nothing. A file
    that cannot be read or has another size is made anew.
    """
    count = len(data.images) if modality == "image" else len(data.captions)
    path = None if cache is None else cache / f"{_cache_key(encoder, data, modality)}.npy"
    kept = None if path is None else _read(path, (count, encoder.dimension))
    if kept is not None:
        done(count)
        return torch.from_numpy(kept).to(encoder.device)
    features = embed(encoder, modality, _clean_items(encoder, data, modality), done)
    if path is not None:
        _write(path, features.float().cpu().numpy())
    return features


def _clean_items(encoder: Encoder, data: CaptionedImages, modality: Modality) -> list[Any]:
    clean = Shift.parse("clean")
    if modality == "text":
        return [data.clean(caption) for caption in data.captions]
    numbers = range(len(data.images))
    return prepare_images(data.images, numbers, encoder, clean, seed=0, scale=False, done=lambda count: None)


def _cache_key(encoder: Encoder, data: CaptionedImages, modality: Modality) -> str:
    parts = [str(_CACHE_FORMAT), encoder.fingerprint, encoder.dtype_name, modality, data.digest]
    if modality == "text":
        parts.append(str(data.caption_words))
    return digest_of([part.encode() for part in parts])[:40]


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        features: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.shape == shape and features.dtype == np.float32 else None


def _write(path: Path, features: np.ndarray) -> None:
    """Complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, features)
    partial.replace(path)
