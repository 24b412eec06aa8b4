from __future__ import annotations

from pathlib import Path

import pytest

from encoders.av_folder import LabelledFiles, read_av_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "a.png", "frames/3.jpg", "frames/1.jpg", "frames/2.jpg", "frames/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "none").mkdir()
    return tmp_path


def listed(folder: Path, text: str) -> list[LabelledFiles]:
    (folder / "labels.tsv").write_text(text, encoding="utf-8")
    return read_av_folder(folder)


def test_samples_have_files_and_labels(folder: Path) -> None:
    found = listed(
        folder, 'id\taudio\timage\tlabel\tspeaker\nx\ta.wav\ta.png\tbell "1"\tann\n\ta.wav\t\tcar\tbob\n'
    )
    assert found == [
        LabelledFiles("x", 'bell "1"', folder / "a.wav", folder / "a.png"),
        LabelledFiles("1", "car", folder / "a.wav", None),
    ]
    assert [sample.complete for sample in found] == [True, False]


def test_middle_picture_of_a_folder_of_frames_counts(folder: Path) -> None:
    (sample,) = listed(folder, "audio\tframes\tlabel\na.wav\tframes\tbell\n")
    assert sample.image == folder / "frames" / "2.jpg"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"labels\.tsv:1: the header needs label"),
        ("id\taudio\n", r"labels\.tsv:1: the header needs label"),
        ("id\tlabel\n", r"labels\.tsv:1: the header needs label"),
        ("audio\tlabel\n", "holds no samples"),
        ("audio\tlabel\na.wav\n", r"labels\.tsv:2: the row has not"),
        ("audio\tlabel\na.wav\tb\tc\n", r"labels\.tsv:2: the row has not"),
        ("audio\tlabel\na.wav\tbell\n\tcar\n", r"labels\.tsv:3: the sample has neither"),
        ("audio\tlabel\na.wav\t \n", r"labels\.tsv:2: the label is empty"),
        ("audio\tlabel\nnone.wav\tbell\n", r"labels\.tsv:2: there is no file"),
        ("audio\tlabel\n../a.wav\tbell\n", r"labels\.tsv:2: \.\./a\.wav lies outside"),
        ("audio\tlabel\n/etc/passwd\tbell\n", r"labels\.tsv:2: /etc/passwd lies outside"),
        ("frames\tlabel\nnone\tbell\n", r"labels\.tsv:2: .* holds no pictures"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(folder: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        listed(folder, text)


def test_folder_without_a_listing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no labels\.tsv"):
        read_av_folder(tmp_path)
