"""Corrupted queries: what makes a query stream drift away from the training data.

Pictures follow ImageNet-C, texts the generators of the retrieval papers; constants in `constants.py`.
docs/corruptions.md describes them all.
"""

from benchmarks.corruptions.image import IMAGE_CORRUPTIONS, STYLES, VIDEO_CORRUPTIONS, Style, corrupt_image
from benchmarks.corruptions.shift import CLEAN, Shift, UnknownShift
from benchmarks.corruptions.text import TEXT_CORRUPTIONS, corrupt_text
from benchmarks.corruptions.text_tools import MissingTool, TextTools

__all__ = [
    "CLEAN",
    "IMAGE_CORRUPTIONS",
    "STYLES",
    "TEXT_CORRUPTIONS",
    "VIDEO_CORRUPTIONS",
    "MissingTool",
    "Shift",
    "Style",
    "TextTools",
    "UnknownShift",
    "corrupt_image",
    "corrupt_text",
]
