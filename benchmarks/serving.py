"""What adaptation costs while serving.

    python -m benchmarks.serving                      both parts, with the demo encoder
    python -m benchmarks.serving --part http          off, async and sync against a running server, as ratios
    python -m benchmarks.serving --part loop          synchronous TCR against a plain loop, as ratios
    python -m benchmarks.serving --part loop --encoder E --data DIR --split NAME

Machines differ and drift, so everything compared is measured in turns within one run, and the ratios
are what to quote. The loop part takes a captioned folder (see benchmarks/datasets.py), or demo scenes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adapters.registry import make_method
from attune import AttuneError, Client
from benchmarks.console import machine, versions
from benchmarks.corruptions.shift import Shift
from benchmarks.datasets import CaptionedImages, load_split
from benchmarks.embedding import embed
from benchmarks.metrics import recall_at, relevant_ranks
from benchmarks.naive_loop import naive_tcr, stock_batches
from benchmarks.protocol import Direction, Task, make_task, prepare_queries
from benchmarks.server import running_server
from encoders.base import Encoder
from encoders.load import load_encoder
from encoders.preprocessing import clean_caption
from index.base import IndexSettings
from index.gallery import Gallery
from index.items import Item
from service.gallery_side import GallerySide
from service.pipeline import EarlyAnswer, Ranked, StageTimes, adapt

BATCH = 64
console = Console(stderr=True)


# -- synchronous TCR against a plain loop ------------------------------------------------------------


@dataclass
class Runner:
    """One way to run the stream: `batch(i)` -> features or similarities; times in seconds."""

    name: str
    run: Callable[[int], tuple[torch.Tensor, float, float]]
    answered: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    ranks: list[Any] = field(default_factory=list)


def compare_with_loop(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = Path(_encoder_path(arguments.encoder))
    data, task, encoders = _task(arguments, folder)
    shift = Shift.parse(arguments.shift or ("gaussian_noise:1" if task.direction == "i2t" else "OCR:5"))
    items = prepare_queries(task, encoders["fp32"], shift, seed=0, scale=False, done=lambda count: None)
    items = items[: arguments.batches * BATCH]
    side = task.gallery_modality
    gallery_items = (
        [clean_caption(caption) for caption in data.captions]
        if side == "text"
        else prepare_queries(
            make_task(data, "i2t", seed=0, limit=None), encoders["fp32"], Shift.parse("clean"),
            seed=0, scale=False, done=lambda count: None,
        )
    )  # fmt: skip
    order = None if side == "text" else make_task(data, "i2t", seed=0, limit=None).numbers
    vectors = embed(encoders["fp32"], side, gallery_items, lambda count: None)
    if order is not None:  # pictures came in the stream's order
        unshuffled = torch.empty_like(vectors)
        unshuffled[torch.as_tensor(list(order))] = vectors
        vectors = unshuffled
    runners = _runners(arguments, folder, task, items, vectors, encoders)
    for number in track(range(-(-len(items) // BATCH)), "sync TCR against the loop", console=console):
        for runner in runners:
            scores, answered, finished = runner.run(number)
            runner.answered.append(answered)
            runner.finished.append(finished)
            asked = task.relevant[number * BATCH : (number + 1) * BATCH]
            runner.ranks += relevant_ranks(scores.float().numpy(), asked[: len(scores)])
    loop = runners[0]
    rows = [
        {
            "name": runner.name,
            "ms_to_answer": 1e3 * statistics.median(runner.answered[1:] or runner.answered),
            "ms_to_finish": 1e3 * statistics.median(runner.finished[1:] or runner.finished),
            "times_faster_to_answer": _paired(loop.answered, runner.answered),
            "times_faster_to_finish": _paired(loop.finished, runner.finished),
            "recall_at_1": recall_at(runner.ranks, 1),
            "recall_at_10": recall_at(runner.ranks, 10),
        }
        for runner in runners
    ]
    return {
        "shift": str(shift),
        "direction": task.direction,
        "queries": len(items),
        "gallery": len(vectors),
        "rows": rows,
    }


def _runners(
    arguments: argparse.Namespace,
    folder: Path,
    task: Task,
    items: Sequence[Any],
    vectors: torch.Tensor,
    encoders: dict[str, Encoder],
) -> list[Runner]:
    spec = encoders["fp32"].image_spec
    naive = naive_tcr(folder, task.query_modality, vectors)
    stock = stock_batches(folder, task.query_modality, items, BATCH, spec)

    def loop(number: int) -> tuple[torch.Tensor, float, float]:
        began = time.perf_counter()
        similarity = naive(stock[number])
        took = time.perf_counter() - began
        return similarity, took, took

    runners = [Runner("plain loop, fp32", loop)]
    for dtype, encoder in encoders.items():
        runners.append(Runner(f"attune, {dtype}", _attune(encoder, task, items, vectors)))
    return runners


def _attune(
    encoder: Encoder, task: Task, items: Sequence[Any], vectors: torch.Tensor
) -> Callable[[int], tuple[torch.Tensor, float, float]]:
    """The service's pipeline over a FAISS gallery. Preparation counts, as it happens at serving time."""
    target = task.gallery_modality
    gallery = Gallery("bench", encoder.dimension, encoder.fingerprint, IndexSettings(), 0.0)
    gallery.upsert(
        [Item(id=str(row), vectors={target: vector}) for row, vector in enumerate(vectors.numpy())]
    )
    tower, side, method = (
        encoder.towers[task.query_modality],
        GallerySide(gallery, target, encoder.device),
        make_method("tcr"),
    )
    state = method.initial_state(fingerprint=encoder.fingerprint, parameters=tower.parameters)

    def run(number: int) -> tuple[torch.Tensor, float, float]:
        nonlocal state
        answers: list[tuple[EarlyAnswer[Ranked], float]] = []
        began = time.perf_counter()
        slices = adapt(
            tower=tower,
            inputs=tower.prepare(items[number * BATCH : (number + 1) * BATCH]),
            side=side,
            k=10,
            method=method,
            state=state,
            batch_id=str(number),
            times=StageTimes(),
            on_answer=lambda answer: answers.append((answer, time.perf_counter() - began)),
        )
        try:
            while True:
                next(slices)
        except StopIteration as end:
            state = end.value.state or state
        finished = time.perf_counter() - began
        ((answer, answered),) = answers
        return answer.answered.features @ vectors.T, answered, finished

    return run


def _task(arguments: argparse.Namespace, folder: Path) -> tuple[CaptionedImages, Task, dict[str, Encoder]]:
    encoders = {dtype: load_encoder(str(folder), device="cpu", dtype=dtype) for dtype in ("fp32", "bf16")}
    direction: Direction = arguments.direction
    if arguments.data is not None:
        data = load_split(arguments.data, arguments.split)
    else:
        from demo.scenes import write_folder

        place = Path(tempfile.mkdtemp(prefix="attune-scenes-"))
        write_folder(place, "test", 1000)
        data = load_split(place, "test")
    return data, make_task(data, direction, seed=0, limit=None), encoders


def _paired(loop: Sequence[float], ours: Sequence[float]) -> float:
    """Median of the ratios batch by batch, the first left out: it warms caches."""
    ratios = [a / b for a, b in zip(loop, ours, strict=True)]
    return statistics.median(ratios[1:] or ratios)


# -- off, async and sync over HTTP -------------------------------------------------------------------


def compare_modes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same queries in every mode, in turns; each mode has its own stream.

    Queries per second count the adaptation in the background too, the answer times do not.
    """
    with (
        running_server(encoder=arguments.encoder, url=arguments.url) as url,
        Client(url, timeout_s=600) as client,
    ):
        texts = _captions(client)
        workloads = {
            "one text a request, 4 clients": (1, 4, arguments.requests),
            "64 texts a request": (64, 1, max(3, arguments.requests // 32)),
        }
        found: dict[str, Any] = {}
        for name, (size, clients, requests) in workloads.items():
            found[name] = _workload(client, texts, size=size, clients=clients, requests=requests, title=name)
        return found


def _captions(client: Client) -> list[str]:
    page = client.list_items(client.models()["default_gallery"], limit=256)
    texts = [item["text"] for item in page["items"] if item["text"]]
    if not texts:
        raise SystemExit("the server's default gallery has no texts to ask for")
    return texts


def _workload(
    client: Client, texts: Sequence[str], *, size: int, clients: int, requests: int, title: str
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"off": [], "async": [], "sync": []}
    wall: dict[str, float] = dict.fromkeys(seconds, 0.0)

    def one(mode: str, number: int) -> float:
        queries = [texts[(number * size + row) % len(texts)] for row in range(size)]
        began = time.perf_counter()
        client.retrieve(queries, adapt=mode, stream=f"bench-{mode}")
        return time.perf_counter() - began

    for mode in seconds:
        one(mode, 0)
    rounds = 4
    with ThreadPoolExecutor(max_workers=clients) as pool:
        for turn in track(range(rounds), title, console=console):
            numbers = range(turn * requests // rounds, (turn + 1) * requests // rounds)
            for mode, taken in seconds.items():
                began = time.perf_counter()
                taken += pool.map(partial(one, mode), numbers)  # noqa: PLW2901 - extends the list in place
                _wait_for_background(client)  # so that each mode pays for its own adaptation
                wall[mode] += time.perf_counter() - began
    rows: list[dict[str, Any]] = []
    for mode, measured in seconds.items():
        ordered = sorted(measured)
        rows.append(
            {
                "mode": mode,
                "queries_per_s": size * len(measured) / wall[mode],
                "p50_ms": 1e3 * statistics.median(ordered),
                "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
            }
        )
    base = rows[0]
    for row in rows:
        for figure in ("queries_per_s", "p50_ms", "p99_ms"):
            row[f"{figure}_over_off"] = row[figure] / base[figure]
    return {"requests": requests, "queries_a_request": size, "clients": clients, "rows": rows}


def _wait_for_background(client: Client) -> None:
    """Until the worker has adapted on every full batch that was gathered."""
    while True:
        worker = client.models()["worker"]
        if worker["adapting"] == "none" and not worker["due"]:
            return
        time.sleep(0.005)


# -- the command -------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n")[0])
    made.add_argument("--part", choices=["http", "loop", "both"], default="both")
    made.add_argument("--encoder", default="demo", help="demo, or a folder with a Hugging Face dual encoder")
    made.add_argument("--url", help="a running server; default: one is started and stopped")
    made.add_argument("--requests", type=int, default=400, help="single-text requests a mode (http)")
    made.add_argument("--data", type=Path, help="captioned folder (loop); default: demo scenes")
    made.add_argument("--split", default="test", help="split of that folder")
    made.add_argument("--direction", choices=["i2t", "t2i"], default="i2t")
    made.add_argument("--shift", help="NAME:SEVERITY of the queries (loop)")
    made.add_argument("--batches", type=int, default=10, help="batches of 64 (loop)")
    made.add_argument("--json", type=Path, help="write everything measured here")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    found: dict[str, Any] = {"machine": machine(), "versions": versions(), "encoder": asked.encoder}
    out = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if asked.part in ("loop", "both"):
            found["loop"] = compare_with_loop(asked)
            out.print(_loop_table(found["loop"]))
        if asked.part in ("http", "both"):
            found["http"] = compare_modes(asked)
            for name, workload in found["http"].items():
                out.print(_mode_table(name, workload))
    except AttuneError as error:
        out.print(f"[red]{error}")
        return 1
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


def _loop_table(found: dict[str, Any]) -> Table:
    table = Table(title=f"TCR on {found['queries']} queries, {found['shift']}, gallery {found['gallery']}")
    for column in ("", "ms to answer", "ms to finish", "faster to answer", "faster to finish", "R@1", "R@10"):
        table.add_column(column, justify="left" if not column else "right")
    for row in found["rows"]:
        table.add_row(
            row["name"],
            f"{row['ms_to_answer']:.0f}",
            f"{row['ms_to_finish']:.0f}",
            f"{row['times_faster_to_answer']:.2f}x",
            f"{row['times_faster_to_finish']:.2f}x",
            f"{row['recall_at_1']:.2f}",
            f"{row['recall_at_10']:.2f}",
        )
    return table


def _mode_table(name: str, workload: dict[str, Any]) -> Table:
    table = Table(title=f"{name} ({workload['requests']} requests a mode)")
    for column in (
        "mode",
        "queries/s",
        "p50 ms",
        "p99 ms",
        "queries/s over off",
        "p50 over off",
        "p99 over off",
    ):
        table.add_column(column, justify="right")
    for row in workload["rows"]:
        table.add_row(
            row["mode"],
            f"{row['queries_per_s']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['queries_per_s_over_off']:.2f}",
            f"{row['p50_ms_over_off']:.2f}",
            f"{row['p99_ms_over_off']:.2f}",
        )
    return table


def _encoder_path(name: str) -> str:
    if name != "demo":
        return name
    from demo import demo_encoder_path

    return str(demo_encoder_path())


if __name__ == "__main__":
    sys.exit(main())
