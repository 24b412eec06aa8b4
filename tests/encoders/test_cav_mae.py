"""The audio-video classifier: against recorded numbers of the reference, and what it promises.

Letters: B samples, D width, L tower blocks, C classes, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.replay.run import replay_file
from encoders.audio import AudioSpec
from encoders.audiovisual import AVInputs, AVModality
from encoders.base import EncoderError, UnsupportedEncoder
from encoders.cav_mae import (
    CavMae,
    CavMaeConfig,
    check_weights,
    fingerprint_of,
    fresh_weights,
    load_cav_mae,
    save_cav_mae,
    sincos_positions,
    weight_shapes,
)
from tests.encoders.av import CONFIG, classifier, lively_weights, samples

MODALITIES: tuple[AVModality, ...] = ("audio", "video")
close = torch.testing.assert_close


def prompts(layers: int = 3, count: int = 2) -> dict[AVModality, Tensor]:
    generator = torch.Generator().manual_seed(8)
    shape = (layers, count, CONFIG.width)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1 for name in MODALITIES}


# -- parity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", ["av_forward", "av_source"])
def test_the_recorded_forwards_of_the_reference_are_reproduced(goldens: Path, golden: str) -> None:
    """Logits, features, prompts in all or the first layers, statistics, attention, positions."""
    result = replay_file(goldens / f"{golden}.json")
    assert result.verdict == "ok", result
    assert result.not_compared == ()
    assert result.worst is not None
    assert result.worst.relative < 1e-9


def test_positions_have_the_column_before_the_row() -> None:
    """Width 4 has one frequency, 1: token (row 1, column 2) is [sin 2, cos 2, sin 1, cos 1]."""
    found = sincos_positions(4, 3, 5)
    expected = torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    close(found[7, 0::2], expected[0::2].sin())
    close(found[7, 1::2], expected[0::2].cos())


def test_audio_patches_lie_with_frequency_as_rows() -> None:
    """A change of the last mel bins of the first frames reaches the first token of the last row only."""
    model, inputs = classifier(), samples()
    assert inputs.audio is not None
    changed = inputs.audio.clone()
    changed[:, :16, 16:] += 1
    before, after = model.embed(inputs)["audio"], model.embed(AVInputs(changed, None))["audio"]
    moved = (before - after).abs().amax((0, 2)) > 0
    rows, columns = CONFIG.grid("audio")
    assert (rows, columns) == (2, 4)
    assert moved.nonzero().flatten().tolist() == [columns]


# -- passes ---------------------------------------------------------------------------------------------


def test_a_batch_of_one_is_a_row_of_a_batch() -> None:
    model, inputs = classifier(), samples()
    together = model.forward(inputs)
    for row in range(len(inputs)):
        alone = model.forward(inputs[torch.tensor([row])])
        close(alone.logits, together.logits[row : row + 1])
        close(alone.features, together.features[row : row + 1])
        close(alone.pooled, together.pooled[row : row + 1])


@pytest.fixture(params=[True, False], ids=["packed", "one after the other"])
def packs(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_packed_towers_equal_passes_of_their_own(packs: bool) -> None:
    model = classifier()
    model.packs = packs
    for name, tokens in model.embed(samples()).items():
        for used in (None, prompts()[name], prompts(layers=2)[name]):
            sets = [tokens, tokens[:, : tokens.shape[1] // 2], tokens[:2]]
            packed = model.tower_packed(name, sets, prompts=used, features=True)
            for number, (part, alone) in enumerate(zip(packed, sets, strict=True)):
                expected = model.tower(name, alone, prompts=used, features=True)
                close(part.tokens, expected.tokens)
                assert part.tokens.shape == alone.shape
                assert (part.features is None) == (number > 0)
                if part.features is not None and expected.features is not None:
                    close(part.features, expected.features)
                    assert part.features.shape == (len(alone), CONFIG.depth, CONFIG.width)


def test_packed_joint_passes_equal_passes_of_their_own(packs: bool) -> None:
    model = classifier()
    model.packs = packs
    tokens = model.embed(samples())
    both = torch.cat([tokens["audio"], tokens["video"]], dim=1)
    segments: list[Any] = [
        (both, "plain"),
        (tokens["audio"], "plain"),
        (tokens["audio"], "audio"),
        (tokens["video"], "video"),
    ]
    packed = model.joint_packed(segments)
    for found, (part, norms) in zip(packed, segments, strict=True):
        close(found, model.joint(part, norms=norms))
    assert not torch.allclose(packed[1], packed[2])


@pytest.mark.parametrize("there", MODALITIES)
def test_one_modality_alone_takes_the_models_own_path(there: AVModality) -> None:
    """The head of the mean of two joint passes, with the plain norms and with the modality's own."""
    model, inputs = classifier(), samples()
    alone = AVInputs(inputs.audio if there == "audio" else None, inputs.video if there == "video" else None)
    tokens = model.tower(there, model.embed(inputs)[there]).tokens
    pooled = (model.joint(tokens) + model.joint(tokens, norms=there)) / 2
    found = model.forward(alone)
    close(found.pooled, pooled)
    close(found.logits, model.head(pooled)[0])
    assert not torch.allclose(found.logits, model.forward(inputs).logits)
    prompted = model.forward(alone, prompts={there: prompts()[there]})
    assert not torch.allclose(prompted.logits, found.logits)


def test_prompts_in_the_first_layers_only_travel_on_to_the_end() -> None:
    """Behind the last layer with prompts their outputs stay, so the same prompts once differ from always."""
    model, tokens = classifier(), classifier().embed(samples())["audio"]
    first = prompts()["audio"][:1]
    once = model.tower("audio", tokens, prompts=first)
    always = model.tower("audio", tokens, prompts=first.expand(3, -1, -1))
    assert once.tokens.shape == tokens.shape
    assert not torch.allclose(once.tokens, always.tokens)


# -- functional in its weights --------------------------------------------------------------------------


def test_adapted_values_are_used_in_place_of_the_frozen_ones() -> None:
    weights = lively_weights()
    for group in ("norms", "joint_attention"):
        names = classifier().groups[group]
        changed = {**weights, **{name: weights[name] + 0.1 for name in names}}
        whole = CavMae(CONFIG, changed, dtype=torch.float64)
        values = {name: whole.weights[name] for name in names}
        close(classifier().forward(samples(), values).logits, whole.forward(samples()).logits)


@pytest.mark.parametrize("group", ["norms", "early_norms", "joint_attention"])
def test_gradients_reach_every_value_of_a_group_and_no_weight(group: str) -> None:
    model = classifier()
    values = {name: model.weights[name].clone().requires_grad_() for name in model.groups[group]}
    model.forward(samples(), values).logits.square().sum().backward()
    for name, value in values.items():
        assert value.grad is not None, name
        assert bool(value.grad.abs().sum() > 0), name
    assert all(not weight.requires_grad and weight.grad is None for weight in model.weights.values())


def test_gradients_reach_every_prompt_also_of_packed_passes(packs: bool) -> None:
    model, given = classifier(), {name: value.requires_grad_() for name, value in prompts().items()}
    model.packs = packs
    model.forward(samples(), prompts=given).logits.square().sum().backward()
    for value in given.values():
        assert value.grad is not None
        assert (value.grad.abs().sum(-1) > 0).all()
    tokens = model.embed(samples())["audio"]
    fresh = prompts()["audio"].requires_grad_()
    outputs = model.tower_packed("audio", [tokens, tokens[:, :4]], prompts=fresh, features=True)
    assert outputs[0].features is not None
    (gradient,) = torch.autograd.grad(outputs[0].features.square().sum() + outputs[1].tokens.sum(), fresh)
    assert (gradient.abs().sum(-1) > 0).all()


def test_groups_are_the_norms_on_the_way_and_the_joint_attention() -> None:
    """L = 3: blocks of both towers and the joint one, two norms each; then the final and the head's."""
    groups = classifier().groups
    assert len(groups["norms"]) == (3 + 3 + 1) * 4 + 4
    early = {name for name in groups["norms"] if name.startswith(("blocks_a.0.", "blocks_v.0."))}
    assert set(groups["early_norms"]) == early
    assert len(early) == 8
    assert groups["joint_attention"] == ("blocks_u.0.attn.qkv.weight", "blocks_u.0.attn.qkv.bias")
    assert not any("norm1_a" in name or "norm_v" in name for name in groups["norms"])


def test_full_size_groups_have_the_published_numbers() -> None:
    """73 728 numbers in the norms on the way, 55 296 in the early ones, 1 771 776 in the joint attention."""
    config = CavMaeConfig(labels=("a", "b"))
    shapes = weight_shapes(config)
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    tiny = CavMae(replace(config, width=12, heads=1), fresh_weights(replace(config, width=12, heads=1)))
    counted = {group: sum(sizes[name] for name in names) for group, names in tiny.groups.items()}
    assert counted == {"norms": 73_728, "early_norms": 55_296, "joint_attention": 1_771_776}


# -- precision ------------------------------------------------------------------------------------------


def test_half_precision_answers_like_full_precision() -> None:
    full, half = classifier(torch.float32), classifier(torch.bfloat16)
    inputs = samples(size=16, dtype=torch.float32)
    one, other = full.forward(inputs), half.forward(inputs)
    assert other.logits.dtype == other.features.dtype == torch.float32
    close(other.logits, one.logits, rtol=0, atol=0.05)
    assert (one.logits.argmax(1) == other.logits.argmax(1)).float().mean() > 0.8
    assert half.weights["blocks_a.0.norm1.weight"].dtype == torch.float32
    assert half.weights["blocks_a.0.attn.qkv.weight"].dtype == torch.bfloat16


def test_the_fingerprint_does_not_depend_on_the_precision() -> None:
    assert (
        len({classifier(dtype).fingerprint for dtype in (torch.float64, torch.float32, torch.bfloat16)}) == 1
    )


def test_the_fingerprint_changes_with_weights_labels_and_preprocessing() -> None:
    weights = lively_weights()
    other = {**weights, "mlp_head.1.bias": weights["mlp_head.1.bias"] + 1e-6}
    prints = {
        fingerprint_of(CONFIG, weights),
        fingerprint_of(CONFIG, other),
        fingerprint_of(replace(CONFIG, labels=("a", "b", "d")), weights),
        fingerprint_of(replace(CONFIG, audio=replace(CONFIG.audio, mean=0.0)), weights),
        fingerprint_of(replace(CONFIG, heads=4), weights),
    }
    assert len(prints) == 5


# -- inputs ---------------------------------------------------------------------------------------------


def test_samples_are_normalised_and_short_sounds_padded_first() -> None:
    model = classifier(torch.float32)
    sounds = [np.full((64, 32), 2.0, np.float32), np.full((10, 32), 2.0, np.float32)]
    pictures = [np.full((3, 32, 32), 255, np.uint8)] * 2
    inputs = model.prepare(sounds, pictures)
    assert inputs.audio is not None
    assert inputs.video is not None
    assert inputs.audio.shape == (2, 64, 32)
    spec = model.audio_spec
    close(inputs.audio[0], torch.full((64, 32), (2.0 - spec.mean) / spec.std))
    close(inputs.audio[1, 10:], torch.full((54, 32), (0.0 - spec.mean) / spec.std))
    white = [(1 - mean) / std for mean, std in zip(CONFIG.image.mean, CONFIG.image.std, strict=True)]
    close(inputs.video[0, :, 0, 0], torch.tensor(white))
    assert (len(inputs), inputs.complete, inputs.missing) == (2, True, ())


def test_what_samples_lack_is_named() -> None:
    model = classifier()
    only = model.prepare(None, [np.zeros((3, 32, 32), np.uint8)])
    assert (only.complete, only.missing, len(only)) == (False, ("audio",), 1)
    with pytest.raises(ValueError, match="audio or video"):
        model.prepare(None, None)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((3, 32, 31), np.uint8), np.zeros((3, 32, 32), np.float32), np.zeros((32, 32), np.uint8)],
)
def test_a_frame_of_another_shape_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(EncoderError, match="frame 0"):
        classifier().prepare(None, [picture])


# -- weights and files ----------------------------------------------------------------------------------


def test_weights_are_checked_by_name_shape_and_value() -> None:
    weights = lively_weights()
    check_weights(CONFIG, weights)
    missing = {name: value for name, value in weights.items() if name != "norm.weight"}
    for wrong, said in (
        (missing, "missing ..norm.weight"),
        ({**weights, "decoder": torch.zeros(1)}, "unknown ..decoder"),
        ({**weights, "norm.weight": torch.zeros(3)}, r"norm.weight has the shape \(3,\)"),
        ({**weights, "norm.weight": torch.full((16,), torch.inf)}, "norm.weight"),
        ({**weights, "norm.weight": torch.zeros(16, dtype=torch.int64)}, "norm.weight"),
    ):
        with pytest.raises(EncoderError, match=said):
            CavMae(CONFIG, wrong)


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 18},
        {"heads": 3},
        {"depth": 0},
        {"labels": ("a",)},
        {"labels": ("a", "a", "b")},
        {"audio": AudioSpec(frames=60, mel_bins=32)},
        {"patch": 12},
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(EncoderError):
        replace(CONFIG, **sizes)


def test_a_saved_model_is_the_same_when_loaded(tmp_path: Path) -> None:
    weights = lively_weights()
    save_cav_mae(CONFIG, weights, tmp_path / "small")
    loaded = load_cav_mae(tmp_path / "small", device="cpu", dtype="fp64")
    assert loaded.name == "small"
    assert loaded.config == CONFIG
    assert loaded.fingerprint == fingerprint_of(CONFIG, weights) == classifier().fingerprint
    assert torch.equal(loaded.forward(samples()).logits, classifier().forward(samples()).logits)


def damaged(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_cav_mae(CONFIG, lively_weights(), folder)
        change(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda folder: (folder / "config.json").unlink(), EncoderError),
        (lambda folder: (folder / "model.safetensors").unlink(), EncoderError),
        (lambda folder: (folder / "config.json").write_text("{"), EncoderError),
        (lambda folder: (folder / "config.json").write_text("[]"), UnsupportedEncoder),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "clip"}'), UnsupportedEncoder),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "cav-mae-ft"}'), EncoderError),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), EncoderError),
    ],
)
def test_a_damaged_folder_is_refused(
    tmp_path: Path, change: Callable[[Path], object], error: type[EncoderError]
) -> None:
    folder = damaged(change)(tmp_path / "damaged")
    with pytest.raises(error):
        load_cav_mae(folder, device="cpu")


def test_fresh_weights_follow_their_seed() -> None:
    one, same, other = (fresh_weights(CONFIG, seed) for seed in (1, 1, 2))
    check_weights(CONFIG, one)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["blocks_a.0.attn.qkv.weight"], other["blocks_a.0.attn.qkv.weight"])
