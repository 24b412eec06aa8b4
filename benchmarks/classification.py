"""Classification of audio-video streams under shift: accuracy and cost of methods, online.

    python -m benchmarks.classification --model demo --data demo --shift clean --shift all-video:5 \
        --method source --method brimpr --method brimpr,tau=0.25 --json OUT

Shifts are written as in corruptions/av_shift.py, data as in av_data.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from adapters.base import AdapterError, BadSettings
from adapters.calibration import load_calibration
from adapters.classification import ClassifyMethod
from adapters.registry import CLASSIFY_METHODS, make_classify_method
from adapters.state import AdaptationState
from benchmarks.av_data import AVData, check_labels, load_av_data
from benchmarks.av_protocol import (
    Classifier,
    Done,
    SeedResult,
    ShiftedData,
    ShiftResult,
    run_stream,
    stream_order,
    summarise,
)
from benchmarks.console import machine, make_console, versions
from benchmarks.corruptions import UnknownShift
from benchmarks.corruptions.audio import BadNoise, NoiseBeds
from benchmarks.corruptions.av_shift import AVShift, parse_av_shifts
from benchmarks.datasets import DatasetError
from encoders.base import EncoderError
from encoders.cav_mae import CavMae, load_cav_mae

_ERRORS = (AdapterError, BadNoise, DatasetError, EncoderError, UnknownShift, FileNotFoundError)
_CALIBRATION = "calibration.safetensors"
SEEDS = (111, 222, 333)
_SUBSET_SEED = 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.classification",
        description="Accuracy and cost of adaptation on audio-video streams under shift.",
    )
    made.add_argument("--model", required=True, help="a CAV-MAE folder, or `demo`")
    made.add_argument("--data", required=True, help="a folder, a .json list, or `demo`")
    made.add_argument("--class-labels", type=Path, help="csv of a .json list (default: the one beside it)")
    made.add_argument("--split", default="test", help="of digits and demo clips (default test)")
    made.add_argument(
        "--shift",
        action="append",
        required=True,
        help="clean, audio:NAME:1..5, video:NAME:1..5, both:NAME:1..5+NAME:1..5, all-audio:5, ...",
    )
    made.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="NAME[,KEY=VALUE...]",
        help=f"{', '.join(CLASSIFY_METHODS)}; repeatable, also with other settings",
    )
    made.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the order (111 222 333)")
    made.add_argument("--batch-size", type=_positive, default=64, help="samples per batch (default 64)")
    made.add_argument("--limit", type=_positive, help="only so many samples, a fixed random choice")
    made.add_argument("--continual", action="store_true", help="no reset where the shift changes")
    made.add_argument(
        "--batch-mean", action="store_true", help="show the reference's mean of rounded batch accuracies"
    )
    made.add_argument(
        "--calibration", type=Path, help="default: calibration.safetensors in the model's folder"
    )
    made.add_argument("--noise-dir", type=Path, help="recordings traffic.wav, crowd.wav, ... as backgrounds")
    made.add_argument("--snr-db", type=float, help="of the backgrounds, instead of the published gains")
    made.add_argument("--noise-place", choices=("start", "random"), default="start", help="(default start)")
    made.add_argument("--corruption-seed", type=int, default=0)
    made.add_argument("--cache-gib", type=float, default=4.0, help="corrupted samples kept for later shifts")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    made.add_argument("--threads", type=_positive, help="of torch on the CPU")
    made.add_argument("--json", type=Path, metavar="OUT", help="write everything, batch by batch")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = make_console()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        shifts = parse_av_shifts(options.shift)
        methods = make_methods(options.method)
        model = _model(options)
        for method in methods:
            method.build(options.seeds[0]).check(model)
        shifted = _shifted(options, model)
        results: list[ShiftResult] = []
        with _progress(console) as progress:
            for result in _results(progress, model, shifted, shifts, methods, options):
                results.append(result)
                progress.console.print(_line(result), highlight=False, emoji=False)
                # After every stream: hours of work are not lost with an interruption.
                if options.json:
                    _write(options.json, document(model, shifted, methods, results, options))
    except _ERRORS as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    for table in tables(results, batch_mean=options.batch_mean):
        console.print(table)
    return 0


# -- what is run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskedMethod:
    """A method as it was asked for: `label` is what stood on the command line, and names its results."""

    label: str
    name: str
    values: Mapping[str, Any]

    def build(self, seed: int) -> ClassifyMethod:
        """Its randomness follows the stream's seed where the settings do not say otherwise."""
        has_seed = "seed" in CLASSIFY_METHODS[self.name].settings.model_fields
        extra = {"seed": seed} if has_seed and "seed" not in self.values else {}
        return make_classify_method(self.name, {**self.values, **extra})


def make_methods(texts: Sequence[str]) -> list[AskedMethod]:
    """`NAME` or `NAME,KEY=VALUE,...`, each once. Raises UnknownMethod, BadSettings."""
    methods = []
    for text in dict.fromkeys(texts):
        name, *settings = text.split(",")
        values: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise BadSettings(f"--method {text!r}: {setting!r} is not KEY=VALUE")
            values[key.strip()] = _value(value)
        make_classify_method(name.strip(), values)
        methods.append(AskedMethod(text, name.strip(), values))
    return methods


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _model(options: argparse.Namespace) -> CavMae:
    from demo import demo_classifier_path

    folder = demo_classifier_path() if options.model == "demo" else Path(options.model)
    model = load_cav_mae(folder, device=options.device, dtype=options.dtype)
    beside = folder / _CALIBRATION
    if options.calibration or beside.is_file():
        model.calibration = load_calibration(options.calibration or beside, model)
    return model


def _shifted(options: argparse.Namespace, model: CavMae) -> ShiftedData:
    data = load_av_data(
        options.data, split=options.split, class_labels=options.class_labels, labels=model.labels
    )
    check_labels(data, model.labels)
    if options.limit:
        chosen = sorted(stream_order(len(data), _SUBSET_SEED)[: options.limit])
        data = replace(data, samples=tuple(data.samples[number] for number in chosen))
    return ShiftedData(
        data,
        model.audio_spec,
        model.image_spec,
        NoiseBeds(model.audio_spec.sample_rate, folder=options.noise_dir),
        corruption_seed=options.corruption_seed,
        snr_db=options.snr_db,
        place=options.noise_place,
        most_bytes=int(options.cache_gib * (1 << 30)),
    )


def _results(
    progress: Progress,
    model: Classifier,
    shifted: ShiftedData,
    shifts: Sequence[AVShift],
    methods: Sequence[AskedMethod],
    options: argparse.Namespace,
) -> Iterator[ShiftResult]:
    """Every shift with every method and seed; continual: a method and seed goes on with its state."""
    data: AVData = shifted.data
    labels = [sample.label for sample in data.samples]
    states: dict[tuple[str, int], AdaptationState] = {}
    for shift in shifts:
        with _bar(progress, f"{shift}: preparing", 2 * len(data)) as done:
            sounds, pictures = shifted.sounds(shift.audio, done), shifted.pictures(shift.video, done)
        for asked in methods:
            seeds: list[SeedResult] = []
            with _bar(progress, f"{shift}: {asked.label}", len(data) * len(options.seeds)) as done:
                for seed in options.seeds:
                    method, key = asked.build(seed), (asked.label, seed)
                    kept = states.get(key) if options.continual else None
                    result, states[key] = run_stream(
                        model=model,
                        method=method,
                        state=kept or method.initial_state(model),
                        labels=labels,
                        sounds=sounds,
                        pictures=pictures,
                        seed=seed,
                        batch_size=options.batch_size,
                        done=done,
                    )
                    seeds.append(result)
            yield summarise(shift, asked.label, len(data), seeds)


# -- what is told ---------------------------------------------------------------------------------------


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


@contextmanager
def _bar(progress: Progress, title: str, total: int) -> Iterator[Done]:
    line = progress.add_task(title, total=total)
    yield lambda count: progress.advance(line, count)
    progress.remove_task(line)


def _line(result: ShiftResult) -> str:
    return (
        f"{result.shift}, {result.method}: {result.accuracy:.2f} % (spread {result.accuracy_spread:.2f}), "
        f"{result.ms_per_batch:.0f} ms per batch"
    )


def ratio_to_source(result: ShiftResult, results: Sequence[ShiftResult]) -> float | None:
    """Milliseconds per batch over those of `source` on the same shift, where it ran."""
    for other in results:
        if other.shift == result.shift and other.method == "source":
            return result.ms_per_batch / other.ms_per_batch
    return None


def averages(results: Sequence[ShiftResult], *, batch_mean: bool = False) -> dict[str, dict[str, float]]:
    """Mean accuracy in percent by kind of shift (clean, audio, video, both) and method, over its shifts."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        value = result.batch_mean if batch_mean else result.accuracy
        found.setdefault(result.kind, {}).setdefault(result.method, []).append(value)
    return {
        kind: {method: statistics.fmean(values) for method, values in by_method.items()}
        for kind, by_method in found.items()
    }


def tables(results: Sequence[ShiftResult], *, batch_mean: bool = False) -> list[Table]:
    """Accuracy by shift and method with averages by kind, and what a batch costs."""
    methods = list(dict.fromkeys(result.method for result in results))
    value = {
        (result.shift, result.method): result.batch_mean if batch_mean else result.accuracy
        for result in results
    }
    what = "mean of batch accuracies" if batch_mean else "accuracy"
    table = Table("shift", title=f"{what} in percent, mean over seeds")
    for method in methods:
        table.add_column(method, justify="right")
    for shift in dict.fromkeys(result.shift for result in results):
        # As Text, because rich takes the middle of `video:fog:5` for a picture of fog.
        table.add_row(Text(shift), *(_cell(value.get((shift, method))) for method in methods))
    table.add_section()
    for kind, by_method in averages(results, batch_mean=batch_mean).items():
        table.add_row(f"mean of {kind}", *(_cell(by_method.get(method)) for method in methods), style="bold")
    return [table, _costs(results, methods)]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _costs(results: Sequence[ShiftResult], methods: Sequence[str]) -> Table:
    table = Table("method", title="cost of a batch, median over shifts")
    for heading in ("ms", "x source"):
        table.add_column(heading, justify="right")
    table.add_column("batches")
    for method in methods:
        own = [result for result in results if result.method == method]
        ratios = [ratio for result in own if (ratio := ratio_to_source(result, results)) is not None]
        counts: dict[str, int] = {}
        for status, count in (item for r in own for seed in r.seeds for item in seed.statuses.items()):
            counts[status] = counts.get(status, 0) + count
        table.add_row(
            method,
            f"{statistics.median(result.ms_per_batch for result in own):.0f}",
            f"{statistics.median(ratios):.2f}" if ratios else "",
            ", ".join(f"{count} {status}" for status, count in counts.items()),
        )
    return table


def document(
    model: CavMae,
    shifted: ShiftedData,
    methods: Sequence[AskedMethod],
    results: Sequence[ShiftResult],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The run as plain values: model, data, protocol, settings, versions, and every batch's accuracy."""
    calibration = model.calibration
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "dtype": model.dtype_name,
            "device": str(model.device),
            "labels": len(model.labels),
            "calibration": None if calibration is None else dict(calibration.about),
        },
        "data": {"name": shifted.data.name, "samples": len(shifted.data), "note": shifted.data.note},
        "protocol": {
            "seeds": options.seeds,
            "batch_size": options.batch_size,
            "limit": options.limit,
            "continual": options.continual,
            "corruption_seed": options.corruption_seed,
            "backgrounds": shifted.beds.source,
            "snr_db": options.snr_db,
            "noise_place": options.noise_place,
        },
        "methods": {
            asked.label: asked.build(options.seeds[0]).settings.model_dump() | {"name": asked.name}
            for asked in methods
        },
        "versions": versions(),
        "machine": machine(),
        "averages": averages(results),
        "results": [
            {**asdict(result), "ms_ratio_to_source": ratio_to_source(result, results)} for result in results
        ],
    }


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Complete or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
