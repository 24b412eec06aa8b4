"""Folders that load, and the messages for those that do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.base import Encoder, EncoderError, UnsupportedEncoder
from encoders.load import load_encoder, pick_device

FolderOf = Callable[[str], Path]
ROOT = Path(__file__).parents[2]


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def edit(folder: Path, file: str, **changes: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_name_and_size_come_from_the_folder(encoder_of: Callable[..., Encoder]) -> None:
    encoder = encoder_of("clip")
    assert encoder.name == "clip"
    assert (encoder.image_spec.height, encoder.image_spec.resize) == (32, "shortest_edge")
    assert encoder.device == torch.device("cpu")
    assert encoder.dtype_name == "fp32"
    assert encoder.temperature == pytest.approx(0.07, rel=1e-3)


def test_fingerprint_is_the_same_after_a_copy_and_in_bf16(
    tmp_path: Path, folder_of: FolderOf, encoder_of: Callable[..., Encoder]
) -> None:
    again = load_encoder(str(copy(folder_of("clip"), tmp_path / "renamed")), device="cpu")
    assert again.fingerprint == encoder_of("clip").fingerprint == encoder_of("clip", "bf16").fingerprint
    assert again.name == "renamed"


def test_encoding_does_not_change_the_fingerprint_of_the_tokeniser(folder_of: FolderOf) -> None:
    """Padding and truncation are written into a fast tokeniser by each call."""
    first = load_encoder(str(folder_of("vit_bert")), device="cpu")
    first.towers["text"].prepare(["a dog"])
    assert load_encoder(str(folder_of("vit_bert")), device="cpu").fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
        ("preprocessor_config.json", {"resample": 2}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "WhitespaceSplit"}}),
    ],
)
def test_fingerprint_feels_a_change_of_preprocessing(
    file: str,
    changes: dict[str, object],
    tmp_path: Path,
    folder_of: FolderOf,
    encoder_of: Callable[..., Encoder],
) -> None:
    folder = copy(folder_of("clip"), tmp_path / "clip")
    edit(folder, file, **changes)
    assert load_encoder(str(folder), device="cpu").fingerprint != encoder_of("clip").fingerprint


def test_missing_folder_is_named() -> None:
    for name in ("./no/such/folder", "/no/such/folder", "a/b/c", ""):
        with pytest.raises(EncoderError, match="no folder"):
            load_encoder(name)


def test_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="hub"):
        load_encoder("nobody/nothing-of-this-name")


def test_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"config\.json"):
        load_encoder(str(tmp_path))


def test_unsupported_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnsupportedEncoder, match="'bert' model"):
        load_encoder(str(tmp_path))


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "brand-new-thing"}))
    with pytest.raises(UnsupportedEncoder, match="brand-new-thing"):
        load_encoder(str(tmp_path))


def test_siglip2_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(UnsupportedEncoder, match="fixed-resolution"):
        load_encoder(str(tmp_path))


def test_blip_for_captions_is_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("blip"), tmp_path / "blip")
    edit(folder, "config.json", architectures=["BlipForConditionalGeneration"])
    with pytest.raises(UnsupportedEncoder, match="BlipForConditionalGeneration"):
        load_encoder(str(folder))


def test_missing_tokeniser_is_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("vit_bert"), tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(EncoderError, match="tokeniser"):
        load_encoder(str(folder))


def test_missing_image_processor_is_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("clip"), tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match="image processor"):
        load_encoder(str(folder))


def test_unknown_image_processor_is_named(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("clip"), tmp_path / "odd")
    edit(folder, "preprocessor_config.json", image_processor_type="Owlv2ImageProcessor")
    with pytest.raises(UnsupportedEncoder, match="Owlv2ImageProcessor"):
        load_encoder(str(folder))


def test_pictures_of_different_sizes_are_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("clip"), tmp_path / "odd")
    edit(folder, "preprocessor_config.json", do_center_crop=False)
    with pytest.raises(UnsupportedEncoder, match="different sizes"):
        load_encoder(str(folder))


def test_processor_and_model_of_different_sizes_are_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("clip"), tmp_path / "odd")
    edit(folder, "preprocessor_config.json", crop_size={"height": 24, "width": 24})
    with pytest.raises(EncoderError, match=r"\(32, 32\)"):
        load_encoder(str(folder))


def test_missing_weights_are_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("clip"), tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="could not be read"):
        load_encoder(str(folder))


def test_incomplete_weights_are_refused_instead_of_made_up(tmp_path: Path, folder_of: FolderOf) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(folder_of("clip"), tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="incomplete; missing visual_projection"):
        load_encoder(str(folder))


def test_corrupt_weights_are_refused(tmp_path: Path, folder_of: FolderOf) -> None:
    folder = copy(folder_of("clip"), tmp_path / "corrupt")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EncoderError, match="weights"):
        load_encoder(str(folder))


def test_unknown_device_is_refused() -> None:
    with pytest.raises(EncoderError, match="unknown device"):
        pick_device("gpu7")


def test_loading_prints_nothing(folder_of: FolderOf, capfd: pytest.CaptureFixture[str]) -> None:
    load_encoder(str(folder_of("mobilenet_bert")), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_importing_the_loader_is_light() -> None:
    code = "import sys, encoders.load; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_trained_model_of_the_shared_folder_finds_its_captions() -> None:
    """Same features as Transformers, and the dtype costs little."""
    from transformers import VisionTextDualEncoderModel

    shared = Path(os.environ.get("ATTUNE_SHARED", ROOT.parent / "shared"))
    folder = shared / "models" / "flickr8k-mini"
    if not folder.is_dir():
        pytest.skip("the shared folder with models/flickr8k-mini is absent (ATTUNE_SHARED)")
    encoder = load_encoder(str(folder), device="cpu")
    assert encoder.dimension == 256
    assert encoder.temperature == pytest.approx(0.0706, abs=1e-4)
    pictures = [
        np.random.default_rng(seed).integers(0, 256, (3, 128, 128), dtype=np.uint8) for seed in range(4)
    ]
    tower = encoder.towers["image"]
    model = VisionTextDualEncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(pictures)).float() / 127.5 - 1
        expected = torch.nn.functional.normalize(
            model.get_image_features(pixel_values=pixels).pooler_output, dim=-1
        )
    torch.testing.assert_close(tower.encode(tower.prepare(pictures)), expected, rtol=0, atol=1e-5)
    assert len(tower.parameters) == 104
    assert len(encoder.towers["text"].parameters) == 18
