from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from pydantic import SecretStr
from structlog.testing import capture_logs

from service import tracing
from service.http.app import create_app
from service.settings import ConfigurationError, Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import failure

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(Settings(), processor=SimpleSpanProcessor(exporter))
    yield exporter
    tracing.shutdown()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Log lines are kept, not printed: structlog's default for a traceback takes seconds to lay out."""
    with capture_logs():
        yield


def finished(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def test_without_an_endpoint_nothing_is_made() -> None:
    tracing.configure(Settings())
    assert not tracing.enabled()
    with tracing.span("encode", queries=3) as span, tracing.attach({"traceparent": PARENT}):
        span.set_attribute("attune.x", 1)
        assert tracing.inject() == {}
        assert tracing.trace_id() is None
    assert tracing.span("encode") is tracing.span("search"), "it costs no object"


def test_missing_extra_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'attune\[otel\]'"):
        tracing.configure(Settings(otel_endpoint="http://collector:4318"))
    assert not tracing.enabled()


def test_endpoint_gets_the_path_of_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    asked: list[str] = []

    class Exporter(InMemorySpanExporter):
        def __init__(self, endpoint: str, timeout: float) -> None:
            super().__init__()
            asked.append(endpoint)

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", Exporter)
    for endpoint in ("http://collector:4318", "http://collector:4318/", "https://x/otlp/v1/traces"):
        tracing.configure(Settings(otel_endpoint=endpoint))
        assert tracing.enabled()
        tracing.shutdown()
    assert asked == ["http://collector:4318/v1/traces"] * 2 + ["https://x/otlp/v1/traces"]


def test_spans_nest_and_own_attributes_get_the_prefix(spans: InMemorySpanExporter) -> None:
    with tracing.span("batch", queries=64, **{"http.route": "/retrieve"}), tracing.span("encode"):
        pass
    batch, encode = finished(spans)["batch"], finished(spans)["encode"]
    assert dict(batch.attributes or {}) == {"attune.queries": 64, "http.route": "/retrieve"}
    assert encode.parent is not None
    assert batch.context is not None
    assert encode.parent.span_id == batch.context.span_id
    assert batch.resource.attributes["service.name"] == "attune"
    assert batch.resource.attributes["attune.role"] == "all"


def test_error_marks_the_span_without_its_message(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError), tracing.span("encode"):
        raise ValueError("private words")
    span = finished(spans)["encode"]
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "private" not in span.to_json()


def test_context_travels_as_text_to_another_thread(spans: InMemorySpanExporter) -> None:
    def work(carrier: dict[str, str]) -> None:
        with tracing.attach(carrier), tracing.span("adapt"):
            pass

    with tracing.span("request"):
        carrier = tracing.inject(request_id="r-1")
    assert set(carrier) == {"request_id", "traceparent"}
    thread = threading.Thread(target=work, args=(carrier,))
    thread.start()
    thread.join()
    request, adapt = finished(spans)["request"], finished(spans)["adapt"]
    assert trace_of(adapt) == trace_of(request)
    assert adapt.parent is not None
    assert request.context is not None
    assert adapt.parent.span_id == request.context.span_id


def test_batch_is_linked_to_the_requests_it_works_for(spans: InMemorySpanExporter) -> None:
    carriers = [{"traceparent": PARENT}, {"traceparent": "nonsense"}, {}]
    with tracing.span("batch", kind="consumer", links=carriers):
        pass
    batch = finished(spans)["batch"]
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == [TRACE]
    assert batch.kind is SpanKind.CONSUMER


@pytest.mark.parametrize(
    "carrier", [{}, {"traceparent": ""}, {"traceparent": "00-zz-zz-01"}, {"traceparent": "x" * 10_000}]
)
def test_carrier_without_a_context_begins_a_new_trace(
    spans: InMemorySpanExporter, carrier: dict[str, str]
) -> None:
    with tracing.attach(carrier), tracing.span("adapt"):
        pass
    assert finished(spans)["adapt"].parent is None


def test_context_ends_with_its_block(spans: InMemorySpanExporter) -> None:
    with tracing.attach({"traceparent": PARENT}):
        assert tracing.trace_id() == TRACE
    assert tracing.trace_id() is None


@pytest.mark.parametrize("traced", [True, False])
def test_log_lines_of_the_worker_show_the_request_id(traced: bool, request: pytest.FixtureRequest) -> None:
    if traced:
        request.getfixturevalue("spans")
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        with tracing.attach({"request_id": "r-1"}):
            structlog.get_logger("attune.worker").info("adapted")
        structlog.get_logger("attune.worker").info("idle")
    assert [line.get("request_id") for line in logs] == ["r-1", None]


class TestServerSpans:
    """What the HTTP layer says about a request."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def engine(self) -> FakeEngine:
        return FakeEngine()

    @pytest.fixture
    async def http(self, engine: FakeEngine, spans: InMemorySpanExporter) -> Any:
        settings = Settings(admin_key=SecretStr("admin-secret"))
        transport = httpx.ASGITransport(create_app(settings, engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
            yield client

    async def test_request_is_a_server_span_named_after_its_route(
        self, http: httpx.AsyncClient, spans: InMemorySpanExporter
    ) -> None:
        body = {"queries": [{"text": "private words"}], "stream": "shop-7", "filter": {"secret": 1}}
        headers = {"X-Request-Id": "r-1", "Authorization": "Bearer admin-secret", "traceparent": PARENT}
        await http.post("/retrieve", json=body, headers=headers)
        span = finished(spans)["POST /retrieve"]
        assert span.kind is SpanKind.SERVER
        assert trace_of(span) == TRACE
        assert dict(span.attributes or {}) == {
            "http.request.method": "POST",
            "url.path": "/retrieve",
            "url.scheme": "http",
            "network.protocol.version": "1.1",
            "http.route": "/retrieve",
            "http.response.status_code": 200,
            "attune.request_id": "r-1",
            "attune.stream": "shop-7",
            "attune.gallery": "demo",
            "attune.queries": 1,
            "attune.state_version": 3,
        }
        assert "private" not in span.to_json()
        assert "secret" not in span.to_json()

    async def test_job_carries_the_request_id_and_the_span(
        self, http: httpx.AsyncClient, engine: FakeEngine, spans: InMemorySpanExporter
    ) -> None:
        await http.post("/retrieve", json={"queries": [{"text": "a"}]}, headers={"X-Request-Id": "r-1"})
        (asked,) = engine.requests
        span = finished(spans)["POST /retrieve"]
        assert span.context is not None
        assert asked.trace["request_id"] == "r-1"
        assert asked.trace["traceparent"].startswith(f"00-{trace_of(span)}-{span.context.span_id:016x}-")

    async def test_names_are_routes_and_known_methods_only(
        self, http: httpx.AsyncClient, spans: InMemorySpanExporter
    ) -> None:
        await http.get("/galleries/demo/items/scene-0?secret=1")
        await http.get("/made/up")
        await http.request("BREW", "/models")
        await http.get("/livez")
        assert set(finished(spans)) == {"GET /galleries/{gallery}/items/{id:path}", "GET", "HTTP /models"}
        assert "?" not in str([span.to_json() for span in spans.get_finished_spans()])

    async def test_failures_of_the_server_and_not_of_the_client_are_errors(
        self, http: httpx.AsyncClient, engine: FakeEngine, spans: InMemorySpanExporter
    ) -> None:
        failure(await http.get("/galleries/none"), 404, "unknown_gallery")
        engine.failure = ZeroDivisionError("private")
        failure(await http.get("/galleries"), 500, "internal")
        refused, broken = finished(spans)["GET /galleries/{gallery}"], finished(spans)["GET /galleries"]
        assert refused.status.status_code is StatusCode.UNSET
        assert (refused.attributes or {})["attune.code"] == "unknown_gallery"
        assert broken.status.status_code is StatusCode.ERROR
        assert (broken.attributes or {})["error.type"] == "500"
        assert "private" not in broken.to_json()

    async def test_log_line_names_the_trace(
        self, http: httpx.AsyncClient, spans: InMemorySpanExporter
    ) -> None:
        with capture_logs() as logs:
            await http.get("/models", headers={"traceparent": PARENT})
        assert logs[0]["trace_id"] == TRACE


@pytest.mark.anyio
async def test_without_traces_the_job_carries_the_request_id_alone() -> None:
    engine = FakeEngine()
    transport = httpx.ASGITransport(create_app(Settings(), engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://attune") as client:
        await client.post("/retrieve", json={"queries": [{"text": "a"}]}, headers={"X-Request-Id": "r-1"})
    assert dict(engine.requests[0].trace) == {"request_id": "r-1"}
