"""The built console that is committed is the one that its sources make."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

WEB = Path(__file__).resolve().parents[2] / "service" / "web"
BUILT = WEB / "built"


def test_built_console_is_made_of_the_present_sources() -> None:
    files = [*(path for path in (WEB / "src").rglob("*") if path.is_file())]
    files += [WEB / "build.mjs", WEB / "package-lock.json"]
    named = sorted((path.relative_to(WEB).as_posix(), path) for path in files)
    digest = hashlib.sha256()
    for name, path in named:
        digest.update(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())

    assert (BUILT / "sources.sha256").read_text().strip() == digest.hexdigest(), "run `make console`"


def test_page_refers_only_to_files_that_are_there() -> None:
    page = (BUILT / "index.html").read_text()
    referred = re.findall(r'(?:href|src)="(/[^"]*)"', page)

    assert len([path for path in referred if path.startswith("/console/assets/")]) == 3
    for path in referred:
        if path != "/docs":
            assert (BUILT / path.removeprefix("/console/assets/")).is_file(), path


def test_nothing_in_the_page_comes_from_elsewhere() -> None:
    # Namespaces are names, and links of a licence are text; neither is ever asked for.
    addresses = {
        found
        for path in BUILT.glob("*.*")
        if path.suffix in {".html", ".js", ".css", ".svg"}
        for found in re.findall(r"https?://[^\s\"'`)\\\\]+", path.read_text())
    }

    assert all(address.startswith("http://www.w3.org/") for address in addresses), addresses


def test_licences_of_the_libraries_are_served_with_them() -> None:
    licences = (BUILT / "licences.txt").read_text()

    for name in ("preact ", "@preact/signals ", "uplot "):
        assert name in licences
