"""The committed encoder: it loads offline and finds unseen scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, CLIPModel

import demo
from adapters.calibration import load_encoder_calibration
from demo import WEIGHTS, demo_encoder_path
from demo.gallery import load_vectors
from demo.measure import embed_pictures, embed_texts, recall
from demo.scenes import render, scenes
from demo.train_scenes import CALIBRATION, calibrate
from encoders.load import load_encoder

COUNT = 300
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return CLIPModel.from_pretrained(WEIGHTS, local_files_only=True).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(WEIGHTS, local_files_only=True)


def test_encoder_path_is_the_folder_of_the_weights() -> None:
    assert demo_encoder_path() == WEIGHTS
    assert (WEIGHTS / "README.md").is_file()


def test_missing_weights_are_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m demo\.train_scenes"):
        demo_encoder_path()


def test_weights_take_at_most_twelve_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 12 * MEBIBYTE


def test_the_calibration_imputes_unseen_scenes_better_than_their_mean() -> None:
    encoder = load_encoder(str(WEIGHTS), device="cpu")
    calibration = load_encoder_calibration(
        WEIGHTS / CALIBRATION, fingerprint=encoder.fingerprint, dimension=encoder.dimension
    )
    assert (WEIGHTS / CALIBRATION).stat().st_size < MEBIBYTE
    completion = calibration.completion
    assert completion is not None
    vectors = load_vectors(COUNT, encoder.fingerprint)
    assert vectors is not None
    image, text = torch.from_numpy(vectors.image), torch.from_numpy(vectors.text)
    for given, name, wanted in (({"image": image}, "text", text), ({"text": text}, "image", image)):
        imputed = completion.complete(given).embeddings[name]
        error = (imputed - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
        assert error < 0.25


def test_a_calibration_is_made_of_a_few_scenes(tmp_path: Path) -> None:
    for path in WEIGHTS.iterdir():
        if path.name != CALIBRATION:
            (tmp_path / path.name).symlink_to(path)
    made = calibrate(tmp_path, count=24)
    fingerprint = load_encoder(str(WEIGHTS), device="cpu").fingerprint
    loaded = load_encoder_calibration(tmp_path / CALIBRATION, fingerprint=fingerprint, dimension=128)
    assert loaded.completion is not None
    assert loaded.completion.model.latent == made.model.latent
    assert loaded.about["pairs"] == 24


def test_unseen_scenes_are_found_in_both_directions(model: CLIPModel, processor: Any) -> None:
    listed = scenes("gallery", COUNT)
    pictures = embed_pictures(model, processor, [render(scene) for scene in listed])
    texts = embed_texts(model, processor, [scene.caption for scene in listed])
    assert recall(pictures, texts)[0] >= 60
    assert recall(texts, pictures)[0] >= 60


def test_padding_does_not_change_a_text(model: CLIPModel, processor: Any) -> None:
    caption = scenes("gallery", 1)[0].caption
    short = processor.tokenizer([caption], return_tensors="pt")
    padded = processor.tokenizer([caption], padding="max_length", return_tensors="pt")
    assert padded["input_ids"].shape[1] == model.config.text_config.max_position_embeddings
    with torch.inference_mode():
        one = model.get_text_features(**short).pooler_output
        other = model.get_text_features(**padded).pooler_output
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, torch.zeros_like(one))


def test_whole_text_reaches_the_embedding(model: CLIPModel, processor: Any) -> None:
    """Were the text read at a wrong place, its last words would change nothing."""
    texts = embed_texts(model, processor, ["a red star on a beach", "a red star on a meadow"])
    assert float(texts[0] @ texts[1]) < 0.99


def test_misspelt_words_become_parts_and_no_unknown_token(processor: Any) -> None:
    tokens = processor.tokenizer.tokenize("a larg strjped red cirqle, lft of a staar")
    assert "[UNK]" not in tokens
    assert processor.tokenizer.tokenize("a large striped red circle") == [
        "a",
        "large",
        "striped",
        "red",
        "circle",
    ]


def test_longest_captions_fit_into_the_context(processor: Any) -> None:
    lengths = [len(processor.tokenizer(scene.caption)["input_ids"]) for scene in scenes("train", 3000)]
    assert max(lengths) <= processor.tokenizer.model_max_length == 40


def test_automatic_classes_load_tokenizer_and_picture_processor() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)
    try:
        pictures = AutoImageProcessor.from_pretrained(WEIGHTS, local_files_only=True)
    except ImportError as error:
        pytest.skip(f"this release of Transformers wants torchvision for its automatic classes: {error}")
    assert tokenizer.eos_token_id == 3
    wide = np.zeros((50, 200, 3), dtype=np.uint8)
    assert pictures(wide, return_tensors="pt")["pixel_values"].shape == (1, 3, 72, 72)
