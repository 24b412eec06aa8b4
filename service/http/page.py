"""The console over HTTP: who gets the page, and with which headers the browser is held to this server."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from starlette.requests import Request
from starlette.responses import Response

from service.http.caching import PUBLIC_FOR_GOOD, is_current
from service.settings import Settings
from service.web.files import BUILT, Console, WebFile, read_console

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "connect-src 'self'",
        "worker-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text becomes markup or a script, whoever would put it there: the page never needs that.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self)",
}

log = structlog.get_logger("attune.console")


def console_of(settings: Settings) -> Console | None:
    """The console to serve; None where it is switched off, or cannot be read, which stops nothing else."""
    if not settings.console:
        return None
    try:
        return read_console(settings.console_folder or BUILT)
    except OSError as error:
        log.warning("the console is not served", why=str(error))
        return None


def prefers_page(request: Request) -> bool:
    """Whether text/html is named, and JSON is not or comes after it: true for browsers, not for `*/*`."""
    weights = _weights(request, "accept")
    page = weights.get("text/html", 0.0)
    return page > 0 and page > weights.get("application/json", 0.0)


def file_response(request: Request, file: WebFile, *, vary: str = "Accept-Encoding") -> Response:
    """`file` as a response, or 304 where the browser has it already."""
    etag = f'W/"{file.digest}"'  # weak: the same for both encodings
    headers = {
        **HEADERS,
        "ETag": etag,
        "Vary": vary,
        "Cache-Control": PUBLIC_FOR_GOOD if file.immutable else "no-cache",
    }
    if is_current(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    if file.gzipped is not None and _weights(request, "accept-encoding").get("gzip", 0.0) > 0:
        return Response(
            file.gzipped, headers=headers | {"Content-Encoding": "gzip"}, media_type=file.media_type
        )
    return Response(file.content, headers=headers, media_type=file.media_type)


def _weights(request: Request, header: str) -> dict[str, float]:
    """`text/html, */*;q=0.8` as {"text/html": 1.0, "*/*": 0.8}; a weight that is no number counts as 0."""
    weights: dict[str, float] = {}
    for part in ",".join(request.headers.getlist(header)).split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        given = [value for value in parameters if value.startswith("q=")]
        weights[name] = _number(given[0][2:]) if given else 1.0
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
