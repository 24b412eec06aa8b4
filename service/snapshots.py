"""Snapshots: named copies of a stream's states, one file each, that can leave and come back.

`snapshots/STREAM/NAME.attune`. A file that a user sends in is untrusted: it is read by safetensors and
JSON, checked whole, and refused unless it fits this encoder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapters.base import BadSettings, StateMismatch
from adapters.state import StateFileError, unpack_header
from service.errors import BadRequest, Conflict, NotFound
from service.files import check_snapshot_name, check_stream_name, write_atomically
from service.stream_files import MOST_COUNT, Unpacked, is_number, pack_stream, unpack_stream
from service.tasks import Tasks
from service.tracks import Stream

_SUFFIX = ".attune"
_LATEST = 1e11
_LONGEST_NOTE = 1000
"""Characters, as the API takes them."""


class SnapshotStore:
    def __init__(self, *, tasks: Tasks, folder: Path) -> None:
        self._tasks = tasks
        self._folder = folder

    def create(self, stream: Stream, name: str | None, note: str, *, job: str = "") -> dict[str, Any]:
        """Save `stream` as it is. Without a name: the version and the time. Raises Conflict if it exists.

        `job` is the id of what asked for it: asked again by the same one, the snapshot it made is described.
        """
        for path in self._paths(stream.name) if job else ():
            with suppress(StateFileError):
                if _header(path).get("job") == job:
                    return self._describe(path)
        created_at = time.time()
        version = stream.version
        name = name or _default_name(version, created_at)
        path = self._path(stream.name, name)
        self._refuse_existing(path, name)
        about = {"snapshot": name, "snapshot_at": created_at, "version": version, "note": note, "job": job}
        classifier = self._tasks.classifier
        data = pack_stream(
            stream,
            kind="snapshot",
            fingerprint=self._tasks.encoder.fingerprint,
            classifier_fingerprint=None if classifier is None else classifier.fingerprint,
            **about,
        )
        write_atomically(path, data)
        return self._describe(path)

    def list(self, stream: str) -> list[dict[str, Any]]:
        check_stream_name(stream)
        found = [self._describe(path) for path in self._paths(stream)]
        return sorted(found, key=lambda card: card["created_at"])

    def read(self, stream: str, name: str) -> Unpacked:
        """Methods and tracks, ready to be restored. Raises NotFound, Conflict, BadRequest."""
        return self._unpack(self.export(stream, name))

    def export(self, stream: str, name: str) -> bytes:
        path = self._path(stream, name)
        if not path.is_file():
            raise NotFound(f"stream {stream!r} has no snapshot {name!r}", code="unknown_snapshot")
        return path.read_bytes()

    def import_(self, stream: str, name: str | None, data: bytes, *, again: bool = False) -> dict[str, Any]:
        """Keep a file made by `export`, here or elsewhere. Raises BadRequest, Conflict.

        With `again`, of a job delivered once more, the same file may be there already.
        """
        header = self._unpack(data).header
        path = self._path(stream, name or str(header.get("snapshot", "")))
        if again and path.is_file() and path.read_bytes() == data:
            return self._describe(path)
        self._refuse_existing(path, path.name.removesuffix(_SUFFIX))
        write_atomically(path, data)
        return self._describe(path)

    def delete(self, stream: str, name: str) -> None:
        path = self._path(stream, name)
        if not path.is_file():
            raise NotFound(f"stream {stream!r} has no snapshot {name!r}", code="unknown_snapshot")
        path.unlink()

    def delete_all(self, stream: str) -> None:
        for card in self.list(stream):
            self.delete(stream, card["name"])

    def exists(self, stream: str, name: str) -> bool:
        return self._path(stream, name).is_file()

    def _paths(self, stream: str) -> Iterator[Path]:
        return (self._folder / check_stream_name(stream)).glob(f"*{_SUFFIX}")

    def _path(self, stream: str, name: str) -> Path:
        return self._folder / check_stream_name(stream) / f"{check_snapshot_name(name)}{_SUFFIX}"

    def _refuse_existing(self, path: Path, name: str) -> None:
        if path.exists():
            raise Conflict(f"there is a snapshot {name!r} already; delete it or choose another name")

    def _unpack(self, data: bytes) -> Unpacked:
        try:
            found = unpack_stream(data, self._tasks)
            if found.header.get("kind") != "snapshot":
                raise StateFileError("it is no snapshot")
            _check_header(found.header)
        except (StateFileError, BadSettings, TypeError, KeyError) as error:
            raise BadRequest(f"the snapshot cannot be used: {error}", code="bad_snapshot") from error
        except StateMismatch as error:
            raise Conflict(f"the snapshot cannot be used: {error}", code="fingerprint_mismatch") from error
        return found

    def _describe(self, path: Path) -> dict[str, Any]:
        """The card of a snapshot file. A damaged one is listed as such, so that it can be deleted."""
        card: dict[str, Any] = {"stream": path.parent.name, "name": path.name.removesuffix(_SUFFIX)}
        try:
            header = _header(path)
        except StateFileError as error:
            return card | {
                "created_at": path.stat().st_mtime,
                "bytes": path.stat().st_size,
                "damaged": str(error),
            }
        return card | {
            "created_at": header.get("snapshot_at", path.stat().st_mtime),
            "bytes": path.stat().st_size,
            "version": header.get("version"),
            "method": header.get("method"),
            "settings": header.get("settings"),
            "classify": header.get("classify"),
            "fingerprint": header.get("fingerprint"),
            "calibrations": header.get("calibrations", {}),
            "note": header.get("note", ""),
            "tracks": [
                {
                    "gallery": track.get("gallery"),
                    "direction": track.get("direction"),
                    "applied": track.get("applied"),
                }
                for track in header.get("tracks", {}).values()
            ],
        }


def _header(path: Path) -> dict[str, Any]:
    """The JSON part of a snapshot file. Raises StateFileError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        header = unpack_header(file.read(8 + min(length, path.stat().st_size)))
    _check_header(header)
    return header


def _check_header(header: Mapping[str, Any]) -> None:
    """What cards show of a file that may be made up. Raises StateFileError."""
    made, version, note = header.get("snapshot_at", 0.0), header.get("version"), header.get("note", "")
    if not is_number(made) or not 0 <= made <= _LATEST:
        raise StateFileError("the file was made at no time")
    if version is not None and (type(version) is not int or not 0 <= version < MOST_COUNT):
        raise StateFileError("the file's version is no natural number")
    if not isinstance(note, str) or len(note) > _LONGEST_NOTE:
        raise StateFileError(f"the file's note is no text of at most {_LONGEST_NOTE} characters")
    tables = [header.get(name) or {} for name in ("settings", "classify", "calibrations", "tracks")]
    if not all(isinstance(table, dict) for table in tables):
        raise StateFileError("the file's header has no tables where some belong")
    if not all(isinstance(track, dict) for track in tables[-1].values()):
        raise StateFileError("the file has a track that is no table")


def _default_name(version: int | None, created_at: float) -> str:
    """Version and time, to the microsecond, so that two in a row differ."""
    second = time.strftime("%Y%m%dT%H%M%S", time.gmtime(created_at))
    return f"v{version}-{second}-{int(created_at % 1 * 1e6):06d}"
