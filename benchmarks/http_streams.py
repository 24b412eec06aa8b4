"""The whole way: galleries made over HTTP, corrupted queries streamed over HTTP, recall per shift and method.

    python -m benchmarks.http_streams --encoder E --data DIR --split NAME \\
        --image-shift defocus_blur:5 --text-shift OCR:5 --method source --method tcr --mode sync --json OUT

A server is started (or `--url` names one). Photos are sent as PNG files, captions as text, in the
protocol's fixed order: `sync` as requests of 64, `async` as requests of 8 from one client. Every (shift,
method, mode) is a stream of its own. `--together` then runs the first image shift and the first text shift at
the same time, as two streams, and compares them with their runs alone.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from attune import Client
from benchmarks.console import machine, versions
from benchmarks.corruptions.shift import Shift
from benchmarks.datasets import CaptionedImages, load_split
from benchmarks.embedding import generator_for
from benchmarks.protocol import Direction, Task, make_task
from benchmarks.server import running_server
from encoders.preprocessing import open_image

GALLERY = {"i2t": "captions", "t2i": "photos"}
REQUEST = {"sync": 64, "async": 8}
ADD = 128


@dataclass(frozen=True)
class Run:
    """One stream, start to end. Recall in percent; version: batches that the stream has learned from."""

    shift: str
    direction: Direction
    method: str
    mode: str
    queries: int
    recall_at_1: float
    recall_at_10: float
    seconds: float
    version: int


def fill_galleries(client: Client, data: CaptionedImages, progress: Progress) -> None:
    """The clean photos and the clean captions, each a gallery; ids are positions in the data set."""
    captions = [{"id": str(row), "text": text} for row, text in enumerate(data.captions)]
    photos = [{"id": str(row), "image": path} for row, path in enumerate(data.images)]
    for name, items in (("captions", captions), ("photos", photos)):
        client.create_gallery(name)
        bar = progress.add_task(f"gallery {name}", total=len(items))
        shown = partial(_show, progress, bar)
        client.upsert_items(name, items, batch_size=ADD, on_progress=shown)


def _show(progress: Progress, bar: TaskID, sent: int) -> None:
    progress.update(bar, completed=sent)


def make_queries(task: Task, shift: Shift, progress: Progress) -> list[str | bytes]:
    """The stream under a shift: texts, or pictures as PNG files."""
    bar = progress.add_task(f"corrupting: {shift}", total=len(task.numbers))
    queries: list[str | bytes] = []
    for number in task.numbers:
        rng = generator_for(0, shift, number)
        if task.direction == "t2i":
            queries.append(shift.text(task.data.captions[number], rng))
        else:
            photo = open_image(task.data.images[number].read_bytes())
            queries.append(_png(shift.image(np.asarray(photo), rng)))
        progress.advance(bar)
    return queries


def run_stream(
    client: Client, task: Task, queries: Sequence[str | bytes], *, shift: Shift, method: str, mode: str,
    stream: str, progress: Progress,
) -> Run:  # fmt: skip
    """Send the queries in order, count the hits, leave the stream on the server."""
    client.configure_stream(stream, method=method)
    size, gallery = REQUEST[mode], GALLERY[task.direction]
    bar = progress.add_task(f"{shift} {method} {mode}", total=len(queries))
    first = ten = 0
    began = time.perf_counter()
    for start in range(0, len(queries), size):
        part = list(queries[start : start + size])
        answer = client.retrieve(part, gallery=gallery, stream=stream, k=10, adapt=mode)
        for row, hits in enumerate(answer.results):
            relevant = {str(position) for position in task.relevant[start + row]}
            found = [hit.id in relevant for hit in hits]
            first += found[0]
            ten += any(found)
        progress.advance(bar, len(part))
    return Run(
        shift=str(shift),
        direction=task.direction,
        method=method,
        mode=mode,
        queries=len(queries),
        recall_at_1=100 * first / len(queries),
        recall_at_10=100 * ten / len(queries),
        seconds=time.perf_counter() - began,
        version=client.describe_stream(stream)["version"],
    )


def together(client: Client, jobs: Sequence[dict[str, Any]], progress: Progress) -> list[Run]:
    """Several streams at the same time, one client thread each."""
    runs: list[Run | None] = [None] * len(jobs)

    def one(number: int) -> None:
        runs[number] = run_stream(client, progress=progress, **jobs[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finished = [run for run in runs if run is not None]
    if len(finished) != len(jobs):
        raise RuntimeError("a stream failed; see above")
    return finished


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    data = load_split(asked.data, asked.split)
    shifts = [("i2t", Shift.parse(name)) for name in asked.image_shift]
    shifts += [("t2i", Shift.parse(name)) for name in asked.text_shift]
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "encoder": asked.encoder,
        "runs": [],
    }
    settings = {"demo_gallery_items": 0, "default_gallery": "photos", "dtype": asked.dtype}
    with (
        running_server(encoder=asked.encoder, url=asked.url, **settings) as url,
        Client(url, timeout_s=900) as client,
        Progress(console=Console(stderr=True)) as progress,
    ):
        fill_galleries(client, data, progress)
        alone: dict[tuple[str, str, str], dict[str, Any]] = {}
        for direction, shift in shifts:
            task = make_task(data, direction, seed=0, limit=asked.limit)  # type: ignore[arg-type]
            queries = make_queries(task, shift, progress)
            for method in asked.method:
                for mode in asked.mode:
                    job = {"task": task, "queries": queries, "shift": shift, "method": method, "mode": mode}
                    run = run_stream(
                        client, stream=f"{shift}-{method}-{mode}".replace(":", "-"), progress=progress, **job
                    )
                    found["runs"].append(asdict(run))
                    alone.setdefault((direction, method, mode), job)
        if asked.together:
            found["together"] = [asdict(run) for run in _together(client, alone, progress)]
    return found


def _together(
    client: Client, alone: dict[tuple[str, str, str], dict[str, Any]], progress: Progress
) -> list[Run]:
    """The first image shift and the first text shift, for each method and mode, two streams at a time."""
    runs: list[Run] = []
    for method, mode in dict.fromkeys((method, mode) for _, method, mode in alone):
        pair = [alone[key] for key in (("i2t", method, mode), ("t2i", method, mode)) if key in alone]
        jobs = [{**job, "stream": f"both-{job['task'].direction}-{method}-{mode}"} for job in pair]
        runs += together(client, jobs, progress)
    return runs


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.http_streams", description=__doc__.split("\n")[0]
    )
    made.add_argument("--encoder", default="demo", help="demo, or a folder with a Hugging Face dual encoder")
    made.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    made.add_argument("--url", help="a running server without galleries `captions` and `photos`")
    made.add_argument("--data", type=Path, required=True, help="captioned folder")
    made.add_argument("--split", default="test")
    made.add_argument("--image-shift", action="append", default=[], metavar="NAME:SEVERITY")
    made.add_argument("--text-shift", action="append", default=[], metavar="NAME:SEVERITY")
    made.add_argument("--method", action="append", required=True, help="source, tcr_untrain, tcr ...")
    made.add_argument("--mode", action="append", choices=["sync", "async"], required=True)
    made.add_argument("--limit", type=int, help="at most so many queries a stream")
    made.add_argument("--together", action="store_true", help="also two streams at the same time")
    made.add_argument("--json", type=Path, help="write everything measured here")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    found = measure(asked)
    out = Console(width=None if sys.stdout.isatty() else 120)
    out.print(_table("one stream at a time", found["runs"]))
    if "together" in found:
        out.print(_table("two streams at the same time", found["together"]))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


def _table(title: str, runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title)
    numbers = ("queries", "R@1", "R@10", "batches", "seconds")
    for column in ("shift", "direction", "method", "mode", *numbers):
        table.add_column(column, justify="right" if column in numbers else "left")
    for run in runs:
        table.add_row(
            run["shift"],
            run["direction"],
            run["method"],
            run["mode"],
            str(run["queries"]),
            f"{run['recall_at_1']:.1f}",
            f"{run['recall_at_10']:.1f}",
            str(run["version"]),
            f"{run['seconds']:.0f}",
        )
    return table


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=1)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
