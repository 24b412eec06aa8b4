"""Tiny dual encoders with random weights, saved as `save_pretrained` does, with a tokeniser made from a
dict.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    MobileNetV2Config,
    PreTrainedTokenizerFast,
    RobertaConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)
from transformers.models.convnext.configuration_convnext import ConvNextConfig

WORDS = [
    *("a", "dog", "cat", "runs", "over", "the", "green", "grass", "while", "two", "men"),
    *("look", "at", "red", "boats", "on", "water", "near", "big", "old", "house", "sun"),
]
SIZE = 32
BERT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": 8,
}


def tokenizer(*, clip: bool = False) -> PreTrainedTokenizerFast:
    """Words to ids; CLIP: start and end token with the largest ids, padded with the end token. Else [CLS]
    text [SEP].
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    names = [*special, *WORDS] if not clip else [*special[:2], *WORDS, "<s>", "<e>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    start, end = ("<s>", "<e>") if clip else ("[CLS]", "[SEP]")
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=end if clip else "[PAD]",
        unk_token="[UNK]",
        bos_token=start,
        eos_token=end,
        model_max_length=16,
    )


def _end(made: PreTrainedTokenizerFast) -> int:
    return int(made.convert_tokens_to_ids("<e>"))


def clip() -> Any:
    text = {
        **BERT,
        "hidden_act": "quick_gelu",
        "eos_token_id": _end(tokenizer(clip=True)),
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    return CLIPModel(CLIPConfig(projection_dim=24, text_config=text, vision_config=VIT))


def blip() -> Any:
    text = {
        **BERT,
        "encoder_hidden_size": 32,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
        "sep_token_id": 3,
    }
    return BlipForImageTextRetrieval(
        BlipConfig(image_text_hidden_size=24, text_config=text, vision_config=VIT)
    )


def siglip() -> Any:
    text = {**BERT, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0, "projection_size": 32}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=VIT))


def _mixed(vision: Any, text: Any) -> Any:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return VisionTextDualEncoderModel(config)


def vit_bert() -> Any:
    return _mixed(ViTConfig(**VIT), BertConfig(**BERT))


def mobilenet_bert() -> Any:
    return _mixed(
        MobileNetV2Config(image_size=SIZE, depth_multiplier=0.35, hidden_size=1280), BertConfig(**BERT)
    )


def convnext_roberta() -> Any:
    """Towers that have no hand-written body."""
    vision = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIZE)
    vision.hidden_size = 16
    text = {**BERT, "max_position_embeddings": 18, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return _mixed(vision, RobertaConfig(**text))


MODELS: dict[str, Callable[[], Any]] = {
    "clip": clip,
    "blip": blip,
    "siglip": siglip,
    "vit_bert": vit_bert,
    "mobilenet_bert": mobilenet_bert,
    "convnext_roberta": convnext_roberta,
}


def image_processor(name: str) -> Any:
    if name == "blip":
        return BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    if name == "siglip":
        return SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def stirred(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Norms and statistics away from their trivial start, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point() or name.startswith("logit_"):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim == 4:  # keeps the signal of deep convolutions alive
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            else:
                value.add_(0.1 * noise)
    return model.eval()


def save(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    stirred(MODELS[name]()).save_pretrained(folder)
    tokenizer(clip=name == "clip").save_pretrained(folder)
    image_processor(name).save_pretrained(folder)
    return folder
