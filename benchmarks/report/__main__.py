"""Tables, pictures and a page from runs of the retrieval benchmarks.

    python -m benchmarks.report RUN.json [RUN.json ...] --out DIR

writes DIR/report.md, DIR/index.html (which needs no other file) and the pictures as PNG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.markdown import markdown
from benchmarks.report.page import page
from benchmarks.report.plots import Plot, plots_of
from benchmarks.report.sections import Section, sections_of
from benchmarks.runs import BadRun, read_run


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Tables, pictures and a page from runs."
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="of benchmarks.retrieval")
    made.add_argument("--out", required=True, type=Path, metavar="DIR")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        sections = sections_of([read_run(path) for path in options.runs])
        if not sections:
            raise BadRun("the runs hold no stream yet")
        options.out.mkdir(parents=True, exist_ok=True)
        plots = _plots(sections)
        names = {number: _write_plots(options.out, number, plots[number]) for number in plots}
        _write(options.out / "report.md", markdown(sections, names))
        _write(options.out / "index.html", page(sections, plots))
    except (BadRun, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(options.out / "index.html")
    return 0


def _plots(sections: Sequence[Section]) -> dict[int, list[Plot]]:
    try:
        return {number: plots_of(section) for number, section in enumerate(sections)}
    except ImportError:
        print('no pictures: they need matplotlib, `pip install -e ".[bench]"`', file=sys.stderr)
        return {}


def _write_plots(folder: Path, number: int, plots: Sequence[Plot]) -> list[str]:
    names = []
    for plot in plots:
        name = f"{number + 1:02d}_{plot.name}.png"
        (folder / name).write_bytes(plot.png)
        names.append(name)
    return names


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
