"""A corrupted copy of a folder: pictures and captions.tsv under their own names, everything else as it was.

What is drawn for a file depends on the seed, the shift and the file's path in the folder, so neither order
nor an interruption changes a copy. Files appear whole or not at all; `corruption.json` says which run made
them, and the same run again goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.corruptions.constants import SAVED_JPEG_QUALITY
from benchmarks.corruptions.shift import Shift
from benchmarks.corruptions.text_tools import TextTools, usual_tools
from encoders.base import BadImage
from encoders.preprocessing import open_image

MANIFEST = "corruption.json"
CAPTIONS = "captions.tsv"
FORMATS: Mapping[str, str] = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_HEADER = ("file", "caption")
_LINE_BREAKS = re.compile(r"[\t\r\n]+")
_FORMAT = 1

Advance = Callable[[float], None]

_THREADS = 4
"""More are hardly faster, and each may hold a large picture several times over."""


class FolderError(ValueError):
    """The source cannot be copied so, or the target is not free; nothing was changed."""


@dataclass(frozen=True)
class Summary:
    """How many files were made now and how many were there already."""

    written: int
    skipped: int


@dataclass(frozen=True)
class CorruptedCopy:
    """What is to be made. At most one shift of pictures and one of texts.

    quality  of JPEG and WebP; None: as the style's released sets were saved
    scale    lengths in pixels shrink with pictures below 224 (`corrupt_image`)
    about    what else tells this run from another, such as the names of models
    """

    source: Path
    out: Path
    shifts: Sequence[Shift]
    seed: int = 0
    quality: int | None = None
    scale: bool = False
    tools: TextTools = field(default_factory=usual_tools)
    about: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises FolderError; MissingTool: a shift needs what `tools` lacks."""
        _check_places(self.source, self.out)
        modalities = [shift.modality for shift in self.shifts]
        if not modalities or None in modalities or len(set(modalities)) < len(modalities):
            named = ", ".join(map(str, self.shifts)) or "none"
            raise FolderError(f"one shift of pictures, one of texts, or both are wanted, not {named}")
        for shift in self.shifts:
            shift.check(self.tools)
        if "image" in modalities and not any(_is_picture(file) for file in self.files):
            raise FolderError(f"{self.source} holds no pictures ({', '.join(FORMATS)})")
        if "text" in modalities and not any(file.name == CAPTIONS for file in self.files):
            raise FolderError(f"{self.source} holds no {CAPTIONS}")

    def run(self, done: Advance = lambda count: None) -> Summary:
        """Make what is missing. done: called with 1 in all for each file, from any thread.

        Raises:
            FolderError: as `check`; another run's folder; a file that cannot be read, by its name.
        """
        self.check()
        self.out.mkdir(parents=True, exist_ok=True)
        with _locked(self.out):
            self._claim()
            written = self._make_all(done)
            _write(self.out / MANIFEST, _json({**self.manifest, "complete": True}))
        return Summary(written, len(self.files) - written)

    @cached_property
    def files(self) -> Sequence[Path]:
        """Paths in the source, sorted. A manifest of the source's own is not copied."""
        return [path for path in sorted(_walk(self.source)) if path != Path(MANIFEST)]

    @property
    def manifest(self) -> dict[str, Any]:
        """What tells this run from another."""
        sizes = [f"{path.as_posix()}|{(self.source / path).stat().st_size}" for path in self.files]
        return {
            "format": _FORMAT,
            "source": self.source.resolve().name,
            "source_files": len(self.files),
            "source_digest": hashlib.sha256("\n".join(sizes).encode()).hexdigest()[:16],
            "shifts": [str(shift) for shift in self.shifts],
            "seed": self.seed,
            "quality": self._quality,
            "scale": self.scale,
            **self.about,
        }

    @property
    def _quality(self) -> int:
        if self.quality is not None:
            return self.quality
        shift = self._shift_of("image")
        return SAVED_JPEG_QUALITY["imagenet_c" if shift is None else shift.style]

    def _shift_of(self, modality: str) -> Shift | None:
        return next((shift for shift in self.shifts if shift.modality == modality), None)

    def _claim(self) -> None:
        """The folder is this run's, from before or from now on."""
        manifest, path = self.manifest, self.out / MANIFEST
        if not path.is_file():
            if any(self.out.iterdir()):
                raise FolderError(f"{self.out} is not empty and has no {MANIFEST}; name a new folder")
            _write(path, _json({**manifest, "complete": False}))
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise FolderError(f"{path} cannot be read; name a new folder")
        names = [name for name in {**manifest, **there} if name != "complete"]
        other = [name for name in names if there.get(name) != manifest.get(name)]
        if other:
            differences = "; ".join(
                f"{name} {there.get(name)} there, {manifest.get(name)} here" for name in other
            )
            raise FolderError(f"{self.out} is of another run ({differences}); name a new folder")

    def _make_all(self, done: Advance) -> int:
        # Captions in this thread: models sample from generators that threads share.
        texts = [path for path in self.files if path.name == CAPTIONS]
        others = [path for path in self.files if path.name != CAPTIONS]
        written = sum(self._make(path, done) for path in texts)
        pool = ThreadPoolExecutor(max_workers=_THREADS)
        try:
            return written + sum(pool.map(lambda path: self._make(path, done), others))
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, path: Path, done: Advance) -> bool:
        """Whether there was anything to do."""
        source, target = self.source / path, self.out / path
        if target.is_file():
            done(1)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        image, text = self._shift_of("image"), self._shift_of("text")
        if image is not None and _is_picture(path):
            self._write_picture(source, target, path, image)
        elif text is not None and path.name == CAPTIONS:
            _write(target, self._captions(source, path, text, done).encode())
            return True
        else:
            with _appearing(target) as partial:
                shutil.copyfile(source, partial)
        done(1)
        return True

    def _write_picture(self, source: Path, target: Path, path: Path, shift: Shift) -> None:
        try:
            picture = np.asarray(open_image(source.read_bytes()))
        except BadImage as error:
            raise FolderError(f"{source}: {error}") from error
        corrupted = shift.image(picture, _generator(self.seed, shift, path), scale=self.scale)
        kind = FORMATS[path.suffix.lower()]
        options = {"quality": self._quality} if kind in ("JPEG", "WEBP") else {}
        with _appearing(target) as partial:
            Image.fromarray(corrupted).save(partial, kind, **options)

    def _captions(self, source: Path, path: Path, shift: Shift, done: Advance) -> str:
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except ValueError as error:
            raise FolderError(f"{source}: {error}") from error
        made = []
        for number, line in enumerate(lines, start=1):
            done(1 / len(lines))  # with a model a caption can take as long as a picture
            file, tab, caption = line.partition("\t")
            if not line.strip() or (number == 1 and (file.lower(), caption.lower()) == _HEADER):
                made.append(line)
                continue
            if not tab:
                raise FolderError(f"{source}:{number}: a line is FILE<TAB>CAPTION")
            corrupted = shift.text(caption, _generator(self.seed, shift, path, number), self.tools)
            made.append(f"{file}\t{_LINE_BREAKS.sub(' ', corrupted).strip() or caption}")
        return "".join(f"{line}\n" for line in made)


def _check_places(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise FolderError(f"there is no folder {source}")
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise FolderError(f"{out} and {source} lie in one another; name a folder beside the source")
    if out.exists() and not out.is_dir():
        raise FolderError(f"{out} is a file")


def _walk(source: Path) -> Iterator[Path]:
    """Every file, relative; links to folders are followed, but none twice on the way down."""
    for folder, names, files in os.walk(source, followlinks=True):
        here = Path(folder).resolve()
        above = {here, *here.parents}
        names[:] = [name for name in names if (Path(folder) / name).resolve() not in above]
        for name in files:
            if (Path(folder) / name).is_file():
                yield (Path(folder) / name).relative_to(source)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in FORMATS


def _generator(seed: int, shift: Shift, path: Path, number: int = 0) -> np.random.Generator:
    parts = (str(shift), path.as_posix())
    return np.random.default_rng([seed, *(zlib.crc32(part.encode()) for part in parts), number])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No second run writes here meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(f"another run is writing into {folder}") from None
        yield
    finally:
        os.close(handle)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A file to write that becomes `target` when it is complete."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _write(target: Path, content: bytes) -> None:
    with _appearing(target) as partial:
        partial.write_bytes(content)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
