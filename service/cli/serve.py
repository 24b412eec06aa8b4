"""`attune serve`: one process with everything in it, or one of the parts of a deployment on Redis."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.common import FAILED, WRONG_USE, fail, parse_assignments

if TYPE_CHECKING:
    import socket

    from service.settings import Settings

_LAST_WORDS_S = 1.0
"""So long streamed answers have to end when the server shuts down."""


def serve(
    role: Annotated[
        str | None, typer.Option(help="all, api or worker; the latter two need ATTUNE_REDIS_URL.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; beyond loopback needs a key.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    encoder: Annotated[str | None, typer.Option(help="demo, a local folder or a hub name.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="demo, a folder of a CAV-MAE model, or '' for none.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Galleries, states and snapshots.")] = None,
    default_gallery: Annotated[str | None, typer.Option(help="Gallery of requests that name none.")] = None,
    demo_gallery_items: Annotated[int | None, typer.Option(help="Size of the demo gallery; 0: none.")] = None,
    default_method: Annotated[str | None, typer.Option(help="Adaptation method of new streams.")] = None,
    mode: Annotated[str | None, typer.Option(help="auto, sync, async or off.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most queries of one adaptation batch.")] = None,
    queue_capacity_items: Annotated[int | None, typer.Option(help="Most waiting queries.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; default ATTUNE_CONFIG.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; repeatable.")
    ] = None,
) -> None:
    """Serve the HTTP API. docs/settings.md lists all settings; the admin key is ATTUNE_ADMIN_KEY."""
    from service.settings import ConfigurationError, load

    if config is not None:
        os.environ["ATTUNE_CONFIG"] = str(config)
    flags: dict[str, Any] = {
        "role": role,
        "host": host,
        "port": port,
        "encoder": encoder,
        "classifier": classifier,
        "device": device,
        "dtype": dtype,
        "data_folder": data_folder,
        "default_gallery": default_gallery,
        "demo_gallery_items": demo_gallery_items,
        "default_method": default_method,
        "mode": mode,
        "batch_size": batch_size,
        "queue_capacity_items": queue_capacity_items,
        "log_level": log_level,
    }
    try:
        settings = load(**flags | parse_assignments(setting or []))
    except ConfigurationError as error:
        fail(str(error), WRONG_USE)
    run(settings)


def run(settings: Settings) -> None:
    """Listen, load, announce, serve until a signal; then finish accepted work and save.

    The port is taken before the model loads, so that a taken one is known at once.
    """
    try:
        listener = _bind(settings.host, settings.port)
        _end_unread_connections(listener, settings.classify_write_timeout_s)
    except OSError as error:
        fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}", WRONG_USE)
    with listener:
        _serve(settings, listener)


def _serve(settings: Settings, listener: socket.socket) -> None:
    import asyncio
    import math

    import uvicorn

    from service.http import logs
    from service.http.app import create_app, create_health_app

    logs.configure(settings.log_level)
    app = create_health_app(settings) if settings.role == "worker" else create_app(settings)

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                typer.echo(announcement(settings, listener.getsockname()[1]))

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Before uvicorn closes WebSockets without a word and waits for requests that do not end.
            if app.state.live_streams is not None:
                await app.state.live_streams.close(settings.shutdown_grace_s)
            loop = asyncio.get_running_loop()
            last_words = loop.call_later(_LAST_WORDS_S, abort_streams, self.server_state.connections)
            try:
                await super().shutdown(sockets)
            finally:
                last_words.cancel()

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=settings.classify_line_bytes,
        # Base64 hardly shrinks, and what is never inflated cannot be a bomb.
        ws_per_message_deflate=False,
        # Pings keep proxies from closing; an answer that is not read for a full window is no dead client,
        # and a dead one is noticed by TCP_USER_TIMEOUT.
        ws_ping_timeout=None,
        lifespan="on",
        timeout_graceful_shutdown=max(1, math.ceil(settings.shutdown_grace_s)),
    )
    server = AnnouncingServer(config)
    # After its orderly shutdown uvicorn raises the signal again; after a failed start it exits by itself.
    with suppress(KeyboardInterrupt, SystemExit):
        server.run(sockets=[listener])
    if not server.started:
        fail(f"the server did not start: {app.state.start_error or 'see the log above'}", FAILED)


def abort_streams(connections: Iterable[Any]) -> None:
    """End uvicorn's connections whose streamed answer has not ended when it was told to.

    Their clients have stopped reading, and would keep the server until the grace is over.
    """
    for connection in list(connections):
        if (connection.scope or {}).get("attune", {}).get("streamed"):
            connection.transport.abort()


def announcement(settings: Settings, port: int) -> str:
    """What the terminal shows once queries are answered."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    if settings.role == "worker":
        return f"Attune's worker is ready  (encoder {settings.encoder}, probes and metrics at {url})"
    option = "" if url == "http://127.0.0.1:8080" else f" --url {url}"
    models = f"encoder {settings.encoder}, classifier {settings.classifier or 'none'}"
    about = models if settings.role == "all" else "workers answer through Redis"
    return (
        f"Attune is ready at {url}  ({about}, gallery {settings.default_gallery})\n"
        + (f"  console {url} in a browser\n" if settings.console else "")
        + f"  docs    {url}/docs\n"
        f'  try it  attune query "a red circle"{option}\n'
        f"          curl {url}/retrieve -H 'Content-Type: application/json' "
        """-d '{"queries": [{"text": "a red circle"}]}'\n"""
        "  stop    Ctrl-C"
    )


def _end_unread_connections(listener: socket.socket, after_s: float) -> None:
    """Let the kernel end connections whose peer takes no data for so long; accepted ones inherit it.

    A server can stop writing to such a peer, but what it has written already would wait for ever.
    """
    import socket

    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(after_s * 1000))


def _bind(host: str, port: int) -> socket.socket:
    import socket

    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
