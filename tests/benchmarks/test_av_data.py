"""Readers of labelled audio-video samples: what they find, and what they say when something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks.av_data import (
    AVData,
    AVSample,
    Sound,
    check_labels,
    load_av_data,
    pair_digits,
    read_frame,
    read_waveform,
)
from benchmarks.datasets import DatasetError
from encoders.audio import AudioSpec
from encoders.preprocessing import ImageSpec

AUDIO, IMAGE = AudioSpec(frames=96), ImageSpec(32, 32)


def write_wav(path: Path, rate: int = 8000, seconds: float = 0.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(int(rate * seconds)) / rate)
    soundfile.write(path, tone.astype(np.float32), rate)


def write_picture(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_wav(tmp_path / "sounds" / "a.wav")
    write_picture(tmp_path / "a.png")
    for number in range(4):
        write_picture(tmp_path / "clip" / f"{number}.png", 10 * number)
    return tmp_path


def table(folder: Path, *rows: str, header: str = "id\taudio\timage\tframes\tlabel") -> Path:
    lines = [header, *rows]
    (folder / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# -- labels.tsv -----------------------------------------------------------------------------------------


def test_a_folder_is_read_with_missing_modalities_and_middle_frames(folder: Path) -> None:
    table(
        folder,
        "one\tsounds/a.wav\ta.png\t\tdog",
        "two\tsounds/a.wav\t\tclip\tcat",
        "three\t\ta.png\t\tdog",
        "four\tsounds/a.wav\t\t\tcat",
    )
    data = load_av_data(str(folder), labels=("cat", "dog"))
    assert [sample.label for sample in data.samples] == [1, 0, 1, 0]
    assert data.labels == ("cat", "dog")
    waveforms = [read_waveform(sample, AUDIO) for sample in data.samples]
    assert [None if waveform is None else len(waveform) for waveform in waveforms] == [3200, 3200, None, 3200]
    frames = [read_frame(sample, IMAGE) for sample in data.samples]
    assert frames[0] is not None
    assert frames[0].shape == (32, 32, 3)
    assert frames[1] is not None
    assert int(frames[1].max()) == 20, "of four frames the middle one is the third"
    assert frames[3] is None


def test_without_a_classifier_labels_count_in_order_of_appearance(folder: Path) -> None:
    table(folder, "one\tsounds/a.wav\ta.png\t\tdog", "two\t\ta.png\t\tcat", "three\t\ta.png\t\tdog")
    data = load_av_data(str(folder))
    assert data.labels == ("dog", "cat")
    assert [sample.label for sample in data.samples] == [0, 1, 0]


@pytest.mark.parametrize("path", ["../secret.wav", "/etc/hostname", "sounds/../../secret.wav", "link.wav"])
def test_a_path_out_of_the_folder_is_refused(folder: Path, path: str) -> None:
    write_wav(folder.parent / "secret.wav")
    (folder / "link.wav").symlink_to(folder.parent / "secret.wav")
    table(folder, f"one\t{path}\ta.png\t\tdog")
    with pytest.raises(DatasetError, match=r"line 2: .* lies outside of"):
        load_av_data(str(folder))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("one\tsounds/b.wav\ta.png\t\tdog", r"line 2: there is no file 'sounds/b\.wav'"),
        ("one\tsounds/a.wav\t\tnowhere\tdog", "there is no folder 'nowhere'"),
        ("one\tsounds/a.wav\t\tsounds\tdog", "the folder sounds has no pictures"),
        ("one\tsounds/a.wav\ta.png\tclip\tdog", "image or frames, not both"),
        ("one\t\t\t\tdog", "neither sound nor picture"),
        ("one\tsounds/a.wav\ta.png\t\tdoge", "no label 'doge'; did you mean 'dog'"),
        ("one\tsounds/a.wav\ta.png\tdog", "4 cells, the header has 5"),
    ],
)
def test_a_wrong_row_is_named(folder: Path, row: str, message: str) -> None:
    table(folder, row)
    with pytest.raises(DatasetError, match=message):
        load_av_data(str(folder), labels=("cat", "dog"))


def test_a_wrong_table_is_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no labels\.tsv"):
        load_av_data(str(folder))
    table(folder)
    with pytest.raises(DatasetError, match="has no rows"):
        load_av_data(str(folder))
    table(folder, "one\tsounds/a.wav\tdog", header="id\taudio\tlabel")
    with pytest.raises(DatasetError, match="neither a column image nor frames"):
        load_av_data(str(folder))
    table(folder, "one\tsounds/a.wav\tdog", header="id\tsound\tlabel")
    with pytest.raises(DatasetError, match="the header lacks audio"):
        load_av_data(str(folder))
    table(folder, "one\t\ta.png\t\tdog", "one\t\ta.png\t\tdog")
    with pytest.raises(DatasetError, match="the id 'one' more than once"):
        load_av_data(str(folder))
    (folder / "labels.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read as UTF-8"):
        load_av_data(str(folder))
    with pytest.raises(DatasetError, match="there is no folder"):
        load_av_data(str(folder / "nowhere"))


def test_a_broken_file_is_named_by_its_sample(folder: Path) -> None:
    (folder / "bad.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVE")
    (folder / "bad.png").write_bytes(b"nonsense")
    table(folder, "one\tbad.wav\tbad.png\t\tdog")
    (sample,) = load_av_data(str(folder)).samples
    with pytest.raises(DatasetError, match="sound of sample 'one'"):
        read_waveform(sample, AUDIO)
    with pytest.raises(DatasetError, match="picture of sample 'one'"):
        read_frame(sample, IMAGE)


# -- JSON lists -----------------------------------------------------------------------------------------

Change = Callable[[dict[str, str]], object]


def json_list(folder: Path, *changes: Change) -> Path:
    """A list of one sample in the reference's layout, changed."""
    write_wav(folder / "wav" / "x.wav")
    write_picture(folder / "frames" / "frame_5" / "x.jpg")
    (folder / "class_labels_indices_ks.csv").write_text(
        'index,mid,display_name\n0,/m/0,"blowing nose"\n1,/m/1,"bowling, indoors"\n'
    )
    entry = {
        "video_id": "x",
        "wav": str(folder / "wav" / "x.wav"),
        "video_path": str(folder / "frames"),
        "labels": "/m/1",
    }
    for change in changes:
        change(entry)
    path = folder / "test.json"
    path.write_text(json.dumps({"data": [entry]}))
    return path


def test_a_list_of_the_reference_repositories_is_read(tmp_path: Path) -> None:
    data = load_av_data(str(json_list(tmp_path)))
    assert data.labels == ("blowing nose", "bowling, indoors")
    (sample,) = data.samples
    assert (sample.id, sample.label) == ("x", 1)
    assert sample.picture == tmp_path / "frames" / "frame_5" / "x.jpg"
    assert read_waveform(sample, AUDIO) is not None


def test_paths_of_a_list_may_be_relative_to_it(tmp_path: Path) -> None:
    path = json_list(tmp_path, lambda entry: entry.update(wav="wav/x.wav", video_path="frames/"))
    (sample,) = load_av_data(str(path)).samples
    assert sample.sound == tmp_path / "wav" / "x.wav"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(labels="/m/9"), "entry 0: the class labels have no '/m/9'"),
        (lambda entry: entry.update(labels="/m/0,/m/1"), "several labels of one sample are not supported"),
        (lambda entry: entry.update(wav="wav/y.wav"), r"there is no sound .*y\.wav"),
        (lambda entry: entry.update(video_id="y"), r"there is no frame .*y\.jpg"),
        (lambda entry: entry.update(video_id="../../../y"), "leads outside of video_path"),
        (lambda entry: entry.pop("labels"), "expected texts video_id, wav, video_path, labels"),
        (lambda entry: entry.update(wav=None), "expected texts"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_av_data(str(json_list(tmp_path, change)))


def test_a_wrong_list_or_csv_is_named(tmp_path: Path) -> None:
    path = json_list(tmp_path)
    labels = tmp_path / "class_labels_indices_ks.csv"
    labels.write_text("index,mid,display_name\n0,/m/0,a\n2,/m/1,b\n")
    with pytest.raises(DatasetError, match="do not count from 0 without gaps"):
        load_av_data(str(path))
    labels.write_text("number,mid\n0,/m/0\n")
    with pytest.raises(DatasetError, match="has not the columns index, mid, display_name"):
        load_av_data(str(path))
    labels.unlink()
    with pytest.raises(DatasetError, match="but there is none"):
        load_av_data(str(path))
    with pytest.raises(DatasetError, match="there are no class labels"):
        load_av_data(str(path), class_labels=tmp_path / "other.csv")
    json_list(tmp_path)
    path.write_text("[]")
    with pytest.raises(DatasetError, match="is not"):
        load_av_data(str(path))
    path.write_text('{"data": []}')
    with pytest.raises(DatasetError, match="lists no sample"):
        load_av_data(str(path))
    with pytest.raises(DatasetError, match="there is no list"):
        load_av_data(str(tmp_path / "other.json"))


# -- digits ---------------------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Four pictures and two recordings of each digit in each split; a picture's value names it."""
    arrays = {}
    for number, split in enumerate(("train", "test")):
        values = np.arange(40, dtype=np.uint8) + 100 * number
        arrays[f"{split}_x"] = np.broadcast_to(values[:, None, None], (40, 28, 28)).copy()
        arrays[f"{split}_y"] = np.arange(40, dtype=np.uint8) % 10
    np.savez(tmp_path / "mnist.npz", **arrays)
    rows = ["file\tlabel\tsplit\tmodality\tspeaker"]
    for digit in range(10):
        for number, split in enumerate(("train", "train", "test", "test")):
            name = f"audio/{digit}_x_{number}.wav"
            write_wav(tmp_path / name)
            rows.append(f"{name}\t{digit}\t{split}\taudio\tx")
    (tmp_path / "audio_labels.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


def pictures(data: AVData) -> list[int]:
    return [int(sample.picture[0, 0, 0]) for sample in data.samples if isinstance(sample.picture, np.ndarray)]


def test_digits_are_paired_within_class_and_split(digits: Path) -> None:
    train, test = pair_digits(digits, "train", 40), pair_digits(digits, "test", 40)
    for data in (train, test):
        for sample, value in zip(data.samples, pictures(data), strict=True):
            assert isinstance(sample.sound, Path)
            assert sample.sound.name.startswith(f"{sample.label}_")
            assert value % 10 == sample.label
        assert len(set(pictures(data))) == 40, "every picture once"
    assert not {sample.sound for sample in train.samples} & {sample.sound for sample in test.samples}
    assert not set(pictures(train)) & set(pictures(test))
    assert "40 pictures and 20 recordings, split test by file" in test.note


def test_the_pairing_is_fixed_by_its_seed(digits: Path) -> None:
    def ids(seed: int) -> list[str]:
        return [sample.id for sample in pair_digits(digits, "test", 30, seed).samples]

    assert ids(0) == ids(0) != ids(1)


def test_too_few_pictures_or_recordings_are_named(digits: Path) -> None:
    with pytest.raises(DatasetError, match="no 50 pictures in split test"):
        pair_digits(digits, "test", 50)
    with pytest.raises(DatasetError, match="splits train and test, not 'dev'"):
        load_av_data(str(digits), split="dev")
    labels = digits / "audio_labels.tsv"
    rows = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(row for row in rows if "\t7\t" not in row))
    with pytest.raises(DatasetError, match="no recording of 7 in split 'test'"):
        pair_digits(digits, "test", 10)
    (digits / "mnist.npz").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"mnist\.npz does not hold test_x"):
        pair_digits(digits, "test", 10)


# -- the rest -------------------------------------------------------------------------------------------


def test_a_waveform_at_hand_is_resampled() -> None:
    sample = AVSample("x", 0, Sound(np.zeros(8000, np.float32), 8000), None)
    waveform = read_waveform(sample, AUDIO)
    assert waveform is not None
    assert len(waveform) == 16_000
    assert read_frame(sample, IMAGE) is None


def test_more_labels_than_the_classifier_has_are_refused() -> None:
    sample = AVSample("x", 0, None, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DatasetError, match="has 3 labels, the classifier answers with 2"):
        check_labels(AVData("data", ("a", "b", "c"), (sample,)), ("a", "b"))
    with pytest.raises(DatasetError, match="has no sample"):
        check_labels(AVData("data", ("a",), ()), ("a", "b"))
