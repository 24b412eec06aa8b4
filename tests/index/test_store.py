from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index import (
    BadName,
    BadSettings,
    FingerprintMismatch,
    GalleryCorrupt,
    GalleryError,
    GalleryExists,
    GalleryNotFound,
    GalleryStore,
    IndexSettings,
    Item,
    StorageError,
    StorageFull,
)
from index.journal import row_checksum

D = 8
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "galleries"


@pytest.fixture
def filled(folder, items):
    """A closed store with one gallery, `shop`, of six items after some changes; its file."""
    with GalleryStore(folder) as store:
        gallery = store.create("shop", D, "encoder-1", IndexSettings())
        gallery.upsert(items)
        gallery.delete(["item-3"])
        gallery.upsert([Item(id="item-3", payload={"again": True}, vectors=items[3].vectors)])
    return folder / "shop.sqlite"


@pytest.fixture
def with_anchors(folder, anchored, calibration):
    """As `filled`, of a gallery with a calibration."""
    with GalleryStore(folder) as store:
        gallery = store.create("shop", D, "encoder-1", IndexSettings(), calibration=calibration)
        gallery.upsert(anchored)
        gallery.delete(["item-3"])
        gallery.upsert([anchored[3]])
    return folder / "shop.sqlite"


def contents(gallery):
    return gallery.counts(), [
        (item.id, item.payload, item.text, {t: v.tobytes() for t, v in item.vectors.items()})
        for item in gallery.page(0, 10**6, with_vectors=True)
    ]


def sql(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def insert(path, *row):
    """A row of `items` with the right checksum."""
    values = (*row, row_checksum(row))
    sql(path, f"INSERT INTO items VALUES ({', '.join('?' for _ in values)})", *values)


def open_shop(folder, fingerprint="encoder-1"):
    with GalleryStore(folder) as store:
        return contents(store.open("shop", fingerprint))


# Round trips


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "torch"])
def test_gallery_comes_back_bit_for_bit(folder, items, unit, kind):
    (vector,) = unit(1, seed=8)
    with GalleryStore(folder) as store:
        made = store.create("shop", D, "encoder-1", IndexSettings(kind=kind))
        made.upsert(items)
        made.upsert([Item(id="item-1", vectors={"text": vector})])  # moves to the end
        made.delete(["item-2"])
        before = contents(made), made.generation, made.created_at
        raw = {target: made.search_raw(target, unit(3), 4) for target in made.targets()}
    with GalleryStore(folder) as store:
        back = store.open("shop", "encoder-1")
        assert (contents(back), back.generation, back.created_at) == before
        assert back.settings.kind == kind
        for target, (scores, positions) in raw.items():
            again = back.search_raw(target, unit(3), 4)
            assert np.array_equal(again[0], scores)
            assert np.array_equal(again[1], positions)
        back.upsert([Item(id="new", vectors={"image": vector})])  # and it goes on from there
    assert open_shop(folder)[1][-1][0] == "new"


def test_gallery_with_a_calibration_comes_back_bit_for_bit(folder, with_anchors, anchored, calibration):
    with GalleryStore(folder) as store:
        info = store.describe("shop")
        back = store.open("shop", "encoder-1")
        assert info.calibration == back.calibration == store.describe("shop").calibration == calibration
        assert info.targets == {"image": 4, "text": 4, "anchor": 6}
        order = [0, 1, 2, 4, 5, 3]
        expected = [anchored[n] for n in order]
        assert [item.id for item in back.page(0, 9)] == [item.id for item in expected]
        for item in expected:
            stored = back.get(item.id).vectors
            assert {t: v.tobytes() for t, v in stored.items()} == {
                t: v.tobytes() for t, v in item.vectors.items()
            }
        anchors = np.stack([item.vectors["anchor"] for item in expected])
        hits = back.search("anchor", anchors, 1)
        assert [row[0].modalities for row in hits] == [set(i.vectors) - {"anchor"} for i in expected]


def test_memory_store_knows_the_calibration(anchored, calibration):
    with GalleryStore(None) as store:
        made = store.create("shop", D, "encoder-1", IndexSettings(), calibration=calibration)
        made.upsert(anchored)
        assert store.describe("shop").calibration == calibration
        assert store.peek("shop").targets == {"image": 4, "text": 4, "anchor": 6}


def test_random_changes_survive_reopening_after_each(folder, unit):
    random = np.random.default_rng(1)
    kinds = [("image",), ("text",), ("image", "text")]
    with GalleryStore(folder) as store:
        store.create("shop", D, "encoder-1", IndexSettings())
    for step in range(25):
        chosen = [f"n{n}" for n in random.permutation(12)[:4]]
        rows = unit(8, seed=step).reshape(4, 2, D)
        with GalleryStore(folder) as store:
            gallery = store.open("shop", "encoder-1")
            if step % 3 == 2:
                gallery.delete(chosen)
            else:
                vectors = [dict(zip(kinds[random.integers(3)], pair, strict=False)) for pair in rows]
                gallery.upsert([Item(id=n, vectors=v) for n, v in zip(chosen, vectors, strict=True)])
            expected = contents(gallery)
        assert open_shop(folder) == expected


def test_unusual_texts_survive(folder, unit):
    (vector,) = unit(1)
    item = Item(
        id="näme/../\n\0'; DROP TABLE items --",
        payload={"größe": [1, 2.5, None, True, {"tief": "☃"}], "big": 10**30},
        text="\0\U0001f600",
        vectors={"image": vector},
    )
    with GalleryStore(folder) as store:
        store.create("shop", D, "encoder-1", IndexSettings()).upsert([item])
    with GalleryStore(folder) as store:
        back = store.open("shop", "encoder-1").get(item.id)
    assert (back.id, back.payload, back.text) == (item.id, item.payload, item.text)


def test_memory_store_does_the_same_without_files(items):
    with GalleryStore(None) as store:
        gallery = store.create("shop", D, "encoder-1", IndexSettings())
        gallery.upsert(items)
        assert store.open("shop", "encoder-1") is gallery
        assert store.names() == ["shop"]
        assert store.describe("shop").items == 6
        with pytest.raises(FingerprintMismatch):
            store.open("shop", "encoder-2")
        store.delete("shop")
        assert store.names() == []
        for call in (store.describe, store.delete, lambda name: store.open(name, "encoder-1")):
            with pytest.raises(GalleryNotFound):
                call("shop")


# Names, listing, deleting


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a..b",
        "A",
        "-a",
        ".a",
        "a b",
        "ä",
        "a\n",
        "a\0",
        "x" * 65,
    ],
)
@pytest.mark.parametrize("root", [True, False])
def test_bad_names_are_refused_everywhere(folder, name, root):
    with GalleryStore(folder if root else None) as store:
        for call in (
            lambda: store.create(name, D, "encoder-1", IndexSettings()),
            lambda: store.open(name, "encoder-1"),
            lambda: store.describe(name),
            lambda: store.delete(name),
        ):
            with pytest.raises(BadName):
                call()
        assert store.names() == []


@pytest.mark.parametrize("name", ["a", "0", "x" * 64, "a.b-c_d", "shop.sqlite", "shop.sqlite-wal"])
def test_good_names_are_taken(store, name):
    store.create(name, D, "encoder-1", IndexSettings())
    assert store.names() == [name]


def test_name_can_be_used_once(store, items):
    store.create("shop", D, "encoder-1", IndexSettings()).upsert(items)
    with pytest.raises(GalleryExists, match="'shop'"):
        store.create("shop", D, "encoder-1", IndexSettings())
    assert len(store.open("shop", "encoder-1")) == 6


def test_deleted_gallery_leaves_no_file_and_its_name_is_free(store, folder, items):
    old = store.create("shop", D, "encoder-1", IndexSettings())
    old.upsert(items)
    store.delete("shop")
    assert list(folder.iterdir()) == []
    with pytest.raises(GalleryError, match="closed"):
        old.upsert(items)
    assert len(store.create("shop", D, "encoder-1", IndexSettings())) == 0


def test_log_left_behind_by_an_old_gallery_is_not_applied_to_a_new_one(store, folder, items):
    log = folder / "shop.sqlite-wal"
    store.create("shop", D, "encoder-1", IndexSettings()).upsert(items)
    left_behind = log.read_bytes()
    store.delete("shop")
    log.write_bytes(left_behind)
    assert len(store.create("shop", D, "encoder-1", IndexSettings())) == 0


def test_missing_gallery_is_reported(store):
    for call in (store.describe, store.delete, lambda name: store.open(name, "encoder-1")):
        with pytest.raises(GalleryNotFound, match="'shop'"):
            call("shop")


def test_other_files_in_the_folder_are_no_galleries(store, folder):
    for name in ("notes.txt", "UPPER.sqlite", ".new-x.sqlite", "x.sqlite-wal"):
        (folder / name).touch()
    assert store.names() == []


@pytest.mark.parametrize("dimension", [0, -1, 65_537])
def test_senseless_dimension_is_refused(store, dimension):
    with pytest.raises(BadSettings, match="dimension"):
        store.create("shop", dimension, "encoder-1", IndexSettings())
    assert store.names() == []


def test_settings_that_cannot_be_served_leave_no_file(folder):
    with GalleryStore(folder, device="nowhere") as store, pytest.raises(BadSettings):
        store.create("shop", D, "encoder-1", IndexSettings(kind="torch"))
    assert list(folder.iterdir()) == []


def test_opened_gallery_stays_the_same_object(store):
    made = store.create("shop", D, "encoder-1", IndexSettings())
    assert store.open("shop", "encoder-1") is made


def test_unusable_gallery_is_loaded_again(store, items, monkeypatch):
    gallery = store.create("shop", D, "encoder-1", IndexSettings())
    gallery.upsert(items)

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(gallery, "_apply", out_of_memory)
    with pytest.raises(MemoryError):
        gallery.delete(["item-0"])
    again = store.open("shop", "encoder-1")
    assert again is not gallery
    assert "item-0" not in again  # The change had been written.
    assert len(again) == 5


# Another encoder


def test_gallery_of_another_encoder_is_described_and_deleted_but_not_opened(filled, folder):
    with GalleryStore(folder) as store:
        with pytest.raises(FingerprintMismatch) as raised:
            store.open("shop", "encoder-2")
        assert (raised.value.expected, raised.value.found) == ("encoder-2", "encoder-1")
        info = store.describe("shop")
        assert (info.name, info.fingerprint, info.dimension, info.items) == ("shop", "encoder-1", D, 6)
        assert info.targets == {"image": 4, "text": 4, "anchor": 0}
        assert info.calibration is None
        assert info.generation == 3
        assert store.open("shop", "encoder-1").get("item-0").text == "caption 0"
        with pytest.raises(FingerprintMismatch):
            store.open("shop", "encoder-2")  # opened for its own encoder meanwhile
        store.delete("shop")
        assert store.names() == []


# Damage


def test_file_that_is_no_database_is_named_with_a_remedy(folder, filled):
    filled.write_bytes(b"this is not a database, but long enough to be read as one" * 100)
    with GalleryStore(folder) as store:
        assert store.names() == ["shop"]
        for call in (lambda: store.open("shop", "encoder-1"), lambda: store.describe("shop")):
            with pytest.raises(GalleryCorrupt, match=r"'shop'.*backup"):
                call()
        store.delete("shop")
        assert store.names() == []


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0"])
def test_empty_and_cut_files_are_damaged(folder, filled, content):
    filled.write_bytes(content)
    with pytest.raises(GalleryCorrupt, match="'shop'"):
        open_shop(folder)


def test_truncated_file_is_damaged(folder, filled):
    filled.write_bytes(filled.read_bytes()[:8192])
    with pytest.raises(GalleryCorrupt, match="'shop'"):
        open_shop(folder)


@pytest.mark.parametrize(
    "change",
    [
        "payload = '{}'",
        "text = 'another'",
        "text = NULL",
        "id = 'item-x'",
        "sequence = 99",
        "generation = 0",
        "generation = 2",
        "image_vector = zeroblob(32)",
        "image_vector = NULL",
        "image_vector = text_vector, text_vector = NULL",
        "image_vector = text_vector, text_vector = image_vector",
        "image_vector = substr(image_vector, 1, 28)",
        "checksum = zeroblob(16)",
    ],
)
def test_changed_row_is_noticed(folder, filled, change):
    sql(filled, f"UPDATE items SET {change} WHERE id = 'item-2'")
    with pytest.raises(GalleryCorrupt, match=r"item 'item-(2|x)' of gallery 'shop' is damaged"):
        open_shop(folder)


@pytest.mark.parametrize(
    "change",
    [
        "anchor_vector = zeroblob(32)",
        "anchor_vector = NULL",
        "anchor_vector = substr(anchor_vector, 1, 28)",
        f"anchor_vector = '{'x' * 4 * D}'",
        "anchor_vector = image_vector, image_vector = anchor_vector",
        "text_vector = anchor_vector, anchor_vector = NULL",
        "image_vector = NULL",
        "generation = 0",
    ],
)
def test_changed_row_with_an_anchor_is_noticed(folder, with_anchors, change):
    sql(with_anchors, f"UPDATE items SET {change} WHERE id = 'item-0'")
    with pytest.raises(GalleryCorrupt, match="item 'item-0' of gallery 'shop' is damaged"):
        open_shop(folder)


def test_flipped_bit_of_an_anchor_in_the_file_is_noticed(folder, with_anchors, anchored):
    whole = with_anchors.read_bytes()
    vector = anchored[4].vectors["anchor"].tobytes()
    assert whole.count(vector) == 1
    place = whole.index(vector) + 5
    with_anchors.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(GalleryCorrupt, match="item 'item-4'"):
        open_shop(folder)


@pytest.mark.parametrize(
    ("anchored_file", "vectors"),
    [(True, (bytes(32), None, None)), (True, (None, None, bytes(32))), (False, (bytes(32), None, bytes(32)))],
    ids=["lacks its anchor", "is an anchor alone", "has an anchor but no calibration"],
)
def test_row_that_this_gallery_cannot_have_is_noticed_though_its_checksum_is_right(
    request, folder, anchored_file, vectors
):
    path = request.getfixturevalue("with_anchors" if anchored_file else "filled")
    insert(path, 99, "odd", "{}", None, *vectors, "", 3)
    with pytest.raises(GalleryCorrupt, match="item 'odd'"):
        open_shop(folder)


def test_vector_moved_to_the_other_modality_is_noticed(folder, filled):
    sql(filled, "UPDATE items SET text_vector = image_vector, image_vector = NULL WHERE id = 'item-0'")
    with pytest.raises(GalleryCorrupt, match="item 'item-0'"):
        open_shop(folder)


def test_vector_of_another_size_is_noticed_though_its_checksum_is_right(folder, filled):
    insert(filled, 99, "odd", "{}", None, bytes(28), None, None, "", 3)
    with pytest.raises(GalleryCorrupt, match="item 'odd'"):
        open_shop(folder)


def test_flipped_bit_of_a_vector_in_the_file_is_noticed(folder, filled, items):
    whole = filled.read_bytes()
    vector = items[4].vectors["text"].tobytes()
    assert whole.count(vector) == 1
    place = whole.index(vector) + 5
    filled.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(GalleryCorrupt, match="item 'item-4'"):
        open_shop(folder)


def test_missing_row_is_noticed(folder, filled):
    sql(filled, "DELETE FROM items WHERE id = 'item-5'")
    with pytest.raises(GalleryCorrupt, match=r"should hold 6 items .* but holds 5 items"):
        open_shop(folder)


@pytest.mark.parametrize(
    "key",
    [
        *("dimension", "fingerprint", "settings", "generation", "items"),
        *("created_at", "created_by", "history_from", "calibration", "anchor"),
    ],
)
@pytest.mark.parametrize("statement", ["UPDATE manifest SET value = '1'", "DELETE FROM manifest"])
def test_changed_manifest_is_noticed(folder, filled, key, statement):
    sql(filled, f"{statement} WHERE key = ?", key)
    with GalleryStore(folder) as store:
        for call in (lambda: store.open("shop", "encoder-1"), lambda: store.describe("shop")):
            with pytest.raises(GalleryCorrupt, match="manifest of gallery 'shop' is damaged"):
                call()


@pytest.mark.parametrize("table", ["items", "manifest"])
def test_missing_table_is_damage(folder, filled, table):
    sql(filled, f"DROP TABLE {table}")
    with pytest.raises(GalleryCorrupt, match=f"no such table: {table}"):
        open_shop(folder)


def test_newer_format_is_refused_before_anything_else_is_read(folder, filled):
    sql(filled, "UPDATE manifest SET value = '5' WHERE key = 'format'")
    sql(filled, "DROP TABLE items")
    with pytest.raises(GalleryCorrupt, match=r"format '5'; this version reads up to 4\. Serve it with"):
        open_shop(folder)


def test_renamed_file_is_noticed(folder, filled):
    filled.rename(folder / "other.sqlite")
    with GalleryStore(folder) as store, pytest.raises(GalleryCorrupt, match="belongs to gallery 'shop'"):
        store.open("other", "encoder-1")


# A full disk, interruptions, other processes


def test_full_disk_changes_nothing_and_space_brings_it_back(folder, filled, unit):
    big = [Item(id=f"big-{n}", text="x" * 3000, vectors={"image": v}) for n, v in enumerate(unit(50, seed=4))]
    with GalleryStore(folder) as store:
        gallery = store.open("shop", "encoder-1")
        before = contents(gallery)
        connection = gallery._journal._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StorageFull, match="disk is full"):
            gallery.upsert(big)
        assert contents(gallery) == before
        assert gallery.usable
        connection.execute("PRAGMA max_page_count = 100000")
        assert gallery.upsert(big).added == 50
        after = contents(gallery)
    assert open_shop(folder) == after


def test_full_disk_while_creating_is_reported(store, monkeypatch):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", no_space)
    with pytest.raises(StorageFull, match="No space left"):
        store.create("shop", D, "encoder-1", IndexSettings())
    assert store.names() == []


def test_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        GalleryStore(tmp_path / "file" / "galleries")


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
import numpy as np
import index.journal
from index import GalleryStore, Item

store = GalleryStore(Path(sys.argv[1]))
gallery = store.open("shop", "encoder-1")
gallery.upsert([Item(id="acknowledged", vectors={"image": np.ones(8)})])
write = index.journal.write_manifest
if sys.argv[2] == "before":
    index.journal.write_manifest = lambda *_: os._exit(7)
else:
    def write_then_die(*arguments):
        write(*arguments)
        os._exit(7)
    index.journal.write_manifest = write_then_die
gallery.delete(["item-0"])
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_process_killed_inside_a_change_loses_that_change_only(folder, filled, moment):
    """Killed after the rows were written, before or after the manifest was: never committed."""
    expected = [entry[0] for entry in open_shop(folder)[1]]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(folder), moment],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )
    assert done.returncode == 7
    assert [entry[0] for entry in open_shop(folder)[1]] == [*expected, "acknowledged"]


@pytest.mark.parametrize("moment", ["index.journal.write_manifest", "pathlib.Path.rename"])
def test_half_made_gallery_is_never_seen(store, folder, monkeypatch, moment):
    """Killed before the manifest is written, or before the file has its name: the name stays free."""

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, die)
        with pytest.raises(KeyboardInterrupt):
            store.create("shop", D, "encoder-1", IndexSettings())
    assert store.names() == []
    assert len(store.create("shop", D, "encoder-1", IndexSettings())) == 0
    assert not (folder / ".new-shop.sqlite").exists()


def test_locked_file_is_reported(folder, filled, items, monkeypatch):
    monkeypatch.setattr("index.files.WAIT_FOR_LOCK_S", 0.05)
    with GalleryStore(folder) as store, closing(sqlite3.connect(filled, isolation_level=None)) as other:
        gallery = store.open("shop", "encoder-1")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="in use by another process"):
            gallery.delete(["item-0"])
        assert len(gallery) == 6
        other.execute("ROLLBACK")
        assert gallery.delete(["item-0"]) == 1


def test_changes_are_synced_before_they_are_acknowledged(folder, filled):
    """WAL with synchronous=FULL (2) syncs at every commit."""
    with GalleryStore(folder) as store:
        connection = store.open("shop", "encoder-1")._journal._connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_manifest_is_what_the_documentation_says(filled):
    rows = dict(sql(filled, "SELECT key, value FROM manifest"))
    assert rows.keys() == {
        *("format", "name", "dimension", "fingerprint", "settings", "created_at"),
        *("created_by", "calibration", "generation", "history_from"),
        *("items", "image", "text", "anchor", "checksum"),
    }
    assert json.loads(rows["settings"]) == IndexSettings().to_dict()
    assert rows["calibration"] == ""


def test_manifest_names_the_calibration(with_anchors, calibration):
    rows = dict(sql(with_anchors, "SELECT key, value FROM manifest"))
    assert json.loads(rows["calibration"]) == calibration._asdict()
    assert rows["anchor"] == "6"
