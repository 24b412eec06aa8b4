"""What Prometheus sees of a server.

Every server has its own registry, so that tests and several servers in one process do not share numbers. All
methods may be called from any thread. Labels are few and bounded: no stream, gallery or item names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.messages import Mode, Status, Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST

Outcome = Literal["applied", "skipped", "undone", "shed"]
"""What became of an adaptation batch. shed: dropped from the gathering without adapting."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._queue_items = self._gauge("attune_queue_items", "Queries waiting for the worker.")
        self._streams = self._gauge("attune_streams", "Streams whose state is in memory.")
        self._ready = self._gauge("attune_ready", "1 when the server answers queries.")
        self._jobs = self._counter(
            "attune_jobs_answered", "Jobs answered (a request is one job a kind and batch).", "mode", "status"
        )
        self._queries = self._counter(
            "attune_queries_answered", "Queries answered.", "mode", "status", "direction"
        )
        self._failures = self._counter("attune_jobs_failed", "Jobs that ended in an error.", "code")
        self._batch = self._histogram("attune_batch_queries", "Queries encoded together.", _QUERIES)
        self._stages = self._histogram(
            "attune_stage_seconds", "Seconds that a job spent in each stage.", _SECONDS, "stage"
        )
        self._adaptations = self._counter(
            "attune_adaptations", "Adaptation batches by what became of them.", "method", "outcome"
        )
        self._adapted_queries = self._counter(
            "attune_adaptation_queries",
            "Queries of those batches.",
            "method",
            "outcome",
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

    def watch_queue(self, depth_items: Callable[[], float]) -> None:
        """`depth_items` is called at each scrape."""
        self._queue_items.set_function(depth_items)

    def watch_streams(self, count: Callable[[], float]) -> None:
        """`count` is called at each scrape."""
        self._streams.set_function(count)

    def set_ready(self, ready: bool) -> None:
        self._ready.set(1.0 if ready else 0.0)

    def observe_answer(
        self, *, mode: Mode, direction: str, status: Status, timings: Timings, queries: int
    ) -> None:
        """A job of `queries` queries was answered."""
        self._jobs.labels(mode, status).inc()
        self._queries.labels(mode, status, direction).inc(queries)
        for stage in ("wait", "encode", "search", "adapt", "total"):
            self.observe_stage(stage, getattr(timings, f"{stage}_ms") / 1000)

    def observe_stage(self, stage: str, seconds: float) -> None:
        self._stages.labels(stage).observe(seconds)

    def count_failure(self, code: str) -> None:
        """A job ended in an error; `code` is that of service.errors."""
        self._failures.labels(code).inc()

    def observe_batch(self, queries: int) -> None:
        """`queries` queries went through the encoder together."""
        self._batch.observe(queries)

    def count_adaptation(self, method: str, outcome: Outcome, queries: int = 0) -> None:
        """An adaptation batch of `queries` queries ended in `outcome`."""
        self._adaptations.labels(method, outcome).inc()
        self._adapted_queries.labels(method, outcome).inc(queries)

    def observe_request(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request ended; `route` is the template, not the path."""
        known = method if method in _HTTP_METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def value(self, name: str, **labels: str) -> float:
        """The present value of one sample, 0 where nothing was counted."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def render(self) -> bytes:
        """Prometheus text format; its media type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
