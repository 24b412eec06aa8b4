"""Galleries with a calibration: every item has an anchor of what it has and what is imputed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adapters.completion import Completion
from encoders.base import Modality
from index.base import BadVector, CalibrationMark
from index.store import GalleryStore
from service.errors import Conflict, NotFound
from service.galleries import Galleries
from service.messages import NewItem, Target
from tests.service.calibrated import classifier_completion, encoder_completion, to_the_end
from tests.toy import FEATURES, ToyEncoder, picture, sentence

MARKS = {
    "good": CalibrationMark("good", "0" * 16),
    "other": CalibrationMark("other", "1" * 16),
    "classifier": CalibrationMark("classifier", "2" * 16),
}
COMPLETIONS = {"good": encoder_completion(0), "other": encoder_completion(1)}


class Shelf:
    """What a server knows of calibrations."""

    def __init__(self) -> None:
        self.completions: dict[str, Completion] = {**COMPLETIONS, "classifier": classifier_completion()}

    def mark(self, name: str) -> CalibrationMark:
        if name not in MARKS:
            raise NotFound(f"there is no calibration {name!r}", code="unknown_calibration")
        return MARKS[name]

    def completion(self, mark: CalibrationMark) -> Completion:
        if mark.name not in self.completions:
            raise NotFound(f"there is no calibration {mark.name!r}", code="unknown_calibration")
        return self.completions[mark.name]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def galleries(tmp_path: Path, shelf: Shelf) -> Iterator[Galleries]:
    made = opened(tmp_path, shelf)
    yield made
    made.close()


def opened(folder: Path, shelf: Shelf, encoder: ToyEncoder | None = None) -> Galleries:
    return Galleries(
        GalleryStore(folder),
        encoder or ToyEncoder(),
        default_kind="flat",
        batch_size=4,
        marks=shelf.mark,
        completions=shelf.completion,
    )


def item(number: int, has: str, **more: Any) -> NewItem:
    return NewItem(
        f"i{number}",
        text=sentence(number) if "text" in has else None,
        pixels=picture(number) if "image" in has else None,
        **more,
    )


def mixed(count: int = 9) -> list[NewItem]:
    return [item(n, ("text", "image", "image+text")[n % 3]) for n in range(count)]


def encoded(modality: Modality, values: list[Any]) -> torch.Tensor:
    tower = ToyEncoder().towers[modality]
    return tower.encode(tower.prepare(values))


def anchor_of(number: int, completion: Completion) -> np.ndarray:
    """Of item `number` of `mixed`, on its own."""
    parts = {}
    if number % 3 != 1:
        parts["text"] = encoded("text", [sentence(number)])
    if number % 3 != 0:
        parts["image"] = encoded("image", [picture(number)])
    found: np.ndarray = completion.anchors(completion.complete(parts)).numpy()[0]
    return found


def test_every_item_gets_the_anchor_of_what_it_has(galleries: Galleries) -> None:
    galleries.create("shop", None, calibration="good")
    to_the_end(galleries.upsert("shop", mixed()))
    gallery = galleries.usable("shop")
    assert gallery.counts() == {"items": 9, "image": 6, "text": 6, "anchor": 9}
    for n in range(9):
        np.testing.assert_allclose(
            gallery.get(f"i{n}").vectors["anchor"], anchor_of(n, COMPLETIONS["good"]), atol=1e-6
        )


def test_ready_vectors_are_brought_to_unit_length_before_they_are_completed(galleries: Galleries) -> None:
    galleries.create("shop", None, calibration="good")
    vector = encoded("image", [picture(1)])[0].numpy()
    to_the_end(galleries.upsert("shop", [NewItem("long", embeddings={"image": 7 * vector})]))
    stored = galleries.usable("shop").get("long").vectors["anchor"]
    np.testing.assert_allclose(stored, anchor_of(1, COMPLETIONS["good"]), atol=1e-6)


def test_anchors_that_clients_send_are_not_believed(galleries: Galleries) -> None:
    galleries.create("shop", None, calibration="good")
    sent: dict[Target, np.ndarray] = {"anchor": np.ones(FEATURES, np.float32)}
    to_the_end(galleries.upsert("shop", [item(1, "image", embeddings=sent)]))
    stored = galleries.usable("shop").get("i1").vectors["anchor"]
    np.testing.assert_allclose(stored, anchor_of(1, COMPLETIONS["good"]), atol=1e-6)


def test_a_gallery_without_calibration_has_no_anchors(galleries: Galleries) -> None:
    galleries.create("shop", None)
    to_the_end(galleries.upsert("shop", mixed()))
    assert galleries.usable("shop").count("anchor") == 0
    assert galleries.completion("shop") is None
    assert galleries.describe("shop")["calibration"] is None
    assert galleries.cards["shop"].calibration is None


def test_descriptions_and_cards_name_the_calibration_also_in_another_process(
    galleries: Galleries, tmp_path: Path, shelf: Shelf
) -> None:
    galleries.create("shop", None, calibration="good")
    other = opened(tmp_path, shelf)
    for one in (galleries, other):
        assert one.describe("shop")["calibration"] == "good"
        assert one.card("shop").calibration == "good"
        assert one.cards["shop"].calibration == "good"
    to_the_end(other.upsert("shop", mixed(3)))
    assert galleries.card("shop").targets == {"image": 2, "text": 2, "anchor": 3}
    assert galleries.get_item("shop", "i1")["modalities"] == ["image"]
    other.close()


def test_an_unknown_calibration_makes_no_gallery(galleries: Galleries, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no calibration 'none'") as caught:
        galleries.create("shop", None, calibration="none")
    assert caught.value.code == "unknown_calibration"
    assert galleries.list() == []
    without = Galleries(GalleryStore(tmp_path / "b"), ToyEncoder(), default_kind="flat", batch_size=4)
    with pytest.raises(NotFound, match="no calibration 'good'"):
        without.create("shop", None, calibration="good")
    without.close()


def test_a_calibration_of_other_features_makes_no_gallery(galleries: Galleries) -> None:
    with pytest.raises(Conflict, match="not pictures and texts of 16 features") as caught:
        galleries.create("shop", None, calibration="classifier")
    assert caught.value.code == "calibration_unusable"
    assert galleries.list() == []


def test_the_same_job_asked_again_finds_its_gallery(galleries: Galleries) -> None:
    made = galleries.create("shop", None, calibration="good", job="j1")
    assert galleries.create("shop", None, calibration="good", job="j1") == made


def test_without_its_calibration_a_gallery_is_listed_but_takes_no_items(
    galleries: Galleries, shelf: Shelf
) -> None:
    galleries.create("shop", None, calibration="good")
    to_the_end(galleries.upsert("shop", mixed()))
    before = galleries.describe("shop")
    del shelf.completions["good"]
    with pytest.raises(Conflict, match="'good' is not to be had: there is no calibration") as caught:
        to_the_end(galleries.upsert("shop", [item(20, "text")]))
    assert caught.value.code == "calibration_unusable"
    with pytest.raises(Conflict):
        galleries.completion("shop")
    assert galleries.list() == [before]
    vector = encoded("text", [sentence(0)]).numpy()
    assert galleries.usable("shop").search("text", vector, 1)[0][0].id == "i0"
    assert galleries.delete_items("shop", ["i0"]) == 1
    galleries.delete("shop")
    assert galleries.list() == []


def test_a_calibration_that_has_become_another_models_is_no_use(galleries: Galleries, shelf: Shelf) -> None:
    galleries.create("shop", None, calibration="good")
    shelf.completions["good"] = classifier_completion()
    with pytest.raises(Conflict, match="not pictures and texts"):
        to_the_end(galleries.upsert("shop", mixed()))
    assert len(galleries.usable("shop")) == 0


@pytest.mark.parametrize(
    "vector", [np.ones(FEATURES - 1, np.float32), np.full(FEATURES, np.nan, np.float32)], ids=["size", "nan"]
)
def test_a_bad_vector_changes_nothing_and_names_its_item(galleries: Galleries, vector: np.ndarray) -> None:
    galleries.create("shop", None, calibration="good")
    with pytest.raises(BadVector, match="'bad'"):
        to_the_end(galleries.upsert("shop", [item(0, "text"), NewItem("bad", embeddings={"image": vector})]))
    assert len(galleries.usable("shop")) == 0


def test_anchors_of_a_gallery_replaced_meanwhile_are_of_the_new_ones_calibration(
    galleries: Galleries, tmp_path: Path, shelf: Shelf
) -> None:
    galleries.create("shop", None, calibration="good")
    slices = galleries.upsert("shop", mixed(3))
    next(slices)
    other = opened(tmp_path, shelf)
    other.delete("shop")
    other.create("shop", None, calibration="other")
    to_the_end(slices)
    stored = galleries.usable("shop").get("i0").vectors["anchor"]
    np.testing.assert_allclose(stored, anchor_of(0, COMPLETIONS["other"]), atol=1e-6)
    other.close()


def test_anchors_are_unit_vectors_of_both_sides(galleries: Galleries) -> None:
    """An item with both lies between them, whatever the calibration says."""
    galleries.create("shop", None, calibration="good")
    to_the_end(galleries.upsert("shop", [item(2, "image+text")]))
    both = encoded("image", [picture(2)]) + encoded("text", [sentence(2)])
    stored = galleries.usable("shop").get("i2").vectors["anchor"]
    np.testing.assert_allclose(stored, F.normalize(both, dim=-1)[0].numpy(), atol=1e-6)
