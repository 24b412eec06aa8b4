"""Labelled audio-video samples: folders, the reference repositories' lists, paired digits, the demo's clips.

FOLDER/labels.tsv       header `id audio image label` or `id audio frames label` (tabs), then a row a sample.
                        `frames` is a folder of pictures, of which the middle one is taken. An empty cell: the
                        sample lacks that modality. Paths are relative and stay inside the folder.
LIST.json               CAV-MAE, READ, BriMPR: {"data": [{"video_id", "wav", "video_path", "labels"}, ...]}
                        with a class_labels_indices csv (index, mid, display_name). The frame is
                        video_path/frame_5/video_id.jpg.
FOLDER/mnist.npz        written digits, and spoken ones in audio/ with audio_labels.tsv, paired by digit.
"demo"                  clips that demo/clips.py draws and synthesises.

Nothing is decoded before it is asked for. Letters: n samples of a waveform, H x W pixels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets import DatasetError
from encoders.audio import AudioSpec, BadAudio, read_audio, resampled
from encoders.base import BadImage, ImageTooLarge
from encoders.preprocessing import ImageSpec, open_image, pixels

Waveform = NDArray[np.float32]
Picture = NDArray[np.uint8]

REFERENCE_FRAME = 5
"""Of the ten frames that the reference repositories keep of a clip."""
DIGIT_TEST_PAIRS = 1500
DIGIT_PAIRING_SEED = 0
DEMO_CLIPS = 1200

_LABELS_FILE = "labels.tsv"
_LONGEST_SECONDS = 600.0
_LARGEST_BYTES = 256 * 1024 * 1024
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Sound:
    """A waveform that is at hand, float32 [n] in [-1, 1]."""

    waveform: Waveform
    sample_rate: int


@dataclass(frozen=True)
class AVSample:
    """label: place in the data's labels. sound: a file or a waveform. picture: a file or uint8 [H, W, 3]."""

    id: str
    label: int
    sound: Path | Sound | None
    picture: Path | Picture | None


@dataclass(frozen=True)
class AVData:
    """labels in the order that `AVSample.label` counts; note: what a reader of the results should know."""

    name: str
    labels: tuple[str, ...]
    samples: tuple[AVSample, ...]
    note: str = ""

    def __len__(self) -> int:
        return len(self.samples)


def load_av_data(
    data: str, *, split: str = "test", class_labels: Path | None = None, labels: Sequence[str] | None = None
) -> AVData:
    """What `data` names: see the module's head.

    split         of the digits and the demo's clips: train or test
    class_labels  the csv of a JSON list; None: the one class_labels_indices*.csv beside it
    labels        a classifier's; rows of labels.tsv are counted in their order. None: in order of appearance

    Raises DatasetError, which names what is missing or wrong.
    """
    if data == "demo":
        return _demo_clips(split)
    path = Path(data)
    if path.suffix == ".json":
        return read_json_list(path, class_labels)
    if not path.is_dir():
        raise DatasetError(f"there is no folder {path}, nor is it a .json list")
    if (path / "mnist.npz").is_file():
        return pair_digits(path, split)
    return read_labels_tsv(path, labels)


def read_waveform(sample: AVSample, spec: AudioSpec) -> Waveform | None:
    """float32 [n] at the model's rate, mono; None where the sample has no sound. Raises DatasetError."""
    if sample.sound is None:
        return None
    try:
        if isinstance(sample.sound, Sound):
            return resampled(sample.sound.waveform, sample.sound.sample_rate, spec.sample_rate)
        return read_audio(
            sample.sound.read_bytes(),
            sample_rate=spec.sample_rate,
            max_seconds=_LONGEST_SECONDS,
            max_bytes=_LARGEST_BYTES,
        )
    except (BadAudio, OSError) as error:
        raise DatasetError(f"sound of sample {sample.id!r}: {error}") from error


def read_frame(sample: AVSample, spec: ImageSpec) -> Picture | None:
    """uint8 [H, W, 3] at the model's frame size; None where there is no picture. Raises DatasetError."""
    if sample.picture is None:
        return None
    try:
        if isinstance(sample.picture, Path):
            image = open_image(sample.picture.read_bytes())
        else:
            image = Image.fromarray(sample.picture)
        return np.ascontiguousarray(np.moveaxis(pixels(image, spec), 0, -1))
    except (BadImage, ImageTooLarge, OSError) as error:
        raise DatasetError(f"picture of sample {sample.id!r}: {error}") from error


def check_labels(data: AVData, labels: Sequence[str]) -> None:
    """Raises DatasetError unless the data's labels can be the classifier's answers.

    Lists with a csv count classes as the classifier's head does; only their number is compared, because
    the names in circulation differ in spelling.
    """
    if len(data.labels) > len(labels):
        raise DatasetError(
            f"{data.name} has {len(data.labels)} labels, the classifier answers with {len(labels)}"
        )
    if not data.samples:
        raise DatasetError(f"{data.name} has no sample")


# -- labels.tsv -----------------------------------------------------------------------------------------


def read_labels_tsv(folder: Path, labels: Sequence[str] | None = None) -> AVData:
    """A folder with labels.tsv. Raises DatasetError."""
    rows = _rows(folder / _LABELS_FILE, required=("id", "audio", "label"))
    columns = set(rows[0][1])
    if not columns & {"image", "frames"}:
        raise DatasetError(f"{folder / _LABELS_FILE} has neither a column image nor frames")
    known = {label: number for number, label in enumerate(labels or ())}
    if labels is None:
        for _, row in rows:
            known.setdefault(row["label"], len(known))
    samples = [_tsv_sample(folder, line, row, known) for line, row in rows]
    _refuse_repeats(folder / _LABELS_FILE, [sample.id for sample in samples])
    return AVData(folder.resolve().name, tuple(known), tuple(samples))


def _tsv_sample(folder: Path, line: int, row: Mapping[str, str], known: Mapping[str, int]) -> AVSample:
    where = f"{folder / _LABELS_FILE}, line {line}"
    label = row["label"]
    if label not in known:
        close = get_close_matches(label, known, n=1)
        nearest = f"; did you mean {close[0]!r}?" if close else ""
        raise DatasetError(f"{where}: the classifier has no label {label!r}{nearest}")
    sound = _inside(folder, row["audio"], where) if row["audio"] else None
    picture = _inside(folder, row["image"], where) if row.get("image") else None
    if row.get("frames"):
        if picture is not None:
            raise DatasetError(f"{where}: give image or frames, not both")
        picture = _middle_frame(_inside(folder, row["frames"], where, directory=True), where)
    if sound is None and picture is None:
        raise DatasetError(f"{where}: the sample has neither sound nor picture")
    return AVSample(row["id"], known[label], sound, picture)


def _middle_frame(folder: Path, where: str) -> Path:
    frames = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not frames:
        raise DatasetError(f"{where}: the folder {folder.name} has no pictures")
    return frames[len(frames) // 2]


def _inside(folder: Path, relative: str, where: str, *, directory: bool = False) -> Path:
    """The file (or folder) below `folder`. Raises DatasetError: it is elsewhere, or not there."""
    path = (folder / relative).resolve()
    if Path(relative).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise DatasetError(f"{where}: {relative!r} lies outside of {folder}")
    if not (path.is_dir() if directory else path.is_file()):
        raise DatasetError(f"{where}: there is no {'folder' if directory else 'file'} {relative!r}")
    return path


def _rows(path: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells by column of a table with tabs. Raises DatasetError."""
    if not path.is_file():
        raise DatasetError(f"{path.parent} has no {path.name}")
    lines = _text(path).splitlines()
    header = lines[0].split("\t") if lines else []
    missing = [name for name in required if name not in header]
    if missing:
        raise DatasetError(f"{path}: the header lacks {', '.join(missing)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) != len(header):
            raise DatasetError(f"{path}, line {number}: {len(cells)} cells, the header has {len(header)}")
        rows.append((number, dict(zip(header, (cell.strip() for cell in cells), strict=True))))
    if not rows:
        raise DatasetError(f"{path} has no rows")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _refuse_repeats(path: Path, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DatasetError(f"{path} has the id {name!r} more than once")
        seen.add(name)


# -- JSON lists of the reference repositories --------------------------------------------------------------


def read_json_list(path: Path, class_labels: Path | None = None) -> AVData:
    """A list of CAV-MAE, READ or BriMPR; relative paths count from the list's folder. Raises DatasetError."""
    if not path.is_file():
        raise DatasetError(f"there is no list {path}")
    names, index_of = _class_labels(class_labels or _labels_beside(path))
    try:
        entries = json.loads(_text(path))["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f'{path} is not {{"data": [...]}}: {error}') from error
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f"{path} lists no sample")
    samples = [_json_sample(path, number, entry, index_of) for number, entry in enumerate(entries)]
    return AVData(path.stem, names, tuple(samples))


def _json_sample(path: Path, number: int, entry: Any, index_of: Mapping[str, int]) -> AVSample:
    where = f"{path}, entry {number}"
    fields = ("video_id", "wav", "video_path", "labels")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in fields):
        raise DatasetError(f"{where}: expected texts {', '.join(fields)}")
    mid = entry["labels"]
    if mid not in index_of:
        hint = "; several labels of one sample are not supported" if "," in mid else ""
        raise DatasetError(f"{where}: the class labels have no {mid!r}{hint}")
    # Absolute paths are what these lists hold; what follows from an id must not leave its folder, though.
    sound = (path.parent / entry["wav"]).resolve()
    frames = (path.parent / entry["video_path"]).resolve()
    picture = (frames / f"frame_{REFERENCE_FRAME}" / f"{entry['video_id']}.jpg").resolve()
    if not picture.is_relative_to(frames):
        raise DatasetError(f"{where}: the id {entry['video_id']!r} leads outside of video_path")
    for what, file in (("sound", sound), ("frame", picture)):
        if not file.is_file():
            raise DatasetError(f"{where}: there is no {what} {file}")
    return AVSample(entry["video_id"], index_of[mid], sound, picture)


def _labels_beside(path: Path) -> Path:
    found = sorted(path.parent.glob("class_labels_indices*.csv"))
    if len(found) != 1:
        has = f"there are {', '.join(file.name for file in found)}" if found else "there is none"
        raise DatasetError(f"{path} needs one class_labels_indices*.csv beside it, but {has}; or name it")
    return found[0]


def _class_labels(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names by index, and index by mid. Raises DatasetError."""
    if not path.is_file():
        raise DatasetError(f"there are no class labels {path}")
    rows = list(csv.DictReader(_text(path).splitlines()))
    try:
        by_index = {int(row["index"]): (row["mid"], row["display_name"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} has not the columns index, mid, display_name: {error}") from error
    if not rows or sorted(by_index) != list(range(len(rows))):
        raise DatasetError(f"{path}: the indices do not count from 0 without gaps")
    names = tuple(by_index[number][1] for number in range(len(rows)))
    return names, {by_index[number][0]: number for number in range(len(rows))}


# -- digits ---------------------------------------------------------------------------------------------


def pair_digits(
    folder: Path, split: str = "test", count: int | None = None, seed: int = DIGIT_PAIRING_SEED
) -> AVData:
    """Written and spoken digits of the same class, paired by a fixed seed.

    Splits are by file, as the sources have them: MNIST's own, and the recordings' column `split`. So neither
    a picture nor a recording is in both; the speakers are. Every picture is used once at most, every
    recording about equally often (there are fewer of them). Digits come in turn. Raises DatasetError.
    """
    if split not in ("train", "test"):
        raise DatasetError(f"the digits have the splits train and test, not {split!r}")
    count = count or (DIGIT_TEST_PAIRS if split == "test" else 10 * DIGIT_TEST_PAIRS)
    pictures, classes = _mnist(folder / "mnist.npz", split)
    recordings = _recordings(folder, split)
    rng = np.random.default_rng([seed, split == "test"])
    shown = [rng.permutation(np.flatnonzero(classes == digit)) for digit in range(10)]
    spoken = [_repeated(recordings[digit], count // 10 + 1, rng) for digit in range(10)]
    samples = []
    for number in range(count):
        digit, turn = number % 10, number // 10
        if turn >= len(shown[digit]):
            raise DatasetError(f"{folder} has no {count} pictures in split {split}")
        place = int(shown[digit][turn])
        grey = np.repeat(pictures[place][:, :, None], 3, axis=2)
        path = spoken[digit][turn]
        samples.append(AVSample(f"{split}_{place}+{path.stem}", digit, path, grey))
    used = len({sample.sound for sample in samples})
    note = f"{count} pairs of {count} pictures and {used} recordings, split {split} by file"
    return AVData("av_digits", tuple(str(digit) for digit in range(10)), tuple(samples), note)


def _mnist(path: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return held[f"{split}_x"], held[f"{split}_y"]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path} does not hold {split}_x and {split}_y: {error}") from error


def _recordings(folder: Path, split: str) -> list[list[Path]]:
    """Files of each digit, in the table's order."""
    table = folder / "audio_labels.tsv"
    found: list[list[Path]] = [[] for _ in range(10)]
    for line, row in _rows(table, required=("file", "label", "split")):
        if row["split"] == split:
            if row["label"] not in "0123456789" or len(row["label"]) != 1:
                raise DatasetError(f"{table}, line {line}: {row['label']!r} is no digit")
            found[int(row["label"])].append(_inside(folder, row["file"], f"{table}, line {line}"))
    lacking = [str(digit) for digit in range(10) if not found[digit]]
    if lacking:
        raise DatasetError(f"{table} has no recording of {', '.join(lacking)} in split {split!r}")
    return found


def _repeated(files: Sequence[Path], count: int, rng: np.random.Generator) -> list[Path]:
    """`count` files, all of them in a new order each round."""
    chosen: list[Path] = []
    while len(chosen) < count:
        chosen += [files[place] for place in rng.permutation(len(files))]
    return chosen[:count]


# -- the demo's clips -----------------------------------------------------------------------------------


def _demo_clips(split: str) -> AVData:
    from demo.clips import LABELS, SAMPLE_RATE, SPLITS, make_clips

    if split not in SPLITS:
        raise DatasetError(f"the demo's clips have the splits {', '.join(SPLITS)}, not {split!r}")
    clips = make_clips(DEMO_CLIPS, SPLITS[split])
    samples = [
        AVSample(f"{split}_{number}", clip.index, Sound(clip.waveform, SAMPLE_RATE), clip.frame)
        for number, clip in enumerate(clips)
    ]
    return AVData("demo clips", tuple(LABELS), tuple(samples), f"{DEMO_CLIPS} generated clips, {split} seeds")
