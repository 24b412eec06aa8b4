"""The plain loop around the stock model, and the service's pipeline, are the same method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters.registry import make_method
from benchmarks.exact import ExactSide
from benchmarks.naive_loop import naive_tcr, stock_batches
from benchmarks.online import adapt_batch
from demo import demo_encoder_path
from demo.scenes import render, scenes
from encoders.base import Modality
from encoders.load import load_encoder
from encoders.preprocessing import pixels

SIZE = 24


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_pipeline_gives_the_similarities_of_the_plain_loop(modality: Modality) -> None:
    folder = demo_encoder_path()
    encoder = load_encoder(str(folder), device="cpu")
    made = scenes("test", 3 * SIZE)
    pictures = [pixels(render(scene), encoder.image_spec) for scene in made]
    captions = [scene.caption for scene in made]
    noise = np.random.default_rng(0)
    queries = (
        [np.clip(p + noise.normal(0, 40, p.shape), 0, 255).astype(np.uint8) for p in pictures]
        if modality == "image"
        else [caption.replace("a", "e") for caption in captions]
    )
    other = encoder.towers["text" if modality == "image" else "image"]
    gallery = other.encode(other.prepare(captions if modality == "image" else pictures))

    loop = naive_tcr(folder, modality, gallery)
    batches = stock_batches(folder, modality, queries, SIZE, encoder.image_spec)
    tower, method = encoder.towers[modality], make_method("tcr")
    state = method.initial_state(fingerprint=encoder.fingerprint, parameters=tower.parameters)
    side = ExactSide(gallery)
    for number, batch in enumerate(batches):
        expected = loop(batch)
        inputs = tower.prepare(queries[number * SIZE : (number + 1) * SIZE])
        result = adapt_batch(
            tower=tower, inputs=inputs, side=side, k=5, method=method, state=state, batch_id=str(number)
        )
        state = result.next_state(state)
        torch.testing.assert_close(result.answer.features @ gallery.T, expected, atol=2e-4, rtol=0)
    assert state.version == len(batches) == 3
