"""The name of a query stream: a corruption and its severity, written `gaussian_noise:5`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from benchmarks.corruptions.constants import SEVERITIES, TEXT_LEVELS
from benchmarks.corruptions.image import IMAGE_CORRUPTIONS, corrupt_image
from benchmarks.corruptions.text import TEXT_CORRUPTIONS, corrupt_text

CLEAN = "clean"


class UnknownShift(ValueError):
    """No corruption of that name, or not at that severity."""


@dataclass(frozen=True)
class Shift:
    """A corruption at a severity (pictures 1..5; texts level 1..7, rate 0.05 each); `clean` has 0."""

    name: str
    severity: int

    @classmethod
    def parse(cls, text: str) -> Shift:
        """`gaussian_noise:5`, `OCR:5`, `clean`. Without a severity: 5. Raises UnknownShift."""
        name, colon, number = text.strip().partition(":")
        if name == CLEAN:
            if number not in ("", "0"):
                raise UnknownShift(f"{CLEAN!r} has no severity, but {text!r} was asked for")
            return cls(CLEAN, 0)
        severities = _severities(name)
        if colon and not (number.isdecimal() and int(number) in severities):
            raise UnknownShift(f"{name} has severities {severities[0]} to {severities[-1]}, not {number!r}")
        return cls(name, int(number) if colon else 5)

    def __str__(self) -> str:
        return self.name if self.name == CLEAN else f"{self.name}:{self.severity}"

    @property
    def modality(self) -> str | None:
        """`image` or `text`: what it corrupts; None for clean queries."""
        if self.name == CLEAN:
            return None
        return "image" if self.name in IMAGE_CORRUPTIONS else "text"

    def image(self, pixels: np.ndarray, rng: np.random.Generator, *, scale: bool = False) -> np.ndarray:
        """uint8 [H, W, 3] -> the same shape. scale: blur radii shrink with the picture (`corrupt_image`)."""
        if self.name == CLEAN:
            return pixels
        return corrupt_image(pixels, self.name, self.severity, rng, scale=scale)

    def text(self, caption: str, rng: np.random.Generator) -> str:
        return caption if self.name == CLEAN else corrupt_text(caption, self.name, self.severity, rng)


def _severities(name: str) -> Sequence[int]:
    if name in IMAGE_CORRUPTIONS:
        return SEVERITIES
    if name in TEXT_CORRUPTIONS:
        return TEXT_LEVELS
    known = [CLEAN, *IMAGE_CORRUPTIONS, *TEXT_CORRUPTIONS]
    lowered = {entry.lower(): entry for entry in known}
    close = get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    nearest = f"; did you mean {lowered[close[0]]!r}?" if close else f"; there are {', '.join(known)}"
    raise UnknownShift(f"there is no shift {name!r}{nearest}")
