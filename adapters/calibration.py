"""What is measured of a model on clean samples, once, for methods that compare with it or complete samples.

Three parts, each may be there or not:
    statistics  mean and spread of the features of every block (BriMPR; methods.md 3.8)
    fisher      how much each norm parameter matters for the source samples (EATA; methods.md 3.4)
    completion  what a sample lacks, from what it has (CalMRL; methods.md 4); of a dual encoder nothing else

One safetensors file holds them, tied to the model by its fingerprint. Files may come from users: they are
checked in themselves (`unpack_calibration`), then against a model (`for_classifier`, `for_encoder`).
Letters: D width, L tower blocks.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base import AdapterError
from adapters.completion import Completion, completion_of_tensors, tensors_of_completion
from adapters.latent import maximise

if TYPE_CHECKING:
    from adapters.classification import Inputs, TwoStream

FORMAT_VERSION = 1
Part = Literal["audio", "video", "fused"]
PARTS: tuple[Part, ...] = ("audio", "video", "fused")
"""Of a classifier, also the modalities of its completion."""
ENCODER_MODALITIES = ("image", "text")
"""Those of a dual encoder's completion."""
Held = Literal["statistics", "fisher", "completion"]

_MOST_BYTES = 256 << 20
_MOST_TENSORS = 10_000
_MOST_ABOUT_CHARACTERS = 100_000
_LARGEST_SIZE = 1 << 14
_LARGEST_LATENT = 1024
_MOST_MODALITIES = 8
_LARGEST_COUNT = 1 << 53
_MODALITY = re.compile(r"[a-z_]{1,32}")


class BadCalibration(AdapterError):
    """The file is no calibration, not whole, or another model's."""


@dataclass(frozen=True)
class LayerStatistics:
    """Unbiased standard deviation and mean of each block's feature over samples: [L, D] each."""

    std: Tensor
    mean: Tensor


@dataclass(frozen=True)
class SourceStatistics:
    """Of both towers [L, D], and of the fused feature [1, D] behind the joint blocks; without prompts."""

    audio: LayerStatistics
    video: LayerStatistics
    fused: LayerStatistics


@dataclass(frozen=True)
class Calibration:
    """fingerprint: of the model that was measured; about: plain facts, such as how many samples."""

    fingerprint: str
    statistics: SourceStatistics | None = None
    fisher: Mapping[str, Tensor] | None = None
    completion: Completion | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> frozenset[Held]:
        names: tuple[Held, ...] = ("statistics", "fisher", "completion")
        return frozenset(name for name in names if getattr(self, name) is not None)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Calibration:
        """On another device, numbers in another type; the completion keeps its 64 bits."""

        def moved(part: LayerStatistics) -> LayerStatistics:
            return LayerStatistics(part.std.to(device, dtype), part.mean.to(device, dtype))

        statistics = self.statistics and SourceStatistics(
            *(moved(getattr(self.statistics, part)) for part in PARTS)
        )
        fisher = self.fisher and {name: value.to(device, dtype) for name, value in self.fisher.items()}
        completion = self.completion and self.completion.to(device)
        return replace(self, statistics=statistics, fisher=fisher, completion=completion)


@torch.no_grad()
def source_statistics(model: TwoStream, inputs: Inputs) -> SourceStatistics:
    """Of one batch of clean, complete samples (the reference takes 32)."""
    if not inputs.complete or len(inputs) < 2:
        raise BadCalibration("source statistics need two complete samples at least")
    embedded = model.embed(inputs)
    towers = {name: model.tower_packed(name, [embedded[name]], features=True)[0] for name in embedded}
    fused = fused_feature(model, towers["audio"].tokens, towers["video"].tokens)
    return SourceStatistics(
        layer_statistics(towers["audio"].features),
        layer_statistics(towers["video"].features),
        layer_statistics(fused.unsqueeze(1)),
    )


def fused_feature(model: TwoStream, audio: Tensor, video: Tensor) -> Tensor:
    """Tokens of both towers -> [B, D], what the joint blocks make of all of them."""
    return model.joint_packed([(torch.cat([audio, video], dim=1), "plain")])[0]


def layer_statistics(features: Tensor) -> LayerStatistics:
    """[B, L, D] -> std (unbiased) and mean over the samples. One sample has no spread: NaN."""
    return LayerStatistics(features.std(0), features.mean(0))


def fisher_values(model: TwoStream, batches: Iterable[Inputs], *, group: str = "norms") -> dict[str, Tensor]:
    """Squared gradients of the loss against the model's own predictions, meaned over batches.

    For each batch: mean cross-entropy against argmax, differentiated by every parameter of the group
    (methods.md 3.4; the reference takes 2000 source samples in batches).
    """
    names = model.groups[group]
    values = {name: model.weights[name].detach().clone().requires_grad_() for name in names}
    sums: dict[str, Tensor] = {}
    count = 0
    for inputs in batches:
        logits = model.forward(inputs, values).logits
        loss = F.cross_entropy(logits, logits.detach().argmax(-1))
        found = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                sums[name] = gradient.square() + sums.get(name, 0.0)
        count += 1
    if not count:
        raise BadCalibration("Fisher values need one batch at least")
    return {name: value / count for name, value in sums.items()}


# -- files ----------------------------------------------------------------------------------------------


def pack_calibration(calibration: Calibration) -> bytes:
    """As one safetensors file; the same calibration makes the same bytes."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "fingerprint": calibration.fingerprint,
        "about": dict(calibration.about),
    }
    if calibration.statistics is not None:
        for part in PARTS:
            layers: LayerStatistics = getattr(calibration.statistics, part)
            tensors |= {f"statistics/{part}/std": layers.std, f"statistics/{part}/mean": layers.mean}
    for name, value in (calibration.fisher or {}).items():
        tensors[f"fisher/{name}"] = value
    if calibration.completion is not None:
        tensors |= tensors_of_completion(calibration.completion)
        document["completion"] = {
            "modalities": list(calibration.completion.modalities),
            "unit": calibration.completion.unit,
            "batches": calibration.completion.batches,
            "about": dict(calibration.completion.about),
        }
    return save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        metadata={"attune": json.dumps(document)},
    )


def unpack_calibration(data: bytes) -> Calibration:
    """The inverse, checked in itself: names, shapes, sizes, values. On the CPU. Raises BadCalibration."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(data) > _MOST_BYTES:
        raise BadCalibration(f"a calibration has {_MOST_BYTES >> 20} MiB at most, this has {len(data) >> 20}")
    document = _document(data)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadCalibration(f"no whole calibration: {error}") from error
    if len(tensors) > _MOST_TENSORS:
        raise BadCalibration(f"{len(tensors)} tensors are more than a calibration has")
    groups: dict[str, dict[str, Tensor]] = {"statistics": {}, "fisher": {}, "latent": {}}
    for name, value in tensors.items():
        group = name.partition("/")[0]
        if group not in groups or not value.is_floating_point():
            raise BadCalibration(f"unknown tensor {name[:80]!r}")
        if group != "latent" and not bool(torch.isfinite(value).all()):
            raise BadCalibration(f"{name[:80]} is not finite")
        groups[group][name] = value
    fisher = {name.removeprefix("fisher/"): value for name, value in groups["fisher"].items()}
    return Calibration(
        document["fingerprint"],
        _statistics(groups["statistics"]),
        fisher or None,
        _completion(groups["latent"], document.get("completion")),
        document["about"],
    )


def digest_of_calibration(data: bytes) -> str:
    """What tells one file from another: 16 hex digits."""
    return hashlib.sha256(data).hexdigest()[:16]


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    unfinished = Path(path).with_suffix(".part")
    unfinished.write_bytes(pack_calibration(calibration))
    unfinished.replace(path)


def load_calibration(path: str | Path, model: TwoStream) -> Calibration:
    """Read a classifier's file and check it against the model. Raises BadCalibration."""
    try:
        return for_classifier(unpack_calibration(Path(path).read_bytes()), model)
    except OSError as error:
        raise BadCalibration(f"{path} could not be read: {error}") from error
    except BadCalibration as error:
        raise BadCalibration(f"{path}: {error}") from error


def load_encoder_calibration(
    path: str | Path, *, fingerprint: str, dimension: int, device: torch.device | str = "cpu"
) -> Calibration:
    """Read a dual encoder's file and check it against the encoder. Raises BadCalibration."""
    try:
        calibration = unpack_calibration(Path(path).read_bytes())
        return for_encoder(calibration, fingerprint=fingerprint, dimension=dimension, device=device)
    except OSError as error:
        raise BadCalibration(f"{path} could not be read: {error}") from error
    except BadCalibration as error:
        raise BadCalibration(f"{path}: {error}") from error


def for_classifier(calibration: Calibration, model: TwoStream) -> Calibration:
    """On the model's device and in its type. Raises BadCalibration where it is not this model's."""
    _check_fingerprint(calibration, model.fingerprint)
    if calibration.statistics is not None:
        for part in PARTS:
            shape = (1 if part == "fused" else model.depth, model.width)
            if tuple(getattr(calibration.statistics, part).mean.shape) != shape:
                raise BadCalibration(f"the statistics of {part} do not fit the model")
    for name, value in (calibration.fisher or {}).items():
        if name not in model.groups["norms"] or value.shape != model.weights[name].shape:
            raise BadCalibration(f"the Fisher values of {name[:80]} do not fit the model")
    _check_completion(calibration, PARTS, model.width, unit=False)
    return calibration.to(model.device, model.weights[model.groups["norms"][0]].dtype)


def for_encoder(
    calibration: Calibration, *, fingerprint: str, dimension: int, device: torch.device | str = "cpu"
) -> Calibration:
    """On the encoder's device. Raises BadCalibration where it is not this encoder's, or more or less than a
    completion.
    """
    _check_fingerprint(calibration, fingerprint)
    if calibration.holds != {"completion"}:
        raise BadCalibration("a dual encoder's calibration holds a completion and nothing else")
    _check_completion(calibration, ENCODER_MODALITIES, dimension, unit=True)
    return calibration.to(device, torch.float32)


def _check_fingerprint(calibration: Calibration, fingerprint: str) -> None:
    if calibration.fingerprint != fingerprint:
        raise BadCalibration(
            f"it was measured of model {calibration.fingerprint[:12]}, this one is {fingerprint[:12]}; "
            "measure again with `attune calibrate`"
        )


def _check_completion(
    calibration: Calibration, modalities: tuple[str, ...], size: int, *, unit: bool
) -> None:
    completion = calibration.completion
    if completion is None:
        return
    if completion.modalities != modalities or completion.unit != unit:
        raise BadCalibration(f"its completion is one of {', '.join(completion.modalities)}")
    if completion.sizes != (size,) * len(modalities):
        raise BadCalibration(f"its completion is of {completion.sizes[0]} features, the model has {size}")


def _document(data: bytes) -> dict[str, Any]:
    """The JSON part of a file: 8 bytes length, the header, and in its metadata the document."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["attune"])
        if document["format_version"] != FORMAT_VERSION:
            raise BadCalibration(f"format {str(document['format_version'])[:20]} is not {FORMAT_VERSION}")
        facts = [document["about"], document.get("completion", {}).get("about", {})]
        plain = all(isinstance(fact, dict) for fact in facts) and isinstance(document["fingerprint"], str)
        if not plain or len(json.dumps(facts, allow_nan=False)) > _MOST_ABOUT_CHARACTERS:
            raise BadCalibration("its facts are too many, or no facts")
    except (struct.error, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BadCalibration(f"no calibration: {error or type(error).__name__}") from error
    found: dict[str, Any] = document
    return found


def _statistics(tensors: Mapping[str, Tensor]) -> SourceStatistics | None:
    if not tensors:
        return None
    parts: list[LayerStatistics] = []
    for part in PARTS:
        std, mean = (tensors.get(f"statistics/{part}/{what}") for what in ("std", "mean"))
        if std is None or mean is None or std.ndim != 2 or std.shape != mean.shape:
            raise BadCalibration(f"the statistics of {part} are missing or misshapen")
        parts.append(LayerStatistics(std, mean))
    return SourceStatistics(*parts)


def _completion(tensors: Mapping[str, Tensor], described: Any) -> Completion | None:
    if not tensors and described is None:
        return None
    match described:
        case {"modalities": list(names), "unit": bool(unit), "batches": int(batches), "about": dict(about)}:
            pass
        case _:
            raise BadCalibration("the completion's description is missing or misshapen")
    known = all(isinstance(name, str) and _MODALITY.fullmatch(name) for name in names)
    if not known or not 2 <= len(set(names)) == len(names) <= _MOST_MODALITIES:
        raise BadCalibration("the completion's modalities are two or more different names")
    for name in names:
        shape = tuple(tensors.get(f"latent/{name}/weight", torch.zeros(0)).shape)
        if len(shape) == 2 and (shape[0] > _LARGEST_SIZE or shape[1] > _LARGEST_LATENT):
            raise BadCalibration(f"a completion of {shape[0]} features and latent {shape[1]} is too large")
    try:
        completion = completion_of_tensors(
            tensors, modalities=names, unit=unit, batches=min(max(0, batches), _LARGEST_COUNT), about=about
        )
        _try_out(completion)
    except (AdapterError, RuntimeError) as error:  # a matrix that is not positive definite
        raise BadCalibration(f"the completion cannot be used: {error}") from error
    return completion


def _try_out(completion: Completion) -> None:
    """Whether it completes each modality alone, and can go on learning, in finite numbers."""
    for name, size in zip(completion.modalities, completion.sizes, strict=True):
        made = completion.complete({name: torch.zeros(1, size)})
        if not all(bool(torch.isfinite(part).all()) for part in made.embeddings.values()):
            raise BadCalibration(f"what it makes of {name} is not finite")
    if completion.statistics:
        next_ = maximise(completion.model, completion.statistics)
        if not all(bool(torch.isfinite(loading.weight).all()) for loading in next_.loadings):
            raise BadCalibration("its sums lead to numbers that are not finite")
