"""The papers' online protocol (methods.md 5.5): one pass over shuffled queries, answered batch by batch.

Every stream (one shift, one method) starts from the source state. The gallery is the clean other modality.
The batch goes through service.pipeline.adapt, as in the server. Letters: N queries of a stream, B of a batch,
D features, G gallery items.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from adapters.base import Method
from benchmarks.corruptions import Shift
from benchmarks.datasets import CaptionedImages
from benchmarks.embedding import Progress, batches, prepare_images, prepare_texts
from benchmarks.exact import ExactSide
from benchmarks.layouts import Pairing
from benchmarks.metrics import Ranks, relevant_ranks, retrieval_metrics
from benchmarks.online import adapt_batch
from encoders.base import Encoder, Modality

Direction = Literal["i2t", "t2i"]
HITS = 10
"""Hits that the timed search returns; the complete ranking for mAP is made outside the clock."""


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
) -> StreamResult:
    """One stream from the source state to its end."""
    tower = encoder.towers[task.query_modality]
    side = ExactSide(gallery)
    state = method.initial_state(fingerprint=encoder.fingerprint, parameters=tower.parameters)
    ranks: list[Ranks] = []
    figures: list[BatchFigures] = []
    for number, batch in enumerate(batches(items, batch_size)):
        inputs = tower.prepare(batch)
        began = time.perf_counter()
        result = adapt_batch(
            tower=tower,
            inputs=inputs,
            side=side,
            k=HITS,
            method=method,
            state=state,
            batch_id=f"{shift}/{number}",
        )
        total_ms = (time.perf_counter() - began) * 1e3
        state = result.next_state(state)
        scores = side.scores(result.answer.features).float().cpu().numpy()
        asked = task.relevant[number * batch_size : number * batch_size + len(batch)]
        found = relevant_ranks(scores, asked)
        ranks += found
        times, outcome = result.times, result.outcome
        ms = {
            "encode": times.encode_ms,
            "search": times.search_ms,
            "adapt": times.adapt_ms,
            "total": total_ms,
        }
        figures.append(
            BatchFigures(
                size=len(batch),
                status=outcome.status,
                reason=outcome.reason,
                recall=retrieval_metrics(found),
                drift=outcome.drift,
                losses=outcome.losses,
                ms=ms,
            )
        )
        done(len(batch))
    return StreamResult(
        shift=str(shift),
        method=method.name,
        queries=len(items),
        metrics=retrieval_metrics(ranks),
        ms_per_batch=_typical_ms(figures, batch_size),
        statuses=_count([figure.status for figure in figures]),
        state_version=state.version,
        batches=figures,
    )


def _typical_ms(figures: Sequence[BatchFigures], batch_size: int) -> float:
    """Median over full batches; the first of several is left out, it warms caches."""
    full = [figure.ms["total"] for figure in figures if figure.size == batch_size]
    chosen = full[1:] or full or [figure.ms["total"] for figure in figures]
    return statistics.median(chosen)


def _count(statuses: Sequence[str]) -> dict[str, int]:
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}
