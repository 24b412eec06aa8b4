"""OpenAI's layout against a second implementation written with torch's own transformer parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders.base import UnsupportedEncoder
from encoders.openai_clip import clip_from_openai, encoder_from_openai, hugging_face_name, openai_name

GOLDENS = (
    Path(os.environ.get("ATTUNE_SHARED", Path(__file__).parents[3] / "shared")) / "reference" / "goldens"
)
WIDTH, EMBEDDING, TEXT_WIDTH = 64, 16, 32


class _Block(nn.Module):
    """OpenAI's residual attention block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(hidden)
        hidden = hidden + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        inner = self.mlp["c_fc"](self.ln_2(hidden))
        return hidden + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([_Block(width, heads) for _ in range(2)])

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = hidden.transpose(0, 1)
        for block in self.resblocks:
            hidden = block(hidden, mask)
        return hidden.transpose(0, 1)


class _Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(5, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = _Transformer(WIDTH, 1)
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBEDDING))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        hidden = self.transformer(self.ln_pre(tokens + self.positional_embedding))
        return self.ln_post(hidden[:, 0]) @ self.proj


class _Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = _Visual()
        self.transformer = _Transformer(TEXT_WIDTH, 2)
        self.token_embedding = nn.Embedding(40, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(8, TEXT_WIDTH))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, EMBEDDING))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def text(self, ids: Tensor) -> Tensor:
        mask = torch.full((8, 8), float("-inf")).triu(1)
        hidden = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding, mask))
        return hidden[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection


@pytest.fixture(scope="module")
def original() -> _Clip:
    torch.manual_seed(0)
    model = _Clip().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_image_features_equal_the_original(original: _Clip) -> None:
    tower = encoder_from_openai(original.state_dict(), text_heads=2).towers["image"]
    pixels = torch.randn(5, 3, 16, 16)
    expected = nn.functional.normalize(original.visual(pixels), dim=-1)
    torch.testing.assert_close(tower.encode(tower.prepare_tensors(pixels)), expected, rtol=0, atol=1e-5)


def test_text_is_pooled_at_the_largest_id(original: _Clip) -> None:
    tower = encoder_from_openai(original.state_dict(), text_heads=2).towers["text"]
    ids = torch.tensor([[1, 5, 39, 0, 0, 0, 0, 0], [1, 39, 7, 3, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 39]])
    expected = nn.functional.normalize(original.text(ids), dim=-1)
    torch.testing.assert_close(tower.encode(tower.prepare_tensors(ids)), expected, rtol=0, atol=1e-5)


def test_double_precision_weights_stay_double(original: _Clip) -> None:
    weights = {name: tensor.double() for name, tensor in original.state_dict().items()}
    tower = encoder_from_openai(weights, text_heads=2).towers["image"]
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    features = tower.encode(tower.prepare_tensors(pixels))
    expected = nn.functional.normalize(_double(original).visual(pixels), dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


def _double(original: _Clip) -> _Clip:
    copy = _Clip().double().eval().requires_grad_(False)
    copy.load_state_dict(original.state_dict())
    return copy


def test_sizes_are_read_from_the_weights(original: _Clip) -> None:
    config = clip_from_openai(original.state_dict()).config
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (16, 8)
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (1, 1)
    assert config.text_config.max_position_embeddings == 8


def test_names_go_there_and_back(original: _Clip) -> None:
    encoder = encoder_from_openai(original.state_dict(), text_heads=2)
    names = [name for tower in encoder.towers.values() for name in tower.parameters]
    originals = [openai_name(name) for name in names]
    assert [hugging_face_name(name) for name in originals] == names
    assert "visual.ln_pre.weight" in originals
    assert "transformer.resblocks.1.ln_2.bias" in originals
    assert set(originals) <= set(original.state_dict())
    assert not any(name.startswith("ln_final") for name in originals)


@pytest.mark.parametrize(
    "name", ["visual.layer1.0.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight"]
)
def test_names_without_a_counterpart_are_refused(name: str) -> None:
    with pytest.raises(KeyError):
        hugging_face_name(name)


def test_resnet_weights_are_refused() -> None:
    with pytest.raises(UnsupportedEncoder, match="vision transformer"):
        clip_from_openai({"visual.layer1.0.conv1.weight": torch.zeros(1)})


def test_incomplete_weights_are_refused(original: _Clip) -> None:
    weights = original.state_dict()
    del weights["ln_final.weight"]
    with pytest.raises(UnsupportedEncoder, match="final_layer_norm"):
        clip_from_openai(weights)


def test_unknown_weights_are_refused(original: _Clip) -> None:
    with pytest.raises(UnsupportedEncoder, match="extra"):
        clip_from_openai({**original.state_dict(), "extra.weight": torch.zeros(1)})


@pytest.mark.parametrize(("case", "side"), [("clip_tent_i2t", "image"), ("clip_tent_t2i", "text")])
def test_first_loss_of_the_golden_is_reproduced(case: str, side: str) -> None:
    """Tent's loss before any update: the mean entropy of the first batch's logits at temperature 0.01."""
    if not GOLDENS.is_dir():
        pytest.skip("the shared folder with reference/goldens is absent (ATTUNE_SHARED)")
    weights = {name: torch.from_numpy(value) for name, value in np.load(GOLDENS / "clip_weights.npz").items()}
    arrays = dict(np.load(GOLDENS / f"{case}.npz"))
    constants = json.loads((GOLDENS / f"{case}.json").read_text())["constants"]
    tower = encoder_from_openai(weights, text_heads=constants["config"]["transformer_heads"]).towers[side]
    assert [openai_name(name) for name in tower.parameters] == constants["trainable"]
    batch = torch.from_numpy(arrays["images_i8"][:8] / 16 if side == "image" else arrays["tokens"][:8])
    logits = tower.encode(tower.prepare_tensors(batch)) @ torch.from_numpy(arrays["gallery"]).T
    log_probabilities = (logits / constants["temperature"]).log_softmax(dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()
    assert float(entropy) == pytest.approx(arrays["loss_total"][0, 0], rel=2e-4)
