"""A Hugging Face dual encoder as Attune's `Encoder`: which body belongs to which architecture.

Supported: `CLIPModel`, `BlipForImageTextRetrieval`, `SiglipModel`, `VisionTextDualEncoderModel` (CLIP, ViT,
MobileNetV2 and BERT towers fast, any other that gives a pooled output slower).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from encoders.base import EncoderError, Modality, UnsupportedEncoder
from encoders.blocks import fold_quick_gelu
from encoders.generic_body import GenericImageBody, GenericTextBody
from encoders.mobilenet_body import mobilenet_image
from encoders.preprocessing import ImageSpec
from encoders.towers import ImageBody, ImageTower, TextBody, TextTower, Tokenize, freeze, source_values
from encoders.transformer_bodies import (
    bert_text,
    blip_image,
    blip_text,
    clip_image,
    clip_text,
    siglip_image,
    siglip_text,
    vit_image,
)

SUPPORTED = ("CLIPModel", "BlipForImageTextRetrieval", "SiglipModel", "VisionTextDualEncoderModel")
# What decides about the features beside the weights. A list of the relevant settings, not of the irrelevant
# ones: a new release of Transformers adds settings, and stored galleries must not become strangers by that.
_RELEVANT_CONFIG = (
    "depth_multiplier",
    "eos_token_id",
    "hidden_act",
    "image_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "output_stride",
    "patch_size",
    "pooler_act",
    "projection_dim",
    "text_config",
    "tf_padding",
    "vision_config",
)


@dataclass(frozen=True)
class DualEncoder:
    """See `encoders.base.Encoder`."""

    name: str
    dimension: int
    fingerprint: str
    temperature: float
    device: torch.device
    dtype_name: str
    image_spec: ImageSpec
    towers: Mapping[Modality, Any]


def encoder_from_model(
    model: nn.Module,
    *,
    image_spec: ImageSpec,
    tokenize: Tokenize | None = None,
    tokenizer_content: str = "",
    name: str = "in-memory",
    device: torch.device | str = "cpu",
    dtype: str = "fp32",
) -> DualEncoder:
    """Wrap a dual encoder that is already in memory.

    The model is taken over: frozen, moved, its activations folded, and cast in place for bf16.

    dtype: "fp32" leaves the weights' precision as it is (fp64 stays fp64), "bf16" casts all but the norms.
    Without `tokenize` the text tower takes token ids through `prepare_tensors` only.
    `tokenizer_content` enters the fingerprint.

    Raises:
        UnsupportedEncoder: the architecture is none of `SUPPORTED`.
    """
    if dtype not in ("fp32", "bf16"):
        raise EncoderError(f"dtype must be fp32 or bf16, not {dtype!r}")
    where = torch.device(device)
    half = torch.bfloat16 if dtype == "bf16" else None
    fingerprint = fingerprint_of(model, image_spec, tokenizer_content)
    fold_quick_gelu(model)
    freeze(model, dtype=half)
    model.to(where)
    image_body, text_body = _bodies(model, device=where, half=half)
    image_values, text_values = source_values(model, image_body.norms), source_values(model, text_body.norms)
    for side, values in (("image", image_values), ("text", text_values)):
        if not values:
            raise UnsupportedEncoder(
                f"the {side} tower of {name} has no normalisation layer that could adapt"
            )
    return DualEncoder(
        name=name,
        dimension=_dimension(model),
        fingerprint=fingerprint,
        temperature=temperature_of(model),
        device=where,
        dtype_name=dtype,
        image_spec=image_spec,
        towers={
            "image": ImageTower(image_body, image_values, spec=image_spec, device=where),
            "text": TextTower(text_body, text_values, tokenize=tokenize, device=where, half=half is not None),
        },
    )


def _bodies(model: Any, *, device: torch.device, half: torch.dtype | None) -> tuple[ImageBody, TextBody]:
    # In bf16 on a CPU the step-by-step attention is faster; everywhere else the fused kernel is.
    eager = half is not None and device.type == "cpu"
    kind = type(model).__name__
    if kind == "CLIPModel":
        return clip_image(model, eager=eager), clip_text(model, eager=eager)
    if kind == "BlipForImageTextRetrieval":
        return blip_image(model, eager=eager), blip_text(model, eager=eager)
    if kind == "SiglipModel":
        if not getattr(model.vision_model.config, "vision_use_head", True):
            raise UnsupportedEncoder(
                "this SigLIP model has no pooling head, so its pictures have no single feature"
            )
        return siglip_image(model, eager=eager), siglip_text(model, eager=eager)
    if kind == "VisionTextDualEncoderModel":
        return _mixed_image(model, eager=eager, half=half), _mixed_text(model, eager=eager, half=half)
    raise UnsupportedEncoder(f"{kind} is not supported; Attune can adapt {', '.join(SUPPORTED)}")


def _mixed_image(model: Any, *, eager: bool, half: torch.dtype | None) -> ImageBody:
    vision = model.vision_model
    kind = type(vision).__name__
    if kind == "CLIPVisionModel" and hasattr(vision, "pre_layrnorm"):
        return clip_image(model, eager=eager)
    # Older releases of Transformers nest ViT's parts differently; those go the generic way.
    if kind == "ViTModel" and vision.pooler is not None and hasattr(vision, "layers"):
        return vit_image(model, eager=eager)
    if kind == "MobileNetV2Model" and vision.pooler is not None:
        return mobilenet_image(model)
    return GenericImageBody(model, autocast=half)


def _mixed_text(model: Any, *, eager: bool, half: torch.dtype | None) -> TextBody:
    text = model.text_model
    if type(text).__name__ == "BertModel" and text.pooler is not None and not text.config.is_decoder:
        return bert_text(model, eager=eager)
    return GenericTextBody(model, autocast=half)


def _dimension(model: Any) -> int:
    for name in ("visual_projection", "vision_proj"):
        if hasattr(model, name):
            return int(getattr(model, name).out_features)
    return int(model.text_model.head.out_features)  # SigLIP


def temperature_of(model: Any) -> float:
    """1 / exp(logit_scale), the softmax temperature the model was trained with.

    BLIP's retrieval model keeps no scale; its configuration holds the initial one, ln(1 / 0.07).
    """
    scale = getattr(model, "logit_scale", None)
    if scale is not None:
        return math.exp(-float(scale.detach().flatten()[0]))
    return math.exp(-float(getattr(model.config, "logit_scale_init_value", 0.0)))


def fingerprint_of(model: nn.Module, image_spec: ImageSpec, tokenizer_content: str) -> str:
    """sha256 over weights, configuration, preprocessing and tokeniser, as hex.

    The inference dtype is not part of it, so that a gallery encoded in one dtype may be searched with the
    other: bf16 and fp32 vectors of a transformer agree to 1e-4 in cosine. (MobileNetV2 rounds at fifty
    convolutions: 0.998 at worst and 0.9994 on average over 32 photos; encode its galleries in fp32.)
    Call it before casting.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    config: Any = getattr(model, "config", None)
    parts = [
        type(model).__name__,
        json.dumps(_relevant(config.to_dict()) if config is not None else {}, sort_keys=True, default=str),
        json.dumps(image_spec.to_dict(), sort_keys=True),
        tokenizer_content,
    ]
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _relevant(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name in _RELEVANT_CONFIG
    }
