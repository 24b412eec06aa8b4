"""The worker: one thread that owns every stream state, every gallery and every forward.

It takes jobs from the queue and settles each exactly once, together with what the job has changed: a
state is stored in the same step in which its queries leave the queue. Where that step is refused, because
another worker owns the stream by now, everything about it is dropped here. Whatever takes long (an
adaptation, encoding gallery items) is *work*: a generator that the loop advances slice by slice, answering
one waiting batch between two slices. There is at most one that a client waits for (foreground) and one
that none waits for (background: an adaptation on gathered queries).

Order: jobs of one stream are taken in the order they came. A stream's synchronous batch is taken only
when no work of that stream is under way; its control jobs only when no foreground one is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from adapters.base import AdapterError
from encoders.base import EncoderError
from index.base import GalleryError
from service import outcomes, tracing
from service.batches.make import Batches
from service.batches.taken import Taken
from service.errors import NotReady, QueueUnreachable, ServiceError
from service.galleries import Galleries
from service.gathering import Gathered, Gatherings, GatherLimits
from service.messages import ControlJob, Job, QueryJob, stream_of
from service.metrics import Metrics
from service.pipeline import EarlyAnswer, Outcome
from service.queue.base import ADOPT, GatherWrite, JobQueue, LostOwnership, Settlement, StateWrite
from service.settings import Settings
from service.streams import StreamStore
from service.tracks import Stream, Track

log = structlog.get_logger(__name__)

_IDLE_S = 1.0
_SAVE_SLICE_S = 0.02
_SLICED = frozenset({"list_streams", "latest_streams", "fit_calibration"})
"""Control jobs that take slices though they count no items."""
_CLIENTS_MISTAKES = (ServiceError, GalleryError, AdapterError, EncoderError)
"""Errors that are part of an answer; anything else is a fault of ours and is logged with its traceback."""

Action = Callable[[ControlJob], Any]
"""Returns the answer, or a generator that returns it (work)."""


@dataclass
class _Work:
    """What the loop advances.

    jobs       those that wait for it
    preparing  whether they cannot even be answered before it has gone further
    """

    slices: Generator[None, None, None]
    stream: str | None
    jobs: list[Job] = field(default_factory=list)
    trace: Mapping[str, str] = field(default_factory=dict)
    preparing: bool = False


class Worker:
    """See the module's head. `start` and `stop` may be called from any thread, the rest runs in its own."""

    def __init__(
        self,
        *,
        batches: Batches,
        galleries: Galleries,
        streams: StreamStore,
        queue: JobQueue,
        settings: Settings,
        metrics: Metrics,
        actions: Mapping[str, Action],
    ) -> None:
        self._batches = batches
        self._galleries = galleries
        self._streams = streams
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._actions = actions
        self._foreground: _Work | None = None
        self._background: _Work | None = None
        self._gatherings = Gatherings(
            GatherLimits(
                batch_size=settings.batch_size,
                min_items=settings.gather_min_items,
                max_age_s=settings.gather_max_age_s,
                capacity_items=settings.gather_capacity_items,
                total_items=settings.gather_total_items,
                total_bytes=settings.gather_total_mib << 20,
            ),
            on_shed=lambda stream, track, count: metrics.count_adaptation(
                stream.chosen(track).name, "shed", count
            ),
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
        if job.mode != "sync" and not self._batches.takes_long(job):
            return not self._is_preparing(stream)
        background_stream = None if self._background is None else self._background.stream
        return self._foreground is None and (job.mode != "sync" or background_stream != stream)

    def _is_preparing(self, stream: str | None) -> bool:
        """Whether earlier queries of the stream are still to be answered: later ones do not overtake them."""
        work = self._foreground
        return work is not None and work.preparing and stream is not None and work.stream == stream

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
        for work in (self._foreground, self._background):
            if work is not None:
                work.slices.close()
                self._queue.leave(work.jobs, error)
        while jobs := self._queue.take(max_items=1 << 30, max_wait_s=0, timeout_s=0, accept=lambda job: True):
            self._fail(jobs, error)

    def _advance(self, work: _Work) -> _Work | None:
        """One slice further; None when it has ended, in whatever way."""
        try:
            with tracing.attach(work.trace), tracing.span("adapt", stream=work.stream or ""):
                next(work.slices)
        except StopIteration:
            return None
        except Exception as error:
            self._fail(work.jobs, error)
            return None
        return work

    def _handle(self, jobs: list[Job]) -> None:
        try:
            first = jobs[0]
            if isinstance(first, ControlJob):
                self._control(first)
            else:
                asked = [job for job in jobs if isinstance(job, QueryJob)]
                links = [job.trace for job in asked[1:]]
                with tracing.attach(first.trace), tracing.span("answer", kind="consumer", links=links):
                    self._answer(asked)
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
            assert job.stream is not None
            self._gatherings.watch(self._streams.find_or_create(job.stream))
            return
        answer = self._actions[job.action](job)
        if not isinstance(answer, Generator):
            self._settle_control(job, answer)
            return
        self._foreground = _Work(self._settled(job, answer), job.stream, [job])

    def _settled(self, job: ControlJob, slices: Generator[None, None, Any]) -> Generator[None, None, None]:
        self._settle_control(job, (yield from slices))

    def _settle_control(self, job: ControlJob, answer: Any) -> None:
        state = None if job.stream is None else self._streams.write(job.stream)
        cards = None if job.gallery is None else {job.gallery: self._gallery_card(job.gallery)}
        self._queue.settle(Settlement(results=[(job, answer)], state=state, cards=cards))

    def _gallery_card(self, name: str) -> dict[str, Any] | None:
        return self._galleries.describe(name) if self._galleries.exists(name) else None

    # -- queries ------------------------------------------------------------------------------------

    def _answer(self, jobs: Sequence[QueryJob]) -> None:
        first = jobs[0]
        preparing = self._batches.takes_long(first)
        taken = Taken(jobs, self._batches.of(jobs), time.monotonic())
        self._metrics.observe_batch(taken.batch.size)
        if preparing:
            slices: Generator[None, None, None] | None = self._prepare_and_answer(taken)
        else:
            slices = self._answer_prepared(taken)
        if slices is not None:
            self._foreground = _Work(slices, stream_of(first), list(jobs), first.trace, preparing)

    def _prepare_and_answer(self, taken: Taken) -> Generator[None, None, None]:
        yield from taken.batch.prepare()
        assert self._foreground is not None  # it is this work
        self._foreground.preparing = False
        slices = self._answer_prepared(taken)
        if slices is not None:
            yield from slices

    def _answer_prepared(self, taken: Taken) -> Generator[None, None, None] | None:
        """Answer a batch: by the source model, by the stream's state, or by what is learned from it first.

        The last takes slices, which are returned.
        """
        jobs, batch = taken.jobs, taken.batch
        first = jobs[0]
        for _ in batch.prepare():
            """Done, or so little that it is done at once."""
        if batch.source_because or first.mode == "off":
            self._answer_frozen(taken)
            return None
        stream = self._streams.find_or_create(first.key.stream)
        track = self._streams.track(stream, first.key)
        self._gatherings.watch(stream)
        unlearned = batch.unlearned_because(stream.chosen(track).method)
        if unlearned:
            self._answer_without_learning(taken, stream, track, reason=unlearned)
        elif self._sheds(taken):
            self._answer_without_learning(taken, stream, track, reason="overloaded: answers come first")
        elif any(job.id in track.state.applied_batches for job in jobs):
            self._answer_without_learning(taken, stream, track, reason="learned from before")
        elif first.mode == "sync":
            return _kept(stream, self._adapt_and_answer(taken, stream, track))
        else:
            self._answer_and_gather(taken, stream, track)
        return None

    def _sheds(self, taken: Taken) -> bool:
        """Whether a synchronous batch goes without adapting, because many wait or it has waited long."""
        first = taken.jobs[0]
        if first.mode != "sync" or any(job.again for job in taken.jobs):
            return False  # begun before: its answer may have said already that it adapts
        if first.deadline_at is not None:
            waited, budget = taken.at - first.accepted_at, first.deadline_at - first.accepted_at
            if waited >= self._settings.shed_from_wait_share * budget:
                return True
        return self._overloaded()

    def _answer_frozen(self, taken: Taken) -> None:
        """By the source model."""
        because = taken.batch.source_because or taken.jobs[0].frozen_because
        answered = taken.batch.answer(None, None)
        self._settle(
            taken, answered, method="source", version=0, status="skipped" if because else "off",
            reason=because or "asked for the source model",
        )  # fmt: skip

    def _answer_without_learning(self, taken: Taken, stream: Stream, track: Track, *, reason: str) -> None:
        """Answer with the stream's current state, which stays as it is."""
        chosen = stream.chosen(track)
        answered = taken.batch.answer(chosen.method, track.state)
        self._settle(
            taken, answered, method=chosen.name, version=track.state.version, status="skipped", reason=reason
        )

    def _answer_and_gather(self, taken: Taken, stream: Stream, track: Track) -> None:
        """Asynchronous mode: answer with the current state, let the queries join the next batch."""
        chosen = stream.chosen(track)
        if not chosen.method.adapts:
            reason = f"the stream's method is {chosen.name}"
            self._answer_without_learning(taken, stream, track, reason=reason)
            return
        answered = taken.batch.answer(chosen.method, track.state)
        shed = track.shed
        write = self._gatherings.join(stream, track, taken.jobs)
        self._settle(
            taken, answered, method=chosen.name, version=track.state.version,
            status="queued", reason=self._gathered(len(track.gathered)), gathering=write,
            state=self._streams.write(stream.name) if track.shed != shed else None,
        )  # fmt: skip
        while (overflow := self._gatherings.overflow(is_current=self._still_there)) is not None:
            loser, drop = overflow
            self._queue.settle(Settlement(gathering=drop, state=self._streams.write(loser.name)))

    def _adapt_and_answer(self, taken: Taken, stream: Stream, track: Track) -> Generator[None, None, None]:
        """Synchronous mode: the batch adapts, and its answer comes from the adapted model."""
        chosen = stream.chosen(track)
        answered: list[tuple[Job, Any]] = []

        def on_answer(early: EarlyAnswer[Any]) -> None:
            results = taken.results(
                early.answered, self._metrics, method=chosen.name, version=early.version,
                status=early.status, reason=early.reason,
            )  # fmt: skip
            if early.status == "applying":
                self._queue.answer_early(results)
            else:
                answered.extend(results)

        outcome = yield from taken.batch.adapt(
            track,
            chosen.method,
            batch_id=taken.jobs[0].id,
            on_answer=on_answer,
            answer_before_last_update=self._settings.answer_before_last_update,
        )
        if not self._commit(stream, track, outcome, taken.batch.size):
            # Control jobs of the stream wait for this work: it can only have gone to another worker.
            raise LostOwnership(f"stream {stream.name!r} is another worker's now")
        state = self._streams.write(stream.name)
        self._queue.settle(Settlement(results=answered, finished=taken.jobs, state=state))

    def _settle(
        self,
        taken: Taken,
        answered: Any,
        *,
        gathering: GatherWrite | None = None,
        state: StateWrite | None = None,
        **about: Any,
    ) -> None:
        """Answer a batch whose jobs are done with it; `about` are the arguments of `Taken.results`."""
        results = taken.results(answered, self._metrics, **about)
        self._queue.settle(Settlement(results=results, gathering=gathering, state=state))

    # -- gathering and background adaptation --------------------------------------------------------

    def _gathered(self, count: int) -> str:
        size = self._settings.batch_size
        if count >= size:
            return f"a batch of {size} is full and adapts in the background"
        return f"{count} of {size} queries gathered for the next batch"

    def _start_due_gathering(self, *, everything: bool = False) -> None:
        if self._overloaded() and not everything:
            return
        gathered = self._gatherings.next_batch(is_current=self._still_there, everything=everything)
        if gathered is not None:
            slices = _kept(gathered.stream, self._adapt_only(gathered))
            self._background = _Work(slices, gathered.stream.name)

    def _adapt_only(self, gathered: Gathered) -> Generator[None, None, None]:
        """Learn from gathered queries, kind after kind. Whatever comes of it, they leave the gathering.

        Nothing is committed before the last batch is learned from: a state that were stored in between would
        be taken up with queries that it has learned from already.
        """
        track = gathered.track
        method, ahead = gathered.stream.chosen(track).method, replace(track)
        learned: list[tuple[Outcome, int]] = []
        try:
            for part in gathered.batches:
                batch = self._batches.gathered(part)
                yield from batch.prepare()
                outcome = yield from batch.adapt(ahead, method, batch_id=part.id)
                ahead.commit(outcome)
                learned.append((outcome, batch.size))
        except Exception:
            self._store(gathered, learned)
            raise
        self._store(gathered, learned)

    def _store(self, gathered: Gathered, learned: Sequence[tuple[Outcome, int]]) -> None:
        """Commit what was learned from gathered queries, and let them go, if the stream is still this one."""
        stream, track = gathered.stream, gathered.track
        if not all(self._commit(stream, track, outcome, queries) for outcome, queries in learned):
            return
        if not self._still_there(stream, track):
            return
        stream.dirty = True
        gathering = self._gatherings.learned(gathered)
        self._queue.settle(Settlement(gathering=gathering, state=self._streams.write(stream.name)))

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
        outcomes.tell(self._metrics, stream, track, outcome, queries=queries)
        return True

    def _still_there(self, stream: Stream, track: Track) -> bool:
        return self._streams.is_current(stream) and stream.tracks.get(track.name) is track


def _kept(stream: Stream, slices: Generator[None, None, None]) -> Generator[None, None, None]:
    """`slices`, while the stream stays in memory: what leaves it meanwhile could not be committed."""
    stream.adapting += 1
    try:
        yield from slices
    finally:
        stream.adapting -= 1
