"""A golden: arrays recorded from the reference code (`name.npz`) and what they mean (`name.json`)."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_TOLERANCE_IN_TEXT = re.compile(r"rtol\s*([0-9.eE+-]+)\s*/\s*atol\s*([0-9.eE+-]+[0-9])")


class GoldenError(Exception):
    """A golden is incomplete, altered or unreadable."""


@dataclass(frozen=True)
class Tolerance:
    """A value is right when |got - expected| <= absolute + relative * |expected|."""

    relative: float
    absolute: float

    def __str__(self) -> str:
        return f"rtol {self.relative:g}, atol {self.absolute:g}"


FLOAT64 = Tolerance(1e-6, 1e-9)
FLOAT32 = Tolerance(2e-4, 2e-5)


@dataclass(frozen=True)
class Golden:
    """One recorded run. `text` is everything the sidecar says in words."""

    name: str
    folder: Path
    constants: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    described: Mapping[str, Mapping[str, Any]]
    text: str

    def tolerance(self) -> Tolerance:
        """As the sidecar says in words, else by the dtype it was computed in (default float64)."""
        said = _TOLERANCE_IN_TEXT.search(self.text)
        if said:
            return Tolerance(float(said[1]), float(said[2]))
        return FLOAT32 if self.constants.get("dtype") == "float32" else FLOAT64

    def is_input(self) -> bool:
        """Whether it holds only weights or inputs that other goldens share."""
        return self.name.endswith(("_weights", "_inputs"))

    def constant(self, name: str) -> Any:
        if name not in self.constants:
            raise GoldenError(f"the sidecar has no constant {name!r}")
        return self.constants[name]

    def array(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise GoldenError(f"there is no array {name!r}")
        return self.arrays[name]


def load_golden(sidecar: Path) -> Golden:
    """Read `sidecar` (JSON) and the npz beside it, whose digest must be the recorded one.

    Raises:
        GoldenError: a file is missing or unreadable, the digest differs, or an announced array is absent.
    """
    try:
        document = json.loads(sidecar.read_text())
        data = sidecar.with_suffix(".npz").read_bytes()
    except (OSError, ValueError) as error:
        raise GoldenError(f"unreadable: {error}") from error
    recorded = document.get("sha256_npz")
    found = hashlib.sha256(data).hexdigest()
    if recorded is not None and found != recorded:
        raise GoldenError(f"the npz was altered: sha256 {found[:12]}..., the sidecar says {recorded[:12]}...")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise GoldenError(f"the npz is unreadable: {error}") from error
    described = document.get("arrays", {})
    absent = sorted(set(described) - set(arrays))
    if absent:
        raise GoldenError(f"the npz lacks {', '.join(absent)}")
    text = " ".join([document.get("purpose", ""), *document.get("notes", [])])
    return Golden(
        name=document.get("name", sidecar.stem),
        folder=sidecar.parent,
        constants=document.get("constants", {}),
        arrays=arrays,
        described=described,
        text=text,
    )
