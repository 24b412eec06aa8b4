"""Retrieval under query shift: recall and cost of adaptation methods, online, one batch after the other.

    python -m benchmarks.retrieval --encoder demo --data FOLDER --split test --direction i2t \
        --shift clean --shift gaussian_noise:3 --method source --method tcr --json OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from adapters.base import AdapterError, BadSettings, Method
from adapters.registry import METHODS, make_method
from benchmarks.console import machine, make_console, versions
from benchmarks.corruptions import Shift, UnknownShift
from benchmarks.datasets import DatasetError
from benchmarks.embedding import Progress as Done
from benchmarks.embedding import default_cache, gallery_embeddings
from benchmarks.layouts import Pairing
from benchmarks.protocol import StreamResult, Task, prepare_queries, run_method
from benchmarks.query_data import QueryData, add_data_options, open_query_data, parse_disk_shifts
from encoders.base import Encoder, EncoderError

_ERRORS = (AdapterError, DatasetError, EncoderError, UnknownShift, FileNotFoundError)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval", description="Recall and cost of adaptation under query shift."
    )
    made.add_argument("--encoder", required=True, help="a folder, a hub name, or `demo`")
    made.add_argument("--data", required=True, type=Path, help="folder of a data set (docs/datasets.md)")
    made.add_argument("--split", required=True)
    add_data_options(made)
    made.add_argument("--direction", required=True, choices=("i2t", "t2i"))
    made.add_argument("--shift", action="append", required=True, metavar="NAME[:SEVERITY]")
    made.add_argument("--method", action="append", required=True, metavar="NAME", help=", ".join(METHODS))
    made.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="[METHOD.]KEY=VALUE",
        help="of the methods; repeatable",
    )
    made.add_argument("--batch", type=_positive, default=64, help="queries per batch (default 64)")
    made.add_argument("--limit", type=_positive, help="only the first queries of the shuffled stream")
    made.add_argument("--seed", type=int, default=0, help="of the order and the corruptions (default 0)")
    made.add_argument(
        "--scale-blur", action="store_true", help="blur radii times side / 224 on smaller pictures"
    )
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    made.add_argument("--cache", type=Path, default=default_cache(), help="folder of gallery embeddings")
    made.add_argument("--no-cache", action="store_true", help="embed the gallery anew and keep nothing")
    made.add_argument("--json", type=Path, metavar="OUT", help="write everything, batch by batch")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = make_console()
    try:
        shifts = _shifts(options.shift, options.direction, on_disk=options.corrupted_on_disk is not None)
        methods = make_methods(options.method, options.setting)
        asked = open_query_data(options, options.direction, shifts)
        task = asked.clean
        encoder = _encoder(options.encoder, options.device, options.dtype)
    except _ERRORS as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    cache = None if options.no_cache else options.cache
    results: list[StreamResult] = []
    with _progress(console) as progress:
        gallery = _gallery(progress, encoder, task, cache)
        for result in _streams(progress, encoder, asked, gallery, shifts, methods, options):
            results.append(result)
            progress.console.print(_line(result), highlight=False)
            # After every stream: hours of work are not lost with an interruption.
            if options.json:
                _write(options.json, _document(encoder, task, methods, results, options))
    console.print(_table(results, f"{encoder.name}, {options.split} {options.direction}"))
    return 0


def make_methods(names: Sequence[str], settings: Sequence[str]) -> list[Method]:
    """Methods by name, with the settings that name them (METHOD.KEY=VALUE) or that they have (KEY=VALUE).

    Raises UnknownMethod, BadSettings, also for a setting that no chosen method has.
    """
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise BadSettings(f"--setting {setting!r} is not KEY=VALUE")
        owner, dot, field = key.strip().partition(".")
        field = field if dot else owner
        takers = [owner] if dot else [name for name in chosen if _has(name, field)]
        if dot and owner not in chosen:
            raise BadSettings(f"--setting {setting!r}: method {owner!r} is not among {', '.join(chosen)}")
        if not takers:
            raise BadSettings(f"none of {', '.join(chosen)} has a setting {field!r}")
        for name in takers:
            chosen[name][field] = _value(text)
    return [make_method(name, values) for name, values in chosen.items()]


def _has(method: str, field: str) -> bool:
    return method in METHODS and field in METHODS[method].settings.model_fields


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


def _shifts(names: Sequence[str], direction: str, *, on_disk: bool = False) -> list[Shift]:
    shifts = parse_disk_shifts(names) if on_disk else [Shift.parse(name) for name in dict.fromkeys(names)]
    asked = "image" if direction == "i2t" else "text"
    for shift in shifts:
        if shift.modality not in (None, asked):
            raise UnknownShift(
                f"{shift} corrupts {shift.modality}s, but the queries of {direction} are {asked}s"
            )
    return shifts


def _encoder(name: str, device: str, dtype: str) -> Encoder:
    from demo import demo_encoder_path
    from encoders.load import load_encoder

    return load_encoder(str(demo_encoder_path()) if name == "demo" else name, device=device, dtype=dtype)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


@contextmanager
def _bar(progress: Progress, title: str, total: int) -> Iterator[Done]:
    """A line that shows how far it is, and goes when it is finished."""
    line = progress.add_task(title, total=total)
    yield lambda count: progress.advance(line, count)
    progress.remove_task(line)


def _gallery(progress: Progress, encoder: Encoder, task: Task, cache: Path | None) -> Tensor:
    data = task.gallery
    total = len(data.captions) if task.gallery_modality == "text" else len(data.images)
    with _bar(progress, "gallery", total) as done:
        return gallery_embeddings(encoder, data, task.gallery_modality, cache=cache, done=done)


def _streams(
    progress: Progress,
    encoder: Encoder,
    asked: QueryData,
    gallery: Tensor,
    shifts: Sequence[Shift],
    methods: Sequence[Method],
    options: argparse.Namespace,
) -> Iterator[StreamResult]:
    """Every shift with every method, one result after the other; a shift's queries are prepared once."""
    for shift in shifts:
        task, to_make = asked.queries(shift)
        total = len(task.numbers)
        with _bar(progress, f"{shift}: preparing", total) as done:
            items = prepare_queries(
                task, encoder, to_make, seed=options.seed, scale=options.scale_blur, done=done
            )
        for method in methods:
            with _bar(progress, f"{shift}: {method.name}", total) as done:
                result = run_method(
                    encoder=encoder,
                    task=task,
                    shift=shift,
                    items=items,
                    gallery=gallery,
                    method=method,
                    batch_size=options.batch,
                    done=done,
                )
            yield result


def _line(result: StreamResult) -> str:
    metrics = result.metrics
    return (
        f"{result.shift}, {result.method}: R@1 {metrics['r1']:.1f}, R@10 {metrics['r10']:.1f}, "
        f"mAP {metrics['map']:.1f}, {result.ms_per_batch:.0f} ms per batch"
    )


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Complete or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def ratio_to_source(result: StreamResult, results: Sequence[StreamResult]) -> float | None:
    """Milliseconds per batch over those of `source` on the same shift, where it ran."""
    for other in results:
        if other.shift == result.shift and other.method == "source":
            return result.ms_per_batch / other.ms_per_batch
    return None


def _table(results: Sequence[StreamResult], title: str) -> Table:
    table = Table("shift", "method", title=title)
    for heading in ("R@1", "R@5", "R@10", "mAP", "ms/batch", "x source"):
        table.add_column(heading, justify="right")
    table.add_column("batches")
    last = ""
    for result in results:
        if last not in ("", result.shift):
            table.add_section()
        last = result.shift
        recalls = [f"{result.metrics[key]:.1f}" for key in ("r1", "r5", "r10", "map")]
        ratio = ratio_to_source(result, results)
        table.add_row(
            result.shift,
            result.method,
            *recalls,
            f"{result.ms_per_batch:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            ", ".join(f"{count} {status}" for status, count in result.statuses.items()),
        )
    return table


def _document(
    encoder: Encoder,
    task: Task,
    methods: Sequence[Method],
    results: Sequence[StreamResult],
    options: argparse.Namespace,
) -> Mapping[str, Any]:
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "encoder": {
            "name": encoder.name,
            "fingerprint": encoder.fingerprint,
            "dtype": encoder.dtype_name,
            "device": str(encoder.device),
            "dimension": encoder.dimension,
        },
        "data": {
            "name": task.data.folder.resolve().name,
            "split": task.data.split,
            "digest": task.data.digest,
            "images": len(task.data.images),
            "captions": len(task.data.captions),
        },
        "gallery": None if task.pairing is None else _gallery_facts(task.pairing),
        "protocol": {
            "direction": task.direction,
            "queries": len(task.numbers),
            "batch": options.batch,
            "seed": options.seed,
            "limit": options.limit,
            "scale_blur": options.scale_blur,
            "corrupted_on_disk": options.corrupted_on_disk is not None,
        },
        "methods": {method.name: _settings(method) for method in methods},
        "versions": versions(),
        "machine": machine(),
        "results": [
            {**asdict(result), "ms_ratio_to_source": ratio_to_source(result, results)} for result in results
        ],
    }


def _gallery_facts(pairing: Pairing) -> Mapping[str, Any]:
    gallery = pairing.gallery
    return {
        "name": gallery.folder.resolve().name,
        "split": gallery.split,
        "digest": gallery.digest,
        "images": len(gallery.images),
        "captions": len(gallery.captions),
        "pairing": pairing.describe(),
    }


def _settings(method: Method) -> dict[str, Any]:
    settings: dict[str, Any] = method.settings.model_dump()
    return settings


if __name__ == "__main__":
    sys.exit(main())
