"""From a prepared batch to its ranking, with or without adaptation, on one page.

Knows encoders, methods and a searchable gallery; knows neither queue, streams nor HTTP. Letters: B
queries, D features, k hits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from adapters.base import Again, Classes, Forward, Method, StepReport
from adapters.completion import Completed, Completion, hand_on, remember, remembered
from adapters.drift import relative_distance
from adapters.selection import shuffle_patches
from adapters.state import AdaptationState
from encoders.base import MODALITIES, Adaptable, PictureTower
from service.composed import ComposedTower, detached, under
from service.guard.canaries import CheckCanaries
from service.guard.guard import FEWEST_QUERIES, Guard, GuardEvent, Ruling
from service.guard.look import Look, look_at, sample_rows

NEAREST_CLASSES = 256
"""Of each query, where a gallery has more items than a method takes for classes."""


MeasureShift = Callable[[Tensor], Tensor]
"""Features [B, D] to how far they are from clean ones, a scalar, 1 for clean ones."""


@dataclass(frozen=True)
class Ranking:
    """Best first. scores float [B, k], positions int64 [B, k] in the gallery's target (-1: no such item).

    generation  of the gallery that was searched; positions mean something else in the next one
    """

    scores: np.ndarray
    positions: np.ndarray
    generation: int = 0


class Ranked(NamedTuple):
    """What a batch of queries is answered with: features [B, D], and the ranking by them.

    completed, completion  the embeddings of queries that were completed, and by what
    """

    features: Tensor
    ranking: Ranking
    completed: Completed | None = None
    completion: Completion | None = None


class SearchSide(Protocol):
    """The vectors of one gallery and target, as a batch sees them."""

    def search(self, features: Tensor, k: int) -> Ranking:
        """features [B, D] unit rows."""

    def vectors(self, positions: np.ndarray) -> Tensor:
        """positions [B] -> [B, D] on the encoder's device."""

    def classes(self, features: Tensor, most: int) -> Classes:
        """All vectors, if they are no more than `most`, else those nearest to the features [B, D]."""


@dataclass
class StageTimes:
    """Milliseconds spent in each stage of one batch."""

    encode_ms: float = 0.0
    search_ms: float = 0.0
    adapt_ms: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How an adaptation ended.

    state  the one to commit; None when there is nothing to commit
    guard  the guard to commit with it; None where none watched
    event  what the guard did, if anything
    """

    status: Literal["applied", "skipped", "undone"]
    reason: str
    state: AdaptationState | None
    losses: Mapping[str, float] = field(default_factory=dict)
    drift: Mapping[str, float] = field(default_factory=dict)
    guard: Guard | None = None
    event: GuardEvent | None = None


Answered = TypeVar("Answered")


@dataclass(frozen=True)
class EarlyAnswer(Generic[Answered]):
    """What `adapt` hands out once the batch is answered.

    answered  what the batch is answered with
    status    is `applying` while the last update is still to come, otherwise what became of the batch
    version   of the stream's state once the batch is committed
    """

    answered: Answered
    status: Literal["applying", "applied", "skipped", "undone"]
    reason: str
    version: int


OnAnswer = Callable[[EarlyAnswer[Ranked]], None]


class _Clock:
    """Adds the time since the last lap to a stage."""

    def __init__(self, times: StageTimes) -> None:
        self._times = times
        self.restart()

    def restart(self) -> None:
        self._since = time.perf_counter()

    def lap(self, stage: Literal["encode_ms", "search_ms", "adapt_ms"]) -> None:
        now = time.perf_counter()
        setattr(self._times, stage, getattr(self._times, stage) + (now - self._since) * 1e3)
        self._since = now


@torch.no_grad()
def answer(
    *,
    tower: Adaptable,
    inputs: Any,
    side: SearchSide,
    k: int,
    method: Method | None,
    state: AdaptationState | None,
    times: StageTimes,
) -> Ranked:
    """Rank a batch with a stream's state, or with the source model (`state` None). Changes nothing."""
    clock = _Clock(times)
    tower = under(tower, state)
    parameters = state.parameters if state is not None and state.parameters else None
    features, completed = _encode(tower, inputs, parameters)
    if method is not None and state is not None:
        features = method.answer_alone(state, features)
    clock.lap("encode_ms")
    ranking = side.search(features, k)
    clock.lap("search_ms")
    return Ranked(features, ranking, completed, _completion(tower))


def _completion(tower: Adaptable) -> Completion | None:
    return tower.completion if isinstance(tower, ComposedTower) else None


def _encode(
    tower: Adaptable, inputs: Any, parameters: Mapping[str, Tensor] | None
) -> tuple[Tensor, Completed | None]:
    if isinstance(tower, ComposedTower):
        return tower.encode_completed(inputs, parameters)
    return tower.encode(inputs, parameters), None


def adapt(
    *,
    tower: Adaptable,
    inputs: Any,
    side: SearchSide,
    k: int,
    method: Method,
    state: AdaptationState,
    batch_id: str,
    times: StageTimes,
    on_answer: OnAnswer | None = None,
    answer_before_last_update: bool = True,
    guard: Guard | None = None,
    canaries: CheckCanaries | None = None,
    attached: Callable[[], Completion | None] = lambda: None,
    shift: MeasureShift | None = None,
) -> Generator[None, None, Outcome]:
    """Let a stream's state learn from one batch; the paper's online protocol.

    A generator: it yields between forward and update and between steps, so that the caller can answer
    other queries meanwhile, and returns the outcome. It works on a clone of `state`. With `on_answer` the
    batch is also ranked: by the features of the last step's forward (the released protocol), before
    that step's update where `answer_before_last_update`; or, if the method says so, by one more forward
    after the last update. `on_answer` is called exactly once unless an exception escapes.

    With a `guard` the batch is looked at after its first forward, and the guard rules: the batch is learned
    from, or answered without, under this state or an earlier one. `canaries` are checked when they are due.
    `attached` gives the completion that the track began with, for the guard to go back to. `shift` tells how
    far features are from clean ones; a method that wants a shift (`learn_from_shift`) does not learn without.
    """
    batch = _Batch(
        under(tower, state), inputs, side, k, method, batch_id, times, on_answer, answer_before_last_update,
        attached, shift,
    )  # fmt: skip
    if guard is None or not guard.watches(method):
        return (yield from _learn(batch, state))
    first = _look(batch, state)
    if first.empty:
        return _without_candidates(batch, state, first)
    ruling = _rule(batch, state, first, guard, canaries)
    base = _base(batch, state, ruling)
    reusable = first if base is state else None
    batch = batch if base is state else replace(batch, tower=under(tower, base))
    # What the guard went back to is committed whatever becomes of the batch.
    otherwise = None if base is state else replace(base, version=base.version + 1)
    if ruling.learn:
        outcome = yield from _learn(batch, base, reusable, otherwise)
    else:
        outcome = Outcome("skipped", ruling.reason, otherwise)
        if on_answer is not None:
            ranked = _rank_unlearned(batch, base, reusable or _look(batch, base))
            on_answer(EarlyAnswer(ranked, "skipped", ruling.reason, _version(outcome, state)))
    after = ruling.guard.learned(outcome.drift) if outcome.status == "applied" else ruling.guard
    return replace(outcome, guard=after, event=ruling.event)


@dataclass(frozen=True)
class _Batch:
    """What stays the same through a batch; see `adapt`."""

    tower: Adaptable
    inputs: Any
    side: SearchSide
    k: int
    method: Method
    id: str
    times: StageTimes
    on_answer: OnAnswer | None
    answer_before_last_update: bool
    attached: Callable[[], Completion | None]
    shift: MeasureShift | None = None

    def ranked(self, features: Tensor, ranking: Ranking, step: _Step) -> Ranked:
        return Ranked(features, ranking, detached(step.completed), _completion(self.tower))

    def figures(self, working: AdaptationState, forward: Forward) -> dict[str, Tensor]:
        """How far the batch is from source-like data."""
        found = dict(self.method.drift(working, forward))
        if self.shift is not None:
            found["shift"] = self.shift(forward.queries.detach())
        return found

    def looks_clean(self, figures: Mapping[str, Tensor]) -> bool:
        """Whether the method wants a shift to learn from, and there is none. Waits for the device if so."""
        return self.is_shifted(figures) and float(figures["shift"]) < self.method.learn_from_shift

    def is_shifted(self, figures: Mapping[str, Tensor]) -> bool:
        """Of a batch that does not look clean: whether that is known."""
        return self.method.learn_from_shift > 0 and "shift" in figures

    def forward(self, step: _Step, number: int, *, shifted: bool = False) -> Forward:
        """What methods see of a step that found candidates; `shifted`: the batch is known to be."""
        assert step.candidates is not None
        classes = None
        if self.method.most_classes:
            classes = self.side.classes(step.features.detach(), self.method.most_classes)
        return Forward(
            step.features,
            step.candidates,
            number,
            classes=classes,
            again=_again(self),
            completed=step.completed,
            completion=_completion(self.tower),
            shifted=shifted,
        )


@dataclass(frozen=True)
class _Step:
    """One forward under the working state, and its hits; no hits are looked for by features not finite."""

    working: AdaptationState
    features: Tensor
    ranking: Ranking | None
    candidates: Tensor | None
    completed: Completed | None = None

    @property
    def empty(self) -> bool:
        """The gallery was emptied since the batch was taken: there is nothing to learn from."""
        return self.ranking is not None and self.candidates is None


def _look(batch: _Batch, state: AdaptationState) -> _Step:
    """The first forward, on a clone of `state` that may be learned with."""
    working = state.clone()
    hand_on(state, working, MODALITIES)
    for value in working.parameters.values():
        value.requires_grad_(batch.method.learns)
    return _forward(batch, working, 0)


def _forward(batch: _Batch, working: AdaptationState, number: int) -> _Step:
    clock = _Clock(batch.times)
    with torch.set_grad_enabled(batch.method.learns):
        features, completed = _encode(batch.tower, batch.inputs, working.parameters or None)
    clock.lap("encode_ms")
    if not _finite(features):
        return _Step(working, features, None, None, completed)
    answers = batch.on_answer is not None and number == batch.method.steps - 1
    ranking = batch.side.search(features.detach(), batch.k if answers else 1)
    candidates = _nearest(batch.side, ranking)
    clock.lap("search_ms")
    return _Step(working, features, ranking, candidates, completed)


def _nearest(side: SearchSide, ranking: Ranking) -> Tensor | None:
    """Each query's nearest gallery vector [B, D]; None where the gallery has none."""
    return side.vectors(np.maximum(ranking.positions[:, 0], 0)) if ranking.positions.size else None


def _learn(
    batch: _Batch,
    state: AdaptationState,
    first: _Step | None = None,
    otherwise: AdaptationState | None = None,
) -> Generator[None, None, Outcome]:
    """All steps of a batch.

    first      its first forward where that was made already
    otherwise  the state to commit where nothing is learned; None: nothing to commit
    """
    method, on_answer = batch.method, batch.on_answer
    step = first or _look(batch, state)
    working = step.working
    clock = _Clock(batch.times)
    finite: list[Tensor] = []
    figures: dict[str, Tensor] = {}
    report = StepReport()
    early: Ranked | None = None

    for number in range(method.steps):
        last = number == method.steps - 1
        if number > 0:
            step = _forward(batch, working, number)
            clock.restart()
        if step.empty:
            return _without_candidates(batch, state, step, otherwise)
        if step.ranking is None or step.candidates is None:
            finite.append(torch.tensor(False))
            break
        forward = batch.forward(step, number, shifted=batch.is_shifted(figures))
        method.observe(working, forward)
        if number == 0:
            figures = batch.figures(working, forward)
            if batch.looks_clean(figures):
                return _declined(batch, state, step, figures, otherwise)
            forward = replace(forward, shifted=batch.is_shifted(figures))
        if last and on_answer is not None and not method.predict_after_update:
            early = _rank(batch, step, forward)
            clock.lap("adapt_ms")
            if batch.answer_before_last_update and method.learns and _all_true(finite):
                reason = "answered before the last update"
                on_answer(EarlyAnswer(early, "applying", reason, state.version + 1))
                on_answer = None
        yield
        clock.restart()
        report = _either(report, method.learn(working, forward))
        if report.finite is not None:
            finite.append(report.finite)
        clock.lap("adapt_ms")
        if not last:
            yield

    if method.learns:
        figures["update_norm"] = relative_distance(working.parameters, state.parameters)
        figures["distance"] = relative_distance(working.parameters, batch.tower.parameters)
    outcome = settle(working, report, batch.id, finite=_all_true(finite), figures=figures)
    if outcome.state is None:
        outcome = replace(outcome, state=otherwise)
    if on_answer is not None:
        if early is None or outcome.status == "undone":
            base = state if outcome.status == "undone" else working
            early = answer(
                tower=batch.tower, inputs=batch.inputs, side=batch.side, k=batch.k, method=method,
                state=base, times=batch.times,
            )  # fmt: skip
        on_answer(EarlyAnswer(early, outcome.status, outcome.reason, _version(outcome, state)))
    return outcome


def _either(before: StepReport, now: StepReport) -> StepReport:
    """The last step's report, which counts as applied where an earlier step's was."""
    return replace(now, applied=True) if before.applied and not now.applied else now


def _declined(
    batch: _Batch,
    state: AdaptationState,
    step: _Step,
    figures: Mapping[str, Tensor],
    otherwise: AdaptationState | None,
) -> Outcome:
    """A batch that looks clean: what it shows is remembered, and it is answered from its first forward."""
    wanted = batch.method.learn_from_shift
    reason = f"the batch looks clean: its shift is below {wanted:g}"
    outcome = settle(step.working, StepReport.skipped(reason), batch.id, finite=True, figures=figures)
    if otherwise is not None and outcome.state is not None:  # the guard's going back counts
        outcome = replace(outcome, state=replace(outcome.state, version=otherwise.version))
    if batch.on_answer is not None:
        ranked = _rank_unlearned(batch, state, step)
        batch.on_answer(EarlyAnswer(ranked, "skipped", reason, _version(outcome, state)))
    return outcome


def _again(batch: _Batch) -> Again:
    tower, inputs = batch.tower, batch.inputs

    def encode(parameters: Mapping[str, Tensor], rows: Tensor | None) -> Tensor:
        return tower.encode(inputs if rows is None else inputs[rows], parameters)

    if not isinstance(tower, PictureTower):
        return Again(tower.parameters, encode)
    pictured: PictureTower = tower

    def shuffled(parameters: Mapping[str, Tensor], rows: Tensor, order_by: Tensor) -> Tensor:
        pictures = shuffle_patches(pictured.pictures(inputs)[rows], order_by)
        return pictured.encode(pictured.prepare_tensors(pictures), parameters)

    return Again(tower.parameters, encode, shuffled)


def _version(outcome: Outcome, state: AdaptationState) -> int:
    """The version that answers tell: of what is committed, else of what stays."""
    return (outcome.state or state).version


def _without_candidates(
    batch: _Batch, state: AdaptationState, step: _Step, otherwise: AdaptationState | None = None
) -> Outcome:
    """Answer with no hits; whatever earlier steps of this batch have learned is dropped."""
    reason = "the gallery has no items"
    outcome = Outcome("skipped", reason, otherwise)
    if batch.on_answer is not None:
        assert step.ranking is not None
        version = _version(outcome, state)
        ranked = batch.ranked(step.features.detach(), step.ranking, step)
        batch.on_answer(EarlyAnswer(ranked, "skipped", reason, version))
    return outcome


def _rank(batch: _Batch, step: _Step, forward: Forward) -> Ranked:
    """The answer's features and ranking; the candidates' search is reused where they are the same."""
    features = batch.method.answer(step.working, forward)
    assert step.ranking is not None
    ranking = batch.side.search(features, batch.k) if batch.method.rectifies else step.ranking
    return batch.ranked(features, ranking, step)


@torch.no_grad()
def _rank_unlearned(batch: _Batch, state: AdaptationState, step: _Step) -> Ranked:
    """The answer of a batch that `state` does not learn from; a method that rectifies still sees it whole."""
    if batch.method.rectifies and step.ranking is not None and step.candidates is not None:
        forward = batch.forward(step, 0)
        batch.method.observe(step.working, forward)  # the working state is dropped
        return _rank(batch, step, forward)
    features = batch.method.answer_alone(state, step.features.detach())
    clock = _Clock(batch.times)
    ranking = batch.side.search(features, batch.k)
    clock.lap("search_ms")
    return batch.ranked(features, ranking, step)


def _rule(
    batch: _Batch, state: AdaptationState, first: _Step, guard: Guard, canaries: CheckCanaries | None
) -> Ruling:
    if len(first.features) < FEWEST_QUERIES:
        return guard.unjudged()
    clock = _Clock(batch.times)
    distance = 0.0
    if batch.method.learns:
        distance = float(relative_distance(state.parameters, batch.tower.parameters))
    if first.ranking is None and distance == 0.0:
        return guard.unjudged()  # the source model itself cannot encode this batch; learning will say so
    look = _compare(batch, first, distance, guard.settings.sample_fraction)
    due = canaries is not None and distance > 0.0 and guard.canaries_are_due
    check = canaries(state.parameters) if canaries is not None and due else None
    clock.lap("adapt_ms")
    return guard.rule(look, state, check)


@torch.no_grad()
def _compare(batch: _Batch, first: _Step, distance: float, fraction: float) -> Look:
    """A sample of the batch under its state and under the source model.

    What both would give is not computed twice: a state at no distance is the source model.
    """
    features = first.features.detach()
    chosen = sample_rows(len(features), fraction if batch.method.learns else 1.0)
    rows = torch.from_numpy(chosen).to(features.device)
    adapted = features[rows]
    frozen = adapted if distance == 0.0 else batch.tower.encode(batch.inputs[rows])
    if distance == 0.0 and first.ranking is not None:
        positions = first.ranking.positions[chosen]
    else:
        positions = batch.side.search(frozen, 1).positions
    candidates = batch.side.vectors(np.maximum(positions[:, 0], 0))
    if distance == 0.0:
        return look_at(frozen=(frozen, candidates), adapted=None, agreement=1.0, distance=0.0)
    near, agreement = candidates, 0.0
    if first.ranking is not None and first.candidates is not None:
        near = first.candidates[rows]
        agreement = float((first.ranking.positions[chosen, 0] == positions[:, 0]).mean())
    return look_at(
        frozen=(frozen, candidates), adapted=(adapted, near), agreement=agreement, distance=distance
    )


def _base(batch: _Batch, state: AdaptationState, ruling: Ruling) -> AdaptationState:
    """What the guard goes on from, with the counters that never go back."""
    if ruling.weights == "keep":
        return state
    if ruling.weights == "good" and ruling.good is not None:
        target = ruling.good
    else:
        target = batch.method.initial_state(fingerprint=state.fingerprint, parameters=batch.tower.parameters)
        own = remembered(state, MODALITIES)
        remember(target, own if own is not None and not own.batches else batch.attached())
    return replace(target, version=state.version, applied_batches=state.applied_batches)


def settle(
    working: AdaptationState,
    report: StepReport,
    batch_id: str,
    *,
    finite: bool,
    figures: Mapping[str, Tensor],
) -> Outcome:
    """What a batch has come to, from the working state and the last step's report. `figures` are scalars."""
    values = _read({**figures, **{f"loss.{name}": value for name, value in report.losses.items()}})
    drift = {name: values[name] for name in figures}
    if not finite:
        return Outcome("undone", "the loss or its gradient is not finite", None, drift=drift)
    for value in working.parameters.values():
        value.requires_grad_(False)
    working.batches += 1
    losses = {name: values[f"loss.{name}"] for name in report.losses}
    if not report.applied:
        return Outcome("skipped", report.reason, working, losses, drift)
    working.mark_applied(batch_id)
    return Outcome("applied", "", working, losses, drift)


def _read(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Values of scalar tensors, with one wait for the device for all."""
    if not scalars:
        return {}
    stacked = torch.stack([value.detach().double().reshape(()) for value in scalars.values()])
    return dict(zip(scalars, stacked.tolist(), strict=True))


def _all_true(flags: list[Tensor]) -> bool:
    return not flags or bool(torch.stack(flags).all())


def _finite(features: Tensor) -> bool:
    return bool(torch.isfinite(features.sum()))
