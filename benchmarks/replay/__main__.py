"""`python -m benchmarks.replay FOLDER [--json OUT]`: exit status 1 when any golden misses its tolerance."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from benchmarks.console import make_console
from benchmarks.replay.golden import GoldenError
from benchmarks.replay.run import Replayed, replay_folder

_COLOURS = {"ok": "green", "miss": "red", "broken": "red"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("folder", type=Path, help="goldens: NAME.npz with NAME.json")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every array's error as JSON")
    options = parser.parse_args(arguments)
    console = make_console()
    try:
        results = replay_folder(options.folder)
    except GoldenError as error:
        console.print(f"[red]{error}[/red]")
        return 2
    _print(console, results)
    if options.json:
        options.json.write_text(json.dumps([result.to_json() for result in results], indent=1) + "\n")
    return 1 if any(result.failed for result in results) else 0


def _print(console: Console, results: Sequence[Replayed]) -> None:
    figures = ("arrays", "worst relative", "worst absolute", "worst array", "tolerance", "verdict")
    table = Table(Column("golden", no_wrap=True), *figures)
    replayed = [result for result in results if result.verdict in _COLOURS]
    for result in replayed:
        table.add_row(*_row(result))
    console.print(table)
    shared = [result.file for result in results if result.verdict == "inputs"]
    missing = [
        f"{result.file} ({result.reason})" for result in results if result.verdict == "not implemented"
    ]
    _print_list(console, "inputs of other goldens", shared)
    _print_list(console, "not implemented yet", missing)
    held = sum(result.verdict == "ok" for result in replayed)
    console.print(f"{held} of {len(replayed)} replayed goldens hold", highlight=False)


def _row(result: Replayed) -> tuple[str, ...]:
    worst, colour = result.worst, _COLOURS[result.verdict]
    errors = (
        (f"{worst.relative:.2e}", f"{worst.absolute:.2e}", worst.array) if worst else ("", "", result.reason)
    )
    verdict = f"[{colour}]{result.verdict}[/{colour}]"
    return (result.file, str(len(result.arrays)), *errors, result.tolerance, verdict)


def _print_list(console: Console, title: str, entries: Sequence[str]) -> None:
    if entries:
        console.print(f"{title}, {len(entries)}: {', '.join(entries)}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
