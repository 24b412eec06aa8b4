"""Where stream states are kept when not in memory: on disk here, in Redis in service/redis/states.py."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from heapq import nlargest
from pathlib import Path
from typing import Any, Protocol

from adapters.state import StateFileError, unpack_header
from service.files import check_stream_name, write_atomically
from service.messages import QueryJob

_SUFFIX = ".state"
_REFUSED = ".refused"


class StateStore(Protocol):
    deferred: bool
    """True: `save` and `delete` are not called; the bytes leave with the settlement of their jobs."""

    def owner_token(self, stream: str) -> int | None:
        """A number that changes whenever another worker may have written the stream; None: it is not ours."""

    def names(self) -> list[str]:
        """All stored streams."""

    def latest(self, most: int) -> list[str]:
        """The stored streams that were written last, at most so many, the last first."""

    def load(self, name: str) -> bytes | None:
        """The stored stream; None if there is none."""

    def cards(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
        """Each stored stream's description, without its tensors; None if there is none."""

    def gathered(self, name: str) -> Mapping[str, Sequence[QueryJob]]:
        """Answered jobs that wait for a full batch, by track, oldest first."""

    def save(self, name: str, data: bytes) -> None:
        """Durable on return. Raises StorageFailed."""

    def delete(self, name: str) -> None: ...

    def set_aside(self, name: str) -> str:
        """Move bytes that are of no use out of the way; says where they are now."""


class FileStates:
    """`streams/NAME.state`, one file a stream, written atomically."""

    deferred = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def owner_token(self, stream: str) -> int:
        return 0  # one process owns the folder

    def names(self) -> list[str]:
        return [path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")]

    def latest(self, most: int) -> list[str]:
        with os.scandir(self._folder) if self._folder.is_dir() else nullcontext(()) as entries:
            written = [
                (entry.stat().st_mtime, entry.name) for entry in entries if entry.name.endswith(_SUFFIX)
            ]
        return [name.removesuffix(_SUFFIX) for _, name in nlargest(most, written)]

    def load(self, name: str) -> bytes | None:
        path = self._path(name)
        return path.read_bytes() if path.is_file() else None

    def cards(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
        return [self._card(name) for name in names]

    def _card(self, name: str) -> dict[str, Any] | None:
        with suppress(OSError, StateFileError), self._path(name).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            file.seek(0)
            return unpack_header(file.read(8 + min(size, self._path(name).stat().st_size))).get("card")
        return None

    def gathered(self, name: str) -> Mapping[str, Sequence[QueryJob]]:
        return {}

    def save(self, name: str, data: bytes) -> None:
        write_atomically(self._path(name), data)

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> str:
        path = self._path(name)
        return path.replace(path.with_suffix(_REFUSED)).name

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_stream_name(name)}{_SUFFIX}"
