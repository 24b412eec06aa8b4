"""The one object that the routes talk to: requests in, answers out.

It splits requests into jobs, submits them and joins the answers. It runs on the event loop and computes
nothing itself; encoder, galleries and stream states belong to a worker's thread (service/backend.py), in this
process or, with Redis, in others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import structlog

from encoders.preprocessing import ImageSpec
from service import requests
from service.catalogue import Catalogue, ClassifierCard, LocalCatalogue
from service.errors import NotFound, QueueUnreachable
from service.messages import (
    Canary,
    ClassifyAnswer,
    ClassifyRequest,
    ControlJob,
    Mode,
    NewItem,
    RetrieveAnswer,
    RetrieveRequest,
    Task,
)
from service.metrics import Metrics
from service.queue.base import Submitter
from service.requests import Admission, Placed
from service.settings import Settings

if TYPE_CHECKING:  # they load torch, which a process without a model does not need
    from encoders.base import Encoder
    from service.backend import Backend
    from service.redis.deployment import Deployment
    from service.tasks import Classifier

log = structlog.get_logger(__name__)

T = TypeVar("T")

REDIS_GONE = "Redis does not answer: the source model answers, nothing is learned"


class Engine:
    """The front of a deployment. Make it with `Engine.start`.

    backend     the worker of this process, if it has one
    deployment  the connection to Redis, if there is one
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics,
        submitter: Submitter,
        catalogue: Catalogue,
        backend: Backend | None,
        deployment: Deployment | None = None,
    ) -> None:
        self._settings = settings
        self._submitter = submitter
        self._catalogue = catalogue
        self._backend = backend
        self._deployment = deployment
        self.metrics = metrics
        self._why_not_ready = "starting"
        metrics.watch_queue(submitter.depth, capacity_items=settings.queue_capacity_items)

    # -- life ---------------------------------------------------------------------------------------

    @classmethod
    async def start(
        cls,
        settings: Settings,
        *,
        encoder: Encoder | None = None,
        classifier: Classifier | None = None,
        metrics: Metrics | None = None,
    ) -> Engine:
        """Load what the role needs, connect, start the worker, answer one query.

        Raises EncoderError, ServiceError, OSError: nothing is left running then.
        """
        metrics = metrics or Metrics()
        if settings.redis_url is None:
            engine = await cls._embedded(settings, encoder, classifier, metrics)
        else:
            engine = await cls._with_redis(settings, encoder, classifier, metrics)
        try:
            await engine._warm_up()
        except BaseException:
            await engine.close()
            raise
        engine._why_not_ready = ""
        metrics.set_ready(engine.ready)
        return engine

    @classmethod
    async def _embedded(
        cls, settings: Settings, encoder: Encoder | None, classifier: Classifier | None, metrics: Metrics
    ) -> Engine:
        from service.backend import Backend
        from service.queue.memory import MemoryQueue

        queue = MemoryQueue(capacity_items=settings.queue_capacity_items)
        backend = await _in_thread(
            partial(Backend, settings, metrics=metrics, encoder=encoder, classifier=classifier, queue=queue)
        )
        backend.start()
        catalogue = LocalCatalogue(backend.card(), backend.galleries)
        return cls(settings, metrics=metrics, submitter=queue, catalogue=catalogue, backend=backend)

    @classmethod
    async def _with_redis(
        cls, settings: Settings, encoder: Encoder | None, classifier: Classifier | None, metrics: Metrics
    ) -> Engine:
        from service.redis.deployment import Deployment

        deployment = await Deployment.open(settings, metrics=metrics)
        try:
            backend = None
            if settings.role != "api":
                backend = await _in_thread(partial(deployment.start_backend, encoder, classifier))
            return cls(
                settings,
                metrics=metrics,
                submitter=deployment.submitter,
                catalogue=deployment.catalogue,
                backend=backend,
                deployment=deployment,
            )
        except BaseException:
            await deployment.close()
            raise

    async def close(self) -> None:
        """Finish what was accepted (within the grace), store every state, leave."""
        self._why_not_ready = "shutting down"
        self.metrics.set_ready(False)
        if self._backend is not None:
            await _in_thread(self._backend.stop)
        if self._deployment is not None:
            await self._deployment.close()

    async def _warm_up(self) -> None:
        """One query through the model, so that the first client does not wait for lazy parts."""
        if self._backend is None:
            return
        await _in_thread(self._backend.warm_up)

    @property
    def ready(self) -> bool:
        return not self.why_not_ready

    @property
    def why_not_ready(self) -> str:
        if self._why_not_ready or self._deployment is None:
            return self._why_not_ready
        return self._deployment.why_not_ready

    # -- what the routes may know -------------------------------------------------------------------

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec.from_dict(self._catalogue.encoder.image_spec)

    @property
    def dimension(self) -> int:
        return self._catalogue.encoder.dimension

    @property
    def classifier(self) -> ClassifierCard | None:
        """None: this deployment has no classifier."""
        plain = self._catalogue.encoder.classifier
        return None if plain is None else ClassifierCard.from_plain(plain)

    def describe_models(self) -> dict[str, Any]:
        described = {
            **self._catalogue.encoder.models,
            "role": self._settings.role,
            "queue": {"items": self._submitter.depth(), "capacity": self._settings.queue_capacity_items},
        }
        if self._backend is not None:
            described["worker"] = self._backend.worker.stats()
            described["streams_in_memory"] = self._backend.streams.count()
        if self._deployment is not None:
            described["redis"] = self._deployment.describe()
        return described

    # -- queries ------------------------------------------------------------------------------------

    async def retrieve(self, request: RetrieveRequest) -> RetrieveAnswer:
        """Answer every query of the request, in its order.

        Raises GalleryNotFound, BadRequest, QueueFull, DeadlineExceeded, and what gallery or encoder raise.
        """
        admission = self._admission(request, len(request.queries))
        card = await self._catalogue.gallery(request.gallery or self._settings.default_gallery)
        placed = requests.retrieval_jobs(request, card, dimension=self.dimension, admission=admission)
        return requests.retrieved(request, placed, await self._answers(placed), admission.accepted_at)

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Answer every sample of the request, in its order.

        Raises NotFound (`no_classifier`), UnsupportedModality, BadRequest, Conflict (`too_many_label_sets`),
        QueueFull, DeadlineExceeded, and what the model raises.
        """
        admission = self._admission(request, len(request.samples))
        classifier = self.classifier
        if request.labels is not None:
            model = str(self._catalogue.encoder.models["encoder"]["name"])
        elif classifier is not None:
            model = classifier.name
        else:
            raise NotFound("this server has no classifier; give `labels`", code="no_classifier")
        placed = requests.classify_jobs(request, classifier, image_spec=self.image_spec, admission=admission)
        answers = await self._answers(placed)
        return requests.classified(request, placed, answers, admission.accepted_at, model=model)

    def _admission(self, request: RetrieveRequest | ClassifyRequest, items: int) -> Admission:
        settings = self._settings
        mode: Mode | Literal["auto"] = request.adapt if request.adapt != "auto" else settings.mode
        if mode == "auto":
            mode = "sync" if items >= settings.sync_from_items else "async"
        timeout_s = settings.request_timeout_s
        if request.deadline_ms is not None:
            timeout_s = min(timeout_s, request.deadline_ms / 1e3)
        now = time.monotonic()
        return Admission(mode, settings.batch_size, now, now + timeout_s, request.trace)

    async def _answers(self, placed: Sequence[Placed]) -> list[Any]:
        jobs = [one.job for one in placed]
        first = jobs[0]
        assert first.deadline_at is not None
        timeout_s = first.deadline_at - first.accepted_at
        try:
            return await self._submitter.ask(jobs, timeout_s=timeout_s)
        except QueueUnreachable:
            if self._deployment is None or self._backend is None:
                raise
        frozen = [replace(job, mode="off", frozen_because=REDIS_GONE) for job in jobs]
        return await self._deployment.ask_locally(frozen, timeout_s=timeout_s)

    # -- galleries ----------------------------------------------------------------------------------

    async def list_galleries(self) -> list[dict[str, Any]]:
        return await self._do("list_galleries")

    async def describe_gallery(self, name: str) -> dict[str, Any]:
        return await self._do("describe_gallery", gallery=name, name=name)

    async def create_gallery(
        self, name: str, index: Mapping[str, Any] | None, calibration: str | None = None
    ) -> dict[str, Any]:
        arguments = {"name": name, "index": index, "calibration": calibration}
        return await self._ask(ControlJob("create_gallery", arguments, gallery=name))

    async def delete_gallery(self, name: str) -> None:
        await self._do("delete_gallery", gallery=name, name=name)

    async def upsert_items(self, gallery: str, items: Sequence[NewItem]) -> dict[str, Any]:
        await self._catalogue.gallery(gallery)  # before much is sent
        arguments = {"name": gallery, "items": tuple(items)}
        return await self._ask(ControlJob("upsert_items", arguments, gallery=gallery, items=len(items)))

    async def delete_items(self, gallery: str, ids: Sequence[str]) -> int:
        return await self._do("delete_items", gallery=gallery, name=gallery, ids=tuple(ids))

    async def get_item(self, gallery: str, id: str) -> dict[str, Any]:
        return await self._do("get_item", gallery=gallery, name=gallery, id=id)

    async def list_items(self, gallery: str, offset: int, limit: int) -> dict[str, Any]:
        return await self._do("list_items", gallery=gallery, name=gallery, offset=offset, limit=limit)

    async def get_preview(self, gallery: str, id: str) -> dict[str, Any]:
        """{"version": str, "content": WebP bytes}."""
        return await self._do("get_preview", gallery=gallery, name=gallery, id=id)

    async def set_canaries(self, gallery: str, canaries: Sequence[Canary]) -> dict[str, Any]:
        return await self._do("set_canaries", gallery=gallery, name=gallery, canaries=tuple(canaries))

    async def describe_canaries(self, gallery: str) -> dict[str, Any]:
        return await self._do("describe_canaries", gallery=gallery, name=gallery)

    # -- calibrations -------------------------------------------------------------------------------

    async def list_calibrations(self) -> list[dict[str, Any]]:
        return await self._do("list_calibrations")

    async def describe_calibration(self, name: str) -> dict[str, Any]:
        return await self._do("describe_calibration", name=name)

    async def put_calibration(self, name: str, data: bytes) -> dict[str, Any]:
        return await self._do("put_calibration", name=name, data=data)

    async def fit_calibration(
        self, name: str, gallery: str, latent: int | None = None, samples: int = 5000
    ) -> dict[str, Any]:
        arguments = {"name": name, "gallery": gallery, "latent": latent, "samples": samples}
        return await self._ask(ControlJob("fit_calibration", arguments))

    async def export_calibration(self, name: str) -> bytes:
        return await self._do("export_calibration", name=name)

    async def delete_calibration(self, name: str) -> None:
        await self._do("delete_calibration", name=name)

    # -- streams ------------------------------------------------------------------------------------

    async def list_streams(self) -> list[dict[str, Any]]:
        return await self._do("list_streams")

    async def latest_streams(self, most: int) -> dict[str, Any]:
        """The `most` streams that were used last, and how many there are: {"total", "streams", "seconds"}.

        `seconds` is what it took of a worker's time.
        """
        return await self._do("latest_streams", most=most)

    def waiting_by_stream(self) -> Mapping[str, int] | None:
        """Queries that wait in the queue, by stream; None: this process does not know."""
        return self._submitter.waiting_by_stream()

    async def stream_history(self, name: str) -> dict[str, Any]:
        return await self._do("stream_history", order=name, name=name)

    async def describe_stream(self, name: str) -> dict[str, Any]:
        return await self._do("describe_stream", order=name, name=name)

    async def configure_stream(
        self,
        name: str,
        method: str | None = None,
        settings: Mapping[str, Any] | None = None,
        pinned: bool | None = None,
        guard: Mapping[str, Any] | None = None,
        task: Task | None = None,
        calibration: str | None = None,
    ) -> dict[str, Any]:
        """What is None stays as it is. Without `task` the method says which; without both: retrieval.

        A calibration says itself which task it is for; an empty name detaches.
        """
        changes: dict[str, Any] = {
            "method": method,
            "settings": settings,
            "pinned": pinned,
            "guard": guard,
            "task": task,
            "calibration": calibration,
        }
        return await self._do("configure_stream", order=name, name=name, **changes)

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

    async def compare_snapshots(self, stream: str, first: str, second: str | None = None) -> dict[str, Any]:
        """Without `second`: with the stream as it is."""
        arguments = {"stream": stream, "first": first, "second": second}
        return await self._do("compare_snapshots", order=stream, **arguments)

    async def delete_snapshot(self, stream: str, name: str) -> None:
        await self._do("delete_snapshot", order=stream, stream=stream, name=name)

    async def export_snapshot(self, stream: str, name: str) -> bytes:
        return await self._do("export_snapshot", order=stream, stream=stream, name=name)

    async def import_snapshot(self, stream: str, name: str | None, data: bytes) -> dict[str, Any]:
        return await self._do("import_snapshot", order=stream, stream=stream, name=name, data=data)

    # -- control jobs -------------------------------------------------------------------------------

    async def _do(
        self, action: str, *, order: str | None = None, gallery: str | None = None, **arguments: Any
    ) -> Any:
        """Let a worker do `action`, in order with the queries of stream `order` or the jobs of `gallery`."""
        return await self._ask(ControlJob(action, arguments, stream=order, gallery=gallery))

    async def _ask(self, job: ControlJob) -> Any:
        timeout_s = self._settings.request_timeout_s
        timed = replace(job, deadline_at=time.monotonic() + timeout_s)
        (answer,) = await self._submitter.ask([timed], timeout_s=timeout_s)
        return answer


@asynccontextmanager
async def running_engine(settings: Settings, **parts: Any) -> AsyncIterator[Engine]:
    """An engine for the length of a block; closed in any case."""
    engine = await Engine.start(settings, **parts)
    try:
        yield engine
    finally:
        await engine.close()


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
