"""Who may do what: API keys for queries, the admin key for changes, and no foreign web page."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from service.errors import Forbidden, Unauthorized
from service.http.dependencies import SettingsDep
from service.settings import Settings, is_loopback

_bearer = HTTPBearer(auto_error=False, scheme_name="bearer", description="The admin key or an API key.")
_admin_header = APIKeyHeader(
    name="X-Attune-Admin-Key", auto_error=False, scheme_name="admin", description="The server's admin key."
)
_api_header = APIKeyHeader(
    name="X-Attune-Api-Key", auto_error=False, scheme_name="api", description="One of the API keys."
)
_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::\d*)?")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})

BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
AdminHeaderDep = Annotated[str | None, Depends(_admin_header)]
ApiHeaderDep = Annotated[str | None, Depends(_api_header)]


async def require_admin(settings: SettingsDep, bearer: BearerDep, header: AdminHeaderDep) -> None:
    """Let the request pass if the server has no admin key, or the request carries it.

    Raises:
        Unauthorized: no key, or a wrong one; an API key is a wrong one.
    """
    if settings.admin_key is None:
        return
    offered = bearer.credentials if bearer is not None else header
    if offered is None:
        raise Unauthorized(
            "this route needs the admin key: send `Authorization: Bearer KEY` or `X-Attune-Admin-Key: KEY`"
        )
    if _known(offered, [settings.admin_key]) is None:
        raise Unauthorized("the admin key is wrong")


async def require_key(
    request: Request,
    settings: SettingsDep,
    bearer: BearerDep,
    api_header: ApiHeaderDep,
    admin_header: AdminHeaderDep,
) -> str:
    """Who asks, as a name without secrets that rate limits count by: a key's digest, or an address.

    Raises:
        Unauthorized: the server has API keys, and the request carries neither one of them nor the admin key.
    """
    offered = bearer.credentials if bearer is not None else api_header or admin_header
    return caller_of(request, settings, offered)


def caller_of(connection: HTTPConnection, settings: Settings, offered: str | None) -> str:
    """As `require_key`, with the key already found; None: there is none."""
    if not settings.api_keys:
        return f"address:{_address(connection)}"
    if offered is None:
        raise Unauthorized(
            "this route needs an API key: send `Authorization: Bearer KEY` or `X-Attune-Api-Key: KEY`"
        )
    admin = [] if settings.admin_key is None else [settings.admin_key]
    digest = _known(offered, [*settings.api_keys, *admin])
    if digest is None:
        raise Unauthorized("the API key is wrong")
    return f"key:{digest.hex()[:32]}"


Admin = Depends(require_admin)
Key = Depends(require_key)
CallerDep = Annotated[str, Key]


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


def refuse_foreign_name(scope: Scope) -> None:
    """A name of somebody else's, made to lead to this machine (DNS rebinding), must not open the server.

    The browser takes a page of that name for the server's own. Where loopback alone is served, that is by
    address, by a name without a dot, or by one that the settings allow; unless every route wants a key.

    Raises:
        Forbidden: the request is addressed to another name.
    """
    app = scope.get("app")
    settings: Settings | None = None if app is None else app.state.settings
    if settings is None or settings.api_keys or not is_loopback(settings.host):
        return
    name = _host_name(Headers(scope=scope).get("host", ""))
    if "." not in name or name.endswith(".localhost") or _is_address(name) or name in settings.allowed_hosts:
        return
    raise Forbidden(
        "this server answers to its address and to names of this machine only; the setting allowed_hosts "
        "names others"
    )


def _host_name(host: str) -> str:
    """Without port, brackets and the root's dot."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2] if found else host).lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def key_in_headers(headers: Headers) -> str | None:
    """The key that a WebSocket's handshake carries, as a request would."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    return headers.get("x-attune-api-key") or headers.get("x-attune-admin-key") or None


def refuse_foreign_socket(headers: Headers, further_origins: Iterable[str]) -> None:
    """A web page of another site must not open a WebSocket: browsers let it, and name the page's origin.

    Raises:
        Forbidden: there is an origin that is neither the server's own address nor among `further_origins`.
    """
    origin = headers.get("origin")
    if origin is None or origin in further_origins:
        return
    scheme, separator, address = origin.partition("://")
    own = headers.get("host", "").lower()
    if scheme not in ("http", "https") or not separator or not own or address.lower() != own:
        raise Forbidden(
            "WebSockets from web pages of other origins are refused; see the setting websocket_origins"
        )


def _known(offered: str, keys: Iterable[SecretStr]) -> bytes | None:
    """The digest of `offered` if it is one of `keys`.

    Digests of one length are compared in constant time, and always all of them, so that the answer's delay
    tells nothing of the keys.
    """
    digest = _digest(offered)
    matches = [hmac.compare_digest(digest, _digest(key.get_secret_value())) for key in keys]
    return digest if any(matches) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _address(request: HTTPConnection) -> str:
    """The client's address; of IPv6 the network, because one client has 2^64 addresses of it."""
    host = request.client.host if request.client is not None else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # the path of a socket, or what a proxy told
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))
