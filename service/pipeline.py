"""From a prepared batch to its ranking, with or without adaptation, on one page.

Knows encoders, methods and a searchable gallery; knows neither queue, streams nor HTTP. Letters: B
queries, D features, k hits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from adapters.base import Forward, Method, StepReport
from adapters.state import AdaptationState
from encoders.base import Tower


@dataclass(frozen=True)
class Ranking:
    """Best first. scores float [B, k], positions int64 [B, k] in the gallery's target (-1: no such item)."""

    scores: np.ndarray
    positions: np.ndarray


class SearchSide(Protocol):
    """The vectors of one gallery and target, as a batch sees them."""

    def search(self, features: Tensor, k: int) -> Ranking:
        """features [B, D] unit rows."""

    def vectors(self, positions: np.ndarray) -> Tensor:
        """positions [B] -> [B, D] on the encoder's device."""


@dataclass
class StageTimes:
    """Milliseconds spent in each stage of one batch."""

    encode_ms: float = 0.0
    search_ms: float = 0.0
    adapt_ms: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How an adaptation ended. `state` is the one to commit; None when there is nothing to commit."""

    status: Literal["applied", "skipped", "undone"]
    reason: str
    state: AdaptationState | None
    losses: Mapping[str, float] = field(default_factory=dict)
    drift: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EarlyAnswer:
    """What `adapt` hands out once the last forward is ranked.

    status is `applying` while the last update is still to come, otherwise what became of the batch.
    """

    features: Tensor
    ranking: Ranking
    status: Literal["applying", "applied", "skipped", "undone"]
    reason: str


OnAnswer = Callable[[EarlyAnswer], None]


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
    tower: Tower,
    inputs: Any,
    side: SearchSide,
    k: int,
    method: Method | None,
    state: AdaptationState | None,
    times: StageTimes,
) -> tuple[Tensor, Ranking]:
    """Rank a batch with a stream's current state, or with the source model (`state` None). Changes nothing.

    Returns the features [B, D] that ranked, and the ranking.
    """
    clock = _Clock(times)
    features = tower.encode(inputs, state.parameters if state is not None and state.parameters else None)
    if method is not None and state is not None:
        features = method.answer_alone(state, features)
    clock.lap("encode_ms")
    ranking = side.search(features, k)
    clock.lap("search_ms")
    return features, ranking


def adapt(
    *,
    tower: Tower,
    inputs: Any,
    side: SearchSide,
    k: int,
    method: Method,
    state: AdaptationState,
    batch_id: str,
    times: StageTimes,
    on_answer: OnAnswer | None = None,
    answer_before_last_update: bool = True,
) -> Generator[None, None, Outcome]:
    """Let a stream's state learn from one batch; the paper's online protocol.

    A generator: it yields between forward and update and between steps, so that the caller can answer
    other queries meanwhile, and returns the outcome. It works on a clone of `state`. With `on_answer` the
    batch is also ranked: by the features of the last step's forward (the released protocol), before
    that step's update where `answer_before_last_update`; or, if the method says so, by one more forward
    after the last update. `on_answer` is called exactly once unless an exception escapes.
    """
    working = state.clone()
    for value in working.parameters.values():
        value.requires_grad_(method.learns)
    clock = _Clock(times)
    finite: list[Tensor] = []
    drift: Mapping[str, Tensor] = {}
    report = StepReport()
    early: tuple[Tensor, Ranking] | None = None

    for step in range(method.steps):
        last = step == method.steps - 1
        features = _forward(tower, inputs, working, learns=method.learns)
        clock.lap("encode_ms")
        if not _finite(features):
            finite.append(torch.tensor(False))
            break
        asked = k if last and on_answer is not None else 1
        ranking = side.search(features.detach(), asked)
        if not ranking.positions.size:  # emptied since the batch was taken: nothing to learn from
            return _without_candidates(features.detach(), ranking, on_answer)
        candidates = side.vectors(np.maximum(ranking.positions[:, 0], 0))
        clock.lap("search_ms")
        forward = Forward(features, candidates, step)
        method.observe(working, forward)
        if step == 0:
            drift = method.drift(working, forward)
        if last and on_answer is not None and not method.predict_after_update:
            ranked = _rank(method, working, forward, ranking, side, k)
            clock.lap("adapt_ms")
            if answer_before_last_update and method.learns and _all_true(finite):
                on_answer(EarlyAnswer(*ranked, status="applying", reason="answered before the last update"))
                on_answer = None
            else:
                early = ranked
        yield
        clock.restart()
        report = method.learn(working, forward)
        if report.finite is not None:
            finite.append(report.finite)
        clock.lap("adapt_ms")
        if not last:
            yield
            clock.restart()

    outcome = _settle(working, report, batch_id, finite=_all_true(finite), drift=drift)
    if on_answer is not None:
        if outcome.status == "undone":
            ranked = answer(
                tower=tower, inputs=inputs, side=side, k=k, method=method, state=state, times=times
            )
        elif early is not None:
            ranked = early
        else:
            ranked = answer(
                tower=tower, inputs=inputs, side=side, k=k, method=method, state=working, times=times
            )
        on_answer(EarlyAnswer(*ranked, status=outcome.status, reason=outcome.reason))
    return outcome


def _without_candidates(features: Tensor, ranking: Ranking, on_answer: OnAnswer | None) -> Outcome:
    """Answer with no hits; whatever earlier steps of this batch have learned is dropped."""
    reason = "the gallery has no items"
    if on_answer is not None:
        on_answer(EarlyAnswer(features, ranking, status="skipped", reason=reason))
    return Outcome("skipped", reason, None)


def _forward(tower: Tower, inputs: Any, working: AdaptationState, *, learns: bool) -> Tensor:
    if learns:
        return tower.encode(inputs, working.parameters)
    with torch.no_grad():
        return tower.encode(inputs, working.parameters or None)


def _rank(
    method: Method, working: AdaptationState, forward: Forward, found: Ranking, side: SearchSide, k: int
) -> tuple[Tensor, Ranking]:
    """The answer's features and ranking; the candidates' search is reused where they are the same."""
    features = method.answer(working, forward)
    return features, side.search(features, k) if method.rectifies else found


def _settle(
    working: AdaptationState,
    report: StepReport,
    batch_id: str,
    *,
    finite: bool,
    drift: Mapping[str, Tensor],
) -> Outcome:
    figures = {name: float(value) for name, value in drift.items()}
    if not finite:
        return Outcome("undone", "the loss or its gradient is not finite", None, drift=figures)
    for value in working.parameters.values():
        value.requires_grad_(False)
    working.batches += 1
    losses = {name: float(value) for name, value in report.losses.items()}
    if not report.applied:
        return Outcome("skipped", report.reason, working, losses, figures)
    working.mark_applied(batch_id)
    return Outcome("applied", "", working, losses, figures)


def _all_true(flags: list[Tensor]) -> bool:
    return not flags or bool(torch.stack(flags).all())


def _finite(features: Tensor) -> bool:
    return bool(torch.isfinite(features.sum()))
