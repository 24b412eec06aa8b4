"""From samples as they were sent to samples as the engine takes them.

All the work of one sample (base64, sound, filter bank, picture, clip) is one job of the threads that decode;
sizes are checked before anything is decoded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from anyio import CapacityLimiter, to_thread

from encoders.base import BadImage, EncoderError, ImageTooLarge
from encoders.preprocessing import ImageSpec, open_image, pixels
from service.errors import NotFound, TooLarge, UnsupportedModality
from service.http.classify_schemas import ClassifyOptions, SampleBody
from service.http.engine import Engine
from service.http.errors import Refusal, shorten
from service.http.queries import check_text
from service.messages import Sample
from service.settings import Settings

if TYPE_CHECKING:  # it loads libraries of sound, which only the threads that decode need
    from encoders.audio import AudioSpec

Content = bytes | str
"""Bytes, or text that holds base64."""


@dataclass(frozen=True)
class RawSample:
    """A sample as it was sent. `field` names it in errors; "" where it is all there is."""

    field: str
    audio: Content | None = None
    fbank: Sequence[Sequence[float]] | None = None
    image: Content | None = None
    frames: Sequence[str] | None = None
    clip: Content | None = None
    text: str | None = None

    @classmethod
    def of_body(cls, field: str, body: SampleBody) -> Self:
        return cls(field, body.audio, body.fbank, body.image, body.frames, body.clip, body.text)

    @property
    def given(self) -> list[str]:
        names = ("audio", "fbank", "image", "frames", "clip", "text")
        return [name for name in names if getattr(self, name) is not None]

    def place(self, name: str) -> str:
        return f"{self.field}.{name}" if self.field else name


@dataclass(frozen=True)
class Decoder:
    """Decodes samples for one kind of request.

    audio_spec  None: zero-shot, which takes no sound
    """

    settings: Settings
    image_spec: ImageSpec
    audio_spec: AudioSpec | None

    @classmethod
    def of_request(cls, options: ClassifyOptions, settings: Settings, engine: Engine) -> Self:
        """For the classifier, or for the dual encoder where labels are given.

        Raises:
            NotFound: `no_classifier`: there are no labels, and the server has no classifier.
        """
        if options.labels is not None:
            return cls(settings, engine.image_spec, None)
        classifier = engine.classifier
        if classifier is None:
            raise NotFound(
                "this server has no classifier; give `labels` to classify by the dual encoder",
                code="no_classifier",
            )
        return cls(settings, classifier.image_spec, classifier.audio_spec)

    def check(self, raw: RawSample) -> None:
        """What can be told without decoding. Raises UnsupportedModality, Refusal 422, TooLarge."""
        if self.audio_spec is None:
            self._check_zero_shot(raw)
        elif raw.text is not None:
            raise UnsupportedModality(
                f"{raw.place('text')}: the classifier takes sound and pictures; texts need `labels`",
                details={"field": raw.place("text")},
            )
        if raw.text is not None:
            check_text(raw.place("text"), raw.text, self.settings)

    def _check_zero_shot(self, raw: RawSample) -> None:
        for name in ("audio", "fbank", "clip"):
            if name in raw.given:
                raise UnsupportedModality(
                    f"{raw.place(name)}: with `labels` a sample is a picture or a text, without sound",
                    details={"field": raw.place(name)},
                )

    def decode(self, raw: RawSample) -> Sample:
        """In a thread. Raises TooLarge, Refusal 422 (`bad_audio`, `bad_image`, `bad_clip`)."""
        if raw.clip is not None:
            return self._clip(raw.place("clip"), raw.clip)
        return Sample(fbank=self._sound(raw), pixels=self._picture(raw), text=raw.text)

    def _sound(self, raw: RawSample) -> np.ndarray | None:
        from encoders.audio import check_fbank, fbank, read_audio

        if self.audio_spec is None:
            return None
        if raw.audio is not None:
            with named_errors(raw.place("audio"), "audio"):
                data = bytes_of(raw.audio, self.settings.max_audio_bytes, "audio")
                waveform = read_audio(
                    data,
                    sample_rate=self.audio_spec.sample_rate,
                    max_seconds=self.settings.max_audio_seconds,
                    max_bytes=self.settings.max_audio_bytes,
                )
                return fbank(waveform, self.audio_spec)
        if raw.fbank is not None:
            with named_errors(raw.place("fbank"), "audio"):
                return check_fbank(_matrix(raw.fbank), self.audio_spec)
        return None

    def _picture(self, raw: RawSample) -> np.ndarray | None:
        if raw.image is not None:
            return self._image(raw.place("image"), raw.image)
        if raw.frames is not None:
            from encoders.clips import frame_index

            middle = frame_index(len(raw.frames))
            return self._image(f"{raw.place('frames')}[{middle}]", raw.frames[middle])
        return None

    def _image(self, field: str, content: Content) -> np.ndarray:
        with named_errors(field, "image"):
            data = bytes_of(content, self.settings.max_image_bytes, "image")
            picture = open_image(
                data, max_pixels=self.settings.max_image_pixels, max_bytes=self.settings.max_image_bytes
            )
            return pixels(picture, self.image_spec)

    def _clip(self, field: str, content: Content) -> Sample:
        from encoders.audio import fbank
        from encoders.clips import read_clip

        assert self.audio_spec is not None  # `check` refuses clips for zero-shot
        with named_errors(field, "clip"):
            data = bytes_of(content, self.settings.max_clip_bytes, "video")
            clip = read_clip(
                data,
                sample_rate=self.audio_spec.sample_rate,
                max_seconds=self.settings.max_clip_seconds,
                max_bytes=self.settings.max_clip_bytes,
                max_pixels=self.settings.max_image_pixels,
            )
            return Sample(
                fbank=None if clip.sound is None else fbank(clip.sound, self.audio_spec),
                pixels=None if clip.frame is None else pixels(clip.frame, self.image_spec),
            )


async def decode_samples(
    raw: Sequence[RawSample], decoder: Decoder, threads: CapacityLimiter
) -> tuple[Sample, ...]:
    """In order. Raises what `Decoder.check` and `Decoder.decode` raise, always for the first bad sample."""
    for sample in raw:
        decoder.check(sample)
    jobs = (to_thread.run_sync(decoder.decode, sample, limiter=threads) for sample in raw)
    # Every job is awaited even if one fails: a thread cannot be stopped, and its error must not be lost.
    results = await asyncio.gather(*jobs, return_exceptions=True)
    decoded: list[Sample] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        decoded.append(result)
    return tuple(decoded)


class _TooManyBytes(EncoderError):
    """More base64 than the bytes that are accepted could have."""


class _NoBase64(EncoderError):
    """Neither base64 nor a data URI."""


_TOO_LARGE = {"audio": "audio_too_long", "image": "image_too_large", "clip": "clip_too_large"}


@contextmanager
def named_errors(field: str, kind: str) -> Iterator[None]:
    """Errors of decoding one field, as refusals that name it."""
    too_large, bad = _errors(kind)
    try:
        yield
    except too_large as error:
        raise TooLarge(f"{field}: {error}", code=_TOO_LARGE[kind], details={"field": field}) from error
    except bad as error:
        message = f"{field}: {shorten(str(error))}"
        raise Refusal(422, f"bad_{kind}", message, details={"field": field}) from error
    except EncoderError as error:
        if kind != "clip":
            raise
        raise Refusal(501, "clips_unavailable", f"{field}: {error}", details={"field": field}) from error


def _errors(kind: str) -> tuple[tuple[type[EncoderError], ...], tuple[type[EncoderError], ...]]:
    if kind == "image":
        return (ImageTooLarge, _TooManyBytes), (BadImage, _NoBase64)
    from encoders.audio import AudioTooLong, BadAudio

    if kind == "audio":
        return (AudioTooLong, _TooManyBytes), (BadAudio, _NoBase64)
    from encoders.clips import BadClip, ClipTooLarge

    return (ClipTooLarge, AudioTooLong, _TooManyBytes), (BadClip, BadAudio, _NoBase64)


def _matrix(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """float32 [n, F]. Raises BadAudio for rows of different lengths; what overflows becomes infinite."""
    from encoders.audio import BadAudio

    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise BadAudio("a filter bank has at least one row, and all of one length")
    with np.errstate(over="ignore"):
        return np.asarray(rows, dtype=np.float64).astype(np.float32)


def bytes_of(content: Content, max_bytes: int, kind: str) -> bytes:
    """The bytes of base64 or of a data URI; for use inside `named_errors`. kind: audio, image or video."""
    if isinstance(content, bytes):
        return content
    encoded = _of_data_uri(content, kind) if content.startswith("data:") else content
    if len(encoded) // 4 * 3 > max_bytes + 2:
        raise _TooManyBytes(f"more than the {max_bytes} bytes that are accepted")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _NoBase64(
            "not base64 (standard alphabet with padding, no line breaks; URLs and paths are not fetched)"
        ) from error


def _of_data_uri(text: str, kind: str) -> str:
    """The base64 of `data:image/png;base64,...`; recorders in browsers add parameters such as codecs."""
    head, marker, encoded = text.partition(";base64,")
    if not marker or not head.startswith(f"data:{kind}/"):
        raise _NoBase64(f"as a data URI it looks like data:{kind}/...;base64,...")
    return encoded
