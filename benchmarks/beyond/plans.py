"""Which queries come in which batches, by protocol. Nothing is read or computed here but numbers.

Letters: B queries of a batch. Positions 0..N-1 are those of the task's shuffled queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from benchmarks.corruptions import CLEAN, Shift
from benchmarks.datasets import DatasetError
from benchmarks.embedding import batches

GUARDED = "with the guard"
WAITING, NOT_WAITING = "the stream waits", "the stream does not wait"
WITHOUT_COPIES, WITH_COPIES = "without copies", "with copies"
SHUFFLED = "shuffled"


class Query(NamedTuple):
    shift: Shift
    position: int


@dataclass(frozen=True)
class Planned:
    """A batch. segment: what part of the stream it is; after: whether it comes after what a protocol does.

    copies_of: near copies of that query, as many as the others are; they are not scored.
    """

    queries: tuple[Query, ...]
    segment: str
    after: bool = False
    copies_of: Query | None = None


@dataclass(frozen=True)
class Plan:
    """A stream before it is run. name: its column in a report; variant: what else sets it apart.

    control  scored queries come in the same order; the figures say how far a method is from itself there
    """

    name: str
    variant: str
    batch: int
    batches: tuple[Planned, ...]
    guarded: bool = False
    in_real_time: bool = False
    control: Plan | None = None

    @property
    def scored(self) -> list[Planned]:
        return [planned for planned in self.batches if planned.copies_of is None]


@dataclass(frozen=True)
class Sizes:
    """What plans are made from.

    queries       N
    orders        how many arrangements of the shifts (continual, mixed)
    change_every  batches between two changes of shift
    rounds        how often every shift comes (continual)
    passes        over the clean queries
    tiny          batch sizes
    copies        batches of near copies in a row
    """

    shifts: Sequence[Shift]
    queries: int
    batch: int
    seed: int
    orders: int = 2
    change_every: int = 6
    rounds: int = 1
    passes: int = 3
    tiny: Sequence[int] = (1, 4, 16)
    copies: int = 3

    def rng(self, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *more])


Orders = Mapping[str, Sequence[int]]
"""Positions in other orders than the shuffled one, by name."""


def continual(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """The shift changes every few batches; the queries go on, and begin again where there are no more.

    After: the first batch of each new shift.
    """
    for order in range(sizes.orders):
        shifts = [
            sizes.shifts[int(number)]
            for turn in range(sizes.rounds)
            for number in sizes.rng(order, turn).permutation(len(sizes.shifts))
        ]
        made: list[Planned] = []
        for begin, shift in enumerate(shifts):
            changed = begin > 0 and shift != shifts[begin - 1]
            for number in range(sizes.change_every):
                first = (begin * sizes.change_every + number) * sizes.batch
                asked = [
                    Query(shift, position % sizes.queries) for position in range(first, first + sizes.batch)
                ]
                made.append(Planned(tuple(asked), str(shift), after=changed and number == 0))
        yield from _without_and_with_guard(f"order {order + 1}", sizes.batch, made)


def mixed(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """Every query has another shift, each shift about as often."""
    for order in range(sizes.orders):
        numbers = sizes.rng(order).permutation(sizes.queries) % len(sizes.shifts)
        asked = [Query(sizes.shifts[int(number)], position) for position, number in enumerate(numbers)]
        yield Plan(f"order {order + 1}", "", sizes.batch, _batched(asked, sizes.batch, "mixed"))


def long_clean(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """Clean queries again and again, each time in another order. After: all but the first pass."""
    shift = Shift.parse(CLEAN)
    made: list[Planned] = []
    for turn in range(sizes.passes):
        asked = [Query(shift, int(position)) for position in sizes.rng(turn).permutation(sizes.queries)]
        made += _batched(asked, sizes.batch, f"pass {turn + 1}", after=turn > 0)
    yield Plan(CLEAN, "", sizes.batch, tuple(made))


def correlated(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """Like queries come after each other; beside it the same queries shuffled."""
    for shift in sizes.shifts:
        for name, positions in {SHUFFLED: range(sizes.queries), **orders}.items():
            asked = [Query(shift, position) for position in positions]
            yield Plan(str(shift), name, sizes.batch, _batched(asked, sizes.batch, name))


def tiny(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """The papers' stream in batches of few queries."""
    for shift in sizes.shifts:
        for size in sizes.tiny:
            yield _steady(sizes, shift, f"batches of {size}", size)


def near_duplicates(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """After one third and after two thirds of the batches come some that hold near copies of one query.

    After: the usual batches from the first copies on. Control: the same stream without the copies.
    """
    for shift in sizes.shifts:
        usual = _steady(sizes, shift, WITHOUT_COPIES).batches
        third = len(usual) // 3
        if third == 0:
            raise DatasetError(f"near_duplicates needs at least three batches of queries, not {len(usual)}")
        copied = sizes.rng(len(usual)).permutation(sizes.queries)
        control = [
            Planned(planned.queries, planned.segment, after=number >= third)
            for number, planned in enumerate(usual)
        ]
        made: list[Planned] = []
        sources = iter(copied)
        for number, planned in enumerate(control):
            if number in (third, 2 * third):
                for position in islice(sources, sizes.copies):
                    query = Query(shift, int(position))
                    made.append(Planned(planned.queries, "copies", copies_of=query))
            made.append(planned)
        without = Plan(str(shift), WITHOUT_COPIES, sizes.batch, tuple(control))
        yield without
        yield Plan(str(shift), WITH_COPIES, sizes.batch, tuple(made), control=without)
        name = f"{WITH_COPIES}, {GUARDED}"
        yield Plan(str(shift), name, sizes.batch, tuple(made), guarded=True, control=without)


def realistic(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """The papers' stream, which waits for the method; and one that goes on at the source model's speed."""
    for shift in sizes.shifts:
        waiting = _steady(sizes, shift, WAITING)
        yield waiting
        yield Plan(str(shift), NOT_WAITING, sizes.batch, waiting.batches, in_real_time=True, control=waiting)


def sensitivity(sizes: Sizes, orders: Orders) -> Iterator[Plan]:
    """The papers' stream, for each setting of a method."""
    for shift in sizes.shifts:
        yield _steady(sizes, shift, "")


def _steady(sizes: Sizes, shift: Shift, variant: str, batch: int | None = None) -> Plan:
    size = batch or sizes.batch
    asked = [Query(shift, position) for position in range(sizes.queries)]
    return Plan(str(shift), variant, size, _batched(asked, size, str(shift)))


def _batched(asked: Sequence[Query], size: int, segment: str, *, after: bool = False) -> tuple[Planned, ...]:
    return tuple(Planned(tuple(part), segment, after) for part in batches(asked, size))


def _without_and_with_guard(name: str, batch: int, made: Iterable[Planned]) -> Iterator[Plan]:
    planned = tuple(made)
    without = Plan(name, "", batch, planned)
    yield without
    yield Plan(name, GUARDED, batch, planned, guarded=True, control=without)


PROTOCOLS: Mapping[str, Callable[[Sizes, Orders], Iterator[Plan]]] = {
    "continual": continual,
    "mixed": mixed,
    "long_clean": long_clean,
    "correlated": correlated,
    "tiny": tiny,
    "near_duplicates": near_duplicates,
    "realistic": realistic,
    "sensitivity": sensitivity,
}
