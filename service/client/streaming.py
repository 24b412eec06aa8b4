"""Classification over a WebSocket: samples go out in the background while answers come in.

httpx neither speaks WebSocket nor reads an answer while it still sends, hence the library `websockets`.
Nothing piles up on either side: the server reads no further than its window, and the library no further than
a few messages ahead of whoever takes the answers.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from service.client.transport import unreachable
from service.client.types import AttuneError, Card
from service.version import VERSION

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection as AsyncConnection
    from websockets.sync.client import ClientConnection

PATH = "/classify"
END = json.dumps({"end": True})
_MOST_BYTES = 16 * 1024 * 1024
_CLOSE_WITHIN_S = 2.0
_KEYS = ("authorization", "x-attune-api-key")


def first_message(options: Mapping[str, Any]) -> str:
    given = {name: value for name, value in options.items() if value is not None}
    return json.dumps({"options": given})


def exchange(http: httpx.Client, options: Mapping[str, Any], lines: Iterable[str]) -> Iterator[Card]:
    """The server's messages, one for each of `lines`, in order.

    Raises AttuneError, and what `lines` raises.
    """
    from websockets.sync.client import connect

    with ExitStack() as stack:
        with _failures(http.base_url):
            socket = stack.enter_context(connect(**_arguments(http)))
        sender = _Sender(socket, first_message(options), lines)
        sender.start()
        try:
            while True:
                yield _read(socket.recv())
        except _closed() as end:
            sender.raise_failure()
            _raise_unless_orderly(end)
        finally:
            sender.stop()


class _Sender(threading.Thread):
    """Sends in the background. A daemon, because it may wait for a next sample that never comes."""

    def __init__(self, socket: ClientConnection, first: str, lines: Iterable[str]) -> None:
        super().__init__(name="attune-classify", daemon=True)
        self._socket = socket
        self._first = first
        self._lines = lines
        self._stopped = threading.Event()
        self._failure: Exception | None = None

    def run(self) -> None:
        try:
            self._socket.send(self._first)
            for line in self._lines:
                if self._stopped.is_set():
                    return
                self._socket.send(line)
            self._socket.send(END)
        except _closed():
            pass  # whoever receives learns why
        except Exception as error:
            self._failure = error
            self._socket.close()

    def stop(self) -> None:
        self._stopped.set()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


async def exchange_async(
    http: httpx.AsyncClient, options: Mapping[str, Any], lines: AsyncIterable[str]
) -> AsyncGenerator[Card]:
    """As `exchange`."""
    from websockets.asyncio.client import connect

    async with AsyncExitStack() as stack:
        with _failures(http.base_url):
            socket = await stack.enter_async_context(connect(**_arguments(http)))
        failures: list[Exception] = []
        sender = asyncio.create_task(_send(socket, first_message(options), lines, failures))
        try:
            while True:
                yield _read(await socket.recv())
        except _closed() as end:
            if failures:
                raise failures[0] from None
            _raise_unless_orderly(end)
        finally:
            sender.cancel()
            await asyncio.wait({sender})


async def _send(
    socket: AsyncConnection, first: str, lines: AsyncIterable[str], failures: list[Exception]
) -> None:
    """What `lines` raises goes into `failures`, for whoever receives."""
    try:
        await socket.send(first)
        async for line in lines:
            await socket.send(line)
        await socket.send(END)
    except _closed():
        pass  # whoever receives learns why
    except Exception as error:
        failures.append(error)
        await socket.close()


def _arguments(http: httpx.Client | httpx.AsyncClient) -> dict[str, Any]:
    """Arguments of both kinds of `connect`: the address and the keys that the client has."""
    scheme = "wss" if http.base_url.scheme == "https" else "ws"
    return {
        "uri": str(http.base_url.copy_with(scheme=scheme)).rstrip("/") + PATH,
        "additional_headers": {name: http.headers[name] for name in _KEYS if name in http.headers},
        "user_agent_header": f"attune/{VERSION}",
        "open_timeout": http.timeout.connect,
        "close_timeout": _CLOSE_WITHIN_S,
        "compression": None,
        "max_size": _MOST_BYTES,
        # A server that reads no further for a while answers no ping either.
        "ping_timeout": None,
    }


def _closed() -> type[Exception]:
    from websockets.exceptions import ConnectionClosed

    return ConnectionClosed


@contextmanager
def _failures(url: httpx.URL) -> Iterator[None]:
    """What goes wrong before the connection stands, as AttuneError."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

    try:
        yield
    except InvalidStatus as error:
        raise _refused(error.response.status_code, bytes(error.response.body or b"")) from error
    except TimeoutError as error:
        raise AttuneError("timeout", f"no connection to {url} in time") from error
    except (InvalidHandshake, InvalidURI) as error:
        raise AttuneError("bad_answer", f"no WebSocket at {url}: {error}") from error
    except OSError as error:
        raise unreachable(httpx.ConnectError(str(error)), url) from error


def _refused(status: int, body: bytes) -> AttuneError:
    try:
        error = json.loads(body)["error"]
        return AttuneError(error["code"], error["message"], details=error["details"], status=status)
    except (ValueError, KeyError, TypeError):
        return AttuneError("bad_answer", f"HTTP {status} to a WebSocket's handshake", status=status)


def _read(text: str | bytes) -> Card:
    """One message. Raises AttuneError for an error of the stream itself, which has no index."""
    try:
        message: Card = json.loads(text)
        error = message.get("error")
    except (ValueError, AttributeError) as problem:
        raise AttuneError(
            "bad_answer", "no JSON object from the server; is it an Attune server?"
        ) from problem
    if error is not None and "index" not in message:
        raise AttuneError(error["code"], error["message"], details=error.get("details"))
    return message


def _raise_unless_orderly(end: Exception) -> None:
    from websockets.exceptions import ConnectionClosedOK

    if not isinstance(end, ConnectionClosedOK):
        raise AttuneError("connection_lost", f"the stream broke off: {end}") from end
