"""Every supported architecture against Hugging Face's own features, gradients and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders.base import Encoder, EncoderError, UnsupportedEncoder
from encoders.dual import encoder_from_model, fingerprint_of, temperature_of
from encoders.load import load_encoder
from encoders.preprocessing import ImageSpec
from tests.encoders.models import MODELS, SIZE, blip, clip, stirred, tokenizer, vit_bert

EncoderOf = Callable[..., Encoder]
TEXTS = ["a dog", "two men look at the red boats on water", "grass", "the old house near the big red sun"]
NAMES = sorted(MODELS)
SPEC = ImageSpec(height=SIZE, width=SIZE)


def pictures(count: int = 4) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8) for _ in range(count)]


def items(side: str) -> Any:
    return pictures() if side == "image" else TEXTS


def hugging_face(name: str, folder: Any) -> Any:
    """The model as Transformers loads it, apart from ours."""
    return type(MODELS[name]()).from_pretrained(folder).eval()


def normalised(spec: ImageSpec) -> Tensor:
    values = torch.from_numpy(np.stack(pictures())).double() * spec.rescale
    mean, std = (
        torch.tensor(part, dtype=torch.float64).reshape(1, 3, 1, 1) for part in (spec.mean, spec.std)
    )
    return ((values - mean) / std).float()


def reference(name: str, model: Any, side: str, spec: ImageSpec) -> Tensor:
    """Unit rows by Transformers' own methods, texts filled up to the full 16 tokens (BLIP, SigLIP, BERT) with
    a mask.
    """
    if side == "image":
        pixels = normalised(spec)
        if name == "blip":
            features = model.vision_proj(model.vision_model(pixel_values=pixels).last_hidden_state[:, 0])
        else:
            features = model.get_image_features(pixel_values=pixels).pooler_output
    else:
        made = tokenizer(clip=name == "clip")(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
        ids, mask = made["input_ids"], made["attention_mask"]
        if name == "blip":
            hidden = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            features = model.text_proj(hidden[:, 0])
        elif name == "siglip":
            features = model.get_text_features(input_ids=ids).pooler_output
        else:
            features = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return nn.functional.normalize(features, dim=-1)


def moved(parameters: Any, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in parameters.items()
    }


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_features_equal_hugging_face(name: str, side: str, encoder_of: EncoderOf, folder_of: Any) -> None:
    encoder = encoder_of(name)
    tower = encoder.towers[side]
    with torch.no_grad():
        expected = reference(name, hugging_face(name, folder_of(name)), side, encoder.image_spec)
    features = tower.encode(tower.prepare(items(side)))
    assert features.shape == (4, encoder.dimension)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    # The rows differ from each other, so that the comparison says something.
    assert float((features @ features.T).fill_diagonal_(-1).max()) < 0.99999


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_other_parameters_give_the_features_and_gradients_of_a_changed_model(
    name: str, side: str, encoder_of: EncoderOf, folder_of: Any
) -> None:
    encoder = encoder_of(name)
    tower = encoder.towers[side]
    values = {key: value.requires_grad_() for key, value in moved(tower.parameters).items()}
    changed = hugging_face(name, folder_of(name))
    changed.load_state_dict({key: value.detach() for key, value in values.items()}, strict=False)
    weights = torch.randn(4, encoder.dimension, generator=torch.Generator().manual_seed(2))

    expected = reference(name, changed, side, encoder.image_spec)
    theirs = dict(changed.named_parameters())
    expected_gradients = torch.autograd.grad(
        (expected * weights).sum(), [theirs[key] for key in values], allow_unused=True
    )
    features = tower.encode(tower.prepare(items(side)), values)
    gradients = torch.autograd.grad((features * weights).sum(), list(values.values()), allow_unused=True)

    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    for key, gradient, expected_gradient in zip(values, gradients, expected_gradients, strict=True):
        assert (gradient is None) == (expected_gradient is None), key
        if gradient is not None:
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=2e-5, msg=key)


def block_norms(prefix: str, names: list[str], blocks: int = 2) -> list[str]:
    return [f"{prefix}.{block}.{name}" for block in range(blocks) for name in names]


EXPECTED_NORMS = {
    ("clip", "image"): [
        "vision_model.pre_layrnorm",
        *block_norms("vision_model.encoder.layers", ["layer_norm1", "layer_norm2"]),
        "vision_model.post_layernorm",
    ],
    ("clip", "text"): block_norms("text_model.encoder.layers", ["layer_norm1", "layer_norm2"]),
    ("blip", "image"): [
        *block_norms("vision_model.encoder.layers", ["layer_norm1", "layer_norm2"]),
        "vision_model.post_layernorm",
    ],
    ("blip", "text"): [
        "text_encoder.embeddings.LayerNorm",
        *block_norms(
            "text_encoder.encoder.layer",
            ["attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm"],
        ),
    ],
    ("siglip", "image"): [
        *block_norms("vision_model.encoder.layers", ["layer_norm1", "layer_norm2"]),
        "vision_model.post_layernorm",
        "vision_model.head.layernorm",
    ],
    ("siglip", "text"): block_norms("text_model.encoder.layers", ["layer_norm1", "layer_norm2"]),
    ("vit_bert", "image"): [
        *block_norms("vision_model.layers", ["layernorm_before", "layernorm_after"]),
        "vision_model.layernorm",
    ],
    ("vit_bert", "text"): [
        "text_model.embeddings.LayerNorm",
        *block_norms("text_model.encoder.layer", ["attention.output.LayerNorm", "output.LayerNorm"]),
    ],
}


@pytest.mark.parametrize(("name", "side"), sorted(EXPECTED_NORMS))
def test_adaptable_parameters_are_those_of_the_paper(name: str, side: str, encoder_of: EncoderOf) -> None:
    expected = [f"{norm}.{kind}" for norm in EXPECTED_NORMS[name, side] for kind in ("weight", "bias")]
    parameters = encoder_of(name).towers[side].parameters
    assert sorted(parameters) == sorted(expected)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in parameters.values())


def test_clip_base_adapts_as_many_numbers_as_the_paper_says() -> None:
    """B/16: 26 norms x 2 x 768 = 39936 image numbers, 24 x 2 x 512 = 24576 text numbers."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model: Any = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
    from encoders.towers import source_values
    from encoders.transformer_bodies import clip_image, clip_text

    counts = [
        sum(value.numel() for value in source_values(model, body(model, eager=False).norms).values())
        for body in (clip_image, clip_text)
    ]
    assert counts == [39_936, 24_576]


def test_parameters_stand_in_module_order(encoder_of: EncoderOf) -> None:
    names = list(encoder_of("clip").towers["image"].parameters)
    assert names[0] == "vision_model.pre_layrnorm.weight"
    assert names[2] == "vision_model.encoder.layers.0.layer_norm1.weight"
    assert names[-1] == "vision_model.post_layernorm.bias"


def test_mobilenet_adapts_every_batch_norm_affine_and_nothing_else(encoder_of: EncoderOf) -> None:
    parameters = encoder_of("mobilenet_bert").towers["image"].parameters
    assert len(parameters) == 2 * 52
    assert all(
        name.rsplit(".", 1)[0].endswith("normalization") and value.ndim == 1
        for name, value in parameters.items()
    )


def test_cross_attention_norms_of_blip_get_no_gradient_and_all_others_do(encoder_of: EncoderOf) -> None:
    tower = encoder_of("blip").towers["text"]
    values = {name: value.clone().requires_grad_() for name, value in tower.parameters.items()}
    features = tower.encode(tower.prepare(TEXTS), values)
    gradients = torch.autograd.grad(features[:, 0].sum(), list(values.values()), allow_unused=True)
    absent = [name for name, gradient in zip(values, gradients, strict=True) if gradient is None]
    assert absent == [name for name in values if "crossattention" in name]
    assert len(absent) == 4


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "blip"])
def test_every_parameter_gets_a_gradient_in_both_dtypes(
    name: str, side: str, dtype: str, encoder_of: EncoderOf
) -> None:
    tower = encoder_of(name, dtype).towers[side]
    values = {key: value.clone().requires_grad_() for key, value in tower.parameters.items()}
    features = tower.encode(tower.prepare(items(side)), values)
    gradients = torch.autograd.grad(features[:, 0].sum(), list(values.values()))
    assert all(bool(gradient.isfinite().all()) and gradient.dtype == torch.float32 for gradient in gradients)
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients) >= len(gradients) - 1


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_bf16_features_are_fp32_unit_rows_near_the_fp32_ones(
    name: str, side: str, encoder_of: EncoderOf
) -> None:
    exact, rounded = (encoder_of(name, dtype).towers[side] for dtype in ("fp32", "bf16"))
    left, right = exact.encode(exact.prepare(items(side))), rounded.encode(rounded.prepare(items(side)))
    assert right.dtype == torch.float32
    torch.testing.assert_close(right.norm(dim=-1), torch.ones(4))
    # Fifty rounded convolutions leave a MobileNet at about 0.998; transformers stay above 0.9999.
    assert float((left * right).sum(dim=-1).min()) > (0.98 if name == "mobilenet_bert" else 0.999)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_module_is_unchanged_by_other_parameters(name: str, side: str, encoder_of: EncoderOf) -> None:
    tower = encoder_of(name).towers[side]
    inputs = tower.prepare(items(side))
    before, source = tower.encode(inputs), {key: value.clone() for key, value in tower.parameters.items()}
    values = {key: value.requires_grad_() for key, value in moved(tower.parameters).items()}
    other = tower.encode(inputs, values)
    other.sum().backward()
    assert not torch.allclose(before, other, atol=1e-4)
    assert torch.equal(tower.encode(inputs), before)
    assert all(torch.equal(tower.parameters[key], source[key]) for key in source)
    assert all(value.grad is None for value in tower.parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_ask_for_no_gradient(name: str) -> None:
    model = MODELS[name]()
    encoder_from_model(model, image_spec=SPEC)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_a_failed_call_leaves_a_generic_tower_as_it_was(encoder_of: EncoderOf) -> None:
    tower = encoder_of("convnext_roberta").towers["image"]
    inputs = tower.prepare(pictures())
    before = tower.encode(inputs)
    with pytest.raises(RuntimeError):
        tower.encode(inputs, {key: value[:1].repeat(3) for key, value in moved(tower.parameters).items()})
    assert torch.equal(tower.encode(inputs), before)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_prepared_inputs_can_be_encoded_again_and_again(name: str, side: str, encoder_of: EncoderOf) -> None:
    tower = encoder_of(name).towers[side]
    inputs = tower.prepare(items(side))
    assert len(inputs) == 4
    copies = [
        tensor.clone() for tensor in (inputs.hidden, inputs.mask, inputs.positions) if tensor is not None
    ]
    first = tower.encode(inputs, moved(tower.parameters))
    tower.encode(inputs, moved(tower.parameters, seed=3))
    assert torch.equal(tower.encode(inputs, moved(tower.parameters)), first)
    kept = [tensor for tensor in (inputs.hidden, inputs.mask, inputs.positions) if tensor is not None]
    assert all(torch.equal(left, right) for left, right in zip(copies, kept, strict=True))
    assert not any(tensor.requires_grad for tensor in kept)


@pytest.mark.parametrize("name", ["clip", "vit_bert", "mobilenet_bert"])
def test_stem_runs_once_for_many_steps(name: str, encoder_of: EncoderOf, folder_of: Any) -> None:
    encoder = load_encoder(str(folder_of(name)), device="cpu")
    tower: Any = encoder.towers["image"]
    calls: list[int] = []
    body = tower._body
    stem = body.first.convolution if name == "mobilenet_bert" else body.embed
    stem.register_forward_hook(lambda *_: calls.append(1))
    inputs = tower.prepare(pictures())
    made = len(calls)
    for seed in range(3):
        tower.encode(inputs, moved(tower.parameters, seed=seed))
    assert len(calls) == made


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_batch(name: str, side: str, encoder_of: EncoderOf) -> None:
    """Padding to the longest text of the batch and the order of the batch change nothing."""
    tower = encoder_of(name).towers[side]
    batch = items(side)
    together = tower.encode(tower.prepare(batch))
    alone = torch.cat([tower.encode(tower.prepare([item])) for item in batch])
    backwards = tower.encode(tower.prepare(batch[::-1])).flip(0)
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-6)
    torch.testing.assert_close(backwards, together, rtol=0, atol=2e-6)


def test_texts_are_padded_to_the_longest_only(encoder_of: EncoderOf) -> None:
    assert encoder_of("vit_bert").towers["text"].prepare(["a dog", "grass"]).hidden.shape[1] == 4
    assert encoder_of("clip").towers["text"].prepare(["a dog", "grass"]).hidden.shape[1] == 4
    assert encoder_of("siglip").towers["text"].prepare(["a dog", "grass"]).hidden.shape[1] == 16


@pytest.mark.parametrize("name", NAMES)
def test_long_empty_and_unknown_texts_are_taken(name: str, encoder_of: EncoderOf) -> None:
    tower = encoder_of(name).towers["text"]
    features = tower.encode(tower.prepare(["a dog " * 40, "", "zzz qqq", "\U0001f600"]))
    assert bool(features.isfinite().all())


def test_zero_features_stay_zero_instead_of_nan() -> None:
    from encoders.towers import unit_rows

    assert torch.equal(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_missing_parameter_is_refused(encoder_of: EncoderOf) -> None:
    tower = encoder_of("clip").towers["text"]
    values = dict(tower.parameters)
    values.pop("text_model.encoder.layers.0.layer_norm1.weight")
    with pytest.raises(EncoderError, match=r"layer_norm1\.weight"):
        tower.encode(tower.prepare(TEXTS), values)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((3, SIZE, SIZE + 1), dtype=np.uint8),
        np.zeros((SIZE, SIZE, 3), dtype=np.uint8),
        np.zeros((3, SIZE, SIZE), dtype=np.float32),
    ],
)
def test_wrong_pixels_are_refused(picture: np.ndarray, encoder_of: EncoderOf) -> None:
    with pytest.raises(EncoderError, match="expected uint8"):
        encoder_of("clip").towers["image"].prepare([picture])


@pytest.mark.parametrize("texts", ["a dog", [1, 2], []])
def test_wrong_texts_are_refused(texts: Any, encoder_of: EncoderOf) -> None:
    with pytest.raises(EncoderError):
        encoder_of("clip").towers["text"].prepare(texts)


def test_double_precision_is_kept() -> None:
    encoder = encoder_from_model(stirred(clip()).double(), image_spec=SPEC)
    tower = encoder.towers["image"]
    features = tower.encode(tower.prepare(pictures()))
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_text_without_tokenizer_goes_through_tensors() -> None:
    encoder = encoder_from_model(clip(), image_spec=SPEC)
    tower = encoder.towers["text"]
    assert tower.encode(tower.prepare_tensors(torch.tensor([[3, 5, 21], [2, 21, 21]]))).shape == (2, 24)
    with pytest.raises(EncoderError, match="prepare_tensors"):
        tower.prepare(TEXTS)


def test_temperature_comes_from_the_logit_scale() -> None:
    model = clip()
    with torch.no_grad():
        model.logit_scale.fill_(np.log(50.0))
    assert temperature_of(model) == pytest.approx(0.02)
    assert temperature_of(blip()) == pytest.approx(0.07, rel=1e-3)


def test_unsupported_module_is_named() -> None:
    with pytest.raises(UnsupportedEncoder, match="Linear is not supported"):
        encoder_from_model(nn.Linear(2, 2), image_spec=SPEC)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(EncoderError, match="fp32 or bf16"):
        encoder_from_model(clip(), image_spec=SPEC, dtype="fp16")


def test_fingerprint_depends_on_weights_preprocessing_and_tokeniser() -> None:
    model = stirred(vit_bert())
    base = fingerprint_of(model, SPEC, "words")
    assert fingerprint_of(model, SPEC, "words") == base
    others = [
        fingerprint_of(model, SPEC, "other words"),
        fingerprint_of(model, ImageSpec(height=SIZE, width=SIZE, mean=(0.5, 0, 0)), "words"),
        fingerprint_of(stirred(vit_bert(), seed=1), SPEC, "words"),
    ]
    model.config.text_config.layer_norm_eps = 1e-3
    others.append(fingerprint_of(model, SPEC, "words"))
    assert len({base, *others}) == 5


def test_one_changed_number_changes_the_fingerprint() -> None:
    model = clip()
    base = fingerprint_of(model, SPEC, "")
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1e-3
    assert fingerprint_of(model, SPEC, "") != base
