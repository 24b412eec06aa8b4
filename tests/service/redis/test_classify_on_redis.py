"""Classification with the queue and the states in a real Redis: what holds in one process holds here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from benchmarks.redis_server import RedisServer
from service.engine import Engine, running_engine
from service.errors import NotReady, QueueUnreachable
from service.redis.keys import Keys
from service.redis.queue import RedisQueue
from service.settings import Settings
from tests.adapters.classifier import classifier as small_classifier
from tests.service.conftest import TOY
from tests.service.redis.test_protocol import eventually
from tests.service.redis.test_redelivery import _leases
from tests.service.test_classify_engine import (  # noqa: F401
    TENT,
    TRACK,
    both,
    classify,
    engine,
    pytestmark,
    small,
    test_a_batch_that_was_learned_from_is_not_learned_from_again,
    test_a_default_method_without_its_calibration_stops_the_start,
    test_a_long_request_is_several_batches,
    test_a_request_that_mixes_kinds_is_answered_in_its_order,
    test_a_sample_that_lacks_a_modality_is_answered_and_not_learned_from,
    test_a_server_without_a_classifier_says_so,
    test_another_method_drops_the_tracks_of_its_task_only,
    test_async_answers_at_once_and_adapts_in_the_background,
    test_reset_gives_the_source_answers_again,
    test_states_survive_a_restart,
    test_sync_adapts_and_answers_before_the_update,
    test_the_card_says_what_the_classifier_takes,
    test_the_source_model_gives_every_label_its_probability,
    told,
)
from tests.service.test_engine import settled_version
from tests.service.test_zero_shot_engine import classify as classify_by_labels
from tests.service.test_zero_shot_engine import pictures
from tests.toy import ToyClassifier, ToyEncoder

BRIMPR: dict[str, Any] = {"classify_method_settings": {"learning_rate": 0.01}, "batch_size": 8}


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer, namespace: str) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        on_redis = {"redis_url": server.url, "redis_namespace": namespace, "lease_s": 1.0}
        return Settings(
            **{**TOY, "data_folder": tmp_path / "data", **on_redis, "redis_timeout_s": 1.0, **changes}
        )

    return make


@pytest.fixture
async def patient(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    """An engine whose gatherings wait for full batches."""
    chosen = settings(**TENT, gather_max_age_s=60.0)
    async with running_engine(chosen, encoder=ToyEncoder(), classifier=ToyClassifier()) as running:
        yield running


async def lose_and_regain(running: Engine, stream: str) -> None:
    """Another owner by all means: a new token, and everything is read from Redis again."""
    old = _leases(running).token(stream)
    _leases(running).in_doubt()
    eventually(lambda: _leases(running).token(stream) not in (None, old))


async def three_batches(running: Engine, *, moved: bool) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """What was answered, and the state after; `moved`: the stream changes hands between the batches."""
    answers = []
    for number in range(3):
        answers.append((await classify(running, small(8, 8 * number), adapt="sync", stream="s")).samples)
        await settled_version(running, "s", number + 1)
        if moved:
            await lose_and_regain(running, "s")
    await running.describe_stream("s")  # read anew
    state = running._backend.streams.find("s").tracks[TRACK].state
    moments = {f"moment/{name}": value for name, value in state.optimizer.exp_avg.items()}
    return answers, {**state.parameters, **state.tensors, **moments}


async def test_a_stream_changes_hands_bit_exactly(settings: Callable[..., Settings], tmp_path: Path) -> None:
    model = small_classifier(torch.float32)
    async with running_engine(settings(**BRIMPR), encoder=ToyEncoder(), classifier=model) as running:
        moved = await three_batches(running, moved=True)
    alone = Settings(**{**TOY, "data_folder": tmp_path / "alone", **BRIMPR})
    async with running_engine(alone, encoder=ToyEncoder(), classifier=model) as running:
        stayed = await three_batches(running, moved=False)
    assert moved[0] == stayed[0]
    assert moved[1].keys() == stayed[1].keys()
    assert all(torch.equal(value, stayed[1][name]) for name, value in moved[1].items())


async def test_gathered_samples_survive_their_owner_and_are_learned_once(
    patient: Engine, client: redis.Redis, keys: Keys
) -> None:
    for number in range(4):
        await classify(patient, both(4, 4 * number), stream="s", adapt="async")
        _leases(patient).in_doubt()
    described = await settled_version(patient, "s", 1)
    (track,) = described["tracks"]
    assert (track["applied"], track["gathered"]) == (1, 0)
    assert not list(client.scan_iter(f"{keys.prefix}gathering:*"))


async def test_gathered_samples_of_two_kinds_survive_their_owner_and_are_learned_once(
    settings: Callable[..., Settings], client: redis.Redis, keys: Keys
) -> None:
    """Eight fill a batch: four complete samples and four without a picture, one job each."""
    chosen = settings(classify_method="calmrl", batch_size=8, gather_min_items=2, gather_max_age_s=60.0)
    model = small_classifier(torch.float32)
    async with running_engine(chosen, encoder=ToyEncoder(), classifier=model) as running:
        for number in range(4):
            (sample,) = small(1, number)
            for one in (sample, replace(sample, pixels=None)):
                await classify(running, (one,), stream="s", adapt="async")
            _leases(running).in_doubt()
        (track,) = (await settled_version(running, "s", 2))["tracks"]
        assert (track["applied"], track["gathered"], track["shed"]) == (2, 0, 0)
        assert not list(client.scan_iter(f"{keys.prefix}gathering:*"))


async def test_gathered_samples_keep_their_labels_when_the_stream_changes_hands(patient: Engine) -> None:
    for number in range(4):
        await classify_by_labels(patient, pictures(4, 4 * number), stream="s", adapt="async")
        _leases(patient).in_doubt()
    (track,) = (await settled_version(patient, "s", 1))["tracks"]
    assert (track["gallery"].partition(":")[0], track["applied"], track["gathered"]) == ("labels", 1, 0)


async def test_a_batch_delivered_twice_is_learned_from_once(
    patient: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is lost between the early answer and the end of the batch: it is done again, from before."""
    answer_early = RedisQueue.answer_early
    broken: list[int] = []

    def break_once(self: RedisQueue, *results: Any) -> None:
        answer_early(self, *results)
        if not broken:
            broken.append(1)
            _leases(patient).in_doubt()

    monkeypatch.setattr(RedisQueue, "answer_early", break_once)
    first = await classify(patient, both(16), stream="s", adapt="sync")
    assert (told(first).status, told(first).state_version) == ("applying", 1)
    second = await classify(patient, both(16, 16), stream="s", adapt="sync")
    assert broken
    assert told(second).state_version == 2
    (track,) = (await settled_version(patient, "s", 2))["tracks"]
    assert (track["version"], track["applied"]) == (2, 2)


async def test_a_process_without_a_model_knows_the_classifier(
    settings: Callable[..., Settings], patient: Engine
) -> None:
    async with running_engine(settings(role="api")) as front:
        assert front.classifier == patient.classifier
        answer = await classify(front, both(2), adapt="off")
        assert (answer.model, len(answer.samples)) == ("toy-classifier", 2)


async def test_a_worker_with_another_classifier_does_not_join(
    settings: Callable[..., Settings], patient: Engine
) -> None:
    with pytest.raises(NotReady, match="classifier"):
        await Engine.start(settings(**TENT), encoder=ToyEncoder(), classifier=ToyClassifier(seed=1))


async def test_without_redis_the_source_classifier_answers(
    patient: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any, **__: Any) -> None:
        raise QueueUnreachable("gone")

    monkeypatch.setattr(patient._submitter, "ask", gone)
    answer = await classify(patient, both(16), adapt="sync")
    assert told(answer).status == "skipped"
    assert "Redis" in told(answer).reason
