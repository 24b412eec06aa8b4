"""Jobs, answers and failures as bytes: MessagePack by msgspec, checked against the types when read.

A message begins with one byte, the format's number, so that processes of different versions refuse each
other's messages instead of misreading them. No pickle. Arrays travel as their bytes behind a short head.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from service.errors import ServiceError, status_and_code
from service.messages import (
    Canary,
    ClassifyJob,
    ClassifyJobAnswer,
    ControlJob,
    Job,
    JobAnswer,
    NewItem,
    QueryJob,
    RetrieveJob,
)

FORMAT = 1
_ARRAY = 1  # our one MessagePack extension type
_DTYPES = ("|u1", "<f4")
_TYPED_ARGUMENTS: Mapping[str, type] = {"items": NewItem, "canaries": Canary}


class BadMessage(Exception):
    """The bytes are no message of this version."""


@dataclass(frozen=True)
class Posted:
    """A job on its way to a worker: exactly one of the three.

    reply_to        the API process that waits for the answer
    accepted_unix   seconds since 1970; monotonic clocks do not travel
    deadline_unix   likewise

    `shift_s` in the functions below turns time.monotonic() of a process into that common time.
    """

    reply_to: str
    accepted_unix: float
    deadline_unix: float | None
    retrieve: RetrieveJob | None = None
    control: ControlJob | None = None
    classify: ClassifyJob | None = None

    @property
    def query(self) -> QueryJob | None:
        return self.retrieve if self.retrieve is not None else self.classify

    def job(self, *, shift_s: float) -> Job:
        """The job, with its times on this process's clock."""
        deadline_at = None if self.deadline_unix is None else self.deadline_unix - shift_s
        if self.query is not None:
            return replace(self.query, accepted_at=self.accepted_unix - shift_s, deadline_at=deadline_at)
        assert self.control is not None
        return replace(self.control, deadline_at=deadline_at)


@dataclass(frozen=True)
class Failure:
    """An error on its way back: what the client is told, and nothing of the worker's inside."""

    status: int
    code: str
    message: str
    details: dict[str, Any]

    def error(self) -> ServiceError:
        return RemoteFailure(self)


@dataclass(frozen=True)
class Reply:
    """What became of a job: exactly one of the four. `value`: a control job's answer, plain or bytes."""

    answer: JobAnswer | None = None
    failure: Failure | None = None
    value: Any = None
    classified: ClassifyJobAnswer | None = None


class RemoteFailure(ServiceError):
    """An error of another process, to be told as it was there."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, code=failure.code, details=failure.details)
        self.status = failure.status
        self.retry_after_s: float | None = failure.details.get("retry_after_s")


def pack_job(job: Job, *, reply_to: str, shift_s: float) -> bytes:
    deadline_unix = None if job.deadline_at is None else job.deadline_at + shift_s
    if isinstance(job, RetrieveJob):
        posted = Posted(reply_to, job.accepted_at + shift_s, deadline_unix, retrieve=job)
    elif isinstance(job, ClassifyJob):
        posted = Posted(reply_to, job.accepted_at + shift_s, deadline_unix, classify=job)
    else:
        assert isinstance(job, ControlJob)
        posted = Posted(reply_to, time.monotonic() + shift_s, deadline_unix, control=job)
    return _pack(posted)


def unpack_job(data: bytes) -> Posted:
    """Raises BadMessage."""
    posted = _unpack(data, _posted)
    if sum(job is not None for job in (posted.retrieve, posted.control, posted.classify)) != 1:
        raise BadMessage("a message holds one job")
    if posted.query is not None and not posted.query.items:
        raise BadMessage("a job asks something")
    if posted.control is not None:
        return replace(posted, control=replace(posted.control, arguments=_typed(posted.control.arguments)))
    return posted


def pack_reply(result: Any) -> bytes:
    """`result`: the answer to a query job, an exception, or a control job's answer."""
    if isinstance(result, JobAnswer):
        return _pack(Reply(answer=result))
    if isinstance(result, ClassifyJobAnswer):
        return _pack(Reply(classified=result))
    if isinstance(result, Exception):
        return _pack(Reply(failure=failure_of(result)))
    return _pack(Reply(value=result))


def unpack_reply(data: bytes) -> Any:
    """The answer; raises the failure if it is one, and BadMessage."""
    reply = _unpack(data, _reply)
    if reply.failure is not None:
        raise reply.failure.error()
    for answer in (reply.answer, reply.classified):
        if answer is not None:
            return answer
    return reply.value


def pack_canaries(canaries: Sequence[Canary]) -> bytes:
    return _pack(list(canaries))


def unpack_canaries(data: bytes) -> tuple[Canary, ...]:
    """Raises BadMessage."""
    canaries: tuple[Canary, ...] = _unpack(data, _canaries)
    return canaries


def failure_of(error: Exception) -> Failure:
    status, code = status_and_code(error)
    if status == 500 and code == "internal":
        return Failure(500, "internal", "an unexpected error; the worker's log has the details", {})
    return Failure(status, code, str(error)[:2000], dict(getattr(error, "details", {})))


def _typed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are more than plain values get their types back."""
    typed = dict(arguments)
    for name, kind in _TYPED_ARGUMENTS.items():
        if name in typed:
            try:
                typed[name] = tuple(msgspec.convert(one, kind, dec_hook=_as_array) for one in typed[name])
            except (msgspec.ValidationError, TypeError) as error:
                raise BadMessage(str(error)) from error
    return typed


def _pack(message: Any) -> bytes:
    return bytes([FORMAT]) + _encoder.encode(message)


def _unpack(data: bytes, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if not data or data[0] != FORMAT:
        raise BadMessage(f"a message of format {data[0] if data else 'none'}; this version reads {FORMAT}")
    try:
        return decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise BadMessage(str(error)) from error


def _plain(value: Any) -> Any:
    """What MessagePack does not know."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        head = f"{array.dtype.str}{','.join(map(str, array.shape))};".encode()
        return msgspec.msgpack.Ext(_ARRAY, head + array.tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} does not travel")


def _extension(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    head, _, rest = bytes(data).partition(b";")
    dtype, shape = head[:3].decode("ascii"), head[3:].decode("ascii")
    if dtype not in _DTYPES:
        raise ValueError(f"arrays of {dtype!r} do not travel")
    return np.frombuffer(rest, dtype).reshape([int(size) for size in shape.split(",")] if shape else [])


def _as_array(wanted: type, value: Any) -> Any:
    if wanted is np.ndarray and isinstance(value, np.ndarray):
        return value
    raise ValueError(f"expected {wanted.__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_posted = msgspec.msgpack.Decoder(Posted, ext_hook=_extension, dec_hook=_as_array)
_reply = msgspec.msgpack.Decoder(Reply, ext_hook=_extension, dec_hook=_as_array)
_canaries = msgspec.msgpack.Decoder(tuple[Canary, ...], ext_hook=_extension, dec_hook=_as_array)
