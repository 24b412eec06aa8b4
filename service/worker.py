"""The worker: one thread that owns every stream state, every gallery and every forward.

It takes jobs from the queue and settles each exactly once, together with what the job has changed: a
state is stored in the same step in which its queries leave the queue. Where that step is refused, because
another worker owns the stream by now, everything about it is dropped here. Whatever takes long (an
adaptation, encoding gallery items) is a *task*: a generator that the loop advances slice by slice, answering
one waiting batch between two slices. There is at most one task that a client waits for (foreground) and one
that none waits for (background: an adaptation on gathered queries).

Order: jobs of one stream are taken in the order they came. A stream's synchronous batch is taken only
when no task of that stream is under way; its control jobs only when no foreground one is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from adapters.base import AdapterError
from encoders.base import Encoder, EncoderError, Modality
from index.base import GalleryError
from index.gallery import Gallery
from service import pipeline, tracing
from service.canaries import CanaryStore
from service.errors import NotReady, QueueUnreachable, ServiceError
from service.galleries import Galleries
from service.gallery_side import GallerySide, to_numpy
from service.gathering import GatheredBatch, Gatherings, GatherLimits
from service.messages import (
    Adaptation,
    ControlJob,
    Job,
    JobAnswer,
    Mode,
    Query,
    RankedHit,
    RetrieveJob,
    Status,
    Target,
    Timings,
    stream_of,
)
from service.metrics import Metrics
from service.pipeline import EarlyAnswer, Outcome, Ranking, StageTimes
from service.queue.base import ADOPT, GatherWrite, JobQueue, LostOwnership, Settlement, StateWrite
from service.settings import Settings
from service.streams import Stream, StreamStore, Track

log = structlog.get_logger(__name__)

_IDLE_S = 1.0
_SAVE_SLICE_S = 0.02
_SLICED = frozenset({"list_streams"})
"""Control jobs that take slices though they count no items."""
_CLIENTS_MISTAKES = (ServiceError, GalleryError, AdapterError, EncoderError)
"""Errors that are part of an answer; anything else is a fault of ours and is logged with its traceback."""

Action = Callable[[ControlJob], Any]
"""Returns the answer, or a generator that returns it (a task)."""


@dataclass
class _Task:
    """Work that the loop advances. `jobs` are those that wait for it."""

    slices: Generator[None, None, None]
    stream: str | None
    jobs: list[Job] = field(default_factory=list)
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Batch:
    """Jobs of one batch group, as the worker answers them."""

    jobs: Sequence[RetrieveJob]
    gallery: Gallery
    target: Target
    taken_at: float

    @property
    def queries(self) -> list[Query]:
        return [query for job in self.jobs for query in job.queries]

    @property
    def k(self) -> int:
        return max(job.k for job in self.jobs)


class Worker:
    """See the module's head. `start` and `stop` may be called from any thread, the rest runs in its own."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        galleries: Galleries,
        streams: StreamStore,
        canaries: CanaryStore,
        queue: JobQueue,
        settings: Settings,
        metrics: Metrics,
        actions: Mapping[str, Action],
    ) -> None:
        self._encoder = encoder
        self._galleries = galleries
        self._streams = streams
        self._canaries = canaries
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._actions = actions
        self._foreground: _Task | None = None
        self._background: _Task | None = None
        self._gatherings = Gatherings(
            GatherLimits(
                batch_size=settings.batch_size,
                min_items=settings.gather_min_items,
                max_age_s=settings.gather_max_age_s,
                capacity_items=settings.gather_capacity_items,
                total_items=settings.gather_total_items,
            ),
            on_shed=lambda stream, count: metrics.count_adaptation(stream.method_name, "shed", count),
        )
        self._saved_at = time.monotonic()
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="attune-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, grace_s: float) -> None:
        """Close the queue, finish what was accepted (at most `grace_s`), save the states, end the thread."""
        self._stop_at = time.monotonic() + grace_s
        self._queue.close()
        self._thread.join()

    def stats(self) -> dict[str, Any]:
        """What the worker is at. May be called from any thread.

        adapting  none; sync: an adaptation (or gallery encoding) that a client waits for; background
        due       gatherings that hold a full batch and wait for their turn
        """
        adapting = "sync" if self._foreground is not None else "background" if self._background else "none"
        return {"adapting": adapting, "gatherings": len(self._gatherings), "due": self._gatherings.due()}

    # -- the loop -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._finished():
            try:
                self._tick()
            except Exception:  # the boundary: a fault must not end the thread; jobs are settled below it
                log.exception("worker_fault")
        self._refuse_the_rest()
        self._streams.save_dirty()

    def _tick(self) -> None:
        busy = self._foreground is not None or self._background is not None
        jobs = self._queue.take(
            max_items=self._settings.batch_size,
            max_wait_s=0.0 if busy else self._settings.batch_max_wait_ms / 1e3,
            timeout_s=0.0 if busy else self._idle_for_s(),
            accept=self._acceptable,
        )
        if jobs:
            self._handle(jobs)
        if self._foreground is None and self._background is None:
            self._start_due_gathering()
        if self._foreground is not None:
            self._foreground = self._advance(self._foreground)
        elif self._background is not None:
            self._background = self._advance(self._background)
        if self._streams.saving or time.monotonic() - self._saved_at > self._settings.state_save_interval_s:
            self._streams.save_dirty(for_s=_SAVE_SLICE_S)
            self._saved_at = time.monotonic()

    def _acceptable(self, job: Job) -> bool:
        stream = stream_of(job)
        if isinstance(job, ControlJob):
            return self._foreground is None or not (
                job.items or job.action in _SLICED or self._foreground.stream == stream is not None
            )
        if job.mode != "sync":
            return True
        background_stream = None if self._background is None else self._background.stream
        return self._foreground is None and background_stream != stream

    def _idle_for_s(self) -> float:
        if self._streams.saving:
            return 0.0
        return _IDLE_S if self._overloaded() else self._gatherings.idle_for_s(_IDLE_S)

    def _overloaded(self) -> bool:
        """Whether so much waits that answers come first and adaptation has to wait."""
        return self._queue.pressure() >= self._settings.shed_from_queue_share

    def _finished(self) -> bool:
        """After `stop`: nothing waits and nothing is under way, or the grace is over."""
        if self._stop_at is None:
            return False
        if time.monotonic() > self._stop_at:
            return True
        if self._foreground is not None or self._background is not None or self._queue.depth():
            return False
        if not self._streams.keeps_gatherings:  # they would be lost
            self._start_due_gathering(everything=True)
        return self._background is None

    def _refuse_the_rest(self) -> None:
        error = NotReady("shutting down")
        for task in (self._foreground, self._background):
            if task is not None:
                task.slices.close()
                self._queue.leave(task.jobs, error)
        while jobs := self._queue.take(max_items=1 << 30, max_wait_s=0, timeout_s=0, accept=lambda job: True):
            self._fail(jobs, error)

    def _advance(self, task: _Task) -> _Task | None:
        """One slice further; None when the task has ended, in whatever way."""
        try:
            with tracing.attach(task.trace), tracing.span("adapt", stream=task.stream or ""):
                next(task.slices)
        except StopIteration:
            return None
        except Exception as error:
            self._fail(task.jobs, error)
            return None
        return task

    def _handle(self, jobs: list[Job]) -> None:
        try:
            first = jobs[0]
            if isinstance(first, ControlJob):
                self._control(first)
            else:
                traces = [job.trace for job in jobs if isinstance(job, RetrieveJob)]
                with tracing.attach(first.trace), tracing.span("answer", kind="consumer", links=traces[1:]):
                    self._retrieve([job for job in jobs if isinstance(job, RetrieveJob)])
        except Exception as error:
            self._fail(jobs, error)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        if isinstance(error, LostOwnership | QueueUnreachable):
            # Whoever owns the stream next does these jobs again, from what was stored.
            self._leave(jobs, error)
            return
        if not isinstance(error, _CLIENTS_MISTAKES):
            log.error("job_failed", error=type(error).__name__, why=str(error)[:300], exc_info=error)
        for _ in jobs:
            self._metrics.count_failure(getattr(error, "code", "internal"))
        try:
            self._queue.settle(Settlement(results=[(job, error) for job in jobs]))
        except (LostOwnership, QueueUnreachable) as lost:
            self._leave(jobs, lost)

    def _leave(self, jobs: Sequence[Job], why: Exception) -> None:
        log.warning("jobs_left_to_the_next_owner", jobs=len(jobs), why=str(why))
        self._queue.leave(jobs, why)

    # -- control jobs -------------------------------------------------------------------------------

    def _control(self, job: ControlJob) -> None:
        if job.action == ADOPT:
            self._gatherings.watch(self._streams.find_or_create(_given(job.stream)))
            return
        answer = self._actions[job.action](job)
        if not isinstance(answer, Generator):
            self._settle_control(job, answer)
            return
        self._foreground = _Task(self._settled(job, answer), job.stream, [job])

    def _settled(self, job: ControlJob, slices: Generator[None, None, Any]) -> Generator[None, None, None]:
        self._settle_control(job, (yield from slices))

    def _settle_control(self, job: ControlJob, answer: Any) -> None:
        state = None if job.stream is None else self._streams.write(job.stream)
        cards = None if job.gallery is None else {job.gallery: self._gallery_card(job.gallery)}
        self._queue.settle(Settlement(results=[(job, answer)], state=state, cards=cards))

    def _gallery_card(self, name: str) -> dict[str, Any] | None:
        return self._galleries.describe(name) if self._galleries.exists(name) else None

    # -- queries ------------------------------------------------------------------------------------

    def _retrieve(self, jobs: Sequence[RetrieveJob]) -> None:
        first = jobs[0]
        gallery = self._galleries.usable(first.key.gallery)
        batch = _Batch(jobs, gallery, first.key.target, time.monotonic())
        self._metrics.observe_batch(len(batch.queries))
        if first.key.query_kind == "embedding":
            self._answer_embeddings(batch)
        elif first.mode == "off":
            because = first.frozen_because
            self._answer_frozen(
                batch, status="skipped" if because else "off", reason=because or "asked for the source model"
            )
        elif not gallery.count(first.key.target):
            self._answer_frozen(
                batch, status="skipped", reason=f"the gallery has no {first.key.target} vectors"
            )
        else:
            stream = self._streams.find_or_create(first.key.stream)
            track = self._streams.track(stream, first.key)
            self._gatherings.watch(stream)
            if self._sheds(batch):
                self._answer_without_learning(batch, stream, track, reason="overloaded: answers come first")
            elif any(job.id in track.state.applied_batches for job in jobs):
                self._answer_without_learning(batch, stream, track, reason="learned from before")
            elif first.mode == "sync":
                slices = _kept(stream, self._adapt_and_answer(batch, stream, track))
                self._foreground = _Task(slices, stream.name, list(jobs), first.trace)
            else:
                self._answer_and_gather(batch, stream, track)

    def _sheds(self, batch: _Batch) -> bool:
        """Whether a synchronous batch goes without adapting, because many wait or it has waited long."""
        first = batch.jobs[0]
        if first.mode != "sync" or any(job.again for job in batch.jobs):
            return False  # begun before: its answer may have said already that it adapts
        if first.deadline_at is not None:
            waited, budget = batch.taken_at - first.accepted_at, first.deadline_at - first.accepted_at
            if waited >= self._settings.shed_from_wait_share * budget:
                return True
        return self._overloaded()

    def _answer_embeddings(self, batch: _Batch) -> None:
        times = StageTimes()
        features = torch.from_numpy(np.stack([_given(query.embedding) for query in batch.queries]))
        features = torch.nn.functional.normalize(features, dim=-1)
        started = time.perf_counter()
        ranking = self._side(batch).search(features, batch.k)
        times.search_ms = (time.perf_counter() - started) * 1e3
        self._settle(
            batch, features, ranking, times, method="source", version=0, status="skipped",
            reason="an embedding does not pass through the encoder",
        )  # fmt: skip

    def _answer_frozen(self, batch: _Batch, *, status: Status, reason: str) -> None:
        times = StageTimes()
        features, ranking = pipeline.answer(
            **self._encoded(batch, times), k=batch.k, method=None, state=None, times=times
        )
        self._settle(
            batch, features, ranking, times, method="source", version=0, status=status, reason=reason
        )

    def _answer_without_learning(self, batch: _Batch, stream: Stream, track: Track, *, reason: str) -> None:
        """Answer with the stream's current state, which stays as it is."""
        times = StageTimes()
        features, ranking = pipeline.answer(
            **self._encoded(batch, times), k=batch.k, method=stream.method, state=track.state, times=times
        )
        self._settle(
            batch, features, ranking, times, method=stream.method_name, version=track.state.version,
            status="skipped", reason=reason,
        )  # fmt: skip

    def _answer_and_gather(self, batch: _Batch, stream: Stream, track: Track) -> None:
        """Asynchronous mode: answer with the current state, let the queries join the next batch."""
        if not stream.method.adapts:
            reason = f"the stream's method is {stream.method_name}"
            self._answer_without_learning(batch, stream, track, reason=reason)
            return
        times = StageTimes()
        features, ranking = pipeline.answer(
            **self._encoded(batch, times), k=batch.k, method=stream.method, state=track.state, times=times
        )
        shed = track.shed
        write = self._gatherings.join(stream, track, batch.jobs)
        self._settle(
            batch, features, ranking, times, method=stream.method_name, version=track.state.version,
            status="queued", reason=self._gathered(len(track.gathered)), gathering=write,
            state=self._streams.write(stream.name) if track.shed != shed else None,
        )  # fmt: skip
        while (overflow := self._gatherings.overflow(is_current=self._still_there)) is not None:
            loser, drop = overflow
            self._queue.settle(Settlement(gathering=drop, state=self._streams.write(loser.name)))

    def _adapt_and_answer(self, batch: _Batch, stream: Stream, track: Track) -> Generator[None, None, None]:
        """Synchronous mode: the batch adapts, and its answer comes from the adapted model."""
        times = StageTimes()

        def on_answer(early: EarlyAnswer) -> None:
            results = self._results(
                batch, early.features, early.ranking, times, method=stream.method_name,
                version=early.version, status=early.status, reason=early.reason,
            )  # fmt: skip
            if early.status == "applying":
                self._queue.answer_early(results)
            else:
                answered.extend(results)

        answered: list[tuple[Job, Any]] = []

        outcome = yield from pipeline.adapt(
            **self._encoded(batch, times),
            k=batch.k,
            method=stream.method,
            state=track.state,
            batch_id=batch.jobs[0].id,
            times=times,
            on_answer=on_answer,
            answer_before_last_update=self._settings.answer_before_last_update,
            guard=track.guard,
            canaries=self._canaries.check(track.gallery, track.query_modality, track.target),
        )
        if not self._commit(stream, track, outcome, len(batch.queries)):
            # Control jobs of the stream wait for this task: it can only have gone to another worker.
            raise LostOwnership(f"stream {stream.name!r} is another worker's now")
        state = self._streams.write(stream.name)
        self._queue.settle(Settlement(results=answered, finished=batch.jobs, state=state))

    def _encoded(self, batch: _Batch, times: StageTimes) -> dict[str, Any]:
        """The pipeline's arguments for a batch of texts or pictures."""
        started = time.perf_counter()
        tower, inputs = self._prepare(batch.queries)
        times.encode_ms += (time.perf_counter() - started) * 1e3
        return {"tower": tower, "inputs": inputs, "side": self._side(batch)}

    def _prepare(self, queries: Sequence[Query]) -> tuple[Any, Any]:
        modality: Modality = "text" if queries[0].kind == "text" else "image"
        tower = self._encoder.towers[modality]
        if modality == "text":
            return tower, tower.prepare([_given(query.text) for query in queries])
        return tower, tower.prepare([_given(query.pixels) for query in queries])

    def _side(self, batch: _Batch) -> GallerySide:
        return GallerySide(batch.gallery, batch.target, self._encoder.device)

    # -- gathering and background adaptation --------------------------------------------------------

    def _gathered(self, count: int) -> str:
        size = self._settings.batch_size
        if count >= size:
            return f"a batch of {size} is full and adapts in the background"
        return f"{count} of {size} queries gathered for the next batch"

    def _start_due_gathering(self, *, everything: bool = False) -> None:
        if self._overloaded() and not everything:
            return
        batch = self._gatherings.next_batch(is_current=self._still_there, everything=everything)
        if batch is not None:
            self._background = _Task(_kept(batch.stream, self._adapt_only(batch)), batch.stream.name)

    def _adapt_only(self, batch: GatheredBatch) -> Generator[None, None, None]:
        """Learn from gathered queries. Whatever comes of it, they leave the gathering."""
        stream, track = batch.stream, batch.track
        try:
            gallery = self._galleries.usable(track.gallery)
            tower, inputs = self._prepare(batch.queries)
            outcome = yield from pipeline.adapt(
                tower=tower,
                inputs=inputs,
                side=GallerySide(gallery, track.target, self._encoder.device),
                k=1,
                method=stream.method,
                state=track.state,
                batch_id=batch.id,
                times=StageTimes(),
                guard=track.guard,
                canaries=self._canaries.check(track.gallery, track.query_modality, track.target),
            )
        except Exception:
            if self._still_there(stream, track):
                self._store(batch)
            raise
        if self._commit(stream, track, outcome, len(batch.queries)):
            self._store(batch)

    def _store(self, batch: GatheredBatch) -> None:
        gathering = self._gatherings.learned(batch)
        batch.stream.dirty = True
        self._queue.settle(Settlement(gathering=gathering, state=self._streams.write(batch.stream.name)))

    def _commit(self, stream: Stream, track: Track, outcome: Outcome, queries: int) -> bool:
        """Take over what an adaptation came to; False if the stream is no longer this one."""
        if not self._still_there(stream, track):
            log.info(
                "adaptation_dropped", stream=stream.name, why="the stream was reset or deleted meanwhile"
            )
            return False
        track.commit(outcome)
        stream.dirty = True
        self._streams.measure(stream)
        self._metrics.count_adaptation(stream.method_name, outcome.status, queries)
        self._metrics.observe_drift(
            method=stream.method_name,
            direction=track.direction,
            version=track.state.version,
            figures=outcome.drift,
        )
        if outcome.guard is not None:
            si, gap = outcome.guard.change("source_likeness"), outcome.guard.change("modality_gap")
            if si is not None and gap is not None:
                self._metrics.observe_guard(
                    method=stream.method_name, source_likeness_change=si, modality_gap_change=gap
                )
        if outcome.event is not None:
            event = outcome.event
            self._metrics.count_guard_action(event.action)
            log.warning(
                "guard", stream=stream.name, track=track.name, finding=event.finding, action=event.action,
                why=event.reason,
            )  # fmt: skip
        if outcome.status == "undone":
            log.warning("adaptation_undone", stream=stream.name, track=track.name, why=outcome.reason)
        return True

    def _still_there(self, stream: Stream, track: Track) -> bool:
        return self._streams.is_current(stream) and stream.tracks.get(track.name) is track

    # -- answers ------------------------------------------------------------------------------------

    def _settle(
        self,
        *answer: Any,
        gathering: GatherWrite | None = None,
        state: StateWrite | None = None,
        **about: Any,
    ) -> None:
        """Answer a batch whose jobs are done with it; the arguments are those of `_results`."""
        results = self._results(*answer, **about)
        self._queue.settle(Settlement(results=results, gathering=gathering, state=state))

    def _results(
        self,
        batch: _Batch,
        features: Tensor,
        ranking: Ranking,
        times: StageTimes,
        *,
        method: str,
        version: int,
        status: Status,
        reason: str,
    ) -> list[tuple[Job, Any]]:
        """One answer a job of the batch."""
        if ranking.generation != batch.gallery.generation:  # it was changed since, maybe by another process
            ranking = self._side(batch).search(features, batch.k)
        results: list[tuple[Job, Any]] = []
        mode: Mode = batch.jobs[0].mode
        direction = batch.jobs[0].key.direction
        adaptation = Adaptation(method, mode, direction, version, status, reason, len(batch.queries))
        now = time.monotonic()
        start = 0
        for job in batch.jobs:
            rows = slice(start, start + job.items)
            start = rows.stop
            timings = Timings(
                wait_ms=(batch.taken_at - job.accepted_at) * 1e3,
                encode_ms=times.encode_ms,
                search_ms=times.search_ms,
                adapt_ms=times.adapt_ms,
                total_ms=(now - job.accepted_at) * 1e3,
            )
            hits = self._hits(batch, job, features, ranking, rows)
            results.append((job, JobAnswer(hits, adaptation, timings)))
            self._metrics.observe_answer(
                mode=mode,
                direction=direction,
                status=status,
                timings=timings,
                queries=job.items,
                method=method,
            )
        return results

    def _hits(
        self, batch: _Batch, job: RetrieveJob, features: Tensor, ranking: Ranking, rows: slice
    ) -> tuple[tuple[RankedHit, ...], ...]:
        gallery, target = batch.gallery, batch.target
        scores, positions = ranking.scores[rows], ranking.positions[rows]
        if job.filter is not None:
            allowed = gallery.allowed(target, job.filter)
            scores, positions = gallery.search_raw(target, to_numpy(features[rows]), job.k, allowed)
        found = gallery.hits(target, scores, positions, job.k)
        return tuple(tuple(RankedHit(hit.id, hit.score, hit.payload) for hit in hits) for hits in found)


def _kept(stream: Stream, slices: Generator[None, None, None]) -> Generator[None, None, None]:
    """`slices`, while the stream stays in memory: what leaves it meanwhile could not be committed."""
    stream.adapting += 1
    try:
        yield from slices
    finally:
        stream.adapting -= 1


def _given(value: Any) -> Any:
    assert value is not None  # the queue groups jobs by kind, so a query of this batch has this field
    return value
