"""Towers: from texts or pixels to unit rows, with the adaptable parameters as an argument.

A *body* is the network of one tower, split where its first adaptable parameter sits: `stem` computes what
comes before (once per batch, without gradient), calling the body computes the rest as a function of the
adaptable values. The bodies are in `transformer_bodies.py` (CLIP, BLIP, SigLIP, ViT, BERT),
`mobilenet_body.py` and `generic_body.py`.

Letters: B queries, D features, L tokens, H and W the picture's height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import EncoderError, Modality
from encoders.preprocessing import ImageSpec

NORM_TYPES: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)


@dataclass(frozen=True)
class Prepared:
    """A batch up to the first adaptable parameter.

    hidden: [B, ...]; mask: additive attention mask or the tokenizer's [B, L]; positions: [B] the token to
    pool; pictures: what it was prepared from, normalised [B, 3, H, W], where it was.
    """

    hidden: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None
    pictures: Tensor | None = None

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def __getitem__(self, rows: Tensor) -> Prepared:
        """Those rows (int64 [n]) as a batch of their own."""
        rest = (None if part is None else part[rows] for part in (self.mask, self.positions, self.pictures))
        return Prepared(self.hidden[rows], *rest)


@dataclass(frozen=True)
class Buckets:
    """Texts of one batch in groups of like length, each padded to its own longest only.

    order [B]: where each text of the batch stands in the groups laid end to end.
    """

    parts: Sequence[Prepared]
    order: Tensor

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: Tensor) -> Buckets:
        """Those rows (int64 [n]) as a batch of their own, each still in its group."""
        standing, order = self.order[rows].sort()
        parts, start = [], 0
        for part in self.parts:
            inside = standing[(standing >= start) & (standing < start + len(part))]
            if len(inside):
                parts.append(part[inside - start])
            start += len(part)
        return Buckets(parts, order.argsort())


@dataclass(frozen=True)
class Tokens:
    """ids and attention_mask (1 token, 0 padding): [B, L] each, padded on the right."""

    ids: Tensor
    attention_mask: Tensor


class ImageBody(Protocol):
    @property
    def norms(self) -> Sequence[str]:
        """Full names of the norm modules that may adapt, in module order."""

    def stem(self, pixels: Tensor) -> Prepared:
        """Normalised pixels [B, 3, H, W]."""

    def __call__(self, prepared: Prepared, values: Mapping[str, Tensor]) -> Tensor:
        """Features [B, D], not normalised, differentiable in `values`."""


class TextBody(Protocol):
    @property
    def norms(self) -> Sequence[str]: ...

    def stem(self, tokens: Tokens) -> Prepared: ...

    def __call__(self, prepared: Prepared, values: Mapping[str, Tensor]) -> Tensor: ...


Tokenize = Callable[[Sequence[str]], Tokens]


def norm_names(model: nn.Module, within: str) -> list[str]:
    """Names of all norm modules with own weights below the submodule `within`, by module type, in module
    order.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, NORM_TYPES)
        and (name == within or name.startswith(f"{within}."))
        and any(True for _ in module.parameters(recurse=False))
    ]


def source_values(model: nn.Module, norms: Sequence[str]) -> dict[str, Tensor]:
    """Weight and bias of the named norms: name -> frozen tensor, in module order."""
    return {
        f"{norm}.{name}": parameter.detach()
        for norm in norms
        for name, parameter in model.get_submodule(norm).named_parameters(recurse=False)
    }


def unit_rows(features: Tensor) -> Tensor:
    """x / max(||x||, 1e-12) of each row, in fp32 (fp64 stays)."""
    if features.dtype != torch.float64:
        features = features.float()
    return F.normalize(features, dim=-1, eps=1e-12)


def _encode(
    body: ImageBody | TextBody,
    source: Mapping[str, Tensor],
    inputs: Prepared | Buckets,
    parameters: Mapping[str, Tensor] | None,
) -> Tensor:
    if parameters is None:
        with torch.no_grad():
            return unit_rows(_features(body, inputs, source))
    if parameters.keys() != source.keys():
        missing, unknown = (
            sorted(source.keys() - parameters.keys()),
            sorted(parameters.keys() - source.keys()),
        )
        raise EncoderError(f"parameters do not fit this tower; missing {missing[:3]}, unknown {unknown[:3]}")
    return unit_rows(_features(body, inputs, parameters))


def _features(body: ImageBody | TextBody, inputs: Prepared | Buckets, values: Mapping[str, Tensor]) -> Tensor:
    if isinstance(inputs, Prepared):
        return body(inputs, values)
    return torch.cat([body(part, values) for part in inputs.parts])[inputs.order]


def pixel_scaling(spec: ImageSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What pixels 0..255 are multiplied by, and what is then added: [1, 3, 1, 1] each."""
    mean = torch.tensor(spec.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float64).reshape(1, 3, 1, 1)
    return (spec.rescale / std).to(dtype), (-mean / std).to(dtype)


class ImageTower:
    """Pictures to unit rows."""

    modality: Modality = "image"

    def __init__(
        self, body: ImageBody, parameters: Mapping[str, Tensor], *, spec: ImageSpec, device: torch.device
    ) -> None:
        self.parameters = parameters
        self._body = body
        self._spec = spec
        self._device = device
        dtype = (
            torch.float64
            if any(value.dtype == torch.float64 for value in parameters.values())
            else torch.float32
        )
        scale, shift = pixel_scaling(spec, dtype)
        self._scale, self._shift = scale.to(device), shift.to(device)

    def prepare(self, items: Sequence[np.ndarray]) -> Prepared:
        """uint8 pixels [3, H, W] each, of the encoder's size."""
        expected = (3, self._spec.height, self._spec.width)
        for number, item in enumerate(items):
            if item.shape != expected or item.dtype != np.uint8:
                raise EncoderError(
                    f"picture {number} is {item.dtype} {item.shape}; expected uint8 {expected}"
                )
        if not len(items):
            raise EncoderError("an empty batch cannot be encoded")
        batch = torch.from_numpy(np.stack(items)).to(self._device)
        return self.prepare_tensors(batch.to(self._scale.dtype).mul_(self._scale).add_(self._shift))

    def prepare_tensors(self, tensor: Tensor) -> Prepared:
        """Pixels [B, 3, H, W] that are already normalised."""
        pictures = tensor.to(self._device, self._scale.dtype)
        with torch.no_grad():
            return replace(self._body.stem(pictures), pictures=pictures)

    def pictures(self, inputs: Prepared) -> Tensor:
        """What `inputs` were prepared from: normalised [B, 3, H, W]."""
        if inputs.pictures is None:
            raise EncoderError("these inputs were not prepared from pictures")
        return inputs.pictures

    def encode(self, inputs: Prepared, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        return _encode(self._body, self.parameters, inputs, parameters)


class TextTower:
    """Texts to unit rows."""

    modality: Modality = "text"

    def __init__(
        self,
        body: TextBody,
        parameters: Mapping[str, Tensor],
        *,
        tokenize: Tokenize | None,
        device: torch.device,
        half: bool = False,
    ) -> None:
        self.parameters = parameters
        self._body = body
        self._tokenize = tokenize
        self._device = device
        width = max((value.numel() for value in parameters.values()), default=_REFERENCE_WIDTH)
        self._bucket_cost = bucket_cost(width, half=half, device=device)

    def prepare(self, items: Sequence[str]) -> Prepared | Buckets:
        if self._tokenize is None:
            raise EncoderError("this encoder was built without a tokenizer; use prepare_tensors")
        if isinstance(items, str) or not all(isinstance(item, str) for item in items):
            raise EncoderError("a text tower takes a sequence of texts")
        if not len(items):
            raise EncoderError("an empty batch cannot be encoded")
        tokens = self._tokenize(items)
        lengths = tokens.attention_mask.sum(dim=1)
        order = lengths.argsort(stable=True)
        sizes = bucket_sizes(lengths[order].tolist(), self._bucket_cost)
        if len(sizes) == 1:
            return self.prepare_tensors(tokens.ids, tokens.attention_mask)
        parts = []
        for rows in torch.split(order, sizes):
            longest = int(lengths[rows[-1]])
            parts.append(
                self.prepare_tensors(tokens.ids[rows, :longest], tokens.attention_mask[rows, :longest])
            )
        return Buckets(parts, order.argsort().to(self._device))

    def prepare_tensors(self, tensor: Tensor, attention_mask: Tensor | None = None) -> Prepared:
        """Token ids [B, L]; without `attention_mask` every token counts."""
        ids = tensor.to(self._device, torch.long)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(self._device)
        with torch.no_grad():
            return self._body.stem(Tokens(ids, mask))

    def encode(self, inputs: Prepared | Buckets, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        return _encode(self._body, self.parameters, inputs, parameters)


_BUCKET_STEP = 8
_MOST_BUCKETS = 4
_BUCKET_COST = 96.0
_REFERENCE_WIDTH = 512
_HALF_SPEEDUP = 2.5


def bucket_cost(width: int, *, half: bool, device: torch.device) -> float:
    """What one more group of texts costs, in tokens that could have been encoded in its time.

    Every group launches all kernels again, whatever their size. That pays for wide towers on a CPU (about 96
    tokens at 512 features in fp32), less for narrow ones and in bf16, and never on a GPU.
    """
    if device.type != "cpu":
        return math.inf
    return _BUCKET_COST * (_REFERENCE_WIDTH / width) ** 2 * (_HALF_SPEEDUP if half else 1.0)


def bucket_sizes(lengths: Sequence[int], cost_tokens: float) -> list[int]:
    """Into which groups to cut texts whose lengths ascend, so that the fewest padded tokens are encoded.

    `cost_tokens` is what each group after the first costs by itself (`bucket_cost`). Groups are multiples of
    8 texts but for the last; at most 4 of them. [16 x 5 tokens, 16 x 30] -> [16, 16].
    """
    count = len(lengths)
    cuts = [*range(0, count, _BUCKET_STEP), count]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by texts done: cost and sizes
    for end in cuts[1:]:
        options = [
            (cost + (end - start) * lengths[end - 1] + (cost_tokens if sizes else 0.0), [*sizes, end - start])
            for start, (cost, sizes) in best.items()
            if len(sizes) < _MOST_BUCKETS
        ]
        best[end] = min(options)
    return best[count][1]


def freeze(model: nn.Module, *, dtype: torch.dtype | None) -> None:
    """Eval mode, no gradients; with a dtype, every weight but those of norms is cast to it.

    Norm weights and running statistics keep their precision: they adapt in small steps that bf16 would
    swallow.
    """
    model.eval()
    model.requires_grad_(False)
    if dtype is None:
        return
    for module in model.modules():
        if isinstance(module, NORM_TYPES):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
