"""What is told of an adaptation that was committed: to the metrics and to the log."""

from __future__ import annotations

import structlog

from service.metrics import Metrics
from service.pipeline import Outcome
from service.tracks import Stream, Track

log = structlog.get_logger(__name__)


def tell(metrics: Metrics, stream: Stream, track: Track, outcome: Outcome, *, queries: int) -> None:
    method = stream.chosen(track).name
    metrics.count_adaptation(method, outcome.status, queries)
    metrics.observe_drift(
        method=method, direction=track.direction, version=track.state.version, figures=outcome.drift
    )
    if outcome.guard is not None:
        si, gap = outcome.guard.change("source_likeness"), outcome.guard.change("modality_gap")
        if si is not None and gap is not None:
            metrics.observe_guard(method=method, source_likeness_change=si, modality_gap_change=gap)
    if outcome.event is not None:
        event = outcome.event
        metrics.count_guard_action(event.action)
        log.warning(
            "guard", stream=stream.name, track=track.name, finding=event.finding, action=event.action,
            why=event.reason,
        )  # fmt: skip
    if outcome.status == "undone":
        log.warning("adaptation_undone", stream=stream.name, track=track.name, why=outcome.reason)
