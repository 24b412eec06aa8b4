"""The galleries of a server: created, listed, opened, deleted. One SQLite file each.

A change of a gallery is one transaction, on disk (WAL, synchronous=FULL) before it is acknowledged. Nothing
in a file is trusted: the manifest and every item carry a checksum, and a file that does not add up is refused
by name. There is no pickle and no native index in it; IVF and HNSW are built again from the vectors when a
gallery is opened.

    manifest(key, value)     format, name, dimension, fingerprint, settings, created_at, generation,
                             items, image, text (how many), checksum
    items(sequence, id, payload, text, image_vector, text_vector, checksum)
                             in order of sequence; vectors are float32, little-endian
"""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from index.base import (
    TARGETS,
    BadName,
    BadSettings,
    FingerprintMismatch,
    Floats,
    GalleryCorrupt,
    GalleryExists,
    GalleryNotFound,
    IndexSettings,
    StorageError,
    StorageFull,
    Target,
)
from index.gallery import Gallery
from index.items import Record

FORMAT = 1
MAX_DIMENSION = 65_536

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SUFFIX = ".sqlite"
_SIDE_FILES = ("-wal", "-shm", "-journal")
_WAIT_FOR_LOCK_S = 5.0
_LOAD_ROWS = 4_096
_REMEDY = "restore the file from a backup, or delete the gallery and add its items again"

_CREATE = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL, text TEXT,
    image_vector BLOB, text_vector BLOB, checksum BLOB NOT NULL
);
"""
_COLUMNS = "sequence, id, payload, text, image_vector, text_vector, checksum"
_DUE_KEYS = frozenset(
    {"format", "name", "dimension", "fingerprint", "settings", "created_at", "generation", "items", *TARGETS}
)

# SQLITE_ERROR: a table or column is missing.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

# sequence, id, payload, text, image vector, text vector
Row: TypeAlias = tuple[int, str, str, str | None, bytes | None, bytes | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryInfo:
    """What is known of a gallery without loading it."""

    name: str
    dimension: int
    fingerprint: str
    settings: IndexSettings
    created_at: float
    generation: int
    items: int
    targets: dict[Target, int]
    """How many items have a vector of each modality."""


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
            with _storage_errors(f"folder {root}"):
                root.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> GalleryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all galleries."""
        for gallery in self._open.values():
            gallery.close()
        self._open.clear()

    def names(self) -> list[str]:
        """All galleries, damaged ones included, in alphabetic order."""
        names = set(self._open)
        if self._root is not None:
            stems = [path.name.removesuffix(_SUFFIX) for path in self._root.glob(f"*{_SUFFIX}")]
            names.update(stem for stem in stems if _allowed_name(stem))
        return sorted(names)

    def create(self, name: str, dimension: int, fingerprint: str, settings: IndexSettings) -> Gallery:
        """A new, empty gallery, opened.

        Raises:
            BadName, BadSettings, GalleryExists, StorageError.
        """
        path = self._path(name)
        if name in self.names():
            raise GalleryExists(f"gallery {name!r} exists already")
        if not 1 <= dimension <= MAX_DIMENSION:
            raise BadSettings(f"dimension must be from 1 to {MAX_DIMENSION}, not {dimension}")
        # Made first, so that settings which this installation cannot serve leave no file behind.
        created_at = time.time()
        gallery = Gallery(name, dimension, fingerprint, settings, created_at, device=self._device)
        if path is not None:
            _create_file(path, _manifest_of(gallery))
            return self.open(name, fingerprint)
        self._open[name] = gallery
        return gallery

    def open(self, name: str, fingerprint: str) -> Gallery:
        """The gallery, loaded; the same object as long as it stays open.

        Raises:
            BadName, GalleryNotFound, FingerprintMismatch, GalleryCorrupt, StorageError; BadSettings when this
            installation cannot serve the gallery's kind of index.
        """
        path = self._existing(name)
        gallery = self._open.get(name)
        if path is not None and (gallery is None or not gallery.usable):
            if gallery is not None:
                self._open.pop(name).close()
            gallery = _load(path, name, fingerprint, self._device)
            self._open[name] = gallery
        if gallery is None:
            raise GalleryNotFound(f"there is no gallery {name!r}")
        if gallery.fingerprint != fingerprint:
            raise FingerprintMismatch(expected=fingerprint, found=gallery.fingerprint)
        return gallery

    def describe(self, name: str) -> GalleryInfo:
        """What the gallery's manifest says, whichever encoder made it.

        Raises:
            BadName, GalleryNotFound, GalleryCorrupt, StorageError.
        """
        path = self._existing(name)
        gallery = self._open.get(name)
        if gallery is not None:
            return _info(_manifest_of(gallery))
        if path is None:
            raise GalleryNotFound(f"there is no gallery {name!r}")
        with _storage_errors(f"gallery {name!r}"), closing(_connect(path)) as connection:
            return _info(_read_manifest(connection, name))

    def delete(self, name: str) -> None:
        """Removes the gallery for good, damaged or foreign ones too.

        Raises:
            BadName, GalleryNotFound, StorageError.
        """
        path = self._existing(name)
        gallery = self._open.pop(name, None)
        if gallery is not None:
            gallery.close()
        if path is not None:
            with _storage_errors(f"gallery {name!r}"):
                _remove_file(path)

    def _path(self, name: str) -> Path | None:
        if not _allowed_name(name):
            raise BadName(
                f"gallery name {name!r:.80} is not allowed: 1 to 64 of a-z, 0-9, dot, dash and underscore, "
                "beginning with a letter or digit, without two dots in a row"
            )
        return None if self._root is None else self._root / f"{name}{_SUFFIX}"

    def _existing(self, name: str) -> Path | None:
        path = self._path(name)
        present = name in self._open if path is None else path.is_file()
        if not present:
            raise GalleryNotFound(f"there is no gallery {name!r}")
        return path


def _allowed_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name


# Files


def _connect(path: Path) -> sqlite3.Connection:
    """Opens a file that exists; transactions are begun by hand."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_WAIT_FOR_LOCK_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = str
    return connection


def _create_file(path: Path, manifest: dict[str, str]) -> None:
    """Makes the file beside its place and moves it there complete: no half-made gallery is ever seen."""
    new = path.with_name(f".new-{path.name}")
    with _storage_errors(f"gallery {manifest['name']!r}"):
        _remove_file(new)
        _remove_file(path)  # A log left behind by a deleted gallery must not be applied to this one.
        new.touch()
        with closing(_connect(new)) as connection, _transaction(connection):
            for statement in filter(str.strip, _CREATE.split(";")):
                connection.execute(statement)
            _write_manifest(connection, manifest)
        new.rename(path)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the names in the folder durable, as SQLite does for what is in its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_file(path: Path) -> None:
    # The file itself goes last: until then the gallery is listed and can be deleted again.
    for suffix in (*_SIDE_FILES, ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, a full disk for one, SQLite has rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Turns errors of SQLite and the file system into this package's."""
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{what}: {error}") from error
    except sqlite3.Error as error:
        raise _storage_error(what, error) from error


def _storage_error(what: str, error: sqlite3.Error) -> StorageError | GalleryCorrupt:
    # Extended codes carry the primary code in their low byte. Errors of Python's own module carry none.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in _DAMAGE:
        return GalleryCorrupt(f"{what}: {error}; {_REMEDY}")
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{what}: the disk is full; nothing was changed")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(f"{what}: the file is in use by another process")
    return StorageError(f"{what}: {error}")


# Manifest


def _manifest_of(gallery: Gallery) -> dict[str, str]:
    return {
        "format": str(FORMAT),
        "name": gallery.name,
        "dimension": str(gallery.dimension),
        "fingerprint": gallery.fingerprint,
        "settings": json.dumps(gallery.settings.to_dict(), sort_keys=True),
        "created_at": repr(gallery.created_at),
        "generation": str(gallery.generation),
        **{key: str(value) for key, value in gallery.counts().items()},
    }


def _manifest_checksum(manifest: dict[str, str]) -> str:
    return blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write_manifest(connection: sqlite3.Connection, manifest: dict[str, str]) -> None:
    rows = {**manifest, "checksum": _manifest_checksum(manifest)}
    connection.executemany("INSERT OR REPLACE INTO manifest VALUES (?, ?)", list(rows.items()))


def _read_manifest(connection: sqlite3.Connection, name: str) -> dict[str, str]:
    """The checked manifest of the gallery's file."""
    manifest: dict[str, str] = dict(connection.execute("SELECT key, value FROM manifest"))
    found = manifest.get("format", "")
    if not found.isdecimal() or not 1 <= int(found) <= FORMAT:
        raise GalleryCorrupt(
            f"gallery {name!r} is of format {found!r}; this version reads up to {FORMAT}. "
            "Serve it with the version that wrote it, or newer"
        )
    checksum = manifest.pop("checksum", None)
    if set(manifest) != _DUE_KEYS or checksum != _manifest_checksum(manifest):
        raise GalleryCorrupt(f"the manifest of gallery {name!r} is damaged; {_REMEDY}")
    if manifest["name"] != name:
        raise GalleryCorrupt(
            f"the file of gallery {name!r} belongs to gallery {manifest['name']!r}; give it that name again"
        )
    return manifest


def _info(manifest: dict[str, str]) -> GalleryInfo:
    return GalleryInfo(
        name=manifest["name"],
        dimension=int(manifest["dimension"]),
        fingerprint=manifest["fingerprint"],
        settings=IndexSettings.from_dict(json.loads(manifest["settings"])),
        created_at=float(manifest["created_at"]),
        generation=int(manifest["generation"]),
        items=int(manifest["items"]),
        targets={target: int(manifest[target]) for target in TARGETS},
    )


# Items


def _to_row(record: Record) -> Row:
    image, text = (
        None if target not in record.vectors else record.vectors[target].astype("<f4").tobytes()
        for target in TARGETS
    )
    return record.sequence, record.id, record.payload_json, record.text, image, text


def _row_checksum(row: Row) -> bytes:
    sequence, item_id, payload, text, image, text_vector = row
    head = json.dumps([sequence, item_id, payload, text, image is None, text_vector is None])
    digest = blake2b(head.encode(), digest_size=16)
    digest.update(image or b"")
    digest.update(text_vector or b"")
    return digest.digest()


class _SqliteJournal:
    """See `gallery.Journal`. Holds the connection of an opened gallery."""

    def __init__(self, connection: sqlite3.Connection, manifest: dict[str, str]) -> None:
        self._connection = connection
        self._manifest = manifest

    def save(
        self,
        *,
        generation: int,
        counts: Mapping[str, int],
        written: Sequence[Record],
        removed: Sequence[str],
    ) -> None:
        connection = self._connection
        with _storage_errors(f"gallery {self._manifest['name']!r}"), _transaction(connection):
            self._require_unchanged()
            connection.executemany("DELETE FROM items WHERE id = ?", ((item_id,) for item_id in removed))
            connection.executemany(
                f"INSERT OR REPLACE INTO items ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                ((*row, _row_checksum(row)) for row in map(_to_row, written)),
            )
            changed = {"generation": generation, **counts}
            manifest = self._manifest | {key: str(value) for key, value in changed.items()}
            _write_manifest(connection, manifest)
        self._manifest = manifest

    def _require_unchanged(self) -> None:
        (stored,) = self._connection.execute("SELECT value FROM manifest WHERE key = 'generation'").fetchone()
        if stored != self._manifest["generation"]:
            raise StorageError(
                f"gallery {self._manifest['name']!r} was changed by another process; "
                "open it again, and let one process own it"
            )

    def close(self) -> None:
        self._connection.close()


# Loading


def _load(path: Path, name: str, fingerprint: str, device: str | None) -> Gallery:
    """Reads and checks the whole gallery; its connection stays open for the journal."""
    with _storage_errors(f"gallery {name!r}"):
        connection = _connect(path)
        try:
            return _load_from(connection, name, fingerprint, device)
        except BaseException:
            connection.close()
            raise


def _load_from(connection: sqlite3.Connection, name: str, fingerprint: str, device: str | None) -> Gallery:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    with _transaction(connection):
        manifest = _read_manifest(connection, name)
        info = _info(manifest)
        if info.fingerprint != fingerprint:
            raise FingerprintMismatch(expected=fingerprint, found=info.fingerprint)
        records = list(_read_records(connection, info))
    journal = _SqliteJournal(connection, manifest)
    gallery = Gallery(
        name,
        info.dimension,
        info.fingerprint,
        info.settings,
        info.created_at,
        journal=journal,
        device=device,
    )
    gallery.load(records, generation=info.generation)
    counts = gallery.counts()
    if counts.pop("items") != info.items or counts != info.targets:
        raise GalleryCorrupt(
            f"gallery {name!r} should hold {info.items} items but holds {len(gallery)}; {_REMEDY}"
        )
    return gallery


def _read_records(connection: sqlite3.Connection, info: GalleryInfo) -> Iterator[Record]:
    cursor = connection.execute(f"SELECT {_COLUMNS} FROM items ORDER BY sequence")  # noqa: S608
    while rows := cursor.fetchmany(_LOAD_ROWS):
        for row in rows:
            yield _to_record(row, info)


def _to_record(row: tuple[Any, ...], info: GalleryInfo) -> Record:
    *content, checksum = row
    sequence, item_id, payload, text, *blobs = content
    sizes = {len(blob) for blob in blobs if blob is not None}
    if _row_checksum((sequence, item_id, payload, text, *blobs)) != checksum or sizes != {4 * info.dimension}:
        raise GalleryCorrupt(f"item {item_id!r} of gallery {info.name!r} is damaged; {_REMEDY}")
    vectors: dict[Target, Floats] = {
        target: np.frombuffer(blob, dtype="<f4")
        for target, blob in zip(TARGETS, blobs, strict=True)
        if blob is not None
    }
    return Record(sequence, item_id, json.loads(payload), "", text, vectors)
