"""The service's error tree. `service/http/errors.py` maps it, and those of the parts below, to HTTP once.

ServiceError
  BadRequest              the client's mistake                       400
  NotFound                no such stream or snapshot                 404
  Conflict                fingerprint, method or version conflict    409
  TooLarge                items, bytes or pixels                     413
  QueueFull               come back after `retry_after_s`            429
  NotReady                starting or shutting down                  503
  DeadlineExceeded        waited too long in the queue               504
  StorageFailed           the disk is full or refuses                507
  Forbidden, Unauthorized                                            403, 401
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ServiceError(Exception):
    """Root. `code` is stable and machine-readable, the message is for people."""

    code = "internal"
    status = 500

    def __init__(self, message: str, *, code: str | None = None, details: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.code = code or type(self).code
        self.details: dict[str, Any] = dict(details or {})


class BadRequest(ServiceError):
    code = "bad_request"
    status = 400


class Unauthorized(ServiceError):
    code = "unauthorized"
    status = 401


class Forbidden(ServiceError):
    code = "forbidden"
    status = 403


class NotFound(ServiceError):
    code = "not_found"
    status = 404


class Conflict(ServiceError):
    code = "conflict"
    status = 409


class TooLarge(ServiceError):
    code = "too_large"
    status = 413


class QueueFull(ServiceError):
    code = "queue_full"
    status = 429

    def __init__(self, message: str, *, retry_after_s: float, details: Mapping[str, Any] | None = None):
        super().__init__(message, details={"retry_after_s": retry_after_s, **(details or {})})
        self.retry_after_s = retry_after_s


class NotReady(ServiceError):
    code = "not_ready"
    status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0):
        super().__init__(message, details={"retry_after_s": retry_after_s})
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"
    status = 504


class StorageFailed(ServiceError):
    code = "storage_failed"
    status = 507
