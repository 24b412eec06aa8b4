"""What a gallery costs over the bare index that it is made of, and what the other backends give up.

    python -m benchmarks.index --items 100000 --dim 512
    python -m benchmarks.index --backends torch,ivf,hnsw --json index.json
    python -m benchmarks.index --shared --rounds 9

The ratio is `Gallery.search_raw` + `hits` over `faiss.IndexFlatIP.search` on the same rows with the same
kernel choice. Both are called in turn in one run, so that whatever else the machine does falls on both. The
rows are unit vectors around a few hundred centres; recall@10 is measured against the exact answers.

`--shared` measures instead what it costs that processes share a gallery: to ask whether it has changed, and
to take over 64 replaced items (and 64 removed ones), against loading it anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from index import Gallery, GalleryStore, IndexSettings, Item, make_index
from index.base import Floats
from index.exact import recall
from index.faiss_library import BLAS_FROM_QUERIES, faiss

K = 10
BATCHES = (64, 1)
CHANGED = 64
_CENTRE_WEIGHT = 0.4
BACKENDS: Mapping[str, IndexSettings] = {
    "torch": IndexSettings(kind="torch"),
    "torch-fp32": IndexSettings(kind="torch", coarse="fp32"),
    "ivf": IndexSettings(kind="ivf"),
    "hnsw": IndexSettings(kind="hnsw"),
}


def clustered_rows(count: int, dimension: int, *, seed: int) -> Floats:
    """Unit rows [count, D] loosely around 300 centres that do not depend on the seed."""
    centres = _CENTRE_WEIGHT * np.random.default_rng(7).standard_normal((300, dimension), dtype=np.float32)
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, len(centres), count)]
    rows += random.standard_normal((count, dimension), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def in_turn(calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, called one after the other in every round; who begins changes each round."""
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        call()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            calls[name]()
            taken[name].append(1000 * (time.perf_counter() - begun))
    return taken


def gallery_over_flat(rows: Floats, queries: Floats, *, rounds: int) -> dict[str, Any]:
    """The gallery's search with hits against FAISS alone, for each size of batch."""
    dimension = rows.shape[1]
    gallery = Gallery("bench", dimension, "none", IndexSettings(), 0.0)
    gallery.upsert(
        [Item(id=f"item-{n}", payload={"n": n}, vectors={"image": row}) for n, row in enumerate(rows)]
    )
    flat = faiss.IndexFlatIP(dimension)
    flat.add(rows)
    report = {}
    for size in BATCHES:
        batch = queries[:size]

        def ours(batch: Floats = batch) -> object:
            scores, positions = gallery.search_raw("image", batch, K)
            return gallery.hits("image", scores, positions, K)

        def bare(batch: Floats = batch) -> object:
            return flat.search(batch, K)

        taken = in_turn({"gallery": ours, "faiss": bare}, rounds=rounds)
        pairs = zip(taken["gallery"], taken["faiss"], strict=True)
        medians = {f"{name}_ms": statistics.median(values) for name, values in taken.items()}
        report[f"{size} queries"] = {
            **medians,
            "ratio_of_medians": medians["gallery_ms"] / medians["faiss_ms"],
            "median_of_ratios": statistics.median(one / other for one, other in pairs),
        }
    return report


def backend(name: str, rows: Floats, queries: Floats, *, rounds: int, device: str) -> dict[str, float]:
    """Time and recall of one backend beside the flat one, in one run."""
    flat = make_index(IndexSettings(), rows.shape[1])
    flat.add(rows)
    index = make_index(BACKENDS[name], rows.shape[1], device)
    begun = time.perf_counter()
    index.add(rows)
    report = {"build_s": time.perf_counter() - begun}
    for size in BATCHES:
        batch = queries[:size]
        calls = {"flat": partial(flat.search, batch, K), name: partial(index.search, batch, K)}
        taken = in_turn(calls, rounds=rounds)
        report[f"{size} queries, ms"] = statistics.median(taken[name])
        report[f"{size} queries, over flat"] = report[f"{size} queries, ms"] / statistics.median(
            taken["flat"]
        )
    report["recall@10"] = recall(index.search(queries, K)[1], flat.search(queries, K)[1])
    return report


def shared(rows: Floats, *, rounds: int) -> dict[str, Any]:
    """One store changes a gallery on disk, another one follows; times in ms but for the check."""
    report: dict[str, Any] = {}
    with (
        TemporaryDirectory() as folder,
        GalleryStore(Path(folder)) as writing,
        GalleryStore(Path(folder)) as following,
    ):
        gallery = writing.create("bench", rows.shape[1], "none", IndexSettings())
        gallery.upsert([Item(id=f"item-{n}", vectors={"image": row}) for n, row in enumerate(rows)])
        follower = following.open("bench", "none")
        report["check_us"] = _microseconds(follower.refresh)
        report["open_us"] = _microseconds(lambda: following.open("bench", "none"))
        taken: dict[str, list[float]] = {"replaced": [], "removed": [], "reload": []}
        for turn in range(rounds):
            chosen = range(turn * CHANGED, (turn + 1) * CHANGED)
            gallery.upsert([Item(id=f"item-{n}", vectors={"image": rows[-n]}) for n in chosen])
            taken["replaced"].append(_milliseconds(follower.refresh))
            gallery.delete([f"item-{len(rows) - 1 - n}" for n in chosen])
            taken["removed"].append(_milliseconds(follower.refresh))
            taken["reload"].append(_milliseconds(partial(_load, Path(folder))))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    report |= {f"{name}_ms": value for name, value in medians.items()}
    report["reload_over_replaced"] = medians["reload"] / medians["replaced"]
    report["reload_over_removed"] = medians["reload"] / medians["removed"]
    return report


def _load(folder: Path) -> None:
    with GalleryStore(folder) as store:
        store.open("bench", "none")


def _milliseconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)


def _microseconds(call: Callable[[], Any], *, times: int = 20_000) -> float:
    return _milliseconds(lambda: [call() for _ in range(times)]) * 1000 / times


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = clustered_rows(arguments.items, arguments.dim, seed=0)
    queries = clustered_rows(max(BATCHES), arguments.dim, seed=1)
    names = [name for name in arguments.backends.split(",") if name]
    if arguments.shared:
        size = {"items": arguments.items, "dimension": arguments.dim, "changed": CHANGED}
        return size | {"shared": shared(rows, rounds=arguments.rounds)}
    return {
        "items": arguments.items,
        "dimension": arguments.dim,
        "k": K,
        "rounds": arguments.rounds,
        "threads": faiss.omp_get_max_threads(),
        "blas_from_queries": BLAS_FROM_QUERIES,
        "faiss": faiss.__version__,
        "machine": platform.processor() or platform.machine(),
        "gallery over faiss": gallery_over_flat(rows, queries, rounds=arguments.rounds),
        "backends": {
            name: backend(name, rows, queries, rounds=arguments.rounds, device=arguments.device)
            for name in names
        },
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backends", default="", help=f"comma-separated, of {', '.join(BACKENDS)}")
    parser.add_argument("--shared", action="store_true", help="measure what following another process costs")
    parser.add_argument("--device", default="cpu", help="where the torch backend computes")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parsed = parser.parse_args(arguments)
    unknown = [name for name in parsed.backends.split(",") if name and name not in BACKENDS]
    if unknown:
        parser.error(f"unknown backends: {', '.join(unknown)}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parse(arguments)
    report = json.dumps(measure(parsed), indent=2)
    sys.stdout.write(f"{report}\n")
    if parsed.json:
        parsed.json.write_text(f"{report}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
