"""Traces by OpenTelemetry, where the extra `otel` is installed and `otel_endpoint` is set; else nothing.

    with span("encode", stream=name, queries=len(batch)) as current:
        ...
        current.set_attribute("attune.bucket_count", 3)

    carrier = inject()              # in the API process; travels with the job as plain text
    with attach(carrier), span("adapt", links=[other.trace for other in batch]):   # in the worker's thread
        ...

Attribute names without a dot get the prefix `attune.`. Never put a text, a picture, a payload or a key into
one. The provider is this module's own and not OpenTelemetry's global one. The standard variables
`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS` hold.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from structlog.contextvars import bound_contextvars

from service.settings import ConfigurationError, Settings
from service.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Tracer

Kind = Literal["internal", "server", "producer", "consumer"]
Attribute = str | bool | int | float
Carrier = Mapping[str, str]

REQUEST_ID = "request_id"
"""In a carrier beside the trace context: the id of the HTTP request, for the logs."""

EXPORT_TIMEOUT_S = 5.0
_SHUTDOWN_MS = 5_000


class Span(Protocol):
    """What callers do with a span; OpenTelemetry's fits."""

    def set_attribute(self, key: str, value: Attribute, /) -> None: ...
    def update_name(self, name: str, /) -> None: ...


class _NoSpan:
    """All that `span` costs where no traces are made."""

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, *_: object) -> None: ...
    def set_attribute(self, key: str, value: Attribute, /) -> None: ...
    def update_name(self, name: str, /) -> None: ...


_NO_SPAN = _NoSpan()
_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def configure(settings: Settings, *, processor: SpanProcessor | None = None) -> None:
    """Send spans to `settings.otel_endpoint`, or to `processor` where one is given. Neither: make none.

    Raises:
        ConfigurationError: an endpoint is set and the extra is missing.
    """
    global _provider, _tracer
    shutdown()
    if settings.otel_endpoint is None and processor is None:
        return
    try:
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider

        processor = processor or _exporting(settings.otel_endpoint or "")
    except ImportError as error:
        raise ConfigurationError(
            "otel_endpoint is set, but OpenTelemetry is not installed: pip install 'attune[otel]'"
        ) from error
    resource = Resource.create(
        {
            SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "attune"),
            SERVICE_VERSION: VERSION,
            SERVICE_INSTANCE_ID: f"{socket.gethostname()}-{os.getpid()}",
            "attune.role": settings.role,
        }
    )
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("attune", VERSION)


def _exporting(endpoint: str) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    address = endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=EXPORT_TIMEOUT_S))


def shutdown() -> None:
    """Send what is left and make no more spans."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.force_flush(_SHUTDOWN_MS)
        provider.shutdown()


def enabled() -> bool:
    return _tracer is not None


def span(
    name: str, *, kind: Kind = "internal", links: Iterable[Carrier] = (), **attributes: Attribute
) -> AbstractContextManager[Span]:
    """A span around a block, child of the present one. An error that leaves the block marks it as failed.

    links   carriers of other requests that the block works for
    """
    if _tracer is None:
        return _NO_SPAN
    return _span(_tracer, name, kind, links, attributes)


@contextmanager
def _span(
    tracer: Tracer, name: str, kind: Kind, links: Iterable[Carrier], attributes: Mapping[str, Attribute]
) -> Iterator[Span]:
    from opentelemetry import trace

    contexts = [trace.get_current_span(_extract(carrier)).get_span_context() for carrier in links]
    with tracer.start_as_current_span(
        name,
        kind=trace.SpanKind[kind.upper()],
        attributes={key if "." in key else f"attune.{key}": value for key, value in attributes.items()},
        links=[trace.Link(context) for context in contexts if context.is_valid],
        # Messages of errors may repeat what a client sent, so a span gets the error's class only.
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            mark_failed(current, type(error).__name__)
            raise


def mark_failed(current: Span, kind: str) -> None:
    """Give the span the status of a failure. `kind`: an error's class, or an HTTP status."""
    current.set_attribute("error.type", kind)
    if _tracer is not None:
        from opentelemetry import trace

        if isinstance(current, trace.Span):
            current.set_status(trace.StatusCode.ERROR)


def inject(*, request_id: str | None = None) -> dict[str, str]:
    """The present trace context (W3C `traceparent`, `tracestate`) and the request's id, to travel as text."""
    carrier = {} if request_id is None else {REQUEST_ID: request_id}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return carrier


@contextmanager
def attach(carrier: Carrier) -> Iterator[None]:
    """Within the block, spans are children of the carrier's, and log lines show its request id.

    Whatever in the carrier is no valid trace context is passed over.
    """
    shown = {REQUEST_ID: carrier[REQUEST_ID]} if REQUEST_ID in carrier else {}
    with bound_contextvars(**shown):
        if _tracer is None:
            yield
            return
        from opentelemetry import context

        token = context.attach(_extract(carrier))
        try:
            yield
        finally:
            context.detach(token)


def trace_id() -> str | None:
    """The present trace's id in hexadecimal, for logs; None outside of one."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else None


def _extract(carrier: Carrier) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier, Context())
