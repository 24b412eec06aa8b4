"""The galleries of a server: created, listed, opened, deleted. One SQLite file each, see `index.journal`.

A change of a gallery is one transaction, on disk (WAL, synchronous=FULL) before it is acknowledged. Nothing
in a file is trusted: the manifest and every item carry a checksum, and a file that does not add up is refused
by name. There is no pickle and no native index in it; IVF and HNSW are built again from the vectors when a
gallery is opened.

Several processes may share the folder, each with a store of its own. They change a gallery one at a time, and
each follows what the others did when it opens the gallery again, reading only what has changed. A process
that dies, at whatever moment, leaves every file whole. All of them must run on ONE host: WAL keeps its index
in shared memory and the locks are the kernel's, so a folder on a network file system (NFS, SMB) that two
hosts use will be damaged. That cannot be detected reliably; do not do it.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

from index.base import (
    BadName,
    BadSettings,
    CalibrationMark,
    FingerprintMismatch,
    GalleryError,
    GalleryExists,
    GalleryNotFound,
    IndexSettings,
)
from index.files import connect, folder_lock, remove_file, retire_file, storage_errors, sync_folder
from index.gallery import Gallery
from index.journal import SqliteJournal, write_new_file
from index.manifest import GalleryInfo, Manifest, info_of, new_manifest, read_manifest

MAX_DIMENSION = 65_536

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SUFFIX = ".sqlite"

# Inode, size and time of change of a gallery's file and its log, as far as they are there.
Mark: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class GalleryStore:
    """All galleries under one folder; without a folder, in memory only. One thread owns it, as a gallery.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, root: Path | None, *, device: str | None = None) -> None:
        self._root = root
        self._device = device
        self._open: dict[str, Gallery] = {}
        if root is not None:
            with storage_errors(f"folder {root}"):
                root.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> GalleryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all galleries; raises StorageError."""
        while self._open:
            self._open.popitem()[1].close()

    def names(self) -> list[str]:
        """All galleries there are now, damaged ones included, in alphabetic order.

        Raises:
            StorageError.
        """
        if self._root is None:
            return sorted(self._open)
        with storage_errors(f"folder {self._root}"):
            files = [name for name in os.listdir(self._root) if name.endswith(_SUFFIX)]
        return sorted(filter(_allowed_name, (name.removesuffix(_SUFFIX) for name in files)))

    def exists(self, name: str) -> bool:
        """Whether there is such a gallery now, usable or not. May be called from any thread."""
        if not _allowed_name(name):
            return False
        return name in self._open if self._root is None else os.path.isfile(self._file(self._root, name))

    def mark(self, name: str) -> Mark:
        """Differs when the gallery's files have been changed, replaced or removed meanwhile."""
        path = self._path(name)
        return () if path is None else tuple(map(_mark, (path, path.with_name(f"{path.name}-wal"))))

    def create(
        self,
        name: str,
        dimension: int,
        fingerprint: str,
        settings: IndexSettings,
        *,
        created_by: str = "",
        calibration: CalibrationMark | None = None,
    ) -> Gallery:
        """A new, empty gallery, opened. Of several processes that create it at once, one does.

        Args: as of `Gallery`.

        Raises:
            BadName, BadSettings, GalleryExists, StorageError.
        """
        path = self._path(name)
        if not 1 <= dimension <= MAX_DIMENSION:
            raise BadSettings(f"dimension must be from 1 to {MAX_DIMENSION}, not {dimension}")
        # Made first, so that settings which this installation cannot serve leave no file behind.
        gallery = Gallery(
            name,
            dimension,
            fingerprint,
            settings,
            time.time(),
            created_by=created_by,
            calibration=calibration,
            device=self._device,
        )
        if path is not None:
            _create_file(path, new_manifest(gallery))
            return self.open(name, fingerprint)
        if name in self._open:
            raise GalleryExists(f"gallery {name!r} exists already")
        self._open[name] = gallery
        return gallery

    def open(self, name: str, fingerprint: str) -> Gallery:
        """The gallery as it is now; the same object as long as it stays open. Takes microseconds if it was
        open already and nothing has changed.

        Raises:
            BadName, GalleryNotFound, FingerprintMismatch, GalleryCorrupt, StorageError; BadSettings when this
            installation cannot serve the gallery's kind of index.
        """
        gallery = self._current(name)
        if gallery is None:
            gallery = _load(self._existing(name), name, fingerprint, self._device)
            self._open[name] = gallery
        if gallery.fingerprint != fingerprint:
            raise FingerprintMismatch(expected=fingerprint, found=gallery.fingerprint)
        return gallery

    def describe(self, name: str) -> GalleryInfo:
        """What the gallery's manifest says now, whichever encoder made it.

        Raises:
            BadName, GalleryNotFound, GalleryCorrupt, StorageError.
        """
        gallery = self._current(name)
        return self.peek(name) if gallery is None else info_of(new_manifest(gallery))

    def peek(self, name: str) -> GalleryInfo:
        """As `describe`, from the file alone: may be called from any thread."""
        if self._root is None and name in self._open:
            return info_of(new_manifest(self._open[name]))
        folder = self._existing(name).parent
        with (
            storage_errors(f"gallery {name!r}"),
            folder_lock(folder, shared=True),
            closing(connect(self._existing(name))) as connection,  # asked again: it may be gone by now
        ):
            return info_of(read_manifest(connection, name))

    def delete(self, name: str) -> None:
        """Removes the gallery for good, damaged or foreign ones too. Of several processes, one does.

        Raises:
            BadName, GalleryNotFound, StorageError.
        """
        path = self._path(name)
        gallery = self._open.pop(name, None)
        if gallery is not None:
            gallery.close()
        elif path is None:
            raise GalleryNotFound(f"there is no gallery {name!r}")
        if path is None:
            return
        with storage_errors(f"gallery {name!r}"), folder_lock(path.parent):
            try:
                retire_file(path)
            except FileNotFoundError:
                raise GalleryNotFound(f"there is no gallery {name!r}") from None

    def _current(self, name: str) -> Gallery | None:
        """The gallery if it is open, brought up to date; None if it must be loaded."""
        gallery = self._open.get(name)
        if gallery is None:
            return None
        if gallery.usable:
            try:
                gallery.refresh()
            except GalleryError:
                if gallery.usable:
                    raise
        if not gallery.usable:
            self._open.pop(name).close()
            return None
        return gallery

    def _path(self, name: str) -> Path | None:
        if not _allowed_name(name):
            raise BadName(
                f"gallery name {name!r:.80} is not allowed: 1 to 64 of a-z, 0-9, dot, dash and underscore, "
                "beginning with a letter or digit, without two dots in a row"
            )
        return None if self._root is None else self._file(self._root, name)

    @staticmethod
    def _file(root: Path, name: str) -> Path:
        return root / f"{name}{_SUFFIX}"

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if path is None or not path.is_file():
            raise GalleryNotFound(f"there is no gallery {name!r}")
        return path


def _allowed_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _create_file(path: Path, manifest: Manifest) -> None:
    """Makes the file beside its place and moves it there complete: no half-made gallery is ever seen."""
    new = path.with_name(f".new-{path.name}")
    name = manifest["name"]
    with storage_errors(f"gallery {name!r}"), folder_lock(path.parent):
        if path.exists():
            raise GalleryExists(f"gallery {name!r} exists already")
        remove_file(new)
        remove_file(path)  # A log left behind by a deleted gallery must not be applied to this one.
        write_new_file(new, manifest)
        new.rename(path)
        sync_folder(path.parent)


def _load(path: Path, name: str, fingerprint: str, device: str | None) -> Gallery:
    """Reads and checks the whole gallery; its connection stays open for the journal."""
    journal = SqliteJournal(path, name)
    try:
        info = journal.info
        if info.fingerprint != fingerprint:
            raise FingerprintMismatch(expected=fingerprint, found=info.fingerprint)
        gallery = Gallery(
            name,
            info.dimension,
            info.fingerprint,
            info.settings,
            info.created_at,
            created_by=info.created_by,
            calibration=info.calibration,
            journal=journal,
            device=device,
        )
        gallery.refresh()
    except BaseException:
        journal.close()
        raise
    return gallery
