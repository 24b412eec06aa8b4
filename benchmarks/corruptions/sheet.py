"""A contact sheet: every image corruption at every severity, and at its worst as mm_robustness makes it.

    python -m benchmarks.corruptions.sheet docs/corruptions.png [PICTURE]

Without a picture one of the demo's scenes is drawn. 256 colours, so that the file stays small.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.corruptions.constants import REFERENCE_PIXELS, SEVERITIES
from benchmarks.corruptions.image import IMAGE_CORRUPTIONS, Style, corrupt_image
from encoders.preprocessing import open_image

LABEL_WIDTH = 112
HEAD_HEIGHT = 16
GAP = 2
_HEADS = ("clean", *map(str, SEVERITIES), "mm 5")


def contact_sheet(picture: Image.Image, side: int, seed: int = 0) -> Image.Image:
    """A row for each corruption; `side` is the longer one of a thumbnail, in pixels."""
    pixels = np.asarray(picture.convert("RGB"))
    shrink = side / max(picture.size)
    width, height = (max(1, round(length * shrink)) for length in picture.size)
    size = (
        LABEL_WIDTH + len(_HEADS) * (width + GAP),
        HEAD_HEIGHT + len(IMAGE_CORRUPTIONS) * (height + GAP),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(_HEADS):
        draw.text((LABEL_WIDTH + column * (width + GAP) + 2, 2), head, fill="black")
    for row, name in enumerate(IMAGE_CORRUPTIONS):
        top = HEAD_HEIGHT + row * (height + GAP)
        draw.text((2, top + height // 2 - 5), name, fill="black")
        for column, shown in enumerate([pixels, *_severities(pixels, name, seed)]):
            thumbnail = Image.fromarray(shown).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(thumbnail, (LABEL_WIDTH + column * (width + GAP), top))
    return sheet


def _severities(pixels: np.ndarray, name: str, seed: int) -> list[np.ndarray]:
    def corrupted(severity: int, style: Style = "imagenet_c") -> np.ndarray:
        return corrupt_image(pixels, name, severity, np.random.default_rng(seed), style=style)

    return [*map(corrupted, SEVERITIES), corrupted(SEVERITIES[-1], "mm_robustness")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corruptions.sheet", description="Every image corruption on one picture."
    )
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("picture", type=Path, nargs="?", help="default: a scene of the demo")
    parser.add_argument("--side", type=int, default=72, help="longer side of a thumbnail (default 72)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    picture = _scene() if asked.picture is None else open_image(asked.picture.read_bytes())
    sheet = contact_sheet(picture, asked.side, asked.seed)
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(asked.out, "PNG", optimize=True)


def _scene() -> Image.Image:
    from demo.scenes import render, scenes

    return render(scenes("test", 21)[-1], REFERENCE_PIXELS)


if __name__ == "__main__":
    main()
