"""The name of a query stream: a corruption and its severity, written `gaussian_noise:5`.

fog:3                           pictures, as ImageNet-C makes them
mm:fog:3, mm_robustness:fog:3   pictures, as the generator of COCO-C and Flickr-C makes them
OCR:7                           texts
clean                           nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from benchmarks.corruptions.constants import SEVERITIES
from benchmarks.corruptions.image import IMAGE_CORRUPTIONS, Style, corrupt_image
from benchmarks.corruptions.text import TEXT_CORRUPTIONS, check_tools, corrupt_text
from benchmarks.corruptions.text_tools import TextTools

CLEAN = "clean"
_STYLES: dict[str, Style] = {
    "imagenet_c": "imagenet_c",
    "mm_robustness": "mm_robustness",
    "mm": "mm_robustness",
}
_DEFAULT_SEVERITY = 5


class UnknownShift(ValueError):
    """No corruption of that name, or not at that severity."""


@dataclass(frozen=True)
class Shift:
    """A corruption at a severity (pictures 1..5; texts by level, rate 0.05 each); `clean` has 0."""

    name: str
    severity: int
    style: Style = "imagenet_c"
    """How pictures are corrupted; texts have one style only."""

    @classmethod
    def parse(cls, text: str) -> Shift:
        """`gaussian_noise:5`, `mm:fog:3`, `OCR:5`, `clean`. Raises UnknownShift.

        Without a severity: 5, or the highest where there are fewer.
        """
        prefix, _, rest = text.strip().partition(":")
        if prefix in _STYLES:
            shift = cls.parse(rest)
            if shift.modality != "image" or rest.partition(":")[0] in _STYLES:
                raise UnknownShift(f"{text!r}: a style belongs to a corruption of pictures")
            return cls(shift.name, shift.severity, _STYLES[prefix])
        name, colon, number = text.strip().partition(":")
        if name == CLEAN:
            if number not in ("", "0"):
                raise UnknownShift(f"{CLEAN!r} has no severity, but {text!r} was asked for")
            return cls(CLEAN, 0)
        severities = _severities(name)
        if colon and not (number.isdecimal() and int(number) in severities):
            allowed = (
                f"{severities[0]} to {severities[-1]}" if len(severities) > 1 else f"{severities[0]} only"
            )
            raise UnknownShift(f"{name} has severities {allowed}, not {number!r}")
        return cls(name, int(number) if colon else min(_DEFAULT_SEVERITY, severities[-1]))

    def __str__(self) -> str:
        if self.name == CLEAN:
            return self.name
        return f"{'mm:' if self.style == 'mm_robustness' else ''}{self.name}:{self.severity}"

    @property
    def modality(self) -> str | None:
        """`image` or `text`: what it corrupts; None for clean queries."""
        if self.name == CLEAN:
            return None
        return "image" if self.name in IMAGE_CORRUPTIONS else "text"

    def image(self, pixels: np.ndarray, rng: np.random.Generator, *, scale: bool = False) -> np.ndarray:
        """uint8 [H, W, 3] -> corrupted (`corrupt_image`). scale: blur radii shrink with the picture."""
        if self.name == CLEAN:
            return pixels
        return corrupt_image(pixels, self.name, self.severity, rng, style=self.style, scale=scale)

    def text(self, caption: str, rng: np.random.Generator, tools: TextTools | None = None) -> str:
        """The corrupted caption; tools as in `corrupt_text`. Raises MissingTool."""
        if self.name == CLEAN:
            return caption
        return corrupt_text(caption, self.name, self.severity, rng, tools)

    def check(self, tools: TextTools | None = None) -> None:
        """Whether what the corruption needs is there. Raises MissingTool."""
        if self.modality == "text":
            check_tools(self.name, tools)


def _severities(name: str) -> Sequence[int]:
    if name in IMAGE_CORRUPTIONS:
        return SEVERITIES
    if name in TEXT_CORRUPTIONS:
        return TEXT_CORRUPTIONS[name].levels
    known = [CLEAN, *IMAGE_CORRUPTIONS, *TEXT_CORRUPTIONS]
    lowered = {entry.lower(): entry for entry in known}
    close = get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    nearest = f"; did you mean {lowered[close[0]]!r}?" if close else f"; there are {', '.join(known)}"
    raise UnknownShift(f"there is no shift {name!r}{nearest}")
