"""Calibrations where API processes, workers and Redis share the work: some of the tests of one process again,
and those of several.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.redis_server import RedisServer
from service.engine import Engine, running_engine
from service.errors import ServiceError
from service.messages import ControlJob
from service.settings import Settings
from tests.service.calibrated import encoder_completion, encoder_file
from tests.service.conftest import TOY, fill
from tests.service.redis.test_protocol import eventually
from tests.service.redis.test_redelivery import _leases
from tests.service.test_calibrations_engine import (  # noqa: F401
    ask,
    completion_of,
    composed,
    engine,
    fill_calibrated,
    gate,
    is_same,
    pytestmark,
    started,
    test_a_calibration_is_made_from_a_gallery_and_makes_another_searchable,
    test_a_classifiers_calibration_goes_to_the_classifiers_track,
    test_a_deleted_calibration_stays_in_states_and_is_missed_in_new_ones,
    test_a_fit_that_was_begun_is_finished_though_its_client_has_left,
    test_a_stream_has_its_own_calibration_in_old_and_new_tracks,
    test_an_attached_calibration_completes_the_answers,
    test_attaching_while_a_batch_is_learned_from_holds,
    test_attachments_outlive_a_restart,
    test_queries_are_answered_while_a_calibration_is_fitted,
    test_reset_and_another_method_keep_the_attachment,
    texts,
)


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer, namespace: str) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        return Settings(
            **{
                **TOY,
                "data_folder": tmp_path / "data",
                "redis_url": server.url,
                "redis_namespace": namespace,
                "lease_s": 1.0,
                "redis_timeout_s": 1.0,
                **changes,
            }
        )

    return make


@pytest.fixture
async def processes(settings: Callable[..., Settings]) -> AsyncIterator[tuple[Engine, Engine, Engine]]:
    """An API process without a model and two workers."""
    async with (
        started(settings, role="worker") as one,
        started(settings, role="worker") as other,
        running_engine(settings(role="api")) as api,
    ):
        eventually(lambda: min(len(_leases(worker).held()) for worker in (one, other)) == 32)
        eventually(lambda: api.ready)
        yield api, one, other


async def test_an_api_process_makes_uses_and_deletes_calibrations(
    processes: tuple[Engine, Engine, Engine],
) -> None:
    """Whichever worker has a job sees what the others have made."""
    api, *workers = processes
    assert api._backend is None
    await fill(api, items=40)
    card = await api.fit_calibration("made", "things", latent=3, samples=30)
    assert (card["name"], card["samples"], card["latent"]) == ("made", 30, 3)
    sent = await api.put_calibration("sent", encoder_file(1))
    assert sent["bytes"] == len(encoder_file(1))
    for _ in range(6):
        assert [one["name"] for one in await api.list_calibrations()] == ["made", "sent"]
        assert await api.export_calibration("sent") == encoder_file(1)
    await fill_calibrated(api, "pairs", "made")
    for stream in ("a", "b", "c", "d"):
        answer = await ask(api, texts(4), stream, adapt="async")
        assert answer.parts[0].adaptation.direction == "image+text->anchor"
        assert (await api.configure_stream(stream, calibration="sent"))["calibrations"]
    with pytest.raises(ServiceError) as used:
        await api.delete_calibration("made")
    assert (used.value.status, used.value.code) == (409, "calibration_in_use")
    assert used.value.details == {"galleries": ["pairs"]}
    await api.delete_calibration("sent")
    for _ in range(6):
        with pytest.raises(ServiceError) as gone:
            await api.describe_calibration("sent")
        assert gone.value.code == "unknown_calibration"
    backends = [worker._backend for worker in workers]
    assert all(backend is not None and backend.calibrations.names() == ["made"] for backend in backends)


async def test_what_a_job_made_before_it_was_delivered_again_is_no_conflict(
    engine: Engine,  # noqa: F811
) -> None:
    assert engine._backend is not None
    actions = engine._backend._actions()
    put = ControlJob("put_calibration", {"name": "mine", "data": encoder_file(1)})
    again = ControlJob("put_calibration", put.arguments, again=True, id=put.id)
    assert actions["put_calibration"](put) == actions["put_calibration"](again)
    with pytest.raises(ServiceError):
        actions["put_calibration"](put)
    for job, fails in (
        (ControlJob("delete_calibration", {"name": "mine"}), False),
        (ControlJob("delete_calibration", {"name": "mine"}, again=True), False),
        (ControlJob("delete_calibration", {"name": "mine"}), True),
    ):
        if fails:
            with pytest.raises(ServiceError):
                actions["delete_calibration"](job)
        else:
            actions["delete_calibration"](job)
    assert [card["name"] for card in await engine.list_calibrations()] == ["first"]


async def test_an_attachment_moves_with_the_stream_to_its_next_owner(engine: Engine) -> None:  # noqa: F811
    await engine.put_calibration("second", encoder_file(1))
    await engine.configure_stream("s", calibration="second")
    await ask(engine, composed(8))
    before = await engine.describe_stream("s")
    old = _leases(engine).token("s")
    _leases(engine).in_doubt()
    eventually(lambda: _leases(engine).token("s") not in (None, old))
    assert (await engine.describe_stream("s"))["calibrations"] == before["calibrations"]
    assert is_same(completion_of(engine), encoder_completion(1))
    await ask(engine, texts(4), adapt="async")
    assert is_same(completion_of(engine), encoder_completion(1))
