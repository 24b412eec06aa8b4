from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service.engine import Engine, running_engine
from service.messages import NewItem
from service.settings import Settings
from tests.toy import ToyEncoder, picture, sentence

ITEMS = 120


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


TOY: dict[str, Any] = {
    "encoder": "toy",
    "classifier": "",
    "default_gallery": "things",
    "batch_size": 16,
    "gather_min_items": 4,
    "gather_max_age_s": 0.05,
    "batch_max_wait_ms": 0.0,
    "default_method_settings": {"learning_rate": 0.01},
    "guard": {"policy": "off"},
}
"""Settings of a small, quick engine, whose learning rate is one that a guard would stop."""


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a small, quick engine in a folder of its own."""

    def make(**changes: Any) -> Settings:
        return Settings(**{**TOY, "data_folder": tmp_path / "data", **changes})

    return make


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    async with running_engine(settings(), encoder=ToyEncoder()) as running:
        await fill(running)
        yield running


async def fill(engine: Engine, gallery: str = "things", *, items: int = ITEMS) -> None:
    await engine.create_gallery(gallery, None)
    await engine.upsert_items(
        gallery,
        [
            NewItem(id=f"i{n}", text=sentence(n), pixels=picture(n), payload={"n": n, "even": n % 2 == 0})
            for n in range(items)
        ],
    )
