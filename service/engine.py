"""The one object that the routes talk to: requests in, answers out.

It splits requests into jobs, puts them into the queue and joins the answers. It runs on the event loop and
computes nothing itself; encoder, galleries and stream states belong to the worker's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from encoders.base import Encoder
from encoders.preprocessing import ImageSpec
from index.base import GalleryNotFound
from index.filters import compile_filter
from index.store import GalleryStore
from service.errors import BadRequest, Conflict, DeadlineExceeded
from service.galleries import Galleries, GalleryCard
from service.messages import (
    AdaptationPart,
    AskedTarget,
    ControlJob,
    Job,
    JobAnswer,
    Mode,
    NewItem,
    Query,
    QueryKind,
    RetrieveAnswer,
    RetrieveJob,
    RetrieveRequest,
    Target,
    Timings,
    TrackKey,
)
from service.metrics import Metrics
from service.queue.base import JobQueue
from service.queue.memory import MemoryQueue
from service.settings import Settings
from service.snapshots import SnapshotStore
from service.streams import StreamStore
from service.worker import Worker

log = structlog.get_logger(__name__)

_DEMO_CHUNK = 64


class Engine:
    """One encoder, its galleries and streams, behind a queue. Make it with `Engine.start`."""

    def __init__(
        self,
        *,
        settings: Settings,
        encoder: Encoder,
        galleries: Galleries,
        streams: StreamStore,
        snapshots: SnapshotStore,
        queue: JobQueue,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._encoder = encoder
        self._galleries = galleries
        self._streams = streams
        self._snapshots = snapshots
        self._queue = queue
        self.metrics = metrics
        self.ready = False
        self.why_not_ready = "starting"
        metrics.watch_queue(queue.depth)
        self._worker = Worker(
            encoder=encoder,
            galleries=galleries,
            streams=streams,
            queue=queue,
            settings=settings,
            metrics=metrics,
            actions=self._actions(),
        )

    # -- life ---------------------------------------------------------------------------------------

    @classmethod
    async def start(
        cls, settings: Settings, *, encoder: Encoder | None = None, metrics: Metrics | None = None
    ) -> Engine:
        """Load the encoder and all that lies in the data folder, start the worker, answer one query.

        Raises EncoderError, ServiceError, OSError: nothing is left running then.
        """
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(None, partial(_build, cls, settings, encoder, metrics))
        engine._worker.start()
        try:
            await engine._warm_up()
        except BaseException:
            await engine.close()
            raise
        engine.ready = True
        engine.why_not_ready = ""
        metrics_of = engine.metrics
        metrics_of.set_ready(True)
        return engine

    async def close(self) -> None:
        """Finish what was accepted (within the grace), save every state."""
        self.ready = False
        self.why_not_ready = "shutting down"
        self.metrics.set_ready(False)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, partial(self._worker.stop, grace_s=self._settings.shutdown_grace_s))
        self._galleries.close()

    async def _warm_up(self) -> None:
        await self._make_demo_gallery()
        settings = self._settings
        if (
            settings.default_gallery in self._galleries.cards
            and self._galleries.cards[settings.default_gallery].targets
        ):
            await self.retrieve(RetrieveRequest(queries=(Query(text="warm up"),), k=1, adapt="off"))

    async def _make_demo_gallery(self) -> None:
        """Fill the default gallery with demo scenes, if this is the demo encoder and nothing is there yet."""
        settings = self._settings
        wanted = settings.demo_gallery_items
        if settings.encoder != "demo" or not wanted or self._galleries.exists(settings.default_gallery):
            return
        from service.demo_gallery import demo_items

        self.why_not_ready = "building the demo gallery"
        await self.create_gallery(settings.default_gallery, None)
        loop = asyncio.get_running_loop()
        items = await loop.run_in_executor(None, demo_items, wanted, self._encoder)
        for start in range(0, len(items), _DEMO_CHUNK):
            await self.upsert_items(settings.default_gallery, items[start : start + _DEMO_CHUNK])

    # -- what the routes may know -------------------------------------------------------------------

    @property
    def image_spec(self) -> ImageSpec:
        return self._encoder.image_spec

    @property
    def dimension(self) -> int:
        return self._encoder.dimension

    def describe_models(self) -> dict[str, Any]:
        from adapters.registry import METHODS

        encoder = self._encoder
        return {
            "encoder": {
                "name": encoder.name,
                "fingerprint": encoder.fingerprint,
                "dimension": encoder.dimension,
                "dtype": encoder.dtype_name,
                "device": str(encoder.device),
                "temperature": encoder.temperature,
                "image_size": [encoder.image_spec.height, encoder.image_spec.width],
                "adaptable_parameters": {
                    modality: sum(value.numel() for value in tower.parameters.values())
                    for modality, tower in encoder.towers.items()
                },
            },
            "methods": {
                name: {
                    "summary": method.summary,
                    "settings": method.settings.model_json_schema()["properties"],
                }
                if method.settings.model_fields
                else {"summary": method.summary, "settings": {}}
                for name, method in METHODS.items()
            },
            "default_method": self._settings.default_method,
            "default_gallery": self._settings.default_gallery,
            "queue": {"items": self._queue.depth(), "capacity": self._settings.queue_capacity_items},
            "worker": self._worker.stats(),
            "streams_in_memory": self._streams.count(),
        }

    # -- queries ------------------------------------------------------------------------------------

    async def retrieve(self, request: RetrieveRequest) -> RetrieveAnswer:
        """Answer every query of the request, in its order.

        Raises GalleryNotFound, BadRequest, QueueFull, DeadlineExceeded, and what gallery or encoder raise.
        """
        accepted_at = time.monotonic()
        jobs, places = self._jobs(request, accepted_at)
        deadline_s = jobs[0].deadline_at - accepted_at if jobs[0].deadline_at is not None else None
        answers: list[JobAnswer] = await self._answers(jobs, timeout_s=deadline_s)
        return _joined(request, jobs, places, answers, accepted_at)

    def _jobs(
        self, request: RetrieveRequest, accepted_at: float
    ) -> tuple[list[RetrieveJob], list[tuple[int, ...]]]:
        """One job for each kind of query and batch; and which queries of the request it holds."""
        card = self._card(request.gallery or self._settings.default_gallery)
        if request.filter is not None:
            compile_filter(request.filter)  # here, where only this request can fail by it
        mode = self._mode(request)
        timeout_s = self._settings.request_timeout_s
        if request.deadline_ms is not None:
            timeout_s = min(timeout_s, request.deadline_ms / 1e3)
        by_kind: dict[QueryKind, list[int]] = {}
        for position, query in enumerate(request.queries):
            self._check(query, position)
            by_kind.setdefault(query.kind, []).append(position)
        jobs: list[RetrieveJob] = []
        places: list[tuple[int, ...]] = []
        for kind, positions in by_kind.items():
            key = TrackKey(request.stream, card.name, kind, _target(request.target, kind, card))
            for start in range(0, len(positions), self._settings.batch_size):
                chunk = tuple(positions[start : start + self._settings.batch_size])
                jobs.append(
                    RetrieveJob(
                        key=key,
                        mode=mode,
                        queries=tuple(request.queries[position] for position in chunk),
                        k=request.k,
                        filter=request.filter,
                        accepted_at=accepted_at,
                        deadline_at=accepted_at + timeout_s,
                    )
                )
                places.append(chunk)
        return jobs, places

    def _card(self, name: str) -> GalleryCard:
        card = self._galleries.cards.get(name)
        if card is None:
            self._galleries.usable(name)  # raises why: unknown, or refused
            raise GalleryNotFound(f"there is no gallery {name!r}")
        return card

    def _mode(self, request: RetrieveRequest) -> Mode:
        asked = request.adapt if request.adapt != "auto" else self._settings.mode
        if asked == "auto":
            return "sync" if len(request.queries) >= self._settings.sync_from_items else "async"
        return asked

    def _check(self, query: Query, position: int) -> None:
        if query.embedding is None:
            return
        vector = query.embedding
        if vector.shape != (self.dimension,):
            raise BadRequest(
                f"query {position}: the embedding has {vector.size} numbers, "
                f"this encoder's have {self.dimension}",
                code="bad_embedding",
            )
        if not np.isfinite(vector).all() or not np.any(vector):
            raise BadRequest(f"query {position}: the embedding is zero or not finite", code="bad_embedding")

    async def _answers(self, jobs: Sequence[Job], *, timeout_s: float | None) -> list[Any]:
        """Put the jobs, wait for all. When the caller leaves, what is not yet taken is withdrawn."""
        futures = self._queue.put(jobs)
        try:
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:.1f} s") from None
        finally:
            for future in futures:
                _withdraw(future)

    # -- galleries ----------------------------------------------------------------------------------

    async def list_galleries(self) -> list[dict[str, Any]]:
        return await self._do("list_galleries")

    async def describe_gallery(self, name: str) -> dict[str, Any]:
        return await self._do("describe_gallery", name=name)

    async def create_gallery(self, name: str, index: Mapping[str, Any] | None) -> dict[str, Any]:
        return await self._do("create_gallery", name=name, index=index)

    async def delete_gallery(self, name: str) -> None:
        await self._do("delete_gallery", name=name)

    async def upsert_items(self, gallery: str, items: Sequence[NewItem]) -> dict[str, Any]:
        self._card(gallery)
        return await self._do("upsert_items", items=len(items), name=gallery, new_items=tuple(items))

    async def delete_items(self, gallery: str, ids: Sequence[str]) -> int:
        return await self._do("delete_items", name=gallery, ids=tuple(ids))

    async def get_item(self, gallery: str, id: str) -> dict[str, Any]:
        return await self._do("get_item", name=gallery, id=id)

    async def list_items(self, gallery: str, offset: int, limit: int) -> dict[str, Any]:
        return await self._do("list_items", name=gallery, offset=offset, limit=limit)

    # -- streams ------------------------------------------------------------------------------------

    async def list_streams(self) -> list[dict[str, Any]]:
        return await self._do("list_streams")

    async def describe_stream(self, name: str) -> dict[str, Any]:
        return await self._do("describe_stream", order=name, name=name)

    async def configure_stream(
        self, name: str, method: str | None, settings: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        return await self._do("configure_stream", order=name, name=name, method=method, settings=settings)

    async def reset_stream(self, name: str) -> dict[str, Any]:
        return await self._do("reset_stream", order=name, name=name)

    async def delete_stream(self, name: str, *, force: bool = False) -> None:
        await self._do("delete_stream", order=name, name=name, force=force)

    # -- snapshots ----------------------------------------------------------------------------------

    async def create_snapshot(self, stream: str, name: str | None, note: str = "") -> dict[str, Any]:
        return await self._do("create_snapshot", order=stream, stream=stream, name=name, note=note)

    async def list_snapshots(self, stream: str) -> list[dict[str, Any]]:
        return await self._do("list_snapshots", order=stream, stream=stream)

    async def restore_snapshot(self, stream: str, name: str) -> dict[str, Any]:
        return await self._do("restore_snapshot", order=stream, stream=stream, name=name)

    async def delete_snapshot(self, stream: str, name: str) -> None:
        await self._do("delete_snapshot", order=stream, stream=stream, name=name)

    async def export_snapshot(self, stream: str, name: str) -> bytes:
        return await self._do("export_snapshot", order=stream, stream=stream, name=name)

    async def import_snapshot(self, stream: str, name: str | None, data: bytes) -> dict[str, Any]:
        return await self._do("import_snapshot", order=stream, stream=stream, name=name, data=data)

    # -- control jobs -------------------------------------------------------------------------------

    async def _do(self, action: str, *, order: str | None = None, items: int = 0, **arguments: Any) -> Any:
        """Let the worker do `action`, in order with the queries of stream `order`."""
        if "new_items" in arguments:
            arguments["items"] = arguments.pop("new_items")
        job = ControlJob(action=action, arguments=arguments, stream=order, items=items)
        (answer,) = await self._answers([job], timeout_s=self._settings.request_timeout_s)
        return answer

    def _actions(self) -> dict[str, Any]:
        """What a control job may ask of the worker. Runs in the worker's thread."""
        galleries, streams, snapshots = self._galleries, self._streams, self._snapshots

        def configure_stream(
            name: str, method: str | None, settings: Mapping[str, Any] | None
        ) -> dict[str, Any]:
            stream, was_reset = streams.configure(name, method, settings)
            return stream.describe() | {"reset": was_reset}

        def delete_stream(name: str, force: bool) -> None:
            streams.find(name)
            if snapshots.list(name) and not force:
                raise Conflict(f"stream {name!r} has snapshots; delete them, or ask with force=true")
            snapshots.delete_all(name)
            streams.delete(name)

        def list_snapshots(stream: str) -> list[dict[str, Any]]:
            found = snapshots.list(stream)
            if not found:
                streams.find(stream)
            return found

        def restore_snapshot(stream: str, name: str) -> dict[str, Any]:
            header, tracks = snapshots.read(stream, name)
            return streams.restore(
                stream, method=header["method"], settings=header["settings"], tracks=tracks
            ).describe()

        return {
            "list_galleries": galleries.list,
            "describe_gallery": galleries.describe,
            "create_gallery": galleries.create,
            "delete_gallery": galleries.delete,
            "upsert_items": galleries.upsert,
            "delete_items": galleries.delete_items,
            "get_item": galleries.get_item,
            "list_items": galleries.list_items,
            "list_streams": streams.describe_all,
            "describe_stream": lambda name: streams.find(name).describe(),
            "configure_stream": configure_stream,
            "reset_stream": lambda name: streams.reset(name).describe(),
            "delete_stream": delete_stream,
            "create_snapshot": lambda stream, name, note: snapshots.create(streams.find(stream), name, note),
            "list_snapshots": list_snapshots,
            "restore_snapshot": restore_snapshot,
            "delete_snapshot": snapshots.delete,
            "export_snapshot": snapshots.export,
            "import_snapshot": snapshots.import_,
        }


@asynccontextmanager
async def running_engine(settings: Settings, **parts: Any) -> AsyncIterator[Engine]:
    """An engine for the length of a block; closed in any case."""
    engine = await Engine.start(settings, **parts)
    try:
        yield engine
    finally:
        await engine.close()


def _build(cls: type[Engine], settings: Settings, encoder: Encoder | None, metrics: Metrics | None) -> Engine:
    """Everything that blocks: read the weights, open the galleries. Runs in a thread."""
    import torch

    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    encoder = encoder or _load_encoder(settings)
    folder = Path(settings.data_folder)
    galleries = Galleries(
        GalleryStore(folder / "galleries", device=str(encoder.device)),
        encoder,
        default_kind=settings.index,
        batch_size=settings.batch_size,
    )
    streams = StreamStore(
        encoder=encoder,
        folder=folder / "streams",
        default_method=settings.default_method,
        default_settings=settings.default_method_settings,
        max_in_memory=settings.max_streams,
    )
    metrics = metrics or Metrics()
    metrics.watch_streams(streams.count)
    return cls(
        settings=settings,
        encoder=encoder,
        galleries=galleries,
        streams=streams,
        snapshots=SnapshotStore(encoder=encoder, folder=folder / "snapshots"),
        queue=MemoryQueue(capacity_items=settings.queue_capacity_items),
        metrics=metrics,
    )


def _load_encoder(settings: Settings) -> Encoder:
    from encoders.load import load_encoder

    name = settings.encoder
    if name == "demo":
        from demo import demo_encoder_path

        name = str(demo_encoder_path())
    return load_encoder(name, device=settings.device, dtype=settings.dtype)


def _target(asked: AskedTarget, kind: QueryKind, card: GalleryCard) -> Target:
    """`auto`: the other modality where the gallery has it, else the query's own; for embeddings, image."""
    if asked != "auto":
        if asked not in card.targets:
            raise BadRequest(
                f"gallery {card.name!r} has no {asked} vectors; "
                f"it has {', '.join(card.targets) or 'no items'}",
                code="empty_target",
            )
        return asked
    preferred: tuple[Target, ...] = ("text", "image") if kind == "image" else ("image", "text")
    return next((target for target in preferred if target in card.targets), preferred[0])


def _withdraw(future: Future[Any]) -> None:
    """Cancel what the worker has not taken; read the error of what failed, so that none is reported lost."""
    if not future.cancel() and future.done() and not future.cancelled():
        future.exception()


def _joined(
    request: RetrieveRequest,
    jobs: Sequence[RetrieveJob],
    places: Sequence[tuple[int, ...]],
    answers: Sequence[JobAnswer],
    accepted_at: float,
) -> RetrieveAnswer:
    """The answers of the request's jobs in query order."""
    hits: list[tuple[Any, ...]] = [()] * len(request.queries)
    parts: dict[QueryKind, AdaptationPart] = {}
    for job, place, answer in zip(jobs, places, answers, strict=True):
        for position, found in zip(place, answer.hits, strict=True):
            hits[position] = found
        kind = job.key.query_kind
        before = parts[kind].query_indices if kind in parts else ()
        # A request of several batches reports the last one's: its state has learned from those before.
        parts[kind] = AdaptationPart((*before, *place), answer.adaptation)
    each = [answer.timings for answer in answers]
    timings = Timings(
        wait_ms=each[0].wait_ms,
        encode_ms=sum(timing.encode_ms for timing in each),
        search_ms=sum(timing.search_ms for timing in each),
        adapt_ms=sum(timing.adapt_ms for timing in each),
        total_ms=(time.monotonic() - accepted_at) * 1e3,
    )
    return RetrieveAnswer(
        hits=tuple(hits),
        parts=tuple(parts.values()),
        timings=timings,
        gallery=jobs[0].key.gallery,
        stream=request.stream,
    )
