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

    query, key and value map [B, L, D] to [B, L, H * E], output maps back. `eager` multiplies step by step,
    which beats the fused kernel in bf16 on a CPU.
    """

    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
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
        asking = hidden if rows is None else rows
        query, key, value = (
            self._split(project(source))
            for project, source in ((self.query, asking), (self.key, hidden), (self.value, hidden))
        )
        mixed = self._mix(query, key, value, mask, causal and rows is None)  # [B, H, L, E]
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, projected: Tensor) -> Tensor:
        """[B, L, H * E] -> [B, H, L, E]"""
        return projected.reshape(*projected.shape[:2], self.heads, -1).transpose(1, 2)

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
    """From q_proj, k_proj, v_proj (CLIP, SigLIP, ViT) or query, key, value (BERT)."""
    names = ("q_proj", "k_proj", "v_proj") if hasattr(module, "q_proj") else ("query", "key", "value")
    query, key, value = (getattr(module, name) for name in names)
    return Attention(query, key, value, output, heads, eager)


def joint_attention(qkv: nn.Linear, output: nn.Module, heads: int, *, eager: bool) -> Attention:
    """From one linear layer that holds queries, keys and values below each other (BLIP's image tower)."""

    def part(number: int) -> Callable[[Tensor], Tensor]:
        def project(hidden: Tensor) -> Tensor:
            weight = qkv.weight.chunk(3)[number]
            bias = None if qkv.bias is None else qkv.bias.chunk(3)[number]
            return F.linear(hidden, weight, bias)

        return project

    return Attention(part(0), part(1), part(2), output, heads, eager)
