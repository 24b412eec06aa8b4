"""What every index shares: errors, settings, and the protocol of a vector index.

Letters: B queries, G gallery items, D features, N new rows, k wanted neighbours.

    GalleryError
    ├── GalleryNotFound
    ├── GalleryExists
    ├── ItemNotFound
    ├── PreviewNotFound
    ├── DuplicateId
    ├── FingerprintMismatch
    ├── UnknownTarget
    ├── BadName
    ├── BadItem
    ├── BadVector
    ├── BadFilter
    ├── BadSettings
    ├── GalleryCorrupt
    └── StorageError
        └── StorageFull
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Positions: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

Target = Literal["image", "text", "anchor"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""In the order that the checksums of stored items have them, anchors last."""

ANCHOR: Target = "anchor"
"""Made by a calibration from what an item has and what was imputed; all others are observed."""
MODALITIES: tuple[Target, ...] = tuple(target for target in TARGETS if target != ANCHOR)
"""What an item may have by itself."""

IndexKind = Literal["flat", "ivf", "hnsw", "torch"]
KINDS: tuple[IndexKind, ...] = get_args(IndexKind)

REMEDY = "restore the file from a backup, or delete the gallery and add its items again"
"""For a damaged gallery."""


class CalibrationMark(NamedTuple):
    """Which calibration makes a gallery's anchors."""

    name: str
    """As its server calls it."""
    digest: str
    """Of its content: the name may mean another one elsewhere."""


class GalleryError(Exception):
    """Root of everything that this package raises on purpose."""


class GalleryNotFound(GalleryError):
    """No gallery has this name."""


class GalleryExists(GalleryError):
    """A gallery of this name is there already."""


class ItemNotFound(GalleryError):
    """The gallery holds no item of this id."""


class PreviewNotFound(GalleryError):
    """The gallery keeps no preview of this item."""


class DuplicateId(GalleryError):
    """One call names the same id twice; nothing was changed."""


class FingerprintMismatch(GalleryError):
    """The gallery's vectors were made by another encoder than the one that asks."""

    def __init__(self, *, expected: str, found: str) -> None:
        """`expected`: the fingerprint of the encoder that asks; `found`: the one the gallery was made by."""
        super().__init__(
            f"the gallery was made by encoder {found!r}, not by {expected!r}; "
            "serve it with its own encoder, or delete it and add its items again"
        )
        self.expected = expected
        self.found = found


class UnknownTarget(GalleryError):
    """A target modality that galleries do not have."""


class BadName(GalleryError):
    """The gallery's name is not allowed."""


class BadItem(GalleryError):
    """The item's id, payload or text cannot be stored, or it lacks a vector or has one too many."""


class BadVector(GalleryError):
    """A vector of the wrong size, with NaN or infinity, or of length zero."""


class BadFilter(GalleryError):
    """The filter is not written in the filter language (see `index.filters`)."""


class BadSettings(GalleryError):
    """An index setting is unknown, out of range, or not possible in this installation."""


class GalleryCorrupt(GalleryError):
    """The stored gallery is damaged, foreign, or written by a newer version."""


class StorageError(GalleryError):
    """The gallery's file could not be read or written; nothing was changed."""


class StorageFull(StorageError):
    """The disk is full; nothing was changed."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IndexSettings:
    """How a gallery's vectors are searched. Stored with the gallery.

    Raises:
        BadSettings: a value is out of range.
    """

    kind: IndexKind = "flat"
    """flat: exact. ivf, hnsw: approximate, faster on large galleries. torch: matmul on a device."""
    gpu: bool = False
    """flat only: search with FAISS on a GPU; needs a FAISS that was built for one."""
    nlist: int = 0
    """ivf: number of lists; 0 chooses 4 sqrt(G) when the lists are trained."""
    nprobe: int = 32
    """ivf: lists that a query visits."""
    train_from: int = 10_000
    """ivf: below this many items the search is exact and nothing is trained."""
    hnsw_m: int = 32
    """hnsw: links of a node."""
    ef_search: int = 64
    """hnsw: nodes that a query keeps in view."""
    ef_construction: int = 80
    """hnsw: the same while the graph is built."""
    coarse: Literal["bf16", "fp32"] = "bf16"
    """torch: arithmetic of the first pass; fp32 is exact and needs no second pass."""
    rerank: int = 0
    """torch, bf16: candidates of a query that are scored again in fp32; 0 chooses max(40, 4 k)."""

    def __post_init__(self) -> None:
        _require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}", self.kind)
        _require(self.coarse in ("bf16", "fp32"), "coarse", "bf16 or fp32", self.coarse)
        _require(isinstance(self.gpu, bool), "gpu", "true or false", self.gpu)
        _require(not self.gpu or self.kind == "flat", "gpu", "false unless kind is flat", self.gpu)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole and low <= value <= high, name, f"a whole number from {low} to {high}", value)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IndexSettings:
        """Raises BadSettings for names that are no setting, too."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise BadSettings(f"unknown index settings: {', '.join(unknown)}")
        return cls(**values)


_RANGES = (
    ("nlist", 0, 1 << 20),
    ("nprobe", 1, 1 << 20),
    ("train_from", 1, 1 << 40),
    ("hnsw_m", 2, 256),
    ("ef_search", 1, 1 << 16),
    ("ef_construction", 1, 1 << 16),
    ("rerank", 0, 1 << 16),
)


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise BadSettings(f"index setting {name} must be {what}, not {value!r}")


class VectorIndex(Protocol):
    """Rows at positions 0..G-1, searched by inner product. One thread at a time.

    Whatever the backend, a search returns the best `min(k, allowed rows)` rows that it can find, best first;
    equal scores stand in order of position.
    """

    @property
    def dimension(self) -> int: ...

    def __len__(self) -> int: ...

    def add(self, vectors: Floats) -> None:
        """Append rows [N, D] at positions G..G+N-1."""

    def replace(self, positions: Positions, vectors: Floats) -> None:
        """Put rows [N, D] in place of those at the distinct `positions` [N]."""

    def remove(self, positions: Positions) -> None:
        """Take out the rows at `positions`; later rows move down, their order stays."""

    def search(
        self, queries: Floats, k: int, *, allowed: Mask | None = None, effort: int | None = None
    ) -> tuple[Floats, Positions]:
        """Scores [B, k'] and positions [B, k'], k' = min(k, G), best first.

        Where `allowed` [G] leaves fewer than k', the rest is position -1 with score -inf. `effort` sets
        nprobe (ivf) or ef_search (hnsw) for this call; the exact backends do not look at it.

        Raises:
            BadVector: `queries` is not [B, D].
            ValueError: k is below 1, or `allowed` is not [G].
        """

    def vectors(self, positions: Positions) -> Floats:
        """Copies of the rows at `positions` [...] -> [..., D].

        Raises:
            IndexError: a position is not in 0..G-1.
        """

    def matrix(self) -> Floats:
        """All rows [G, D]: a read-only view without a copy, to be used before the next change."""
