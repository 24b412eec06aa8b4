"""Structured logs: one JSON object a line, on stderr. Never a payload, a text, a picture or a key."""

from __future__ import annotations

import logging
import sys

import structlog

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class _OurOwnLine(logging.Filter):
    """Drops uvicorn's lines about WebSockets: they repeat the URL with its labels, and we write our own."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        return '"WebSocket ' not in text and not text.startswith("connection ")


_our_own_line = _OurOwnLine()


def configure(level: str) -> None:
    """Send structlog and the standard library's loggers to stderr, from `level` up. Once, in a server."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.error").addFilter(_our_own_line)
    for chatty in ("httpx", "httpcore", "PIL", "urllib3", "filelock", "faiss"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
