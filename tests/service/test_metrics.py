from __future__ import annotations

import pytest

from service.messages import Timings
from service.metrics import Metrics, StreamFigures


def test_answer_is_counted_in_queries_and_its_stages_in_seconds() -> None:
    metrics = Metrics()
    timings = Timings(wait_ms=1, encode_ms=20, search_ms=3, adapt_ms=0, total_ms=30)
    for _ in range(2):
        metrics.observe_answer(
            mode="sync", direction="image->text", status="applied", timings=timings, queries=32, method="tcr"
        )
    labels = {"mode": "sync", "status": "applied"}
    assert metrics.value("attune_jobs_answered_total", **labels) == 2
    assert metrics.value("attune_queries_answered_total", direction="image->text", **labels) == 64
    assert metrics.value("attune_stage_seconds_sum", stage="encode", method="tcr") == pytest.approx(0.04)
    assert metrics.value("attune_stage_seconds_count", stage="total", method="tcr") == 2


def test_gauges_ask_at_each_scrape() -> None:
    metrics, depth = Metrics(), [3]
    metrics.watch_queue(lambda: depth[0], capacity_items=1024)
    metrics.watch_streams(lambda: 7, lambda: 7000)
    assert metrics.value("attune_queue_items") == 3
    depth[0] = 5
    assert b"attune_queue_items 5.0" in metrics.render()
    assert metrics.value("attune_queue_capacity_items") == 1024
    assert metrics.value("attune_streams") == 7
    assert metrics.value("attune_stream_bytes") == 7000


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
    assert metrics.value("attune_adaptation_batch_queries_sum", method="tcr") == 64, (
        "shed queries adapt nothing"
    )


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


def test_drift_is_counted_by_method_and_direction() -> None:
    metrics = Metrics()
    figures = {"modality_gap": 0.75, "source_likeness": -0.3, "uniformity": None, "something_new": 1.0}
    metrics.observe_drift(method="tcr", direction="text->image", version=7, figures=figures)
    labels = {"method": "tcr", "direction": "text->image"}
    assert metrics.value("attune_newest_state_version", **labels) == 7
    assert metrics.value("attune_modality_gap_bucket", le="0.7", **labels) == 0
    assert metrics.value("attune_modality_gap_bucket", le="0.8", **labels) == 1
    assert metrics.value("attune_source_likeness_bucket", le="-0.25", **labels) == 1
    assert metrics.value("attune_uniformity_count", **labels) == 0
    assert b"something_new" not in metrics.render()


def busy() -> Metrics:
    """Numbers of which every one was counted at least once."""
    metrics = Metrics()
    metrics.observe_answer(
        mode="sync", direction="image->text", status="applied", timings=Timings(), queries=1, method="tcr"
    )
    metrics.count_failure("internal")
    metrics.observe_batch(1)
    metrics.count_adaptation("tcr", "applied", 64)
    figures = dict.fromkeys(
        ("modality_gap", "modality_gap_target", "uniformity", "entropy_nats", "source_likeness"), 0.5
    )
    metrics.observe_drift(method="tcr", direction="text->image", version=7, figures=figures)
    metrics.observe_request(route="/livez", method="GET", status=200, seconds=0.001)
    metrics.count_eviction()
    metrics.count_lease_move("gained", 32)
    metrics.count_lease_move("lost")
    metrics.count_redelivery(3)
    metrics.count_redis_error()
    metrics.set_redis_up(True)
    metrics.watch_workers(lambda: 2)
    metrics.watch_leases(lambda: 32)
    metrics.count_dropped("cancelled", 5)
    metrics.count_rate_limited("stream")
    metrics.count_guard_action("rollback")
    metrics.observe_guard(method="tcr", source_likeness_change=0.015, modality_gap_change=-0.003)
    metrics.observe_adaptation_seconds("tcr", 0.3)
    stream = StreamFigures("shop-7", "text->image", 7, 0.5, 0.4, 0.6, 1.0)
    metrics.watch_stream_figures(lambda: [stream], most=1)
    return metrics


def test_what_happens_to_streams_leases_and_redis_is_counted() -> None:
    metrics = busy()
    expected = [
        ("attune_stream_evictions_total", {}, 1),
        ("attune_lease_moves_total", {"action": "gained"}, 32),
        ("attune_lease_moves_total", {"action": "lost"}, 1),
        ("attune_redeliveries_total", {}, 3),
        ("attune_redis_errors_total", {}, 1),
        ("attune_queries_dropped_total", {"outcome": "cancelled"}, 5),
        ("attune_rate_limited_requests_total", {"by": "stream"}, 1),
        ("attune_guard_actions_total", {"action": "rollback"}, 1),
        ("attune_guard_source_likeness_change_bucket", {"method": "tcr", "le": "0.01"}, 0),
        ("attune_guard_source_likeness_change_bucket", {"method": "tcr", "le": "0.02"}, 1),
        ("attune_guard_modality_gap_change_bucket", {"method": "tcr", "le": "0.0"}, 1),
        ("attune_adaptation_seconds_sum", {"method": "tcr"}, 0.3),
    ]
    assert [(name, labels, metrics.value(name, **labels)) for name, labels, _ in expected] == expected


def test_counters_of_rare_events_show_zero_before_the_first() -> None:
    """Else Prometheus sees a counter that begins at 1, and no increase."""
    text = Metrics().render().decode()
    for action in ("warn", "freeze", "rollback", "reset"):
        assert f'attune_guard_actions_total{{action="{action}"}} 0.0' in text
    assert 'attune_lease_moves_total{action="lost"} 0.0' in text


def test_server_without_redis_and_leases_shows_none() -> None:
    metrics = Metrics()
    names = ("attune_redis_up", "attune_workers", "attune_leases")
    assert [metrics.registry.get_sample_value(name) for name in names] == [None, None, None]
    metrics.set_redis_up(False)
    metrics.watch_workers(lambda: 2)
    metrics.watch_leases(lambda: 32)
    assert [metrics.registry.get_sample_value(name) for name in names] == [0.0, 2.0, 32.0]


def test_streams_have_figures_of_their_own_pinned_first_then_the_last_used() -> None:
    metrics = Metrics()
    figures = [StreamFigures(f"s{i}", "text->image", version=i, last_used=i) for i in range(100)]
    figures.append(StreamFigures("pinned", "text->image", version=3, modality_gap=0.5, pinned=True))
    metrics.watch_stream_figures(lambda: figures, most=3)
    shown = _streams(metrics)
    assert shown == {"pinned", "s99", "s98"}
    gap = metrics.registry.get_sample_value(
        "attune_stream_modality_gap", {"stream": "pinned", "direction": "text->image"}
    )
    assert gap == 0.5
    assert metrics.registry.get_sample_value("attune_stream_modality_gap", {"stream": "s99"}) is None


def test_stream_shows_each_direction_once() -> None:
    metrics = Metrics()
    figures = [
        StreamFigures("a", "text->image", version=1, last_used=1),
        StreamFigures("a", "text->image", version=2, last_used=2),
        StreamFigures("a", "image->text", version=3, last_used=0),
        StreamFigures("b", "text->image", version=4, last_used=0),
    ]
    metrics.watch_stream_figures(lambda: figures, most=1)
    assert _streams(metrics) == {"a"}
    name = "attune_stream_state_version"
    assert metrics.value(name, stream="a", direction="text->image") == 2
    assert metrics.value(name, stream="a", direction="image->text") == 3
    assert metrics.render().count(b'attune_stream_state_version{direction="text->image",stream="a"}') == 1


def test_server_may_show_no_stream_at_all() -> None:
    metrics = Metrics()
    metrics.watch_stream_figures(lambda: [StreamFigures("a", "text->image", version=1)], most=0)
    assert _streams(metrics) == set()


def test_no_other_metric_names_streams_galleries_or_items() -> None:
    allowed = {
        "method",
        "direction",
        "action",
        "outcome",
        "mode",
        "status",
        "stage",
        "code",
        "route",
        "by",
        "le",
    }
    for family in busy().registry.collect():
        assert family.samples, f"{family.name} is counted by nothing"
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= (allowed | {"stream"} if family.name.startswith("attune_stream_") else allowed), (
            family
        )


def _streams(metrics: Metrics) -> set[str]:
    families = {family.name: family for family in metrics.registry.collect()}
    return {sample.labels["stream"] for sample in families["attune_stream_state_version"].samples}
