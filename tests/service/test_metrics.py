from __future__ import annotations

import pytest

from service.messages import Timings
from service.metrics import Metrics


def test_answer_is_counted_in_queries_and_its_stages_in_seconds() -> None:
    metrics = Metrics()
    timings = Timings(wait_ms=1, encode_ms=20, search_ms=3, adapt_ms=0, total_ms=30)
    for _ in range(2):
        metrics.observe_answer(
            mode="sync", direction="image->text", status="applied", timings=timings, queries=32
        )
    labels = {"mode": "sync", "status": "applied"}
    assert metrics.value("attune_jobs_answered_total", **labels) == 2
    assert metrics.value("attune_queries_answered_total", direction="image->text", **labels) == 64
    assert metrics.value("attune_stage_seconds_sum", stage="encode") == pytest.approx(0.04)
    assert metrics.value("attune_stage_seconds_count", stage="total") == 2


def test_gauges_ask_at_each_scrape() -> None:
    metrics, depth = Metrics(), [3]
    metrics.watch_queue(lambda: depth[0])
    metrics.watch_streams(lambda: 7)
    assert metrics.value("attune_queue_items") == 3
    depth[0] = 5
    assert b"attune_queue_items 5.0" in metrics.render()
    assert metrics.value("attune_streams") == 7


def test_adaptations_failures_and_batches_are_counted() -> None:
    metrics = Metrics()
    metrics.count_adaptation("tcr", "applied", 64)
    metrics.count_adaptation("tcr", "shed", 10)
    metrics.count_failure("queue_full")
    metrics.observe_batch(64)
    assert metrics.value("attune_adaptations_total", method="tcr", outcome="applied") == 1
    assert metrics.value("attune_adaptation_queries_total", method="tcr", outcome="shed") == 10
    assert metrics.value("attune_jobs_failed_total", code="queue_full") == 1
    assert metrics.value("attune_batch_queries_sum") == 64


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.count_failure("internal")
    assert second.value("attune_jobs_failed_total", code="internal") == 0


def test_methods_that_nobody_knows_are_one_label() -> None:
    metrics = Metrics()
    for method in ("BREW", "STIR"):
        metrics.observe_request(route="/livez", method=method, status=405, seconds=0.001)
    labels = {"route": "/livez", "method": "other", "status": "405"}
    assert metrics.value("attune_http_requests_total", **labels) == 2
