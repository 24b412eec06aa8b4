"""`attune calibrate --encoder`: what a picture says of its text and the other way round, measured once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from service.cli.sources import read_items

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from encoders.base import Encoder, Modality


@dataclass(frozen=True)
class Pair:
    """A picture's file and a text, or one of them."""

    image: Path | None
    text: str | None

    @property
    def complete(self) -> bool:
        return self.image is not None and self.text is not None


def calibrate_encoder(
    name: str,
    data: Path,
    out: Path,
    *,
    latent: int | None,
    pairs: int,
    batch_size: int,
    seed: int,
    device: str,
) -> None:
    """Write the calibration of a dual encoder. Raises ValueError, OSError, EncoderError, AdapterError."""
    from adapters.calibration import Calibration, save_calibration
    from adapters.completion import FEWEST_PAIRS, fit_completion
    from encoders.load import load_encoder
    from service.cli.calibrate import report, run_fit

    if latent == 0:
        raise ValueError("of a dual encoder there is nothing to measure but a completion; --latent 0 is none")
    found = pairs_of(read_items(data))
    random.Random(seed).shuffle(found)
    chosen = [pair for pair in found if pair.complete][:pairs]
    chosen += [pair for pair in found if not pair.complete][:pairs]
    complete = sum(pair.complete for pair in chosen)
    if complete < FEWEST_PAIRS:
        raise ValueError(f"{data} has {complete} items with picture and text; {FEWEST_PAIRS} are needed")
    encoder = load_encoder(_place(name), device=device)
    if latent is not None and latent > encoder.dimension:
        raise ValueError(f"a latent of {latent} is larger than the encoder's {encoder.dimension} features")
    embeddings, there = _encoded(encoder, chosen, batch_size)
    completion = run_fit(fit_completion(embeddings, there, unit=True, latent=latent, seed=seed))
    about = {"data": data.resolve().name, "seed": seed, "pairs": complete}
    save_calibration(Calibration(encoder.fingerprint, completion=completion, about=about), out)
    typer.echo(f"{out}: a completion of pictures and texts; for the encoder {encoder.name}")
    for line in report(completion, {}):
        typer.echo(line)


def _place(name: str) -> str:
    if name != "demo":
        return name
    from demo import demo_encoder_path

    return str(demo_encoder_path())


def pairs_of(items: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Each item, its picture once with each of its texts. Items with ready vectors alone are left out."""
    found: list[Pair] = []
    for item in items:
        image = item.get("image")
        if image is not None and not isinstance(image, Path):
            raise ValueError(f"item {item['id']!r}: the picture has to be a file here")
        payload = item.get("payload")
        captions = payload.get("captions") if isinstance(payload, dict) else None
        texts = captions if _texts(captions) else [item["text"]] if item.get("text") else []
        if texts:
            found += [Pair(image, text) for text in texts]
        elif image is not None:
            found.append(Pair(image, None))
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)


def _encoded(
    encoder: Encoder, pairs: Sequence[Pair], batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Unit embeddings [N, D] of both modalities, zeros where a pair lacks it, and bool [N] who has it.

    Every picture and every text is encoded once, whatever it pairs with.
    """
    import torch

    embeddings: dict[str, torch.Tensor] = {}
    there: dict[str, torch.Tensor] = {}
    wanted: dict[Modality, list[Any]] = {
        "image": [pair.image for pair in pairs],
        "text": [pair.text for pair in pairs],
    }
    for modality, things in wanted.items():
        different = list(dict.fromkeys(thing for thing in things if thing is not None))
        rows = {thing: row for row, thing in enumerate(different)}
        made = _features(encoder, modality, different, batch_size)
        at = torch.tensor([rows.get(thing, -1) for thing in things], device=made.device)
        there[modality] = at >= 0
        embeddings[modality] = made[at.clamp_min(0)] * there[modality][:, None]
    return embeddings, there


def _features(encoder: Encoder, modality: Modality, things: Sequence[Any], batch_size: int) -> Tensor:
    """[N, D]"""
    import torch

    from service.cli.calibrate import shown

    tower = encoder.towers[modality]
    starts = range(0, len(things), batch_size)
    found = []
    for start in shown(starts, {"image": "pictures", "text": "texts"}[modality]):
        batch = things[start : start + batch_size]
        if modality == "image":
            batch = [_pixels(encoder, file) for file in batch]
        found.append(tower.encode(tower.prepare(batch)).float())
    return torch.cat(found)


def _pixels(encoder: Encoder, file: Path) -> Any:
    """Raises ValueError that names the file."""
    from encoders.base import BadImage
    from encoders.preprocessing import open_image, pixels

    try:
        return pixels(open_image(file.read_bytes()), encoder.image_spec)
    except BadImage as error:
        raise ValueError(f"{file}: {error}") from error
