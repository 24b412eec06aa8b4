"""`Client`: every method sends one of `calls` and waits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import httpx

from service.client import calls
from service.client.calls import Call, File, Image, QueryLike, Result, SampleLike, Vector
from service.client.streaming import exchange
from service.client.transport import Retries, arguments, connection, unreachable
from service.client.types import Answer, AttuneError, Card, ClassifyAnswer, StreamedAnswer

Samples: TypeAlias = Iterable[SampleLike]
Lines: TypeAlias = Iterable[str]
Answers: TypeAlias = Iterator[StreamedAnswer]
Cards: TypeAlias = Iterator[Card]


class Client:
    """A server's client.

    url         default: ATTUNE_URL, else http://127.0.0.1:8080
    admin_key   default: ATTUNE_ADMIN_KEY, else none
    api_key     default: ATTUNE_API_KEY, else none
    timeout_s   longest wait for one answer
    retries     further tries after 429 and 503, with the server's Retry-After up to `max_wait_s` seconds each
    transport   httpx transport, for tests
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        admin_key: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 150.0,
        retries: int = 3,
        max_wait_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**connection(url, admin_key, api_key, timeout_s), transport=transport)
        self._retries = Retries(retries, max_wait_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _send(self, call: Call[Result]) -> Result:
        tries = 0
        while True:
            try:
                response = self._http.request(**arguments(call))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise unreachable(error, self._http.base_url) from error
            wait_s = self._retries.wait_s(response, tries)
            if wait_s is None:
                break
            time.sleep(wait_s)
            tries += 1
        if not response.is_success:
            raise calls.error_of(response)
        return call.read(response)

    def retrieve(
        self,
        queries: QueryLike | Iterable[QueryLike] | None = None,
        *,
        text: str | Sequence[str] | None = None,
        image: Image | Sequence[Image] | None = None,
        embedding: Vector | Sequence[Vector] | None = None,
        gallery: str | None = None,
        stream: str | None = None,
        k: int | None = None,
        target: str | None = None,
        adapt: str | None = None,
        filter: Mapping[str, Any] | None = None,
        deadline_ms: float | None = None,
    ) -> Answer:
        """Search. Queries are texts, pictures (bytes, paths, Pillow images) or embeddings, one or several.

        {"text": ..., "image": ...} in `queries` is one composed query; `text` and `image` are queries apart.

        Raises AttuneError, ValueError for no query, OSError for a picture that cannot be read.
        """
        bodies = calls.query_bodies(queries, text=text, image=image, embedding=embedding)
        options = {
            "gallery": gallery,
            "stream": stream,
            "k": k,
            "target": target,
            "adapt": adapt,
            "filter": filter,
            "deadline_ms": deadline_ms,
        }
        return self._send(calls.retrieve(bodies, options))

    def classify(
        self,
        samples: SampleLike | Iterable[SampleLike] | None = None,
        *,
        audio: File | None = None,
        image: Image | None = None,
        clip: File | None = None,
        text: str | None = None,
        stream: str | None = None,
        adapt: str | None = None,
        top: int | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        deadline_ms: float | None = None,
    ) -> ClassifyAnswer:
        """Label samples of sound and pictures, or, with `labels`, pictures and texts.

        A sample is {"id", "audio", "fbank", "image", "frames", "clip", "text"}, where audio and clip are
        paths or bytes, image and frames pictures, fbank an array; one can be given as arguments instead.

        Raises AttuneError, ValueError for no sample, OSError for a file that cannot be read.
        """
        bodies = calls.sample_bodies(samples, audio=audio, image=image, clip=clip, text=text)
        options = {
            "stream": stream,
            "adapt": adapt,
            "top": top,
            "labels": None if labels is None else list(labels),
            "template": template,
            "deadline_ms": deadline_ms,
        }
        return self._send(calls.classify(bodies, options))

    def classify_stream(
        self,
        samples: Samples,
        *,
        stream: str | None = None,
        adapt: str | None = None,
        top: int | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        deadline_ms: float | None = None,
        batch: int | None = None,
        max_wait_ms: float | None = None,
    ) -> Answers:
        """Label samples as they come; their answers follow in order, while samples are still taken.

        One that fails has its error in its place. With `adapt="sync"` the server gathers `batch` samples, or
        those of `max_wait_ms`. Take the answers: where they are left, the server reads no more and, after a
        while, hangs up.

        Raises AttuneError where the stream itself ends early.
        """
        options = {
            "stream": stream,
            "adapt": adapt,
            "top": top,
            "labels": None if labels is None else list(labels),
            "template": template,
            "deadline_ms": deadline_ms,
            "batch": batch,
            "max_wait_ms": max_wait_ms,
        }
        texts = (json.dumps(calls.sample_body(sample)) for sample in samples)
        for card in self.classify_lines(texts, options):
            yield StreamedAnswer.of_json(card)

    def classify_lines(self, lines: Lines, options: Mapping[str, Any] | None = None) -> Cards:
        """As `classify_stream`, for samples that are JSON texts already; answers are the server's JSON."""
        yield from exchange(self._http, options or {}, lines)

    def ready(self) -> bool:
        """Whether the server answers queries now; False also if it cannot be reached."""
        try:
            self._http.request("GET", "/readyz").raise_for_status()
        except httpx.HTTPError:
            return False
        return True

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once the server answers queries. Raises AttuneError "not_ready" after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() >= end:
                raise AttuneError("not_ready", f"{self._http.base_url} was not ready within {timeout_s:g} s")
            time.sleep(0.1)

    def corruptions(self) -> Card:
        """The corruptions of pictures, texts and sounds: names, groups, severities."""
        return self._send(calls.corruptions())

    def corrupt(
        self,
        corruption: str,
        *,
        text: str | Sequence[str] | None = None,
        image: Image | Sequence[Image] | None = None,
        audio: File | Sequence[File] | None = None,
        severity: int | None = None,
        style: str | None = None,
        seed: int | None = None,
    ) -> list[str | bytes]:
        """Corrupted copies, in order: texts, PNG files or WAV files.

        text, image, audio  one of the three, one or several
        severity            None: 5, or the highest where there are fewer
        style               of pictures: `imagenet_c` or `mm_robustness`
        seed                the same one repeats the same copies
        """
        options = {"severity": severity, "style": style, "seed": seed}
        return self._send(calls.corrupt(corruption, text=text, image=image, audio=audio, options=options))

    def models(self) -> Card:
        """Encoder, methods with their settings, queue."""
        return self._send(calls.models())

    def list_galleries(self) -> list[Card]:
        return self._send(calls.list_galleries())

    def describe_gallery(self, name: str) -> Card:
        return self._send(calls.describe_gallery(name))

    def create_gallery(
        self, name: str, *, index: Mapping[str, Any] | None = None, calibration: str | None = None
    ) -> Card:
        """`calibration`: what completes items and queries that lack a picture or a text, for good."""
        return self._send(calls.create_gallery(name, index, calibration))

    def delete_gallery(self, name: str) -> None:
        self._send(calls.delete_gallery(name))

    def upsert_items(
        self,
        gallery: str,
        items: Iterable[Mapping[str, Any]],
        *,
        batch_size: int = 64,
        on_progress: Callable[[int], None] | None = None,
    ) -> Card:
        """Add or replace any number of items; `on_progress` gets the number sent so far.

        An item is {"id", "text", "image", "embeddings", "payload"}, where image is a path, bytes or a Pillow
        image. Every batch is all or none; after an error the batches before it are in.
        """
        tally = calls.Tally(on_progress)
        for batch in calls.item_batches(items, batch_size):
            tally.add(len(batch), self._send(calls.upsert_items(gallery, batch)))
        return tally.total

    def delete_items(self, gallery: str, ids: Sequence[str]) -> int:
        """How many of them there were."""
        return self._send(calls.delete_items(gallery, ids))

    def get_item(self, gallery: str, id: str) -> Card:
        return self._send(calls.get_item(gallery, id))

    def list_items(self, gallery: str, *, offset: int = 0, limit: int = 100) -> Card:
        """{"items": [...], "total": n}."""
        return self._send(calls.list_items(gallery, offset, limit))

    def preview(self, gallery: str, id: str) -> bytes:
        """The small picture (WebP) that the gallery keeps of an item added with a picture."""
        return self._send(calls.preview(gallery, id))

    def set_canaries(self, gallery: str, canaries: Sequence[Mapping[str, Any]]) -> Card:
        """Queries whose answers are known: `text` or `image` (as for items), and `answer`, an item's id."""
        return self._send(calls.set_canaries(gallery, canaries))

    def describe_canaries(self, gallery: str) -> Card:
        return self._send(calls.describe_canaries(gallery))

    def list_calibrations(self) -> list[Card]:
        return self._send(calls.list_calibrations())

    def describe_calibration(self, name: str) -> Card:
        return self._send(calls.describe_calibration(name))

    def fit_calibration(
        self, name: str, gallery: str, *, latent: int | None = None, samples: int | None = None
    ) -> Card:
        """Make one from the items of a gallery that have a picture and a text, at most `samples` of them."""
        return self._send(calls.fit_calibration(name, gallery, latent, samples))

    def add_calibration(self, name: str, source: bytes | str | PathLike[str]) -> Card:
        """Send a file (or its bytes) made by `attune calibrate` or `export_calibration`."""
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return self._send(calls.add_calibration(name, data))

    def export_calibration(self, name: str, path: str | PathLike[str] | None = None) -> bytes:
        """The calibration's file; also written to `path` if given."""
        data = self._send(calls.export_calibration(name))
        if path is not None:
            Path(path).write_bytes(data)
        return data

    def delete_calibration(self, name: str) -> None:
        """Refused while a gallery needs it."""
        self._send(calls.delete_calibration(name))

    def list_streams(self) -> list[Card]:
        return self._send(calls.list_streams())

    def stream_history(self, stream: str) -> Card:
        """What the last batches of each of its tracks came to, in columns, oldest first."""
        return self._send(calls.stream_history(stream))

    def describe_stream(self, name: str) -> Card:
        return self._send(calls.describe_stream(name))

    def configure_stream(
        self,
        name: str,
        *,
        method: str | None = None,
        settings: Mapping[str, Any] | None = None,
        pinned: bool | None = None,
        guard: Mapping[str, Any] | None = None,
        task: str | None = None,
        calibration: str | None = None,
    ) -> Card:
        """Set method, guard, calibration, or pin; makes the stream if it is new. Another method drops what
        was learnt.

        `task` ("retrieve" or "classify") says what the method is for, where both have one of that name. An
        empty `calibration` detaches.
        """
        call = calls.configure_stream(name, method, settings, pinned, guard, task, calibration)
        return self._send(call)

    def reset_stream(self, name: str) -> Card:
        """Back to the source model."""
        return self._send(calls.reset_stream(name))

    def delete_stream(self, name: str, *, force: bool = False) -> None:
        """`force`: with its snapshots."""
        self._send(calls.delete_stream(name, force))

    def list_snapshots(self, stream: str) -> list[Card]:
        return self._send(calls.list_snapshots(stream))

    def create_snapshot(self, stream: str, name: str | None = None, *, note: str = "") -> Card:
        return self._send(calls.create_snapshot(stream, name, note))

    def restore_snapshot(self, stream: str, name: str) -> Card:
        return self._send(calls.restore_snapshot(stream, name))

    def compare_snapshots(self, stream: str, first: str, second: str | None = None) -> Card:
        """What two snapshots of a stream differ by; without `second`, `first` and the stream as it is."""
        return self._send(calls.compare_snapshots(stream, first, second))

    def delete_snapshot(self, stream: str, name: str) -> None:
        self._send(calls.delete_snapshot(stream, name))

    def export_snapshot(self, stream: str, name: str, path: str | PathLike[str] | None = None) -> bytes:
        """The snapshot's file; also written to `path` if given."""
        data = self._send(calls.export_snapshot(stream, name))
        if path is not None:
            Path(path).write_bytes(data)
        return data

    def import_snapshot(
        self, stream: str, source: bytes | str | PathLike[str], name: str | None = None
    ) -> Card:
        """Keep a file (or its bytes) made by `export_snapshot` as a snapshot of `stream`."""
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return self._send(calls.import_snapshot(stream, data, name))
