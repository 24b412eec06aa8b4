"""An engine of dictionaries: what HTTP layer, client and command line are tested against, without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from encoders.audio import AudioSpec
from encoders.preprocessing import ImageSpec
from index.base import GalleryExists, GalleryNotFound, ItemNotFound, PreviewNotFound
from index.items import version_of
from service.catalogue import ClassifierCard
from service.errors import Conflict, NotFound
from service.messages import (
    Adaptation,
    AdaptationPart,
    Canary,
    ClassifyAnswer,
    ClassifyRequest,
    Completeness,
    LabelScore,
    NewItem,
    Part,
    Query,
    QueryKind,
    RankedHit,
    RetrieveAnswer,
    RetrieveRequest,
    Sample,
    SampleAnswer,
    Timings,
)
from service.metrics import Metrics

DIMENSION = 4
CLASSIFIER = ClassifierCard(
    name="fake-av",
    fingerprint="f",
    labels=("bell", "bird", "car"),
    audio_spec=AudioSpec(frames=16, mel_bins=8),
    image_spec=ImageSpec(height=4, width=4),
)


class FakeEngine:
    """Answers every query with the gallery's items in order.

    failure    raised by every call, if set
    completed  whether a calibration completes queries and items
    waits      if set, retrieve waits for it; `cancelled` counts those that did not live to see it
    requests   what retrieve was asked
    """

    def __init__(self) -> None:
        self.ready = True
        self.why_not_ready = ""
        self.image_spec = ImageSpec(height=6, width=8)
        self.dimension = DIMENSION
        self.metrics = Metrics()
        self.failure: BaseException | None = None
        self.failures: list[BaseException] = []
        self.waits: asyncio.Event | None = None
        self.cancelled = 0
        self.completed = False
        self.requests: list[RetrieveRequest] = []
        self.classifier: ClassifierCard | None = CLASSIFIER
        self.classified: list[ClassifyRequest] = []
        self.galleries: dict[str, dict[str, NewItem]] = {
            "demo": {
                f"scene-{i}": NewItem(f"scene-{i}", {"colour": "red", "n": i}, text=f"scene {i}")
                for i in range(5)
            }
        }
        first = self.galleries["demo"]["scene-0"]
        self.galleries["demo"]["scene-0"] = replace(first, preview=b"RIFF of scene 0")
        self.streams: dict[str, dict[str, Any]] = {}
        self.listed: list[int] = []
        self.listing_takes_s = 0.0
        self.waiting: dict[str, int] | None = None
        self.canaries: dict[str, list[Canary]] = {}
        self.snapshots: dict[tuple[str, str], bytes] = {}
        self.calibrations: dict[str, bytes] = {"encoder": b"of the encoder"}
        self.calibrated: dict[str, str] = {}

    def _maybe_fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        self.ready = False

    async def retrieve(self, request: RetrieveRequest) -> RetrieveAnswer:
        self.requests.append(request)
        self._maybe_fail()
        if self.waits is not None:
            try:
                await self.waits.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        name = request.gallery or "demo"
        items = list(self._gallery(name).values())[: request.k]
        parts = {"image": Part(False, 0.5), "text": Part(True, 1.0)} if self.completed else None
        hits = tuple(
            RankedHit(item.id, 1.0 - i / 10, item.payload, parts, _version(item))
            for i, item in enumerate(items)
        )
        return RetrieveAnswer(
            hits=(hits,) * len(request.queries),
            completeness=tuple(map(_completeness, request.queries)) if self.completed else None,
            parts=_parts(request),
            timings=Timings(0.1, 0.2, 0.3, 0.4, 1.0),
            gallery=name,
            stream=request.stream,
        )

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Label n of the list goes to every sample, n being the number of samples asked before."""
        before = sum(len(asked.samples) for asked in self.classified)
        self.classified.append(request)
        self._maybe_fail()
        if self.waits is not None:
            try:
                await self.waits.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        labels = request.labels or CLASSIFIER.labels
        return ClassifyAnswer(
            samples=tuple(
                _sample_answer(sample, labels, before + i, request)
                for i, sample in enumerate(request.samples)
            ),
            parts=_classify_parts(request),
            timings=Timings(0.1, 0.2, 0.0, 0.4, 1.0),
            stream=request.stream,
            model="fake" if request.labels else CLASSIFIER.name,
        )

    def describe_models(self) -> dict[str, Any]:
        self._maybe_fail()
        return {"encoder": {"name": "fake", "dimension": self.dimension}, "methods": {"tcr": {}}}

    def _gallery(self, name: str) -> dict[str, NewItem]:
        if name not in self.galleries:
            raise GalleryNotFound(f"there is no gallery {name!r}")
        return self.galleries[name]

    async def list_galleries(self) -> list[dict[str, Any]]:
        self._maybe_fail()
        return [await self.describe_gallery(name) for name in sorted(self.galleries)]

    async def describe_gallery(self, name: str) -> dict[str, Any]:
        self._maybe_fail()
        count = len(self._gallery(name))
        return {
            "name": name,
            "items": count,
            "targets": {"text": count},
            "calibration": self.calibrated.get(name),
            "status": "ready",
        }

    async def create_gallery(
        self, name: str, index: Mapping[str, Any] | None, calibration: str | None = None
    ) -> dict[str, Any]:
        self._maybe_fail()
        if calibration is not None:
            await self.describe_calibration(calibration)
            self.calibrated[name] = calibration
        if name in self.galleries:
            raise GalleryExists(f"there is a gallery {name!r} already")
        self.galleries[name] = {}
        return await self.describe_gallery(name)

    async def delete_gallery(self, name: str) -> None:
        self._maybe_fail()
        self._gallery(name)
        del self.galleries[name]

    async def upsert_items(self, gallery: str, items: Sequence[NewItem]) -> dict[str, Any]:
        self._maybe_fail()
        stored = self._gallery(gallery)
        replaced = sum(item.id in stored for item in items)
        stored.update((item.id, item) for item in items)
        return {"added": len(items) - replaced, "replaced": replaced, "items": len(stored)}

    async def delete_items(self, gallery: str, ids: Sequence[str]) -> int:
        self._maybe_fail()
        stored = self._gallery(gallery)
        return sum(stored.pop(id, None) is not None for id in ids)

    async def get_item(self, gallery: str, id: str) -> dict[str, Any]:
        self._maybe_fail()
        item = self._gallery(gallery).get(id)
        if item is None:
            raise ItemNotFound(f"gallery {gallery!r} has no item {id[:80]!r}")
        return {
            "id": item.id, "payload": item.payload, "text": item.text, "modalities": ["text"],
            "preview_version": _version(item),
        }  # fmt: skip

    async def get_preview(self, gallery: str, id: str) -> dict[str, Any]:
        await self.get_item(gallery, id)
        item = self._gallery(gallery)[id]
        if item.preview is None:
            raise PreviewNotFound(f"gallery {gallery!r} keeps no preview of item {id[:80]!r}")
        return {"version": _version(item), "content": item.preview}

    async def list_items(self, gallery: str, offset: int, limit: int) -> dict[str, Any]:
        self._maybe_fail()
        stored = self._gallery(gallery)
        page = list(stored)[offset : offset + limit]
        return {"items": [await self.get_item(gallery, id) for id in page], "total": len(stored)}

    def _stream(self, name: str) -> dict[str, Any]:
        if name not in self.streams:
            raise NotFound(f"there is no stream {name!r}", code="unknown_stream")
        return self.streams[name]

    async def set_canaries(self, gallery: str, canaries: Sequence[Canary]) -> dict[str, Any]:
        self._maybe_fail()
        await self.describe_gallery(gallery)
        self.canaries[gallery] = list(canaries)
        return await self.describe_canaries(gallery)

    async def describe_canaries(self, gallery: str) -> dict[str, Any]:
        self._maybe_fail()
        shown = [
            {"kind": canary.query.kind, "text": canary.query.text, "answer": canary.answer}
            for canary in self.canaries.get(gallery, [])
        ]
        return {"gallery": gallery, "canaries": shown}

    async def list_calibrations(self) -> list[dict[str, Any]]:
        self._maybe_fail()
        return [await self.describe_calibration(name) for name in self.calibrations]

    async def describe_calibration(self, name: str) -> dict[str, Any]:
        self._maybe_fail()
        if name not in self.calibrations:
            raise NotFound(f"there is no calibration {name!r}", code="unknown_calibration")
        return {
            "name": name, "digest": "0123456789abcdef", "status": "ready", "task": "retrieve", "latent": 16,
            "bytes": len(self.calibrations[name]), "samples": 100, "relative_error": {"text": 0.5},
        }  # fmt: skip

    async def put_calibration(self, name: str, data: bytes) -> dict[str, Any]:
        self._maybe_fail()
        if name in self.calibrations:
            raise Conflict(f"there is a calibration {name!r} already", code="calibration_exists")
        self.calibrations[name] = data
        return await self.describe_calibration(name)

    async def fit_calibration(
        self, name: str, gallery: str, latent: int | None = None, samples: int = 5000
    ) -> dict[str, Any]:
        self._maybe_fail()
        made_of = f"{len(self._gallery(gallery))} items, latent {latent}, samples {samples}"
        return await self.put_calibration(name, made_of.encode())

    async def export_calibration(self, name: str) -> bytes:
        await self.describe_calibration(name)
        return self.calibrations[name]

    async def delete_calibration(self, name: str) -> None:
        await self.describe_calibration(name)
        if name == "encoder":
            raise Conflict("it comes with the weights", code="calibration_in_use")
        del self.calibrations[name]

    async def list_streams(self) -> list[dict[str, Any]]:
        self._maybe_fail()
        return list(self.streams.values())

    async def latest_streams(self, most: int) -> dict[str, Any]:
        """Those configured last come first."""
        self.listed.append(most)
        self._maybe_fail()
        latest = list(reversed(self.streams.values()))[:most]
        streams = [dict(card) for card in latest]
        return {"total": len(self.streams), "streams": streams, "seconds": self.listing_takes_s}

    def waiting_by_stream(self) -> Mapping[str, int] | None:
        return self.waiting

    async def stream_history(self, name: str) -> dict[str, Any]:
        self._maybe_fail()
        self._stream(name)
        figures = ("modality_gap", "modality_gap_target", "uniformity", "entropy_nats", "source_likeness")
        columns: dict[str, Any] = {"at": [1.5], "batch": [1], "version": [1], "status": ["applied"]}
        columns |= {figure: [0.25] for figure in (*figures, "shift", "loss")}
        return {"stream": name, "tracks": {"demo/text->image": columns}}

    async def describe_stream(self, name: str) -> dict[str, Any]:
        self._maybe_fail()
        return self._stream(name)

    async def configure_stream(
        self,
        name: str,
        method: str | None = None,
        settings: Mapping[str, Any] | None = None,
        pinned: bool | None = None,
        guard: Mapping[str, Any] | None = None,
        *,
        task: str | None = None,
        calibration: str | None = None,
    ) -> dict[str, Any]:
        self._maybe_fail()
        if calibration:
            await self.describe_calibration(calibration)
        if task == "classify":
            card = self.streams.setdefault(
                name, {"name": name, "method": "tcr", "version": 0, "pinned": False, "calibrations": {}}
            )
            card["classify"] = {"method": method, "settings": dict(settings or {})}
            return card | {"reset": False, "tracks": []}
        card = {"name": name, "method": method or "tcr", "settings": dict(settings or {}), "version": 0}
        card["pinned"] = bool(pinned)
        card["calibrations"] = {"retrieve": {"name": calibration}} if calibration else {}
        self.streams[name] = card
        return card | {"reset": False, "tracks": []}

    async def reset_stream(self, name: str) -> dict[str, Any]:
        self._maybe_fail()
        self._stream(name)["version"] = 0
        return self._stream(name)

    async def delete_stream(self, name: str, *, force: bool = False) -> None:
        self._maybe_fail()
        self._stream(name)
        if any(stream == name for stream, _ in self.snapshots) and not force:
            raise Conflict(f"stream {name!r} has snapshots")
        del self.streams[name]

    def _card(self, stream: str, name: str) -> dict[str, Any]:
        if (stream, name) not in self.snapshots:
            raise NotFound(f"stream {stream!r} has no snapshot {name!r}", code="unknown_snapshot")
        return {"stream": stream, "name": name, "bytes": len(self.snapshots[stream, name])}

    async def create_snapshot(self, stream: str, name: str | None, note: str = "") -> dict[str, Any]:
        self._maybe_fail()
        self._stream(stream)
        name = name or f"v{len(self.snapshots)}"
        self.snapshots[stream, name] = b"state of " + stream.encode()
        return self._card(stream, name) | {"note": note}

    async def list_snapshots(self, stream: str) -> list[dict[str, Any]]:
        self._maybe_fail()
        return [self._card(*key) for key in self.snapshots if key[0] == stream]

    async def restore_snapshot(self, stream: str, name: str) -> dict[str, Any]:
        self._maybe_fail()
        self._card(stream, name)
        return self._stream(stream)

    async def compare_snapshots(self, stream: str, first: str, second: str | None = None) -> dict[str, Any]:
        self._maybe_fail()
        sides = [self._side(stream, first), self._side(stream, second)]
        counts = {"batches": 1, "applied": 1, "skipped": 0, "undone": 0, "memory_size": 0}
        counts |= {"drift": None, "losses": None, "distance_from_source": 0.5}
        track = {
            "in": "both",
            "first": {"version": 1, **counts},
            "second": {"version": 2, **counts},
            "distance": 0.125,
            "parameters": [{"name": "norm.weight", "size": 4, "distance": 0.125}],
        }
        return {
            "stream": stream, "first": sides[0], "second": sides[1], "tracks": {"demo/text->image": track}
        }  # fmt: skip

    def _side(self, stream: str, snapshot: str | None) -> dict[str, Any]:
        if snapshot is None:
            self._stream(stream)
        else:
            self._card(stream, snapshot)
        return {
            "name": snapshot, "created_at": 1.5, "version": 1 if snapshot else 2, "batches": 1,
            "method": "tcr", "settings": {}, "classify": None, "calibrations": {},
        }  # fmt: skip

    async def delete_snapshot(self, stream: str, name: str) -> None:
        self._maybe_fail()
        self._card(stream, name)
        del self.snapshots[stream, name]

    async def export_snapshot(self, stream: str, name: str) -> bytes:
        self._maybe_fail()
        self._card(stream, name)
        return self.snapshots[stream, name]

    async def import_snapshot(self, stream: str, name: str | None, data: bytes) -> dict[str, Any]:
        self._maybe_fail()
        self.snapshots[stream, name or "imported"] = data
        return self._card(stream, name or "imported")


def _version(item: NewItem) -> str:
    return "" if item.preview is None else version_of(item.preview)


def _completeness(query: Query) -> Completeness | None:
    if query.embedding is not None:
        return None
    has = {"image": query.pixels is not None, "text": query.text is not None}
    return Completeness({name: Part(there, 1.0 if there else 0.4) for name, there in has.items()}, 0.25)


def _parts(request: RetrieveRequest) -> tuple[AdaptationPart, ...]:
    by_kind: dict[QueryKind, list[int]] = {}
    for i, query in enumerate(request.queries):
        by_kind.setdefault(query.kind, []).append(i)
    return tuple(
        AdaptationPart(
            tuple(indices),
            Adaptation("tcr", "async", f"{kind}->text", 3, "queued", "", len(indices)),
        )
        for kind, indices in by_kind.items()
    )


def _sample_answer(
    sample: Sample, labels: Sequence[str], number: int, request: ClassifyRequest
) -> SampleAnswer:
    first = number % len(labels)
    order = [first, *(i for i in range(len(labels)) if i != first)]
    scores = [LabelScore(labels[i], i, 0.5 / 2**place) for place, i in enumerate(order)]
    missing = () if request.labels else sample.missing
    answer = SampleAnswer(tuple(scores[: request.top]), 0.25, missing)
    if not missing:
        return answer
    parts = {name: Part(True, 1.0) for name in ("audio", "video") if name not in missing}
    parts |= {name: Part(False, 0.4) for name in (*missing, "fused")}
    return replace(answer, completed_by="imputation", completeness=Completeness(parts, 0.75))


def _classify_parts(request: ClassifyRequest) -> tuple[AdaptationPart, ...]:
    by_direction: dict[str, list[int]] = {}
    for i, sample in enumerate(request.samples):
        zero_shot = request.labels is not None
        direction = f"{sample.zero_shot_kind}->text" if zero_shot else "audio+video->label"
        by_direction.setdefault(direction, []).append(i)
    mode: Any = "async" if request.adapt == "auto" else request.adapt
    return tuple(
        AdaptationPart(tuple(places), Adaptation("brimpr", mode, direction, 3, "queued", "", len(places)))
        for direction, places in by_direction.items()
    )


def kinds(queries: Sequence[Query]) -> list[str]:
    return [query.kind for query in queries]
