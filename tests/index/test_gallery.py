from __future__ import annotations

import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest

from index import (
    BadFilter,
    BadItem,
    BadVector,
    DuplicateId,
    Gallery,
    GalleryError,
    IndexSettings,
    Item,
    ItemNotFound,
    StorageFull,
    UnknownTarget,
    UpsertReport,
)

D = 8


def ids(hits):
    return [[hit.id for hit in row] for row in hits]


def contents(gallery):
    """Everything that can be seen of a gallery."""
    pages = gallery.page(0, 10**6, with_vectors=True)
    return gallery.generation, [
        (item.id, item.payload, item.text, {t: v.tolist() for t, v in item.vectors.items()}) for item in pages
    ]


# Search


def test_items_are_found_by_their_own_vectors_in_each_target(gallery, items):
    gallery.upsert(items)
    for target, first in (("image", 0), ("text", 2)):
        for item in items[first : first + 4]:
            (hits,) = gallery.search(target, item.vectors[target][None], 2)
            assert hits[0].id == item.id
            assert hits[0].score == pytest.approx(1, abs=1e-6)
            assert hits[0].payload == item.payload
            assert len(hits) == 2


def test_targets_have_positions_of_their_own(gallery, items):
    gallery.upsert(items)
    assert (len(gallery), gallery.count("image"), gallery.count("text")) == (6, 4, 4)
    assert gallery.targets() == ("image", "text")
    assert gallery.counts() == {"items": 6, "image": 4, "text": 4, "anchor": 0}
    _, positions = gallery.search_raw("text", items[2].vectors["text"][None], 1)
    assert positions.tolist() == [[0]]


def test_one_search_serves_candidates_and_hits(gallery, items):
    gallery.upsert(items)
    queries = np.stack([items[n].vectors["image"] for n in (3, 1)])
    scores, positions = gallery.search_raw("image", queries, 3)
    assert scores.shape == positions.shape == (2, 3)
    assert np.array_equal(gallery.vectors("image", positions[:, 0]), queries)
    assert [len(row) for row in gallery.hits("image", scores, positions, 2)] == [2, 2]
    assert ids(gallery.hits("image", scores, positions, 1)) == [["item-3"], ["item-1"]]


def test_k_beyond_the_size_gives_all(gallery, items):
    gallery.upsert(items)
    (hits,) = gallery.search("image", items[0].vectors["image"][None], 100)
    assert len(hits) == 4
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_empty_gallery_finds_nothing(gallery, unit):
    assert gallery.search("image", unit(3), 5) == [[], [], []]
    assert gallery.search("image", unit(3), 5, {"colour": "red"}) == [[], [], []]
    assert gallery.targets() == ()
    assert gallery.page(0, 10) == []
    assert gallery.matrix("image").shape == (0, D)


def test_target_without_vectors_finds_nothing(gallery, items):
    gallery.upsert(items[:2])
    assert gallery.search("text", items[0].vectors["image"][None], 5) == [[]]


def test_single_item_is_found_at_any_distance(gallery, items):
    gallery.upsert(items[:1])
    assert ids(gallery.search("image", -items[0].vectors["image"][None], 5)) == [["item-0"]]


@pytest.mark.parametrize("call", ["search", "count", "allowed", "vectors", "matrix"])
def test_unknown_target_is_refused(gallery, unit, call):
    arguments = {"search": (unit(1), 3), "vectors": (np.array([0]),)}.get(call, ())
    with pytest.raises(UnknownTarget, match="'audio'"):
        getattr(gallery, call)("audio", *arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_query_that_is_not_finite_is_refused(gallery, items, bad):
    gallery.upsert(items)
    with pytest.raises(BadVector, match="query"):
        gallery.search("image", np.full((1, D), bad, dtype=np.float32), 3)


def test_query_of_the_wrong_size_is_refused(gallery, items, unit):
    gallery.upsert(items)
    with pytest.raises(BadVector, match="8 numbers"):
        gallery.search("image", unit(1, dimension=9), 3)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "torch"])
def test_every_kind_of_index_serves_a_gallery(items, kind):
    gallery = Gallery("shop", D, "encoder-1", IndexSettings(kind=kind), 0.0)
    gallery.upsert(items)
    gallery.delete(["item-1"])
    assert ids(gallery.search("image", items[3].vectors["image"][None], 1, effort=16)) == [["item-3"]]


# Filters


def test_filter_leaves_only_what_matches(gallery, items):
    gallery.upsert(items)
    query = items[0].vectors["image"][None]
    (hits,) = gallery.search("image", query, 10, {"colour": "red"})
    assert {hit.id for hit in hits} == {"item-1", "item-3"}
    assert gallery.search("image", query, 10, {"colour": "green"}) == [[]]


def test_filter_is_worked_out_once_until_the_gallery_changes(gallery, items):
    gallery.upsert(items)
    mask = gallery.allowed("image", {"colour": "red", "number": {"lt": 3}})
    assert mask.tolist() == [False, True, False, False]
    assert gallery.allowed("image", {"number": {"lt": 3}, "colour": "red"}) is mask
    assert gallery.allowed("text", {"colour": "red", "number": {"lt": 3}}).tolist() == [False] * 4
    gallery.upsert([dataclasses.replace(items[0], payload={"colour": "red", "number": 0})])
    assert gallery.allowed("image", {"colour": "red", "number": {"lt": 3}}).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_no_filter_is_no_mask_but_a_bad_one_is_refused(gallery, items):
    gallery.upsert(items)
    assert gallery.allowed("image", None) is None
    with pytest.raises(BadFilter):
        gallery.search("image", items[0].vectors["image"][None], 1, {"colour": {"near": "red"}})


def test_old_filters_make_room_for_new_ones(gallery, items):
    gallery.upsert(items)
    first = gallery.allowed("image", {"number": 0})
    for number in range(1, 70):
        gallery.allowed("image", {"number": number})
    again = gallery.allowed("image", {"number": 0})
    assert again is not first
    assert np.array_equal(again, first)


# Items


def test_item_comes_back_as_it_was_given(gallery, items):
    gallery.upsert(items)
    for item in items:
        back = gallery.get(item.id)
        assert (back.id, back.payload, back.text) == (item.id, item.payload, item.text)
        assert set(back.vectors) == set(item.vectors)
        for target, vector in item.vectors.items():
            assert np.array_equal(back.vectors[target], vector)


def test_pages_run_through_all_items_in_order(gallery, items):
    gallery.upsert(items)
    assert [item.id for item in gallery.page(0, 4)] == ["item-0", "item-1", "item-2", "item-3"]
    assert [item.id for item in gallery.page(4, 4)] == ["item-4", "item-5"]
    assert gallery.page(6, 4) == []
    assert gallery.page(0, 1)[0].vectors == {}
    assert set(gallery.page(2, 1, with_vectors=True)[0].vectors) == {"image", "text"}
    with pytest.raises(ValueError, match="negative"):
        gallery.page(-1, 3)


def test_missing_item_is_reported(gallery):
    with pytest.raises(ItemNotFound, match="'nobody'"):
        gallery.get("nobody")
    assert "nobody" not in gallery


def test_payload_is_a_copy(gallery, items):
    payload = {"tags": ["new"]}
    gallery.upsert([dataclasses.replace(items[0], payload=payload)])
    payload["tags"].append("changed")
    assert gallery.get("item-0").payload == {"tags": ["new"]}


# Changes


def test_report_tells_added_from_replaced(gallery, items):
    assert gallery.upsert(items[:3]) == UpsertReport(added=3, replaced=0)
    assert gallery.upsert(items[2:5]) == UpsertReport(added=2, replaced=1)
    assert gallery.generation == 2


def test_replaced_item_keeps_its_place(gallery, items, unit):
    gallery.upsert(items)
    (vector,) = unit(1, seed=7)
    gallery.upsert([Item(id="item-1", vectors={"image": vector})])
    assert [item.id for item in gallery.page(0, 3)] == ["item-0", "item-1", "item-2"]
    assert gallery.get("item-1").payload == {}
    assert gallery.get("item-1").text is None
    assert np.array_equal(gallery.matrix("image")[1], vector)


def test_item_whose_modalities_change_moves_to_the_end(gallery, items, unit):
    gallery.upsert(items)
    (vector,) = unit(1, seed=7)
    report = gallery.upsert([Item(id="item-1", vectors={"text": vector})])
    assert report == UpsertReport(added=0, replaced=1)
    assert [item.id for item in gallery.page(0, 10)][-1] == "item-1"
    assert gallery.counts() == {"items": 6, "image": 3, "text": 5, "anchor": 0}
    assert ids(gallery.search("text", vector[None], 1)) == [["item-1"]]
    assert ids(gallery.search("image", items[1].vectors["image"][None], 9))[0].count("item-1") == 0


def test_deleting_says_how_many_were_there(gallery, items):
    gallery.upsert(items)
    assert gallery.delete(["item-1", "nobody", "item-4", "item-1"]) == 2
    assert gallery.delete(["item-1"]) == 0
    assert gallery.generation == 2
    assert gallery.counts() == {"items": 4, "image": 3, "text": 3, "anchor": 0}
    assert ids(gallery.search("image", items[2].vectors["image"][None], 1)) == [["item-2"]]
    assert ids(gallery.search("text", items[5].vectors["text"][None], 1)) == [["item-5"]]


def test_everything_can_be_deleted_and_added_again(gallery, items):
    gallery.upsert(items)
    assert gallery.delete(item.id for item in items) == 6
    assert gallery.search("image", items[0].vectors["image"][None], 3) == [[]]
    gallery.upsert(items[::-1])
    assert ids(gallery.search("image", items[0].vectors["image"][None], 1)) == [["item-0"]]


def test_empty_upsert_is_no_change(gallery):
    assert gallery.upsert([]) == UpsertReport(0, 0)
    assert gallery.generation == 0


def test_random_changes_keep_every_item_findable(gallery, unit):
    """A plain dict of id -> vectors, changed in step, says what the gallery must hold."""
    random = np.random.default_rng(5)
    expected = {}
    for step in range(60):
        chosen = [f"n{n}" for n in random.permutation(30)[: random.integers(1, 8)]]
        if random.random() < 0.3:
            gallery.delete(chosen)
            for name in chosen:
                expected.pop(name, None)
        else:
            rows = unit(2 * len(chosen), seed=step).reshape(-1, 2, D)
            kinds = [("image",), ("text",), ("image", "text")]
            new = {
                name: dict(zip(kinds[random.integers(3)], pair, strict=False))
                for name, pair in zip(chosen, rows, strict=True)
            }
            gallery.upsert([Item(id=name, vectors=vectors) for name, vectors in new.items()])
            expected.update(new)
        assert len(gallery) == len(expected)
        for name, vectors in expected.items():
            assert set(gallery.get(name).vectors) == set(vectors)
            for target, vector in vectors.items():
                assert ids(gallery.search(target, vector[None], 1)) == [[name]]


# Vectors


def test_unit_vector_keeps_its_bits_and_another_is_scaled(gallery, unit):
    (one,) = unit(1)
    gallery.upsert([Item(id="a", vectors={"image": one}), Item(id="b", vectors={"image": one * 5})])
    stored = gallery.matrix("image")
    assert stored[0].tobytes() == one.tobytes()
    assert np.linalg.norm(stored[1].astype(np.float64)) == pytest.approx(1, abs=1e-6)
    assert np.allclose(stored[1], one, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e30, 3e38])
def test_very_short_and_very_long_vectors_are_scaled_too(gallery, scale):
    vector = np.full(D, scale, dtype=np.float32)
    gallery.upsert([Item(id="a", vectors={"image": vector})])
    assert gallery.matrix("image")[0] == pytest.approx([D**-0.5] * D, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_other_number_types_are_taken(gallery, dtype):
    gallery.upsert([Item(id="a", vectors={"image": np.array([3, 4] + [0] * 6, dtype=dtype)})])
    assert gallery.matrix("image")[0].tolist() == pytest.approx([0.6, 0.8] + [0] * 6)


@pytest.mark.parametrize(
    ("vector", "complaint"),
    [
        (np.ones(D - 1), "8 real numbers"),
        (np.ones((1, D)), "8 real numbers"),
        (np.ones(D, dtype=complex), "8 real numbers"),
        (np.array(["1"] * D), "8 real numbers"),
        (np.zeros(D), "length zero"),
        (np.array([np.nan] + [1] * (D - 1)), "NaN or infinity"),
        (np.array([np.inf] + [1] * (D - 1)), "NaN or infinity"),
        (np.full(D, 1e200), "NaN or infinity"),
    ],
)
def test_bad_vector_is_refused_by_its_items_name_and_nothing_changes(gallery, items, vector, complaint):
    gallery.upsert(items[:2])
    before = contents(gallery)
    with pytest.raises(BadVector, match=f"'bad'.*{complaint}"):
        gallery.upsert([items[2], Item(id="bad", vectors={"text": vector})])
    assert contents(gallery) == before


def test_places_of_all_are_those_of_items_with_every_target(gallery, items):
    gallery.upsert(items)
    images, texts = gallery.places_of_all(("image", "text"))
    for target, places in (("image", images), ("text", texts)):
        expected = np.stack([items[n].vectors[target] for n in (2, 3)])
        assert np.array_equal(gallery.vectors(target, places), expected)


# Items that are refused


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"id": ""}, BadItem),
        ({"id": "x" * 513}, BadItem),
        ({"id": 7}, BadItem),
        ({"id": ["x"]}, BadItem),
        ({"id": "\ud800"}, BadItem),
        ({"text": b"bytes"}, BadItem),
        ({"text": "\ud800"}, BadItem),
        ({"payload": [1]}, BadItem),
        ({"payload": {"x": float("nan")}}, BadItem),
        ({"payload": {"x": object()}}, BadItem),
        ({"vectors": {}}, BadItem),
        ({"vectors": {"audio": np.ones(D)}}, UnknownTarget),
        ({"vectors": {"image": np.ones(D), "anchor": np.ones(D)}}, BadItem),
        ({"vectors": {"anchor": np.ones(D)}}, BadItem),
    ],
)
def test_bad_item_is_refused_and_nothing_changes(gallery, items, change, error):
    gallery.upsert(items[:2])
    before = contents(gallery)
    with pytest.raises(error):
        gallery.upsert([items[2], dataclasses.replace(items[3], **change)])
    assert contents(gallery) == before


def test_endless_payload_is_refused(gallery, items):
    payload = {}
    payload["self"] = payload
    with pytest.raises(BadItem, match="JSON"):
        gallery.upsert([dataclasses.replace(items[0], payload=payload)])


def test_duplicate_ids_in_one_call_are_refused_and_nothing_changes(gallery, items):
    gallery.upsert(items[:2])
    before = contents(gallery)
    with pytest.raises(DuplicateId, match="'item-2' comes 2 times"):
        gallery.upsert([items[2], items[3], items[2]])
    assert contents(gallery) == before


# Anchors


def test_anchors_are_a_target_like_the_others(calibrated, anchored):
    calibrated.upsert(anchored)
    assert calibrated.targets() == ("image", "text", "anchor")
    assert calibrated.counts() == {"items": 6, "image": 4, "text": 4, "anchor": 6}
    anchors = np.stack([item.vectors["anchor"] for item in anchored])
    assert np.array_equal(calibrated.matrix("anchor"), anchors)
    assert ids(calibrated.search("anchor", anchors, 1)) == [[item.id] for item in anchored]
    positions = calibrated.positions("anchor", ["item-4", "nobody", "item-0"])
    assert positions.tolist() == [4, -1, 0]
    assert np.array_equal(calibrated.vectors("anchor", positions[[0, 2]]), anchors[[4, 0]])


def test_items_come_back_with_their_anchors(calibrated, anchored):
    calibrated.upsert(anchored)
    for back, item in zip(calibrated.page(0, 6, with_vectors=True), anchored, strict=True):
        assert list(back.vectors) == [t for t in ("image", "text", "anchor") if t in item.vectors]
        for target, vector in item.vectors.items():
            assert np.array_equal(back.vectors[target], vector)
    assert calibrated.page(0, 1)[0].vectors == {}


def test_hits_tell_which_modalities_an_item_has_by_itself(calibrated, gallery, items, anchored):
    calibrated.upsert(anchored)
    calibrated.upsert([dataclasses.replace(anchored[0], payload={"again": True})])
    gallery.upsert(items)
    both = {"image", "text"}
    expected = [{"image"}, {"image"}, both, both, {"text"}, {"text"}]
    (hits,) = calibrated.search("anchor", anchored[0].vectors["anchor"][None], 6)
    assert {hit.id: hit.modalities for hit in hits} == {f"item-{n}": own for n, own in enumerate(expected)}
    (hits,) = gallery.search("image", items[0].vectors["image"][None], 6)
    assert {hit.id: hit.modalities for hit in hits} == {f"item-{n}": expected[n] for n in range(4)}


@pytest.mark.parametrize("lacking", [{"image"}, {"image", "text"}])
def test_item_without_an_anchor_is_refused_by_a_calibrated_gallery(calibrated, anchored, lacking, unit):
    calibrated.upsert(anchored[:2])
    before = contents(calibrated)
    vectors = {target: unit(1)[0] for target in lacking}
    with pytest.raises(BadItem, match="'plain' has no anchor"):
        calibrated.upsert([anchored[2], Item(id="plain", vectors=vectors)])
    assert contents(calibrated) == before


def test_anchor_alone_is_no_item(calibrated, anchored, unit):
    calibrated.upsert(anchored[:2])
    before = contents(calibrated)
    with pytest.raises(BadItem, match="'bare' has no vector of image or text"):
        calibrated.upsert([anchored[2], Item(id="bare", vectors={"anchor": unit(1)[0]})])
    assert contents(calibrated) == before


def test_anchor_is_refused_by_a_gallery_without_calibration(gallery, items, anchored):
    gallery.upsert(items[:2])
    before = contents(gallery)
    with pytest.raises(BadItem, match=r"'item-3' has an anchor.*no calibration"):
        gallery.upsert([items[2], anchored[3]])
    assert contents(gallery) == before


@pytest.mark.parametrize("bad", [np.ones(D - 1), np.zeros(D), np.full(D, np.nan)])
def test_bad_anchor_is_refused_like_any_vector(calibrated, anchored, bad):
    wrong = dataclasses.replace(anchored[1], vectors={**anchored[1].vectors, "anchor": bad})
    with pytest.raises(BadVector, match="'item-1'"):
        calibrated.upsert([anchored[0], wrong])
    assert len(calibrated) == 0


def test_gallery_without_calibration_finds_nothing_by_anchor(gallery, items, unit):
    gallery.upsert(items)
    assert gallery.count("anchor") == 0
    assert gallery.search("anchor", unit(2), 3, {"colour": "red"}) == [[], []]
    assert gallery.matrix("anchor").shape == (0, D)
    assert gallery.positions("anchor", ["item-0"]).tolist() == [-1]
    assert gallery.targets() == ("image", "text")


def test_filter_leaves_only_the_anchors_of_items_that_match(calibrated, anchored):
    calibrated.upsert(anchored)
    wanted = {"colour": "red", "number": {"gt": 2}}
    assert calibrated.allowed("anchor", wanted).tolist() == [False, False, False, True, False, True]
    (hits,) = calibrated.search("anchor", anchored[0].vectors["anchor"][None], 10, wanted)
    assert {hit.id for hit in hits} == {"item-3", "item-5"}


def test_item_with_a_new_anchor_keeps_its_place(calibrated, anchored, unit):
    calibrated.upsert(anchored)
    (fresh,) = unit(1, seed=7)
    calibrated.upsert([dataclasses.replace(anchored[1], vectors={**anchored[1].vectors, "anchor": fresh})])
    assert [item.id for item in calibrated.page(0, 9)] == [item.id for item in anchored]
    assert np.array_equal(calibrated.matrix("anchor")[1], fresh)


def test_anchor_moves_to_the_end_with_an_item_whose_modalities_change(calibrated, anchored, unit):
    calibrated.upsert(anchored)
    picture, anchor = unit(2, seed=7)
    calibrated.upsert([Item(id="item-4", vectors={"image": picture, "anchor": anchor})])
    assert [item.id for item in calibrated.page(0, 9)][-2:] == ["item-5", "item-4"]
    assert calibrated.counts() == {"items": 6, "image": 5, "text": 3, "anchor": 6}
    assert np.array_equal(calibrated.matrix("anchor")[-1], anchor)
    (hits,) = calibrated.search("anchor", anchor[None], 1)
    assert (hits[0].id, hits[0].modalities) == ("item-4", {"image"})


def test_anchors_go_with_their_items(calibrated, anchored):
    calibrated.upsert(anchored)
    calibrated.delete(["item-0", "item-3"])
    assert calibrated.counts() == {"items": 4, "image": 2, "text": 3, "anchor": 4}
    kept = [anchored[n].vectors["anchor"] for n in (1, 2, 4, 5)]
    assert np.array_equal(calibrated.matrix("anchor"), np.stack(kept))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "torch"])
def test_every_kind_of_index_holds_anchors(anchored, calibration, kind):
    settings = IndexSettings(kind=kind)
    gallery = Gallery("shop", D, "encoder-1", settings, 0.0, calibration=calibration)
    gallery.upsert(anchored)
    gallery.delete(["item-1"])
    assert ids(gallery.search("anchor", anchored[3].vectors["anchor"][None], 1)) == [["item-3"]]


# The journal


class Full:
    """A journal on a full disk."""

    @contextmanager
    def transaction(self, *, write):
        yield

    def read(self, since):
        return None

    def save(self, **_):
        raise StorageFull("full")

    def close(self):
        pass


def test_change_that_cannot_be_written_does_not_happen(items):
    gallery = Gallery("shop", D, "encoder-1", IndexSettings(), 0.0, journal=Full())
    with pytest.raises(StorageFull):
        gallery.upsert(items)
    assert len(gallery) == 0
    assert gallery.generation == 0
    assert gallery.usable


def test_gallery_interrupted_after_writing_serves_no_more(gallery, items, monkeypatch):
    gallery.upsert(items)

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(gallery, "_apply", out_of_memory)
    with pytest.raises(MemoryError):
        gallery.delete(["item-0"])
    assert not gallery.usable
    for call in (
        lambda: gallery.search("image", items[0].vectors["image"][None], 1),
        lambda: gallery.upsert(items),
        lambda: gallery.delete(["item-1"]),
    ):
        with pytest.raises(GalleryError, match="open it again"):
            call()
