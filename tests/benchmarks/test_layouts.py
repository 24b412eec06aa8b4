"""Every published layout, on tiny folders written here, whole and damaged; galleries of other data sets."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import retrieval
from benchmarks.corruptions import Shift
from benchmarks.datasets import CaptionedImages, DatasetError, check_name
from benchmarks.layouts import (
    LAYOUTS,
    add_distractors,
    disk_shift,
    find_layout,
    open_dataset,
    open_gallery,
    pair,
)
from benchmarks.layouts.entries import read_objects
from benchmarks.layouts.records import OPAQUE, plain_value
from benchmarks.protocol import make_task
from tests.toy import ToyEncoder, sentence


def picture(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content or path.name).encode())


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def names(data: CaptionedImages) -> list[str]:
    return [path.name for path in data.images]


# The builders: each writes one layout under a folder and returns what --data would be.


def simple(root: Path, files: Sequence[str] = ("a", "b"), split: str = "test") -> Path:
    rows = ["file\tcaption"]
    for file in files:
        picture(root / "images" / f"{file}.jpg")
        rows.append(f"images/{file}.jpg\tcaption of {file}")
    (root / "captions.tsv").write_text("\n".join(rows) + "\n")
    (root / f"split_{split}.txt").write_text("".join(f"images/{file}.jpg\n" for file in files))
    return root


COCO = [
    {"image": f"val2014/COCO_{n}.jpg", "caption": [f"caption {n} {i}" for i in range(6)]} for n in range(2)
]
FLICKR = [
    {"image": f"flickr30k-images/{n}.jpg", "caption": [f"photo {n} {i}" for i in range(6)]} for n in (7, 8)
]


def tcr(root: Path) -> Path:
    """Both sets of the release; corrupted pictures of COCO stand flat, those of Flickr30k as annotated."""
    write_json(root / "coco" / "coco_annotations" / "coco_karpathy_test.json", COCO)
    write_json(root / "flickr" / "flickr_annotations" / "flickr30k_test.json", FLICKR)
    for item in COCO:
        name = str(item["image"])
        picture(root / "coco-IP" / "coco_image" / name)
        picture(root / "coco-IP" / "COCO_IP_fog_5" / Path(name).name, "foggy")
    for item in FLICKR:
        name = str(item["image"])
        picture(root / "flickr" / "flickr_image" / name)
        picture(root / "flickr-IP" / "Flickr30K_IP_fog_3" / name, "foggy")
    corrupted = [{**item, "caption": [c.replace("o", "0") for c in item["caption"]]} for item in COCO]
    corrupted[0]["caption"][0] = ["capti0n", "in parts"]
    corrupted[0]["caption"][1] = ""
    write_json(root / "coco-TP" / "annotation_OcrAug" / "7" / "coco_karpathy_test.json", corrupted)
    return root / "coco"


def karpathy(root: Path, name: str = "coco") -> Path:
    images = [
        {
            "filename": f"{n}.jpg",
            "split": split,
            "sentences": [{"raw": f"sentence {n} {i}", "tokens": ["x"]} for i in range(6)],
            **({"filepath": "val2014"} if name == "coco" else {}),
        }
        for n, split in enumerate(("train", "test", "val", "test"))
    ]
    write_json(root / f"dataset_{name}.json", {"dataset": name, "other": {"images": [1]}, "images": images})
    for item in images:
        where = root / "images" / "val2014" if name == "coco" else root / "flickr30k-images"
        picture(where / str(item["filename"]))
    return root


def persons(root: Path, file: str, key: str = "file_path") -> Path:
    """Two people of the test split, their pictures mixed; one has two pictures."""
    rows = [("train", "t", 1), ("test", "x1", 5), ("test", "y1", 6), ("test", "x2", 5)]
    items = [
        {"split": split, key: f"cam_a/{name}.png", "id": number, "captions": [f"{name} one", f"{name} two"]}
        for split, name, number in rows
    ]
    write_json(root / file, items)
    for item in items:
        picture(root / "imgs" / str(item[key]))
    return root


def nocaps_released(root: Path) -> Path:
    domains = ("in-domain", "near-domain", "out-domain")
    items = [{"image": f"val/{n}.jpg", "caption": [f"c {n}"] * 2, "domain": d} for n, d in enumerate(domains)]
    write_json(root / "annotations.json", items)
    for item in items:
        picture(root / str(item["image"]))
    return root


def nocaps_published(root: Path) -> Path:
    images = [
        {"id": n, "file_name": f"{n}.jpg", "domain": d}
        for n, d in enumerate(("in-domain", "near-domain", "out-domain"))
    ]
    annotations = [{"image_id": n, "caption": f"c {n} {i}", "id": 9} for i in range(2) for n in (2, 1, 0)]
    write_json(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    for item in images:
        picture(root / "images" / str(item["file_name"]))
    return root


def fashion_gen(root: Path, protocol: int = 4) -> Path:
    rows = [
        ("12_0", "21", "Red shirt."),
        ("34_0", "7", ["Blue shoe.", "Shoe."]),
        ("12_1", "21", "Red shirt."),
    ]
    for number, (name, kind, captions) in enumerate(rows):
        record = {
            "img_name": f"{name}.png",
            "captions": captions,
            "super_cls_id": kind,
            "size": (2, 3.5, None),
        }
        path = root / "full_valid_info_PAI" / f"{number}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(record, protocol=protocol))
        picture(root / "extracted_valid_images" / f"{name}.png")
    return root


def cuhk(root: Path) -> Path:
    return persons(root, "reid_raw.json")


BUILDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folder": (simple, "test"),
    "tcr": (tcr, "test"),
    "karpathy": (karpathy, "test"),
    "fashion_gen": (fashion_gen, "valid"),
    "cuhk_pedes": (cuhk, "test"),
    "icfg_pedes": (lambda root: persons(root, "ICFG-PEDES.json"), "test"),
    "rstpreid": (lambda root: persons(root, "data_captions.json", "img_path"), "test"),
    "nocaps": (nocaps_released, "val"),
}


def test_every_layout_is_tried_here() -> None:
    assert set(BUILDERS) == set(LAYOUTS)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_layout_is_found_from_its_files_and_read_alike_by_name(name: str, tmp_path: Path) -> None:
    build, split = BUILDERS[name]
    folder = build(tmp_path)
    assert find_layout(folder).name == name
    found, named = open_dataset(folder, split), open_dataset(folder, split, name)
    assert found == named
    assert found.images
    assert all(path.is_file() for path in found.images)
    assert len(found.image_of_caption) == len(found.captions)
    assert len(found.picture_names) == len(found.images)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_missing_picture_is_named(name: str, tmp_path: Path) -> None:
    build, split = BUILDERS[name]
    folder = build(tmp_path)
    gone = open_dataset(folder, split).images[-1]
    gone.unlink()
    with pytest.raises(DatasetError, match=gone.name):
        open_dataset(folder, split)


@pytest.mark.parametrize("name", set(BUILDERS) - {"folder"})
def test_an_absent_annotation_file_says_where_the_set_is_to_be_had(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="https://"):
        open_dataset(tmp_path, "test", name)


def test_a_folder_of_no_layout_names_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no known layout.*captions\.tsv.*reid_raw\.json"):
        open_dataset(tmp_path, "test")
    with pytest.raises(DatasetError, match="there is no folder"):
        open_dataset(tmp_path / "nowhere", "test")
    with pytest.raises(DatasetError, match="there is no layout 'kaparthy'"):
        open_dataset(tmp_path, "test", "kaparthy")


def test_a_folder_of_two_layouts_asks_for_a_name(tmp_path: Path) -> None:
    simple(cuhk(tmp_path))
    with pytest.raises(DatasetError, match=r"several layouts .folder, cuhk_pedes."):
        open_dataset(tmp_path, "test")
    assert names(open_dataset(tmp_path, "test", "folder")) == ["a.jpg", "b.jpg"]


def test_coco_keeps_five_captions_a_picture_and_flickr_all(tmp_path: Path) -> None:
    tcr(tmp_path)
    coco, flickr = open_dataset(tmp_path / "coco", "test"), open_dataset(tmp_path / "flickr", "test")
    assert [len(own) for own in coco.captions_of_image] == [5, 5]
    assert [len(own) for own in flickr.captions_of_image] == [6, 6]
    assert coco.picture_names == ["val2014/COCO_0.jpg", "val2014/COCO_1.jpg"]
    assert coco.caption_words == 30


def test_a_folder_with_both_sets_of_the_release_asks_which(tmp_path: Path) -> None:
    tcr(tmp_path)
    with pytest.raises(DatasetError, match="holds several data sets; name one"):
        open_dataset(tmp_path, "test")
    assert names(open_dataset(tmp_path / "flickr-IP", "test")) == ["7.jpg", "8.jpg"]


def test_corrupted_pictures_are_found_flat_and_as_annotated(tmp_path: Path) -> None:
    tcr(tmp_path)
    clean = open_dataset(tmp_path / "coco", "test")
    flat = open_dataset(tmp_path / "coco", "test", shift=Shift("fog", 5))
    nested = open_dataset(tmp_path / "flickr", "test", shift=Shift("fog", 3))
    assert {path.read_bytes() for path in (*flat.images, *nested.images)} == {b"foggy"}
    assert flat.captions == clean.captions
    assert flat.picture_names == clean.picture_names


def test_corrupted_captions_come_from_a_file_of_their_own(tmp_path: Path) -> None:
    folder = tcr(tmp_path)
    clean, drifted = open_dataset(folder, "test"), open_dataset(folder, "test", shift=Shift("OCR", 7))
    assert drifted.images == clean.images
    assert len(drifted.captions) == len(clean.captions)
    assert drifted.captions[:3] == ["capti0n in parts", "", "capti0n 0 2"]


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (Shift("fog", 2), r"no folder .*COCO_IP_fog_2 for fog:2; there is COCO_IP_fog_5; .*https://"),
        (Shift("snow", 5), "no severity of it is there"),
        (Shift("OCR", 1), r"there is annotation_OcrAug/7"),
        (Shift("Esperanto", 1), "the release has no shift 'Esperanto'; it has"),
    ],
)
def test_a_shift_that_the_disk_lacks_names_what_is_there(tmp_path: Path, shift: Shift, message: str) -> None:
    folder = tcr(tmp_path)
    with pytest.raises(DatasetError, match=message):
        open_dataset(folder, "test", shift=shift)


def test_a_plain_blip_folder_is_read_too(tmp_path: Path) -> None:
    write_json(tmp_path / "annotation" / "flickr30k_test.json", FLICKR)
    for item in FLICKR:
        picture(tmp_path / "images" / str(item["image"]))
    assert names(open_dataset(tmp_path, "test")) == ["7.jpg", "8.jpg"]


def test_karpathy_splits_follow_the_file_and_coco_keeps_five_sentences(tmp_path: Path) -> None:
    coco = open_dataset(karpathy(tmp_path / "coco"), "test")
    assert coco.picture_names == ["val2014/1.jpg", "val2014/3.jpg"]
    assert coco.captions[4:6] == ["sentence 1 4", "sentence 3 0"]
    flickr = open_dataset(karpathy(tmp_path / "flickr", "flickr30k"), "val")
    assert flickr.captions[-1] == "sentence 2 5"
    with pytest.raises(DatasetError, match="has no split 'dev'; it has test, train, val"):
        open_dataset(tmp_path / "coco", "dev")


def test_any_picture_of_the_person_is_right(tmp_path: Path) -> None:
    data = open_dataset(cuhk(tmp_path), "test")
    assert names(data) == ["x1.png", "x2.png", "y1.png"], "pictures of one person stand together"
    assert data.captions[:4] == ["x1 one", "x1 two", "x2 one", "x2 two"]
    assert data.right_captions(0) == data.right_captions(1) == [0, 1, 2, 3]
    assert data.right_images(2) == [0, 1]
    assert data.right_images(4) == [2]
    assert data.clean("As. Written") == "As. Written"


def test_a_task_scores_by_identity(tmp_path: Path) -> None:
    data = open_dataset(cuhk(tmp_path), "test")
    task = make_task(data, "t2i", seed=0, limit=None)
    right = dict(zip(task.numbers, task.relevant, strict=True))
    assert right == {0: [0, 1], 1: [0, 1], 2: [0, 1], 3: [0, 1], 4: [2], 5: [2]}


@pytest.mark.parametrize("build", [nocaps_released, nocaps_published])
def test_nocaps_has_a_split_a_domain(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    folder = build(tmp_path)
    assert names(open_dataset(folder, "val")) == ["0.jpg", "1.jpg", "2.jpg"]
    near = open_dataset(folder, "near-domain")
    assert names(near) == ["1.jpg"]
    assert len(near.captions) == 2
    with pytest.raises(DatasetError, match="it has val, in-domain, near-domain, out-domain"):
        open_dataset(folder, "test")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_fashion_records_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    data = open_dataset(fashion_gen(tmp_path, protocol), "valid")
    assert names(data) == ["12_0.png", "12_1.png", "34_0.png"]
    assert data.captions == ["Red shirt.", "Red shirt.", "Blue shoe.", "Shoe."]
    assert data.right_images(1) == [0, 1]
    assert data.caption_words == 77
    assert names(open_dataset(tmp_path, "valid-21")) == ["12_0.png", "12_1.png"]
    with pytest.raises(DatasetError, match="no record of class '5'"):
        open_dataset(tmp_path, "valid-5")


class Trap:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_what_a_record_would_run_is_not_run(tmp_path: Path) -> None:
    folder, sprung = fashion_gen(tmp_path / "set"), tmp_path / "sprung"
    record = {"img_name": "12_0.png", "captions": "fine", "features": Trap(sprung), "more": [Trap(sprung)]}
    path = folder / "full_valid_info_PAI" / "0.pkl"
    path.write_bytes(pickle.dumps(record))
    assert open_dataset(folder, "valid").captions[0] == "fine"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DatasetError, match="holds no plain dict"):
        open_dataset(folder, "valid")
    assert not sprung.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_survive_and_others_are_opaque(protocol: int) -> None:
    shared = ["twice"]
    plain = {
        "a": [1, -2, 2**40, True, None, 0.5],
        "b": ("x", ("é", b"\x00")),
        "c": shared,
        "d": shared,
        "e": (),
    }
    if protocol < 3:
        plain["b"] = ("x", ("é",))
    assert plain_value(pickle.dumps(plain, protocol)) == plain
    odd = {"array": np.arange(3), "ordered": OrderedDict(a=1), "path": Path("x"), "kept": "yes"}
    found = plain_value(pickle.dumps(odd, protocol))
    assert found == {"array": OPAQUE, "ordered": OPAQUE, "path": OPAQUE, "kept": "yes"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps({"a": 1})[:-1],
        b"\x80\x04.",
        b"\x80\x04h\x05.",
        b"\x80\x04}]K\x01s.",
        b"\x80\x04]" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s.",
    ],
    ids=["empty", "text", "cut", "nothing", "forgotten", "key", "nested key"],
)
def test_a_malformed_record_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = fashion_gen(tmp_path)
    (folder / "full_valid_info_PAI" / "1.pkl").write_bytes(content)
    with pytest.raises(DatasetError, match=r"1\.pkl"):
        open_dataset(folder, "valid")


# Malformed JSON, and names that leave the folder.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("{}", "expected an array"),
        ("[1]", "entry 0: expected an object"),
        ('[{"image": "a.jpg"}]', "entry 0: expected captions under 'caption', found nothing"),
        ('[{"image": "a.jpg", "caption": []}]', "expected captions"),
        ('[{"image": "a.jpg", "caption": [" "]}]', "' ' is no caption"),
        ('[{"image": "a.jpg", "caption": [{}]}]', "a value of type dict is no caption"),
        ('[{"image": "a.jpg", "caption": ["\\ud800"]}]', "is no caption"),
        ('[{"image": true, "caption": ["x"]}]', "expected a text under 'image', found True"),
        ('[{"image": "", "caption": ["x"]}]', "expected a text under 'image'"),
        ('[{"image": "a.jpg", "caption": ["x"]}', "cannot be read as JSON"),
        ('[{"image": "a.jpg", "caption": ["x"]} {}]', "cannot be read as JSON"),
        ("[]", "lists no picture"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\ud800", "cannot be read as JSON"),
    ],
)
def test_a_malformed_annotation_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "flickr30k_test.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(tmp_path, "test")
    assert "flickr30k_test.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", '{"a"', '{"a": 1}', '{"images": 2, "b": 3}', '{"images" []}', "3"])
def test_an_object_without_the_array_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_x.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset_x\.json cannot be read as JSON"):
        open_dataset(tmp_path, "test")


def test_objects_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('\ufeff{"a": {"images": [2]}, "images": [ {"n": 1} , {"n": 2}, oops')
    objects = read_objects(path, "images")
    assert [next(objects)[1]["n"] for _ in range(2)] == [1, 2]
    with pytest.raises(DatasetError, match="cannot be read"):
        next(objects)


OUTSIDE = [
    "../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "..\\secret.jpg", "C:\\secret.jpg", "\\\\host\\x",
    "C:secret.jpg", "..",
]  # fmt: skip


@pytest.mark.parametrize("name", [*OUTSIDE, "", ".", "./"])
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a file inside the data set"):
        check_name(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["a\0b", "a\nb", "\x1b[2J.jpg", "\ud800.jpg", "x" * 256, "a/" + "ü" * 128, "a/" * 600 + "b"]
)
def test_what_can_be_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="which is no file name"):
        check_name(name, tmp_path)


@pytest.mark.parametrize("name", ["a.jpg", "val2014/a.jpg", "a..b/c.jpg", "..a.jpg", "über/ñ 1.png"])
def test_a_name_inside_is_kept(name: str, tmp_path: Path) -> None:
    assert check_name(name, tmp_path) == name


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_layout_follows_a_name_outside(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    inner = tmp_path / "set"
    item = {"split": "test", "id": 1, "captions": ["x"], "domain": "in-domain", "caption": ["x"]}
    item |= {"image": name, "file_path": name, "filename": name, "sentences": [{"raw": "x"}]}
    picture(inner / "imgs" / "a.jpg")
    for file, value, layout, split in (
        ("reid_raw.json", [item], "cuhk_pedes", "test"),
        ("annotations.json", [item], "nocaps", "val"),
        ("flickr30k_test.json", [item], "tcr", "test"),
        ("dataset_x.json", {"images": [item]}, "karpathy", "test"),
    ):
        write_json(inner / file, value)
        with pytest.raises(DatasetError, match="not a file inside the data set"):
            open_dataset(inner, split, layout)
    simple(inner)
    (inner / "split_test.txt").write_text(f"images/a.jpg\n../{name}\n")
    with pytest.raises(DatasetError, match="not a file inside the data set"):
        open_dataset(inner, "test", "folder")


# Queries and gallery of different sets.


def test_copies_pair_by_name_whatever_the_order(tmp_path: Path) -> None:
    queries = open_dataset(simple(tmp_path / "q", "ab"), "test")
    gallery = open_dataset(simple(tmp_path / "g", "cba"), "test")
    found = pair(queries, gallery)
    assert found.counterparts == [2, 1]
    assert found.by == {"name": 2}
    assert found.right_captions(0) == [2]
    assert found.right_images(1) == [1]
    assert found.distractors == 1
    assert found.describe() == "2 query pictures: 2 by name; 1 of 3 gallery pictures are distractors"


def test_other_suffixes_pair_by_stem_and_other_names_by_captions(tmp_path: Path) -> None:
    queries = open_dataset(simple(tmp_path / "q", "ab"), "test")
    root = simple(tmp_path / "g", "ab")
    (root / "images" / "a.jpg").rename(root / "images" / "a.png")
    (root / "images" / "b.jpg").rename(root / "images" / "renamed.jpg")
    for file in ("captions.tsv", "split_test.txt"):
        text = (root / file).read_text()
        text = text.replace("images/a.jpg", "images/a.png").replace("images/b.jpg", "images/renamed.jpg")
        (root / file).write_text(text)
    found = pair(queries, open_dataset(root, "test"))
    assert found.counterparts == [0, 1]
    assert found.by == {"name": 0, "stem": 1, "captions": 1}


def test_the_same_name_on_something_else_does_not_count(tmp_path: Path) -> None:
    queries = open_dataset(simple(tmp_path / "q", "ab"), "test")
    root = simple(tmp_path / "g", "ab")
    (root / "captions.tsv").write_text("file\tcaption\nimages/a.jpg\tother\nimages/b.jpg\tcaption of b\n")
    (root / "images" / "a.jpg").write_bytes(b"another picture")
    found = pair(queries, open_dataset(root, "test"))
    assert found.counterparts == [None, 1]
    assert found.unmatched == ["images/a.jpg"]
    assert "no counterpart for images/a.jpg" in found.describe()
    assert found.right_captions(0) == []
    assert found.right_images(0) == []
    with pytest.raises(DatasetError, match=r"1 of 2 query pictures .* no counterpart in .*: images/a.jpg"):
        found.require_complete()


def test_distractors_of_another_set_are_never_right(tmp_path: Path) -> None:
    queries = open_dataset(cuhk(tmp_path / "cuhk"), "test")
    other = simple(tmp_path / "other", ("x1", "z"), split="dev")
    gallery = open_gallery([str(tmp_path / "cuhk"), f"{other}:dev"], "test")
    assert names(gallery) == ["x1.png", "x2.png", "y1.png", "x1.jpg", "z.jpg"]
    found = pair(queries, gallery).require_complete()
    assert found.counterparts == [0, 1, 2]
    assert found.right_images(0) == [0, 1]
    assert found.distractors == 2
    assert gallery.captions_of_image[4] == [7]
    same = add_distractors(queries, [queries])
    assert same.group_of_image == [[0, 1], [0, 1], [2], [3, 4], [3, 4], [5]]


def test_a_gallery_may_name_its_split(tmp_path: Path) -> None:
    root = simple(tmp_path / "g:odd", split="dev")
    assert open_gallery([f"{root}:dev"], "test").split == "dev"
    assert open_gallery([str(root)], "dev").split == "dev"
    with pytest.raises(DatasetError, match="there is no folder"):
        open_gallery([str(tmp_path / "nowhere")], "dev")
    with pytest.raises(DatasetError, match="no gallery is named"):
        open_gallery([], "dev")


@pytest.mark.parametrize("written", ["fog_3", "fog-3", "fog/3"])
def test_a_corrupted_copy_is_found_beside_its_kind(tmp_path: Path, written: str) -> None:
    clean = simple(tmp_path / "clean")
    copy = simple(tmp_path / "shifted" / written)
    data = open_dataset(clean, "test", shift=Shift("fog", 3), corrupted=tmp_path / "shifted")
    assert data.folder == copy
    with pytest.raises(DatasetError, match="has no folder fog_4 or"):
        open_dataset(clean, "test", shift=Shift("fog", 4), corrupted=tmp_path / "shifted")
    with pytest.raises(DatasetError, match="no place of its own for corrupted copies"):
        open_dataset(clean, "test", shift=Shift("fog", 3))


def test_a_shift_on_disk_may_have_any_harmless_name() -> None:
    assert disk_shift("fog:3") == Shift("fog", 3)
    assert disk_shift("ocr:7") == Shift("OCR", 7)
    assert disk_shift("back_trans:1") == Shift("back_trans", 1)
    assert disk_shift("SR").severity == 5
    assert disk_shift("Formal").severity == 1
    assert disk_shift("mm:fog:3") == Shift.parse("mm:fog:3")
    for text in ("", "../x:1", "fog:", "fog:x", "fog:12", "a/b", "a*"):
        with pytest.raises(DatasetError, match="expected NAME"):
            disk_shift(text)


def test_the_documentation_lists_every_layout() -> None:
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    assert [name for name in LAYOUTS if f"| `{name}` |" not in text] == []


# The command.


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures that open, and a corrupted copy of each; the toy encoder in place of a real one."""
    monkeypatch.setattr(retrieval, "_encoder", lambda name, device, dtype: ToyEncoder())
    for folder, seed in (("clean", 0), ("shifted/fog_5", 100), ("other", 200)):
        root = tmp_path / folder
        (root / "images").mkdir(parents=True)
        rows = ["file\tcaption"]
        for number in range(6):
            values = np.random.default_rng(seed + number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(values).save(root / "images" / f"{number}.png")
            rows.append(f"images/{number}.png\tA {sentence(number + (10 if folder == 'other' else 0))} .")
        (root / "captions.tsv").write_text("\n".join(rows) + "\n")
        (root / "split_test.txt").write_text("".join(f"images/{number}.png\n" for number in range(6)))
    return tmp_path


def command(scenes: Path, *more: str) -> list[str]:
    asked = ["--encoder", "toy", "--data", str(scenes / "clean"), "--split", "test", "--direction", "i2t"]
    return [*asked, "--method", "source", "--no-cache", "--batch", "4", *more]


def test_the_command_reads_corrupted_queries_and_another_gallery(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    asked = command(
        scenes, "--shift", "clean", "--shift", "fog", "--corrupted-on-disk", str(scenes / "shifted"),
        "--gallery-data", str(scenes / "clean"), "--gallery-data", str(scenes / "other"), "--json", str(out),
    )  # fmt: skip
    assert retrieval.main(asked) == 0
    document = json.loads(out.read_text())
    assert document["gallery"]["captions"] == 12
    assert "6 by name; 6 of 12 gallery pictures are distractors" in document["gallery"]["pairing"]
    assert [result["shift"] for result in document["results"]] == ["clean", "fog:5"]


def test_the_command_refuses_a_gallery_without_the_answers(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = command(scenes, "--shift", "clean", "--gallery-data", str(scenes / "other"))
    assert retrieval.main(asked) == 2
    assert "6 of 6 query pictures" in capsys.readouterr().out.replace("\n", " ")
