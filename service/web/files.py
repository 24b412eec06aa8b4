"""The files of a built console, read into memory once, so that nothing else can be asked for."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUILT = Path(__file__).resolve().parent / "built"
PAGE = "index.html"
MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
"""What is served, by the end of its name; other files of the folder are not."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HASHED = re.compile(r".+-[A-Z0-9]{8}\.[a-z]+")  # as esbuild names what it writes
_NO_TEXT = frozenset({".png"})
_FEWEST_BYTES_TO_COMPRESS = 512


@dataclass(frozen=True)
class WebFile:
    """One file, ready to be sent.

    gzipped    None: not worth it
    digest     of the content, for ETag
    immutable  its name changes with its content
    """

    content: bytes
    gzipped: bytes | None
    media_type: str
    digest: str
    immutable: bool


@dataclass(frozen=True)
class Console:
    """A built console. assets: by name, without the page itself."""

    page: WebFile
    assets: Mapping[str, WebFile]


def read_console(folder: Path = BUILT) -> Console:
    """Everything in `folder` that can be served; folders inside it are not looked into.

    Raises:
        FileNotFoundError: there is no page in it.
    """
    page = folder / PAGE
    if not page.is_file():
        raise FileNotFoundError(f"no console in {folder}: {PAGE} is missing; `make console` builds it")
    assets = {
        path.name: _read(path)
        for path in sorted(folder.iterdir())
        if path.name != PAGE and path.is_file() and path.suffix in MEDIA_TYPES and _NAME.fullmatch(path.name)
    }
    return Console(_read(page), assets)


def _read(path: Path) -> WebFile:
    content = path.read_bytes()
    worth_it = path.suffix not in _NO_TEXT and len(content) >= _FEWEST_BYTES_TO_COMPRESS
    return WebFile(
        content=content,
        gzipped=gzip.compress(content, mtime=0) if worth_it else None,
        media_type=MEDIA_TYPES[path.suffix],
        digest=hashlib.blake2b(content, digest_size=12).hexdigest(),
        immutable=_HASHED.fullmatch(path.name) is not None,
    )
