"""What every failure looks like."""

from __future__ import annotations

from typing import Any

import httpx


def failure(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that `response` is this failure in the one shape, and return its error."""
    assert response.status_code == status, response.text[:500]
    assert_one_shape(response)
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code, error
    return error


def assert_one_shape(response: httpx.Response) -> None:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    assert body["error"]["code"]
    assert body["error"]["message"]
    assert isinstance(body["error"]["details"], dict)
    assert len(response.content) < 10_000, "a failure repeats what was sent"
