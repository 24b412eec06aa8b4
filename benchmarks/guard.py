"""The guard under poisoned, steady and changing streams: what is lost without it, what it costs.

    python -m demo.scenes scenes --split test --count 1000
    python -m benchmarks.guard --encoder demo --data scenes --split test --json OUT --plot PNG

Every stream goes through service.pipeline.adapt as in the server, once without a guard and once with it, over
the same batches. The thresholds were chosen on the shifts in CHOSEN_ON; the defaults below leave those out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from adapters.base import Method
from adapters.registry import make_method
from adapters.state import AdaptationState
from benchmarks.console import machine, make_console, versions
from benchmarks.corruptions import Shift
from benchmarks.datasets import DatasetError, load_split
from benchmarks.embedding import batches, default_cache, gallery_embeddings
from benchmarks.exact import ExactSide
from benchmarks.metrics import recall_at, relevant_ranks
from benchmarks.online import adapt_batch
from benchmarks.protocol import HITS, Direction, Task, make_task, near_copies, prepare_queries
from encoders.base import Encoder, EncoderError
from service.guard.guard import Guard
from service.guard.settings import GuardSettings
from service.pipeline import StageTimes, adapt

CHOSEN_ON = ("clean", "gaussian_noise:2", "defocus_blur:5", "contrast:3", "OCR:5")
STEADY = ("clean", "impulse_noise:3", "motion_blur:5", "fog:2", "pixelate:5", "jpeg_compression:3", "CS:5")
CHANGES = ("impulse_noise:3", "motion_blur:5", "fog:2", "brightness:5", "pixelate:5", "jpeg_compression:3")
PARTS = ("poison", "steady", "changes", "isolation", "cost")
HARMFUL_RATE, HIGH_RATE = 1e-2, 1e-3
WARM, POISONED, AFTER = 5, 5, 10
"""Batches before, during and after the poison. A wrong setting meets the queries of before once more."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.guard", description="The guard, measured.")
    made.add_argument("--encoder", default="demo", help="a folder, a hub name, or `demo`")
    made.add_argument(
        "--data", required=True, type=Path, help="folder with images/, captions.tsv, split_NAME.txt"
    )
    made.add_argument("--split", default="test")
    made.add_argument("--part", action="append", choices=PARTS, help="repeatable; all of them if not given")
    made.add_argument("--batches", type=int, default=10, help="of a steady stream (default 10)")
    made.add_argument("--segment", type=int, default=5, help="batches between two changes (default 5)")
    made.add_argument("--batch", type=int, default=64, help="queries per batch (default 64)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--scale-blur", action="store_true", help="blur radii times side / 224")
    made.add_argument("--json", type=Path, metavar="OUT")
    made.add_argument("--plot", type=Path, metavar="PNG", help="needs the extra `bench`")
    return made


@dataclass(frozen=True)
class Batch:
    """Prepared queries; relevant: what is right for each, None where nothing is (poison).

    source: 0-based ranks of the best right item under the source model.
    """

    segment: str
    items: Sequence[Any]
    relevant: Sequence[Sequence[int]] | None
    source: Sequence[np.ndarray]


@dataclass(frozen=True)
class Record:
    """What became of a batch. ranks, source: of the best right item of each query."""

    segment: str
    status: str
    finding: str | None
    action: str | None
    reason: str
    version: int
    ranks: Sequence[int]
    source: Sequence[int]


@dataclass(frozen=True)
class Stream:
    """A stream at some moment; a value, so that one beginning can have several ends."""

    state: AdaptationState
    guard: Guard | None
    records: tuple[Record, ...] = ()


@dataclass
class Bench:
    """One direction: encoder, gallery and queries."""

    encoder: Encoder
    task: Task
    gallery: Tensor
    options: argparse.Namespace
    _prepared: dict[str, list[Batch]] = field(default_factory=dict)

    @property
    def side(self) -> ExactSide:
        return ExactSide(self.gallery)

    @property
    def tower(self) -> Any:
        return self.encoder.towers[self.task.query_modality]

    def start(self, method: Method, guard: Guard | None) -> Stream:
        return Stream(
            method.initial_state(fingerprint=self.encoder.fingerprint, parameters=self.tower.parameters),
            guard,
        )

    def shifted(self, shift: str) -> list[Batch]:
        """All full batches of the direction's queries under a shift, in stream order."""
        if shift not in self._prepared:
            options = self.options
            items = prepare_queries(
                self.task,
                self.encoder,
                Shift.parse(shift),
                seed=options.seed,
                scale=options.scale_blur,
                done=_silent,
            )
            relevant = list(batches(self.task.relevant, options.batch))
            self._prepared[shift] = [
                self._batch(shift, part, right)
                for part, right in zip(batches(items, options.batch), relevant, strict=True)
                if len(part) == options.batch
            ]
        return self._prepared[shift]

    def _batch(self, segment: str, items: Sequence[Any], relevant: Sequence[Sequence[int]]) -> Batch:
        features = self.tower.encode(self.tower.prepare(items))
        return Batch(segment, items, relevant, self.ranks(features, relevant))

    def ranks(self, features: Tensor, relevant: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return relevant_ranks(self.side.scores(features).float().cpu().numpy(), relevant)

    def noise(self, count: int) -> list[Batch]:
        """Pictures of pure chance."""
        spec, size = self.encoder.image_spec, self.options.batch
        rng = np.random.default_rng(self.options.seed)
        return [
            Batch("noise", list(rng.integers(0, 256, (size, 3, spec.height, spec.width), np.uint8)), None, [])
            for _ in range(count)
        ]

    def duplicates(self, count: int) -> list[Batch]:
        """One picture a batch, every copy changed a little."""
        rng = np.random.default_rng(self.options.seed + 1)
        first, size = self.shifted("clean")[0].items, self.options.batch
        made = []
        for number in range(count):
            made.append(Batch("near-duplicates", near_copies(first[number], size, rng), None, []))
        return made

    def fed(self, stream: Stream, sent: Sequence[Batch], method: Method) -> Stream:
        """The stream after more batches."""
        for batch in sent:
            result = adapt_batch(
                tower=self.tower,
                inputs=self.tower.prepare(batch.items),
                side=self.side,
                k=HITS,
                method=method,
                state=stream.state,
                batch_id=f"{len(stream.records)}",
                guard=stream.guard,
            )
            outcome, event = result.outcome, result.outcome.event
            ranks = [] if batch.relevant is None else self.ranks(result.answer.features, batch.relevant)
            record = Record(
                batch.segment,
                outcome.status,
                None if outcome.guard is None else outcome.guard.finding,
                None if event is None else event.action,
                outcome.reason,
                result.told.version,
                [int(found[0]) for found in ranks],
                [int(found[0]) for found in batch.source],
            )
            stream = Stream(result.next_state(stream.state), outcome.guard, (*stream.records, record))
        return stream


def _silent(count: int) -> None:
    """Progress that nobody watches."""


def new_guard() -> Guard:
    return Guard(GuardSettings())


GUARDS: Mapping[str, Callable[[], Guard | None]] = {"off": lambda: None, "on": new_guard}


@dataclass(frozen=True)
class Recall:
    """Percent, adapted and source on the same queries."""

    r1: float
    r10: float
    source_r1: float
    source_r10: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> Recall:
        ranks = [np.asarray([rank]) for record in records for rank in record.ranks]
        source = [np.asarray([rank]) for record in records for rank in record.source]
        return cls(recall_at(ranks, 1), recall_at(ranks, 10), recall_at(source, 1), recall_at(source, 10))

    def __str__(self) -> str:
        return f"{self.r1:.1f} / {self.r10:.1f}"

    @property
    def source(self) -> str:
        return f"{self.source_r1:.1f} / {self.source_r10:.1f}"

    @property
    def kept(self) -> str:
        """Percent of the source's R@1 and R@10."""
        return f"{_share(self.r1, self.source_r1)} / {_share(self.r10, self.source_r10)}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


# -- poison ---------------------------------------------------------------------------------------------


def poison(bench: Bench, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Clean queries, then poison, then clean queries again."""
    clean = bench.shifted("clean")
    if len(clean) < WARM + AFTER:
        raise DatasetError(f"poison needs {(WARM + AFTER) * bench.options.batch} queries")
    before = clean[:WARM]
    after = [_renamed(batch, "after") for batch in clean[WARM : WARM + AFTER]]
    noise, copies = bench.noise(POISONED), bench.duplicates(POISONED)
    wrong = [_renamed(batch, "wrong setting") for batch in before]
    usual, high, harmful = (make_method("tcr", rate) for rate in ({}, _rate(HIGH_RATE), _rate(HARMFUL_RATE)))
    found = []
    for guard, make in GUARDS.items():
        warm = {method: bench.fed(bench.start(method, make()), before, method) for method in (usual, high)}
        for name, method, sent, at, later in (
            ("noise", usual, noise, usual, usual),
            ("near-duplicates", usual, copies, usual, usual),
            (f"noise, learning rate {HIGH_RATE:g}", high, noise, high, high),
            (f"near-duplicates, learning rate {HIGH_RATE:g}", high, copies, high, high),
            (f"learning rate {HARMFUL_RATE:g} for {POISONED} batches", usual, wrong, harmful, usual),
            (f"learning rate {HARMFUL_RATE:g} from then on", usual, wrong, harmful, harmful),
        ):
            stream = bench.fed(bench.fed(warm[method], sent, at), after, later)
            poisoned = stream.records[WARM : WARM + POISONED]
            noticed = next((n for n, record in enumerate(stream.records[WARM:], 1) if record.action), None)
            recall = Recall.of(stream.records[-AFTER:])
            say(f"{name}, guard {guard}: noticed at batch {noticed}, after it {recall} of {recall.source}")
            found.append(
                {
                    "poison": name,
                    "guard": guard,
                    "noticed_at_batch": noticed,
                    "learned_from": sum(record.status == "applied" for record in poisoned),
                    "after": asdict(recall),
                    "shown": [str(recall), recall.source, recall.kept],
                    "records": [asdict(record) for record in stream.records],
                }
            )
    return found


def _rate(rate: float) -> dict[str, float]:
    return {"learning_rate": rate}


def _renamed(batch: Batch, segment: str) -> Batch:
    return Batch(segment, batch.items, batch.relevant, batch.source)


# -- streams of one shift, and of several ---------------------------------------------------------------


def steady(of: Callable[[Direction], Bench], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Streams of one shift: whether the guard finds anything, and what it costs in recall."""
    found = []
    for name in ("tcr", "tcr_untrain"):
        method = make_method(name)
        for shift in STEADY:
            bench = of("t2i" if Shift.parse(shift).modality == "text" else "i2t")
            sent = bench.shifted(shift)[: bench.options.batches]
            for guard, make in GUARDS.items():
                stream = bench.fed(bench.start(method, make()), sent, method)
                recall = Recall.of(stream.records)
                alarms = [(n, r.finding) for n, r in enumerate(stream.records, 1) if r.action]
                say(f"{shift}, {name}, guard {guard}: {recall} of {recall.source}, alarms {alarms}")
                found.append(
                    {
                        "shift": shift,
                        "method": name,
                        "guard": guard,
                        "batches": len(sent),
                        "not_learned_from": sum(record.status != "applied" for record in stream.records),
                        "alarms": alarms,
                        "recall": asdict(recall),
                        "shown": [str(recall), recall.source],
                    }
                )
    return found


def changes(bench: Bench, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One stream whose shift changes: without a guard, with it, and started anew at each change by hand."""
    size = bench.options.segment
    segments = []
    for number, shift in enumerate(CHANGES):
        all_of_it = bench.shifted(shift)
        begin = number * size % max(1, len(all_of_it) - size + 1)
        segments.append(all_of_it[begin : begin + size])
    found = []
    for name in ("tcr", "tcr_untrain"):
        method = make_method(name)
        for guard in (*GUARDS, "reset by hand"):
            stream = bench.start(method, GUARDS.get(guard, lambda: None)())
            for segment in segments:
                if guard == "reset by hand":
                    stream = Stream(bench.start(method, None).state, None, stream.records)
                stream = bench.fed(stream, segment, method)
            recall = Recall.of(stream.records)
            resets = [n for n, record in enumerate(stream.records, 1) if record.action == "reset"]
            say(f"changes, {name}, guard {guard}: {recall} of {recall.source}, resets at {resets}")
            found.append(
                {
                    "method": name,
                    "guard": guard,
                    "segments": list(CHANGES),
                    "batches_each": size,
                    "resets_at_batch": resets,
                    "recall": asdict(recall),
                    "shown": [str(recall), recall.source],
                    "records": [asdict(record) for record in stream.records],
                }
            )
    return found


# -- isolation and cost ---------------------------------------------------------------------------------


def isolation(bench: Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Two streams beside a poisoned one, slice by slice in turns, against the two alone."""
    method = make_method("tcr")
    clean, other = bench.shifted("clean"), bench.shifted("contrast:3")
    streams = {"clean": clean[:4], "contrast:3": other[:4]}
    poisoned = {"poisoned": [clean[4], *bench.noise(2), *bench.duplicates(1)]}
    alone = _interleaved(bench, streams, method)
    beside = _interleaved(bench, {**poisoned, **streams}, method)
    same = {name: alone[name] == beside[name] for name in streams}
    say(f"bit-identical beside a poisoned stream: {same}")
    return {"bit_identical": same, "digests": alone}


def _interleaved(bench: Bench, streams: Mapping[str, Sequence[Batch]], method: Method) -> dict[str, str]:
    """Digest of every answer and of the last state of each stream."""
    digests: dict[str, str] = {}
    waiting = {name: _sliced(bench, sent, method) for name, sent in streams.items()}
    while waiting:
        for name, slices in list(waiting.items()):
            try:
                next(slices)
            except StopIteration as end:
                digests[name] = end.value
                del waiting[name]
    return digests


def _sliced(bench: Bench, sent: Sequence[Batch], method: Method) -> Generator[None, None, str]:
    from hashlib import sha256

    digest = sha256()
    stream = bench.start(method, new_guard())
    state, guard = stream.state, stream.guard
    for number, batch in enumerate(sent):
        answers: list[Tensor] = []
        outcome = yield from adapt(
            tower=bench.tower,
            inputs=bench.tower.prepare(batch.items),
            side=bench.side,
            k=HITS,
            method=method,
            state=state,
            batch_id=str(number),
            times=StageTimes(),
            on_answer=lambda answer, into=answers: into.append(answer.answered.features),  # type: ignore[misc]
            guard=guard,
        )
        state, guard = outcome.state or state, outcome.guard
        digest.update(answers[0].cpu().numpy().tobytes())
    for name, value in (*state.parameters.items(), *state.tensors.items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def cost(of: Callable[[Direction], Bench], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Milliseconds of adapting to a batch without and with the guard, in turns on the same batches.

    Of the processor, not the clock, so that others at work on the machine count less; on a GPU of the clock.
    """
    found = []
    directions: tuple[Direction, ...] = ("i2t", "t2i")
    for direction in directions:
        bench = of(direction)
        clock = time.process_time if bench.encoder.device.type == "cpu" else time.perf_counter
        sent = bench.shifted("clean")
        for name in ("tcr", "tcr_untrain"):
            method = make_method(name)
            begun = bench.fed(bench.start(method, new_guard()), sent[:2], method)
            times: dict[str, list[float]] = {"off": [], "on": []}
            for number in range(12):
                inputs = bench.tower.prepare(sent[2 + number % (len(sent) - 2)].items)
                for guard in ("off", "on") if number % 2 else ("on", "off"):
                    began = clock()
                    adapt_batch(
                        tower=bench.tower,
                        inputs=inputs,
                        side=bench.side,
                        k=HITS,
                        method=method,
                        state=begun.state,
                        batch_id=str(number),
                        guard=begun.guard if guard == "on" else None,
                    )
                    times[guard].append((clock() - began) * 1e3)
            ratio = statistics.median(on / off for on, off in zip(times["on"], times["off"], strict=True))
            say(f"cost, {direction}, {name}: {ratio:.3f} times a batch without the guard")
            ms = {guard: statistics.median(spent) for guard, spent in times.items()}
            found.append({"direction": direction, "method": name, "ratio": ratio, "ms": ms})
    return found


# -- report ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = make_console()
    say = partial(console.print, highlight=False, markup=False)
    parts = options.part or PARTS
    try:
        of = _benches(options)
        found: dict[str, Any] = {"about": _about(options, of("i2t"))}
        for part in parts:
            found[part] = (
                {"steady": steady, "cost": cost}[part](of, say)
                if part in ("steady", "cost")
                else ({"poison": poison, "changes": changes, "isolation": isolation}[part](of("i2t"), say))
            )
            if options.json:  # after every part: nothing is lost with an interruption
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    except (DatasetError, EncoderError, FileNotFoundError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    for table in tables(found):
        console.print(table)
    if options.plot:
        plot(found, options.plot)
    return 0


def _benches(options: argparse.Namespace) -> Callable[[Direction], Bench]:
    from demo import demo_encoder_path
    from encoders.load import load_encoder

    data = load_split(options.data, options.split)
    name = str(demo_encoder_path()) if options.encoder == "demo" else options.encoder
    encoder = load_encoder(name, device="auto", dtype="fp32")
    made: dict[Direction, Bench] = {}

    def of(direction: Direction) -> Bench:
        if direction not in made:
            task = make_task(data, direction, seed=options.seed, limit=_limit(options))
            gallery = gallery_embeddings(
                encoder, data, task.gallery_modality, cache=default_cache(), done=_silent
            )
            made[direction] = Bench(encoder, task, gallery, options)
        return made[direction]

    return of


def _limit(options: argparse.Namespace) -> int:
    """Queries a direction needs at most, so that no more are prepared."""
    return options.batch * max(WARM + AFTER, options.batches, 2 * options.segment)


def _about(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "encoder": {"name": bench.encoder.name, "fingerprint": bench.encoder.fingerprint},
        "data": {"name": bench.task.data.folder.resolve().name, "split": options.split},
        "batch": options.batch,
        "seed": options.seed,
        "guard": GuardSettings().model_dump(),
        "thresholds_chosen_on": list(CHOSEN_ON),
        "versions": versions(),
        "machine": machine(),
    }


def tables(found: Mapping[str, Any]) -> list[Table]:
    made = []
    if "poison" in found:
        columns = (
            "poison",
            "guard",
            "noticed at batch",
            "learned from",
            "R@1 / R@10 after",
            "source",
            "kept",
        )
        table = Table(*columns, title=f"{POISONED} poisoned batches in a clean stream")
        for row in found["poison"]:
            noticed = row["noticed_at_batch"]
            table.add_row(
                row["poison"], row["guard"], str(noticed or "-"), str(row["learned_from"]), *row["shown"]
            )
        made.append(table)
    if "steady" in found:
        table = Table(
            "shift", "method", "guard", "R@1 / R@10", "source", "alarms", title="Streams of one shift"
        )
        for row in found["steady"]:
            table.add_row(row["shift"], row["method"], row["guard"], *row["shown"], str(row["alarms"] or "-"))
        made.append(table)
    if "changes" in found:
        table = Table(
            "method", "guard", "R@1 / R@10", "source", "resets at", title="A stream whose shift changes"
        )
        for row in found["changes"]:
            table.add_row(row["method"], row["guard"], *row["shown"], str(row["resets_at_batch"]))
        made.append(table)
    if "cost" in found:
        table = Table("direction", "method", "with the guard / without", title="Cost of a batch")
        for row in found["cost"]:
            table.add_row(row["direction"], row["method"], f"{row['ratio']:.3f}")
        made.append(table)
    return made


def plot(found: Mapping[str, Any], path: Path) -> None:
    """R@10 of every batch, adapted minus source, with and without the guard."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [("poison", row["poison"]) for row in found.get("poison", []) if row["guard"] == "on"]
    panels += [("changes", row["method"]) for row in found.get("changes", []) if row["guard"] == "on"]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 2.1 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (part, name) in zip(axes[:, 0], panels, strict=True):
        rows = [row for row in found[part] if name in (row.get("poison"), row.get("method"))]
        for row, style in zip(rows, ("o-", "s-", ".:"), strict=False):
            gains = [_gain(record) for record in row["records"]]
            axis.plot(range(1, len(gains) + 1), gains, style, ms=4, label=f"guard {row['guard']}")
        axis.axhline(0, color="grey", lw=0.8)
        if part == "poison":
            axis.axvspan(WARM + 0.5, WARM + POISONED + 0.5, color="tab:red", alpha=0.12)
        axis.set_title(f"{part}: {name}", fontsize=9)
        axis.set_ylabel("R@10 - source", fontsize=8)
        axis.legend(fontsize=7, loc="lower left")
    axes[-1, 0].set_xlabel("batch")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _gain(record: Mapping[str, Any]) -> float:
    """Points of R@10; not a number where nothing is right (poison)."""
    if not record["ranks"]:
        return float("nan")
    return 100.0 * float(
        np.mean(np.asarray(record["ranks"]) < 10) - np.mean(np.asarray(record["source"]) < 10)
    )


if __name__ == "__main__":
    sys.exit(main())
