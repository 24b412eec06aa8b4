"""The vectors and previews that a fresh server starts with."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
from PIL import Image

from demo import demo_encoder_path
from demo.gallery import COUNT, load_previews, load_vectors, make_vectors, previews_path
from demo.scenes import render, scenes
from encoders.load import load_encoder


def test_the_committed_vectors_are_those_of_the_committed_encoder() -> None:
    encoder = load_encoder(str(demo_encoder_path()), device="cpu")
    kept = load_vectors(COUNT, encoder.fingerprint)
    assert kept is not None, "run python -m demo.gallery after the weights have changed"
    made = make_vectors(encoder, scenes("gallery", 16))
    np.testing.assert_allclose(kept.image[:16], made.image, atol=1e-4)
    np.testing.assert_allclose(kept.text[:16], made.text, atol=1e-4)


def test_vectors_of_another_encoder_or_more_scenes_than_kept_are_of_no_use() -> None:
    encoder = load_encoder(str(demo_encoder_path()), device="cpu")
    assert load_vectors(COUNT, "another") is None
    assert load_vectors(COUNT + 1, encoder.fingerprint) is None


def test_the_committed_previews_show_the_scenes_and_stay_below_a_megabyte() -> None:
    previews = load_previews(COUNT)
    assert previews is not None
    assert len(previews) == COUNT
    assert previews_path().stat().st_size < 1_000_000
    for place in (0, 1, 250, COUNT - 1):
        shown = np.asarray(Image.open(io.BytesIO(previews[place])).convert("RGB"), dtype=int)
        drawn = np.asarray(render(scenes("gallery", COUNT)[place]), dtype=int)
        assert shown.shape == drawn.shape == (128, 128, 3)
        assert np.abs(shown - drawn).mean() < 12


def test_fewer_previews_are_the_first_and_more_than_kept_are_not_to_be_had() -> None:
    previews = load_previews(COUNT)
    assert previews is not None
    assert load_previews(3) == previews[:3]
    assert load_previews(COUNT + 1) is None


def test_previews_are_read_without_torch() -> None:
    code = "import sys, demo.gallery as g; assert g.load_previews(2); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
