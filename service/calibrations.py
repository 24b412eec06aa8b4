"""The calibrations of one server: files by name, each tied to the encoder or the classifier that it serves.

`calibrations/NAME.safetensors` in the data folder, and two that come with the models' weights. A file that a
user sends in is untrusted: it is read by safetensors and JSON, checked whole, and refused unless it fits a
model of this server. What a name stands for never changes: a file is made once and can only be deleted.

Several workers may share the folder. Each look is at the files as they are now; who makes or deletes one
holds the folder's lock, and so does who is about to use one in a gallery (`kept`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from adapters.base import AdapterError
from adapters.calibration import (
    BadCalibration,
    Calibration,
    digest_of_calibration,
    for_classifier,
    for_encoder,
    pack_calibration,
    unpack_calibration,
)
from adapters.completion import FEWEST_PAIRS, Completion, fit_completion
from adapters.registry import Task
from encoders.base import Encoder, Modality
from index.base import CalibrationMark
from index.files import folder_lock
from index.gallery import Gallery
from service.errors import BadRequest, Conflict, NotFound, ServiceError
from service.files import check_calibration_name, write_atomically
from service.tasks import Classifier

log = structlog.get_logger(__name__)

BUILT_IN: Mapping[str, Task] = {"encoder": "retrieve", "classifier": "classify"}
"""Names of the calibrations beside the models' weights, and the task of each."""
_SUFFIX = ".safetensors"
_IN_MEMORY = 32
_PAIR: tuple[Modality, Modality] = ("image", "text")
_LARGEST_JSON_NUMBER = 2**53
_DEEPEST, _LONGEST = 6, 1000

Card = dict[str, Any]


@dataclass(frozen=True)
class _Known:
    """What was read of a file. `card` is shown; `error`: why it cannot be used."""

    stamp: tuple[int, int, int]
    digest: str
    card: Card
    task: Task | None = None
    completes: bool = False
    error: ServiceError | None = None


class Calibrations:
    """Owned by the worker's thread."""

    def __init__(
        self,
        folder: Path,
        *,
        encoder: Encoder,
        classifier: Classifier | None,
        built_in: Mapping[str, Path] | None = None,
    ) -> None:
        """`built_in`: files of the names in `BUILT_IN`, which may or may not be there."""
        self._folder = folder
        self._encoder = encoder
        self._classifier = classifier
        self._built_in = dict(built_in or {})
        self._known: dict[str, _Known] = {}
        self._completions: OrderedDict[str, Completion] = OrderedDict()

    # -- looking ------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """All there are now, those that cannot be used included."""
        made = {path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")}
        return [
            *(name for name, path in self._built_in.items() if path.is_file()),
            *sorted(made - {*BUILT_IN}),
        ]

    def list(self) -> list[Card]:
        found = []
        for name in self.names():
            with suppress(NotFound, BadRequest):  # deleted meanwhile, or a file of a name that we do not make
                found.append(self.describe(name))
        return found

    def describe(self, name: str) -> Card:
        """Raises NotFound."""
        return dict(self._look(name).card)

    def export(self, name: str) -> bytes:
        """The file. Raises NotFound."""
        return self._read(name)

    def mark(self, name: str, task: Task | None = None) -> CalibrationMark:
        """What a gallery or stream keeps of it. With `task` it has to be that task's.

        Raises NotFound, BadRequest (damaged), Conflict (another model's, or without a completion).
        """
        known = self._usable(name)
        if task is not None and known.task != task:
            raise Conflict(
                f"calibration {name!r} was made of the {_MODEL[known.task]}, not of the {_MODEL[task]}",
                code="fingerprint_mismatch",
            )
        return CalibrationMark(name, known.digest)

    def task(self, name: str) -> Task:
        """The task whose model it was made of. Raises as `mark`."""
        task = self._usable(name).task
        assert task is not None
        return task

    def completion(self, mark: CalibrationMark) -> Completion:
        """On the encoder's device. Raises NotFound where no file with that content is left, and as `mark`."""
        found = self._completions.get(mark.digest)
        if found is None:
            found = self._loaded(mark)
            self._completions[mark.digest] = found
            if len(self._completions) > _IN_MEMORY:
                self._completions.popitem(last=False)
        self._completions.move_to_end(mark.digest)
        return found

    def attached(self, mark: CalibrationMark) -> Completion:
        """As `completion`, and the very file has to be there still, by its name."""
        if self.mark(mark.name).digest != mark.digest:
            raise _unknown(mark.name, f" with the content {mark.digest}")
        return self.completion(mark)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """For the length of a block no calibration is made or deleted, by any process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(self._folder, shared=True):
            yield

    # -- making -------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes, *, again: bool = False) -> Card:
        """Keep a file. With `again`, of a job delivered once more, the same may be there already.

        Raises BadRequest, Conflict (another model's; the name is taken), StorageFailed.
        """
        path = self._path_of_new(name)
        _, calibration = self._checked(data)
        if calibration.completion is None:
            raise BadRequest(
                "the file holds no completion; `attune calibrate` makes one unless --latent is 0",
                code="bad_calibration",
            )
        with self._alone():
            if not (again and path.is_file() and path.read_bytes() == data):
                self._write(name, path, data)
        return self.describe(name)

    def fit(
        self,
        name: str,
        gallery: Gallery,
        *,
        latent: int | None = None,
        samples: int = 5000,
        seed: int = 0,
        job: str = "",
    ) -> Generator[Any, None, Card]:
        """Fit one to a gallery's items that have a picture and a text, in slices.

        samples  items that are drawn at random where there are more
        latent   its size; None: the one that imputes best
        job      id of what asked for it: asked again by the same one, what it made is described

        Raises BadRequest, Conflict (`calibration_exists`, `too_few_pairs`), StorageFailed.
        """
        path = self._path_of_new(name)
        if job and self._made_by(path, job):
            return self.describe(name)
        _refuse_existing(path, name)
        vectors = _pairs(gallery, samples, seed=seed)
        count = len(vectors["image"])
        if count < FEWEST_PAIRS:
            raise Conflict(
                f"gallery {gallery.name!r} has {count} items with a picture and a text; "
                f"at least {FEWEST_PAIRS} are needed",
                code="too_few_pairs",
                details={"pairs": count, "needed": FEWEST_PAIRS},
            )
        most = min(gallery.dimension, count) - 1
        if latent is not None and latent > most:
            raise BadRequest(
                f"a latent of {latent} is too large for {count} pairs of {gallery.dimension} features; "
                f"at most {most}",
                code="bad_latent",
            )
        device = self._encoder.device
        embeddings: dict[str, Tensor] = {
            modality: torch.from_numpy(part).to(device) for modality, part in vectors.items()
        }
        try:
            completion = yield from fit_completion(embeddings, unit=True, latent=latent, seed=seed)
        except (AdapterError, LinAlgError) as error:
            raise Conflict(
                f"nothing can be learned of these items: {error}", code="calibration_failed"
            ) from error
        if not completion.about["relative_error"]:
            raise Conflict("nothing can be learned of items that are all alike", code="calibration_failed")
        about = {"gallery": gallery.name, "seed": seed, "job": job}
        made = Calibration(self._encoder.fingerprint, completion=completion, about=about)
        with self._alone():
            if not (job and self._made_by(path, job)):
                self._write(name, path, pack_calibration(made))
        return self.describe(name)

    def delete(self, name: str, *, in_use: Callable[[str], Sequence[str]], again: bool = False) -> None:
        """`in_use(name)`: galleries that need it. With `again` it may be gone.

        Raises NotFound, Conflict.
        """
        if name in BUILT_IN:
            raise Conflict(
                f"calibration {name!r} comes with the model's weights and stays", code="calibration_in_use"
            )
        path = self._path(name)
        with self._alone():
            if not path.is_file():
                if again:
                    return
                raise _unknown(name)
            users = list(in_use(name))
            if users:
                raise Conflict(
                    f"calibration {name!r} is used by {', '.join(users[:10])}; delete these galleries first",
                    code="calibration_in_use",
                    details={"galleries": users[:100]},
                )
            path.unlink()
        self._known.pop(name, None)
        log.info("calibration_deleted", calibration=name)

    # -- inside -------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        """Raises BadRequest for a name that may not be a file's, NotFound."""
        check_calibration_name(name)
        if name not in BUILT_IN:
            return self._folder / f"{name}{_SUFFIX}"
        if name not in self._built_in:
            raise _unknown(name)
        return self._built_in[name]

    def _path_of_new(self, name: str) -> Path:
        if name in BUILT_IN:
            raise Conflict(
                f"{name!r} is the name of what comes with the model's weights; choose another",
                code="calibration_exists",
            )
        return self._path(name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(self._folder):
            yield

    def _write(self, name: str, path: Path, data: bytes) -> None:
        """Under the folder's lock. Raises Conflict, StorageFailed."""
        _refuse_existing(path, name)
        write_atomically(path, data)
        log.info("calibration_made", calibration=name, digest=digest_of_calibration(data), bytes=len(data))

    def _made_by(self, path: Path, job: str) -> bool:
        try:
            return unpack_calibration(path.read_bytes()).about.get("job") == job
        except (OSError, BadCalibration):
            return False

    def _read(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise _unknown(name) from None

    def _look(self, name: str) -> _Known:
        """What the file is now; it is only read again where it has changed. Raises NotFound."""
        path = self._path(name)
        try:
            status = path.stat()
        except OSError:
            self._known.pop(name, None)
            raise _unknown(name) from None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(name)
        if known is None or known.stamp != stamp:
            known = self._known[name] = self._described(name, stamp, self._read(name), status.st_mtime)
        return known

    def _described(self, name: str, stamp: tuple[int, int, int], data: bytes, made_at: float) -> _Known:
        digest = digest_of_calibration(data)
        card: Card = {
            "name": name,
            "digest": digest,
            "bytes": len(data),
            "created_at": made_at,
            "built_in": name in BUILT_IN,
            "status": "ready",
            "why": "",
        }
        try:
            task, calibration = self._checked(data)
        except ServiceError as error:
            log.warning("calibration_refused", calibration=name, why=str(error))
            return _Known(stamp, digest, card | {"status": "refused", "why": str(error)}, error=error)
        card |= {
            "task": task,
            "fingerprint": calibration.fingerprint,
            "holds": sorted(calibration.holds),
            "about": _shown({key: value for key, value in calibration.about.items() if key != "job"}),
        }
        completion = calibration.completion
        if completion is not None:
            card |= {
                "modalities": [*completion.modalities],
                "latent": completion.model.latent,
                "samples": _shown(completion.about.get("samples")),
                "relative_error": _shown(completion.about.get("relative_error")),
            }
        return _Known(stamp, digest, card, task, completion is not None)

    def _checked(self, data: bytes) -> tuple[Task, Calibration]:
        """Raises BadRequest: no calibration, or not a whole one; Conflict: another model's."""
        try:
            calibration = unpack_calibration(data)
            encoder, classifier = self._encoder, self._classifier
            if calibration.fingerprint == encoder.fingerprint:
                return "retrieve", for_encoder(
                    calibration,
                    fingerprint=encoder.fingerprint,
                    dimension=encoder.dimension,
                    device=encoder.device,
                )
            if classifier is not None and calibration.fingerprint == classifier.fingerprint:
                return "classify", for_classifier(calibration, classifier)
        except BadCalibration as error:
            why = str(error).encode("utf-8", "replace").decode()
            raise BadRequest(f"the calibration cannot be used: {why}", code="bad_calibration") from error
        raise Conflict(
            "the calibration was made of another model than this server's; make it anew",
            code="fingerprint_mismatch",
        )

    def _usable(self, name: str) -> _Known:
        known = self._look(name)
        if known.error is not None:
            raise known.error
        if not known.completes:
            raise Conflict(
                f"calibration {name!r} holds no completion; make one with `attune calibrate`",
                code="calibration_missing",
            )
        return known

    def _loaded(self, mark: CalibrationMark) -> Completion:
        """From the file of that name, or any other with the same content."""
        for name in dict.fromkeys((mark.name, *self.names())):
            with suppress(NotFound, BadRequest):
                if self._look(name).digest == mark.digest:
                    self._usable(name)
                    completion = self._checked(self._read(name))[1].completion
                    assert completion is not None
                    return completion
        raise _unknown(mark.name, f" with the content {mark.digest}")


_MODEL: Mapping[Task | None, str] = {"retrieve": "encoder", "classify": "classifier"}


def _unknown(name: str, more: str = "") -> NotFound:
    return NotFound(f"there is no calibration {name!r}{more}", code="unknown_calibration")


def _refuse_existing(path: Path, name: str) -> None:
    if path.exists():
        raise Conflict(
            f"there is a calibration {name!r} already; delete it or choose another name",
            code="calibration_exists",
        )


def _pairs(gallery: Gallery, samples: int, *, seed: int) -> dict[Modality, np.ndarray]:
    """Vectors [n, D] of at most so many items that have both, drawn at random; row by row the same item."""
    places = gallery.places_of_all(_PAIR)
    count = len(places[0])
    drawn = np.arange(count)
    if count > samples:
        drawn = np.sort(np.random.default_rng(seed).choice(count, samples, replace=False))
    return {
        modality: np.array(gallery.vectors(modality, part[drawn]), np.float32)
        for modality, part in zip(_PAIR, places, strict=True)
    }


def _shown(value: Any, depth: int = 0) -> Any:
    """What a file tells of itself, fit to be shown: it may come from a user."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        within = math.isfinite(value) and abs(value) <= _LARGEST_JSON_NUMBER
        return value if within else None
    if isinstance(value, dict) and depth < _DEEPEST:
        return {_shown(str(key)): _shown(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return [_shown(one, depth + 1) for one in value]
    return str(value)[:_LONGEST].encode("utf-8", "replace").decode()
