"""Galleries: vector indexes, items, filters, persistence. See `base` for the errors and the settings."""

from index.base import (
    TARGETS,
    BadFilter,
    BadItem,
    BadName,
    BadSettings,
    BadVector,
    CalibrationMark,
    DuplicateId,
    FingerprintMismatch,
    GalleryCorrupt,
    GalleryError,
    GalleryExists,
    GalleryNotFound,
    IndexSettings,
    ItemNotFound,
    PreviewNotFound,
    StorageError,
    StorageFull,
    Target,
    UnknownTarget,
    VectorIndex,
)
from index.factory import make_index
from index.gallery import Gallery
from index.items import Hit, Item, Preview, UpsertReport
from index.manifest import GalleryInfo
from index.store import GalleryStore

__all__ = [
    "TARGETS",
    "BadFilter",
    "BadItem",
    "BadName",
    "BadSettings",
    "BadVector",
    "CalibrationMark",
    "DuplicateId",
    "FingerprintMismatch",
    "Gallery",
    "GalleryCorrupt",
    "GalleryError",
    "GalleryExists",
    "GalleryInfo",
    "GalleryNotFound",
    "GalleryStore",
    "Hit",
    "IndexSettings",
    "Item",
    "ItemNotFound",
    "Preview",
    "PreviewNotFound",
    "StorageError",
    "StorageFull",
    "Target",
    "UnknownTarget",
    "UpsertReport",
    "VectorIndex",
    "make_index",
]
