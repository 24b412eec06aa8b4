"""What is measured of a classifier on clean samples, once, for methods that compare with it.

Two parts, each may be there or not:
    statistics  mean and spread of the features of every block (BriMPR; methods.md 3.8)
    fisher      how much each norm parameter matters for the source samples (EATA; methods.md 3.4)

One safetensors file holds them, tied to the model by its fingerprint. Letters: D width, L tower blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base import AdapterError

if TYPE_CHECKING:
    from adapters.classification import Inputs, TwoStream

FORMAT_VERSION = 1
Part = Literal["audio", "video", "fused"]
PARTS: tuple[Part, ...] = ("audio", "video", "fused")


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
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> frozenset[Literal["statistics", "fisher"]]:
        names: tuple[Literal["statistics", "fisher"], ...] = ("statistics", "fisher")
        return frozenset(name for name in names if getattr(self, name) is not None)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Calibration:
        def moved(part: LayerStatistics) -> LayerStatistics:
            return LayerStatistics(part.std.to(device, dtype), part.mean.to(device, dtype))

        statistics = self.statistics and SourceStatistics(
            *(moved(getattr(self.statistics, part)) for part in PARTS)
        )
        fisher = self.fisher and {name: value.to(device, dtype) for name, value in self.fisher.items()}
        return replace(self, statistics=statistics, fisher=fisher)


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


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    if calibration.statistics is not None:
        for part in PARTS:
            layers: LayerStatistics = getattr(calibration.statistics, part)
            tensors |= {f"statistics/{part}/std": layers.std, f"statistics/{part}/mean": layers.mean}
    for name, value in (calibration.fisher or {}).items():
        tensors[f"fisher/{name}"] = value
    document = {
        "format_version": FORMAT_VERSION,
        "fingerprint": calibration.fingerprint,
        "about": dict(calibration.about),
    }
    data = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        metadata={"attune": json.dumps(document)},
    )
    unfinished = Path(path).with_suffix(".part")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def load_calibration(path: str | Path, model: TwoStream) -> Calibration:
    """Read and check a file against the model. Raises BadCalibration."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})["attune"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if document["format_version"] != FORMAT_VERSION:
            raise BadCalibration(f"{path}: format {document['format_version']} is not {FORMAT_VERSION}")
        fingerprint, about = str(document["fingerprint"]), dict(document["about"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadCalibration(f"{path} is no calibration: {error}") from error
    if fingerprint != model.fingerprint:
        raise BadCalibration(
            f"{path} was measured of model {fingerprint[:12]}, this one is {model.fingerprint[:12]}; "
            "measure again with `attune calibrate`"
        )
    for name, value in tensors.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise BadCalibration(f"{path}: {name} is not finite")
    dtype = model.weights[model.groups["norms"][0]].dtype
    loaded = Calibration(fingerprint, _statistics(path, tensors, model), _fisher(path, tensors, model), about)
    return loaded.to(model.device, dtype)


def _statistics(path: Any, tensors: Mapping[str, Tensor], model: TwoStream) -> SourceStatistics | None:
    if not any(name.startswith("statistics/") for name in tensors):
        return None
    parts: list[LayerStatistics] = []
    for part in PARTS:
        shape = (1 if part == "fused" else model.depth, model.width)
        pair = [tensors.get(f"statistics/{part}/{what}") for what in ("std", "mean")]
        if any(value is None or tuple(value.shape) != shape for value in pair):
            raise BadCalibration(f"{path}: the statistics of {part} are missing or misshapen")
        std, mean = pair
        assert std is not None
        assert mean is not None
        parts.append(LayerStatistics(std, mean))
    return SourceStatistics(*parts)


def _fisher(path: Any, tensors: Mapping[str, Tensor], model: TwoStream) -> dict[str, Tensor] | None:
    found = {
        name.removeprefix("fisher/"): value for name, value in tensors.items() if name.startswith("fisher/")
    }
    for name, value in found.items():
        if name not in model.groups["norms"] or value.shape != model.weights[name].shape:
            raise BadCalibration(f"{path}: the Fisher values of {name[:80]} do not fit the model")
    return found or None
