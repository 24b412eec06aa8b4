"""`attune calibrate`: what has to be known of clean samples, measured once.

Of a classifier: source statistics, Fisher values, and a completion for samples that lack sound or picture. Of
a dual encoder: a completion for items and queries that lack a picture or a text (calibrate_encoder.py).
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.common import WRONG_USE, fail

if TYPE_CHECKING:
    from torch import Tensor

    from adapters.completion import Completion, Progress
    from encoders.audiovisual import AVInputs
    from encoders.av_folder import LabelledFiles
    from encoders.cav_mae import CavMae

LONGEST_SECONDS = 600.0
AUTO = "auto"
LARGEST_LATENT = 1024
_HELD_OUT = 0.2


def calibrate(
    data: Annotated[
        Path, typer.Option(help="Clean samples: a folder with labels.tsv; of an encoder: items.")
    ],
    out: Annotated[Path, typer.Option(help="File to write; calibration.safetensors in the model's folder.")],
    model: Annotated[
        str, typer.Option(help="A classifier: demo, or a folder made by encoders.convert_cav_mae.")
    ] = "",
    encoder: Annotated[
        str, typer.Option(help="In place of --model, a dual encoder: demo, a folder, a name of the hub.")
    ] = "",
    samples: Annotated[int, typer.Option(min=2, help="Samples of the source statistics.")] = 32,
    fisher_samples: Annotated[int, typer.Option(min=0, help="Samples of the Fisher values; 0: none.")] = 2000,
    latent: Annotated[
        str, typer.Option(help="Latent size of the completion; auto: the one that imputes best; 0: none.")
    ] = AUTO,
    latent_samples: Annotated[
        int, typer.Option(min=1, help="Samples of the completion; of an encoder, pairs.")
    ] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one batch.")] = 64,
    seed: Annotated[int, typer.Option(help="Which samples are drawn, and in which order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Measure a classifier (--model) or a dual encoder (--encoder) on clean samples, for methods that need it
    and for samples that lack a modality.
    """
    from adapters.base import AdapterError
    from encoders.base import EncoderError
    from service.cli.calibrate_encoder import calibrate_encoder

    try:
        if bool(model) == bool(encoder):
            raise ValueError("give one of --model and --encoder")
        size = latent_size(latent)
        if not out.resolve().parent.is_dir():
            raise ValueError(f"there is no folder {out.parent} to write into")
        if encoder:
            calibrate_encoder(
                encoder, data, out, latent=size, pairs=latent_samples, batch_size=batch_size, seed=seed,
                device=device,
            )  # fmt: skip
        else:
            _calibrate(
                model, data, out, samples=samples, fisher_samples=fisher_samples, latent=size,
                latent_samples=latent_samples, batch_size=batch_size, seed=seed, device=device,
            )  # fmt: skip
    except (AdapterError, EncoderError, OSError, ValueError) as error:
        fail(str(error), WRONG_USE)


def latent_size(text: str) -> int | None:
    """None: the best one; 0: no completion. Raises ValueError."""
    if text == AUTO:
        return None
    if not text.isdecimal() or int(text) > LARGEST_LATENT:
        raise ValueError(f"--latent is auto, 0 or a number up to {LARGEST_LATENT}, not {text!r}")
    return int(text)


def _calibrate(
    name: str,
    data: Path,
    out: Path,
    *,
    samples: int,
    fisher_samples: int,
    latent: int | None,
    latent_samples: int,
    batch_size: int,
    seed: int,
    device: str,
) -> None:
    from adapters.calibration import Calibration, fisher_values, save_calibration, source_statistics
    from encoders.av_folder import read_av_folder
    from encoders.cav_mae import load_cav_mae

    found = read_av_folder(data)
    complete = [sample for sample in found if sample.complete]
    if len(complete) < 2:
        raise ValueError(f"{data} has {len(complete)} samples with both sound and picture; 2 are needed")
    random.Random(seed).shuffle(complete)  # listings are often sorted by label
    model = load_cav_mae(_folder(name), device=device)
    if latent is not None and latent > model.width:
        raise ValueError(f"a latent of {latent} is larger than the model's width {model.width}")
    head, rest = complete[:samples], complete[:fisher_samples]
    statistics = source_statistics(model, _inputs(model, head))
    fisher = fisher_values(model, _batches(model, rest, batch_size, "Fisher values")) if rest else None
    about: dict[str, Any] = {
        "data": data.resolve().name,
        "seed": seed,
        "statistics_samples": len(head),
        "fisher_samples": len(rest),
        "fisher_batch": batch_size,
    }
    completion = None
    if latent != 0:
        lacking = [sample for sample in found if not sample.complete]
        random.Random(seed).shuffle(lacking)
        completion, missing = _completion(
            model, complete[:latent_samples], lacking[:latent_samples], latent, batch_size, seed
        )
        about |= {"missing": missing} if missing else {}
    save_calibration(Calibration(model.fingerprint, statistics, fisher, completion, about), out)
    typer.echo(
        f"{out}: source statistics of {len(head)} samples"
        + (f", Fisher values of {len(rest)}" if rest else "")
        + f"; for the model {model.name}"
    )
    if completion is not None:
        for line in report(completion, about.get("missing", {})):
            typer.echo(line)
    if len(head) < samples or len(rest) < fisher_samples:
        typer.echo(f"{data} has only {len(complete)} complete samples", err=True)


# -- completion -----------------------------------------------------------------------------------------


def _completion(
    model: CavMae,
    complete: Sequence[LabelledFiles],
    lacking: Sequence[LabelledFiles],
    latent: int | None,
    batch_size: int,
    seed: int,
) -> tuple[Completion | None, Mapping[str, Any]]:
    """The completion, and how it compares with the model's own path on a fifth that it has not seen.

    With `latent` None too few samples are no error. Raises ValueError, AdapterError.
    """
    from adapters.completion import FEWEST_PAIRS
    from adapters.two_stream_completion import compare_missing, fit_parts, parts_of

    kept = round(len(complete) * _HELD_OUT)
    back, rest = complete[:kept], complete[kept:]
    if len(rest) < FEWEST_PAIRS:
        least = f"a completion needs {FEWEST_PAIRS / (1 - _HELD_OUT):.0f} complete samples at least"
        if latent is not None:
            raise ValueError(f"{least}, there are {len(complete)}")
        typer.echo(f"{least}, there are {len(complete)}: none is made", err=True)
        return None, {}
    parts, there = parts_of(model, _batches(model, [*rest, *lacking], batch_size, "features"))
    completion = run_fit(fit_parts(parts, there, latent=latent, seed=seed))
    known = [sample for sample in back if sample.label in model.labels]
    if not known:
        typer.echo("no label of the held-out samples is the model's: its own path is not compared", err=True)
    return completion, compare_missing(model, completion, _labelled(model, known, batch_size))


def run_fit(slices: Generator[Progress, None, Completion]) -> Completion:
    """A fit to its end, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:
        bar = bars.add_task("fitting")
        while True:
            try:
                stage = next(slices)
            except StopIteration as ended:
                bars.update(bar, completed=100, description="fitted")
                completion: Completion = ended.value
                return completion
            bars.update(bar, completed=100 * stage.number / stage.of, description=f"fitting {stage.stage}")


def report(completion: Completion, missing: Mapping[str, Any]) -> Iterator[str]:
    """Plain lines: what was fitted, how well it imputes, and what that means for answers."""
    about = completion.about
    single = about["samples"] - about["complete_samples"]
    yield (
        f"completion: latent {about['latent']}, fitted to {about['complete_samples']} complete samples"
        + (f" and {single} incomplete ones" if single else "")
    )
    errors = ", ".join(f"{name} {error:.2f}" for name, error in about["relative_error"].items())
    yield f"relative error of what is imputed (1.00: no better than the mean): {errors}"
    for hidden, counts in missing.items():
        better = "imputation" if counts["imputation"] > counts["model"] else "the model"
        yield (
            f"without {hidden}: the model's own path is right {counts['model']:.1%}, imputation "
            f"{counts['imputation']:.1%} of {counts['samples']}; classify_missing=auto takes {better}"
        )


# -- samples --------------------------------------------------------------------------------------------


def _folder(name: str) -> Path:
    if name != "demo":
        return Path(name)
    from demo import demo_classifier_path

    return Path(demo_classifier_path())


def shown(batches: Sequence[Any], what: str) -> Iterable[Any]:
    """The same, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(batches, what, console=Console(stderr=True), total=len(batches))


def _batches(model: CavMae, samples: Sequence[LabelledFiles], size: int, what: str) -> Iterator[AVInputs]:
    """In order; a batch's samples lack the same."""
    for batch in shown(_alike(samples, size), what):
        yield _inputs(model, batch)


def _labelled(
    model: CavMae, samples: Sequence[LabelledFiles], size: int
) -> Iterator[tuple[AVInputs, Tensor]]:
    import torch

    for batch in shown(_alike(samples, size), "held-out samples") if samples else ():
        labels = [model.labels.index(sample.label) for sample in batch]
        yield _inputs(model, batch), torch.tensor(labels, device=model.device)


def _alike(samples: Sequence[LabelledFiles], size: int) -> list[list[LabelledFiles]]:
    """Batches of samples that have the same modalities, as they follow each other."""
    groups: dict[tuple[bool, bool], list[LabelledFiles]] = {}
    for sample in samples:
        groups.setdefault((sample.audio is not None, sample.image is not None), []).append(sample)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _inputs(model: CavMae, samples: Sequence[LabelledFiles]) -> AVInputs:
    """Samples that have the same modalities."""
    fbanks = [_fbank(model, sample.audio) for sample in samples if sample.audio is not None]
    pictures = [_pixels(model, sample.image) for sample in samples if sample.image is not None]
    return model.prepare(fbanks or None, pictures or None)


def _fbank(model: CavMae, file: Path) -> Any:
    """Raises ValueError that names the file."""
    from encoders.audio import BadAudio, fbank, read_audio

    rate = model.audio_spec.sample_rate
    try:
        waveform = read_audio(file.read_bytes(), sample_rate=rate, max_seconds=LONGEST_SECONDS)
    except BadAudio as error:
        raise ValueError(f"{file}: {error}") from error
    return fbank(waveform, model.audio_spec)


def _pixels(model: CavMae, file: Path) -> Any:
    """Raises ValueError that names the file."""
    from encoders.base import BadImage
    from encoders.preprocessing import open_image, pixels

    try:
        return pixels(open_image(file.read_bytes()), model.image_spec)
    except BadImage as error:
        raise ValueError(f"{file}: {error}") from error
