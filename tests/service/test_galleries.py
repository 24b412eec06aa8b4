"""Two servers' galleries in one folder; the queue and HTTP are not here."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from index.base import FingerprintMismatch, GalleryCorrupt, GalleryExists, GalleryNotFound, StorageError
from index.store import GalleryStore
from service.errors import BadRequest
from service.galleries import Galleries
from service.messages import NewItem
from tests.toy import FEATURES, ToyEncoder, picture, sentence


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "galleries"


@pytest.fixture
def serve(folder):
    """Makes the galleries of one more process."""
    made = []

    def make(encoder=None, root=folder):
        made.append(Galleries(GalleryStore(root), encoder or ToyEncoder(), default_kind="flat", batch_size=4))
        return made[-1]

    yield make
    for galleries in made:
        galleries.close()


@pytest.fixture
def one(serve):
    return serve()


@pytest.fixture
def two(one, serve):
    return serve()


def things(*numbers):
    return [NewItem(id=f"i{n}", text=sentence(n), pixels=picture(n), payload={"n": n}) for n in numbers]


def upsert(galleries, name, items):
    slices = galleries.upsert(name, items)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            return done.value


def sql(path, statement):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


# Following


def test_gallery_is_usable_as_another_process_has_just_left_it(one, two):
    one.create("shop", None)
    assert two.usable("shop").counts()["items"] == 0
    assert upsert(one, "shop", things(0, 1, 2)) == {"added": 3, "replaced": 0, "items": 3}
    assert len(two.usable("shop")) == 3
    assert two.delete_items("shop", ["i1", "i9"]) == 1
    assert [item["id"] for item in one.list_items("shop", 0, 9)["items"]] == ["i0", "i2"]
    assert upsert(one, "shop", things(1, 2)) == {"added": 1, "replaced": 1, "items": 3}
    assert two.get_item("shop", "i1")["payload"] == {"n": 1}


def test_gallery_stays_the_same_object_while_it_is_followed(one, two):
    one.create("shop", None)
    seen = two.usable("shop")
    upsert(one, "shop", things(0))
    assert two.usable("shop") is seen


def test_all_descriptions_are_of_now(one, two):
    one.create("shop", {"kind": "torch"})
    upsert(one, "shop", things(0, 1))
    assert two.describe("shop") == one.describe("shop")
    assert two.list() == one.list() == [one.describe("shop")]
    assert two.list()[0]["items"] == 2
    one.delete("shop")
    assert two.list() == []


def test_cards_follow_when_synced_and_an_old_picture_stays_as_it_was(one, two):
    one.create("shop", None)
    one.create("attic", None)
    assert two.cards == {}
    two.sync()
    picture_before = two.cards
    assert set(picture_before) == {"shop", "attic"}
    assert picture_before["shop"].targets == {}
    upsert(one, "shop", things(0))
    one.delete("attic")
    assert two.cards is picture_before
    two.sync()
    assert {name: card.targets for name, card in two.cards.items()} == {"shop": {"image": 1, "text": 1}}
    assert set(picture_before) == {"shop", "attic"}
    assert picture_before["shop"].targets == {}


def test_cards_are_replaced_only_when_something_has_changed(one, two):
    one.create("shop", None)
    two.sync()
    before = two.cards
    two.sync()
    two.usable("shop")
    assert two.cards is before
    upsert(one, "shop", things(0))
    two.usable("shop")
    assert two.cards["shop"].targets == {"image": 1, "text": 1}


def test_card_is_had_from_any_thread_without_opening_what_another_process_made(one, two):
    def card():
        with ThreadPoolExecutor() as pool:
            return pool.submit(two.card, "shop").result()

    with pytest.raises(GalleryNotFound):
        card()
    one.create("shop", None)
    assert card().targets == {}
    upsert(one, "shop", things(0, 1))
    assert card().targets == {"image": 2, "text": 2}
    assert two.cards == {}
    two.sync()
    assert card() is two.cards["shop"]


def test_card_of_a_refused_gallery_says_why(one, serve, folder):
    one.create("shop", None)
    upsert(one, "shop", things(0))
    with pytest.raises(FingerprintMismatch):
        serve(ToyEncoder(seed=1)).card("shop")
    sql(folder / "shop.sqlite", "UPDATE items SET payload = '{}'")
    with pytest.raises(GalleryCorrupt, match="'i0'"):
        serve().card("shop")
    with pytest.raises(GalleryNotFound):
        one.card("..")


def test_gallery_deleted_by_another_process_is_unknown_at_once(one, two):
    one.create("shop", None)
    two.sync()
    one.delete("shop")
    assert not two.exists("shop")
    for call in (two.usable, two.describe, two.delete, lambda name: two.get_item(name, "i0")):
        with pytest.raises(GalleryNotFound, match="'shop'"):
            call("shop")
    assert two.cards == {}


def test_gallery_made_anew_by_another_process_is_the_new_one(one, two):
    one.create("shop", None)
    upsert(one, "shop", things(0))
    old = two.usable("shop")
    one.delete("shop")
    one.create("shop", {"kind": "torch"})
    upsert(one, "shop", things(5, 6))
    new = two.usable("shop")
    assert new is not old
    assert [item.id for item in new.page(0, 9)] == ["i5", "i6"]
    assert two.describe("shop")["index"]["kind"] == "torch"


def test_items_go_to_the_gallery_that_there_is_when_they_are_encoded(one, two):
    one.create("shop", None)
    encoding = two.upsert("shop", things(0, 1))
    next(encoding)
    one.delete("shop")
    one.create("shop", None)
    for _ in encoding:
        pass
    assert len(one.usable("shop")) == 2


def test_items_for_a_gallery_deleted_while_they_were_encoded_are_refused(one, two):
    one.create("shop", None)
    encoding = two.upsert("shop", things(0, 1))
    next(encoding)
    one.delete("shop")
    with pytest.raises(GalleryNotFound):
        for _ in encoding:
            pass


def test_unknown_gallery_is_refused_before_anything_is_encoded(one):
    with pytest.raises(GalleryNotFound):
        next(one.upsert("shop", things(0)))
    assert one._encoder.towers["image"].forwards == 0


def test_item_without_anything_to_encode_changes_nothing(one):
    one.create("shop", None)
    with pytest.raises(BadRequest, match="'empty'"):
        upsert(one, "shop", [*things(0), NewItem(id="empty")])
    assert len(one.usable("shop")) == 0


@pytest.mark.parametrize("name", ["", "..", "a/b", "UPPER", "x" * 65])
def test_impossible_name_is_just_unknown(one, name):
    assert not one.exists(name)
    for call in (one.usable, one.describe, one.delete):
        with pytest.raises(GalleryNotFound):
            call(name)
    one.delete(name, again=True)


def test_galleries_in_memory_work_alike(serve):
    galleries = serve(root=None)
    galleries.create("shop", None, job="j1")
    galleries.create("shop", None, job="j1")
    upsert(galleries, "shop", things(0))
    galleries.sync()
    assert galleries.cards["shop"].targets == {"image": 1, "text": 1}
    galleries.delete("shop")
    assert galleries.cards == {}


# Refused galleries


def test_gallery_of_another_encoder_is_refused_until_it_is_made_anew(one, serve):
    one.create("shop", None)
    upsert(one, "shop", things(0))
    other = serve(ToyEncoder(seed=1))
    assert other.cards == {}
    with pytest.raises(FingerprintMismatch):
        other.usable("shop")
    description = other.describe("shop")
    assert (description["status"], description["items"]) == ("refused", 1)
    upsert(one, "shop", things(1))
    assert other.list()[0]["items"] == 2
    one.delete("shop")
    with pytest.raises(GalleryNotFound):
        other.usable("shop")
    other.create("shop", None)
    assert other.usable("shop").fingerprint == "toy-1"
    with pytest.raises(FingerprintMismatch):
        one.usable("shop")
    assert one.cards == {}


def test_refused_file_is_not_read_again_as_long_as_it_is_the_same(one, serve, monkeypatch):
    one.create("shop", None)
    other = serve(ToyEncoder(seed=1))
    opened = []
    monkeypatch.setattr(GalleryStore, "open", lambda self, name, fingerprint: opened.append(name))
    for _ in range(3):
        with pytest.raises(FingerprintMismatch):
            other.usable("shop")
    assert opened == []


def test_gallery_found_damaged_while_followed_is_refused_and_comes_back_when_repaired(one, two, folder):
    one.create("shop", None)
    two.sync()
    upsert(one, "shop", things(0, 1))
    sql(folder / "shop.sqlite", "UPDATE items SET payload = '{\"n\":7}' WHERE id = 'i1'")
    with pytest.raises(GalleryCorrupt, match="'i1'"):
        two.usable("shop")
    assert two.cards == {}
    assert two.describe("shop")["status"] == "refused"
    sql(folder / "shop.sqlite", "UPDATE items SET payload = '{\"n\":1}' WHERE id = 'i1'")
    assert len(two.usable("shop")) == 2
    assert "shop" in two.cards


def test_gallery_that_cannot_be_read_just_now_is_not_given_up(one, two, monkeypatch):
    one.create("shop", None)
    one.create("attic", None)
    two.sync()
    upsert(one, "attic", things(0))
    with monkeypatch.context() as patch:

        def busy():
            raise StorageError("in use")

        patch.setattr(two.usable("shop"), "refresh", busy)
        with pytest.raises(StorageError, match="in use"):
            two.usable("shop")
        two.sync()
        assert two.cards["attic"].targets == {"image": 1, "text": 1}
        assert "shop" in two.cards
    assert two.usable("shop").usable


# Jobs that are delivered again


def test_job_delivered_again_makes_its_gallery_once(one, two):
    first = one.create("shop", None, job="job-1")
    upsert(one, "shop", things(0))
    again = two.create("shop", None, job="job-1")
    assert again["created_at"] == first["created_at"]
    assert again["items"] == 1
    for job in ("job-2", None, ""):
        with pytest.raises(GalleryExists):
            two.create("shop", None, job=job)


def test_gallery_made_without_a_job_is_nobodys(one):
    one.create("shop", None)
    for job in (None, ""):
        with pytest.raises(GalleryExists):
            one.create("shop", None, job=job)


def test_damaged_gallery_is_no_jobs_gallery(one, folder, serve):
    one.create("shop", None, job="job-1")
    one.close()
    (folder / "shop.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(GalleryExists):
        serve().create("shop", None, job="job-1")


def test_deletion_delivered_again_succeeds_and_a_new_one_does_not(one, two):
    one.create("shop", None)
    one.delete("shop", again=True)
    two.delete("shop", again=True)
    with pytest.raises(GalleryNotFound):
        two.delete("shop")


def test_items_delivered_again_are_there_once(one):
    one.create("shop", None)
    vector = np.eye(FEATURES, dtype=np.float32)[0]
    item = NewItem(id="i0", embeddings={"image": vector})
    upsert(one, "shop", [item])
    assert upsert(one, "shop", [item]) == {"added": 0, "replaced": 1, "items": 1}
