"""Requests made up from the documentation: whatever is sent, the answer is one that is documented."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import HealthCheck, settings

from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import assert_one_shape

schemathesis = pytest.importorskip("schemathesis")


@schemathesis.serializer("application/x-ndjson")
def as_sent(_: object, value: object) -> bytes:
    """Whatever was made up for a text, as bytes."""
    return (value if isinstance(value, str) else repr(value)).encode("utf-8", "replace")


SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_app(Settings(), FakeEngine()))


@SCHEMA.exclude(path="/admin/events").parametrize()  # its answer has no end
@settings(
    max_examples=5, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
def test_answer_to_a_made_up_request_is_documented(case: schemathesis.Case) -> None:
    response = case.call()
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.specs.openapi.checks.status_code_conformance,
            schemathesis.specs.openapi.checks.content_type_conformance,
            schemathesis.specs.openapi.checks.response_schema_conformance,
        ],
    )
    if response.status_code >= 400:
        headers = [(name, value) for name, values in response.headers.items() for value in values]
        assert_one_shape(httpx.Response(response.status_code, headers=headers, content=response.content))
