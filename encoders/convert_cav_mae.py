"""Makes a released checkpoint of CAV-MAE (fine-tuned for classification) a folder that is served.

    python -m encoders.convert_cav_mae CHECKPOINT.pth OUT --labels FILE [--heads 12] [--mel-bins 128]

OUT gets config.json and model.safetensors. Sizes come from the shapes of the weights; what shapes do not show
are the heads and the mel bins. FILE holds the labels in the order of the classes: one a line, or the
`class_labels_indices` table of the released data sets (columns index, mid, display_name).

A checkpoint is a pickle, which could run code: only weights are read from it, anything else is refused.
"""

from __future__ import annotations

import argparse
import csv
import math
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.audio import AudioSpec
from encoders.base import EncoderError
from encoders.cav_mae import CavMaeConfig, check_weights, save_cav_mae

_NESTED = ("state_dict", "model")
_SEPARATE = re.compile(r"(?P<attention>.*\.attn\.)(?P<part>[qkv])\.(?P<kind>weight|bias)")


def convert(
    checkpoint: Path, folder: Path, labels: Sequence[str], *, heads: int = 12, mel_bins: int = 128
) -> tuple[CavMaeConfig, list[str]]:
    """Read, check and write. Returns the sizes found, and notes about what was left out.

    Raises:
        EncoderError: the file is no such checkpoint, or the labels do not fit it. Nothing is written then.
    """
    weights, notes = plain_weights(read_checkpoint(checkpoint))
    config = config_of(weights, labels, heads=heads, mel_bins=mel_bins)
    check_weights(config, weights)
    save_cav_mae(config, weights, folder)
    return config, notes


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by name, whether the file is a state dict or holds one as `state_dict` or `model`."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{path.name} holds more than weights, which could run code when it is read; save its state_dict"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise EncoderError(f"{path.name} could not be read as a checkpoint: {error}") from error
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise EncoderError(f"{path.name} holds no state dict")
    others = [str(name)[:80] for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise EncoderError(f"{path.name} holds what is no weight: {', '.join(others[:3])}")
    return {str(name): value for name, value in content.items()}


def plain_weights(found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights (fp32) by the model's names, and notes.

    Data-parallel training puts `module.` before the names. Queries, keys and values may be there a second
    time beside the one matrix `qkv`, which the reference uses in their place.
    """
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        plain = name.removeprefix("module.")
        if plain in weights:
            raise EncoderError(f"{plain} is there twice, with and without `module.`")
        weights[plain] = value.detach().float().contiguous()
    notes: list[str] = []
    for name in [name for name in weights if _SEPARATE.fullmatch(name)]:
        whole = weights.get(re.sub(r"\.[qkv]\.(weight|bias)$", r".qkv.\1", name))
        if whole is not None:
            notes.append(_compared(name, weights.pop(name), whole))
    return weights, notes


def _compared(name: str, part: Tensor, whole: Tensor) -> str:
    """A note on one of q, k and v beside the matrix that holds all three."""
    rows = whole.chunk(3)["qkv".index(name.split(".")[-2])]
    same = part.shape == rows.shape and bool(torch.equal(part, rows))
    return f"left out {name}, " + ("the same as" if same else "which DIFFERS from") + " its rows of qkv"


def config_of(
    weights: Mapping[str, Tensor], labels: Sequence[str], *, heads: int, mel_bins: int
) -> CavMaeConfig:
    """The sizes that the weights' shapes tell. Raises EncoderError where they contradict each other."""
    width, _, patch, _ = _shape(weights, "patch_embed_a.proj.weight", 4)
    hidden, _ = _shape(weights, "blocks_a.0.mlp.fc1.weight", 2)
    classes, _ = _shape(weights, "mlp_head.1.weight", 2)
    if len(labels) != classes:
        raise EncoderError(f"there are {len(labels)} labels, the model tells {classes} classes apart")
    rows = mel_bins // patch if patch else 0
    audio_tokens = _shape(weights, "pos_embed_a", 3)[1]
    video_tokens = _shape(weights, "pos_embed_v", 3)[1]
    side = math.isqrt(video_tokens)
    if not rows or audio_tokens % rows:
        raise EncoderError(f"{audio_tokens} audio tokens are no whole columns of {mel_bins} mel bins")
    if side * side != video_tokens:
        raise EncoderError(f"{video_tokens} video tokens are no square")
    if hidden % width:
        raise EncoderError(f"a hidden layer of {hidden} is no multiple of the width {width}")
    # Frames are resized and normalised as for the released models, whatever their size.
    released = CavMaeConfig(labels=tuple(labels))
    pixels = side * patch
    return replace(
        released,
        width=width,
        heads=heads,
        depth=_blocks(weights, "blocks_a"),
        joint_depth=_blocks(weights, "blocks_u"),
        mlp_ratio=hidden // width,
        patch=patch,
        audio=AudioSpec(frames=audio_tokens // rows * patch, mel_bins=mel_bins),
        image=replace(released.image, height=pixels, width=pixels, shortest_edge=pixels),
    )


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights:
        raise EncoderError(f"the checkpoint lacks {name}; is it a CAV-MAE fine-tuned for classification?")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions or min(shape) < 1:
        raise EncoderError(f"{name} has the shape {shape}, which is not that of a CAV-MAE")
    return shape


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks there are; gaps in their numbers show when names are checked."""
    return len({name.split(".")[1] for name in weights if name.startswith(f"{prefix}.")})


def read_labels(path: Path) -> list[str]:
    """One label a line, or a table with the columns `index` and `display_name`. Raises EncoderError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoderError(f"the labels could not be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise EncoderError(f"{path.name} holds no label")
    if {"index", "display_name"} <= {column.strip() for column in lines[0].split(",")}:
        return _labels_of_table(path.name, lines)
    return [line.strip() for line in lines]


def _labels_of_table(name: str, lines: Sequence[str]) -> list[str]:
    labels: dict[int, str] = {}
    for number, row in enumerate(csv.DictReader(lines, skipinitialspace=True), start=2):
        try:
            labels[int(row["index"])] = row["display_name"].strip()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EncoderError(f"{name}: line {number} has no index or no display_name") from error
    if sorted(labels) != list(range(len(lines) - 1)):
        raise EncoderError(f"{name}: the indices are not 0 to {len(lines) - 2}, each once")
    return [labels[index] for index in range(len(labels))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m encoders.convert_cav_mae",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT.pth")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE")
    parser.add_argument("--heads", type=int, default=12, help="attention heads (default 12)")
    parser.add_argument("--mel-bins", type=int, default=128, help="of the spectrograms (default 128)")
    options = parser.parse_args(arguments)
    try:
        config, notes = convert(
            options.checkpoint,
            options.out,
            read_labels(options.labels),
            heads=options.heads,
            mel_bins=options.mel_bins,
        )
    except EncoderError as error:
        print(error, file=sys.stderr)
        return 2
    for note in notes:
        print(note)
    audio, image = config.audio, config.image
    print(
        f"wrote {options.out}: {len(config.labels)} labels, width {config.width}, "
        f"{config.depth} + {config.joint_depth} blocks, spectrograms of {audio.frames} x {audio.mel_bins}, "
        f"pictures of {image.height} x {image.width}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
