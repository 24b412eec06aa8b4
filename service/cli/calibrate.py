"""`attune calibrate`: what methods of classification need to know of clean samples, measured once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.common import WRONG_USE, fail

if TYPE_CHECKING:
    from encoders.audiovisual import AVInputs
    from encoders.av_folder import LabelledFiles
    from encoders.cav_mae import CavMae

LONGEST_SECONDS = 600.0


def calibrate(
    model: Annotated[str, typer.Option(help="demo, or a folder made by encoders.convert_cav_mae.")],
    data: Annotated[Path, typer.Option(help="Folder of clean samples with a labels.tsv.")],
    out: Annotated[Path, typer.Option(help="File to write; calibration.safetensors in the model's folder.")],
    samples: Annotated[int, typer.Option(min=2, help="Samples of the source statistics.")] = 32,
    fisher_samples: Annotated[int, typer.Option(min=0, help="Samples of the Fisher values; 0: none.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one Fisher batch.")] = 64,
    seed: Annotated[int, typer.Option(help="Which samples are drawn, and in which order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Measure source statistics and Fisher values of a classifier on clean samples."""
    from adapters.base import AdapterError
    from encoders.base import EncoderError

    try:
        _calibrate(model, data, out, samples, fisher_samples, batch_size, seed, device)
    except (AdapterError, EncoderError, OSError, ValueError) as error:
        fail(str(error), WRONG_USE)


def _calibrate(
    name: str,
    data: Path,
    out: Path,
    samples: int,
    fisher_samples: int,
    batch_size: int,
    seed: int,
    device: str,
) -> None:
    from adapters.calibration import Calibration, fisher_values, save_calibration, source_statistics
    from encoders.av_folder import read_av_folder
    from encoders.cav_mae import load_cav_mae

    complete = [sample for sample in read_av_folder(data) if sample.complete]
    if len(complete) < 2:
        raise ValueError(f"{data} has {len(complete)} samples with both sound and picture; 2 are needed")
    random.Random(seed).shuffle(complete)  # listings are often sorted by label
    if not out.resolve().parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write into")
    model = load_cav_mae(_folder(name), device=device)
    head, rest = complete[:samples], complete[:fisher_samples]
    statistics = source_statistics(model, _inputs(model, head))
    fisher = fisher_values(model, _batches(model, rest, batch_size)) if rest else None
    about = {
        "data": data.resolve().name,
        "seed": seed,
        "statistics_samples": len(head),
        "fisher_samples": len(rest),
        "fisher_batch": batch_size,
    }
    save_calibration(Calibration(model.fingerprint, statistics, fisher, about=about), out)
    typer.echo(
        f"{out}: source statistics of {len(head)} samples"
        + (f", Fisher values of {len(rest)}" if rest else "")
        + f"; for the model {model.name}"
    )
    if len(head) < samples or len(rest) < fisher_samples:
        typer.echo(f"{data} has only {len(complete)} complete samples", err=True)


def _folder(name: str) -> Path:
    if name != "demo":
        return Path(name)
    from demo import demo_classifier_path

    return Path(demo_classifier_path())


def _batches(model: CavMae, samples: Sequence[LabelledFiles], size: int) -> Iterator[AVInputs]:
    from rich.console import Console
    from rich.progress import track

    starts = range(0, len(samples), size)
    for start in track(starts, "Fisher values", console=Console(stderr=True), total=len(starts)):
        yield _inputs(model, samples[start : start + size])


def _inputs(model: CavMae, samples: Sequence[LabelledFiles]) -> AVInputs:
    fbanks: list[Any] = []
    pictures: list[Any] = []
    for sample in samples:
        fbank, picture = _decoded(model, sample)
        fbanks.append(fbank)
        pictures.append(picture)
    return model.prepare(fbanks, pictures)


def _decoded(model: CavMae, sample: LabelledFiles) -> tuple[Any, Any]:
    """Filter bank and pixels. Raises ValueError that names the file."""
    from encoders.audio import BadAudio, fbank, read_audio
    from encoders.base import BadImage
    from encoders.preprocessing import open_image, pixels

    assert sample.audio is not None
    assert sample.image is not None
    rate = model.audio_spec.sample_rate
    try:
        waveform = read_audio(sample.audio.read_bytes(), sample_rate=rate, max_seconds=LONGEST_SECONDS)
        picture = open_image(sample.image.read_bytes())
    except BadAudio as error:
        raise ValueError(f"{sample.audio}: {error}") from error
    except BadImage as error:
        raise ValueError(f"{sample.image}: {error}") from error
    return fbank(waveform, model.audio_spec), pixels(picture, model.image_spec)
