"""The vectors that a fresh server starts with."""

from __future__ import annotations

import numpy as np

from demo import demo_encoder_path
from demo.gallery import COUNT, load_vectors, make_vectors
from demo.scenes import scenes
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
