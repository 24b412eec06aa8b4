"""`attune corrupt`: what is copied, what is corrupted, and how a second run goes on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.corruptions import MissingTool, Shift, TextTools
from benchmarks.corruptions.folder import CorruptedCopy, FolderError, Summary
from benchmarks.datasets import load_split
from demo.scenes import render, scenes, write_folder
from service.cli import app
from tests.benchmarks.small_wordnet import write_wordnet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "scenes"
    write_folder(folder, "test", 3, size=40)
    picture = render(scenes("test", 1)[0], 40)
    (folder / "more").mkdir()
    picture.convert("L").save(folder / "more" / "grey.jpg", quality=100)
    picture.save(folder / "more" / "scene.bmp")
    (folder / "labels.tsv").write_text("id\tlabel\none\t1\n")
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "scenes"))


def copy(source: Path, out: Path, *shifts: str, **options: object) -> CorruptedCopy:
    return CorruptedCopy(source, out, [Shift.parse(shift) for shift in shifts], **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "corruption.json"
    }


def test_pictures_are_corrupted_and_everything_else_is_copied(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    advances: list[float] = []
    summary = copy(source, tmp_path / "out", "fog:5").run(advances.append)
    assert advances == [1] * len(before)
    after = contents(tmp_path / "out")
    assert contents(source) == before
    assert set(after) == set(before)
    assert summary == Summary(written=len(before), skipped=0)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if Path(name).suffix in (".png", ".jpg", ".bmp")}
    for name in changed:
        with Image.open(source / name) as old, Image.open(tmp_path / "out" / name) as new:
            assert (new.format, new.size) == (old.format, old.size)


def test_captions_are_corrupted_and_can_be_loaded(source: Path, tmp_path: Path) -> None:
    advances: list[float] = []
    copy(source, tmp_path / "out", "CS:7").run(advances.append)
    assert sum(advances) == pytest.approx(len(contents(source)))
    clean, drifted = (load_split(folder, "test") for folder in (source, tmp_path / "out"))
    assert len(clean.captions) == len(drifted.captions)
    assert all(a != b for a, b in zip(clean.captions, drifted.captions, strict=True))
    before, after = contents(source), contents(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"captions.tsv"}


def test_both_can_be_corrupted_at_once(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path / "out", "mm:fog:3", "OCR:7").run()
    before, after = contents(source), contents(tmp_path / "out")
    assert {name for name in before if before[name] == after[name]} == {"labels.tsv", "split_test.txt"}


def test_the_seed_decides_and_nothing_else(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        copy(source, tmp_path / name, "gaussian_noise:2", "RS:6", seed=seed).run()
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first["captions.tsv"] != other["captions.tsv"]
    assert first["more/scene.bmp"] != other["more/scene.bmp"]


def test_files_of_equal_content_are_corrupted_differently(source: Path, tmp_path: Path) -> None:
    shutil.copyfile(source / "more" / "scene.bmp", source / "more" / "twin.bmp")
    copy(source, tmp_path / "out", "gaussian_noise:2").run()
    after = contents(tmp_path / "out")
    assert after["more/scene.bmp"] != after["more/twin.bmp"]


def test_a_second_run_makes_what_is_missing_and_the_same(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copy(source, out, "snow:4", "CI:7").run()
    complete = contents(out)
    (out / "captions.tsv").unlink()
    (out / "more" / "grey.jpg").unlink()
    kept = (out / "more" / "scene.bmp").stat().st_mtime_ns
    assert copy(source, out, "snow:4", "CI:7").run() == Summary(2, len(complete) - 2)
    assert contents(out) == complete
    assert (out / "more" / "scene.bmp").stat().st_mtime_ns == kept


def test_a_broken_picture_is_named_and_what_was_made_stays(source: Path, tmp_path: Path) -> None:
    (source / "more" / "z.png").write_bytes(b"no picture")
    with pytest.raises(FolderError, match=r"z\.png: not a readable picture"):
        copy(source, tmp_path / "out", "fog:1").run()
    assert not json.loads((tmp_path / "out" / "corruption.json").read_text())["complete"]
    assert not list((tmp_path / "out").rglob("*.partial"))
    render(scenes("test", 1)[0], 40).save(source / "more" / "z.png")
    with pytest.raises(FolderError, match=r"another run.*source_digest"):
        copy(source, tmp_path / "out", "fog:1").run()


def test_the_manifest_says_what_was_done(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path / "out", "mm:fog:3", seed=4, about={"models": "none"}).run()
    manifest = json.loads((tmp_path / "out" / "corruption.json").read_text())
    assert manifest["shifts"] == ["mm:fog:3"]
    assert (manifest["seed"], manifest["quality"], manifest["complete"]) == (4, 95, True)
    assert (manifest["source"], manifest["models"]) == ("scenes", "none")


def test_quality_is_the_released_one_of_the_style_or_the_given(source: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, shift, options in (
        ("85", "brightness:1", {}), ("95", "mm:brightness:1", {}), ("30", "brightness:1", {"quality": 30}),
    ):  # fmt: skip
        copy(source, tmp_path / name, shift, **options).run()
        sizes[name] = (tmp_path / name / "more" / "grey.jpg").stat().st_size
    assert sizes["30"] < sizes["85"] < sizes["95"]


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"quality": 50}, "quality 85 there, 50 here"),
        ({"scale": True}, "scale False there, True here"),
    ],
)
def test_the_folder_of_another_run_is_refused(
    source: Path, tmp_path: Path, options: dict[str, object], difference: str
) -> None:
    out = tmp_path / "out"
    copy(source, out, "fog:1").run()
    before = contents(out)
    with pytest.raises(FolderError, match=difference):
        copy(source, out, "fog:1", **options).run()
    assert contents(out) == before


def test_a_folder_that_holds_something_else_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"not empty and has no corruption\.json"):
        copy(source, tmp_path / "out", "fog:1").run()
    (tmp_path / "out" / "corruption.json").write_text("[")
    with pytest.raises(FolderError, match="cannot be read"):
        copy(source, tmp_path / "out", "fog:1").run()
    assert contents(tmp_path / "out") == {"mine.txt": b"mine"}


def test_source_and_target_may_not_lie_in_one_another(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for out in (source, source / "inside", source.parent, tmp_path / "link"):
        with pytest.raises(FolderError, match="lie in one another"):
            copy(source, out, "fog:1").run()


def test_two_runs_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(FolderError, match="another run is writing"):
        copy(source, tmp_path / "out", "fog:1").run()
    os.close(handle)


def test_linked_folders_are_copied_and_circles_are_not_followed(source: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.move(source / "images", tmp_path / "elsewhere"))
    (source / "images").symlink_to(elsewhere)
    (source / "more" / "up").symlink_to(source)
    copy(source, tmp_path / "out", "contrast:1").run()
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3
    assert not (tmp_path / "out" / "more" / "up").exists()


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ([], "wanted, not none"),
        (["clean"], "wanted, not clean"),
        (["fog:1", "snow:2"], "wanted, not fog:1, snow:2"),
    ],
)
def test_one_shift_a_modality_is_wanted(
    source: Path, tmp_path: Path, shifts: list[str], message: str
) -> None:
    with pytest.raises(FolderError, match=message):
        copy(source, tmp_path / "out", *shifts).run()
    assert not (tmp_path / "out").exists()


def test_nothing_to_corrupt_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    with pytest.raises(FolderError, match="holds no pictures"):
        copy(tmp_path / "in", tmp_path / "out", "fog:1").run()
    with pytest.raises(FolderError, match=r"holds no captions\.tsv"):
        copy(tmp_path / "in", tmp_path / "out", "CS:1").run()
    with pytest.raises(FolderError, match="there is no folder"):
        copy(tmp_path / "none", tmp_path / "out", "fog:1").run()
    (tmp_path / "in" / "captions.tsv").write_text("a.txt\ta\n")
    with pytest.raises(MissingTool, match="WordNet"):
        copy(tmp_path / "in", tmp_path / "out", "SR:7", tools=TextTools()).run()
    assert not (tmp_path / "out").exists()


def test_a_malformed_caption_is_named_by_its_line(source: Path, tmp_path: Path) -> None:
    with (source / "captions.tsv").open("a") as file:
        file.write("no tab\n")
    lines = len((source / "captions.tsv").read_text().splitlines())
    with pytest.raises(FolderError, match=rf"captions\.tsv:{lines}: a line is FILE<TAB>CAPTION"):
        copy(source, tmp_path / "out", "CS:1").run()


def attune(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["corrupt", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout, result.stderr


def test_the_command_writes_the_copy_and_says_so(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (source, "--out", out, "--shift", "pixelate:5", "--shift", "IP:6", "--seed", 3)
    said, _ = attune(*arguments)
    assert said == f"{out}: 8 files written; pixelate:5, IP:6, seed 3\n"
    said, _ = attune(*arguments)
    assert said == f"{out}: 0 files written, 8 were there; pixelate:5, IP:6, seed 3\n"
    expected = tmp_path / "expected"
    copy(source, expected, "pixelate:5", "IP:6", seed=3).run()
    assert contents(out) == contents(expected)


def test_the_command_takes_style_and_quality(source: Path, tmp_path: Path) -> None:
    said, _ = attune(
        source, "--out", tmp_path / "a", "--shift", "frost:2", "--style", "mm_robustness", "--quality", 70
    )
    assert "mm:frost:2" in said
    copy(source, tmp_path / "b", "mm:frost:2", quality=70).run()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_command_takes_a_wordnet(source: Path, tmp_path: Path) -> None:
    (tmp_path / "dict").mkdir()
    attune(
        source, "--out", tmp_path / "out", "--shift", "SR:7",
        "--wordnet", write_wordnet(tmp_path / "dict"),
    )  # fmt: skip
    assert (tmp_path / "out" / "captions.tsv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shift", "fgo:5"], "did you mean 'fog'"),
        (["--shift", "mm:fog:3", "--style", "imagenet_c"], "contradict each other"),
        (["--shift", "fog:3", "--wordnet", "none"], "none is no WordNet"),
        (["--shift", "Formal"], "Formal needs a model"),
        (["--shift", "Formal", "--model", "Formal"], "--model is NAME=MODEL"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    source: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    _, said = attune(source, "--out", tmp_path / "out", *arguments, code=2)
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_the_benchmarks_the_command_says_so_and_the_others_work(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['benchmarks'] = None; from service.cli import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", hidden, "corrupt", tmp_path, "--out", tmp_path / "out", "--shift", "fog"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert said.returncode == 2
    assert "needs the package `benchmarks`" in said.stderr


def test_corrupting_pictures_needs_no_torch() -> None:
    code = "import sys, benchmarks.corruptions.folder; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode
        == 0
    )


def test_a_copy_of_a_copy_is_corrupted_twice(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path / "once", "brightness:1").run()
    copy(tmp_path / "once", tmp_path / "twice", "contrast:1").run()
    once, twice = (np.asarray(Image.open(tmp_path / n / "more" / "scene.bmp")) for n in ("once", "twice"))
    expected = Shift.parse("contrast:1").image(once, np.random.default_rng(0))
    assert np.array_equal(twice, expected)
