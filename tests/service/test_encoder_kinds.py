"""Every supported architecture through the whole engine: galleries, both directions, adaptation, restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.engine import running_engine
from service.messages import NewItem, Query, RetrieveRequest
from service.settings import Settings
from tests.encoders import models

pytestmark = pytest.mark.anyio

TEXTS = ["a dog", "grass", "a dog on grass", "a red dog", "dog dog grass", "a grass a", "red", "a a dog"]


@pytest.mark.parametrize("name", ["clip", "blip", "siglip", "vit_bert", "mobilenet_bert"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
async def test_an_encoder_from_a_folder_serves_and_adapts(
    name: str, dtype: str, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = models.save(name, tmp_path / name)
    changed = settings(
        encoder=str(folder), default_gallery="g", dtype=dtype, batch_size=8, gather_min_items=2
    )
    rng = np.random.default_rng(0)
    async with running_engine(changed) as engine:
        size = (3, engine.image_spec.height, engine.image_spec.width)
        pictures = [rng.integers(0, 256, size, dtype=np.uint8) for _ in TEXTS]
        await engine.create_gallery("g", None)
        items = [
            NewItem(id=str(n), text=t, pixels=p) for n, (t, p) in enumerate(zip(TEXTS, pictures, strict=True))
        ]
        await engine.upsert_items("g", items)
        for queries in (
            tuple(Query(text=text) for text in TEXTS),
            tuple(Query(pixels=picture) for picture in pictures),
        ):
            for adapt in ("off", "sync", "async"):
                answer = await engine.retrieve(RetrieveRequest(queries=queries, k=3, adapt=adapt))
                assert all(len(hits) == 3 for hits in answer.hits)
                assert answer.parts[0].adaptation.status in ("off", "applying", "queued")
        same = await engine.retrieve(
            RetrieveRequest(queries=tuple(Query(text=t) for t in TEXTS), k=1, target="text", adapt="off")
        )
        assert [hits[0].id for hits in same.hits] == [str(n) for n in range(len(TEXTS))]
        described = await engine.describe_stream("default")
        assert {track["direction"] for track in described["tracks"]} == {"text->image", "image->text"}
        assert all(track["undone"] == 0 for track in described["tracks"])
    async with running_engine(changed) as engine:
        assert (await engine.describe_gallery("g"))["items"] == len(TEXTS)
        assert (await engine.describe_stream("default"))["version"] >= 2
