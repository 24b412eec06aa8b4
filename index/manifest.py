"""The manifest of a gallery's file: what the gallery is, and how much it holds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

from index.base import REMEDY, TARGETS, CalibrationMark, GalleryCorrupt, IndexSettings, Target
from index.gallery import Gallery

FORMAT = 4

# What never changes in the life of a gallery; a file in which it does is another gallery's.
IDENTITY = ("name", "dimension", "fingerprint", "settings", "created_at", "created_by", "calibration")

_KEYS_1 = frozenset(
    {"format", "name", "dimension", "fingerprint", "settings", "created_at", "generation"}
    | {"items", "image", "text"}
)
_KEYS_2 = _KEYS_1 | {"created_by", "history_from"}
_KEYS_3 = _KEYS_2 | {"calibration", "anchor"}
_KEYS = {1: _KEYS_1, 2: _KEYS_2, 3: _KEYS_3, 4: _KEYS_3}

Manifest: TypeAlias = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryInfo:
    """What is known of a gallery without loading it."""

    name: str
    dimension: int
    fingerprint: str
    settings: IndexSettings
    created_at: float
    created_by: str
    """Who made it, as the maker called itself; "" if it did not."""
    calibration: CalibrationMark | None
    """What makes the items' anchors; None: they have none."""
    generation: int
    items: int
    targets: dict[Target, int]
    """How many items have a vector of each target."""


def new_manifest(gallery: Gallery) -> Manifest:
    """Of a gallery that has never been stored."""
    return {
        "format": str(FORMAT),
        "name": gallery.name,
        "dimension": str(gallery.dimension),
        "fingerprint": gallery.fingerprint,
        "settings": json.dumps(gallery.settings.to_dict(), sort_keys=True),
        "created_at": repr(gallery.created_at),
        "created_by": gallery.created_by,
        "calibration": _written(gallery.calibration),
        "generation": str(gallery.generation),
        "history_from": str(gallery.generation),
        **{key: str(value) for key, value in gallery.counts().items()},
    }


def _written(mark: CalibrationMark | None) -> str:
    return "" if mark is None else json.dumps(mark._asdict(), sort_keys=True)


def _mark(written: str) -> CalibrationMark | None:
    return CalibrationMark(**json.loads(written)) if written else None


def _checksum(manifest: Manifest) -> str:
    return blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_manifest(connection: sqlite3.Connection, manifest: Manifest) -> None:
    rows = {**manifest, "checksum": _checksum(manifest)}
    connection.executemany("INSERT OR REPLACE INTO manifest VALUES (?, ?)", list(rows.items()))


def read_manifest(connection: sqlite3.Connection, name: str) -> Manifest:
    """The checked manifest of the gallery's file, in the format that it was written in.

    Raises:
        GalleryCorrupt: damaged, another gallery's, or of a newer format.
    """
    manifest: Manifest = dict(connection.execute("SELECT key, value FROM manifest"))
    found = manifest.get("format", "")
    if not found.isdecimal() or int(found) not in _KEYS:
        raise GalleryCorrupt(
            f"gallery {name!r} is of format {found!r}; this version reads up to {FORMAT}. "
            "Serve it with the version that wrote it, or newer"
        )
    checksum = manifest.pop("checksum", None)
    if set(manifest) != _KEYS[int(found)] or checksum != _checksum(manifest):
        raise GalleryCorrupt(f"the manifest of gallery {name!r} is damaged; {REMEDY}")
    if manifest["name"] != name:
        raise GalleryCorrupt(
            f"the file of gallery {name!r} belongs to gallery {manifest['name']!r}; give it that name again"
        )
    return manifest


def counts_of(manifest: Mapping[str, str]) -> dict[str, int]:
    """As `Gallery.counts`. Formats 1 and 2 know no anchors."""
    return {key: int(manifest.get(key, "0")) for key in ("items", *TARGETS)}


def info_of(manifest: Mapping[str, str]) -> GalleryInfo:
    counts = counts_of(manifest)
    return GalleryInfo(
        name=manifest["name"],
        dimension=int(manifest["dimension"]),
        fingerprint=manifest["fingerprint"],
        settings=IndexSettings.from_dict(json.loads(manifest["settings"])),
        created_at=float(manifest["created_at"]),
        created_by=manifest.get("created_by", ""),
        calibration=_mark(manifest.get("calibration", "")),
        generation=int(manifest["generation"]),
        items=counts["items"],
        targets={target: counts[target] for target in TARGETS},
    )
