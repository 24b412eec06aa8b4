"""A real server for a benchmark: started on a free port with its own data folder, stopped at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def running_server(
    *,
    encoder: str = "demo",
    url: str | None = None,
    port: int | None = None,
    start_s: float = 120,
    **settings: object,
) -> Iterator[str]:
    """The address of a server that is ready: `url` if given, else a new process of `attune serve`.

    It listens on `port`, or a free one; `settings` become ATTUNE_ variables. Raises RuntimeError with the
    server's last words if it does not start.
    """
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        where = Path(folder)
        with server_process(where, port=port, start_s=start_s, encoder=encoder, **settings) as (address, _):
            yield address


@contextmanager
def server_process(
    folder: Path, *arguments: str, port: int | None = None, start_s: float = 120, **settings: object
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of `attune serve` with data and log in `folder`; ended at the end, if not before.

    Raises RuntimeError as `running_server`.
    """
    port = port or free_port()
    log = folder / "server.log"
    values = {"port": port, "data_folder": folder / "data", **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    environment |= {f"ATTUNE_{name.upper()}": str(value) for name, value in values.items()}
    with log.open("ab") as output:
        command = [sys.executable, "-m", "service.cli", "serve", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, process, log, start_s)
        yield address, process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path, start_s: float) -> None:
    until = time.monotonic() + start_s
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
