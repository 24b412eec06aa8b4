"""Queries through queue, worker and pipeline, with a toy encoder and the in-process queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from adapters.base import BadSettings, StateMismatch, UnknownMethod
from adapters.state import AdaptationState, pack_states, unpack_states
from index.base import BadFilter, FingerprintMismatch, GalleryNotFound
from service.engine import Engine, running_engine
from service.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    NotFound,
    NotReady,
    QueueFull,
    StorageFailed,
)
from service.messages import NewItem, Query, RetrieveAnswer, RetrieveRequest
from service.settings import Settings
from tests.service.conftest import fill
from tests.toy import FEATURES, ToyEncoder, ToyTower, picture, sentence

pytestmark = pytest.mark.anyio


def texts(count: int, start: int = 0) -> tuple[Query, ...]:
    return tuple(Query(text=sentence(start + n)) for n in range(count))


def pictures(count: int, start: int = 0) -> tuple[Query, ...]:
    return tuple(Query(pixels=picture(start + n)) for n in range(count))


async def ask(engine: Engine, queries: tuple[Query, ...], **more: Any) -> RetrieveAnswer:
    return await engine.retrieve(RetrieveRequest(queries=queries, **more))


def ids(answer: RetrieveAnswer) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in answer.hits]


async def settled_version(engine: Engine, stream: str, version: int) -> dict[str, Any]:
    """The stream once it has reached `version` (the last update comes after the answer)."""
    for _ in range(500):
        described = await engine.describe_stream(stream)
        if described["version"] >= version:
            return described
        await asyncio.sleep(0.01)
    raise AssertionError(f"stream {stream} did not reach version {version}: {described}")


async def test_a_text_finds_the_item_of_the_same_text(engine: Engine) -> None:
    answer = await ask(engine, texts(3), target="text", adapt="off", k=1)
    assert ids(answer) == [["i0"], ["i1"], ["i2"]]
    assert answer.hits[0][0].payload == {"n": 0, "even": True}
    assert answer.parts[0].adaptation.status == "off"


async def test_hits_are_those_of_exhaustive_search(engine: Engine) -> None:
    encoder = ToyEncoder()
    gallery = encoder.towers["text"].encode(encoder.towers["text"].prepare([sentence(n) for n in range(120)]))
    queries = encoder.towers["image"].encode(encoder.towers["image"].prepare([picture(n) for n in range(5)]))
    expected = torch.topk(queries @ gallery.T, 4).indices
    answer = await ask(engine, pictures(5), adapt="off", k=4)
    assert ids(answer) == [[f"i{n}" for n in row] for row in expected.tolist()]


async def test_results_stand_in_query_order_when_kinds_are_mixed(engine: Engine) -> None:
    queries = (*texts(1), *pictures(1), *texts(1, start=1))
    answer = await ask(engine, queries, target="text", adapt="off", k=1)
    assert [hits[0].id for hits in (answer.hits[0], answer.hits[2])] == ["i0", "i1"]
    assert [part.query_indices for part in answer.parts] == [(0, 2), (1,)]


async def test_auto_target_is_the_other_modality(engine: Engine) -> None:
    answer = await ask(engine, texts(1))
    assert answer.parts[0].adaptation.direction == "text->image"


async def test_k_over_the_gallery_gives_every_item(engine: Engine) -> None:
    answer = await ask(engine, texts(1), k=1000, adapt="off")
    assert len(answer.hits[0]) == 120


async def test_a_filter_holds_for_its_own_request_only(engine: Engine) -> None:
    filtered, free = await asyncio.gather(
        ask(engine, texts(2), target="text", k=3, adapt="off", filter={"even": True}),
        ask(engine, texts(2), target="text", k=3, adapt="off"),
    )
    assert all(hit.payload["even"] for hits in filtered.hits for hit in hits)
    assert ids(free)[1][0] == "i1"


async def test_sync_adapts_and_the_state_version_rises_with_each_batch(engine: Engine) -> None:
    first = await ask(engine, pictures(16), adapt="sync", stream="cam")
    second = await ask(engine, pictures(16, start=16), adapt="sync", stream="cam")
    assert [a.parts[0].adaptation.state_version for a in (first, second)] == [1, 2]
    assert first.parts[0].adaptation.status == "applying"
    described = await settled_version(engine, "cam", 2)
    track = described["tracks"][0]
    assert track["applied"] == 2
    assert track["memory_size"] == 8  # floor(0.3 * 16) of each batch
    assert set(track["drift"]) >= {"modality_gap", "modality_gap_target", "uniformity", "entropy_nats"}


async def test_the_answer_can_wait_for_the_last_update(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(answer_before_last_update=False), encoder=ToyEncoder()) as engine:
        await fill(engine)
        answer = await ask(engine, pictures(16), adapt="sync")
        assert answer.parts[0].adaptation.status == "applied"
        assert (await engine.describe_stream("default"))["version"] == 1


async def test_answering_early_gives_the_same_hits_and_the_same_state(
    settings: Callable[..., Settings],
) -> None:
    seen = []
    for early in (True, False):
        changed = settings(answer_before_last_update=early, data_folder=settings().data_folder / str(early))
        async with running_engine(changed, encoder=ToyEncoder()) as engine:
            await fill(engine)
            answers = [await ask(engine, pictures(16, start=16 * n), adapt="sync") for n in range(3)]
            card = await engine.create_snapshot("default", "s")
            seen.append(([ids(a) for a in answers], card["version"], _parameters(engine)))
    assert seen[0][:2] == seen[1][:2]
    assert all(torch.equal(a, b) for a, b in zip(seen[0][2], seen[1][2], strict=True))


def _state(engine: Engine, stream: str = "default") -> AdaptationState:
    (track,) = engine._backend.streams.find(stream).tracks.values()
    return track.state


def _parameters(engine: Engine, stream: str = "default") -> list[torch.Tensor]:
    return list(_state(engine, stream).parameters.values())


async def test_async_answers_at_once_and_adapts_in_the_background(engine: Engine) -> None:
    answer = await ask(engine, pictures(16), adapt="async", stream="cam")
    adaptation = answer.parts[0].adaptation
    assert (adaptation.status, adaptation.state_version) == ("queued", 0)
    await settled_version(engine, "cam", 1)
    later = await ask(engine, pictures(1), adapt="async", stream="cam")
    assert later.parts[0].adaptation.state_version == 1


async def test_full_batches_adapt_one_after_the_other_without_a_pause(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker._IDLE_S", 1000.0)
    changed = settings(gather_max_age_s=1000, gather_capacity_items=64)
    async with running_engine(changed, encoder=ToyEncoder()) as engine:
        await fill(engine)
        await asyncio.gather(
            *(ask(engine, pictures(16, start=16 * n), adapt="async", stream="s") for n in range(4))
        )
        for _ in range(500):
            if engine.describe_models()["worker"] == {"adapting": "none", "gatherings": 0, "due": 0}:
                break
            await asyncio.sleep(0.01)
        assert (await engine.describe_stream("s"))["version"] == 4


async def test_an_old_gathering_adapts_as_a_smaller_batch(engine: Engine) -> None:
    for n in range(5):
        await ask(engine, pictures(1, start=n), stream="slow")
    described = await settled_version(engine, "slow", 1)
    assert described["tracks"][0]["memory_size"] >= 1


async def test_a_gathering_below_the_minimum_waits(engine: Engine) -> None:
    await ask(engine, pictures(3), adapt="async", stream="few")
    await asyncio.sleep(0.2)
    track = (await engine.describe_stream("few"))["tracks"][0]
    assert (track["version"], track["gathered"]) == (0, 3)


async def test_gatherings_together_stay_below_their_limit(settings: Callable[..., Settings]) -> None:
    changed = settings(gather_max_age_s=1000, gather_capacity_items=16, gather_total_items=20)
    async with running_engine(changed, encoder=ToyEncoder()) as engine:
        await fill(engine)
        for stream in ("a", "b", "c"):
            await ask(engine, pictures(8), adapt="async", stream=stream)
        tracks = {s["name"]: s["tracks"][0] for s in await engine.list_streams()}
        assert [(tracks[n]["gathered"], tracks[n]["shed"]) for n in "abc"] == [(0, 8), (8, 0), (8, 0)]


async def test_a_bad_filter_fails_its_own_request_only(engine: Engine) -> None:
    good, bad = await asyncio.gather(
        ask(engine, texts(2), adapt="off"),
        ask(engine, texts(2), adapt="off", filter={"n": {"sideways": 1}}),
        return_exceptions=True,
    )
    assert isinstance(good, RetrieveAnswer)
    assert isinstance(bad, BadFilter)


async def test_auto_is_sync_for_large_requests_and_async_for_small_ones(engine: Engine) -> None:
    small = await ask(engine, pictures(1), stream="x")
    large = await ask(engine, pictures(16), stream="y")
    assert [a.parts[0].adaptation.mode for a in (small, large)] == ["async", "sync"]


async def test_off_neither_reads_nor_makes_a_stream(engine: Engine) -> None:
    await ask(engine, pictures(2), adapt="off", stream="ghost")
    assert await engine.list_streams() == []


async def test_two_streams_at_once_do_as_each_does_alone(settings: Callable[..., Settings]) -> None:
    async def run(folder: str, streams: tuple[str, ...]) -> dict[str, Any]:
        changed = settings(data_folder=settings().data_folder / folder)
        async with running_engine(changed, encoder=ToyEncoder()) as engine:
            await fill(engine)

            async def one(stream: str) -> list[list[list[str]]]:
                start = 1000 if stream == "b" else 0
                return [
                    ids(await ask(engine, pictures(16, start=start + 16 * n), adapt="sync", stream=stream))
                    for n in range(4)
                ]

            found = await asyncio.gather(*(one(stream) for stream in streams))
            for stream in streams:
                await settled_version(engine, stream, 4)
            states = {stream: [p.clone() for p in _parameters(engine, stream)] for stream in streams}
            return {stream: (hits, states[stream]) for stream, hits in zip(streams, found, strict=True)}

    together = await run("both", ("a", "b"))
    for stream in ("a", "b"):
        alone = (await run(f"only-{stream}", (stream,)))[stream]
        assert together[stream][0] == alone[0]
        assert all(torch.equal(x, y) for x, y in zip(together[stream][1], alone[1], strict=True))


async def test_the_source_method_never_adapts_and_says_so(engine: Engine) -> None:
    await engine.configure_stream("plain", "source", None)
    for mode in ("sync", "async"):
        answer = await ask(engine, pictures(16), adapt=mode, stream="plain")
        assert answer.parts[0].adaptation.status == "skipped"
        assert "source" in answer.parts[0].adaptation.reason
    assert (await engine.describe_stream("plain"))["version"] == 0


async def test_training_free_tcr_works_in_both_modes(engine: Engine) -> None:
    await engine.configure_stream("free", "tcr_untrain", {"scale": 1.5})
    answer = await ask(engine, pictures(16), adapt="sync", stream="free")
    assert answer.parts[0].adaptation.status == "applied"
    await ask(engine, pictures(16, start=16), adapt="async", stream="free")
    assert (await settled_version(engine, "free", 2))["tracks"][0]["memory_size"] == 8


async def test_a_batch_of_one_adapts_when_asked(engine: Engine) -> None:
    await ask(engine, pictures(1), adapt="sync", stream="single")
    described = await settled_version(engine, "single", 1)
    assert described["tracks"][0]["memory_size"] == 1
    assert all(bool(torch.isfinite(p).all()) for p in _parameters(engine, "single"))


async def test_sixty_four_identical_queries_leave_a_finite_state(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(batch_size=64), encoder=ToyEncoder()) as engine:
        await fill(engine)
        answer = await ask(engine, (Query(pixels=picture(1)),) * 64, adapt="sync")
        assert len({tuple(row) for row in ids(answer)}) == 1
        await settled_version(engine, "default", 1)
        assert all(bool(torch.isfinite(p).all()) for p in _parameters(engine))


async def test_an_embedding_is_answered_without_adaptation(engine: Engine) -> None:
    vector = engine._backend.galleries.usable("things").matrix("image")[7].copy()
    answer = await ask(engine, (Query(embedding=vector),), k=1, adapt="sync")
    assert ids(answer) == [["i7"]]
    assert answer.parts[0].adaptation.status == "skipped"


@pytest.mark.parametrize(
    "vector", [np.ones(3, np.float32), np.zeros(FEATURES, np.float32), np.full(FEATURES, np.nan, np.float32)]
)
async def test_a_bad_embedding_is_refused(engine: Engine, vector: np.ndarray) -> None:
    with pytest.raises(BadRequest):
        await ask(engine, (Query(embedding=vector),))


async def test_an_unknown_gallery_is_refused(engine: Engine) -> None:
    with pytest.raises(GalleryNotFound):
        await ask(engine, texts(1), gallery="nowhere")


async def test_a_target_the_gallery_lacks_is_refused(engine: Engine) -> None:
    await engine.create_gallery("captions", None)
    await engine.upsert_items("captions", [NewItem(id="one", text="red dog")])
    with pytest.raises(BadRequest):
        await ask(engine, texts(1), gallery="captions", target="image")


async def test_an_empty_gallery_gives_no_hits(engine: Engine) -> None:
    await engine.create_gallery("empty", None)
    for mode in ("sync", "async", "off"):
        answer = await ask(engine, texts(2), gallery="empty", adapt=mode)
        assert answer.hits == ((), ())


@pytest.mark.parametrize("adapt", ["sync", "async"])
async def test_a_gallery_emptied_under_an_adaptation_ends_it_without_a_fault(
    engine: Engine, adapt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [f"i{n}" for n in range(120)]
    real = ToyTower.encode
    emptied: list[bool] = []

    def encode(tower: ToyTower, inputs: torch.Tensor, parameters: Any = None) -> torch.Tensor:
        if parameters is not None and inputs.shape[0] == 16 and tower.forwards % 3 == 2 and not emptied:
            emptied.append(True)  # between two steps of the batch
            engine._backend.galleries.usable("things").delete(everything)
        return real(tower, inputs, parameters)

    monkeypatch.setattr(ToyTower, "encode", encode)
    for n in range(3):
        answer = await ask(engine, pictures(16, start=16 * n), adapt=adapt, stream="s")
        assert all(len(hits) in (0, 10) for hits in answer.hits)
    for _ in range(500):
        if engine.describe_models()["worker"]["adapting"] == "none":
            break
        await asyncio.sleep(0.01)
    assert emptied
    assert all(bool(torch.isfinite(p).all()) for p in _parameters(engine, "s"))
    assert engine.metrics.value("attune_jobs_failed_total", code="internal") == 0
    skipped = (await engine.describe_stream("s"))["tracks"][0]["skipped"]
    assert adapt == "async" or skipped == 1


async def test_an_item_with_nothing_to_encode_is_refused_and_nothing_is_added(engine: Engine) -> None:
    with pytest.raises(BadRequest):
        await engine.upsert_items("things", [NewItem(id="new", text="a dog"), NewItem(id="bare")])
    assert (await engine.describe_gallery("things"))["items"] == 120


async def test_unknown_method_and_setting_change_nothing(engine: Engine) -> None:
    await engine.configure_stream("s", "tcr", {"steps": 2})
    with pytest.raises(UnknownMethod):
        await engine.configure_stream("s", "tcrr", None)
    with pytest.raises(BadSettings):
        await engine.configure_stream("s", None, {"step": 1})
    with pytest.raises(BadSettings):
        await engine.configure_stream("s", None, {"steps": 0})
    described = await engine.describe_stream("s")
    assert (described["method"], described["settings"]) == ("tcr", {"steps": 2})


async def test_another_method_starts_from_the_source_state(engine: Engine) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 1)
    changed = await engine.configure_stream("s", "tcr_untrain", None)
    assert (changed["reset"], changed["version"]) == (True, 0)


async def test_new_settings_keep_the_state(engine: Engine) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 1)
    changed = await engine.configure_stream("s", None, {"steps": 1})
    assert (changed["reset"], changed["version"]) == (False, 1)


async def test_reset_gives_the_source_answers_again(engine: Engine) -> None:
    before = await ask(engine, pictures(16), adapt="off", k=5)
    for n in range(3):
        await ask(engine, pictures(16, start=16 * n), adapt="sync", stream="s")
    await engine.reset_stream("s")
    await engine.configure_stream("s", "tcr", {"steps": 1})
    after = await ask(
        engine, pictures(16), adapt="sync", stream="s", k=5
    )  # one step answers before any update
    assert ids(before) == ids(after)


async def test_a_restored_snapshot_continues_bit_exactly(engine: Engine) -> None:
    for n in range(2):
        await ask(engine, pictures(16, start=16 * n), adapt="sync", stream="s")
    card = await engine.create_snapshot("s", "before", note="two batches")
    assert (card["version"], card["note"]) == (2, "two batches")
    first = await ask(engine, pictures(16, start=99), adapt="sync", stream="s", k=5)
    await settled_version(engine, "s", 3)
    learned = [p.clone() for p in _parameters(engine, "s")]
    assert (await engine.restore_snapshot("s", "before"))["version"] == 2
    again = await ask(engine, pictures(16, start=99), adapt="sync", stream="s", k=5)
    await settled_version(engine, "s", 3)
    assert ids(first) == ids(again)
    assert [h.score for hits in first.hits for h in hits] == [h.score for hits in again.hits for h in hits]
    assert all(torch.equal(a, b) for a, b in zip(learned, _parameters(engine, "s"), strict=True))


async def test_a_snapshot_travels_to_another_stream(engine: Engine) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "one")
    data = await engine.export_snapshot("s", "one")
    card = await engine.import_snapshot("other", "copy", data)
    assert card["version"] == 1
    assert (await engine.restore_snapshot("other", "copy"))["version"] == 1
    assert torch.equal(_parameters(engine, "other")[0], _parameters(engine, "s")[0])


async def test_snapshots_are_listed_and_deleted(engine: Engine) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "one")
    await engine.create_snapshot("s", None)
    assert len(await engine.list_snapshots("s")) == 2
    with pytest.raises(Conflict):
        await engine.create_snapshot("s", "one")
    with pytest.raises(Conflict):
        await engine.delete_stream("s")
    await engine.delete_snapshot("s", "one")
    with pytest.raises(NotFound):
        await engine.restore_snapshot("s", "one")
    await engine.delete_stream("s", force=True)
    assert await engine.list_streams() == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
async def test_a_damaged_snapshot_is_refused_and_the_stream_stays(engine: Engine, damage: str) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "good")
    data = await engine.export_snapshot("s", "good")
    kept = [p.clone() for p in _parameters(engine, "s")]
    broken = {
        "truncated": data[:-20],
        "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "empty": b"",
        "other": b"not a snapshot at all" * 10,
    }[damage]
    with pytest.raises(BadRequest):
        await engine.import_snapshot("s", "broken", broken)
    path = engine._backend.snapshots._path("s", "good")
    path.write_bytes(broken)
    with pytest.raises(BadRequest):
        await engine.restore_snapshot("s", "good")
    assert all(torch.equal(a, b) for a, b in zip(kept, _parameters(engine, "s"), strict=True))
    assert len(await engine.list_snapshots("s")) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("snapshot_at", "<b>today</b>"),
        ("snapshot_at", 10**400),
        ("snapshot_at", float("inf")),
        ("snapshot_at", True),
        ("version", "one"),
        ("version", -1),
        ("note", {"a": 1}),
        ("note", "x" * 100_000),
        ("calibrations", [1]),
    ],
)
async def test_a_snapshot_with_a_made_up_card_is_refused_and_listed_as_damaged(
    engine: Engine, field: str, value: object
) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "good")
    states, header = unpack_states(await engine.export_snapshot("s", "good"))
    data = pack_states(states, header={**header, field: value})
    with pytest.raises(BadRequest) as refusal:
        await engine.import_snapshot("s", "forged", data)
    assert refusal.value.code == "bad_snapshot"
    engine._backend.snapshots._path("s", "forged").write_bytes(data)
    cards = {card["name"]: card for card in await engine.list_snapshots("s")}
    assert "damaged" in cards["forged"]
    assert "damaged" not in cards["good"]
    await engine.delete_snapshot("s", "forged")


async def test_a_snapshot_of_another_encoder_is_refused(
    settings: Callable[..., Settings], engine: Engine
) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "one")
    data = await engine.export_snapshot("s", "one")
    other = settings(data_folder=settings().data_folder / "other")
    async with running_engine(other, encoder=ToyEncoder(seed=1)) as second:
        with pytest.raises(Conflict) as refusal:
            await second.import_snapshot("s", "one", data)
        assert refusal.value.code == "fingerprint_mismatch"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a..b", "x" * 200, "nul\0"])
async def test_a_name_cannot_leave_its_folder(engine: Engine, name: str) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    with pytest.raises(BadRequest):
        await ask(engine, pictures(1), stream=name)
    if name:
        with pytest.raises(BadRequest):
            await engine.create_snapshot("s", name)
    with pytest.raises(BadRequest):
        await engine.configure_stream(name, "tcr", None)


async def test_a_stream_and_a_gallery_survive_a_restart(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill(engine)
        await ask(engine, pictures(16), adapt="sync", stream="s")
        before = await settled_version(engine, "s", 1)
        learned = [p.clone() for p in _parameters(engine, "s")]
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        assert (await engine.describe_gallery("things"))["items"] == 120
        after = await engine.describe_stream("s")
        assert after["version"] == before["version"]
        assert all(torch.equal(a, b) for a, b in zip(learned, _parameters(engine, "s"), strict=True))


async def test_another_encoder_refuses_the_gallery_and_starts_streams_anew(
    settings: Callable[..., Settings],
) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill(engine)
        await ask(engine, pictures(16), adapt="sync", stream="s")
    async with running_engine(settings(), encoder=ToyEncoder(seed=1)) as engine:
        with pytest.raises(FingerprintMismatch):
            await ask(engine, texts(1))
        (card,) = await engine.list_galleries()
        assert card["status"] == "refused"
        with pytest.raises(NotFound):
            await engine.describe_stream("s")
        await engine.delete_gallery("things")
        await fill(engine)
        assert (await ask(engine, pictures(16), adapt="sync", stream="s")).parts[
            0
        ].adaptation.state_version == 1


async def test_shutdown_answers_what_was_accepted(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill(engine)
        waiting = [
            asyncio.create_task(ask(engine, pictures(16, start=16 * n), adapt="sync")) for n in range(5)
        ]
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        answers = await asyncio.gather(*waiting)
        assert [a.parts[0].adaptation.state_version for a in answers] == [1, 2, 3, 4, 5]
        await closing
        with pytest.raises(NotReady):
            await ask(engine, texts(1))
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        assert (await engine.describe_stream("default"))["version"] == 5


async def test_gathered_queries_still_adapt_at_shutdown(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(gather_max_age_s=1000), encoder=ToyEncoder()) as engine:
        await fill(engine)
        await ask(engine, pictures(8), adapt="async", stream="s")
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        assert (await engine.describe_stream("s"))["version"] == 1


async def test_a_full_queue_refuses_with_a_time_to_come_back(settings: Callable[..., Settings]) -> None:
    changed = settings(queue_capacity_items=16, max_queries_per_request=16)
    async with running_engine(changed, encoder=ToyEncoder()) as engine:
        await fill(engine, items=16)
        burst = [ask(engine, pictures(16, start=16 * n), adapt="sync") for n in range(30)]
        answers = await asyncio.gather(*burst, return_exceptions=True)
        refused = [a for a in answers if isinstance(a, QueueFull)]
        answered = [a for a in answers if isinstance(a, RetrieveAnswer)]
        assert refused
        assert answered
        assert len(refused) + len(answered) == 30
        assert all(error.retry_after_s >= 1 for error in refused)


async def test_a_deadline_ends_the_wait(engine: Engine) -> None:
    busy = [asyncio.create_task(ask(engine, pictures(16, start=16 * n), adapt="sync")) for n in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await ask(engine, pictures(16), adapt="sync", deadline_ms=0.01)
    await asyncio.gather(*busy)


async def test_a_client_that_leaves_withdraws_its_waiting_query(engine: Engine) -> None:
    busy = [asyncio.create_task(ask(engine, pictures(16, start=16 * n), adapt="sync")) for n in range(4)]
    leaving = asyncio.create_task(ask(engine, pictures(16, start=500), adapt="sync"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(*busy)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    described = await settled_version(engine, "default", 4)
    await ask(engine, pictures(1), adapt="off")
    assert described["version"] == (await engine.describe_stream("default"))["version"] == 4


async def test_a_loss_that_is_not_finite_is_undone_and_the_answer_still_comes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 1)
    kept = [p.clone() for p in _parameters(engine, "s")]

    def poisoned(*_: object, **__: object) -> torch.Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setattr("adapters.tcr.uniformity", poisoned)
    # It gathers a batch too, which is undone likewise.
    source = await ask(engine, pictures(16), adapt="async", stream="s", k=5)
    answer = await ask(engine, pictures(16), adapt="sync", stream="s", k=5)
    assert answer.parts[0].adaptation.status == "undone"
    assert answer.parts[0].adaptation.state_version == 1
    assert ids(answer) == ids(source)
    described = await engine.describe_stream("s")
    assert described["tracks"][0]["undone"] >= 1
    assert all(torch.equal(a, b) for a, b in zip(kept, _parameters(engine, "s"), strict=True))


async def test_a_fault_in_the_encoder_fails_the_request_and_the_worker_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:

        def fault(*_: object, **__: object) -> None:
            raise RuntimeError("broken kernel")

        broken.setattr("tests.toy.ToyTower.encode", fault)
        for mode in ("sync", "async", "off"):
            with pytest.raises(RuntimeError, match="broken kernel"):
                await ask(engine, pictures(2), adapt=mode)
    assert (await ask(engine, pictures(2), adapt="sync")).hits


async def test_a_full_disk_keeps_the_old_snapshot_and_the_stream(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "good")
    good = await engine.export_snapshot("s", "good")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFailed):
        await engine.create_snapshot("s", "second")
    with pytest.raises(StorageFailed):
        await engine.reset_stream("s")
    monkeypatch.undo()
    assert (await engine.describe_stream("s"))["version"] == 1
    assert [card["name"] for card in await engine.list_snapshots("s")] == ["good"]
    assert await engine.export_snapshot("s", "good") == good
    folder = engine._backend.snapshots._folder
    assert not list(folder.rglob("*.new"))


async def test_streams_beyond_the_limit_go_to_disk_and_come_back(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(max_streams=2), encoder=ToyEncoder()) as engine:
        await fill(engine)
        for n in range(5):
            await ask(engine, pictures(16, start=n), adapt="sync", stream=f"s{n}")
            await settled_version(engine, f"s{n}", 1)
        assert engine._backend.streams.count() <= 2
        assert {stream["version"] for stream in await engine.list_streams()} == {1}
        again = await ask(engine, pictures(16), adapt="sync", stream="s0")
        assert again.parts[0].adaptation.state_version == 2


async def test_a_stream_state_of_no_use_is_put_aside(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill(engine)
        await ask(engine, pictures(16), adapt="sync", stream="s")
    path = settings().data_folder / "streams" / "s.state"
    path.write_bytes(path.read_bytes()[:-3])
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        answer = await ask(engine, pictures(16), adapt="sync", stream="s")
        assert answer.parts[0].adaptation.state_version == 1
        assert path.with_suffix(".refused").is_file()


async def test_reset_during_background_adaptation_wins(engine: Engine) -> None:
    for _ in range(10):
        await ask(engine, pictures(16), adapt="async", stream="s")
        assert (await engine.reset_stream("s"))["version"] == 0
    time.sleep(0.1)
    assert (await engine.describe_stream("s"))["version"] == 0


async def test_a_crafted_state_is_refused() -> None:
    from adapters.validation import check_state

    encoder = ToyEncoder()
    parameters = encoder.towers["text"].parameters
    good = AdaptationState("tcr", encoder.fingerprint, {k: v.clone() for k, v in parameters.items()})

    def check(**tensors: torch.Tensor) -> None:
        state = good.clone()
        state.tensors = {f"memory.{name}": value for name, value in tensors.items()}
        check_state(state, fingerprint=encoder.fingerprint, parameters=parameters, dimension=FEATURES)

    rows = {"queries": torch.ones(3, FEATURES), "candidates": torch.ones(3, FEATURES)}
    check(likeness=torch.zeros(3), entropy=torch.zeros(3), **rows)
    with pytest.raises(StateMismatch):
        check(likeness=torch.zeros(2), entropy=torch.zeros(3), **rows)
    with pytest.raises(StateMismatch):
        check(likeness=torch.zeros(3), entropy=torch.full((3,), torch.nan), **rows)
    with pytest.raises(StateMismatch):
        check(likeness=torch.zeros(3), **rows)
    with pytest.raises(StateMismatch):
        check(anything=torch.zeros(3))


async def test_a_batch_that_waited_long_is_answered_without_adapting(
    settings: Callable[..., Settings],
) -> None:
    async with running_engine(settings(shed_from_wait_share=1e-9), encoder=ToyEncoder()) as engine:
        await fill(engine)
        answer = await ask(engine, pictures(16), adapt="sync", stream="s")
        adaptation = answer.parts[0].adaptation
        assert (adaptation.status, adaptation.state_version) == ("skipped", 0)
        assert "overloaded" in adaptation.reason
        assert len(answer.hits) == 16


async def test_under_pressure_answers_come_first_and_adaptation_resumes_after(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        await fill(engine)
        pressure = 0.9
        monkeypatch.setattr(engine._backend.queue, "pressure", lambda: pressure)  # type: ignore[union-attr]
        answer = await ask(engine, pictures(16), adapt="sync", stream="s")
        assert answer.parts[0].adaptation.status == "skipped"
        queued = await ask(engine, pictures(16), adapt="async", stream="s")
        assert queued.parts[0].adaptation.status == "queued"
        assert (await engine.describe_stream("s"))["version"] == 0
        pressure = 0.1
        await settled_version(engine, "s", 1)  # what was gathered meanwhile is learned from
        answer = await ask(engine, pictures(16), adapt="sync", stream="s")
        assert answer.parts[0].adaptation.status == "applying"


async def test_a_pinned_stream_stays_in_memory(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(max_streams=2), encoder=ToyEncoder()) as engine:
        await fill(engine)
        assert (await engine.configure_stream("kept", pinned=True))["pinned"] is True
        for n in range(6):
            await ask(engine, texts(1), stream=f"s{n}")
        held = {stream.name for stream in engine._backend.streams.held()}  # type: ignore[union-attr]
        assert "kept" in held
        assert len(held) == 2
        assert (await engine.configure_stream("kept", pinned=False))["pinned"] is False
        for n in range(6):
            await ask(engine, texts(1), stream=f"s{n}")
        held = {stream.name for stream in engine._backend.streams.held()}  # type: ignore[union-attr]
        assert "kept" not in held


async def test_states_in_memory_stay_below_their_bytes(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(max_stream_memory_mib=1), encoder=ToyEncoder()) as engine:
        await fill(engine)
        for n in range(3):
            await ask(engine, pictures(16), adapt="sync", stream=f"s{n}")
            await engine.create_snapshot(f"s{n}", "saved")
        streams = engine._backend.streams  # type: ignore[union-attr]
        assert streams.byte_size() < 1 << 20
        assert streams.count() == 3
        streams._max_bytes = 1
        await ask(engine, texts(1), stream="last")
        assert streams.count() == 1
        assert (await engine.describe_stream("s1"))["version"] == 1
