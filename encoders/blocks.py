"""Transformer blocks over frozen Hugging Face modules, functional in their norms.

A block keeps references to the model's own frozen linear layers and asks for its norm values by name at every
call: `values["text_model.encoder.layers.0.layer_norm1.weight"]`. So one model serves any number of streams at
the same time, nothing is written into the module, and no lock is needed.

Letters: B batch, L tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Values = Mapping[str, Tensor]

_QUICK_GELU = 1.702


@dataclass(frozen=True)
class Norm:
    """A LayerNorm whose weight and bias are `values[name + ".weight"]` and `values[name + ".bias"]`."""

    name: str
    module: nn.LayerNorm

    def __call__(self, hidden: Tensor, values: Values) -> Tensor:
        weight, bias = values[f"{self.name}.weight"], values[f"{self.name}.bias"]
        shape, eps = self.module.normalized_shape, self.module.eps
        if hidden.dtype == weight.dtype or hidden.device.type == "cpu":
            # The CPU kernel takes bf16 rows with fp32 weights and computes in fp32.
            return F.layer_norm(hidden, shape, weight, bias, eps)
        return F.layer_norm(hidden.to(weight.dtype), shape, weight, bias, eps).to(hidden.dtype)

    def frozen(self, hidden: Tensor) -> Tensor:
        """With the module's own values: for a norm outside the adaptable set."""
        return self(
            hidden, {f"{self.name}.weight": self.module.weight, f"{self.name}.bias": self.module.bias}
        )


@dataclass(frozen=True)
class Attention:
    """Multi-head self-attention with frozen projections.

    weight [3 * H * E, D] and bias [3 * H * E] hold the projections to queries, keys and values below each
    other: one product instead of three, in both directions. `output` maps [B, L, H * E] back to [B, L, D].
    `eager` multiplies step by step, which beats the fused kernel in bf16 on a CPU.
    """

    weight: Tensor
    bias: Tensor | None
    output: Callable[[Tensor], Tensor]
    heads: int
    eager: bool

    def __call__(
        self, hidden: Tensor, mask: Tensor | None, causal: bool, rows: Tensor | None = None
    ) -> Tensor:
        """[B, L, D] -> [B, L, D], or [B, 1, D] for the one token of each row given as `rows` [B, 1, D].

        mask: additive, broadcastable to [B, H, L, L] (with `rows`: [B, H, 1, L]). causal is ignored beside
        `rows`, whose mask then has to say what may be seen.
        """
        if rows is None:
            query, key, value = self._project(hidden, 0, 3)
        else:
            (query,), (key, value) = self._project(rows, 0, 1), self._project(hidden, 1, 3)
        mixed = self._mix(query, key, value, mask, causal and rows is None)  # [B, H, L, E]
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _project(self, hidden: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
        """Parts first..end-1 of queries, keys, values: [B, L, D] -> [B, H, L, E] each."""
        width = len(self.weight) // 3
        part = slice(first * width, end * width)
        projected = F.linear(hidden, self.weight[part], None if self.bias is None else self.bias[part])
        parts = projected.reshape(*hidden.shape[:2], end - first, self.heads, -1)
        return parts.permute(2, 0, 3, 1, 4).unbind(0)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        if not self.eager:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal and mask is None
            )
        if causal and mask is None:
            mask = causal_mask(query.shape[2], query.dtype, query.device)
        scores = torch.matmul(query * (1 / math.sqrt(query.shape[-1])), key.transpose(-1, -2))
        if mask is not None:
            scores = scores + mask
        return torch.matmul(scores.softmax(dim=-1), value)


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive [L, L]: token i sees tokens 0..i."""
    closed = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return closed.triu(diagonal=1)


def padding_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """[B, L] of 1 (token) and 0 (padding) to additive [B, 1, 1, L]; None where nothing is padded."""
    if bool(attention_mask.all()):
        return None
    closed = (attention_mask == 0)[:, None, None, :].to(dtype)
    return closed * torch.finfo(dtype).min


@dataclass(frozen=True)
class PreNormBlock:
    """hidden + attention(norm1(hidden)), then + mlp(norm2(.)): ViT, CLIP, SigLIP and BLIP's image tower."""

    norm1: Norm
    attention: Attention
    norm2: Norm
    mlp: Callable[[Tensor], Tensor]

    def __call__(
        self, hidden: Tensor, values: Values, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        hidden = hidden + self.attention(self.norm1(hidden, values), mask, causal)
        return hidden + self.mlp(self.norm2(hidden, values))

    def last(self, hidden: Tensor, values: Values, positions: Tensor | None, causal: bool = False) -> Tensor:
        """The block for one token of each row only: [B, L, D] -> [B, D].

        The pooled token is all that the last block has to deliver; its other tokens would be computed for
        nothing. positions [B]: the token of each row, None for the first. causal: it sees itself and what
        comes before it.
        """
        normed = self.norm1(hidden, values)
        mask = visible_mask(positions, hidden) if causal else None
        row = pick(hidden, positions) + self.attention(normed, mask, False, rows=pick(normed, positions))
        return (row + self.mlp(self.norm2(row, values)))[:, 0]


def pick(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """[B, L, D] -> [B, 1, D]: the token at `positions` [B] of each row, None: the first."""
    if positions is None:
        return hidden[:, :1]
    index = positions[:, None, None].expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index)


def visible_mask(positions: Tensor | None, hidden: Tensor) -> Tensor:
    """Additive [B, 1, 1, L]: the token at `positions` sees 0..position."""
    tokens = torch.arange(hidden.shape[1], device=hidden.device)
    last = (
        torch.zeros(hidden.shape[0], dtype=torch.long, device=hidden.device)
        if positions is None
        else positions
    )
    closed = (tokens[None, :] > last[:, None])[:, None, None, :].to(hidden.dtype)
    return closed * torch.finfo(hidden.dtype).min


@dataclass(frozen=True)
class PostNormBlock:
    """norm(hidden + attention(hidden)), then norm(. + mlp(.)): BERT, BLIP's text tower in text mode."""

    attention: Attention
    norm1: Norm
    mlp: Callable[[Tensor], Tensor]
    norm2: Norm

    def __call__(self, hidden: Tensor, values: Values, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        hidden = self.norm1(hidden + self.attention(hidden, mask, False), values)
        return self.norm2(hidden + self.mlp(hidden), values)

    def last(self, hidden: Tensor, values: Values, mask: Tensor | None = None) -> Tensor:
        """The block for the first token of each row only: [B, L, D] -> [B, D]."""
        row = hidden[:, :1]
        row = self.norm1(row + self.attention(hidden, mask, False, rows=row), values)
        return self.norm2(row + self.mlp(row), values)[:, 0]


def norm_at(model: nn.Module, name: str) -> Norm:
    """The LayerNorm called `name` inside the whole model."""
    module = model.get_submodule(name)
    if not isinstance(module, nn.LayerNorm):
        raise TypeError(f"{name} is a {type(module).__name__}, not a LayerNorm")
    return Norm(name, module)


def two_layers(
    first: nn.Module, activation: Callable[[Tensor], Tensor], second: nn.Module
) -> Callable[[Tensor], Tensor]:
    def mlp(hidden: Tensor) -> Tensor:
        result: Tensor = second(activation(first(hidden)))
        return result

    return mlp


def separate_attention(module: Any, output: nn.Module, heads: int, *, eager: bool) -> Attention:
    """From q_proj, k_proj, v_proj (CLIP, SigLIP, ViT) or query, key, value (BERT).

    The module's own weights become views of the joint matrix, so that nothing is held twice.
    """
    names = ("q_proj", "k_proj", "v_proj") if hasattr(module, "q_proj") else ("query", "key", "value")
    layers: list[nn.Linear] = [getattr(module, name) for name in names]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat([_bias(layer) for layer in layers])
    for part, layer in enumerate(layers):
        width = layer.out_features
        layer.weight.data = weight[part * width : (part + 1) * width]
        if bias is not None and layer.bias is not None:
            layer.bias.data = bias[part * width : (part + 1) * width]
    return Attention(weight, bias, output, heads, eager)


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()


def joint_attention(qkv: nn.Linear, output: nn.Module, heads: int, *, eager: bool) -> Attention:
    """From one linear layer that holds queries, keys and values below each other (BLIP's image tower)."""
    return Attention(qkv.weight, qkv.bias, output, heads, eager)


def fold_quick_gelu(model: nn.Module) -> None:
    """Make CLIP's activation one kernel: x sigmoid(1.702 x) = silu(1.702 x) / 1.702.

    The factors go into the frozen layers around it, in the precision they have now: call it before casting.
    The model computes what it did before, to rounding.
    """
    for module in model.modules():
        if type(getattr(module, "activation_fn", None)).__name__ != "QuickGELUActivation":
            continue
        first, second = getattr(module, "fc1", None), getattr(module, "fc2", None)
        if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
            continue
        with torch.no_grad():
            first.weight.mul_(_QUICK_GELU)
            if first.bias is not None:
                first.bias.mul_(_QUICK_GELU)
            second.weight.div_(_QUICK_GELU)
        module.activation_fn = nn.SiLU()
