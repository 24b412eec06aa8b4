"""Canaries: set, kept, checked when the guard wants them, and gone with their gallery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from index.base import GalleryNotFound, ItemNotFound
from service.engine import Engine, running_engine
from service.messages import Canary, Query, RetrieveRequest
from service.settings import Settings
from tests.service.conftest import fill
from tests.service.test_engine import pictures, settled_version, texts
from tests.toy import ToyEncoder, picture, sentence

pytestmark = pytest.mark.anyio


def pairs(count: int) -> list[Canary]:
    return [Canary(Query(text=sentence(n)), f"i{n}") for n in range(count)]


async def adapt(engine: Engine, count: int, **more: Any) -> None:
    for n in range(count):
        request = RetrieveRequest(queries=pictures(16, 16 * n), adapt="sync", stream="s", **more)
        await engine.retrieve(request)
    await settled_version(engine, "s", count)


async def test_canaries_are_kept_over_a_restart_and_go_with_their_gallery(
    settings: Callable[..., Settings],
) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill(engine)
        picture_canary = Canary(Query(pixels=picture(3)), "i3")
        shown = await engine.set_canaries("things", [*pairs(2), picture_canary])
        assert [canary["kind"] for canary in shown["canaries"]] == ["text", "text", "image"]
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        assert await engine.describe_canaries("things") == shown
        await engine.delete_gallery("things")
        with pytest.raises(GalleryNotFound):
            await engine.describe_canaries("things")
        await fill(engine)
        assert (await engine.describe_canaries("things"))["canaries"] == []


async def test_a_canary_without_its_answer_is_refused_and_the_old_ones_stay(engine: Engine) -> None:
    before = await engine.set_canaries("things", pairs(1))
    with pytest.raises(ItemNotFound):
        await engine.set_canaries("things", [Canary(Query(text="x"), "nothing")])
    assert await engine.describe_canaries("things") == before


async def test_the_guard_checks_the_canaries_of_its_direction(settings: Callable[..., Settings]) -> None:
    changed = settings(guard={"canary_every_batches": 1, "policy": "warn"})
    async with running_engine(changed, encoder=ToyEncoder()) as engine:
        await fill(engine)
        await engine.set_canaries("things", [Canary(Query(pixels=picture(n)), f"i{n}") for n in range(4)])
        await adapt(engine, 2)
        (track,) = (await engine.describe_stream("s"))["tracks"]
        assert "canary_fall" in track["guard"]["figures"]


async def test_text_canaries_do_not_concern_picture_queries(settings: Callable[..., Settings]) -> None:
    changed = settings(guard={"canary_every_batches": 1, "policy": "warn"})
    async with running_engine(changed, encoder=ToyEncoder()) as engine:
        await fill(engine)
        await engine.set_canaries("things", pairs(4))
        await adapt(engine, 2)
        (track,) = (await engine.describe_stream("s"))["tracks"]
        assert track["guard"]["figures"].get("canary_fall", 0.0) == 0.0


async def test_a_model_that_loses_its_canaries_is_taken_back(settings: Callable[..., Settings]) -> None:
    """The learning rate ruins the toy encoder; the other signs of harm are switched off."""
    changed = settings(
        default_method_settings={"learning_rate": 1.0},
        guard={
            "canary_every_batches": 1,
            "max_canary_fall": 0.01,
            "max_distance": 100.0,
            "harm_sigmas": 100.0,
            "max_source_likeness_rise": 8.0,
            "max_modality_gap_rise": 2.0,
            "max_similarity_fall": 2.0,
            "unusual_ratio": 1000.0,
            "min_uniformity": 0.0,
        },
    )
    async with running_engine(changed, encoder=ToyEncoder()) as engine:
        await fill(engine)
        canaries = [Canary(Query(pixels=picture(n)), f"i{n}") for n in range(32)]
        source = [
            (await engine.retrieve(RetrieveRequest(queries=(one.query,), adapt="off", k=1))).hits[0][0].id
            for one in canaries
        ]
        await engine.set_canaries(
            "things", [Canary(one.query, found) for one, found in zip(canaries, source, strict=True)]
        )
        for n in range(4):
            await engine.retrieve(RetrieveRequest(queries=pictures(16, 16 * n), adapt="sync", stream="s"))
        (track,) = (await engine.describe_stream("s"))["tracks"]
        assert track["guard"]["events"][0]["finding"] == "canaries"
        assert track["guard"]["events"][0]["action"] == "reset"


async def test_a_text_track_without_canaries_is_unharmed(engine: Engine) -> None:
    await engine.retrieve(RetrieveRequest(queries=texts(16), adapt="sync", stream="t"))
    await settled_version(engine, "t", 1)
