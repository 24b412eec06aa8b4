"""Which data a run's queries and gallery come from: layouts, other galleries, copies corrupted beforehand."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corruptions import CLEAN, Shift
from benchmarks.layouts import LAYOUTS, open_dataset, open_gallery, pair
from benchmarks.protocol import Direction, Task, make_task

_OWN_PLACE = ""


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--layout, --gallery-data, --corrupted-on-disk."""
    parser.add_argument(
        "--layout",
        default="auto",
        choices=("auto", *LAYOUTS),
        help="of --data; auto (default): found from the files",
    )
    parser.add_argument(
        "--gallery-data",
        action="append",
        default=[],
        metavar="FOLDER[:SPLIT]",
        help="the gallery, where it is another data set; repeated, the further ones add distractors",
    )
    parser.add_argument(
        "--corrupted-on-disk",
        nargs="?",
        const=_OWN_PLACE,
        metavar="FOLDER",
        help="read the shifted queries, do not make them; FOLDER holds NAME_SEVERITY/ copies of the data set "
        "(not needed for the TCR release)",
    )


@dataclass(frozen=True)
class QueryData:
    """clean: the clean queries' task, whose gallery all share. on_disk: by shift; the others are made."""

    clean: Task
    on_disk: Mapping[Shift, Task]

    def queries(self, shift: Shift) -> tuple[Task, Shift]:
        """A shift's task and what is left to do to its queries."""
        made = self.on_disk.get(shift)
        return (self.clean, shift) if made is None else (made, Shift(CLEAN, 0))


def open_query_data(options: argparse.Namespace, direction: Direction, shifts: Sequence[Shift]) -> QueryData:
    """Everything that a run reads, opened before it begins.

    options: those of `add_data_options`, data, split, seed and limit.

    Raises:
        DatasetError: what is missing, malformed, or has no counterpart in the gallery.
    """
    data = open_dataset(options.data, options.split, options.layout)
    gallery = open_gallery(options.gallery_data, options.split) if options.gallery_data else data

    def task(shift: Shift | None) -> Task:
        queries = data
        if shift is not None:
            place = Path(options.corrupted_on_disk) if options.corrupted_on_disk else None
            queries = open_dataset(options.data, options.split, options.layout, shift=shift, corrupted=place)
        pairing = None if queries is gallery else pair(queries, gallery).require_complete()
        return make_task(queries, direction, seed=options.seed, limit=options.limit, pairing=pairing)

    wanted = [shift for shift in shifts if shift.name != CLEAN]
    on_disk = {} if options.corrupted_on_disk is None else {shift: task(shift) for shift in wanted}
    return QueryData(task(None), on_disk)
