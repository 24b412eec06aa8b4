"""Published data sets, read as they come: one reader a layout, all of them return CaptionedImages.

Nothing is downloaded. What is missing is named, with the page where it is to be had.
"""

from benchmarks.layouts.catalogue import LAYOUTS, Layout, disk_shift, find_layout, open_dataset
from benchmarks.layouts.pairing import Pairing, add_distractors, open_gallery, pair

__all__ = [
    "LAYOUTS",
    "Layout",
    "Pairing",
    "add_distractors",
    "disk_shift",
    "find_layout",
    "open_dataset",
    "open_gallery",
    "pair",
]
