"""Retrieval under query shift: recall and cost of adaptation methods, online, one batch after the other.

    python -m benchmarks.retrieval --encoder demo --data FOLDER --split test --direction both \\
        --shifts all --method source --method tcr --json OUT

One command is one run, one run one JSON (`runs.py`); the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, get_num_threads, set_num_threads

from adapters.base import AdapterError, BadSettings, Method
from adapters.calibration import load_encoder_calibration
from adapters.completion import Completion
from adapters.registry import METHODS, PRESETS, make_method
from benchmarks.console import machine, make_console, versions
from benchmarks.corruptions import Shift, UnknownShift
from benchmarks.corruptions.text_tools import MissingTool
from benchmarks.datasets import DatasetError
from benchmarks.embedding import Progress as Done
from benchmarks.embedding import default_cache, gallery_embeddings
from benchmarks.estimate import Estimate, in_words
from benchmarks.layouts import Pairing
from benchmarks.parallel import PartFailed, run_parts
from benchmarks.protocol import Direction, prepare_queries, run_method
from benchmarks.query_data import QueryData, add_data_options, open_query_data
from benchmarks.runs import FORMAT, BadRun, Key, RunFile, key_of
from benchmarks.shift_groups import fits, shifts_of
from encoders.base import Encoder, EncoderError

REFUSED = (
    AdapterError, BadRun, DatasetError, EncoderError, MissingTool, UnknownShift, FileNotFoundError
)  # fmt: skip
_DIRECTIONS: Mapping[str, tuple[Direction, ...]] = {
    "i2t": ("i2t",),
    "t2i": ("t2i",),
    "both": ("i2t", "t2i"),
}
Show = Callable[[str, int], AbstractContextManager[Done]]
"""A title and how many there are to do; inside, what is told of those done."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval", description="Recall and cost of adaptation under query shift."
    )
    add_run_options(made)
    made.add_argument(
        "--shift",
        "--shifts",
        action="append",
        required=True,
        metavar="NAME[:SEVERITY]",
        help="clean, a corruption, or a group: images:5, mm:images:5, texts:max, all; repeatable",
    )
    made.add_argument(
        "--parallel",
        type=positive,
        default=1,
        metavar="N",
        help="shifts at once, a process each, for a GPU with room; then times say less (default 1)",
    )
    made.add_argument(
        "--json",
        type=Path,
        metavar="OUT",
        help="write everything, batch by batch; a file of the same settings is gone on with",
    )
    return made


def add_run_options(made: argparse.ArgumentParser) -> None:
    """What every run has: encoder, data, direction, methods, sizes, seeds, where it is computed."""
    made.add_argument("--encoder", required=True, help="a folder, a hub name, or `demo`")
    made.add_argument("--data", required=True, type=Path, help="folder of a data set (docs/datasets.md)")
    made.add_argument("--split", required=True)
    add_data_options(made)
    made.add_argument("--direction", required=True, choices=tuple(_DIRECTIONS))
    made.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="NAME",
        help=f"repeatable; all, or {', '.join(METHODS)}",
    )
    made.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="[METHOD.]KEY=VALUE",
        help="of the methods; repeatable",
    )
    made.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="of clean data (attune calibrate): shows each batch's shift, on which methods may depend",
    )
    made.add_argument("--batch", type=positive, default=64, help="queries per batch (default 64)")
    made.add_argument("--limit", type=positive, help="only the first queries of the shuffled stream")
    made.add_argument(
        "--seed", type=int, action="append", help="of the order and the corruptions; repeatable (default 0)"
    )
    made.add_argument(
        "--scale-blur", action="store_true", help="blur radii times side / 224 on smaller pictures"
    )
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    made.add_argument("--cache", type=Path, default=default_cache(), help="folder of gallery embeddings")
    made.add_argument("--no-cache", action="store_true", help="embed the gallery anew and keep nothing")
    made.add_argument("--restart", action="store_true", help="replace the file, whatever it holds")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = make_console()
    with TemporaryDirectory() if options.no_cache else nullcontext(str(options.cache)) as cache:
        options.cache = Path(cache)
        try:
            bench = Bench(options)
            run = RunFile.begin(options.json, bench.head(), bench.place, restart=options.restart)
        except REFUSED as error:
            console.print(f"[red]{_refusal(error)}[/red]", highlight=False)
            return 2
        parts = bench.parts(run)
        if len(run):
            console.print(f"{len(run)} streams are there already, {_count(parts)} are left")
        try:
            _run(console, bench, run, parts)
        except KeyboardInterrupt:
            console.print("stopped" + ("; the same command goes on from here" if options.json else ""))
            return 130
        except (PartFailed, *REFUSED) as error:
            console.print(f"[red]{error}[/red]", highlight=False)
            return 1
    for direction in bench.directions:
        streams = [stream for stream in run.streams if stream["direction"] == direction]
        console.print(_table(streams, f"{bench.encoder.name}, {options.split} {direction}"))
    return 0


def _refusal(error: Exception) -> str:
    more = "; --restart replaces it" if isinstance(error, BadRun) else ""
    return f"{error}{more}"


@dataclass(frozen=True)
class Part:
    """What is still to run of a shift, in one direction and under one seed: its queries are prepared once."""

    direction: Direction
    seed: int
    shift: Shift
    methods: tuple[str, ...]
    queries: int


class Bench:
    """All that the streams of a run need, made from the command's options; each process makes its own.

    Raises what `REFUSED` names, where something that is asked for is not there.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.directions = _DIRECTIONS[options.direction]
        self.seeds: list[int] = list(dict.fromkeys(options.seed or [0]))
        on_disk = options.corrupted_on_disk is not None
        self.shifts = shifts_of(options.shift, self.directions, on_disk=on_disk)
        names = [*METHODS] if "all" in options.method else options.method
        make_methods(names, options.setting)  # wrong ones are told before anything is loaded
        self._data: dict[tuple[Direction, int], QueryData] = {}
        self._galleries: dict[Direction, Tensor] = {}
        for direction in self.directions:
            self.data(direction, self.seeds[0])
        self.encoder = _encoder(options.encoder, options.device, options.dtype)
        temperature = self.encoder.temperature
        self.clean = self._clean()
        made = make_methods(names, options.setting, model_temperature=temperature)
        self.methods = {method.name: method for method in made}

    def _clean(self) -> Completion | None:
        """What is known of clean queries."""
        file = self.options.calibration
        if file is None:
            return None
        known = load_encoder_calibration(
            file,
            fingerprint=self.encoder.fingerprint,
            dimension=self.encoder.dimension,
            device=self.encoder.device,
        )
        return known.completion

    def data(self, direction: Direction, seed: int) -> QueryData:
        if (direction, seed) not in self._data:
            options = argparse.Namespace(**{**vars(self.options), "seed": seed})
            shifts = [shift for shift in self.shifts if fits(shift, direction)]
            self._data[direction, seed] = open_query_data(options, direction, shifts)
        return self._data[direction, seed]

    def gallery(self, direction: Direction, show: Show) -> Tensor:
        if direction not in self._galleries:
            task = self.data(direction, self.seeds[0]).clean
            data = task.gallery
            total = len(data.captions) if task.gallery_modality == "text" else len(data.images)
            with show("gallery", total) as done:
                self._galleries[direction] = gallery_embeddings(
                    self.encoder, data, task.gallery_modality, cache=self.options.cache, done=done
                )
        return self._galleries[direction]

    def parts(self, run: RunFile) -> list[Part]:
        """Everything that was asked for and that the run does not hold yet."""
        found = []
        for direction in self.directions:
            queries = len(self.data(direction, self.seeds[0]).clean.numbers)
            for seed in self.seeds:
                for shift in self.shifts:
                    left = tuple(
                        name for name in self.methods if (direction, seed, str(shift), name, "") not in run
                    )
                    if left and fits(shift, direction):
                        found.append(Part(direction, seed, shift, left, queries))
        return found

    def streams(self, part: Part, show: Show) -> Iterator[Mapping[str, Any]]:
        """One result after the other, as the run's file keeps it."""
        task, to_make = self.data(part.direction, part.seed).queries(part.shift)
        gallery = self.gallery(part.direction, show)
        total = len(task.numbers)
        began = time.perf_counter()
        with show(f"{part.shift}: preparing", total) as done:
            items = prepare_queries(
                task, self.encoder, to_make, seed=part.seed, scale=self.options.scale_blur, done=done
            )
        # Preparing is shared by the part's streams, so that the estimate of the rest knows of it.
        prepared_s = (time.perf_counter() - began) / len(part.methods)
        for name in part.methods:
            began = time.perf_counter()
            with show(f"{part.shift}: {name}", total) as done:
                result = run_method(
                    encoder=self.encoder,
                    task=task,
                    shift=part.shift,
                    items=items,
                    gallery=gallery,
                    method=self.methods[name],
                    batch_size=self.options.batch,
                    done=done,
                    clean=self.clean,
                )
            yield {
                "direction": part.direction,
                "seed": part.seed,
                **asdict(result),
                "seconds": round(prepared_s + time.perf_counter() - began, 3),
                "streams_at_once": self.options.parallel,
            }

    def place(self, key: Key) -> Any:
        """Where a stream stands in the file: as asked for; after that what an earlier command asked for."""
        orders: list[list[Any]] = [
            [*self.directions], self.seeds, [str(shift) for shift in self.shifts], [*self.methods]
        ]  # fmt: skip
        return [
            (order.index(part) if part in order else len(order), str(part))
            for order, part in zip(orders, key, strict=False)
        ]

    def head(self) -> Mapping[str, Any]:
        """Everything of the run's file but its results."""
        options, encoder = self.options, self.encoder
        task = self.data(self.directions[0], self.seeds[0]).clean
        return {
            "format": FORMAT,
            "protocol": "online",
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
            "settings": {
                "batch": options.batch,
                "limit": options.limit,
                "scale_blur": options.scale_blur,
                "corrupted_on_disk": options.corrupted_on_disk is not None,
                "calibrated": options.calibration is not None,
            },
            "methods": {name: _settings(method) for name, method in self.methods.items()},
            "versions": versions(),
            "machine": machine(),
            "asked": {
                "directions": [*self.directions],
                "seeds": self.seeds,
                "shifts": [str(shift) for shift in self.shifts],
                "methods": [*self.methods],
            },
        }


def _run(console: Console, bench: Bench, run: RunFile, parts: Sequence[Part]) -> None:
    """Every part, into the run's file."""
    estimate = Estimate()
    left = {
        (part.direction, part.seed, str(part.shift), method, ""): part.queries
        for part in parts
        for method in part.methods
    }
    at_once = min(bench.options.parallel, len(parts))
    with progress_lines(console) as progress:
        total = progress.add_task("streams", total=len(left))
        for stream in _results(progress, bench, parts):
            run.add(stream)
            estimate.add(stream["method"], stream["queries"], stream["seconds"])
            del left[key_of(stream)]
            rest = [(key[3], queries) for key, queries in left.items()]
            more = f"{len(rest)} left, {in_words(estimate.seconds_left(rest, at_once))}" if rest else ""
            progress.update(total, advance=1, description=f"streams {more}")
            progress.console.print(f"{_line(stream)}{more and '; '}{more}", highlight=False)


def _results(progress: Progress, bench: Bench, parts: Sequence[Part]) -> Iterator[Mapping[str, Any]]:
    def show(title: str, total: int) -> AbstractContextManager[Done]:
        return progress_line(progress, title, total)

    if bench.options.parallel == 1 or len(parts) < 2:
        for part in parts:
            yield from bench.streams(part, show)
        return
    # Embedded here once and kept in the cache, where the processes find it.
    for direction in dict.fromkeys(part.direction for part in parts):
        bench.gallery(direction, show)
    counted = [(part, len(part.methods)) for part in parts]
    yield from run_parts(_in_process, bench.options, counted, bench.options.parallel)


def _in_process(options: argparse.Namespace) -> Callable[[Part], Iterator[Mapping[str, Any]]]:
    set_num_threads(max(1, get_num_threads() // options.parallel))
    bench = Bench(options)

    def silent(title: str, total: int) -> AbstractContextManager[Done]:
        return nullcontext(lambda count: None)

    return lambda part: bench.streams(part, silent)


def _count(parts: Sequence[Part]) -> int:
    return sum(len(part.methods) for part in parts)


def make_methods(
    names: Sequence[str], settings: Sequence[str], *, model_temperature: float | None = None
) -> list[Method]:
    """Methods by name, with the settings that name them (METHOD.KEY=VALUE) or that they have (KEY=VALUE).

    `preset` is a setting of all that have one of that name.

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
    return [make_method(name, values, model_temperature=model_temperature) for name, values in chosen.items()]


def _has(method: str, field: str) -> bool:
    if field == "preset":
        return method in PRESETS
    return method in METHODS and field in METHODS[method].settings.model_fields


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _encoder(name: str, device: str, dtype: str) -> Encoder:
    from demo import demo_encoder_path
    from encoders.load import load_encoder

    return load_encoder(str(demo_encoder_path()) if name == "demo" else name, device=device, dtype=dtype)


@contextmanager
def progress_lines(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


@contextmanager
def progress_line(progress: Progress, title: str, total: int) -> Iterator[Done]:
    """A line that shows how far it is, and goes when it is finished."""
    line = progress.add_task(title, total=total)
    yield lambda count: progress.advance(line, count)
    progress.remove_task(line)


def _line(stream: Mapping[str, Any]) -> str:
    metrics = stream["metrics"]
    return (
        f"{stream['direction']}, {stream['shift']}, {stream['method']}: R@1 {metrics['r1']:.1f}, "
        f"R@10 {metrics['r10']:.1f}, mAP {metrics['map']:.1f}, {stream['ms_per_batch']:.0f} ms per batch"
    )


def ratio_to_source(stream: Mapping[str, Any], streams: Sequence[Mapping[str, Any]]) -> float | None:
    """Milliseconds per batch over those of `source` on the same queries, where it ran."""
    same = ("direction", "seed", "shift")
    for other in streams:
        if other["method"] == "source" and all(other[name] == stream[name] for name in same):
            return float(stream["ms_per_batch"] / other["ms_per_batch"])
    return None


def _table(streams: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table("shift", "method", "seed", title=title)
    for heading in ("R@1", "R@5", "R@10", "mAP", "ms/batch", "x source"):
        table.add_column(heading, justify="right")
    table.add_column("batches")
    last = ""
    for stream in streams:
        if last not in ("", stream["shift"]):
            table.add_section()
        last = stream["shift"]
        recalls = [f"{stream['metrics'][key]:.1f}" for key in ("r1", "r5", "r10", "map")]
        ratio = ratio_to_source(stream, streams)
        table.add_row(
            stream["shift"],
            stream["method"],
            str(stream["seed"]),
            *recalls,
            f"{stream['ms_per_batch']:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            ", ".join(f"{count} {status}" for status, count in stream["statuses"].items()),
        )
    return table


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
