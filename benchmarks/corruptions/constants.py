"""Published constants of the corruptions. Tuples are severities 1 to 5.

Pictures: Hendrycks & Dietterich, ImageNet-C (ICLR 2019), values for floats in [0, 1] at 224 x 224 pixels;
where MM_Robustness, which made COCO-C and Flickr-C, has others, the name says so.
Sound: the audio corruptions of READ (ICLR 2024) and BriMPR, values for waveforms in [-1, 1].
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
GLASS_SIGMA = (0.7, 0.9, 1.0, 1.1, 1.5)
GLASS_MAX_DELTA = (1, 2, 2, 3, 4)
GLASS_ITERATIONS = (2, 1, 3, 2, 2)
MOTION_RADIUS = (10, 15, 15, 15, 20)
MOTION_SIGMA = (3.0, 5.0, 8.0, 12.0, 15.0)
MOTION_ANGLE_DEGREES = (-45.0, 45.0)
ZOOM_FACTORS = tuple(
    tuple(1.0 + step * number for number in range(count))
    for step, count in ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11))
)
"""Rounding in numpy's arange, from which these come, lets severity 1 include its end, 1.11."""
ZOOM_FACTORS_MM_ROBUSTNESS = (*ZOOM_FACTORS[:4], tuple(1.0 + 0.03 * number for number in range(12)))
SNOW_LOC = (0.1, 0.2, 0.55, 0.55, 0.55)
SNOW_SCALE = (0.3, 0.3, 0.3, 0.3, 0.3)
SNOW_ZOOM = (3.0, 2.0, 4.0, 4.5, 2.5)
SNOW_THRESHOLD = (0.5, 0.5, 0.9, 0.85, 0.85)
SNOW_MOTION_RADIUS = (10, 12, 12, 12, 12)
SNOW_MOTION_SIGMA = (4.0, 4.0, 8.0, 8.0, 12.0)
SNOW_MIX = (0.8, 0.7, 0.7, 0.65, 0.55)
SNOW_ANGLE_DEGREES = (-135.0, -45.0)
FROST_PICTURE_WEIGHT = (1.0, 0.8, 0.7, 0.65, 0.6)
FROST_WEIGHT = (0.4, 0.6, 0.7, 0.7, 0.75)
FROST_TEXTURES = 5
"""ImageNet-C ships six photos of frost and draws among the first five."""
FOG_STRENGTH = (1.5, 2.0, 2.5, 2.5, 3.0)
FOG_WIBBLE_DECAY = (2.0, 2.0, 1.7, 1.5, 1.4)
FOG_WIBBLE = 100.0
FOG_MAP_MM_ROBUSTNESS = 1024
BRIGHTNESS_ADDED = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST_FACTOR = (0.4, 0.3, 0.2, 0.1, 0.05)
ELASTIC_ALPHA = (488.0, 488.0, 12.2, 17.08, 29.28)
ELASTIC_SIGMA = (170.8, 19.52, 2.44, 2.44, 2.44)
ELASTIC_AFFINE = (24.4, 48.8, 4.88, 4.88, 4.88)
ELASTIC_TRUNCATE = 3.0
PIXELATE_FACTOR = (0.6, 0.5, 0.4, 0.3, 0.25)
JPEG_QUALITY = (25, 18, 15, 10, 7)
SAVED_JPEG_QUALITY: Mapping[str, int] = {"imagenet_c": 85, "mm_robustness": 95}
"""What the released sets of each style were saved with, after the corruption."""

AUDIO_GAUSSIAN_SIGMA = (0.08, 0.12, 0.18, 0.26, 0.38)
AUDIO_GAIN_DB = (1.0, 2.0, 4.0, 6.0, 8.0)
"""Amplification of the background recording, relative to how it was recorded."""

TEXT_RATE_PER_LEVEL = 0.05
TEXT_LEVELS = (1, 2, 3, 4, 5, 6, 7)
"""Of characters and words; of words only 6 and 7 were released."""
SENTENCE_LEVELS = (1,)
SIMILARITY_FLOOR = 0.9
SIMILARITY_DRAWS = 100
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
INSERTION_DRAWS = 10
"""How many words are tried for one that has a synonym."""
STOP_WORDS = frozenset(
    {
        "i", "me", "my", "myself", "we", "our", "ours", "ourselves", "you", "your", "yours", "yourself",
        "yourselves", "he", "him", "his", "himself", "she", "her", "hers", "herself", "it", "its", "itself",
        "they", "them", "their", "theirs", "themselves", "what", "which", "who", "whom", "this", "that",
        "these", "those", "am", "is", "are", "was", "were", "be", "been", "being", "have", "has", "had",
        "having", "do", "does", "did", "doing", "a", "an", "the", "and", "but", "if", "or", "because", "as",
        "until", "while", "of", "at", "by", "for", "with", "about", "against", "between", "into", "through",
        "during", "before", "after", "above", "below", "to", "from", "up", "down", "in", "out", "on", "off",
        "over", "under", "again", "further", "then", "once", "here", "there", "when", "where", "why", "how",
        "all", "any", "both", "each", "few", "more", "most", "other", "some", "such", "no", "nor", "not",
        "only", "own", "same", "so", "than", "too", "very", "s", "t", "can", "will", "just", "don", "should",
        "now",
    }
)  # fmt: skip
"""EDA's list: SR replaces none of them."""
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
