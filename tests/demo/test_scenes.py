"""The scene grammar, its splits, the drawing, and the folder writer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.scenes import (
    BACKGROUNDS,
    BLOCK,
    COLOURS,
    SETTINGS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Scene,
    Thing,
    main,
    render,
    scenes,
    split_of,
    vocabulary,
)

COUNT = 600
ROOT = Path(__file__).resolve().parents[2]


def two_things(relation: str, background: str = "grey") -> Scene:
    """A large red circle and a large blue square."""
    red, blue = Thing("circle", "red", "large", "plain"), Thing("square", "blue", "large", "plain")
    return Scene("made-0", f"a red circle {relation} a blue square", (red, blue), relation, background)


def centre(picture: Image.Image, channel: int) -> tuple[float, float]:
    """Mean column and row, in shares of the picture, of the pixels where one channel clearly leads."""
    pixels = np.asarray(picture, dtype=float)
    others = np.delete(pixels, channel, axis=2).max(axis=2)
    rows, columns = np.nonzero(pixels[:, :, channel] > others + 60)
    return columns.mean() / picture.width, rows.mean() / picture.height


def test_same_call_gives_the_same_scenes() -> None:
    assert scenes("test", 50) == scenes("test", 50)


def test_longer_list_begins_with_the_shorter_one() -> None:
    assert scenes("dev", 80)[:30] == scenes("dev", 30)


def test_scenes_do_not_depend_on_the_salt_of_hash() -> None:
    code = "from demo.scenes import scenes; print('|'.join(s.id + s.caption for s in scenes('test', 40)))"
    seen = set()
    for salt in ("1", "2"):
        surroundings = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, check=True)
        seen.add(done.stdout)
    assert len(seen) == 1


def test_captions_are_the_ones_the_weights_were_trained_on() -> None:
    """A change of the grammar makes the committed weights stale: then train anew and update this digest."""
    text = "\n".join(f"{scene.id} {scene.caption}" for split in SPLITS for scene in scenes(split, 200))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "201ff907a4bd38fc"


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_distinct_within_a_split(split: str) -> None:
    listed = scenes(split, COUNT)
    assert len({scene.caption for scene in listed}) == COUNT
    assert len({scene.meaning() for scene in listed}) == COUNT
    assert len({scene.id for scene in listed}) == COUNT


def test_splits_share_no_caption_and_no_meaning() -> None:
    meanings: set[str] = set()
    for split in SPLITS:
        found = {scene.meaning() for scene in scenes(split, COUNT)}
        assert all(split_of(scene) == split for scene in scenes(split, 100))
        assert not meanings & found
        meanings |= found


def test_buckets_of_the_splits_cover_everything_once() -> None:
    assert sorted(bucket for buckets in SPLITS.values() for bucket in buckets) == list(range(100))


def test_held_out_scenes_share_their_setting_with_three_others() -> None:
    listed = scenes("test", BLOCK)
    series = [listed[number::SETTINGS] for number in range(SETTINGS)]
    assert {len(members) for members in series} == {8}
    for members in series:
        settings = {(scene.background, scene.relation) for scene in members}
        colours = {tuple(thing.colour for thing in scene.things) for scene in members}
        assert len(settings) == 1
        assert len(colours) == 1 or len(members[0].things) == 1


def test_opposite_relation_with_swapped_things_means_the_same() -> None:
    scene = two_things("left")
    swapped = Scene("made-1", "", scene.things[::-1], "right", scene.background)
    assert swapped.meaning() == scene.meaning()
    assert swapped.meaning() != two_things("right").meaning()
    assert split_of(swapped) == split_of(scene)


def test_every_word_of_every_caption_is_in_the_vocabulary() -> None:
    said = {word for scene in scenes("train", COUNT) for word in scene.caption.split()}
    assert said <= set(vocabulary())
    assert set(vocabulary()) - said <= {"an"}


def test_grammar_holds_more_than_a_hundred_thousand_meanings() -> None:
    """n things of one kind: n * (n - 1) ordered pairs at most, less those alike in shape and colour."""
    things = len(SHAPES) * len(COLOURS) * len(SIZES) * len(TEXTURES)
    alike = len(SIZES) * len(TEXTURES)
    assert things * (things - alike) * 2 * len(BACKGROUNDS) > 100_000


def test_attributes_can_be_written_as_json_and_agree_with_the_caption() -> None:
    for scene in scenes("gallery", 100):
        held = json.loads(json.dumps(scene.attributes))
        assert all(thing["shape"] in scene.caption for thing in held["things"])
        assert all(thing["colour"] in scene.caption for thing in held["things"])
        assert (held["relation"] is None) == (len(held["things"]) == 1)


def test_unknown_split_and_negative_count_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        scenes("tset", 3)
    with pytest.raises(ValueError, match="must not be negative"):
        scenes("test", -1)


@pytest.mark.parametrize("size", [16, 64, 200])
def test_picture_has_the_asked_size_and_uses_the_range_of_values(size: int) -> None:
    picture = render(scenes("test", 1)[0], size)
    assert (picture.size, picture.mode) == ((size, size), "RGB")
    pixels = np.asarray(picture)
    assert int(pixels.max()) - int(pixels.min()) > 80


@pytest.mark.parametrize("size", [15, 2049])
def test_picture_outside_the_sizes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="between 16 and 2048"):
        render(scenes("test", 1)[0], size)


def test_scene_always_looks_the_same() -> None:
    scene = scenes("dev", 1)[0]
    assert np.array_equal(np.asarray(render(scene)), np.asarray(render(scene)))


def test_same_description_with_another_id_looks_different_but_alike() -> None:
    one = scenes("dev", 1)[0]
    other = Scene("another", one.caption, one.things, one.relation, one.background)
    difference = np.abs(np.asarray(render(one), dtype=float) - np.asarray(render(other), dtype=float)).mean()
    assert 1 < difference < 60


def test_all_sizes_show_the_same_scene() -> None:
    for scene in scenes("dev", 5):
        small = np.asarray(render(scene, 64), dtype=float)
        large = np.asarray(render(scene, 256).resize((64, 64), Image.Resampling.BOX), dtype=float)
        assert np.abs(small - large).mean() < 8


@pytest.mark.parametrize(
    ("relation", "axis", "before"),
    [("left", 0, True), ("right", 0, False), ("above", 1, True), ("below", 1, False)],
)
def test_relation_says_where_the_first_thing_lies(relation: str, axis: int, before: bool) -> None:
    picture = render(two_things(relation))
    red, blue = centre(picture, 0)[axis], centre(picture, 2)[axis]
    assert (red < blue - 0.25) if before else (red > blue + 0.25)


def test_large_thing_covers_more_than_a_small_one() -> None:
    def covered(size: str) -> int:
        thing = Thing("circle", "blue", size, "plain")
        pixels = np.asarray(render(Scene("made", size, (thing,), None, "grey")), dtype=int)
        return int((pixels[:, :, 2] > pixels[:, :, 0] + 60).sum())

    assert covered("large") > 2.5 * covered("small") > 0


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("texture", TEXTURES)
def test_every_shape_can_be_seen_on_every_background(background: str, texture: str) -> None:
    """Between two shapes on the same spot, at least a few dozen of 64 x 64 pixels differ clearly."""
    pictures = [
        np.asarray(
            render(Scene("made", "same", (Thing(shape, "red", "large", texture),), None, background), 64)
        )
        for shape in ("circle", "cross", "fish")
    ]
    for one, other in pairwise(pictures):
        assert (np.abs(one.astype(int) - other.astype(int)).max(axis=2) > 40).sum() > 50


def test_folder_holds_pictures_captions_and_the_list_of_the_split(tmp_path: Path) -> None:
    main([str(tmp_path), "--split", "test", "--count", "4", "--size", "32"])
    lines = (tmp_path / "captions.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "file\tcaption"
    listed = scenes("test", 4)
    assert [line.split("\t") for line in lines[1:]] == [
        [f"images/{scene.id}.png", scene.caption] for scene in listed
    ]
    names = (tmp_path / "split_test.txt").read_text(encoding="utf-8").splitlines()
    assert names == [line.split("\t")[0] for line in lines[1:]]
    with Image.open(tmp_path / names[2]) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(render(listed[2], 32)))


def test_second_split_in_the_same_folder_keeps_the_first(tmp_path: Path) -> None:
    for split, count in (("test", 2), ("dev", 3), ("test", 1)):
        main([str(tmp_path), "--split", split, "--count", str(count), "--size", "16"])
    names = [line.split("\t")[0] for line in (tmp_path / "captions.tsv").read_text().splitlines()[1:]]
    assert names == [f"images/dev-{i:06d}.png" for i in range(3)] + ["images/test-000000.png"]
    assert len((tmp_path / "split_dev.txt").read_text().splitlines()) == 3
