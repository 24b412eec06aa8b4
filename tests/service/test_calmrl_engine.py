"""Streams of calmrl over a calibrated gallery: whatever its queries lack, they are learned from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from adapters.completion import remembered
from adapters.state import AdaptationState
from encoders.base import MODALITIES
from service.engine import Engine, running_engine
from service.errors import ServiceError
from service.messages import Adaptation, NewItem, Query, RetrieveAnswer, RetrieveRequest
from service.settings import Settings
from tests.service.calibrated import encoder_completion, encoder_file
from tests.service.conftest import fill
from tests.service.test_engine import settled_version
from tests.toy import ToyEncoder, picture, sentence

pytestmark = pytest.mark.anyio

ITEMS = 30
TRACK = "mixed/image+text->anchor"
TEXT, IMAGE, BOTH = ("text",), ("image",), MODALITIES
CALMRL = {"default_method": "calmrl", "default_method_settings": {}, "gather_max_age_s": 1000}


def queries(count: int, kinds: tuple[str, ...], start: int = 0) -> tuple[Query, ...]:
    return tuple(
        Query(
            text=sentence(number) if "text" in kinds else None,
            pixels=picture(number) if "image" in kinds else None,
        )
        for number in range(start, start + count)
    )


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    async with running_engine(settings(**CALMRL), encoder=ToyEncoder()) as running:
        await fill(running, items=ITEMS)
        await running.put_calibration("shop", encoder_file())
        await running.create_gallery("mixed", None, "shop")
        items = [NewItem(id=f"i{n}", text=sentence(n), pixels=picture(n)) for n in range(ITEMS)]
        await running.upsert_items("mixed", items)
        yield running


async def ask(engine: Engine, asked: tuple[Query, ...], **more: Any) -> RetrieveAnswer:
    options = {"gallery": "mixed", "stream": "s", "adapt": "sync", **more}
    return await engine.retrieve(RetrieveRequest(queries=asked, **options))


def told(answer: RetrieveAnswer) -> Adaptation:
    (part,) = answer.parts
    return part.adaptation


def state_of(engine: Engine) -> AdaptationState:
    assert engine._backend is not None
    return engine._backend.streams.find("s").tracks[TRACK].state


async def test_every_kind_of_query_is_learned_from_and_complete_ones_teach_the_completion(
    engine: Engine,
) -> None:
    """Pictures come late, and texts leave for good."""
    order = [TEXT] * 4 + [BOTH] * 2 + [IMAGE] * 4
    for number, kinds in enumerate(order):
        answer = await ask(engine, queries(16, kinds, 16 * number))
        assert (told(answer).method, told(answer).status) == ("calmrl", "applying")
        await settled_version(engine, "s", number + 1)
        own = remembered(state_of(engine), MODALITIES)
        assert (0 if own is None else own.batches) == min(max(number - 3, 0), 2)
    (track,) = (await engine.describe_stream("s"))["tracks"]
    assert (track["applied"], track["undone"]) == (len(order), 0)
    assert {"align", "instance"} <= set(track["losses"])
    assert 0 <= track["drift"]["novelty"] <= 1
    state = state_of(engine)
    assert all(torch.isfinite(value).all() for value in [*state.parameters.values(), *state.tensors.values()])


async def test_queries_of_all_kinds_gather_and_adapt_together(engine: Engine) -> None:
    """A batch of 16: eight texts and eight pictures, one after the other."""
    for number in range(8):
        assert told(await ask(engine, queries(1, TEXT, number), adapt="async")).status == "queued"
        await ask(engine, queries(1, IMAGE, number), adapt="async")
    (track,) = (await settled_version(engine, "s", 2))["tracks"]
    assert (track["applied"], track["gathered"], track["shed"]) == (2, 0, 0)


async def test_a_query_alone_is_learned_from(engine: Engine) -> None:
    for number, kinds in enumerate((TEXT, IMAGE, BOTH)):
        await ask(engine, queries(1, kinds))
        (track,) = (await settled_version(engine, "s", number + 1))["tracks"]
        assert (track["applied"], set(track["losses"])) == (number + 1, {"align"})


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_where_no_calibration_completes_nothing_is_learned_nor_gathered_and_that_is_said(
    engine: Engine, mode: str
) -> None:
    for kinds in (TEXT, BOTH):
        answer = told(await ask(engine, queries(16, kinds), gallery="things", adapt=mode))
        assert (answer.status, answer.state_version) == ("skipped", 0)
        assert answer.reason == "calmrl learns from queries that a gallery's calibration completes"
    tracks = (await engine.describe_stream("s"))["tracks"]
    assert [(track["batches"], track["gathered"]) for track in tracks] == [(0, 0)] * len(tracks)


async def test_a_restored_snapshot_continues_bit_exactly(engine: Engine) -> None:
    await ask(engine, queries(16, BOTH))
    await ask(engine, queries(16, TEXT, 16))
    await settled_version(engine, "s", 2)
    await engine.create_snapshot("s", "two")
    first = await ask(engine, queries(16, BOTH, 32))
    await settled_version(engine, "s", 3)
    learned = state_of(engine)
    await engine.restore_snapshot("s", "two")
    second = await ask(engine, queries(16, BOTH, 32))
    await settled_version(engine, "s", 3)
    again = state_of(engine)
    assert [[hit.id for hit in hits] for hits in first.hits] == [
        [hit.id for hit in hits] for hits in second.hits
    ]
    for one, other in ((learned.parameters, again.parameters), (learned.tensors, again.tensors)):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


async def test_a_snapshot_whose_completion_was_tampered_with_is_refused(engine: Engine) -> None:
    await ask(engine, queries(16, BOTH))
    await settled_version(engine, "s", 1)
    before = {name: value.clone() for name, value in state_of(engine).parameters.items()}
    state_of(engine).tensors["latent/image/noise"].neg_()
    await engine.create_snapshot("s", "bad")
    state_of(engine).tensors["latent/image/noise"].neg_()
    with pytest.raises(ServiceError) as refusal:
        await engine.restore_snapshot("s", "bad")
    assert "completion" in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in state_of(engine).parameters.items())


async def test_the_gallerys_calibration_stays_as_it_is(engine: Engine) -> None:
    given = encoder_completion().model.loadings[0].weight
    off = await ask(engine, queries(4, TEXT), adapt="off")
    await ask(engine, queries(16, BOTH))
    await settled_version(engine, "s", 1)
    own = remembered(state_of(engine), MODALITIES)
    assert own is not None
    assert not torch.equal(own.model.loadings[0].weight, given)
    again = await ask(engine, queries(4, TEXT), adapt="off")
    assert [[hit.score for hit in hits] for hits in off.hits] == [
        [hit.score for hit in hits] for hits in again.hits
    ]
