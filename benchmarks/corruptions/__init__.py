"""Corrupted queries: what makes a query stream drift away from the training data.

Pictures follow ImageNet-C, texts the generators of the retrieval papers; constants in `constants.py`.
"""

from benchmarks.corruptions.image import IMAGE_CORRUPTIONS, VIDEO_CORRUPTIONS, corrupt_image
from benchmarks.corruptions.shift import CLEAN, Shift, UnknownShift
from benchmarks.corruptions.text import TEXT_CORRUPTIONS, corrupt_text

__all__ = [
    "CLEAN",
    "IMAGE_CORRUPTIONS",
    "TEXT_CORRUPTIONS",
    "VIDEO_CORRUPTIONS",
    "Shift",
    "UnknownShift",
    "corrupt_image",
    "corrupt_text",
]
