"""Queries of calibrated galleries through queue, worker and pipeline; composed ones of others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.completion import Completion, remember, remembered
from adapters.state import AdaptationState
from encoders.base import MODALITIES
from service.composed import ComposedTower
from service.engine import Engine, running_engine
from service.errors import BadRequest, Conflict, NotFound
from service.messages import (
    Canary,
    NewItem,
    Part,
    Query,
    RetrieveAnswer,
    RetrieveJob,
    RetrieveRequest,
    TrackKey,
    batch_group,
)
from service.settings import Settings
from tests.service.calibrated import encoder_completion, encoder_file
from tests.service.conftest import fill
from tests.service.test_engine import ids, settled_version
from tests.toy import FEATURES, ToyEncoder, picture, sentence

pytestmark = pytest.mark.anyio

ITEMS = 30
TRACK = "mixed/image+text->anchor"
SEEN = Part(True, 1.0)


def has(number: int) -> tuple[str, ...]:
    return (("text",), ("image",), ("image", "text"))[number % 3]


def query(number: int, *kinds: str) -> Query:
    return Query(
        text=sentence(number) if "text" in kinds else None,
        pixels=picture(number) if "image" in kinds else None,
    )


def queries(count: int, *kinds: str, start: int = 0) -> tuple[Query, ...]:
    return tuple(query(start + n, *kinds) for n in range(count))


def embedding(seed: int = 0) -> Query:
    return Query(embedding=np.random.default_rng(seed).normal(size=FEATURES).astype(np.float32))


async def fill_mixed(engine: Engine) -> None:
    """A third of the items each: texts alone, pictures alone, both."""
    await engine.put_calibration("shop", encoder_file())
    await engine.create_gallery("mixed", None, "shop")
    await engine.upsert_items(
        "mixed",
        [
            NewItem(
                id=f"i{n}",
                text=sentence(n) if "text" in has(n) else None,
                pixels=picture(n) if "image" in has(n) else None,
                payload={"n": n},
            )
            for n in range(ITEMS)
        ],
    )


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    """With `things`, without calibration, and `mixed`, with one."""
    async with running_engine(settings(), encoder=ToyEncoder()) as running:
        await fill(running, items=ITEMS)
        await fill_mixed(running)
        yield running


async def ask(engine: Engine, asked: tuple[Query, ...], **more: Any) -> RetrieveAnswer:
    options = {"gallery": "mixed", "stream": "s", "adapt": "off", **more}
    return await engine.retrieve(RetrieveRequest(queries=asked, **options))


def embeddings(one: Query | int) -> dict[str, Tensor]:
    """Of a query, or of an item's parts."""
    if isinstance(one, int):
        one = query(one, *has(one))
    towers, found = ToyEncoder().towers, {}
    if one.text is not None:
        found["text"] = towers["text"].encode(towers["text"].prepare([one.text]))
    if one.pixels is not None:
        found["image"] = towers["image"].encode(towers["image"].prepare([one.pixels]))
    return found


def anchor(one: Query | int, completion: Completion | None = None) -> Tensor:
    """[D]"""
    chosen = completion or encoder_completion()
    return chosen.anchors(chosen.complete(embeddings(one)))[0]


def ranked(features: Tensor, rows: list[Tensor]) -> list[str]:
    scores = torch.stack(rows) @ features
    return [f"i{n}" for n in scores.argsort(descending=True).tolist()]


def state_of(engine: Engine, track: str = TRACK, stream: str = "s") -> AdaptationState:
    assert engine._backend is not None
    return engine._backend.streams.find(stream).tracks[track].state


# Answers


async def test_a_request_of_all_kinds_is_answered_in_order(engine: Engine) -> None:
    asked = (
        query(0, "text"),
        query(1, "image"),
        embedding(),
        query(2, "image", "text"),
        query(3, "text"),
    )
    answer = await ask(engine, asked, k=ITEMS)
    items = [anchor(n) for n in range(ITEMS)]
    for place in (0, 1, 3, 4):
        assert ids(answer)[place] == ranked(anchor(asked[place]), items)
    vector = F.normalize(torch.from_numpy(asked[2].embedding), dim=0)
    assert ids(answer)[2] == ranked(vector, items)
    assert [part.query_indices for part in answer.parts] == [(0, 4), (1,), (2,), (3,)]
    assert [part.adaptation.direction for part in answer.parts] == [
        "image+text->anchor",
        "image+text->anchor",
        "embedding->anchor",
        "image+text->anchor",
    ]


async def test_answers_say_what_each_query_had_and_how_sure_the_rest_is(engine: Engine) -> None:
    asked = (query(0, "text"), query(1, "image"), query(2, "image", "text"), embedding())
    answer = await ask(engine, asked)
    completion = encoder_completion()
    of_text, of_picture, of_both, of_embedding = answer.completeness or ()
    assert of_embedding is None
    for known, one in ((of_text, asked[0]), (of_picture, asked[1]), (of_both, asked[2])):
        given = embeddings(one)
        expected = completion.confidence(tuple(given))
        assert known is not None
        assert known.parts == {name: Part(name in given, expected[name]) for name in MODALITIES}
        assert known.novelty == pytest.approx(float(completion.novelty_of(given)))
    assert of_text is not None
    assert 0 < of_text.parts["image"].confidence < 1
    assert of_both is not None
    assert of_both.parts == {"image": SEEN, "text": SEEN}


async def test_hits_say_what_the_item_had(engine: Engine) -> None:
    answer = await ask(engine, (query(0, "text"), embedding()), k=ITEMS)
    completion = encoder_completion()
    for hits in answer.hits:
        assert len(hits) == ITEMS
        for hit in hits:
            known = has(hit.payload["n"])
            expected = completion.confidence(known)
            assert hit.parts == {name: Part(name in known, expected[name]) for name in MODALITIES}


async def test_items_of_one_modality_are_found_by_the_other(engine: Engine) -> None:
    """Without a calibration a text finds no item that has only a text, unless texts are searched."""
    by_text = await ask(engine, (query(0, "text"),), k=ITEMS)
    by_picture = await ask(engine, (query(0, "image"),), k=ITEMS)
    assert len(by_text.hits[0]) == len(by_picture.hits[0]) == ITEMS
    plain = await ask(engine, (query(0, "text"),), k=ITEMS, target="image")
    assert {hit.payload["n"] % 3 for hit in plain.hits[0]} == {1, 2}


async def test_an_item_is_found_by_exactly_what_it_has(engine: Engine) -> None:
    asked = tuple(query(n, *has(n)) for n in range(9))
    answer = await ask(engine, asked, k=1)
    assert [hits[0].id for hits in answer.hits] == [f"i{n}" for n in range(9)]
    assert [hits[0].score for hits in answer.hits] == pytest.approx([1.0] * 9, abs=1e-5)


async def test_filters_hold_for_anchors(engine: Engine) -> None:
    answer = await ask(engine, (query(0, "text"),), k=5, filter={"n": {"lt": 3}})
    assert {hit.payload["n"] for hit in answer.hits[0]} == {0, 1, 2}
    assert all(hit.parts is not None for hit in answer.hits[0])


async def test_pictures_of_a_calibrated_gallery_are_searched_as_ever(engine: Engine) -> None:
    answer = await ask(engine, (query(0, "text"),), target="image", k=4)
    assert answer.parts[0].adaptation.direction == "text->image"
    assert answer.completeness is None
    assert all(hit.parts is None for hit in answer.hits[0])


@pytest.mark.parametrize("gallery", ["things", "mixed"])
async def test_composed_queries_of_pictures_are_the_mean_of_both(engine: Engine, gallery: str) -> None:
    asked = query(40, "image", "text")
    answer = await ask(engine, (asked,), gallery=gallery, target="image", k=3)
    parts = embeddings(asked)
    mean = F.normalize(parts["image"][0] + parts["text"][0], dim=0)
    known = [n for n in range(ITEMS) if gallery == "things" or "image" in has(n)]
    rows = [embeddings(query(n, "image"))["image"][0] for n in known]
    expected = [f"i{known[int(name[1:])]}" for name in ranked(mean, rows)][:3]
    assert ids(answer)[0] == expected
    assert answer.parts[0].adaptation.direction == "image+text->image"
    assert answer.completeness is None


async def test_auto_targets_of_a_gallery_without_calibration_stay(engine: Engine) -> None:
    asked = (query(0, "text"), query(0, "image"), query(0, "image", "text"), embedding())
    answer = await ask(engine, asked, gallery="things")
    assert [part.adaptation.direction for part in answer.parts] == [
        "text->image",
        "image->text",
        "image+text->image",
        "embedding->image",
    ]


# Refusals


async def test_anchors_of_a_gallery_without_calibration_are_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest, match="'things' has no calibration") as caught:
        await ask(engine, (query(0, "text"),), gallery="things", target="anchor")
    assert caught.value.code == "empty_target"


async def test_a_query_of_nothing_and_one_beside_an_embedding_are_refused(engine: Engine) -> None:
    vector = embedding().embedding
    for bad in (Query(), Query(text="a", embedding=vector), Query(pixels=picture(0), embedding=vector)):
        with pytest.raises(BadRequest, match="or an embedding alone") as caught:
            await ask(engine, (query(0, "text"), bad))
        assert caught.value.code == "bad_query"


async def test_an_unknown_calibration_makes_no_gallery(engine: Engine) -> None:
    with pytest.raises(NotFound) as caught:
        await engine.create_gallery("new", None, "none")
    assert caught.value.code == "unknown_calibration"
    assert "new" not in [card["name"] for card in await engine.list_galleries()]


async def test_an_empty_calibrated_gallery_has_no_hits(engine: Engine) -> None:
    await engine.create_gallery("empty", None, "shop")
    answer = await ask(engine, (query(0, "text"),), gallery="empty", adapt="sync")
    assert answer.hits == ((),)
    assert answer.parts[0].adaptation.reason == "the gallery has no anchor vectors"


async def test_a_gallery_whose_calibration_is_lost_is_still_searched_by_pictures(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill_mixed(engine)
    (tmp_path / "data/calibrations/shop.safetensors").unlink()
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        (card,) = await engine.list_galleries()
        assert (card["name"], card["calibration"], card["status"]) == ("mixed", "shop", "ready")
        with pytest.raises(Conflict, match="'shop'") as caught:
            await ask(engine, (query(0, "text"),))
        assert caught.value.code == "calibration_unusable"
        with pytest.raises(Conflict, match="'shop'"):
            await engine.upsert_items("mixed", [NewItem("new", text="a")])
        answer = await ask(engine, (query(0, "text"),), target="image", k=3)
        assert len(answer.hits[0]) == 3


async def test_a_calibrated_gallery_survives_a_restart(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill_mixed(engine)
        before = await ask(engine, queries(3, "text"))
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        after = await ask(engine, queries(3, "text"))
    assert after.hits == before.hits
    assert after.completeness == before.completeness


# Adaptation


async def test_queries_of_all_kinds_share_a_track_and_texts_leave_the_pictures_tower_alone(
    engine: Engine,
) -> None:
    source = {
        f"{modality}/{name}": value
        for modality, tower in ToyEncoder().towers.items()
        for name, value in tower.parameters.items()
    }
    first = await ask(engine, queries(16, "text"), adapt="sync")
    assert first.parts[0].adaptation.direction == "image+text->anchor"
    await settled_version(engine, "s", 1)
    texts = state_of(engine).parameters
    assert set(texts) == set(source)
    for name, value in source.items():
        assert torch.equal(texts[name], value) is name.startswith("image/")
    await ask(engine, queries(16, "image"), adapt="sync")
    await settled_version(engine, "s", 2)
    both = state_of(engine).parameters
    for name in source:
        assert torch.equal(both[name], texts[name]) is name.startswith("text/")
    await ask(engine, queries(16, "image", "text", start=16), adapt="sync")
    described = await settled_version(engine, "s", 3)
    assert [track["applied"] for track in described["tracks"]] == [3]


async def test_completion_costs_no_forward_and_novelty_is_asked_once_a_batch(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    plain = Completion.novelty_of

    def counted(completion: Completion, observed: Any) -> Tensor:
        asked.append(len(next(iter(observed.values()))))
        return plain(completion, observed)

    encoder = ToyEncoder()
    async with running_engine(settings(), encoder=encoder) as engine:
        await fill_mixed(engine)
        monkeypatch.setattr(Completion, "novelty_of", counted)
        before = {modality: tower.forwards for modality, tower in encoder.towers.items()}
        await ask(engine, queries(16, "text"), adapt="sync")
        await settled_version(engine, "s", 1)
        steps = 3
        assert encoder.towers["text"].forwards - before["text"] == steps
        assert encoder.towers["image"].forwards == before["image"]
        assert asked == [16]


async def test_a_batch_of_kinds_is_encoded_kind_by_kind() -> None:
    key = TrackKey("s", "mixed", "image+text", "anchor")
    jobs = [RetrieveJob(key, "sync", queries(2, *kind), 3) for kind in (["text"], ["image"], MODALITIES)]
    assert len({batch_group(job) for job in jobs}) == 3
    assert {job.key.name for job in jobs} == {TRACK}


async def test_composed_queries_adapt_a_gallery_without_calibration(engine: Engine) -> None:
    await ask(engine, queries(16, "image", "text"), gallery="things", adapt="sync")
    described = await settled_version(engine, "s", 1)
    (track,) = described["tracks"]
    assert (track["gallery"], track["direction"]) == ("things", "image+text->image")


async def test_a_streams_own_calibration_completes_its_queries_and_the_gallerys_the_items(
    engine: Engine,
) -> None:
    await engine.put_calibration("own", encoder_file(1))
    await engine.configure_stream("s", calibration="own")
    answer = await ask(engine, queries(3, "text"), adapt="async", k=ITEMS)
    known = (answer.completeness or ())[0]
    assert known is not None
    assert known.parts["image"].confidence == encoder_completion(1).confidence(["text"])["image"]
    items = [anchor(n) for n in range(ITEMS)]
    assert ids(answer)[0] == ranked(anchor(query(0, "text"), encoder_completion(1)), items)
    expected = encoder_completion(0).confidence(["text"])["image"]
    imputed = [hit.parts["image"] for hit in answer.hits[0] if hit.parts and not hit.parts["image"].observed]
    assert imputed == [Part(False, expected)] * 10


HARMFUL: dict[str, Any] = {
    "default_method_settings": {"learning_rate": 1.0},
    "guard": {
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
}
"""A learning rate that ruins the toy encoder; of the guard's signs of harm only canaries are left."""


async def set_right_canaries(engine: Engine) -> None:
    """Of all kinds, each with the answer that the source model gives."""
    canaries = tuple(query(n, *has(n)) for n in range(24))
    hits = (await ask(engine, canaries, k=1)).hits
    await engine.set_canaries(
        "mixed", [Canary(one, found[0].id) for one, found in zip(canaries, hits, strict=True)]
    )


@pytest.mark.parametrize("attached", [False, True])
async def test_an_anchor_track_that_loses_its_canaries_goes_back_to_where_it_began(
    settings: Callable[..., Settings], attached: bool
) -> None:
    """Canaries of any kind are checked, also those that this stream's queries are not of."""
    async with running_engine(settings(**HARMFUL), encoder=ToyEncoder()) as engine:
        await fill_mixed(engine)
        if attached:
            await engine.put_calibration("own", encoder_file(1))
            await engine.configure_stream("s", calibration="own")
        await set_right_canaries(engine)
        for n in range(4):
            await ask(engine, queries(16, "image", "text", start=16 * n), adapt="sync")
        (track,) = (await engine.describe_stream("s"))["tracks"]
        event = track["guard"]["events"][0]
        assert (event["finding"], event["action"]) == ("canaries", "reset")
        own = remembered(state_of(engine), MODALITIES)
        if not attached:
            assert own is None
            return
        assert own is not None
        for mine, given in zip(own.model.loadings, encoder_completion(1).model.loadings, strict=True):
            assert torch.equal(mine.weight, given.weight)


@pytest.mark.parametrize("attached", [False, True])
async def test_what_was_learned_of_the_latent_is_forgotten_with_the_rest(
    settings: Callable[..., Settings], attached: bool
) -> None:
    async with running_engine(settings(**HARMFUL), encoder=ToyEncoder()) as engine:
        await fill_mixed(engine)
        if attached:
            await engine.put_calibration("own", encoder_file(1))
            await engine.configure_stream("s", calibration="own")
        await set_right_canaries(engine)
        await ask(engine, queries(16, "image", "text"), adapt="sync")
        await settled_version(engine, "s", 1)
        state, completion = state_of(engine), encoder_completion()
        observed = embeddings(query(0, "image", "text"))
        remember(state, completion.learned(observed, rate=0.5))
        for n in range(1, 4):
            await ask(engine, queries(16, "image", "text", start=16 * n), adapt="sync")
        await engine.describe_stream("s")
        own = remembered(state_of(engine), MODALITIES)
        assert (own is not None) is attached
        assert own is None or own.batches == 0


async def test_the_canaries_of_an_anchor_track_are_those_of_all_kinds(engine: Engine) -> None:
    await engine.set_canaries("mixed", [Canary(query(n, *has(n)), f"i{n}") for n in range(9)])
    assert engine._backend is not None
    canaries, towers = engine._backend.canaries, ToyEncoder().towers
    tower = ComposedTower(towers, encoder_completion(0))
    check = canaries.check("mixed", "text", "anchor", tower)
    assert check is not None
    assert check(tower.parameters).source == (0,) * 9
    assert check(tower.parameters).adapted == (0,) * 9
    plain = canaries.check("mixed", "text", "text", towers["text"])
    assert plain is not None
    assert len(plain(towers["text"].parameters).source) == 3
    composed = canaries.check("mixed", "image+text", "image", ComposedTower(towers))
    assert composed is not None
    assert len(composed(tower.parameters).source) == 3


async def test_canaries_are_completed_as_the_queries_of_their_track(engine: Engine) -> None:
    """Another completion means other ranks, and the same again the same."""
    await engine.set_canaries("mixed", [Canary(query(n, "text"), f"i{n}") for n in range(ITEMS)])
    assert engine._backend is not None
    found = []
    for seed in (0, 1, 0):
        tower = ComposedTower(ToyEncoder().towers, encoder_completion(seed))
        check = engine._backend.canaries.check("mixed", "text", "anchor", tower)
        assert check is not None
        result = check(tower.parameters)
        assert result.adapted == result.source
        found.append(result.source)
        queried = [anchor(query(n, "text"), encoder_completion(seed)) for n in range(ITEMS)]
        items = [anchor(n) for n in range(ITEMS)]
        assert list(result.source) == [ranked(each, items).index(f"i{n}") for n, each in enumerate(queried)]
    assert found[0] == found[2] != found[1]
