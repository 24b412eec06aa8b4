"""Files that are there whole or not at all, and names that cannot leave their folder."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from service.errors import BadRequest, StorageFailed

_STREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_stream_name(name: str) -> str:
    """Raises BadRequest unless `name` may name a stream (and so a file)."""
    return _check(name, _STREAM_NAME, "stream", 128)


def check_snapshot_name(name: str) -> str:
    """Raises BadRequest unless `name` may name a snapshot (and so a file)."""
    return _check(name, _SNAPSHOT_NAME, "snapshot", 64)


def check_calibration_name(name: str) -> str:
    """Raises BadRequest unless `name` may name a calibration (and so a file)."""
    return _check(name, _SNAPSHOT_NAME, "calibration", 64)


def _check(name: str, pattern: re.Pattern[str], what: str, longest: int) -> str:
    if not pattern.fullmatch(name) or ".." in name:
        raise BadRequest(
            f"a {what} name has 1 to {longest} letters, digits, '.', '_' or '-', "
            f"starts with a letter or digit and holds no '..'",
            code="bad_name",
            details={"name": name[:160]},
        )
    return name


def write_atomically(path: Path, data: bytes) -> None:
    """Write and flush a new file, then put it in the old one's place.

    Raises StorageFailed; the old file stays then.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".new")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise StorageFailed(f"cannot save {path.name}: {error.strerror or error}") from error


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
