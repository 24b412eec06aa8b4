"""Calibrations through queue and worker: made, used by galleries, attached to streams, in snapshots."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from adapters.completion import Completion, fit_completion, remembered, tensors_of_completion
from service import calibrations
from service.engine import Engine, running_engine
from service.errors import BadRequest, Conflict, NotFound
from service.messages import ClassifyRequest, NewItem, Query, RetrieveAnswer, RetrieveRequest, Sample
from service.settings import Settings
from tests.service.calibrated import (
    classifier_completion,
    classifier_file,
    encoder_completion,
    encoder_file,
)
from tests.service.conftest import fill
from tests.toy import ToyClassifier, ToyEncoder, picture, sentence, sound

pytestmark = pytest.mark.anyio
ANCHOR = "pairs/image+text->anchor"
CLASSES = "classes/audio+video->label"


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    """With a gallery `things` without, and a gallery `pairs` with a calibration."""
    async with started(settings) as running:
        await fill(running, items=40)
        await running.put_calibration("first", encoder_file(0))
        await fill_calibrated(running)
        yield running


def started(settings: Callable[..., Settings], **changes: Any) -> Any:
    chosen = settings(classify_method="tent", **changes)
    return running_engine(chosen, encoder=ToyEncoder(), classifier=ToyClassifier())


async def fill_calibrated(engine: Engine, gallery: str = "pairs", calibration: str = "first") -> None:
    await engine.create_gallery(gallery, None, calibration)
    items = [
        NewItem(
            id=f"i{n}",
            text=sentence(n) if n % 3 else None,
            pixels=picture(n) if n % 3 != 1 else None,
        )
        for n in range(30)
    ]
    await engine.upsert_items(gallery, items)


def composed(count: int, start: int = 0) -> tuple[Query, ...]:
    return tuple(Query(text=sentence(start + n), pixels=picture(start + n)) for n in range(count))


def texts(count: int) -> tuple[Query, ...]:
    return tuple(Query(text=sentence(n)) for n in range(count))


async def ask(engine: Engine, queries: tuple[Query, ...], stream: str = "s", **more: Any) -> RetrieveAnswer:
    more = {"gallery": "pairs", "adapt": "sync", **more}
    return await engine.retrieve(RetrieveRequest(queries=queries, stream=stream, **more))


async def listen(engine: Engine, stream: str = "s", count: int = 8) -> None:
    samples = tuple(Sample(fbank=sound(n), pixels=picture(n)) for n in range(count))
    await engine.classify(ClassifyRequest(samples=samples, stream=stream, adapt="sync"))
    await engine.describe_stream(stream)


def completion_of(engine: Engine, stream: str = "s", track: str = ANCHOR) -> Completion | None:
    assert engine._backend is not None
    state = engine._backend.streams.find(stream).tracks[track].state
    names = ("image", "text") if track != CLASSES else ("audio", "video", "fused")
    return remembered(state, names)


def is_same(one: Completion | None, other: Completion) -> bool:
    if one is None:
        return False
    found, expected = tensors_of_completion(one), tensors_of_completion(other)
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


# -- made and used --------------------------------------------------------------------------------------


async def test_a_calibration_is_made_from_a_gallery_and_makes_another_searchable(engine: Engine) -> None:
    card = await engine.fit_calibration("made", "things", latent=3, samples=30)
    assert (card["samples"], card["latent"]) == (30, 3)
    assert set(card["relative_error"]) == {"image", "text"}
    await fill_calibrated(engine, "second", "made")
    answer = await ask(engine, texts(2), gallery="second", adapt="off", k=3)
    assert [len(hits) for hits in answer.hits] == [3, 3]
    assert (await engine.describe_calibration("made"))["galleries"] == ["second"]


class Gate:
    """A fit that has `begun` ends no sooner than it may `go` on; it yields meanwhile."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def fit_completion(self, *given: Any, **more: Any) -> Generator[Any, None, Completion]:
        self.begun.set()
        while not self.go.is_set():
            yield
        return (yield from fit_completion(*given, **more))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(calibrations, "fit_completion", gate.fit_completion)
    yield gate
    gate.go.set()


async def test_queries_are_answered_while_a_calibration_is_fitted(engine: Engine, gate: Gate) -> None:
    fit = asyncio.ensure_future(engine.fit_calibration("made", "things"))
    await asyncio.to_thread(gate.begun.wait, 30)
    for mode in ("off", "async"):
        answer = await ask(engine, texts(1), gallery="things", adapt=mode)
        assert len(answer.hits) == 1
    assert not fit.done()
    gate.go.set()
    assert (await fit)["name"] == "made"


async def test_a_fit_that_was_begun_is_finished_though_its_client_has_left(
    engine: Engine, gate: Gate
) -> None:
    fit = asyncio.ensure_future(engine.fit_calibration("made", "things"))
    await asyncio.to_thread(gate.begun.wait, 30)
    fit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fit
    gate.go.set()
    for _ in range(500):
        if [card["name"] for card in await engine.list_calibrations()] == ["first", "made"]:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("it was not finished")


async def test_a_calibration_in_use_is_not_deleted(engine: Engine) -> None:
    with pytest.raises(Conflict) as refused:
        await engine.delete_calibration("first")
    assert (refused.value.code, refused.value.details) == ("calibration_in_use", {"galleries": ["pairs"]})
    await engine.delete_gallery("pairs")
    await engine.delete_calibration("first")
    assert await engine.list_calibrations() == []


async def test_a_gallery_of_an_unknown_or_foreign_calibration_is_not_made(engine: Engine) -> None:
    await engine.put_calibration("av", classifier_file())
    with pytest.raises(NotFound) as unknown:
        await engine.create_gallery("x", None, "none")
    assert unknown.value.code == "unknown_calibration"
    with pytest.raises(Conflict) as foreign:
        await engine.create_gallery("x", None, "av")
    assert foreign.value.code == "fingerprint_mismatch"
    assert [card["name"] for card in await engine.list_galleries()] == ["pairs", "things"]


async def test_an_unknown_or_empty_gallery_is_not_fitted_to(engine: Engine) -> None:
    from index.base import GalleryNotFound

    with pytest.raises(GalleryNotFound):
        await engine.fit_calibration("made", "none")
    await engine.create_gallery("empty", None)
    with pytest.raises(Conflict) as few:
        await engine.fit_calibration("made", "empty")
    assert few.value.code == "too_few_pairs"


# -- attached to streams --------------------------------------------------------------------------------


async def test_a_stream_has_its_own_calibration_in_old_and_new_tracks(engine: Engine) -> None:
    await engine.put_calibration("second", encoder_file(1))
    await ask(engine, composed(8))
    before = (await engine.describe_stream("s"))["version"]
    assert before == 1
    assert completion_of(engine) is None
    card = await engine.configure_stream("s", calibration="second")
    assert card["calibrations"]["retrieve"] | {"digest": ""} == {
        "name": "second",
        "digest": "",
        "warning": "",
    }
    assert (card["version"], card["reset"]) == (before, False), "what was learned is gone"
    assert is_same(completion_of(engine), encoder_completion(1))
    await ask(engine, composed(8, 20))
    assert (await engine.describe_stream("s"))["version"] == before + 1
    assert is_same(completion_of(engine), encoder_completion(1))
    await fill_calibrated(engine, "other")
    await ask(engine, texts(8), gallery="other")
    assert is_same(completion_of(engine, track="other/image+text->anchor"), encoder_completion(1))


async def test_an_attached_calibration_completes_the_answers(engine: Engine) -> None:
    await engine.put_calibration("second", encoder_file(1))
    plain = await ask(engine, texts(4), "plain", adapt="async")
    await engine.configure_stream("own", calibration="second")
    own = await ask(engine, texts(4), "own", adapt="async")
    scores = [[hit.score for hits in answer.hits for hit in hits] for answer in (plain, own)]
    assert scores[0] != scores[1]
    await engine.configure_stream("own", calibration="")
    back = await ask(engine, texts(4), "own", adapt="async")
    assert [hit.score for hits in back.hits for hit in hits] == pytest.approx(scores[0])


async def test_plain_tracks_carry_no_completion(engine: Engine) -> None:
    await engine.configure_stream("s", calibration="first")
    await ask(engine, texts(8), gallery="things")
    assert completion_of(engine, track="things/text->image") is None


async def test_a_classifiers_calibration_goes_to_the_classifiers_track(engine: Engine) -> None:
    await engine.put_calibration("av", classifier_file())
    await listen(engine)
    await ask(engine, composed(8))
    card = await engine.configure_stream("s", calibration="av")
    assert list(card["calibrations"]) == ["classify"]
    assert is_same(completion_of(engine, track=CLASSES), classifier_completion())
    assert completion_of(engine) is None
    await engine.configure_stream("new", calibration="av")
    await listen(engine, "new")
    assert is_same(completion_of(engine, "new", CLASSES), classifier_completion())


async def test_each_task_is_detached_by_itself_or_both(engine: Engine) -> None:
    await engine.put_calibration("av", classifier_file())
    for _ in range(2):
        await engine.configure_stream("s", calibration="av")
        await engine.configure_stream("s", calibration="first")
    await listen(engine)
    await ask(engine, composed(8))
    card = await engine.configure_stream("s", calibration="", task="retrieve")
    assert list(card["calibrations"]) == ["classify"]
    assert completion_of(engine) is None
    assert completion_of(engine, track=CLASSES) is not None
    await engine.configure_stream("s", calibration="first")
    card = await engine.configure_stream("s", calibration="")
    assert card["calibrations"] == {}
    assert completion_of(engine, track=CLASSES) is None


async def test_a_bad_attachment_changes_nothing(engine: Engine) -> None:
    await engine.put_calibration("av", classifier_file())
    await engine.configure_stream("s", calibration="first", pinned=False)
    before = await engine.describe_stream("s")
    with pytest.raises(NotFound) as unknown:
        await engine.configure_stream("s", calibration="none", pinned=True)
    assert unknown.value.code == "unknown_calibration"
    with pytest.raises(BadRequest) as other:
        await engine.configure_stream("s", calibration="av", task="retrieve", pinned=True)
    assert other.value.code == "bad_calibration"
    assert await engine.describe_stream("s") == before


async def test_reset_and_another_method_keep_the_attachment(engine: Engine) -> None:
    await engine.put_calibration("second", encoder_file(1))
    await engine.configure_stream("s", calibration="second")
    await ask(engine, composed(8))
    card = await engine.reset_stream("s")
    assert (card["tracks"], card["calibrations"]["retrieve"]["name"]) == ([], "second")
    await ask(engine, composed(8))
    assert is_same(completion_of(engine), encoder_completion(1))
    card = await engine.configure_stream("s", method="calmrl", task="retrieve")
    assert (card["reset"], card["calibrations"]["retrieve"]["name"]) == (True, "second")
    await ask(engine, texts(4), adapt="async")
    assert is_same(completion_of(engine), encoder_completion(1))
    await engine.configure_stream("s", method="tcr")
    await ask(engine, composed(8))
    assert is_same(completion_of(engine), encoder_completion(1))


async def test_what_is_learned_of_the_latent_is_dropped_by_reset_only(engine: Engine) -> None:
    await engine.configure_stream("s", method="calmrl", task="retrieve", calibration="first")
    await ask(engine, composed(16))
    await engine.describe_stream("s")
    learned = completion_of(engine)
    assert learned is not None
    assert learned.batches == 1
    await engine.reset_stream("s")
    await ask(engine, texts(4), adapt="async")
    assert is_same(completion_of(engine), encoder_completion(0))


async def test_a_deleted_calibration_stays_in_states_and_is_missed_in_new_ones(engine: Engine) -> None:
    await engine.put_calibration("second", encoder_file(1))
    await engine.configure_stream("s", calibration="second")
    await ask(engine, composed(8))
    await engine.delete_calibration("second")
    assert is_same(completion_of(engine), encoder_completion(1))
    card = await engine.describe_stream("s")
    assert card["calibrations"]["retrieve"]["warning"] == ""
    await fill_calibrated(engine, "other")
    with capture_logs() as logged:
        await ask(engine, texts(8), gallery="other")
        card = await engine.describe_stream("s")
    assert "calibration_gone" in [entry["event"] for entry in logged]
    assert "there is no calibration 'second'" in card["calibrations"]["retrieve"]["warning"]
    assert completion_of(engine, track="other/image+text->anchor") is None
    await engine.put_calibration("second", encoder_file(2))
    await engine.reset_stream("s")
    await ask(engine, texts(8))
    assert completion_of(engine) is None, "another content under the old name was taken"
    card = await engine.configure_stream("s", calibration="second")
    assert card["calibrations"]["retrieve"]["warning"] == ""


# -- kept -----------------------------------------------------------------------------------------------


async def test_attachments_outlive_a_restart(settings: Callable[..., Settings]) -> None:
    async with started(settings) as first:
        await first.put_calibration("first", encoder_file(0))
        await first.put_calibration("second", encoder_file(1))
        await fill_calibrated(first)
        await first.configure_stream("s", calibration="second")
        await ask(first, composed(8))
        before = await first.describe_stream("s")
    async with started(settings) as again:
        card = await again.describe_stream("s")
        assert card["calibrations"] == before["calibrations"]
        assert is_same(completion_of(again), encoder_completion(1))
        assert [one["name"] for one in await again.list_calibrations()] == ["first", "second"]
        answer = await ask(again, texts(2), adapt="off")
        assert len(answer.hits) == 2


async def test_a_snapshot_brings_the_calibration_to_a_server_without_it(
    engine: Engine, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    await engine.put_calibration("second", encoder_file(1))
    await engine.configure_stream("s", calibration="second")
    await ask(engine, composed(8))
    taken = await engine.create_snapshot("s", "before")
    assert taken["calibrations"]["retrieve"]["name"] == "second"
    data = await engine.export_snapshot("s", "before")
    await engine.configure_stream("s", calibration="")
    card = await engine.restore_snapshot("s", "before")
    assert card["calibrations"]["retrieve"]["name"] == "second"
    assert is_same(completion_of(engine), encoder_completion(1))
    async with started(settings, data_folder=tmp_path / "elsewhere") as other:
        await other.put_calibration("first", encoder_file(0))
        await fill_calibrated(other)
        await other.import_snapshot("t", "came", data)
        card = await other.restore_snapshot("t", "came")
        assert card["calibrations"]["retrieve"]["name"] == "second"
        assert is_same(completion_of(other, "t"), encoder_completion(1))
        own = await ask(other, texts(4), "t", adapt="async")
        assert len(own.hits) == 4


@pytest.mark.parametrize(
    "plain",
    [
        [],
        {"retrieve": "second"},
        {"retrieve": {"name": "../x", "digest": "0" * 16}},
        {"retrieve": {"name": "x", "digest": "0" * 15}},
        {"retrieve": {"name": "x"}},
        {"other": {"name": "x", "digest": "0" * 16}},
    ],
)
async def test_a_snapshot_with_a_made_up_attachment_is_refused(engine: Engine, plain: Any) -> None:
    from adapters.state import pack_states, unpack_states

    await ask(engine, composed(8))
    await engine.create_snapshot("s", "good")
    states, header = unpack_states(await engine.export_snapshot("s", "good"))
    data = pack_states(states, header={**header, "calibrations": plain})
    with pytest.raises(BadRequest) as refused:
        await engine.import_snapshot("s", "bad", data)
    assert refused.value.code == "bad_snapshot"


async def test_a_snapshot_from_before_calibrations_is_restored(engine: Engine) -> None:
    from adapters.state import pack_states, unpack_states

    await ask(engine, composed(8))
    await engine.create_snapshot("s", "new")
    states, header = unpack_states(await engine.export_snapshot("s", "new"))
    del header["calibrations"]
    await engine.import_snapshot("s", "old", pack_states(states, header=header))
    await engine.configure_stream("s", calibration="first")
    assert (await engine.restore_snapshot("s", "old"))["calibrations"] == {}


async def test_attaching_while_a_batch_is_learned_from_holds(engine: Engine) -> None:
    """What the batch comes to belongs to a state with the old completion, and is dropped."""
    await engine.put_calibration("second", encoder_file(1))
    asked = [asyncio.ensure_future(ask(engine, composed(8, 10 * n), adapt="async")) for n in range(6)]
    await asked[0]
    await engine.configure_stream("s", calibration="second")
    await asyncio.gather(*asked)
    for _ in range(500):
        card = await engine.describe_stream("s")
        idle = engine.describe_models()["worker"]["adapting"] == "none"
        if card["tracks"][0]["gathered"] == 0 and idle:
            break
        await asyncio.sleep(0.01)
    assert is_same(completion_of(engine), encoder_completion(1))
