"""Previews from the engine down to the gallery's file, in one process and through Redis."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from demo import demo_encoder_path
from demo.gallery import load_previews
from encoders.load import load_encoder
from index.base import PreviewNotFound
from index.store import GalleryStore
from service.demo_gallery import demo_items, fill_demo_gallery
from service.engine import Engine, running_engine
from service.galleries import Galleries
from service.messages import NewItem, Query, RetrieveRequest
from service.settings import Settings
from tests.toy import ToyEncoder, picture, sentence

pytestmark = pytest.mark.anyio


def things() -> list[NewItem]:
    """i0 and i1 with a preview, i2 without."""
    return [
        NewItem(
            id=f"i{n}",
            text=sentence(n),
            pixels=picture(n),
            preview=f"picture {n}".encode() if n < 2 else None,
        )
        for n in range(3)
    ]


async def previews_are_kept_and_told(engine: Engine) -> None:
    await engine.create_gallery("shop", None)
    await engine.upsert_items("shop", things())
    kept = await engine.get_preview("shop", "i1")
    assert kept["content"] == b"picture 1"
    items = (await engine.list_items("shop", 0, 9))["items"]
    assert [bool(item["preview_version"]) for item in items] == [True, True, False]
    assert (await engine.get_item("shop", "i1"))["preview_version"] == kept["version"]
    request = RetrieveRequest((Query(text=sentence(1)),), gallery="shop", k=3, target="text", adapt="off")
    (hits,) = (await engine.retrieve(request)).hits
    assert hits[0].id == "i1"
    assert {hit.id: hit.preview_version for hit in hits} == {
        item["id"]: item["preview_version"] for item in items
    }
    with pytest.raises(Exception, match="keeps no preview of item 'i2'") as refused:
        await engine.get_preview("shop", "i2")
    assert getattr(refused.value, "code", "unknown_preview") == "unknown_preview"


async def test_previews_are_kept_and_told(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await previews_are_kept_and_told(engine)


@pytest.fixture
def galleries(tmp_path: Path) -> Galleries:
    made = Galleries(GalleryStore(tmp_path), ToyEncoder(), default_kind="flat", batch_size=4)
    made.create("shop", None)
    upsert(made, things())
    return made


def upsert(galleries: Galleries, items: list[NewItem]) -> None:
    for _ in galleries.upsert("shop", items):
        pass


def test_item_sent_again_without_a_picture_loses_its_preview(galleries: Galleries) -> None:
    upsert(galleries, [replace(things()[0], pixels=None, preview=None)])
    assert galleries.get_item("shop", "i0")["preview_version"] == ""
    with pytest.raises(PreviewNotFound):
        galleries.get_preview("shop", "i0")


def test_damaged_preview_is_as_none_in_the_log_and_harms_nothing_else(
    galleries: Galleries, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as connection, connection:
        connection.execute("UPDATE previews SET content = x'00' WHERE id = 'i0'")
    with capture_logs() as logs, pytest.raises(PreviewNotFound, match="damaged; add the item again"):
        galleries.get_preview("shop", "i0")
    assert [(line["event"], line["gallery"]) for line in logs] == [("preview_damaged", "shop")]
    assert galleries.get_preview("shop", "i1")["content"] == b"picture 1"
    assert galleries.describe("shop")["status"] == "ready"


def test_demo_gallery_has_previews_from_the_start(tmp_path: Path) -> None:
    encoder = load_encoder(str(demo_encoder_path()), device="cpu")
    made = Galleries(GalleryStore(tmp_path), encoder, default_kind="flat", batch_size=64)
    fill_demo_gallery(made, encoder, "demo", 3)
    kept = [
        made.get_preview("demo", item["id"])["content"] for item in made.list_items("demo", 0, 9)["items"]
    ]
    assert kept == load_previews(3)


@pytest.mark.parametrize(("previews", "expected"), [(True, True), (False, False)])
def test_demo_items_have_previews_where_they_are_kept(previews: bool, expected: bool) -> None:
    encoder = load_encoder(str(demo_encoder_path()), device="cpu")
    items = demo_items(2, encoder, previews=previews)
    assert [item.preview is not None for item in items] == [expected, expected]


def no_previews_of(items: list[dict[str, Any]]) -> bool:
    return not any(item["preview_version"] for item in items)


async def test_server_without_previews_has_none_of_its_demo_either(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path, classifier="", demo_gallery_items=2, preview_pixels=0)
    async with running_engine(settings) as engine:
        assert no_previews_of((await engine.list_items("demo", 0, 9))["items"])
