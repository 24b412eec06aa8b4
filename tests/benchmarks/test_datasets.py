"""Reading a folder of captioned pictures, and what each missing piece is said to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.datasets import DatasetError, load_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "captions.tsv").write_text(
        "file\tcaption\nimages/a.png\tone\nimages/b.png\ttwo\nimages/a.png\tthree\nimages/c.png\tfour\n"
    )
    (tmp_path / "split_test.txt").write_text("images/b.png\nimages/a.png\n\n")
    return tmp_path


def test_a_split_keeps_its_order_and_the_captions_theirs(folder: Path) -> None:
    data = load_split(folder, "test")
    assert [path.name for path in data.images] == ["b.png", "a.png"]
    assert data.captions == ["two", "one", "three"]
    assert data.image_of_caption == [0, 1, 1]
    assert data.captions_of_image == [[0], [1, 2]]


def test_the_digest_follows_pictures_captions_and_order(folder: Path) -> None:
    def digest() -> str:
        return load_split(folder, "test").digest

    first = digest()
    assert digest() == first
    (folder / "images" / "a.png").write_bytes(b"other")
    second = digest()
    (folder / "split_test.txt").write_text("images/a.png\nimages/b.png\n")
    third = digest()
    text = (folder / "captions.tsv").read_text()
    (folder / "captions.tsv").write_text(text.replace("three", "3"))
    assert len({first, second, third, digest()}) == 4


def _remove_images(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()
    (folder / "images").rmdir()


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_images, "has no folder images/"),
        (lambda folder: (folder / "captions.tsv").unlink(), "has no captions.tsv"),
        (_write("captions.tsv", ""), "does not begin with the header"),
        (_write("captions.tsv", "name\ttext\n"), "does not begin with the header"),
        (_write("captions.tsv", "file\tcaption\nimages/a.png one\n"), "line 2: expected file<TAB>caption"),
        (_write("captions.tsv", "file\tcaption\nimages/a.png\t \n"), "line 2: expected"),
        (
            _write("captions.tsv", "file\tcaption\nimages/a.png\tone\n"),
            "no caption for images/b.png of split 'test'",
        ),
        (_write("split_test.txt", "\n"), "lists no file"),
        (_write("split_test.txt", "images/a.png\nimages/a.png\n"), "lists images/a.png more than once"),
        (lambda folder: (folder / "images" / "b.png").unlink(), "lacks images/b.png of split 'test'"),
        (
            lambda folder: (folder / "split_test.txt").unlink(),
            "has no split 'test'.*no split_NAME.txt at all",
        ),
    ],
)
def test_every_missing_piece_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DatasetError, match=message):
        load_split(folder, "test")


def test_a_split_that_is_not_there_names_those_that_are(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no split 'dev' .split_dev.txt.; it has test"):
        load_split(folder, "dev")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere"):
        load_split(tmp_path / "nowhere", "test")


def test_many_missing_files_are_counted_not_listed(folder: Path) -> None:
    names = [f"images/{i}.png" for i in range(10)]
    (folder / "split_test.txt").write_text("\n".join(names))
    with pytest.raises(DatasetError, match=r"images/0.png, images/1.png, images/2.png and 7 more"):
        load_split(folder, "test")
