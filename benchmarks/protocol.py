"""The papers' online protocol (methods.md 5.5): one pass over shuffled queries, answered batch by batch.

Every stream (one shift, one method) starts from the source state. The gallery is the clean other modality.
The batch goes through service.pipeline.adapt, as in the server. Letters: N queries of a stream, B of a batch,
D features, G gallery items.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from adapters.base import Method
from adapters.completion import Completion
from adapters.state import AdaptationState
from benchmarks.corruptions import Shift
from benchmarks.datasets import CaptionedImages
from benchmarks.embedding import Progress, batches, prepare_images, prepare_texts
from benchmarks.exact import ExactSide
from benchmarks.layouts import Pairing
from benchmarks.metrics import Ranks, relevant_ranks, retrieval_metrics
from benchmarks.online import adapt_batch
from encoders.base import Encoder, Modality, Tower
from service.guard.guard import Guard
from service.pipeline import Outcome, StageTimes, answer

Direction = Literal["i2t", "t2i"]
HITS = 10
"""Hits that the timed search returns; the complete ranking for mAP is made outside the clock."""
STALE = "stale"
"""Status of a batch that the weights of before answered, because the method was busy with an earlier one."""
_COPIES_DIFFER = 6
"""Of 255, at most, between a picture and its near copy."""


@dataclass(frozen=True)
class Task:
    """One direction of a data set: which items ask, in which order, and what is right for each.

    numbers   positions of the queries in the data set, in stream order [N]
    relevant  for each query the gallery positions that are right
    pairing   the gallery, where it is another data set than the queries'
    """

    direction: Direction
    data: CaptionedImages
    numbers: Sequence[int]
    relevant: Sequence[Sequence[int]]
    pairing: Pairing | None = None

    @property
    def gallery(self) -> CaptionedImages:
        return self.data if self.pairing is None else self.pairing.gallery

    @property
    def query_modality(self) -> Modality:
        return "image" if self.direction == "i2t" else "text"

    @property
    def gallery_modality(self) -> Modality:
        return "text" if self.direction == "i2t" else "image"


def make_task(
    data: CaptionedImages,
    direction: Direction,
    *,
    seed: int,
    limit: int | None,
    pairing: Pairing | None = None,
) -> Task:
    """The direction's queries in a fixed random order (torch's randperm of `seed`), the first `limit`."""
    total = len(data.images) if direction == "i2t" else len(data.captions)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    numbers = order[:limit]
    known = pairing or data
    right = known.right_captions if direction == "i2t" else known.right_images
    return Task(direction, data, numbers, [right(number) for number in numbers], pairing)


def prepare_queries(
    task: Task, encoder: Encoder, shift: Shift, *, seed: int, scale: bool, done: Progress
) -> Sequence[Any]:
    """The stream's items under a shift, ready for `tower.prepare`; every method gets the same ones."""
    if task.query_modality == "text":
        captions = [task.data.captions[number] for number in task.numbers]
        return prepare_texts(captions, task.numbers, shift, seed=seed, done=done, clean=task.data.clean)
    paths = [task.data.images[number] for number in task.numbers]
    return prepare_images(paths, task.numbers, encoder, shift, seed=seed, scale=scale, done=done)


@dataclass(frozen=True)
class BatchFigures:
    """One batch: size, adaptation status, reason, recall of its answers in percent (r1, r5, r10, map), drift,
    losses of the last step, milliseconds by stage."""

    size: int
    status: str
    reason: str
    recall: Mapping[str, float]
    drift: Mapping[str, float]
    losses: Mapping[str, float]
    ms: Mapping[str, float]


@dataclass(frozen=True)
class StreamResult:
    """One method on one shift. metrics in percent; ms_per_batch: median over full batches."""

    shift: str
    method: str
    queries: int
    metrics: Mapping[str, float]
    ms_per_batch: float
    statuses: Mapping[str, int]
    state_version: int
    batches: Sequence[BatchFigures]


def near_copies(item: Any, count: int, rng: np.random.Generator) -> list[Any]:
    """A prepared picture (uint8 [3, H, W]) with a little noise, or a text with a few characters swapped."""
    if isinstance(item, str):
        typos = Shift.parse("CS:1")
        return [typos.text(item, rng) for _ in range(count)]
    copies = np.repeat(np.asarray(item)[None].astype(np.int16), count, axis=0)
    noise = rng.integers(-_COPIES_DIFFER, _COPIES_DIFFER + 1, copies.shape)
    return list(np.clip(copies + noise, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Sent:
    """A batch of a stream: prepared queries, and what is right for each; None: it is not scored."""

    items: Sequence[Any]
    relevant: Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class Ran:
    """A stream at its end.

    ranks    of each batch's relevant items, query by query; none where not scored
    actions  of the guard, by batch; empty where it did nothing
    """

    batches: Sequence[BatchFigures]
    ranks: Sequence[Sequence[Ranks]]
    actions: Sequence[str]
    state_version: int

    def result(self, *, shift: str, method: str, batch_size: int) -> StreamResult:
        ranks = [found for batch in self.ranks for found in batch]
        learned_from = [figure for figure in self.batches if figure.status != STALE]
        return StreamResult(
            shift=shift,
            method=method,
            queries=len(ranks),
            metrics=retrieval_metrics(ranks),
            ms_per_batch=_typical_ms(learned_from, batch_size),
            statuses=_count([figure.status for figure in self.batches]),
            state_version=self.state_version,
            batches=self.batches,
        )


def run_stream(
    *,
    encoder: Encoder,
    modality: Modality,
    sent: Iterable[Sent],
    gallery: Tensor,
    method: Method,
    name: str,
    done: Progress,
    guard: Guard | None = None,
    learn_every: int = 1,
    clean: Completion | None = None,
) -> Ran:
    """One stream from the source state to its end.

    learn_every  the method learns from every so many batches and is busy until the next of them; those in
                 between are answered by the state of before
    clean        what is known of clean queries: batches then show their shift from them
    """
    tower, side = encoder.towers[modality], ExactSide(gallery)
    measure = None if clean is None else partial(clean.shift, modality)
    learned = method.initial_state(fingerprint=encoder.fingerprint, parameters=tower.parameters)
    state = learned
    ranks: list[Sequence[Ranks]] = []
    figures: list[BatchFigures] = []
    actions: list[str] = []
    for number, batch in enumerate(sent):
        inputs = tower.prepare(batch.items)
        began = time.perf_counter()
        if number % learn_every == 0:
            state = learned
            result = adapt_batch(
                tower=tower,
                inputs=inputs,
                side=side,
                k=HITS,
                method=method,
                state=state,
                batch_id=f"{name}/{number}",
                guard=guard,
                shift=measure,
            )
            learned, guard = result.next_state(state), result.outcome.guard
            features, times, outcome = result.answer.features, result.times, result.outcome
        else:
            features, times = _answer_stale(tower, inputs, side, method, state)
            outcome = None
        total_ms = (time.perf_counter() - began) * 1e3
        ranks.append([] if batch.relevant is None else _ranks(side, features, batch.relevant))
        figures.append(_figures(len(batch.items), outcome, ranks[-1], times, total_ms))
        event = None if outcome is None else outcome.event
        actions.append("" if event is None else event.action)
        done(len(batch.items))
    return Ran(figures, ranks, actions, learned.version)


def _answer_stale(
    tower: Tower, inputs: Any, side: ExactSide, method: Method, state: AdaptationState
) -> tuple[Tensor, StageTimes]:
    times = StageTimes()
    ranked = answer(tower=tower, inputs=inputs, side=side, k=HITS, method=method, state=state, times=times)
    return ranked.features, times


def _ranks(side: ExactSide, features: Tensor, relevant: Sequence[Sequence[int]]) -> list[Ranks]:
    return relevant_ranks(side.scores(features).float().cpu().numpy(), relevant)


def _figures(
    size: int, outcome: Outcome | None, ranks: Sequence[Ranks], times: StageTimes, total_ms: float
) -> BatchFigures:
    return BatchFigures(
        size=size,
        status=STALE if outcome is None else outcome.status,
        reason="the method was busy" if outcome is None else outcome.reason,
        recall=retrieval_metrics(ranks) if ranks else {},
        drift={} if outcome is None else outcome.drift,
        losses={} if outcome is None else outcome.losses,
        ms={
            "encode": times.encode_ms,
            "search": times.search_ms,
            "adapt": times.adapt_ms,
            "total": total_ms,
        },
    )


def run_method(
    *,
    encoder: Encoder,
    task: Task,
    shift: Shift,
    items: Sequence[Any],
    gallery: Tensor,
    method: Method,
    batch_size: int,
    done: Progress,
    clean: Completion | None = None,
) -> StreamResult:
    """The papers' stream: one shift, batch after batch."""
    sent = map(Sent, batches(items, batch_size), batches(task.relevant, batch_size))
    ran = run_stream(
        encoder=encoder,
        modality=task.query_modality,
        sent=sent,
        gallery=gallery,
        method=method,
        name=str(shift),
        done=done,
        clean=clean,
    )
    return ran.result(shift=str(shift), method=method.name, batch_size=batch_size)


def _typical_ms(figures: Sequence[BatchFigures], batch_size: int) -> float:
    """Median over full batches; the first of several is left out, it warms caches."""
    full = [figure.ms["total"] for figure in figures if figure.size == batch_size]
    chosen = full[1:] or full or [figure.ms["total"] for figure in figures]
    return statistics.median(chosen)


def _count(statuses: Sequence[str]) -> dict[str, int]:
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}
