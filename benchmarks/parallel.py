"""Parts of a run in several processes at once.

Processes, because an encoder's weights are exchanged in place during a forward: two threads cannot share one,
and on a GPU each process has a context and streams of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any

Streams = Callable[[Any], Iterator[Mapping[str, Any]]]
"""A part to the results of its streams, one after the other."""

_POLL_S = 0.5


class PartFailed(Exception):
    """A part could not be run, or its process ended."""


def run_parts(
    make: Callable[[Any], Streams], options: Any, parts: Sequence[tuple[Any, int]], count: int
) -> Iterator[Mapping[str, Any]]:
    """Results in the order that they end in.

    make   called once in each process with `options`; both must be picklable
    parts  each with the number of its streams

    Raises:
        PartFailed: the others are stopped.
    """
    context = get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    processes = [
        context.Process(target=_work, args=(make, options, inbox, outbox, os.getpid()), daemon=True)
        for _ in range(min(count, len(parts)))
    ]
    for part, _ in parts:
        inbox.put(part)
    for process in processes:
        inbox.put(None)
        process.start()
    try:
        for _ in range(sum(streams for _, streams in parts)):
            yield _next(outbox, processes)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _next(outbox: Any, processes: Sequence[BaseProcess]) -> Mapping[str, Any]:
    while True:
        try:
            result: Mapping[str, Any] | str = outbox.get(timeout=_POLL_S)
        except Empty:
            ended = [process.exitcode for process in processes if process.exitcode]
            if ended:
                raise PartFailed(f"a process of the run ended with code {ended[0]}") from None
            continue
        if isinstance(result, str):
            raise PartFailed(result)
        return result


def _work(make: Callable[[Any], Streams], options: Any, inbox: Any, outbox: Any, parent: int) -> None:
    """The whole of a process: parts until there are no more, or until nobody waits for them."""
    try:
        streams = make(options)
        while (part := inbox.get()) is not None:
            for stream in streams(part):
                outbox.put(stream)
                if os.getppid() != parent:
                    return
    except Exception as error:  # the process's boundary: the other side says it
        outbox.put(f"{type(error).__name__}: {error}")
