"""What Prometheus sees of a server.

Every server has its own registry, so that tests and several servers in one process do not share numbers. All
methods may be called from any thread and cost microseconds. Labels are few and bounded: no gallery or item
names, and streams by name only for the few that `watch_stream_figures` is told to show.

Gauges of what a server may not have (Redis, leases, other workers) are absent until they are known, so that
nothing alerts where there is nothing. docs/operations.md lists every name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from service.messages import Mode, Status, Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST

Outcome = Literal["applied", "skipped", "undone", "shed"]
"""What became of an adaptation batch. shed: dropped from the gathering without adapting."""

GuardAction = Literal["warn", "skip", "freeze", "rollback", "reset"]
LeaseMove = Literal["gained", "lost", "released"]
"""gained: taken by this worker. lost: run out or taken over. released: given back on purpose."""
DropReason = Literal["cancelled", "expired"]
"""Why an accepted query got no answer: its client left, or its deadline passed."""
RateLimitBy = Literal["key", "stream"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CHANGES = (-0.1, -0.05, -0.02, -0.01, -0.005, -0.002, 0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

_DRIFT: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "modality_gap": (
        "Distance of the mean query from the mean candidate of an adapted batch, 0 to 2.",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0),
    ),
    "modality_gap_target": (
        "The gap of the source-like pairs in memory, which the method works towards, 0 to 2.",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0),
    ),
    "uniformity": (
        "Mean distance of a batch's queries from their mean, 0 to 1.",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    ),
    "entropy_nats": (
        "Mean entropy of a batch's queries over its candidates, in nats.",
        (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    ),
    "source_likeness": (
        "Mean SI of an adapted batch; small is source-like, about -4 to 4.",
        (-2.0, -1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0),
    ),
}
"""Figures of adapters.drift, with histogram bounds: a mean over streams says little, its spread does."""


@dataclass(frozen=True)
class StreamFigures:
    """What one stream shows of itself in one direction. Figures that it does not have yet are None.

    last_used   any clock; larger is later
    pinned      shown before all streams that are not
    """

    stream: str
    direction: str
    version: int
    modality_gap: float | None = None
    modality_gap_target: float | None = None
    uniformity: float | None = None
    entropy_nats: float | None = None
    last_used: float = 0.0
    pinned: bool = False


def known_method(method: str) -> str | None:
    """The HTTP method, or None for one that somebody made up."""
    return method if method in _HTTP_METHODS else None


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._known = _GaugesWhenKnown(self.registry)
        self._stream_figures = _StreamCollector(self.registry)
        self._add_traffic()
        self._add_adaptation()
        self._add_guard()
        self._add_deployment()

    def _add_traffic(self) -> None:
        self._queue_items = self._gauge("attune_queue_items", "Queries waiting for the worker.")
        self._queue_capacity = self._gauge(
            "attune_queue_capacity_items", "Queries that may wait; beyond, requests get 429."
        )
        self._ready = self._gauge("attune_ready", "1 when the server answers queries.")
        self._jobs = self._counter(
            "attune_jobs_answered", "Jobs answered (a request is one job a kind and batch).", "mode", "status"
        )
        self._queries = self._counter(
            "attune_queries_answered", "Queries answered.", "mode", "status", "direction"
        )
        self._dropped = self._counter(
            "attune_queries_dropped", "Accepted queries that nobody waited for any more.", "outcome"
        )
        self._failures = self._counter("attune_jobs_failed", "Jobs that ended in an error.", "code")
        self._batch = self._histogram("attune_batch_queries", "Queries encoded together.", _QUERIES)
        self._stages = self._histogram(
            "attune_stage_seconds", "Seconds that a job spent in each stage.", _SECONDS, "stage", "method"
        )
        self._requests = self._counter(
            "attune_http_requests", "Requests by route template.", "route", "method", "status"
        )
        self._request_seconds = self._histogram(
            "attune_http_request_seconds",
            "Seconds from a request's head to its last byte.",
            _SECONDS,
            "route",
        )
        self._rate_limited = self._counter(
            "attune_rate_limited_requests", "Requests refused by a rate limit.", "by"
        )
        _begin(self._dropped, ("cancelled", "expired"))
        _begin(self._rate_limited, ("key", "stream"))

    def _add_adaptation(self) -> None:
        self._adaptations = self._counter(
            "attune_adaptations", "Adaptation batches by what became of them.", "method", "outcome"
        )
        self._adapted_queries = self._counter(
            "attune_adaptation_queries", "Queries of those batches.", "method", "outcome"
        )
        self._adaptation_sizes = self._histogram(
            "attune_adaptation_batch_queries", "Queries that adapted together.", _QUERIES, "method"
        )
        self._adaptation_seconds = self._histogram(
            "attune_adaptation_seconds", "Seconds of work for one adaptation batch.", _SECONDS, "method"
        )
        self._versions = self._gauge(
            "attune_newest_state_version",
            "Version of the state that was written last.",
            "method",
            "direction",
        )
        self._drift = {
            name: self._histogram(f"attune_{name}", text, bounds, "method", "direction")
            for name, (text, bounds) in _DRIFT.items()
        }
        self._streams = self._gauge("attune_streams", "Streams whose state is in memory.")
        self._stream_bytes = self._gauge("attune_stream_bytes", "Bytes of the stream states in memory.")
        self._evictions = self._counter(
            "attune_stream_evictions", "Streams that were saved and left memory to make room."
        )

    def _add_guard(self) -> None:
        self._guard_actions = self._counter(
            "attune_guard_actions", "What the guard did about harm to a stream.", "action"
        )
        self._guard_changes = {
            name: self._histogram(f"attune_guard_{name}_change", text, _CHANGES, "method")
            for name, text in (
                ("source_likeness", "SI of a batch, adapted less source model; above 0 is harm."),
                ("modality_gap", "Modality gap of a batch, adapted less source model; above 0 is harm."),
            )
        }
        _begin(self._guard_actions, ("warn", "skip", "freeze", "rollback", "reset"))

    def _add_deployment(self) -> None:
        self._lease_moves = self._counter(
            "attune_lease_moves", "Partitions that this worker gained, lost or gave back.", "action"
        )
        self._redeliveries = self._counter(
            "attune_redeliveries", "Jobs that came a second time, because whoever had them died."
        )
        self._redis_errors = self._counter("attune_redis_errors", "Failed calls of Redis.")
        self._redis_up = self._known.add("attune_redis_up", "1 while Redis answers.")
        self._workers = self._known.add("attune_workers", "Workers alive.")
        self._leases = self._known.add("attune_leases", "Partitions that this worker owns.")
        _begin(self._lease_moves, ("gained", "lost", "released"))

    # What is asked at each scrape

    def watch_queue(self, depth_items: Callable[[], float], *, capacity_items: float = 0) -> None:
        """`depth_items` is called at each scrape. `capacity_items` 0: not known."""
        self._queue_items.set_function(depth_items)
        self._queue_capacity.set(capacity_items)

    def watch_streams(self, count: Callable[[], float], bytes_: Callable[[], float] | None = None) -> None:
        """`count`, and `bytes_` of all states, are called at each scrape."""
        self._streams.set_function(count)
        if bytes_ is not None:
            self._stream_bytes.set_function(bytes_)

    def watch_stream_figures(self, figures: Callable[[], Sequence[StreamFigures]], *, most: int) -> None:
        """Show `most` streams by name. `figures` is called at each scrape, from the scraper's thread."""
        self._stream_figures.watch(figures, most)

    def watch_workers(self, alive: Callable[[], float]) -> None:
        """`alive`, the workers of the deployment, is called at each scrape."""
        self._workers.watch(alive)

    def watch_leases(self, owned: Callable[[], float]) -> None:
        """`owned`, the partitions of this worker, is called at each scrape."""
        self._leases.watch(owned)

    # What happened

    def set_ready(self, ready: bool) -> None:
        self._ready.set(1.0 if ready else 0.0)

    def observe_answer(
        self, *, mode: Mode, direction: str, status: Status, timings: Timings, queries: int, method: str = ""
    ) -> None:
        """A job of `queries` queries was answered."""
        self._jobs.labels(mode, status).inc()
        self._queries.labels(mode, status, direction).inc(queries)
        for stage in ("wait", "encode", "search", "adapt", "total"):
            self.observe_stage(stage, getattr(timings, f"{stage}_ms") / 1000, method=method)

    def observe_stage(self, stage: str, seconds: float, *, method: str = "") -> None:
        """`method` "": the stage has none."""
        self._stages.labels(stage, method).observe(seconds)

    def count_failure(self, code: str) -> None:
        """A job ended in an error; `code` is that of service.errors."""
        self._failures.labels(code).inc()

    def count_dropped(self, reason: DropReason, queries: int) -> None:
        """Accepted queries that get no answer because nobody waits for one."""
        self._dropped.labels(reason).inc(queries)

    def observe_batch(self, queries: int) -> None:
        """`queries` queries went through the encoder together."""
        self._batch.observe(queries)

    def count_adaptation(self, method: str, outcome: Outcome, queries: int = 0) -> None:
        """An adaptation batch of `queries` queries ended in `outcome`."""
        self._adaptations.labels(method, outcome).inc()
        self._adapted_queries.labels(method, outcome).inc(queries)
        if outcome != "shed":
            self._adaptation_sizes.labels(method).observe(queries)

    def observe_adaptation_seconds(self, method: str, seconds: float) -> None:
        """Work for one batch, without the answers given in between."""
        self._adaptation_seconds.labels(method).observe(seconds)

    def observe_drift(
        self, *, method: str, direction: str, version: int, figures: Mapping[str, float | None]
    ) -> None:
        """The figures of adapters.drift for an adapted batch, and the version that it led to.

        Figures that are None, or that have no metric, are passed over.
        """
        self._versions.labels(method, direction).set(version)
        for name, value in figures.items():
            if value is not None and name in self._drift:
                self._drift[name].labels(method, direction).observe(value)

    def count_eviction(self) -> None:
        self._evictions.inc()

    def observe_guard(
        self, *, method: str, source_likeness_change: float, modality_gap_change: float
    ) -> None:
        """A batch was compared with the source model: adapted less source, above 0 is harm."""
        self._guard_changes["source_likeness"].labels(method).observe(source_likeness_change)
        self._guard_changes["modality_gap"].labels(method).observe(modality_gap_change)

    def count_guard_action(self, action: GuardAction) -> None:
        self._guard_actions.labels(action).inc()

    def count_lease_move(self, move: LeaseMove, partitions: int = 1) -> None:
        self._lease_moves.labels(move).inc(partitions)

    def count_redelivery(self, jobs: int = 1) -> None:
        self._redeliveries.inc(jobs)

    def set_redis_up(self, up: bool) -> None:
        self._redis_up.set(1.0 if up else 0.0)

    def count_redis_error(self) -> None:
        self._redis_errors.inc()

    def count_rate_limited(self, by: RateLimitBy) -> None:
        """A request was refused by the limit of its key (or address), or of its stream."""
        self._rate_limited.labels(by).inc()

    def observe_request(self, *, route: str, method: str, status: int, seconds: float | None) -> None:
        """An HTTP request ended; `route` is the template, not the path. `seconds` None: it streamed."""
        self._requests.labels(route, known_method(method) or "other", str(status)).inc()
        if seconds is not None:
            self._request_seconds.labels(route).observe(seconds)

    # What is shown

    def value(self, name: str, **labels: str) -> float:
        """The present value of one sample, 0 where nothing was counted."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def render(self) -> bytes:
        """Prometheus text format; its media type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def _begin(counter: Counter, labels: Iterable[str]) -> None:
    """Show zeros from the start: Prometheus cannot see the first step of a counter that appears with it."""
    for label in labels:
        counter.labels(label)


class _KnownGauge:
    """One gauge without labels that is absent until it has a value."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._value: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        self._value = lambda: value

    def watch(self, value: Callable[[], float]) -> None:
        self._value = value

    def family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.text, value=self._value() if self._value else None)


class _GaugesWhenKnown(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges: list[_KnownGauge] = []
        registry.register(self)

    def add(self, name: str, text: str) -> _KnownGauge:
        gauge = _KnownGauge(name, text)
        self._gauges.append(gauge)
        return gauge

    def collect(self) -> Iterator[Metric]:
        for gauge in self._gauges:
            yield gauge.family()


_STREAM_GAUGES: Mapping[str, tuple[str, str]] = {
    "version": ("attune_stream_state_version", "Version of the stream's state."),
    "modality_gap": ("attune_stream_modality_gap", "Modality gap of the stream's last adapted batch."),
    "modality_gap_target": ("attune_stream_modality_gap_target", "The gap that the stream works towards."),
    "uniformity": ("attune_stream_uniformity", "Uniformity of the stream's last adapted batch."),
    "entropy_nats": ("attune_stream_entropy_nats", "Entropy of the stream's last adapted batch, in nats."),
}


class _StreamCollector(Collector):
    """Gauges by stream and direction, for a bounded number of streams."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures: Callable[[], Sequence[StreamFigures]] = tuple
        self._most = 0
        registry.register(self)

    def watch(self, figures: Callable[[], Sequence[StreamFigures]], most: int) -> None:
        self._figures, self._most = figures, most

    def collect(self) -> Iterator[Metric]:
        shown = _chosen(self._figures(), self._most) if self._most > 0 else []
        for field, (name, text) in _STREAM_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=("stream", "direction"))
            for figures in shown:
                value = getattr(figures, field)
                if value is not None:
                    family.add_metric((figures.stream, figures.direction), value)
            yield family


def _chosen(figures: Sequence[StreamFigures], most: int) -> list[StreamFigures]:
    """The figures of `most` streams: pinned ones first, then the last used; one entry a direction."""
    by_rank = sorted(figures, key=lambda one: (one.pinned, one.last_used), reverse=True)
    streams: set[str] = set()
    chosen: dict[tuple[str, str], StreamFigures] = {}
    for one in by_rank:
        if one.stream in streams or len(streams) < most:
            streams.add(one.stream)
            chosen.setdefault((one.stream, one.direction), one)
    return list(chosen.values())
