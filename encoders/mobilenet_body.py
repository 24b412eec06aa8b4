"""MobileNetV2 as an image tower whose BatchNorm affines adapt (running statistics stay frozen).

An eval-mode BatchNorm behind a frozen convolution is an affine map of its output, so it is folded into the
convolution at every forward: conv(x, W) * s + t = conv(x, W * s) + t with s = weight / sqrt(var + eps) and
t = bias - mean * s. Autograd then finds the gradient of weight and bias through s and t, and the activations
are read once less in each direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.blocks import Values
from encoders.towers import Prepared, norm_names


@dataclass(frozen=True)
class FoldedConvolution:
    """Convolution, BatchNorm and activation of one `MobileNetV2ConvLayer`."""

    name: str
    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    activation: Any
    tf_padding: bool

    def __call__(self, features: Tensor, values: Values) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']"""
        scale, shift = self._affine(values)
        weight = self.convolution.weight * scale.to(features.dtype)[:, None, None, None]
        return self._activate(self._convolve(features, weight, shift.to(features.dtype)))

    def raw(self, features: Tensor) -> Tensor:
        """The convolution alone: what comes before the BatchNorm."""
        return self._convolve(features, self.convolution.weight, None)

    def finish(self, raw: Tensor, values: Values) -> Tensor:
        """BatchNorm and activation of `raw(features)`."""
        scale, shift = (value.to(raw.dtype)[:, None, None] for value in self._affine(values))
        return self._activate(torch.addcmul(shift, raw, scale))

    def _affine(self, values: Values) -> tuple[Tensor, Tensor]:
        """Scale and shift [C'] of the eval-mode BatchNorm, in the precision of its weight."""
        weight, bias = values[f"{self.name}.weight"], values[f"{self.name}.bias"]
        assert self.norm.running_var is not None
        assert self.norm.running_mean is not None
        scale = weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return scale, bias - self.norm.running_mean * scale

    def _convolve(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.convolution
        sides = same_padding(features, layer) if self.tf_padding else _given_padding(layer)
        return convolve(features, weight, bias, layer, sides)

    def _activate(self, features: Tensor) -> Tensor:
        if self.activation is None:
            return features
        if isinstance(self.activation, nn.ReLU6):
            # In place: the convolution keeps its input for the backward, not its output.
            return F.hardtanh_(features, 0.0, 6.0)
        activated: Tensor = self.activation(features)
        return activated


Sides = tuple[int, int, int, int]
"""Padding left, right, above, below."""


def same_padding(features: Tensor, layer: nn.Conv2d) -> Sides:
    """TensorFlow's "same" padding: the odd pixel goes to the right and below."""
    sides: list[int] = []
    for size, stride, kernel, dilation in zip(
        reversed(features.shape[-2:]),
        reversed(layer.stride),
        reversed(layer.kernel_size),
        reversed(layer.dilation),
        strict=True,
    ):
        rest = stride if size % stride == 0 else size % stride
        total = max(kernel - rest, 0)
        sides += [total // 2 * dilation, (total - total // 2) * dilation]
    left, right, above, below = sides
    return left, right, above, below


def _given_padding(layer: nn.Conv2d) -> Sides:
    down, across = (int(side) for side in layer.padding)
    return across, across, down, down


def convolve(features: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d, sides: Sides) -> Tensor:
    """The convolution `layer` with other weights and with padding that may differ between the sides.

    All ways give the same numbers; they differ in speed on a CPU. Measured for a depthwise layer of stride 2
    (96 channels of 64 x 64, batch 64): a kernel widened with zeros needs half the forward time of padding the
    picture, but a slower backward; the bf16 kernel's backward takes six times as long as the fp32 one.
    """
    left, right, above, below = sides
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups
    if (left, above) == (right, below):
        return F.conv2d(features, weight, bias, stride, (above, left), dilation, groups)
    wants_gradient = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    if not wants_gradient and dilation == (1, 1):
        widened = F.pad(weight, (right - left, 0, below - above, 0))
        return F.conv2d(features, widened, bias, stride, (below, right), dilation, groups)
    padded = F.pad(features, sides)
    if groups > 1 and features.dtype == torch.bfloat16 and features.device.type == "cpu":
        full_bias = None if bias is None else bias.float()
        full = F.conv2d(padded.float(), weight.float(), full_bias, stride, 0, dilation, groups)
        return full.to(features.dtype)
    return F.conv2d(padded, weight, bias, stride, 0, dilation, groups)


@dataclass(frozen=True)
class FoldedBlock:
    """Expand, depthwise, reduce; with a residual where shapes allow."""

    convolutions: Sequence[FoldedConvolution]
    residual: bool

    def __call__(self, features: Tensor, values: Values) -> Tensor:
        result = features
        for convolution in self.convolutions:
            result = convolution(result, values)
        return features + result if self.residual else result


@dataclass(frozen=True)
class MobileNetBody:
    norms: Sequence[str]
    first: FoldedConvolution
    blocks: Sequence[FoldedBlock]
    last: FoldedConvolution
    project: nn.Module

    def stem(self, pixels: Tensor) -> Prepared:
        dtype = self.first.convolution.weight.dtype
        return Prepared(self.first.raw(pixels.to(dtype).contiguous(memory_format=torch.channels_last)))

    def __call__(self, prepared: Prepared, values: Values) -> Tensor:
        features = self.first.finish(prepared.hidden, values)
        for block in self.blocks:
            features = block(features, values)
        pooled = self.last(features, values).mean(dim=(2, 3))
        projected: Tensor = self.project(pooled)
        return projected


def mobilenet_image(model: Any) -> MobileNetBody:
    """From a VisionTextDualEncoder whose vision model is a MobileNetV2Model."""
    vision, tower = model.vision_model, "vision_model"
    vision.to(memory_format=torch.channels_last)
    stem, stem_name = vision.conv_stem, f"{tower}.conv_stem"
    rest = [
        f"{stem_name}.{part}"
        for part in ("expand_1x1", "conv_3x3", "reduce_1x1")
        if getattr(stem, part) is not None
    ]
    blocks = [FoldedBlock([_folded(model, name) for name in rest], residual=False)]
    for number, layer in enumerate(vision.layer):
        parts = [f"{tower}.layer.{number}.{part}" for part in ("expand_1x1", "conv_3x3", "reduce_1x1")]
        blocks.append(FoldedBlock([_folded(model, name) for name in parts], residual=layer.use_residual))
    return MobileNetBody(
        norms=norm_names(model, tower),
        first=_folded(model, f"{stem_name}.first_conv"),
        blocks=blocks,
        last=_folded(model, f"{tower}.conv_1x1"),
        project=model.visual_projection,
    )


def _folded(model: nn.Module, name: str) -> FoldedConvolution:
    layer: Any = model.get_submodule(name)
    if layer.convolution.bias is not None:
        raise TypeError(f"{name} has a convolution bias")
    return FoldedConvolution(
        name=f"{name}.normalization",
        convolution=layer.convolution,
        norm=layer.normalization,
        activation=layer.activation,
        tf_padding=bool(layer.config.tf_padding),
    )
