"""The transformer towers of Hugging Face dual encoders: CLIP, BLIP, SigLIP, and ViT and BERT in a
VisionTextDualEncoder.

Each builder takes the whole frozen model and returns a body (see `towers.py`). Only the pooled token leaves
the last block. The adaptable norms are those of TCR (arXiv 2410.15624 and its code): of a CLIP or SigLIP text
tower the blocks' norms but not the final one, of every other tower all norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.blocks import (
    Attention,
    Norm,
    PostNormBlock,
    PreNormBlock,
    Values,
    joint_attention,
    norm_at,
    padding_mask,
    separate_attention,
    two_layers,
)
from encoders.towers import Prepared, Tokens, norm_names

Project = Callable[[Tensor], Tensor]


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


@dataclass(frozen=True)
class PreNormImageBody:
    """CLIP, BLIP and ViT: [pre-norm,] blocks, norm and projection of the class token."""

    norms: Sequence[str]
    embed: Callable[[Tensor], Tensor]
    pre_norm: Norm | None
    blocks: Sequence[PreNormBlock]
    post_norm: Norm
    project: Project
    dtype: torch.dtype

    def stem(self, pixels: Tensor) -> Prepared:
        return Prepared(self.embed(pixels.to(self.dtype)))

    def __call__(self, prepared: Prepared, values: Values) -> Tensor:
        hidden = prepared.hidden
        if self.pre_norm is not None:
            hidden = self.pre_norm(hidden, values)
        for block in self.blocks[:-1]:
            hidden = block(hidden, values)
        pooled = self.blocks[-1].last(hidden, values, None)
        return self.project(self.post_norm(pooled, values))


@dataclass(frozen=True)
class SiglipImageBody:
    """Blocks, norm, attention pooling."""

    norms: Sequence[str]
    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[PreNormBlock]
    post_norm: Norm
    head: Any
    head_norm: Norm
    dtype: torch.dtype

    def stem(self, pixels: Tensor) -> Prepared:
        return Prepared(self.embed(pixels.to(self.dtype)))

    def __call__(self, prepared: Prepared, values: Values) -> Tensor:
        hidden = prepared.hidden
        for block in self.blocks:
            hidden = block(hidden, values)
        hidden = self.post_norm(hidden, values)
        probe = self.head.probe.expand(len(prepared), -1, -1)
        pooled = self.head.attention(probe, hidden, hidden, need_weights=False)[0][:, 0]
        return pooled + self.head.mlp(self.head_norm(pooled, values))


@dataclass(frozen=True)
class PreNormTextBody:
    """CLIP (causal, pooled at the end token) and SigLIP (all tokens seen, pooled at the last position)."""

    norms: Sequence[str]
    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[PreNormBlock]
    final_norm: Norm
    project: Project
    positions: Callable[[Tensor], Tensor]
    causal: bool

    def stem(self, tokens: Tokens) -> Prepared:
        # Padding stands behind the pooled token (CLIP) or is seen by definition (SigLIP): no padding mask.
        return Prepared(self.embed(tokens.ids), positions=self.positions(tokens.ids))

    def __call__(self, prepared: Prepared, values: Values) -> Tensor:
        hidden = prepared.hidden
        for block in self.blocks[:-1]:
            hidden = block(hidden, values, causal=self.causal)
        pooled = self.blocks[-1].last(hidden, values, prepared.positions, causal=self.causal)
        return self.project(self.final_norm.frozen(pooled))


@dataclass(frozen=True)
class PostNormTextBody:
    """BERT and BLIP's text tower: norm of the embeddings, blocks, [pooler,] projection of the first token."""

    norms: Sequence[str]
    embed: Callable[[Tensor], Tensor]
    embed_norm: Norm
    blocks: Sequence[PostNormBlock]
    project: Project

    def stem(self, tokens: Tokens) -> Prepared:
        hidden = self.embed(tokens.ids)
        return Prepared(hidden, mask=padding_mask(tokens.attention_mask, hidden.dtype))

    def __call__(self, prepared: Prepared, values: Values) -> Tensor:
        hidden = self.embed_norm(prepared.hidden, values)
        for block in self.blocks[:-1]:
            hidden = block(hidden, values, prepared.mask)
        return self.project(self.blocks[-1].last(hidden, values, prepared.mask))


# --- builders ---


def clip_image(model: Any, *, eager: bool, tower: str = "vision_model") -> PreNormImageBody:
    vision = model.get_submodule(tower)
    return PreNormImageBody(
        norms=norm_names(model, tower),
        embed=vision.embeddings,
        pre_norm=norm_at(model, f"{tower}.pre_layrnorm"),
        blocks=_clip_blocks(model, tower, vision.config.num_attention_heads, eager=eager),
        post_norm=norm_at(model, f"{tower}.post_layernorm"),
        project=model.visual_projection,
        dtype=_dtype(vision.embeddings),
    )


def clip_text(model: Any, *, eager: bool) -> PreNormTextBody:
    text = model.text_model
    return PreNormTextBody(
        norms=norm_names(model, "text_model.encoder"),
        embed=text.embeddings,
        blocks=_clip_blocks(model, "text_model", text.config.num_attention_heads, eager=eager),
        final_norm=norm_at(model, "text_model.final_layer_norm"),
        project=model.text_projection,
        positions=end_positions(text.config.eos_token_id),
        causal=True,
    )


def end_positions(end_token: int) -> Callable[[Tensor], Tensor]:
    """Ids [B, L] to the pooled position [B], by Transformers' rule.

    An end token of 2 marks a configuration from before the rule was mended: those, as OpenAI's code, pool at
    the largest id.
    """

    def positions(ids: Tensor) -> Tensor:
        found = ids if end_token == 2 else (ids == end_token).int()
        return found.argmax(dim=-1)

    return positions


def siglip_image(model: Any, *, eager: bool) -> SiglipImageBody:
    vision = model.vision_model
    return SiglipImageBody(
        norms=norm_names(model, "vision_model"),
        embed=vision.embeddings,
        blocks=_clip_blocks(model, "vision_model", vision.config.num_attention_heads, eager=eager),
        post_norm=norm_at(model, "vision_model.post_layernorm"),
        head=vision.head,
        head_norm=norm_at(model, "vision_model.head.layernorm"),
        dtype=_dtype(vision.embeddings),
    )


def siglip_text(model: Any, *, eager: bool) -> PreNormTextBody:
    text = model.text_model
    return PreNormTextBody(
        norms=norm_names(model, "text_model.encoder"),
        embed=text.embeddings,
        blocks=_clip_blocks(model, "text_model", text.config.num_attention_heads, eager=eager),
        final_norm=norm_at(model, "text_model.final_layer_norm"),
        project=text.head,
        positions=_last_positions,
        causal=False,
    )


def _last_positions(ids: Tensor) -> Tensor:
    return torch.full((ids.shape[0],), ids.shape[1] - 1, dtype=torch.long, device=ids.device)


def blip_image(model: Any, *, eager: bool) -> PreNormImageBody:
    vision, tower = model.vision_model, "vision_model"
    heads = vision.config.num_attention_heads
    blocks = [
        PreNormBlock(
            norm1=norm_at(model, f"{tower}.encoder.layers.{number}.layer_norm1"),
            attention=joint_attention(layer.self_attn.qkv, layer.self_attn.projection, heads, eager=eager),
            norm2=norm_at(model, f"{tower}.encoder.layers.{number}.layer_norm2"),
            mlp=layer.mlp,
        )
        for number, layer in enumerate(vision.encoder.layers)
    ]
    return PreNormImageBody(
        norms=norm_names(model, tower),
        embed=vision.embeddings,
        pre_norm=None,
        blocks=blocks,
        post_norm=norm_at(model, f"{tower}.post_layernorm"),
        project=model.vision_proj,
        dtype=_dtype(vision.embeddings),
    )


def blip_text(model: Any, *, eager: bool) -> PostNormTextBody:
    """The cross-attention norms belong to `norms` as in the paper's code; text mode gives them no
    gradient.
    """
    text = model.text_encoder
    embeddings = text.embeddings

    def embed(ids: Tensor) -> Tensor:
        places = embeddings.position_ids[:, : ids.shape[1]]
        hidden: Tensor = embeddings.word_embeddings(ids) + embeddings.position_embeddings(places)
        return hidden

    return PostNormTextBody(
        norms=norm_names(model, "text_encoder"),
        embed=embed,
        embed_norm=norm_at(model, "text_encoder.embeddings.LayerNorm"),
        blocks=_bert_blocks(model, "text_encoder", text.config.num_attention_heads, eager=eager),
        project=model.text_proj,
    )


def bert_text(model: Any, *, eager: bool) -> PostNormTextBody:
    text = model.text_model
    embeddings = text.embeddings

    def embed(ids: Tensor) -> Tensor:
        places = embeddings.position_ids[:, : ids.shape[1]]
        kinds = embeddings.token_type_embeddings.weight[0]  # one sentence a text: type 0 throughout
        hidden: Tensor = embeddings.word_embeddings(ids) + kinds + embeddings.position_embeddings(places)
        return hidden

    def project(first: Tensor) -> Tensor:
        projected: Tensor = model.text_projection(text.pooler.activation(text.pooler.dense(first)))
        return projected

    return PostNormTextBody(
        norms=norm_names(model, "text_model"),
        embed=embed,
        embed_norm=norm_at(model, "text_model.embeddings.LayerNorm"),
        blocks=_bert_blocks(model, "text_model", text.config.num_attention_heads, eager=eager),
        project=project,
    )


def vit_image(model: Any, *, eager: bool) -> PreNormImageBody:
    vision, tower = model.vision_model, "vision_model"
    heads = vision.config.num_attention_heads
    blocks = [
        PreNormBlock(
            norm1=norm_at(model, f"{tower}.layers.{number}.layernorm_before"),
            attention=separate_attention(layer.attention, layer.attention.o_proj, heads, eager=eager),
            norm2=norm_at(model, f"{tower}.layers.{number}.layernorm_after"),
            mlp=layer.mlp,
        )
        for number, layer in enumerate(vision.layers)
    ]

    def project(first: Tensor) -> Tensor:
        projected: Tensor = model.visual_projection(vision.pooler.activation(vision.pooler.dense(first)))
        return projected

    return PreNormImageBody(
        norms=norm_names(model, tower),
        embed=vision.embeddings,
        pre_norm=None,
        blocks=blocks,
        post_norm=norm_at(model, f"{tower}.layernorm"),
        project=project,
        dtype=_dtype(vision.embeddings),
    )


def _clip_blocks(model: Any, tower: str, heads: int, *, eager: bool) -> list[PreNormBlock]:
    """CLIP and SigLIP name the parts of a block alike."""
    layers = model.get_submodule(f"{tower}.encoder.layers")
    return [
        PreNormBlock(
            norm1=norm_at(model, f"{tower}.encoder.layers.{number}.layer_norm1"),
            attention=separate_attention(layer.self_attn, layer.self_attn.out_proj, heads, eager=eager),
            norm2=norm_at(model, f"{tower}.encoder.layers.{number}.layer_norm2"),
            mlp=layer.mlp,
        )
        for number, layer in enumerate(layers)
    ]


def _bert_blocks(model: Any, tower: str, heads: int, *, eager: bool) -> list[PostNormBlock]:
    """BERT and BLIP's text tower name the parts of a block alike."""
    layers = model.get_submodule(f"{tower}.encoder.layer")
    return [
        PostNormBlock(
            attention=_bert_attention(layer, heads, eager=eager),
            norm1=norm_at(model, f"{tower}.encoder.layer.{number}.attention.output.LayerNorm"),
            mlp=two_layers(
                layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense
            ),
            norm2=norm_at(model, f"{tower}.encoder.layer.{number}.output.LayerNorm"),
        )
        for number, layer in enumerate(layers)
    ]


def _bert_attention(layer: Any, heads: int, *, eager: bool) -> Attention:
    # `self` is the name of the module in BERT.
    return separate_attention(layer.attention.self, layer.attention.output.dense, heads, eager=eager)
