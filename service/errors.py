"""The service's error tree, and the one table from errors to a status and a code, for the parts below too.

ServiceError
  BadRequest              the client's mistake                       400
  UnsupportedModality     nothing here takes such a sample           422
  UnusableSample          the model makes no numbers of it           422
  NotFound                no such stream or snapshot                 404
  Conflict                fingerprint, method or version conflict    409
  TooLarge                items, bytes or pixels                     413
  QueueFull               come back after `retry_after_s`            429
  NotReady                starting or shutting down                  503
    QueueUnreachable      Redis does not answer                      503
  DeadlineExceeded        waited too long in the queue               504
  StorageFailed           the disk is full or refuses                507
  Forbidden, Unauthorized                                            403, 401
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BY_CLASS: Mapping[str, tuple[int, str]] = {
    "index.base.GalleryNotFound": (404, "unknown_gallery"),
    "index.base.GalleryExists": (409, "gallery_exists"),
    "index.base.ItemNotFound": (404, "unknown_item"),
    "index.base.PreviewNotFound": (404, "unknown_preview"),
    "index.base.DuplicateId": (422, "duplicate_id"),
    "index.base.FingerprintMismatch": (409, "fingerprint_mismatch"),
    "index.base.UnknownTarget": (422, "unknown_target"),
    "index.base.BadName": (422, "bad_name"),
    "index.base.BadItem": (422, "bad_item"),
    "index.base.BadVector": (422, "bad_vector"),
    "index.base.BadFilter": (422, "bad_filter"),
    "index.base.BadSettings": (422, "bad_index_settings"),
    "index.base.GalleryCorrupt": (500, "gallery_corrupt"),
    "index.base.StorageFull": (507, "storage_full"),
    "index.base.StorageError": (500, "storage_failed"),
    "index.base.GalleryError": (500, "gallery_failed"),
    "adapters.base.UnknownMethod": (422, "unknown_method"),
    "adapters.base.BadSettings": (422, "bad_method_settings"),
    "adapters.base.StateMismatch": (409, "state_mismatch"),
    "adapters.classification.CalibrationMissing": (409, "calibration_missing"),
    "adapters.calibration.BadCalibration": (500, "bad_calibration"),
    "adapters.base.AdapterError": (500, "adaptation_failed"),
    "adapters.state.StateFileError": (400, "bad_snapshot"),
    "encoders.base.ImageTooLarge": (413, "image_too_large"),
    "encoders.base.BadImage": (422, "bad_image"),
    "encoders.base.UnsupportedEncoder": (500, "unsupported_encoder"),
    "encoders.base.EncoderError": (422, "encoder_refused"),
    "encoders.audio.AudioTooLong": (413, "audio_too_long"),
    "encoders.audio.BadAudio": (422, "bad_audio"),
    "encoders.clips.ClipTooLarge": (413, "clip_too_large"),
    "encoders.clips.BadClip": (422, "bad_clip"),
    "encoders.clips.ClipsUnavailable": (501, "clips_unavailable"),
}
"""Errors of the parts below by name: importing them here would load torch into every process that
only speaks HTTP. A test compares the table with the modules."""


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


class UnsupportedModality(ServiceError):
    code = "unsupported_modality"
    status = 422


class UnusableSample(ServiceError):
    code = "unusable_sample"
    status = 422


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


class QueueUnreachable(NotReady):
    code = "queue_unreachable"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"
    status = 504


class StorageFailed(ServiceError):
    code = "storage_failed"
    status = 507


def status_and_code(error: BaseException) -> tuple[int, str]:
    """HTTP status and stable code of an error; (500, "internal") for those that nobody raises on purpose."""
    if isinstance(error, ServiceError):
        return error.status, error.code
    for parent in type(error).__mro__:
        entry = BY_CLASS.get(f"{parent.__module__}.{parent.__qualname__}")
        if entry is not None:
            return entry
    return 500, "internal"
