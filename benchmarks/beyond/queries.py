"""The queries of plans, each prepared once under each of its shifts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.beyond.plans import Plan, Planned, Query
from benchmarks.embedding import Progress
from benchmarks.protocol import Sent, Task, near_copies, prepare_queries
from benchmarks.query_data import QueryData
from encoders.base import Encoder


class Queries:
    """One direction under one seed."""

    def __init__(self, data: QueryData, encoder: Encoder, *, seed: int, scale: bool) -> None:
        self._data = data
        self._encoder = encoder
        self._seed = seed
        self._scale = scale
        self._items: dict[Query, Any] = {}

    @property
    def task(self) -> Task:
        return self._data.clean

    def missing(self, plan: Plan) -> list[Query]:
        """What of a plan is not prepared yet."""
        asked = dict.fromkeys(query for planned in plan.batches for query in _needed(planned))
        return [query for query in asked if query not in self._items]

    def prepare(self, asked: Iterable[Query], done: Progress) -> None:
        by_shift: dict[Any, list[int]] = {}
        for query in asked:
            by_shift.setdefault(query.shift, []).append(query.position)
        for shift, positions in by_shift.items():
            task, to_make = self._data.queries(shift)
            some = replace(
                task,
                numbers=[task.numbers[position] for position in positions],
                relevant=[task.relevant[position] for position in positions],
            )
            items = prepare_queries(
                some, self._encoder, to_make, seed=self._seed, scale=self._scale, done=done
            )
            self._items |= {
                Query(shift, position): item for position, item in zip(positions, items, strict=True)
            }

    def sent(self, plan: Plan) -> Iterator[Sent]:
        """The batches of a plan whose queries are prepared."""
        for planned in plan.batches:
            if planned.copies_of is not None:
                rng = np.random.default_rng([self._seed, planned.copies_of.position])
                copies = near_copies(self._items[planned.copies_of], len(planned.queries), rng)
                yield Sent(copies, None)
            else:
                items = [self._items[query] for query in planned.queries]
                yield Sent(items, [self._relevant(query) for query in planned.queries])

    def _relevant(self, query: Query) -> list[int]:
        task, _ = self._data.queries(query.shift)
        return list(task.relevant[query.position])


def _needed(planned: Planned) -> tuple[Query, ...]:
    return planned.queries if planned.copies_of is None else (planned.copies_of,)
