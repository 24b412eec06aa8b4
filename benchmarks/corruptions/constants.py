"""Published constants of the corruptions. Tuples are severities 1 to 5.

Pictures: Hendrycks & Dietterich, ImageNet-C (ICLR 2019), values for floats in [0, 1] at 224 x 224 pixels.
Texts: the generator of "Are Multimodal Models Robust to Image and Text Perturbations?" (MM_Robustness), which
uses nlpaug 1.1.7 for characters and EDA for words.
"""

from __future__ import annotations

from collections.abc import Mapping

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_PIXELS = 224
"""Side of the pictures that the spatial constants were chosen for."""

GAUSSIAN_SIGMA = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT_PHOTONS = (60.0, 25.0, 12.0, 5.0, 3.0)
IMPULSE_AMOUNT = (0.03, 0.06, 0.09, 0.17, 0.27)
SPECKLE_SIGMA = (0.15, 0.2, 0.35, 0.45, 0.6)
DEFOCUS_RADIUS = (3, 4, 6, 8, 10)
DEFOCUS_ALIAS_SIGMA = (0.1, 0.5, 0.5, 0.5, 0.5)
DEFOCUS_SMALL_RADIUS = 8
"""Up to this radius the disk's edge is softened by a 3 x 3 window, above it by 5 x 5."""
MOTION_RADIUS = (10, 15, 15, 15, 20)
MOTION_SIGMA = (3.0, 5.0, 8.0, 12.0, 15.0)
MOTION_ANGLE_DEGREES = (-45.0, 45.0)
FOG_STRENGTH = (1.5, 2.0, 2.5, 2.5, 3.0)
FOG_WIBBLE_DECAY = (2.0, 2.0, 1.7, 1.5, 1.4)
FOG_WIBBLE = 100.0
BRIGHTNESS_ADDED = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST_FACTOR = (0.4, 0.3, 0.2, 0.1, 0.05)
PIXELATE_FACTOR = (0.6, 0.5, 0.4, 0.3, 0.25)
JPEG_QUALITY = (25, 18, 15, 10, 7)

TEXT_RATE_PER_LEVEL = 0.05
TEXT_LEVELS = (1, 2, 3, 4, 5, 6, 7)
CHARACTER_SHARE = 0.3
CHARACTERS_PER_WORD = (1, 10)
"""Fewest and most characters that change in one word."""
WORDS_PER_TEXT = (1, 10)
"""Fewest and most words whose characters change."""
SHORTEST_WORD = 4
SHORTEST_WORD_OCR = 1
RANDOM_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!@#$%^&*()_+"
END_PUNCTUATION = ".,!?;:"
SWAP_REDRAWS = 3
OCR_CONFUSIONS: Mapping[str, str] = {
    "0": "89oOD",
    "1": "47lI",
    "2": "zZ",
    "5": "8",
    "6": "b",
    "8": "sS@&",
    "9": "g",
    "o": "u",
    "r": "k",
    "C": "G",
    "O": "DU",
    "E": "B",
}
"""What optical character recognition takes for what; it holds in both directions."""
