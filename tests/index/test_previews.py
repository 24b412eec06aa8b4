"""Previews: kept in the gallery's file, away from its memory."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing

import pytest

from index import (
    BadItem,
    GalleryCorrupt,
    GalleryStore,
    IndexSettings,
    ItemNotFound,
    PreviewNotFound,
    StorageFull,
)

D = 8


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "galleries"


@pytest.fixture
def shop(folder):
    with GalleryStore(folder) as store:
        yield store.create("shop", D, "encoder-1", IndexSettings())


@pytest.fixture
def shown(items):
    """The six items of `items`, all but item-5 with a preview."""
    return [
        dataclasses.replace(item, preview=None if n == 5 else f"picture {n}".encode())
        for n, item in enumerate(items)
    ]


def sql(folder, statement, *values):
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection, connection:
        return connection.execute(statement, values).fetchall()


def kept(folder):
    return [item_id for (item_id,) in sql(folder, "SELECT id FROM previews ORDER BY id")]


def test_preview_comes_back_also_from_a_gallery_that_was_opened_again(folder, shop, shown):
    shop.upsert(shown)
    preview = shop.preview("item-1")
    assert preview.content == b"picture 1"
    with GalleryStore(folder) as store:
        assert store.open("shop", "encoder-1").preview("item-1") == preview


def test_version_is_12_hexadecimal_digits_of_the_content(shop, shown, items):
    twin = dataclasses.replace(items[5], preview=b"picture 1")
    shop.upsert([*shown[:5], twin])
    versions = [item.preview_version for item in shop.page(0, 9)]
    assert all(len(version) == 12 and int(version, 16) >= 0 for version in versions)
    assert versions[5] == versions[1]
    assert len(set(versions)) == 5


def test_items_and_hits_say_the_version_and_hold_no_preview(shop, shown):
    shop.upsert(shown)
    version = shop.preview("item-2").version
    assert (shop.get("item-2").preview_version, shop.get("item-2").preview) == (version, None)
    (hits,) = shop.search("image", shown[2].vectors["image"][None], 1)
    assert (hits[0].id, hits[0].preview_version) == ("item-2", version)
    assert all(record.preview is None for record in shop._records.values())


def test_item_without_a_preview_says_so(shop, shown):
    shop.upsert(shown)
    assert shop.get("item-5").preview_version == ""
    with pytest.raises(PreviewNotFound, match="item-5"):
        shop.preview("item-5")
    with pytest.raises(ItemNotFound, match="item-9"):
        shop.preview("item-9")


@pytest.mark.parametrize("preview", [b"", "text", bytearray(b"x")])
def test_preview_that_is_no_bytes_is_refused_and_nothing_is_changed(folder, shop, shown, preview):
    with pytest.raises(BadItem, match="preview of item 'item-1'"):
        shop.upsert([shown[0], dataclasses.replace(shown[1], preview=preview)])
    assert (len(shop), kept(folder)) == (0, [])


def test_replaced_item_takes_its_new_preview_and_keeps_its_place(shop, shown, items):
    shop.upsert(items)
    before = [item.id for item in shop.page(0, 9)], shop.matrix("image").tobytes()
    shop.upsert([shown[1]])
    assert ([item.id for item in shop.page(0, 9)], shop.matrix("image").tobytes()) == before
    assert shop.preview("item-1").content == b"picture 1"
    shop.upsert([dataclasses.replace(shown[1], preview=b"another")])
    assert shop.preview("item-1").content == b"another"


def test_item_replaced_without_a_preview_has_none_any_more(folder, shop, shown, items):
    shop.upsert(shown)
    moved = dataclasses.replace(items[2], vectors={"image": items[2].vectors["image"]})
    shop.upsert([items[0], moved])
    for item_id in ("item-0", "item-2"):
        with pytest.raises(PreviewNotFound):
            shop.preview(item_id)
    assert kept(folder) == ["item-1", "item-3", "item-4"]


def test_deleted_item_takes_its_preview_along(folder, shop, shown, items):
    shop.upsert(shown)
    shop.delete(["item-0", "item-5"])
    assert "item-0" not in kept(folder)
    shop.upsert([items[0]])
    with pytest.raises(PreviewNotFound):
        shop.preview("item-0")


def test_other_process_follows_and_reads_what_is_in_the_file_now(folder, shop, shown):
    shop.upsert(shown)
    with GalleryStore(folder) as store:
        theirs = store.open("shop", "encoder-1")
        first = theirs.preview("item-1")
        shop.upsert([dataclasses.replace(shown[1], preview=b"another")])
        assert theirs.preview("item-1").content == b"another"  # version and content of one moment
        assert theirs.get("item-1").preview_version == first.version
        theirs.refresh()
        assert theirs.get("item-1").preview_version == theirs.preview("item-1").version != first.version


def test_change_that_fails_leaves_the_preview_as_it_was(folder, shop, shown, monkeypatch):
    shop.upsert(shown)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("index.journal.write_manifest", no_space)
        with pytest.raises(StorageFull):
            shop.upsert([dataclasses.replace(shown[1], preview=b"another")])
    assert shop.preview("item-1").content == b"picture 1"


def test_gallery_is_opened_without_its_previews(folder, shop, shown):
    shop.upsert(shown)
    shop.close()
    sql(folder, "DROP TABLE previews")
    with GalleryStore(folder) as store:
        assert len(store.open("shop", "encoder-1")) == 6


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE previews SET content = x'00' WHERE id = 'item-1'",
        "UPDATE previews SET content = 'picture 1' WHERE id = 'item-1'",
        "DELETE FROM previews WHERE id = 'item-1'",
    ],
)
def test_damaged_preview_is_told_and_the_gallery_stays_of_use(folder, shop, shown, damage):
    shop.upsert(shown)
    sql(folder, damage)
    for _ in range(2):
        with pytest.raises(GalleryCorrupt, match="preview of item 'item-1' of gallery 'shop' is damaged"):
            shop.preview("item-1")
    assert shop.usable
    assert shop.preview("item-2").content == b"picture 2"
    with GalleryStore(folder) as store:
        store.open("shop", "encoder-1").upsert([shown[1]])
    assert shop.preview("item-1").content == b"picture 1"


def test_version_that_was_changed_in_the_file_is_noticed(folder, shop, shown):
    shop.upsert(shown)
    shop.close()
    sql(folder, "UPDATE items SET preview_version = '0123456789ab' WHERE id = 'item-1'")
    with GalleryStore(folder) as store, pytest.raises(GalleryCorrupt, match="item 'item-1'"):
        store.open("shop", "encoder-1")


def test_gallery_in_memory_keeps_no_previews(gallery, shown):
    gallery.upsert(shown)
    assert gallery.get("item-1").preview_version == ""
    with pytest.raises(PreviewNotFound):
        gallery.preview("item-1")
