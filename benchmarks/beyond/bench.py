"""Plans run with methods, and what a run's file keeps of them (benchmarks/runs.py)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from adapters.base import BadSettings, Method
from adapters.registry import make_method
from benchmarks.beyond.cost import cost_over_source, learns_every
from benchmarks.beyond.figures import Whole, compare
from benchmarks.beyond.plans import PROTOCOLS, Orders, Plan, Planned, Query, Sizes
from benchmarks.beyond.queries import Queries
from benchmarks.beyond.sweep import USUAL, Tried, tried
from benchmarks.beyond.topics import BY_SHAPE, BY_TOPIC, by_shape, by_topic
from benchmarks.corruptions import CLEAN, Shift
from benchmarks.embedding import embed
from benchmarks.exact import ExactSide
from benchmarks.metrics import Ranks
from benchmarks.protocol import Direction, Ran, run_stream
from benchmarks.retrieval import Bench, Show
from benchmarks.runs import Key, RunFile
from benchmarks.shift_groups import fits
from service.guard.guard import Guard
from service.guard.settings import GuardSettings

SOURCE = "source"
_OWN_SETTINGS: Mapping[str, Sequence[str]] = {
    "continual": ("change_every", "rounds"),
    "long_clean": ("passes",),
    "correlated": ("topics",),
    "near_duplicates": ("copies",),
}
"""Options that change what a stream of the protocol is; others add streams."""
_SHIFTS_TOGETHER = ("continual", "mixed")
"""Protocols whose streams hold all shifts."""


@dataclass(frozen=True)
class Work:
    """A stream still to be run."""

    direction: Direction
    seed: int
    plan: Plan
    tried: Tried

    @property
    def key(self) -> Key:
        return (self.direction, self.seed, self.plan.name, self.tried.label, self.plan.variant)


class Beyond:
    """All protocols of one command: they share encoder, galleries and prepared queries.

    Raises what `retrieval.REFUSED` names, where something that is asked for is not there.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.base = Bench(options)
        self.costs = _costs(options.cost, self.base.methods)
        self._queries: dict[tuple[Direction, int], Queries] = {}
        self._orders: dict[tuple[Direction, int], Orders] = {}
        self._measured: dict[tuple[Direction, str], float] = {}
        sweeps = options.sweep or USUAL
        self._tried = tried(self.base.methods, sweeps, grid=options.grid) if self._sweeps else []

    @property
    def _sweeps(self) -> bool:
        return "sensitivity" in self.options.protocol

    def tried(self, protocol: str) -> list[Tried]:
        if protocol == "sensitivity":
            return self._tried
        return [Tried(name, method) for name, method in self.base.methods.items()]

    def queries(self, direction: Direction, seed: int) -> Queries:
        key = (direction, seed)
        if key not in self._queries:
            data, scale = self.base.data(direction, seed), self.options.scale_blur
            self._queries[key] = Queries(data, self.base.encoder, seed=seed, scale=scale)
        return self._queries[key]

    def orders(self, direction: Direction, seed: int, show: Show) -> Orders:
        """By topic, and for drawn scenes by shape. Topics are those of the clean queries to the source."""
        key = (direction, seed)
        if key not in self._orders:
            queries = self.queries(direction, seed)
            task, rng = queries.task, np.random.default_rng(seed)
            features = self._clean_features(queries, show)
            found: dict[str, Sequence[int]] = {BY_TOPIC: by_topic(features, self.options.topics, rng)}
            shapes = by_shape(task, rng)
            if shapes is not None:
                found[BY_SHAPE] = shapes
            self._orders[key] = found
        return self._orders[key]

    def _clean_features(self, queries: Queries, show: Show) -> Any:
        clean = Shift.parse(CLEAN)
        asked = tuple(Query(clean, position) for position in range(len(queries.task.numbers)))
        plan = Plan("", "", len(asked), (Planned(asked, ""),))
        self.prepare(queries, plan, show)
        (sent,) = queries.sent(plan)
        with show("topics", len(asked)) as done:
            return embed(self.base.encoder, queries.task.query_modality, sent.items, done)

    def plans(self, protocol: str, direction: Direction, seed: int, batch: int, show: Show) -> list[Plan]:
        options = self.options
        sizes = Sizes(
            shifts=[shift for shift in self.base.shifts if fits(shift, direction)],
            queries=len(self.queries(direction, seed).task.numbers),
            batch=batch,
            seed=seed,
            orders=options.orders,
            change_every=options.change_every,
            rounds=options.rounds,
            passes=options.passes,
            tiny=tuple(options.tiny or (1, 4, 16)),
            copies=options.copies,
        )
        orders = self.orders(direction, seed, show) if protocol == "correlated" else {}
        return list(PROTOCOLS[protocol](sizes, orders))

    def works(self, protocol: str, show: Show) -> list[Work]:
        """Every stream of a protocol: those of a plan after each other, so that they share what is known."""
        found = []
        for direction in self.base.directions:
            for seed in self.base.seeds:
                for each in self.tried(protocol):
                    batch = each.batch or self.options.batch
                    for plan in self.plans(protocol, direction, seed, batch, show):
                        found.append(Work(direction, seed, plan, each))
        return found

    def prepare(self, queries: Queries, plan: Plan, show: Show) -> None:
        missing = queries.missing(plan)
        if missing:
            with show("preparing queries", len(missing)) as done:
                queries.prepare(missing, done)

    def cost(self, work: Work, show: Show) -> float:
        """Of a batch, in forwards of the source: given, or measured once a direction."""
        name = work.tried.label
        if name in self.costs or not work.tried.method.adapts:
            return self.costs.get(name, 1.0)
        key = (work.direction, name)
        if key not in self._measured:
            queries = self.queries(work.direction, work.seed)
            self._measured[key] = cost_over_source(
                self.base.encoder,
                queries.task.query_modality,
                ExactSide(self.base.gallery(work.direction, show)),
                work.tried.method,
                next(queries.sent(work.plan)).items,
            )
        return self._measured[key]

    def head(self, protocol: str, works: Sequence[Work]) -> Mapping[str, Any]:
        head = self.base.head()
        shifts = [str(shift) for shift in self.base.shifts]
        settings = {
            **head["settings"],
            **{name: getattr(self.options, name) for name in _OWN_SETTINGS.get(protocol, ())},
            **({"shifts": shifts} if protocol in _SHIFTS_TOGETHER else {}),
            **({"cost": self.costs} if protocol == "realistic" else {}),
            **({"guard": GuardSettings().model_dump()} if any(work.plan.guarded for work in works) else {}),
        }
        return {
            **head,
            "protocol": protocol,
            "settings": settings,
            "methods": {
                each.label: {
                    **each.method.settings.model_dump(),
                    **({"batch": each.batch} if each.batch else {}),
                }
                for each in self.tried(protocol)
            },
            "asked": {
                **head["asked"],
                "shifts": list(dict.fromkeys(work.plan.name for work in works)),
                "methods": [each.label for each in self.tried(protocol)],
            },
        }


class Protocol:
    """One protocol: its streams, one after the other. What is computed for one is kept for the next."""

    def __init__(self, beyond: Beyond, name: str, show: Show) -> None:
        self._beyond = beyond
        self._show = show
        self._ranks: dict[tuple[Any, ...], Whole] = {}
        self.works = beyond.works(name, show)
        self.head = beyond.head(name, self.works)
        self._places = {work.key: number for number, work in enumerate(self.works)}

    def left(self, run: RunFile) -> list[Work]:
        return [work for work in self.works if work.key not in run]

    def place(self, key: Key) -> Any:
        """Where a stream stands in the file: as asked for; after that what an earlier command asked for."""
        return (self._places.get(key, len(self._places)), *map(str, key))

    def stream(self, work: Work) -> Mapping[str, Any]:
        """A result as the run's file keeps it."""
        began = time.perf_counter()
        ran, facts = self._run(work)
        plan = work.plan
        result = ran.result(shift=plan.name, method=work.tried.label, batch_size=plan.batch)
        told = asdict(result)
        for batch, planned, action in zip(told["batches"], plan.batches, ran.actions, strict=True):
            batch |= {"segment": planned.segment, "guard": action}
        if work.tried.batch is not None:
            told["ms_per_batch"] = None  # of another number of queries than the other methods'
        return {
            "direction": work.direction,
            "seed": work.seed,
            "variant": plan.variant,
            **told,
            **facts,
            "figures": self.figures(work),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def figures(self, work: Work) -> Mapping[str, Mapping[str, float]]:
        """Against source: of the whole stream, its last third, and what comes after. Against the control."""
        ours = self.ranks(work)
        theirs = self.ranks(replace(work, tried=Tried(SOURCE, make_method(SOURCE))))
        plan = work.plan
        queries = np.asarray([query.position for planned in plan.scored for query in planned.queries])
        after = np.asarray([planned.after for planned in plan.scored for _ in planned.queries])
        third = np.arange(len(queries)) >= len(queries) - len(queries) // 3
        parts = {"whole": np.ones(len(queries), bool), "last_third": third, "after": after}
        found = {
            name: compare(ours[part], theirs[part], queries[part])
            for name, part in parts.items()
            if part.any()
        }
        if plan.control is not None:
            without = self.ranks(replace(work, plan=plan.control))
            found["control"] = compare(ours, without, queries)
            if after.any():
                found["control_after"] = compare(ours[after], without[after], queries[after])
        return found

    def ranks(self, work: Work) -> Whole:
        """Of the best right item, for every scored query of a stream."""
        key = (work.key, work.plan.batch)
        if key not in self._ranks:
            self._run(work)
        return self._ranks[key]

    def _run(self, work: Work) -> tuple[Ran, Mapping[str, Any]]:
        beyond, plan = self._beyond, work.plan
        queries = beyond.queries(work.direction, work.seed)
        beyond.prepare(queries, plan, self._show)
        gallery = beyond.base.gallery(work.direction, self._show)
        facts: dict[str, Any] = {}
        every = 1
        if plan.in_real_time:
            cost = beyond.cost(work, self._show)
            every = learns_every(cost)
            facts = {"cost": cost, "learns_every": every}
        total = sum(len(planned.queries) for planned in plan.batches)
        title = ", ".join(part for part in (plan.name, plan.variant, work.tried.label) if part)
        with self._show(title, total) as done:
            ran = run_stream(
                encoder=beyond.base.encoder,
                modality=queries.task.query_modality,
                sent=queries.sent(plan),
                gallery=gallery,
                method=work.tried.method,
                name=plan.name,
                done=done,
                guard=Guard(GuardSettings()) if plan.guarded else None,
                learn_every=every,
            )
        self._ranks[work.key, plan.batch] = _first(ran.ranks)
        return ran, facts


def _first(ranks: Sequence[Sequence[Ranks]]) -> Whole:
    return np.asarray([found[0] for batch in ranks for found in batch], np.int64)


def _costs(given: Sequence[str], methods: Mapping[str, Method]) -> dict[str, float]:
    """NAME=RATIO, each of a chosen method and at least as much as the source."""
    found = {}
    for one in given:
        name, _, text = one.partition("=")
        try:
            ratio = float(text)
        except ValueError:
            ratio = 0.0
        if name not in methods or not 1 <= ratio <= 1e6:
            raise BadSettings(f"--cost {one!r} is not NAME=RATIO of a chosen method, 1 or more")
        found[name] = ratio
    return found


def results(protocol: Protocol, run: RunFile) -> Iterator[Mapping[str, Any]]:
    for work in protocol.left(run):
        yield protocol.stream(work)
