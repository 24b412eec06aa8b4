"""Retrieval on streams that the papers do not have (docs/benchmarks_beyond.md).

    python -m benchmarks.beyond --encoder demo --data FOLDER --split test --direction i2t \\
        --protocol continual --protocol tiny --method source --method tcr --json DIR

Each protocol is a run of its own, DIR/PROTOCOL.json, that the same command goes on with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.beyond.bench import Beyond, Protocol, results
from benchmarks.beyond.plans import PROTOCOLS
from benchmarks.beyond.sweep import USUAL
from benchmarks.beyond.tables import table
from benchmarks.console import make_console
from benchmarks.embedding import Progress as Done
from benchmarks.retrieval import REFUSED, add_run_options, positive, progress_line, progress_lines
from benchmarks.runs import BadRun, RunFile

LIMIT = 512
SHIFTS = {
    "i2t": ("impulse_noise:3", "motion_blur:5", "fog:2", "jpeg_compression:3"),
    "t2i": ("OCR:5", "CS:5", "CD:5"),
}
"""Beside clean queries; no shift of pictures that the guard's thresholds were chosen on."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.beyond", description="Adaptation on streams that the papers do not have."
    )
    add_run_options(made)
    made.set_defaults(limit=LIMIT, parallel=1)
    made.add_argument(
        "--protocol", action="append", required=True, choices=("all", *PROTOCOLS), help="repeatable"
    )
    made.add_argument(
        "--shift",
        "--shifts",
        action="append",
        metavar="NAME[:SEVERITY]",
        help="repeatable, groups too; default: clean, and for i2t four corruptions, for t2i three",
    )
    made.add_argument(
        "--orders", type=positive, default=2, help="arrangements of the shifts: continual, mixed (default 2)"
    )
    made.add_argument(
        "--change-every", type=positive, default=6, metavar="BATCHES", help="continual (default 6)"
    )
    made.add_argument("--rounds", type=positive, default=1, help="of all shifts: continual (default 1)")
    made.add_argument("--passes", type=positive, default=3, help="long_clean (default 3)")
    made.add_argument("--topics", type=positive, default=16, help="clusters: correlated (default 16)")
    made.add_argument(
        "--tiny", type=positive, action="append", metavar="SIZE", help="repeatable (default 1, 4, 16)"
    )
    made.add_argument(
        "--copies", type=positive, default=3, metavar="BATCHES", help="near_duplicates (default 3)"
    )
    made.add_argument(
        "--cost",
        action="append",
        default=[],
        metavar="METHOD=RATIO",
        help="realistic: forwards of the source that a batch costs; not given, it is measured",
    )
    made.add_argument(
        "--sweep",
        action="append",
        metavar="[METHOD.]KEY=V1,V2,...",
        help=f"sensitivity: a setting of the methods, or batch; repeatable (default {' '.join(USUAL)})",
    )
    made.add_argument("--grid", action="store_true", help="all combinations of the sweeps, not one at a time")
    made.add_argument(
        "--json", type=Path, metavar="DIR", help="write DIR/PROTOCOL.json, batch by batch; gone on with"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if "all" in options.protocol:
        options.protocol = list(PROTOCOLS)
    options.protocol = list(dict.fromkeys(options.protocol))
    if not options.shift:
        directions = list(SHIFTS) if options.direction == "both" else [options.direction]
        options.shift = ["clean", *(shift for direction in directions for shift in SHIFTS[direction])]
    console = make_console()
    with TemporaryDirectory() if options.no_cache else nullcontext(str(options.cache)) as cache:
        options.cache = Path(cache)
        try:
            beyond = Beyond(options)
            for name in options.protocol:
                _run(console, beyond, name)
        except KeyboardInterrupt:
            console.print("stopped" + ("; the same command goes on from here" if options.json else ""))
            return 130
        except REFUSED as error:
            more = "; --restart replaces it" if isinstance(error, BadRun) else ""
            console.print(f"{error}{more}", style="red", highlight=False, markup=False)
            return 2
    return 0


def _run(console: Console, beyond: Beyond, name: str) -> None:
    options = beyond.options
    with progress_lines(console) as lines:

        def show(title: str, total: int) -> AbstractContextManager[Done]:
            return progress_line(lines, title, total)

        protocol = Protocol(beyond, name, show)
        path = options.json / f"{name}.json" if options.json else None
        run = RunFile.begin(path, protocol.head, protocol.place, restart=options.restart)
        left = len(protocol.left(run))
        streams = lines.add_task(name, total=left)
        for stream in results(protocol, run):
            run.add(stream)
            lines.advance(streams)
    for direction in beyond.base.directions:
        found = [stream for stream in run.streams if stream["direction"] == direction]
        if found:
            title = f"{beyond.base.encoder.name}, {options.split} {direction}"
            console.print(table(name, found, title))


if __name__ == "__main__":
    sys.exit(main())
