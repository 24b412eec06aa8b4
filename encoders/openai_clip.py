"""OpenAI's CLIP weights as a Hugging Face `CLIPModel`, and the names of one layout in the other.

The layout is that of openai/CLIP's `CLIP(nn.Module)` with a vision transformer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from encoders.base import UnsupportedEncoder
from encoders.dual import DualEncoder, encoder_from_model
from encoders.preprocessing import ImageSpec

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_TOP = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    **{
        f"{openai}.{kind}": f"{hugging}.{kind}"
        for openai, hugging in (
            ("visual.ln_pre", "vision_model.pre_layrnorm"),
            ("visual.ln_post", "vision_model.post_layernorm"),
            ("ln_final", "text_model.final_layer_norm"),
        )
        for kind in ("weight", "bias")
    },
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"^(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)$")
_TRANSPOSED = ("visual.proj", "text_projection")
# Kept in OpenAI's archives beside the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def hugging_face_name(openai_name: str) -> str:
    """`visual.transformer.resblocks.0.ln_1.weight` -> `vision_model.encoder.layers.0.layer_norm1.weight`.

    Raises KeyError for the joint attention weights, which become three tensors, and for unknown names.
    """
    if openai_name in _TOP:
        return _TOP[openai_name]
    match = _BLOCK.match(openai_name)
    if match is None or match[3] not in _IN_BLOCK:
        raise KeyError(openai_name)
    tower = "vision_model" if match[1] else "text_model"
    return f"{tower}.encoder.layers.{match[2]}.{_IN_BLOCK[match[3]]}.{match[4]}"


def openai_name(hugging_name: str) -> str:
    """The other way round: `vision_model.pre_layrnorm.weight` -> `visual.ln_pre.weight`. Raises KeyError for
    unknown names.
    """
    for openai, hugging in _TOP.items():
        if hugging == hugging_name:
            return openai
    match = re.match(r"^(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", hugging_name)
    back = {hugging: openai for openai, hugging in _IN_BLOCK.items()}
    if match is None or match[3] not in back:
        raise KeyError(hugging_name)
    tower = "visual." if match[1] == "vision" else ""
    return f"{tower}transformer.resblocks.{match[2]}.{back[match[3]]}.{match[4]}"


def clip_from_openai(state_dict: Mapping[str, Tensor], *, text_heads: int | None = None) -> Any:
    """A `CLIPModel` (eval mode, the dtype of the weights) from OpenAI's state dict.

    The sizes are read from the weights. Heads are width // 64 in both towers as in OpenAI's code;
    `text_heads` for a model that was made otherwise. Text is pooled at the token with the largest id.

    Raises:
        UnsupportedEncoder: the weights are a ResNet CLIP's, or incomplete.
    """
    from transformers import CLIPModel

    if "visual.proj" not in state_dict or "visual.conv1.weight" not in state_dict:
        raise UnsupportedEncoder("these are no weights of an OpenAI CLIP with a vision transformer")
    weights = {name: tensor for name, tensor in state_dict.items() if name not in _NOT_WEIGHTS}
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        converted.update(_converted(name, tensor))
    model: Any = CLIPModel(_config(weights, text_heads)).to(weights["visual.proj"].dtype)
    missing, unexpected = model.load_state_dict(converted, strict=False)
    if missing or unexpected:
        raise UnsupportedEncoder(
            f"OpenAI CLIP weights do not fit: missing {missing[:3]}, unknown {unexpected[:3]}"
        )
    return model.eval()


def encoder_from_openai(
    state_dict: Mapping[str, Tensor],
    *,
    text_heads: int | None = None,
    name: str = "openai-clip",
    device: torch.device | str = "cpu",
    dtype: str = "fp32",
) -> DualEncoder:
    """An encoder without tokenizer: give token ids and normalised pixels to `tower.prepare_tensors`."""
    model = clip_from_openai(state_dict, text_heads=text_heads)
    size = int(model.config.vision_config.image_size)
    spec = ImageSpec(height=size, width=size, mean=MEAN, std=STD)
    return encoder_from_model(model, image_spec=spec, name=name, device=device, dtype=dtype)


def _converted(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if ".attn.in_proj_" in name:
        return _split_attention(name, tensor)
    try:
        hugging = hugging_face_name(name)
    except KeyError as error:
        raise UnsupportedEncoder(f"{name} is no part of an OpenAI CLIP with a vision transformer") from error
    return {hugging: tensor.T.contiguous() if name in _TRANSPOSED else tensor}


def _split_attention(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """in_proj_weight [3 D, D] and in_proj_bias [3 D] hold queries, keys and values in this order."""
    block, kind = name.split(".attn.in_proj_")
    prefix = hugging_face_name(f"{block}.ln_1.weight").removesuffix(".layer_norm1.weight")
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{prefix}.self_attn.{letter}_proj.{kind}": part.clone() for letter, part in parts}


def _config(weights: Mapping[str, Tensor], text_heads: int | None) -> Any:
    from transformers import CLIPConfig

    vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
    grid = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vocabulary, text_width = weights["token_embedding.weight"].shape
    return CLIPConfig(
        projection_dim=weights["text_projection"].shape[1],
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": 4 * vision_width,
            "num_hidden_layers": _depth(weights, "visual.transformer."),
            "num_attention_heads": max(1, vision_width // 64),
            "image_size": patch * grid,
            "patch_size": patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": _depth(weights, "transformer."),
            "num_attention_heads": text_heads or max(1, text_width // 64),
            "max_position_embeddings": weights["positional_embedding"].shape[0],
            "vocab_size": vocabulary,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            # 2 selects pooling at the largest id, see `end_positions`.
            "eos_token_id": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
    )


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    start = f"{prefix}resblocks."
    return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in weights if name.startswith(start))
