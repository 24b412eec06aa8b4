"""The calibrations of a server: kept whole, refused where they do not fit, kept while they are needed."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from structlog.testing import capture_logs

from adapters.calibration import Calibration, digest_of_calibration, pack_calibration, unpack_calibration
from adapters.completion import tensors_of_completion
from index.base import TARGETS, CalibrationMark, IndexSettings
from index.gallery import Gallery
from index.items import Item
from index.store import GalleryStore
from service.calibrations import Calibrations
from service.errors import BadRequest, Conflict, NotFound
from service.files import write_atomically
from tests.service.calibrated import (
    classifier_file,
    encoder_completion,
    encoder_file,
    related,
    to_the_end,
)
from tests.toy import FEATURES, ToyClassifier, ToyEncoder


def nobody(name: str) -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "calibrations"


@pytest.fixture
def calibrations(folder: Path) -> Calibrations:
    return make(folder)


def make(folder: Path, **more: Any) -> Calibrations:
    return Calibrations(folder, encoder=ToyEncoder(), classifier=ToyClassifier(), **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def gallery_of(count: int, *, alone: int = 0, same: bool = False) -> Gallery:
    """Items with related pictures and texts, and some that have one of both."""
    gallery = GalleryStore(None).create(
        "things", FEATURES, "toy-0", IndexSettings.from_dict({"kind": "flat"})
    )
    image, text = (part.numpy() for part in related(1, max(count, 1)))
    if same:
        image, text = np.ones_like(image), np.ones_like(text)
    items = [Item(id=f"i{n}", vectors={"image": image[n], "text": text[n]}) for n in range(count)]
    items += [Item(id=f"a{n}", vectors={TARGETS[n % 2]: np.ones(FEATURES, np.float32)}) for n in range(alone)]
    if items:
        gallery.upsert(items)
    return gallery


# -- files that come in -------------------------------------------------------------------------------


def test_a_file_is_kept_described_and_given_back(calibrations: Calibrations, logged: list[Any]) -> None:
    data = encoder_file(city="Ulm")
    card = calibrations.put("mine", data)
    assert (card["task"], card["latent"], card["samples"], card["status"]) == ("retrieve", 3, 60, "ready")
    assert set(card["relative_error"]) == {"image", "text"}
    assert card["about"] == {"city": "Ulm"}
    assert card["digest"] == digest_of_calibration(data) == calibrations.mark("mine").digest
    assert calibrations.list() == [card]
    assert calibrations.export("mine") == data
    assert [entry["event"] for entry in logged] == ["calibration_made"]


def test_a_classifiers_file_is_of_the_other_task(calibrations: Calibrations) -> None:
    calibrations.put("av", classifier_file())
    assert calibrations.task("av") == "classify"
    assert calibrations.mark("av", "classify").name == "av"
    with pytest.raises(Conflict, match="made of the classifier, not of the encoder") as refused:
        calibrations.mark("av", "retrieve")
    assert refused.value.code == "fingerprint_mismatch"
    assert calibrations.completion(calibrations.mark("av")).modalities == ("audio", "video", "fused")


def test_a_name_is_taken_once(calibrations: Calibrations) -> None:
    calibrations.put("mine", encoder_file(0))
    for data in (encoder_file(0), encoder_file(1)):
        with pytest.raises(Conflict) as taken:
            calibrations.put("mine", data)
        assert taken.value.code == "calibration_exists"
    assert calibrations.export("mine") == encoder_file(0)


def test_a_file_delivered_again_is_the_one_that_is_there(calibrations: Calibrations) -> None:
    card = calibrations.put("mine", encoder_file(0), again=True)
    assert calibrations.put("mine", encoder_file(0), again=True) == card
    with pytest.raises(Conflict):
        calibrations.put("mine", encoder_file(1), again=True)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a" * 65, "a..b", "a\0b", "a b"])
def test_a_name_cannot_leave_the_folder(calibrations: Calibrations, name: str, tmp_path: Path) -> None:
    for act in (
        lambda: calibrations.put(name, encoder_file()),
        lambda: calibrations.export(name),
        lambda: calibrations.describe(name),
        lambda: calibrations.delete(name, in_use=nobody),
        lambda: to_the_end(calibrations.fit(name, gallery_of(20))),
    ):
        with pytest.raises(BadRequest) as refused:
            act()
        assert refused.value.code == "bad_name"
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["encoder", "classifier"])
def test_what_comes_with_the_weights_is_neither_made_nor_deleted(folder: Path, name: str) -> None:
    calibrations = make(folder)
    with pytest.raises(Conflict) as taken:
        calibrations.put(name, encoder_file())
    assert taken.value.code == "calibration_exists"
    with pytest.raises(Conflict) as taken:
        to_the_end(calibrations.fit(name, gallery_of(20)))
    assert taken.value.code == "calibration_exists"
    with pytest.raises(Conflict) as kept:
        calibrations.delete(name, in_use=nobody)
    assert kept.value.code == "calibration_in_use"
    with pytest.raises(NotFound):
        calibrations.describe(name)


def _edited(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> bytes:
    """A file whose JSON and tensors were changed."""
    data = encoder_file()
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["attune"])
    change(document, tensors)
    return save(tensors, metadata={"attune": json.dumps(document)})


def _set(tensors: dict[str, torch.Tensor], name: str, value: float) -> None:
    tensors[name].fill_(value)


def _without_completion() -> bytes:
    return pack_calibration(Calibration(ToyClassifier().fingerprint, fisher=None))


BAD_FILES: dict[str, Callable[[], bytes]] = {
    "no file": lambda: b"not a file",
    "a pickle": lambda: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "cut short": lambda: encoder_file()[:-100],
    "bytes behind": lambda: encoder_file() + b"more",
    "a huge header": lambda: (1 << 62).to_bytes(8, "little") + b"{}",
    "another format": lambda: _edited(lambda document, _: document.update(format_version=99)),
    "no facts": lambda: _edited(lambda document, _: document.update(about=[])),
    "facts with half a letter": lambda: _edited(lambda document, _: document.update(format_version="\ud800")),
    "other modalities": lambda: _edited(
        lambda document, _: document["completion"].update(modalities=["image", "sound"])
    ),
    "not unit": lambda: _edited(lambda document, _: document["completion"].update(unit=False)),
    "a tensor too many": lambda: _edited(lambda _, tensors: tensors.update(extra=torch.zeros(1))),
    "a negative variance": lambda: _edited(lambda _, tensors: _set(tensors, "latent/image/noise", -1.0)),
    "no number": lambda: _edited(lambda _, tensors: _set(tensors, "latent/text/weight", torch.nan)),
    "no completion": _without_completion,
}


@pytest.mark.parametrize("file", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_and_leaves_nothing(
    calibrations: Calibrations, folder: Path, file: Callable[[], bytes]
) -> None:
    with pytest.raises(BadRequest) as refused:
        calibrations.put("mine", file())
    assert refused.value.code == "bad_calibration"
    str(refused.value).encode()
    assert calibrations.names() == []
    assert not folder.exists() or not list(folder.iterdir())


def test_a_file_of_another_size_is_refused(calibrations: Calibrations) -> None:
    parts = torch.nn.functional.normalize(related(0, size=8), dim=-1)
    from adapters.completion import fit_completion

    small = to_the_end(fit_completion({"image": parts[0], "text": parts[1]}, unit=True, latent=3))
    with pytest.raises(BadRequest, match="8 features"):
        calibrations.put("small", pack_calibration(Calibration("toy-0", completion=small)))


def test_another_models_file_is_refused(calibrations: Calibrations) -> None:
    with pytest.raises(Conflict) as refused:
        calibrations.put("mine", encoder_file(fingerprint="toy-7"))
    assert refused.value.code == "fingerprint_mismatch"


def test_facts_that_cannot_be_shown_are_left_out(calibrations: Calibrations) -> None:
    deep: Any = "x"
    for _ in range(20):
        deep = {"in": deep}
    about = {"many": 10**30, "half": "\ud800", "deep": deep, "long": "y" * 5000, "list": [1, None, True, 0.5]}
    card = calibrations.put("mine", _edited(lambda document, _: document.update(about=about)))
    shown = card["about"]
    assert (shown["many"], shown["half"], len(shown["long"])) == (None, "?", 1000)
    assert shown["list"] == [1, None, True, 0.5]
    json.dumps(card, allow_nan=False).encode()


# -- what lies in the folder ----------------------------------------------------------------------------


def test_what_comes_with_the_weights_is_listed_first(folder: Path, tmp_path: Path) -> None:
    beside = {"encoder": tmp_path / "e.safetensors", "classifier": tmp_path / "c.safetensors"}
    beside["encoder"].write_bytes(encoder_file())
    calibrations = make(folder, built_in=beside)
    calibrations.put("a", encoder_file(1))
    assert [(card["name"], card["built_in"]) for card in calibrations.list()] == [
        ("encoder", True),
        ("a", False),
    ]
    beside["classifier"].write_bytes(classifier_file())
    assert calibrations.names() == ["encoder", "classifier", "a"]
    assert calibrations.task("classifier") == "classify"


def test_a_classifiers_statistics_alone_are_listed_and_complete_nothing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    path.write_bytes(_without_completion())
    calibrations = make(folder, built_in={"classifier": path})
    assert calibrations.describe("classifier")["holds"] == []
    with pytest.raises(Conflict) as without:
        calibrations.mark("classifier")
    assert without.value.code == "calibration_missing"


def test_a_file_that_does_not_fit_is_listed_refused_and_deletable(
    calibrations: Calibrations, folder: Path, logged: list[Any]
) -> None:
    folder.mkdir()
    (folder / "foreign.safetensors").write_bytes(encoder_file(fingerprint="toy-7"))
    (folder / "damaged.safetensors").write_bytes(b"x")
    (folder / "no name.safetensors").write_bytes(b"x")
    (folder / "encoder.safetensors").write_bytes(encoder_file())
    assert [(card["name"], card["status"]) for card in calibrations.list()] == [
        ("damaged", "refused"),
        ("foreign", "refused"),
    ]
    assert [entry["event"] for entry in logged] == ["calibration_refused"] * 2
    with pytest.raises(Conflict) as mismatch:
        calibrations.mark("foreign")
    assert mismatch.value.code == "fingerprint_mismatch"
    with pytest.raises(BadRequest):
        calibrations.mark("damaged")
    for name in ("foreign", "damaged"):
        calibrations.delete(name, in_use=nobody)
    assert calibrations.list() == []


def test_processes_see_what_others_make_and_delete(folder: Path) -> None:
    one, other = make(folder), make(folder)
    mark = other.mark("mine") if one.put("mine", encoder_file(0)) else None
    assert mark is not None
    assert mark == one.mark("mine")
    other.delete("mine", in_use=nobody)
    with pytest.raises(NotFound) as gone:
        one.mark("mine")
    assert gone.value.code == "unknown_calibration"
    other.put("mine", encoder_file(1))
    assert one.mark("mine").digest != mark.digest
    with pytest.raises(NotFound, match=mark.digest):
        one.attached(mark)


def _put(folder: Path, seed: int, go: Any, results: Any) -> None:
    calibrations = make(folder)
    data = encoder_file(seed)
    go.wait()
    try:
        calibrations.put("mine", data)
        results.put(digest_of_calibration(data))
    except Conflict as error:
        results.put(error.code)


def test_of_two_processes_that_make_one_at_once_one_does(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    go, results = context.Barrier(2), context.Queue()
    encoder_completion(0), encoder_completion(1)
    both = [context.Process(target=_put, args=(folder, seed, go, results)) for seed in (0, 1)]
    for process in both:
        process.start()
    found = {results.get(timeout=60) for _ in both}
    for process in both:
        process.join(60)
    kept = make(folder).mark("mine").digest
    assert found == {"calibration_exists", kept}


# -- completions ----------------------------------------------------------------------------------------


def test_a_completion_is_read_once_and_found_by_its_content(calibrations: Calibrations, folder: Path) -> None:
    calibrations.put("mine", encoder_file())
    mark = calibrations.mark("mine")
    completion = calibrations.completion(mark)
    assert calibrations.completion(mark) is completion
    expected = tensors_of_completion(encoder_completion())
    found = tensors_of_completion(completion)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    write_atomically(folder / "copy.safetensors", encoder_file())
    calibrations.delete("mine", in_use=nobody)
    fresh = make(folder)
    assert fresh.completion(mark).modalities == ("image", "text")
    with pytest.raises(NotFound, match="no calibration 'other'"):
        fresh.completion(CalibrationMark("other", "0" * 16))


def test_what_a_gallery_needs_is_not_deleted(calibrations: Calibrations, folder: Path) -> None:
    calibrations.put("mine", encoder_file())
    with pytest.raises(Conflict, match="used by a, b") as refused:
        calibrations.delete("mine", in_use=lambda name: ["a", "b"] if name == "mine" else [])
    assert (refused.value.code, refused.value.details) == ("calibration_in_use", {"galleries": ["a", "b"]})
    assert (folder / "mine.safetensors").is_file()
    calibrations.delete("mine", in_use=nobody)
    with pytest.raises(NotFound):
        calibrations.delete("mine", in_use=nobody)
    calibrations.delete("mine", in_use=nobody, again=True)


# -- made from a gallery ---------------------------------------------------------------------------------


def test_one_is_fitted_to_a_gallerys_pairs(calibrations: Calibrations) -> None:
    card = to_the_end(calibrations.fit("made", gallery_of(80, alone=10), latent=3))
    assert (card["samples"], card["latent"], card["task"]) == (80, 3, "retrieve")
    assert card["about"] == {"gallery": "things", "seed": 0}
    assert card["relative_error"]["text"] < 0.8, "nothing was learned of what the pairs share"
    assert calibrations.completion(calibrations.mark("made")).unit


def test_a_fit_goes_in_slices(calibrations: Calibrations) -> None:
    slices = calibrations.fit("made", gallery_of(40), latent=3)
    for _ in range(3):
        next(slices)
    assert calibrations.names() == []
    to_the_end(slices)
    assert calibrations.names() == ["made"]


def test_at_most_so_many_items_are_drawn_and_always_the_same(calibrations: Calibrations) -> None:
    gallery = gallery_of(60)
    first, second, all_ = (
        calibrations.completion(calibrations.mark(name))
        for name, samples in (("a", 20), ("b", 20), ("c", 60))
        if to_the_end(calibrations.fit(name, gallery, latent=2, samples=samples))
    )
    assert (first.about["samples"], all_.about["samples"]) == (20, 60)
    weights = [one.model.loadings[0].weight for one in (first, second, all_)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("pairs", "alone"), [(0, 0), (7, 30)])
def test_too_few_pairs_are_refused(calibrations: Calibrations, pairs: int, alone: int) -> None:
    with pytest.raises(Conflict, match=f"has {pairs} items with a picture and a text") as refused:
        to_the_end(calibrations.fit("made", gallery_of(pairs, alone=alone)))
    assert refused.value.code == "too_few_pairs"
    assert refused.value.details == {"pairs": pairs, "needed": 8}
    assert calibrations.names() == []


def test_a_latent_that_the_pairs_cannot_carry_is_refused(calibrations: Calibrations) -> None:
    for pairs, latent in ((40, FEATURES), (12, 12)):
        with pytest.raises(BadRequest) as refused:
            to_the_end(calibrations.fit("made", gallery_of(pairs), latent=latent))
        assert refused.value.code == "bad_latent"


@pytest.mark.parametrize("pairs", [8, 12])
def test_few_pairs_are_enough(calibrations: Calibrations, pairs: int) -> None:
    card = to_the_end(calibrations.fit("made", gallery_of(pairs)))
    assert card["status"] == "ready"


def test_items_that_are_all_the_same_are_refused(calibrations: Calibrations) -> None:
    with pytest.raises(Conflict, match="all alike") as refused:
        to_the_end(calibrations.fit("made", gallery_of(20, same=True)))
    assert refused.value.code == "calibration_failed"
    assert calibrations.names() == []


def test_a_fit_asked_again_by_the_same_job_is_described(calibrations: Calibrations) -> None:
    gallery = gallery_of(20)
    card = to_the_end(calibrations.fit("made", gallery, latent=2, job="j1"))
    assert to_the_end(calibrations.fit("made", gallery, latent=2, job="j1")) == card
    for job in ("j2", ""):
        with pytest.raises(Conflict) as taken:
            to_the_end(calibrations.fit("made", gallery, latent=2, job=job))
        assert taken.value.code == "calibration_exists"
    assert unpack_calibration(calibrations.export("made")).about["job"] == "j1"
    assert "job" not in card["about"]


def test_a_name_taken_while_it_was_fitted_is_left_alone(calibrations: Calibrations, folder: Path) -> None:
    slices = calibrations.fit("made", gallery_of(20), latent=2)
    next(slices)
    make(folder).put("made", encoder_file())
    with pytest.raises(Conflict) as taken:
        to_the_end(slices)
    assert taken.value.code == "calibration_exists"
    assert calibrations.export("made") == encoder_file()
