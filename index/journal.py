"""The file of a gallery: its tables, its rows, and the journal that an open gallery reads and writes.

    manifest(key, value)     format, name, dimension, fingerprint, settings, created_at, created_by,
                             calibration (JSON, or empty), generation, history_from, items, image, text,
                             anchor (how many), checksum
    items(sequence, id, payload, text, image_vector, text_vector, anchor_vector, preview_version, generation,
          checksum)          in order of sequence; vectors are float32, little-endian; `preview_version` is
                             empty where there is no preview; `generation` is that of the change that wrote
                             the row
    previews(id, content)    the small pictures of items, apart so that a gallery is opened without reading
                             them; an item's checksum covers the version, and the version the content
    removed(id, generation)  ids that are in `items` no more, and since which generation; complete for all
                             generations after the manifest's `history_from`

So a process that knows the gallery at one generation finds what has changed since by two indexes. One that is
behind `history_from` reads everything again.

Format 3 had no previews, format 2 no anchors and no calibration either, and format 1 no generations, no
`removed` and no `created_by`. Opening such a file brings it to format 4 in one transaction, which counts as a
change, so that a process of the old version that still has it open refuses to write. Its rows keep their
checksums; those of format 1 have generation 0.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import compress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from index.base import ANCHOR, MODALITIES, REMEDY, TARGETS, Floats, GalleryCorrupt, GalleryNotFound, Target
from index.files import connect, folder_lock, storage_errors
from index.gallery import Changes, Place
from index.items import Preview, Record, modalities_of, version_of
from index.manifest import (
    FORMAT,
    IDENTITY,
    GalleryInfo,
    Manifest,
    counts_of,
    info_of,
    read_manifest,
    write_manifest,
)

# Removed ids are kept so that others can follow; beyond so many the older half goes.
KEPT_REMOVALS = 10_000

_ROWS_AT_ONCE = 4_096

_HISTORY = (
    "CREATE INDEX items_by_generation ON items (generation)",
    "CREATE TABLE removed (id TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX removed_by_generation ON removed (generation)",
)
_PREVIEWS = "CREATE TABLE previews (id TEXT PRIMARY KEY, content BLOB NOT NULL)"
_CREATE = (
    "CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE items (
        sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL, text TEXT,
        image_vector BLOB, text_vector BLOB, anchor_vector BLOB, preview_version TEXT NOT NULL,
        generation INTEGER NOT NULL, checksum BLOB NOT NULL
    )""",
    _PREVIEWS,
    *_HISTORY,
)
_VECTORS = ", ".join(f"{target}_vector" for target in TARGETS)
_COLUMNS = f"sequence, id, payload, text, {_VECTORS}, preview_version, generation, checksum"
# Named, or SQLite goes through all rows to have them in order without sorting.
_ITEMS_SINCE = "items INDEXED BY items_by_generation WHERE generation > ?"
_PLACE_COLUMNS = ", ".join(("sequence", "id", *(f"{kind}_vector IS NOT NULL" for kind in MODALITIES)))
_VALUES = ", ".join("?" for _ in _COLUMNS.split(","))

# sequence, id, payload, text, a vector of each target, version of the preview, generation
Row: TypeAlias = tuple[int, str, str, str | None, *tuple[bytes | None, ...], str, int]


def write_new_file(path: Path, manifest: Manifest) -> None:
    """An empty gallery. WAL from the start: a change of the mode would need the file alone."""
    path.touch()
    connection = connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        with transaction(connection, write=True):
            for statement in _CREATE:
                connection.execute(statement)
            write_manifest(connection, manifest)
    finally:
        connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection, *, write: bool) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, a full disk for one, SQLite has rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class SqliteJournal:
    """See `gallery.Journal`. Holds the connection of an opened gallery."""

    def __init__(self, path: Path, name: str) -> None:
        """Opens the file.

        Raises:
            GalleryNotFound, GalleryCorrupt, StorageError.
        """
        self._path = str(path.absolute())
        self._name = name
        self._folder = path.parent
        self._manifest: Manifest | None = None
        """As of the generation that the gallery has; None before it has read any."""
        self._data_version: int | None = None
        """SQLite's count of what other connections have committed, when this one last read; None: unknown."""
        with self._errors():
            try:
                self._connection = self._open(path)
            except FileNotFoundError:
                raise GalleryNotFound(f"there is no gallery {name!r}") from None

    def _open(self, path: Path) -> sqlite3.Connection:
        # The first read opens the log, too: both must be of one gallery, so both are opened under the lock.
        with folder_lock(self._folder, shared=True):
            self._identity = _identity(self._path)
            connection = connect(path)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                first = read_manifest(connection, self._name)
            except BaseException:
                connection.close()
                raise
        self.info: GalleryInfo = info_of(first)
        """What the file said when it was opened."""
        self._old_format = int(first["format"]) < FORMAT
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with storage_errors(f"gallery {self._name!r}"):
            yield

    def close(self) -> None:
        """Raises StorageError."""
        # The last one to close a file removes its log by name: under the lock, the name is still this file's.
        with self._errors():
            try:
                with folder_lock(self._folder, shared=True):
                    self._connection.close()
            except FileNotFoundError:  # The folder is gone, and all names with it.
                self._connection.close()

    # Reading

    def changed(self) -> bool:
        with self._errors():
            return not self._in_place() or self._read_data_version() != self._data_version

    def _in_place(self) -> bool:
        # The connection keeps its file's inode from being given to another one.
        try:
            return _identity(self._path) == self._identity
        except FileNotFoundError:
            return False

    def _read_data_version(self) -> int:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        try:
            with self._errors(), transaction(self._connection, write=write or self._old_format):
                if not self._in_place():
                    raise GalleryNotFound(f"gallery {self._name!r} was deleted by another process")
                yield
        except BaseException:
            self._data_version = None
            raise
        self._old_format = False

    def read(self, since: int) -> Changes | None:
        self._data_version = self._read_data_version()
        known, manifest = self._manifest, self._current_manifest()
        if known is not None and any(manifest[key] != known[key] for key in IDENTITY):
            raise GalleryNotFound(f"the file of gallery {self._name!r} was overwritten with another gallery")
        self._manifest = manifest
        generation = int(manifest["generation"])
        if known is not None and generation == since:
            return None
        everything = known is None or not int(manifest["history_from"]) <= since <= generation
        return Changes(
            generation=generation,
            counts=counts_of(manifest),
            everything=everything,
            removed=() if everything else self._removed(since),
            places=() if everything else self._places(since),
            written=self._all() if everything else self._written(since),
        )

    def _current_manifest(self) -> Manifest:
        manifest = read_manifest(self._connection, self._name)
        if int(manifest["format"]) < FORMAT:
            manifest = _migrate(self._connection, manifest)
        return manifest

    def _removed(self, since: int) -> list[str]:
        rows = self._connection.execute("SELECT id FROM removed WHERE generation > ?", (since,))
        return [item_id for (item_id,) in rows]

    def _places(self, since: int) -> list[Place]:
        rows = self._connection.execute(f"SELECT {_PLACE_COLUMNS} FROM {_ITEMS_SINCE}", (since,))  # noqa: S608
        return [
            Place(sequence, item_id, modalities_of(compress(MODALITIES, having)))
            for sequence, item_id, *having in rows
        ]

    def _written(self, since: int) -> Iterator[list[Record]]:
        """Some at a time, so that the vectors of many changes are not held twice."""
        cursor = self._connection.execute(
            f"SELECT {_COLUMNS} FROM {_ITEMS_SINCE} ORDER BY sequence",  # noqa: S608
            (since,),
        )
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield [self._to_record(row) for row in rows]

    def _all(self) -> Iterator[list[Record]]:
        """At once: an index that is trained is trained on all, and memory is taken to measure."""
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM items ORDER BY sequence")  # noqa: S608
        if records := [self._to_record(row) for row in rows]:
            yield records

    def _to_record(self, columns: tuple[Any, ...]) -> Record:
        row: Row = columns[:-1]
        sequence, item_id, payload, text, *blobs, preview_version, _ = row
        found = {target: blob for target, blob in zip(TARGETS, blobs, strict=True) if blob is not None}
        if not self._can_be(found) or row_checksum(row) != columns[-1]:
            raise GalleryCorrupt(f"item {item_id!r} of gallery {self._name!r} is damaged; {REMEDY}")
        vectors: dict[Target, Floats] = {
            target: np.frombuffer(blob, dtype="<f4") for target, blob in found.items()
        }
        return Record(
            sequence=sequence,
            id=item_id,
            payload=json.loads(payload),
            payload_json="",
            text=text,
            vectors=vectors,
            modalities=modalities_of(vectors),
            preview_version=preview_version,
        )

    def _can_be(self, found: Mapping[Target, object]) -> bool:
        """Whether an item of this gallery can have these vectors, by their targets and sizes."""
        size = 4 * self.info.dimension
        return (
            all(isinstance(blob, bytes) and len(blob) == size for blob in found.values())
            and not found.keys().isdisjoint(MODALITIES)
            and (ANCHOR in found) == (self.info.calibration is not None)
        )

    def preview(self, item_id: str) -> Preview | None:
        # One statement, so that version and content are of one moment.
        with self._errors():
            row = self._connection.execute(
                "SELECT preview_version, content FROM items LEFT JOIN previews USING (id) "
                "WHERE id = ? AND preview_version != ''",
                (item_id,),
            ).fetchone()
        if row is None:
            return None
        version, content = row
        if not isinstance(content, bytes) or version_of(content) != version:
            raise GalleryCorrupt(
                f"the preview of item {item_id!r} of gallery {self._name!r} is damaged; add the item again"
            )
        return Preview(version, content)

    # Writing

    def save(
        self,
        *,
        generation: int,
        counts: Mapping[str, int],
        written: Sequence[Record],
        removed: Sequence[str],
    ) -> None:
        if self._manifest is None:
            raise ValueError("a journal is read before it is written")
        connection = self._connection
        connection.executemany("DELETE FROM items WHERE id = ?", ((item_id,) for item_id in removed))
        connection.executemany(
            "INSERT OR REPLACE INTO removed VALUES (?, ?)", ((item_id, generation) for item_id in removed)
        )
        connection.executemany("DELETE FROM removed WHERE id = ?", ((record.id,) for record in written))
        touched = (*removed, *(record.id for record in written))
        connection.executemany("DELETE FROM previews WHERE id = ?", ((item_id,) for item_id in touched))
        connection.executemany(
            "INSERT INTO previews VALUES (?, ?)",
            ((record.id, record.preview) for record in written if record.preview is not None),
        )
        connection.executemany(
            f"INSERT OR REPLACE INTO items ({_COLUMNS}) VALUES ({_VALUES})",  # noqa: S608
            ((*row, row_checksum(row)) for row in (_to_row(record, generation) for record in written)),
        )
        changed = {"generation": generation, **counts}
        if removed and (history_from := self._forget_removals()) is not None:
            changed["history_from"] = history_from
        manifest = self._manifest | {key: str(value) for key, value in changed.items()}
        write_manifest(connection, manifest)
        self._manifest = manifest

    def _forget_removals(self) -> int | None:
        """Drops the older half when there are too many; returns the generation of the latest dropped."""
        (count,) = self._connection.execute("SELECT count(*) FROM removed").fetchone()
        if count <= KEPT_REMOVALS:
            return None
        (last,) = self._connection.execute(
            "SELECT generation FROM removed ORDER BY generation DESC LIMIT 1 OFFSET ?", (KEPT_REMOVALS // 2,)
        ).fetchone()
        self._connection.execute("DELETE FROM removed WHERE generation <= ?", (last,))
        return int(last)


def _identity(path: str) -> tuple[int, int]:
    """Which file has this name now; raises FileNotFoundError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _migrate(connection: sqlite3.Connection, manifest: Manifest) -> Manifest:
    """To the newest format, in the transaction that goes on to read and check every row."""
    generation = str(int(manifest["generation"]) + 1)
    new = {"format": str(FORMAT), "generation": generation}
    old = int(manifest["format"])
    if old < 2:
        connection.execute("ALTER TABLE items ADD COLUMN generation INTEGER NOT NULL DEFAULT 0")
        for statement in _HISTORY:
            connection.execute(statement)
        new |= {"created_by": "", "history_from": generation}
    if old < 3:
        connection.execute("ALTER TABLE items ADD COLUMN anchor_vector BLOB")
        new |= {"calibration": "", "anchor": "0"}
    connection.execute("ALTER TABLE items ADD COLUMN preview_version TEXT NOT NULL DEFAULT ''")
    connection.execute(_PREVIEWS)
    migrated = manifest | new
    write_manifest(connection, migrated)
    return migrated


def _to_row(record: Record, generation: int) -> Row:
    blobs = (
        None if target not in record.vectors else record.vectors[target].astype("<f4").tobytes()
        for target in TARGETS
    )
    return (
        record.sequence,
        record.id,
        record.payload_json,
        record.text,
        *blobs,
        record.preview_version,
        generation,
    )


def row_checksum(row: Row) -> bytes:
    """Over all of the row. In rows of generation 0, which come from format 1, as that format had it.

    In rows without an anchor as format 2 had it: all vectors have one size, so the number of bytes tells
    whether there is one. In rows without a preview as format 3 had it: of the two that may end the head only
    the generation is a number.
    """
    sequence, item_id, payload, text, *blobs, preview_version, generation = row
    observed = blobs[: len(MODALITIES)]
    head = [sequence, item_id, payload, text, *(blob is None for blob in observed)]
    if generation:
        head.append(generation)
    if preview_version:
        head.append(preview_version)
    digest = blake2b(json.dumps(head).encode(), digest_size=16)
    for blob in blobs:
        digest.update(blob or b"")
    return digest.digest()
