"""How the clients reach the server: address, key, time limits, and when to try again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import httpx

from service.client.calls import Call
from service.client.types import AttuneError
from service.version import VERSION

DEFAULT_URL = "http://127.0.0.1:8080"
_COME_BACK = frozenset({429, 503})


@dataclass(frozen=True)
class Retries:
    """Tries after the first, for answers that say "come back" (429, 503)."""

    times: int = 3
    max_wait_s: float = 10.0
    """Longest wait before one further try, whatever the server asks for."""

    def wait_s(self, response: httpx.Response, tries: int) -> float | None:
        """Seconds to wait before the next try after `tries` retries; None: give the answer up."""
        if response.status_code not in _COME_BACK or tries >= self.times:
            return None
        try:
            asked = float(response.headers["retry-after"])
        except (KeyError, ValueError):
            asked = 0.2 * 2**tries
        return min(max(asked, 0.0), self.max_wait_s)


def connection(
    url: str | None, admin_key: str | None, api_key: str | None, timeout_s: float
) -> dict[str, Any]:
    """Arguments of httpx.Client and httpx.AsyncClient."""
    headers = {"User-Agent": f"attune/{VERSION}"}
    if admin := admin_key or os.environ.get("ATTUNE_ADMIN_KEY"):
        headers["Authorization"] = f"Bearer {admin}"
    if api := api_key or os.environ.get("ATTUNE_API_KEY"):
        headers["X-Attune-Api-Key"] = api
    return {
        "base_url": url or os.environ.get("ATTUNE_URL") or DEFAULT_URL,
        "headers": headers,
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
    }


def arguments(call: Call[Any]) -> dict[str, Any]:
    """Arguments of httpx's `request`."""
    request: dict[str, Any] = {"method": call.method, "url": call.path, "params": dict(call.params) or None}
    if call.content is not None:
        request |= {"content": call.content, "headers": {"Content-Type": "application/octet-stream"}}
    elif call.json is not None:
        request["json"] = call.json
    return request


def unreachable(error: httpx.HTTPError | httpx.InvalidURL, url: httpx.URL) -> AttuneError:
    """What went wrong before an answer came."""
    if isinstance(error, httpx.TimeoutException):
        return AttuneError("timeout", f"no answer from {url} in time ({type(error).__name__})")
    return AttuneError("unreachable", f"cannot reach {url}: {error or type(error).__name__}")
