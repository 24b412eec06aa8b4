"""The galleries' folder and files: one lock for the names in it, connections, and what can go wrong.

Who makes, deletes, opens or closes a gallery's file holds the lock of the folder (flock, which ends with
its process). It is not about the content, which SQLite locks by itself, but about names: SQLite finds a
file's log by name, so a name must not pass to another file while someone opens or closes the one that had it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.base import REMEDY, GalleryCorrupt, StorageError, StorageFull

WAIT_FOR_LOCK_S = 5.0

_ASK_AGAIN_S = 0.002
_SIDE_FILES = ("-wal", "-shm", "-journal")
# SQLITE_ERROR: a table or column is missing.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


@contextmanager
def folder_lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds the folder's names: shared to open and close files, alone to make and delete them.

    Raises:
        StorageError: another process has held it for too long.
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, folder: Path) -> None:
    give_up_at = time.monotonic() + WAIT_FOR_LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise StorageError(f"folder {folder} is in use by another process") from None
        time.sleep(_ASK_AGAIN_S)


def sync_folder(folder: Path) -> None:
    """Makes the names in the folder durable, as SQLite does for what is in its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(path: Path) -> sqlite3.Connection:
    """Opens a file that exists; transactions are begun by hand."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=WAIT_FOR_LOCK_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = str
    return connection


def remove_file(path: Path) -> None:
    """The file and what SQLite keeps beside it, as far as they are there. Under the folder's lock, alone."""
    for suffix in (*_SIDE_FILES, ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def retire_file(path: Path) -> None:
    """Removes a gallery's file for everyone in one step, then what is left of it. As `remove_file`.

    Raises FileNotFoundError.
    """
    old = path.with_name(f".old-{path.name}")
    path.rename(old)
    remove_file(path)
    remove_file(old)
    sync_folder(path.parent)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
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
        return GalleryCorrupt(f"{what}: {error}; {REMEDY}")
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{what}: the disk is full; nothing was changed")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(f"{what}: the file is in use by another process")
    return StorageError(f"{what}: {error}")
