"""Who may change things: the admin key, and no foreign web page."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request
from starlette.types import Scope

from service.errors import Forbidden, Unauthorized
from service.http.dependencies import SettingsDep

_bearer = HTTPBearer(auto_error=False, scheme_name="bearer", description="The server's admin key.")
_header = APIKeyHeader(
    name="X-Attune-Admin-Key", auto_error=False, scheme_name="header", description="The server's admin key."
)
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


async def require_admin(
    settings: SettingsDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> None:
    """Let the request pass if the server has no admin key, or the request carries it.

    Raises:
        Unauthorized: no key, or a wrong one.
    """
    if settings.admin_key is None:
        return
    offered = bearer.credentials if bearer is not None else header
    if offered is None:
        raise Unauthorized(
            "this route needs the admin key: send `Authorization: Bearer KEY` or `X-Attune-Admin-Key: KEY`"
        )
    if not _same(offered, settings.admin_key.get_secret_value()):
        raise Unauthorized("the admin key is wrong")


Admin = Depends(require_admin)


def refuse_foreign_page(scope: Scope) -> None:
    """A web page of another site must not drive a server on the visitor's own machine.

    Browsers say with `Sec-Fetch-Site` where a request comes from; other clients send no such header.

    Raises:
        Forbidden: the request would change something and comes from a page of another site.
    """
    if scope["method"] in _READING:
        return
    if Request(scope).headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden("requests from web pages of other sites are refused")


def _same(offered: str, key: str) -> bool:
    """Compared in constant time, so that the answer's delay tells nothing of the key."""
    return hmac.compare_digest(offered.encode("utf-8", "replace"), key.encode("utf-8"))
