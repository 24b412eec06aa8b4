from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attune import Client
from benchmarks.server import running_server
from demo.scenes import write_folder


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """A real server with the demo encoder and a small demo gallery."""
    with running_server(demo_gallery_items=200, torch_threads=1) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as connected:
        yield connected


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 unseen scenes: pictures and captions."""
    folder = tmp_path_factory.mktemp("scenes")
    write_folder(folder, "test", 200)
    return folder
