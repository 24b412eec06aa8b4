"""One folder, several processes.

A second store in the same process stands for another process where that is enough: SQLite and the folder's
lock tell connections and descriptors apart, not processes.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index import (
    TARGETS,
    BadItem,
    CalibrationMark,
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
from index.files import connect
from index.journal import transaction
from index.manifest import read_manifest, write_manifest
from index.rows import Rows

D = 8
ROOT = Path(__file__).resolve().parents[2]
MARK = CalibrationMark("home", "0123456789abcdef")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "galleries"


@pytest.fixture
def pair(folder):
    """Two stores of one folder, and their galleries `shop`."""
    with GalleryStore(folder) as one, GalleryStore(folder) as two:
        mine = one.create("shop", D, "encoder-1", IndexSettings())
        yield one, two, mine, two.open("shop", "encoder-1")


def vector(seed):
    row = np.random.default_rng(seed).standard_normal(D).astype(np.float32)
    return row / np.linalg.norm(row)


def contents(gallery):
    return gallery.counts(), [
        (
            item.id,
            item.payload,
            item.text,
            {t: v.tobytes() for t, v in item.vectors.items()},
            item.preview_version and gallery.preview(item.id),
        )
        for item in gallery.page(0, 10**6, with_vectors=True)
    ]


def everything(gallery):
    """All that can be seen of a gallery, with the positions and hits of a search."""
    queries = np.stack([vector(-seed % 2**32) for seed in range(3)])
    seen = [gallery.generation, contents(gallery)]
    for target in TARGETS:
        scores, positions = gallery.search_raw(target, queries, 50)
        matrix = gallery.matrix(target).tobytes()
        mask = gallery.allowed(target, {"n": {"lt": 5}})
        hits = gallery.hits(target, scores, positions, 50)
        seen.append((matrix, scores.tobytes(), positions.tolist(), mask.tolist(), hits))
    return seen


def sql(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


# Following


KINDS = (("image",), ("text",), ("image", "text"))
item_numbers = st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True)
changes = st.one_of(
    st.tuples(st.just("upsert"), item_numbers, st.sampled_from(KINDS), st.integers(0, 20)),
    st.tuples(st.just("delete"), item_numbers),
)
histories = st.lists(st.tuples(st.integers(0, 3), changes), min_size=1, max_size=12)


def apply(gallery, change):
    if change[0] == "delete":
        gallery.delete([f"i{n}" for n in change[1]])
        return
    _, numbers, kinds, seed = change
    if gallery.calibration is not None:
        kinds = (*kinds, "anchor")
    gallery.upsert(
        [
            Item(
                id=f"i{n}",
                payload={"n": n + seed},
                vectors={k: vector((seed, n, len(k))) for k in kinds},
                preview=f"picture {seed} of {n}".encode() if seed % 3 else None,
            )
            for n in numbers
        ]
    )


@pytest.mark.parametrize(
    ("kept", "at_once", "calibration"),
    [(10_000, 4_096, None), (3, 2, None), (10_000, 4_096, MARK), (3, 2, MARK)],
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories)
def test_processes_that_change_a_gallery_in_turn_hold_what_a_fresh_one_reads(
    monkeypatch, kept, at_once, calibration, history
):
    """Whoever changes it has not refreshed before; a third one refreshes only now and then; a fourth one
    starts anew for each change, so it numbers items as if those at the end had never been.

    With few removals kept and few rows read at a time, too.
    """
    monkeypatch.setattr("index.journal.KEPT_REMOVALS", kept)
    monkeypatch.setattr("index.journal._ROWS_AT_ONCE", at_once)
    with (
        TemporaryDirectory() as name,
        GalleryStore(Path(name)) as one,
        GalleryStore(Path(name)) as two,
        GalleryStore(Path(name)) as three,
    ):
        one.create("shop", D, "encoder-1", IndexSettings(), calibration=calibration)
        galleries = [store.open("shop", "encoder-1") for store in (one, two, three)]
        for step, (who, change) in enumerate(history):
            with GalleryStore(Path(name)) as fresh:
                apply(galleries[who] if who < 3 else fresh.open("shop", "encoder-1"), change)
            with GalleryStore(Path(name)) as fresh:
                expected = everything(fresh.open("shop", "encoder-1"))
            followers = galleries if step % 4 == 3 or step == len(history) - 1 else galleries[:2]
            for gallery in followers:
                gallery.refresh()
                assert everything(gallery) == expected
                assert not gallery.refresh()


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "torch"])
def test_every_kind_of_index_follows(folder, kind):
    random = np.random.default_rng(3)
    with GalleryStore(folder) as one, GalleryStore(folder) as two:
        mine = one.create("shop", D, "encoder-1", IndexSettings(kind=kind))
        theirs = two.open("shop", "encoder-1")
        for seed in range(1, 13):
            chosen = random.permutation(30)[:8].tolist()
            change = ("upsert", chosen, KINDS[seed % 3], seed) if seed % 4 else ("delete", chosen)
            apply(mine, change)
            assert theirs.refresh()
            assert contents(theirs) == contents(mine)
            for item in theirs.page(0, 100, with_vectors=True):
                for target, row in item.vectors.items():
                    assert theirs.search(target, row[None], 1)[0][0].id == item.id


def test_following_reads_only_what_was_changed(pair):
    _, _, mine, theirs = pair
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(n)}) for n in range(20)])
    theirs.refresh()
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(99 + n)}) for n in (3, 21)])
    mine.delete(["i5", "i6"])
    with theirs._journal.transaction(write=False):
        changes = theirs._journal.read(theirs.generation)
        assert not changes.everything
        assert sorted(changes.removed) == ["i5", "i6"]
        assert [[record.id for record in part] for part in changes.written] == [["i3", "i21"]]


def test_follower_behind_the_kept_removals_reads_everything(pair, monkeypatch):
    monkeypatch.setattr("index.journal.KEPT_REMOVALS", 4)
    _, _, mine, theirs = pair
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(n)}) for n in range(20)])
    theirs.refresh()
    for n in range(12):
        mine.delete([f"i{n}"])
    (kept,) = mine._journal._connection.execute("SELECT count(*) FROM removed").fetchone()
    assert kept <= 4
    assert theirs.refresh()
    assert everything(theirs) == everything(mine)


def test_own_change_is_no_news(pair):
    _, _, mine, theirs = pair
    mine.upsert([Item(id="a", vectors={"image": vector(1)})])
    assert not mine.refresh()
    assert theirs.refresh()
    assert not theirs.refresh()
    assert not mine.refresh()
    assert not mine._journal.changed()
    assert not theirs._journal.changed()


def test_refused_change_is_no_news_either_but_the_others_are(pair):
    _, _, mine, theirs = pair
    mine.upsert([Item(id="a", vectors={"image": vector(1)})])
    with pytest.raises(BadItem):
        theirs.upsert([Item(id="", vectors={"image": vector(1)})])
    assert theirs.delete([]) == 0
    assert everything(theirs) == everything(mine)


def test_filter_is_worked_out_anew_after_following(pair):
    _, _, mine, theirs = pair
    mine.upsert([Item(id="a", payload={"n": 1}, vectors={"image": vector(1)})])
    theirs.refresh()
    assert theirs.allowed("image", {"n": 1}).tolist() == [True]
    mine.upsert([Item(id="a", payload={"n": 2}, vectors={"image": vector(1)})])
    theirs.refresh()
    assert theirs.allowed("image", {"n": 1}).tolist() == [False]


def test_gallery_in_memory_has_nobody_to_follow(gallery):
    assert not gallery.refresh()


# Changing


def test_change_is_made_on_top_of_what_another_process_changed(pair):
    """The report counts against the file's content, not against what this process last knew."""
    _, _, mine, theirs = pair
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(n)}) for n in range(4)])
    report = theirs.upsert([Item(id=f"i{n}", vectors={"image": vector(10 + n)}) for n in (3, 4)])
    assert report == (1, 1)
    assert mine.delete(["i4", "nobody"]) == 1
    assert theirs.upsert([Item(id="i4", vectors={"image": vector(1)})]) == (1, 0)
    mine.refresh()
    assert everything(mine) == everything(theirs)
    assert [item.id for item in mine.page(0, 9)] == ["i0", "i1", "i2", "i3", "i4"]


def test_disk_that_fills_up_leaves_what_was_followed(pair):
    _, _, mine, theirs = pair
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(n)}) for n in range(4)])
    connection = theirs._journal._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StorageFull):
        theirs.upsert([Item(id=f"b{n}", text="x" * 3000, vectors={"image": vector(n)}) for n in range(50)])
    assert everything(theirs) == everything(mine)
    mine.delete(["i1"])
    assert theirs.refresh()
    assert everything(theirs) == everything(mine)


def test_many_processes_changing_at_once_lose_nothing(folder):
    """Four writers with a store each, 15 changes each: every item is there, every change counts once."""
    with GalleryStore(folder) as store:
        store.create("shop", D, "encoder-1", IndexSettings())
    failures = []

    def write(who):
        try:
            with GalleryStore(folder) as mine:
                gallery = mine.open("shop", "encoder-1")
                for n in range(15):
                    gallery.upsert([Item(id=f"{who}-{n}", vectors={"image": vector(n)})])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with GalleryStore(folder) as store:
        gallery = store.open("shop", "encoder-1")
        assert (len(gallery), gallery.generation) == (60, 60)


def test_change_that_was_not_committed_does_not_hide_the_one_that_was(pair):
    """Both are generation 1. After an error the file is asked, whatever SQLite says about its version."""
    _, _, mine, theirs = pair
    failing = theirs._journal

    def save_without_commit():
        with failing.transaction(write=True):
            failing.read(0)
            failing.save(generation=1, counts=theirs.counts(), written=[], removed=[])
            raise OSError("no commit")

    with pytest.raises(StorageError, match="no commit"):
        save_without_commit()
    assert failing.changed()
    mine.upsert([Item(id="a", vectors={"image": vector(1)})])
    assert theirs.refresh()
    assert everything(theirs) == everything(mine)


def test_item_that_comes_back_at_its_place_with_another_modality_is_followed(pair, folder):
    """A process that starts anew gives the place of a removed last item to the next one."""
    _, _, mine, theirs = pair
    mine.upsert([Item(id=n, vectors={"image": vector(1)}) for n in "ab"])
    theirs.refresh()
    mine.delete(["b"])
    with GalleryStore(folder) as fresh:
        fresh.open("shop", "encoder-1").upsert([Item(id="b", vectors={"text": vector(2)})])
    theirs.refresh()
    mine.refresh()
    assert theirs.counts() == {"items": 2, "image": 1, "text": 1, "anchor": 0}
    assert everything(theirs) == everything(mine)


def test_id_that_comes_again_is_no_longer_removed(pair, folder):
    _, _, mine, theirs = pair
    mine.upsert([Item(id=n, vectors={"image": vector(1)}) for n in "abc"])
    mine.delete(["a", "b"])
    theirs.upsert([Item(id="a", vectors={"image": vector(2)})])
    assert sql(folder / "shop.sqlite", "SELECT id, generation FROM removed") == [("b", 2)]


def test_calibration_is_known_to_all_who_open_the_gallery(folder):
    with GalleryStore(folder) as one, GalleryStore(folder) as two:
        mine = one.create("shop", D, "encoder-1", IndexSettings(), calibration=MARK)
        theirs = two.open("shop", "encoder-1")
        assert theirs.calibration == two.describe("shop").calibration == MARK
        apply(mine, ("upsert", [0, 1, 2], ("image",), 1))
        assert theirs.refresh()
        apply(theirs, ("upsert", [1, 3], ("image", "text"), 2))
        with pytest.raises(BadItem, match="no anchor"):
            mine.upsert([Item(id="plain", vectors={"image": vector(1)})])
        mine.refresh()
        assert mine.counts() == {"items": 4, "image": 4, "text": 2, "anchor": 4}
        assert everything(mine) == everything(theirs)


@pytest.mark.parametrize("other", [None, MARK._replace(digest="fedcba9876543210")])
def test_file_with_another_calibration_is_another_gallery(folder, other):
    with GalleryStore(folder) as one:
        mine = one.create("shop", D, "encoder-1", IndexSettings(), calibration=MARK)
        apply(mine, ("upsert", [0], ("image",), 1))
        with closing(connect(folder / "shop.sqlite")) as connection, transaction(connection, write=True):
            written = "" if other is None else json.dumps(other._asdict(), sort_keys=True)
            write_manifest(connection, read_manifest(connection, "shop") | {"calibration": written})
        with pytest.raises(GalleryNotFound, match="overwritten with another gallery"):
            mine.refresh()
        assert not mine.usable


# Damage


def test_damage_that_a_follower_meets_takes_the_gallery_out_of_service(pair, folder):
    _, two, mine, theirs = pair
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(n)}) for n in range(4)])
    sql(folder / "shop.sqlite", "UPDATE items SET payload = '{}x' WHERE id = 'i2'")
    with pytest.raises(GalleryCorrupt, match="'i2'"):
        theirs.refresh()
    assert not theirs.usable
    with pytest.raises(GalleryError, match="damaged"):
        theirs.search("image", vector(1)[None], 1)
    with pytest.raises(GalleryCorrupt, match="'i2'"):
        two.open("shop", "encoder-1")


def test_follower_that_does_not_add_up_reads_everything_again(pair, folder):
    """A removal that was lost shows in the counts; the store then opens the gallery anew."""
    _, two, mine, theirs = pair
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(n)}) for n in range(4)])
    theirs.refresh()
    mine.delete(["i2"])
    sql(folder / "shop.sqlite", "DELETE FROM removed")
    again = two.open("shop", "encoder-1")
    assert again is not theirs
    assert everything(again) == everything(mine)


def test_follower_interrupted_halfway_is_loaded_again(pair, monkeypatch):
    _, two, mine, theirs = pair
    mine.upsert([Item(id=f"i{n}", vectors={"image": vector(n)}) for n in range(4)])

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(theirs, "_apply", out_of_memory)
    with pytest.raises(MemoryError):
        theirs.refresh()
    assert not theirs.usable
    assert everything(two.open("shop", "encoder-1")) == everything(mine)


def test_removed_rows_move_together_block_by_block(monkeypatch):
    monkeypatch.setattr("index.rows._MOVED_AT_ONCE", 3)
    rows = Rows(2)
    matrix = np.arange(40, dtype=np.float32).reshape(20, 2)
    rows.append(matrix)
    gone = np.array([2, 3, 7, 19, 11])
    rows.remove(gone)
    assert np.array_equal(rows.matrix(), np.delete(matrix, gone, axis=0))


# Made, deleted, made anew


def test_gallery_made_by_another_process_is_seen(folder):
    with GalleryStore(folder) as one, GalleryStore(folder) as two:
        one.create("shop", D, "encoder-1", IndexSettings(), created_by="job-1")
        assert two.exists("shop")
        assert two.names() == ["shop"]
        assert two.describe("shop").created_by == "job-1"
        with pytest.raises(GalleryExists):
            two.create("shop", D, "encoder-1", IndexSettings())
        assert two.open("shop", "encoder-1").created_by == "job-1"


def test_gallery_deleted_by_another_process_is_gone_for_everyone(pair):
    one, two, mine, theirs = pair
    mine.upsert([Item(id="a", vectors={"image": vector(1)})])
    theirs.refresh()
    two.delete("shop")
    assert not one.exists("shop")
    with pytest.raises(GalleryNotFound, match="deleted by another process"):
        mine.refresh()
    for call in (lambda: mine.search("image", vector(1)[None], 1), lambda: mine.delete(["a"])):
        with pytest.raises(GalleryError, match="deleted by another process"):
            call()
    for call in (one.describe, one.delete, lambda name: one.open(name, "encoder-1")):
        with pytest.raises(GalleryNotFound):
            call("shop")
    assert one.names() == []


def test_change_of_a_gallery_deleted_by_another_process_is_not_acknowledged(pair):
    _, two, mine, _ = pair
    two.delete("shop")
    with pytest.raises(GalleryNotFound, match="deleted by another process"):
        mine.upsert([Item(id="a", vectors={"image": vector(1)})])


def test_gallery_made_anew_under_its_name_is_another_one(pair, folder):
    """The old one's holder neither changes the new one nor, on leaving, takes its log away."""
    one, two, mine, _ = pair
    mine.upsert([Item(id="old", vectors={"image": vector(1)})])
    two.delete("shop")
    new = two.create("shop", D, "encoder-1", IndexSettings())
    new.upsert([Item(id="new", vectors={"image": vector(2)})])
    with pytest.raises(GalleryNotFound):
        mine.upsert([Item(id="lost", vectors={"image": vector(3)})])
    again = one.open("shop", "encoder-1")
    assert again is not mine
    assert [item.id for item in again.page(0, 9)] == ["new"]
    assert (folder / "shop.sqlite-wal").exists()
    new.upsert([Item(id="more", vectors={"image": vector(4)})])
    again.refresh()
    assert everything(again) == everything(new)


def test_description_is_of_now(pair):
    one, two, mine, _ = pair
    mine.upsert([Item(id="a", vectors={"image": vector(1)})])
    assert two.describe("shop").items == 1
    assert two.describe("shop") == one.describe("shop")


def test_deleting_leaves_nothing_behind(pair, folder):
    one, _, mine, theirs = pair
    mine.upsert([Item(id="a", vectors={"image": vector(1)})])
    one.delete("shop")
    assert list(folder.iterdir()) == []
    theirs.close()
    assert list(folder.iterdir()) == []


def test_one_of_many_that_create_a_gallery_at_once_does(folder):
    """Eight stores, twelve names: each name is won once, whoever loses is told so and can open it."""
    barrier = threading.Barrier(8)
    won, failures = [], []

    def create():
        try:
            with GalleryStore(folder) as store:
                barrier.wait()
                for n in range(12):
                    try:
                        store.create(f"g{n}", D, "encoder-1", IndexSettings())
                        won.append(f"g{n}")
                    except GalleryExists:
                        store.open(f"g{n}", "encoder-1")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(won) == sorted(f"g{n}" for n in range(12))


def test_galleries_made_and_deleted_at_once_are_never_mixed_up(folder):
    """Each incarnation holds items of its own maker only, and no log is applied to another one's file."""
    barrier = threading.Barrier(4)
    failures = []

    def churn(who):
        try:
            barrier.wait()
            with GalleryStore(folder) as store:
                for turn in range(10):
                    name = f"{who}-{turn}"
                    with suppress_lost_races():
                        made = store.create("shop", D, "encoder-1", IndexSettings(), created_by=name)
                        made.upsert([Item(id=name, vectors={"image": vector(1)})])
                    with suppress_lost_races():
                        gallery = store.open("shop", "encoder-1")
                        assert {item.id for item in gallery.page(0, 9)} <= {gallery.created_by}
                    with suppress_lost_races():
                        store.delete("shop")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def suppress_lost_races():
    return suppress(GalleryExists, GalleryNotFound)


def test_folder_held_by_another_process_for_too_long_is_reported(folder, monkeypatch):
    monkeypatch.setattr("index.files.WAIT_FOR_LOCK_S", 0.02)
    from index.files import folder_lock

    with GalleryStore(folder) as store:
        with folder_lock(folder, shared=True), pytest.raises(StorageError, match="in use by another process"):
            store.create("shop", D, "encoder-1", IndexSettings())
        assert store.names() == []
        store.create("shop", D, "encoder-1", IndexSettings())


def test_store_can_be_closed_after_its_folder_is_gone(folder):
    with GalleryStore(folder) as store:
        store.create("shop", D, "encoder-1", IndexSettings())
        shutil.rmtree(folder)


# Real processes, killed


WRITER = """
import sys
from pathlib import Path
import numpy as np
from index import GalleryStore, Item

store = GalleryStore(Path(sys.argv[1]))
gallery = store.open("shop", "encoder-1")
turn = gallery.generation
print("ready", flush=True)
while True:
    turn += 1
    if turn % 5 == 0:
        gallery.delete([f"i{n}" for n in range(16)])
    else:
        rows = enumerate(np.random.default_rng(turn).standard_normal((16, 8)))
        gallery.upsert([Item(id=f"i{n}", payload={"turn": turn}, vectors={"image": row}) for n, row in rows])
    print(turn, flush=True)
"""


def test_writers_killed_at_any_moment_leave_whole_changes_to_those_who_follow(folder):
    """kill -9 of a process that writes without a pause, six times, each after some acknowledged changes.

    The follower sees all sixteen items of one turn or none at all, never fewer changes than were
    acknowledged, and at the end what a fresh process reads.
    """
    with GalleryStore(folder) as store:
        gallery = store.create("shop", D, "encoder-1", IndexSettings())
        for cycle in range(6):
            with running(WRITER, folder) as writer:
                acknowledged, enough = 0, gallery.generation + 4 + 3 * cycle
                while acknowledged < enough:
                    acknowledged = int(writer.stdout.readline())
                    if acknowledged % 3:
                        gallery.refresh()
                        check_whole(gallery)
                writer.kill()
                rest = writer.stdout.read().split()
            acknowledged = max([acknowledged, *map(int, rest)])
            gallery.refresh()
            check_whole(gallery)
            assert acknowledged <= gallery.generation <= acknowledged + 1
        with GalleryStore(folder) as fresh:
            assert everything(gallery) == everything(fresh.open("shop", "encoder-1"))
    assert sql(folder / "shop.sqlite", "PRAGMA integrity_check") == [("ok",)]


def check_whole(gallery):
    turns = [item.payload["turn"] for item in gallery.page(0, 99)]
    assert turns in ([], [gallery.generation] * 16)


@contextmanager
def running(script, *arguments):
    """A Python process that has printed "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


CREATOR = """
import sys
from pathlib import Path
from index import GalleryExists, GalleryStore, IndexSettings

store = GalleryStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for n in range(10):
    try:
        store.create(f"g{n}", 8, "encoder-1", IndexSettings())
        print(f"g{n}")
    except GalleryExists:
        assert len(store.open(f"g{n}", "encoder-1")) == 0
print("done")
"""


def test_two_processes_in_a_new_folder_share_the_galleries_out(folder):
    with running(CREATOR, folder) as one, running(CREATOR, folder) as two:
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        lines = [*one.stdout.read().split(), *two.stdout.read().split()]
    assert sorted(lines) == sorted(["done", "done", *(f"g{n}" for n in range(10))])


# Files of formats 1 to 3


FORMAT_1 = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL, text TEXT,
    image_vector BLOB, text_vector BLOB, checksum BLOB NOT NULL
);
"""
FORMAT_2 = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL, text TEXT,
    image_vector BLOB, text_vector BLOB, generation INTEGER NOT NULL, checksum BLOB NOT NULL
);
CREATE INDEX items_by_generation ON items (generation);
CREATE TABLE removed (id TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX removed_by_generation ON removed (generation);
INSERT INTO removed VALUES ('gone', 6);
"""
FORMAT_3 = FORMAT_2.replace("text_vector BLOB,", "text_vector BLOB, anchor_vector BLOB,")


def old_row(n, *generation):
    """Item i{n} with its checksum as formats 1 (without generation), 2 and 3 have it."""
    image, text = (
        (vector(n).tobytes(), None) if n % 2 == 0 else (vector(n).tobytes(), vector(-n % 99).tobytes())
    )
    row = (2 * n, f"i{n}", json.dumps({"n": n}), None, image, text)
    # What came from format 1 has generation 0 in format 2 and its checksum without one.
    counted = [number for number in generation if number]
    head = json.dumps([*row[:4], False, text is None, *counted])
    return *row, *generation, blake2b(head.encode() + image + (text or b""), digest_size=16).digest()


@pytest.fixture(params=[1, 2, 3])
def old(request, folder):
    """A gallery `shop` as an old format had it, at generation 7: items i0 to i4, sequences 0, 2, 4, 6, 8."""
    folder.mkdir()
    path = folder / "shop.sqlite"
    manifest = {
        "format": str(request.param), "name": "shop", "dimension": str(D), "fingerprint": "encoder-1",
        "settings": json.dumps(IndexSettings().to_dict(), sort_keys=True), "created_at": "1700000000.5",
        "generation": "7", "items": "5", "image": "5", "text": "2",
    }  # fmt: skip
    tables, rows = FORMAT_1, [old_row(n) for n in range(5)]
    if request.param >= 2:
        tables, rows = FORMAT_2, [old_row(n, generation) for n, generation in enumerate((0, 0, 3, 5, 7))]
        manifest |= {"created_by": "job-1", "history_from": "2"}
    if request.param == 3:
        tables, rows = FORMAT_3, [(*row[:6], None, *row[6:]) for row in rows]
        manifest |= {"calibration": "", "anchor": "0"}
    checksum = blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for statement in filter(str.strip, tables.split(";")):
            connection.execute(statement)
        places = ", ".join("?" for _ in rows[0])
        connection.executemany(f"INSERT INTO items VALUES ({places})", rows)
        connection.executemany(
            "INSERT INTO manifest VALUES (?, ?)", [*manifest.items(), ("checksum", checksum)]
        )
    return path


def manifest_of(path):
    return dict(sql(path, "SELECT key, value FROM manifest"))


def columns_of(path):
    return [column[1] for column in sql(path, "PRAGMA table_info(items)")]


def test_old_file_is_described_without_being_touched(old, folder):
    before = old.read_bytes()
    made_by = manifest_of(old).get("created_by", "")
    with GalleryStore(folder) as store:
        info = store.describe("shop")
    assert (info.generation, info.items, info.created_at, info.created_by) == (7, 5, 1700000000.5, made_by)
    assert (info.targets, info.calibration) == ({"image": 5, "text": 2, "anchor": 0}, None)
    assert old.read_bytes() == before


def test_old_file_is_brought_to_the_new_format_when_it_is_opened(old, folder):
    checksums = sql(old, "SELECT checksum FROM items ORDER BY sequence")
    with GalleryStore(folder) as one, GalleryStore(folder) as two:
        mine, theirs = one.open("shop", "encoder-1"), two.open("shop", "encoder-1")
        assert [item.payload["n"] for item in mine.page(0, 9)] == [0, 1, 2, 3, 4]
        assert np.array_equal(mine.matrix("image"), np.stack([vector(n) for n in range(5)]))
        assert np.array_equal(mine.matrix("text"), np.stack([vector(-n % 99) for n in (1, 3)]))
        assert mine.calibration is None
        assert mine.generation == 8  # a process of the old version would refuse to write now
        assert sql(old, "SELECT checksum FROM items ORDER BY sequence") == checksums
        new = Item(id="i5", vectors={"image": vector(5)}, preview=b"five")
        mine.upsert([Item(id="i2", vectors={"text": vector(1)}), new])
        mine.delete(["i0"])
        theirs.refresh()
        assert [item.id for item in theirs.page(0, 9)] == ["i1", "i3", "i4", "i2", "i5"]
        with pytest.raises(BadItem, match="no calibration"):
            theirs.upsert([Item(id="i6", vectors={"image": vector(1), "anchor": vector(2)})])
        with GalleryStore(folder) as fresh:
            third = fresh.open("shop", "encoder-1")
            assert everything(mine) == everything(theirs) == everything(third)
    assert manifest_of(old)["format"] == "4"


def test_follower_of_an_old_file_reads_only_what_was_changed(old, folder):
    with GalleryStore(folder) as one, GalleryStore(folder) as two:
        mine, theirs = one.open("shop", "encoder-1"), two.open("shop", "encoder-1")
        mine.upsert([Item(id="i2", vectors={"image": vector(1)})])
        with theirs._journal.transaction(write=False):
            changes = theirs._journal.read(theirs.generation)
            assert not changes.everything
            assert [[record.id for record in part] for part in changes.written] == [["i2"]]
            assert list(changes.removed) == []


def test_damaged_old_file_is_refused_and_stays_as_it_is(old, folder):
    sql(old, "UPDATE items SET payload = '{}' WHERE id = 'i3'")
    before = manifest_of(old), columns_of(old)
    for _ in range(2):
        with GalleryStore(folder) as store, pytest.raises(GalleryCorrupt, match="'i3'"):
            store.open("shop", "encoder-1")
    assert (manifest_of(old), columns_of(old)) == before
    assert "preview_version" not in before[1]
    assert sql(old, "SELECT name FROM sqlite_master WHERE name = 'previews'") == []


def test_migration_that_is_interrupted_leaves_the_old_file(old, folder, monkeypatch):
    before = manifest_of(old), columns_of(old)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, GalleryStore(folder) as store:
        patch.setattr("index.journal.write_manifest", no_space)
        with pytest.raises(StorageFull):
            store.open("shop", "encoder-1")
    assert (manifest_of(old), columns_of(old)) == before
    with GalleryStore(folder) as store:
        assert len(store.open("shop", "encoder-1")) == 5


def test_row_cannot_pass_for_one_of_the_old_format(old, folder):
    with GalleryStore(folder) as store:
        store.open("shop", "encoder-1").upsert([Item(id="i9", vectors={"image": vector(9)})])
    sql(old, "UPDATE items SET generation = 0 WHERE id = 'i9'")
    with GalleryStore(folder) as store, pytest.raises(GalleryCorrupt, match="'i9'"):
        store.open("shop", "encoder-1")


def test_process_that_has_the_file_open_refuses_to_write_in_a_newer_format(pair, folder):
    """What a process of an older version does when another one has brought the file to its format."""
    _, _, mine, _ = pair
    mine.upsert([Item(id="a", vectors={"image": vector(1)})])
    newer = manifest_of(folder / "shop.sqlite") | {"format": "5"}
    sql(folder / "shop.sqlite", "UPDATE manifest SET value = '5' WHERE key = 'format'")
    with pytest.raises(GalleryCorrupt, match="format '5'"):
        mine.upsert([Item(id="b", vectors={"image": vector(2)})])
    assert not mine.usable
    assert manifest_of(folder / "shop.sqlite") == newer
    assert sql(folder / "shop.sqlite", "SELECT id FROM items") == [("a",)]


def test_several_processes_that_open_an_old_file_at_once_all_succeed(old, folder):
    barrier = threading.Barrier(6)
    seen, failures = [], []

    def open_it():
        try:
            with GalleryStore(folder) as store:
                barrier.wait()
                seen.append(store.open("shop", "encoder-1").generation)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == [8] * 6
