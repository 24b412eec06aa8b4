"""What runs where a model is: encoder, galleries, stream states and the worker that owns them.

A process of role `worker` is this and a few probes; role `all` has an `Engine` in front of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from adapters.completion import Completion
from adapters.registry import METHODS_OF, PAPER, PRESETS, Task
from encoders.base import Encoder
from index.base import GalleryCorrupt, GalleryNotFound
from index.store import GalleryStore
from service import classification
from service.batches.make import Batches
from service.calibrations import Calibrations
from service.canaries import CanaryStore
from service.catalogue import EncoderCard
from service.comparison import Side, compare
from service.demo_gallery import fill_demo_gallery
from service.errors import BadRequest, Conflict, NotFound
from service.galleries import Galleries
from service.messages import ControlJob
from service.metrics import Metrics
from service.pipeline import StageTimes
from service.queue.base import JobQueue
from service.settings import Settings
from service.snapshots import SnapshotStore
from service.states import FileStates, StateStore
from service.streams import StreamStore
from service.tasks import Classifier, Tasks
from service.worker import Action, Worker

log = structlog.get_logger(__name__)

CALIBRATION_FILE = "calibration.safetensors"
"""Beside a model's weights: what `attune calibrate` measured of it."""


class Backend:
    """The models, galleries and streams, and the worker. Making one blocks: it reads the weights."""

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics,
        encoder: Encoder | None = None,
        classifier: Classifier | None = None,
        queue: JobQueue,
        states: StateStore | None = None,
        alone: Callable[[str], AbstractContextManager[Any]] = lambda name: nullcontext(),
    ) -> None:
        """`alone(name)` is held while something is made that other processes might make too."""
        import torch

        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        folder = Path(settings.data_folder)
        self.settings = settings
        self.metrics = metrics
        self.encoder = encoder or load_encoder(settings)
        self.classifier = classifier or load_classifier(settings)
        if self.classifier is not None:
            classification.check_missing(settings.classify_missing, self.classifier)
        # A wrong default fails here, not at a query.
        self.tasks = Tasks(
            self.encoder,
            self.classifier,
            defaults={
                "retrieve": (settings.default_method, settings.default_method_settings),
                "classify": (settings.classify_method, settings.classify_method_settings),
            },
        )
        self.queue = queue
        self.calibrations = Calibrations(
            folder / "calibrations",
            encoder=self.encoder,
            classifier=self.classifier,
            built_in=_built_in_calibrations(settings),
        )
        self._gallery_store = GalleryStore(folder / "galleries", device=str(self.encoder.device))
        self.galleries = Galleries(
            self._gallery_store,
            self.encoder,
            default_kind=settings.index,
            batch_size=settings.batch_size,
            marks=lambda name: self.calibrations.mark(name, "retrieve"),
            completions=self.calibrations.completion,
        )
        self.streams = StreamStore(
            tasks=self.tasks,
            states=states or FileStates(folder / "streams"),
            calibrations=self.calibrations,
            guard=settings.guard,
            max_in_memory=settings.max_streams,
            max_bytes=settings.max_stream_memory_mib << 20,
            on_eviction=metrics.count_eviction,
        )
        self.snapshots = SnapshotStore(tasks=self.tasks, folder=folder / "snapshots")
        self.canaries = CanaryStore(folder / "canaries", self.galleries, self.encoder)
        metrics.watch_streams(self.streams.count, self.streams.byte_size)
        metrics.watch_stream_figures(self.streams.figures, most=settings.metrics_streams)
        if settings.encoder == "demo" and settings.demo_gallery_items:
            with alone("demo-gallery"):
                fill_demo_gallery(
                    self.galleries,
                    self.encoder,
                    settings.default_gallery,
                    settings.demo_gallery_items,
                    previews=settings.preview_pixels > 0,
                )
        self.worker = Worker(
            batches=Batches(
                encoder=self.encoder,
                galleries=self.galleries,
                canaries=self.canaries,
                classifier=self.classifier,
                batch_size=settings.batch_size,
                classify_missing=settings.classify_missing,
                clean=self._clean,
            ),
            galleries=self.galleries,
            streams=self.streams,
            queue=self.queue,
            settings=settings,
            metrics=metrics,
            actions=self._actions(),
        )

    def _clean(self) -> Completion | None:
        """What is known of clean pictures and texts; None where there is no such calibration."""
        try:
            return self.calibrations.completion(
                self.calibrations.mark(self.settings.clean_calibration, "retrieve")
            )
        except (NotFound, BadRequest, Conflict):
            return None

    def start(self) -> None:
        self.worker.start()

    def warm_up(self) -> None:
        """One query through each model, so that the first client does not wait for lazy parts. Blocks."""
        tower = self.encoder.towers["text"]
        tower.encode(tower.prepare(["warm up"]))
        if self.classifier is not None:
            image, sound = self.classifier.image_spec, self.classifier.audio_spec
            fbank = np.zeros((sound.frames, sound.mel_bins), np.float32)
            frame = np.zeros((3, image.height, image.width), np.uint8)
            classification.answer(
                model=self.classifier, method=None, state=None,
                inputs=self.classifier.prepare([fbank], [frame]), times=StageTimes(),
            )  # fmt: skip

    def stop(self) -> None:
        """Finish what was accepted (within the grace), save every state. Blocks."""
        self.worker.stop(grace_s=self.settings.shutdown_grace_s)
        self.galleries.close()

    def card(self) -> EncoderCard:
        """What others need to know of the model and the methods; other processes show and check by it."""
        encoder = self.encoder
        return EncoderCard(
            fingerprint=encoder.fingerprint,
            dimension=encoder.dimension,
            image_spec=encoder.image_spec.to_dict(),
            models={
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
                "methods": _methods("retrieve"),
                "default_method": self.settings.default_method,
                "default_gallery": self.settings.default_gallery,
                "classifier": None if self.classifier is None else self._classifier_shown(self.classifier),
            },
            classifier=None
            if self.classifier is None
            else {
                "name": self.classifier.name,
                "fingerprint": self.classifier.fingerprint,
                "labels": list(self.classifier.labels),
                "audio_spec": self.classifier.audio_spec.to_dict(),
                "image_spec": self.classifier.image_spec.to_dict(),
            },
        )

    def _classifier_shown(self, classifier: Classifier) -> dict[str, Any]:
        """For /models."""
        return {
            "name": classifier.name,
            "fingerprint": classifier.fingerprint,
            "dtype": classifier.dtype_name,
            "device": str(classifier.device),
            "labels": list(classifier.labels),
            "audio": classifier.audio_spec.to_dict(),
            "image_size": [classifier.image_spec.height, classifier.image_spec.width],
            "calibration": sorted(classifier.calibration.holds) if classifier.calibration else [],
            "methods": _methods("classify"),
            "default_method": self.settings.classify_method,
        }

    # -- what control jobs ask for ------------------------------------------------------------------

    def _actions(self) -> dict[str, Action]:
        """By name; run in the worker's thread."""
        galleries, streams, snapshots = self.galleries, self.streams, self.snapshots
        canaries, calibrations = self.canaries, self.calibrations

        def plain(act: Callable[..., Any]) -> Action:
            return lambda job: act(**job.arguments)

        def configure_stream(name: str, **changes: Any) -> dict[str, Any]:
            stream, was_reset = streams.configure(name, **changes)
            return stream.describe() | {"reset": was_reset}

        def create_gallery(job: ControlJob) -> dict[str, Any]:
            with calibrations.kept():  # the one it names is not deleted meanwhile
                return galleries.create(**job.arguments, job=job.id)

        def describe_calibration(name: str) -> dict[str, Any]:
            return calibrations.describe(name) | {"galleries": self._calibrated_by(name)}

        def fit_calibration(job: ControlJob) -> Any:
            name, gallery = job.arguments["name"], galleries.usable(job.arguments["gallery"])
            latent, samples = job.arguments["latent"], job.arguments["samples"]
            return calibrations.fit(name, gallery, latent=latent, samples=samples, job=job.id)

        def delete_calibration(job: ControlJob) -> None:
            calibrations.delete(job.arguments["name"], in_use=self._calibrated_by, again=job.again)

        def delete_gallery(job: ControlJob) -> None:
            name = job.arguments["name"]
            galleries.delete(name, again=job.again)
            canaries.delete(name)

        def delete_stream(job: ControlJob) -> None:
            name, force = job.arguments["name"], job.arguments["force"]
            if job.again and name not in streams.names():
                return
            streams.find(name)
            if snapshots.list(name) and not force:
                raise Conflict(f"stream {name!r} has snapshots; delete them, or ask with force=true")
            snapshots.delete_all(name)
            streams.delete(name)

        def create_snapshot(job: ControlJob) -> dict[str, Any]:
            stream = streams.find(job.arguments["stream"])
            return snapshots.create(stream, job.arguments["name"], job.arguments["note"], job=job.id)

        def delete_snapshot(job: ControlJob) -> None:
            if not (job.again and not snapshots.exists(**job.arguments)):
                snapshots.delete(**job.arguments)

        def list_snapshots(stream: str) -> list[dict[str, Any]]:
            found = snapshots.list(stream)
            if not found:
                streams.find(stream)
            return found

        def restore_snapshot(stream: str, name: str) -> dict[str, Any]:
            return streams.restore(stream, snapshots.read(stream, name)).describe()

        def compare_snapshots(stream: str, first: str, second: str | None) -> dict[str, Any]:
            one = Side.of_snapshot(first, snapshots.read(stream, first))
            if second is None:
                other = Side.of_stream(streams.find(stream), now=time.time())
            else:
                other = Side.of_snapshot(second, snapshots.read(stream, second))
            return {"stream": stream, **compare(one, other, self.tasks)}

        return {
            "list_galleries": plain(galleries.list),
            "describe_gallery": plain(galleries.describe),
            "create_gallery": create_gallery,
            "delete_gallery": delete_gallery,
            "set_canaries": plain(canaries.set),
            "describe_canaries": plain(canaries.describe),
            "upsert_items": plain(galleries.upsert),
            "delete_items": plain(galleries.delete_items),
            "get_item": plain(galleries.get_item),
            "list_items": plain(galleries.list_items),
            "get_preview": plain(galleries.get_preview),
            "list_calibrations": plain(calibrations.list),
            "describe_calibration": plain(describe_calibration),
            "put_calibration": lambda job: calibrations.put(**job.arguments, again=job.again),
            "fit_calibration": fit_calibration,
            "export_calibration": plain(calibrations.export),
            "delete_calibration": delete_calibration,
            "list_streams": plain(streams.describe_all),
            "latest_streams": plain(streams.describe_latest),
            "stream_history": plain(streams.history),
            "describe_stream": plain(lambda name: streams.find(name).describe()),
            "configure_stream": plain(configure_stream),
            "reset_stream": plain(lambda name: streams.reset(name).describe()),
            "delete_stream": delete_stream,
            "create_snapshot": create_snapshot,
            "list_snapshots": plain(list_snapshots),
            "restore_snapshot": plain(restore_snapshot),
            "delete_snapshot": delete_snapshot,
            "compare_snapshots": plain(compare_snapshots),
            "export_snapshot": plain(snapshots.export),
            "import_snapshot": lambda job: snapshots.import_(**job.arguments, again=job.again),
        }

    def _calibrated_by(self, calibration: str) -> list[str]:
        """Galleries that need it, of any process; damaged ones cannot be used anyhow."""
        found = []
        for name in self._gallery_store.names():
            with suppress(GalleryNotFound, GalleryCorrupt):
                mark = self._gallery_store.describe(name).calibration
                if mark is not None and mark.name == calibration:
                    found.append(name)
        return found


def _methods(task: Task) -> dict[str, Any]:
    """A task's methods, for /models."""
    return {
        name: {
            "summary": method.summary,
            "settings": method.settings.model_json_schema().get("properties", {}),
            "presets": {PAPER: {}, **PRESETS.get(name, {})},
        }
        for name, method in METHODS_OF[task].items()
    }


def load_encoder(settings: Settings) -> Encoder:
    from encoders import load

    name = _encoder_place(settings)
    return load.load_encoder(name, device=settings.device, dtype=settings.dtype)


def _encoder_place(settings: Settings) -> str:
    """A folder, or a name of the hub."""
    if settings.encoder != "demo":
        return settings.encoder
    from demo import demo_encoder_path

    return str(demo_encoder_path())


def _classifier_place(settings: Settings) -> Path:
    if settings.classifier != "demo":
        return Path(settings.classifier)
    from demo import demo_classifier_path

    return demo_classifier_path()


def _built_in_calibrations(settings: Settings) -> dict[str, Path]:
    """Those beside the weights, which need not be there."""
    places = {"encoder": Path(_encoder_place(settings)) / CALIBRATION_FILE}
    if settings.classifier:
        places["classifier"] = _classifier_place(settings) / CALIBRATION_FILE
    return places


def load_classifier(settings: Settings) -> Classifier | None:
    """None where the settings name none."""
    if not settings.classifier:
        return None
    from adapters.calibration import load_calibration
    from encoders.cav_mae import load_cav_mae

    place = _classifier_place(settings)
    model = load_cav_mae(place, device=settings.device, dtype=settings.dtype)
    calibration = place / CALIBRATION_FILE
    if calibration.is_file():
        model.calibration = load_calibration(calibration, model)
    classifier: Classifier = model
    return classifier
