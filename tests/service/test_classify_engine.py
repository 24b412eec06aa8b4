"""Samples through queue, worker and the classifier's pipeline, with a toy classifier and a small real one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.base import BadSettings, UnknownMethod
from adapters.calmrl import CalMRLClassifier
from adapters.classification import CalibrationMissing
from adapters.registry import CLASSIFY_METHODS
from encoders.audiovisual import AVInputs, AVOutput
from encoders.base import EncoderError
from encoders.cav_mae import CavMae, save_cav_mae
from service.engine import Engine, running_engine
from service.errors import (
    BadRequest,
    Conflict,
    NotFound,
    ServiceError,
    UnsupportedModality,
    UnusableSample,
)
from service.messages import (
    CLASSES,
    Adaptation,
    ClassifyAnswer,
    ClassifyJob,
    ClassifyRequest,
    Mode,
    Query,
    RetrieveRequest,
    Sample,
    SampleAnswer,
    TrackKey,
)
from service.settings import Settings
from service.stream_files import pack_stream
from tests.adapters.classifier import CONFIG, small_weights
from tests.adapters.classifier import classifier as small_classifier
from tests.service.conftest import fill
from tests.service.test_engine import settled_version
from tests.toy import LABELS, ToyClassifier, ToyEncoder, picture, sound

pytestmark = pytest.mark.anyio

TENT = {"classify_method": "tent", "classify_method_settings": {"learning_rate": 0.05}}
TRACK = f"{CLASSES}/audio+video->label"


def both(count: int, start: int = 0) -> tuple[Sample, ...]:
    return tuple(Sample(fbank=sound(start + n), pixels=picture(start + n)) for n in range(count))


def small(count: int, start: int = 0) -> tuple[Sample, ...]:
    """For the small real classifier: sounds of 64 frames and 32 bins, frames of 32 x 32."""
    made = []
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        fbank = random.normal(-5, 4, (64, 32)).astype(np.float32)
        made.append(Sample(fbank=fbank, pixels=random.integers(0, 256, (3, 32, 32), dtype=np.uint8)))
    return tuple(made)


@pytest.fixture
async def engine(settings: Callable[..., Settings]) -> AsyncIterator[Engine]:
    async with running_engine(settings(**TENT), encoder=ToyEncoder(), classifier=ToyClassifier()) as running:
        yield running


async def classify(engine: Engine, samples: tuple[Sample, ...], **more: Any) -> ClassifyAnswer:
    return await engine.classify(ClassifyRequest(samples=samples, **more))


def told(answer: ClassifyAnswer) -> Adaptation:
    (part,) = answer.parts
    return part.adaptation


def probabilities(answer: SampleAnswer) -> torch.Tensor:
    """In the label list's order; the sample was asked for all labels."""
    by_index = {score.index: score.probability for score in answer.labels}
    return torch.tensor([by_index[index] for index in range(len(by_index))], dtype=torch.float64)


def expected(samples: tuple[Sample, ...], values: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    model = ToyClassifier()
    sounds = [sample.fbank for sample in samples if sample.fbank is not None]
    frames = [sample.pixels for sample in samples if sample.pixels is not None]
    return model.forward(model.prepare(sounds or None, frames or None), values).logits.double().softmax(-1)


def parameters(engine: Engine, stream: str = "default") -> dict[str, torch.Tensor]:
    return engine._backend.streams.find(stream).tracks[TRACK].state.parameters


async def track_of(engine: Engine, stream: str, version: int) -> dict[str, Any]:
    described = await settled_version(engine, stream, version)
    return next(track for track in described["tracks"] if track["direction"] == "audio+video->label")


# -- answers -----------------------------------------------------------------------------------------


async def test_the_source_model_gives_every_label_its_probability(engine: Engine) -> None:
    samples = both(3)
    answer = await classify(engine, samples, adapt="off", top=5)
    wanted = expected(samples)
    for sample, row in zip(answer.samples, wanted, strict=True):
        torch.testing.assert_close(probabilities(sample), row)
        assert [score.probability for score in sample.labels] == sorted(row.tolist(), reverse=True)
        assert [LABELS[score.index] for score in sample.labels] == [score.label for score in sample.labels]
        assert math.isclose(sample.entropy_nats, -(row * row.log()).sum().item())
        assert sample.missing == ()
    assert (told(answer).status, told(answer).method) == ("off", "source")
    assert (answer.model, answer.stream) == ("toy-classifier", "default")
    assert await engine.list_streams() == []


async def test_only_the_best_labels_are_told_and_entropy_is_of_all(engine: Engine) -> None:
    every, two = [await classify(engine, both(2), adapt="off", top=top) for top in (99, 2)]
    assert [len(sample.labels) for sample in two.samples] == [2, 2]
    for full, cut in zip(every.samples, two.samples, strict=True):
        assert len(full.labels) == 5
        assert full.labels[:2] == cut.labels
        assert full.entropy_nats == cut.entropy_nats


async def test_requests_of_one_batch_keep_their_own_top(engine: Engine) -> None:
    one, other = await asyncio.gather(
        classify(engine, both(2), adapt="off", top=1), classify(engine, both(2, 5), adapt="off", top=3)
    )
    assert [len(sample.labels) for sample in (*one.samples, *other.samples)] == [1, 1, 3, 3]
    torch.testing.assert_close(other.samples[0].labels[0].probability, expected(both(2, 5))[0].max().item())


# -- adapting ----------------------------------------------------------------------------------------


async def test_sync_adapts_and_answers_before_the_update(engine: Engine) -> None:
    first = await classify(engine, both(16), adapt="sync", top=5)
    second = await classify(engine, both(16, 16), adapt="sync", top=5)
    assert [told(answer).status for answer in (first, second)] == ["applying", "applying"]
    assert [told(answer).state_version for answer in (first, second)] == [1, 2]
    torch.testing.assert_close(probabilities(first.samples[3]), expected(both(16))[3])
    track = await track_of(engine, "default", 2)
    assert (track["gallery"], track["applied"], track["batches"]) == (CLASSES, 2, 2)
    assert set(track["drift"]) >= {"entropy_nats", "label_entropy_nats"}
    assert not torch.equal(parameters(engine)["norm.weight"], torch.ones(56))
    third = await classify(engine, both(16), adapt="sync", top=5)
    assert not torch.allclose(probabilities(third.samples[3]), expected(both(16))[3])


async def test_a_long_request_is_several_batches(engine: Engine) -> None:
    answer = await classify(engine, both(40), adapt="sync", top=1)
    assert len(answer.samples) == 40
    assert (told(answer).batch_size, told(answer).state_version) == (8, 3)
    assert (await track_of(engine, "default", 3))["applied"] == 3
    source = expected(both(40))
    assert answer.samples[0].labels[0].index == int(source[0].argmax())


async def test_the_answer_can_wait_for_the_last_update(settings: Callable[..., Settings]) -> None:
    changed = settings(**TENT, answer_before_last_update=False)
    async with running_engine(changed, encoder=ToyEncoder(), classifier=ToyClassifier()) as engine:
        answer = await classify(engine, both(16), adapt="sync")
        assert told(answer).status == "applied"
        assert (await engine.describe_stream("default"))["version"] == 1


async def test_async_answers_at_once_and_adapts_in_the_background(engine: Engine) -> None:
    answer = await classify(engine, both(8), adapt="async", top=5)
    assert (told(answer).status, told(answer).state_version) == ("queued", 0)
    torch.testing.assert_close(probabilities(answer.samples[0]), expected(both(8))[0])
    await classify(engine, both(8, 8), adapt="async")
    track = await track_of(engine, "default", 1)
    assert (track["applied"], track["gathered"]) == (1, 0)


async def test_auto_adapts_large_requests_first(engine: Engine) -> None:
    assert told(await classify(engine, both(16))).mode == "sync"
    assert told(await classify(engine, both(15))).mode == "async"


async def test_the_source_method_never_gathers(engine: Engine) -> None:
    await engine.configure_stream("s", "source", None, task="classify")
    for mode, status in (("async", "skipped"), ("sync", "skipped")):
        answer = await classify(engine, both(16), stream="s", adapt=mode)
        assert (told(answer).method, told(answer).status) == ("source", status)
    (track,) = (await engine.describe_stream("s"))["tracks"]
    assert (track["version"], track["gathered"]) == (0, 0)


async def test_under_load_answers_come_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._backend.queue, "pressure", lambda: 1.0)
    answer = await classify(engine, both(16), adapt="sync")
    assert (told(answer).status, told(answer).reason) == ("skipped", "overloaded: answers come first")


async def test_a_batch_that_was_learned_from_is_not_learned_from_again(engine: Engine) -> None:
    key = TrackKey("s", CLASSES, "audio+video", "label")
    job = ClassifyJob(key, "sync", both(16), 1)
    for _ in range(2):
        (answer,) = await engine._submitter.ask([job], timeout_s=30)
        await settled_version(engine, "s", 1)
        job = replace(job, again=True)
    assert (answer.adaptation.status, answer.adaptation.reason) == ("skipped", "learned from before")
    assert (await engine.describe_stream("s"))["version"] == 1


async def test_a_loss_that_is_not_finite_is_undone_and_the_answer_still_comes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await classify(engine, both(16), adapt="sync")
    await settled_version(engine, "default", 1)
    kept = {name: value.clone() for name, value in parameters(engine).items()}
    monkeypatch.setattr("adapters.tent.softmax_entropy", lambda logits: logits.sum(-1) * float("nan"))
    answer = await classify(engine, both(16), adapt="sync", top=5)
    assert told(answer).status == "applying"
    track = None
    for _ in range(500):
        (track,) = (await engine.describe_stream("default"))["tracks"]
        if track["undone"]:
            break
        await asyncio.sleep(0.01)
    assert track is not None
    assert (track["undone"], track["version"]) == (1, 1)
    assert all(torch.equal(value, kept[name]) for name, value in parameters(engine).items())
    assert engine.metrics.value("attune_adaptations_total", method="tent", outcome="undone") == 1
    assert engine.metrics.value("attune_adaptations_total", method="tent", outcome="applied") == 1


async def test_the_direction_is_a_label_of_the_metrics(engine: Engine) -> None:
    await classify(engine, both(3), adapt="off")
    labels = {"mode": "off", "status": "off", "direction": "audio+video->label"}
    assert engine.metrics.value("attune_queries_answered_total", **labels) == 3


# -- samples that lack something ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("lacks", ["audio", "video"])
async def test_a_sample_that_lacks_a_modality_is_answered_and_not_learned_from(
    engine: Engine, lacks: str, mode: Mode
) -> None:
    await classify(engine, both(16), adapt="sync")
    await settled_version(engine, "default", 1)
    field = {"audio": "fbank", "video": "pixels"}[lacks]
    samples = tuple(replace(sample, **{field: None}) for sample in both(16, 50))
    answer = await classify(engine, samples, adapt=mode, top=5)
    assert (told(answer).status, told(answer).reason) == ("skipped", f"the samples lack {lacks}")
    assert (told(answer).method, told(answer).state_version) == ("tent", 1)
    assert {sample.missing for sample in answer.samples} == {(lacks,)}
    wanted = expected(samples, parameters(engine))
    torch.testing.assert_close(probabilities(answer.samples[7]), wanted[7])
    (track,) = (await engine.describe_stream("default"))["tracks"]
    assert (track["version"], track["gathered"], track["batches"]) == (1, 0, 1)


async def test_a_request_that_mixes_kinds_is_answered_in_its_order(engine: Engine) -> None:
    whole = both(4)
    samples = (whole[0], Sample(fbank=whole[1].fbank), whole[2], Sample(pixels=whole[3].pixels))
    answer = await classify(engine, samples, adapt="off", top=5)
    assert [sample.missing for sample in answer.samples] == [(), ("video",), (), ("audio",)]
    assert [part.query_indices for part in answer.parts] == [(0, 2), (1,), (3,)]
    for sample, one in zip(answer.samples, samples, strict=True):
        torch.testing.assert_close(probabilities(sample), expected((one,))[0])


async def test_kinds_are_never_encoded_together(engine: Engine) -> None:
    whole = both(2)
    answers = await asyncio.gather(
        *(
            classify(engine, (sample,), adapt="off")
            for sample in (whole[0], Sample(fbank=whole[0].fbank), whole[1], Sample(fbank=whole[1].fbank))
        )
    )
    assert [answer.samples[0].missing for answer in answers] == [(), ("video",), (), ("video",)]


# -- streams -----------------------------------------------------------------------------------------


async def test_a_stream_has_a_method_for_each_task(engine: Engine) -> None:
    described = await engine.configure_stream("s", "sar", {"reset_constant": 0.1}, task="classify")
    assert described["classify"] == {"method": "sar", "settings": {"reset_constant": 0.1}}
    assert (described["method"], described["settings"]) == ("tcr", {"learning_rate": 0.01})
    described = await engine.configure_stream("s", "tcr", {"steps": 1})
    assert (described["settings"], described["classify"]["method"]) == ({"steps": 1}, "sar")


async def test_without_a_task_the_method_says_which(engine: Engine) -> None:
    with pytest.raises(BadSettings, match="t3a"):  # of the classifier, which here has not what it needs
        await engine.configure_stream("s", "t3a", None)
    assert (await engine.configure_stream("s", "tcr_untrain", None))["method"] == "tcr_untrain"
    with pytest.raises(BadSettings, match="task"):
        await engine.configure_stream("s", "sar", None)
    with pytest.raises(UnknownMethod, match="did you mean tent"):
        await engine.configure_stream("s", "tentt", None)
    with pytest.raises(UnknownMethod):
        await engine.configure_stream("s", "tcr", None, task="classify")


async def test_a_method_that_lacks_its_calibration_changes_nothing(engine: Engine) -> None:
    with pytest.raises(CalibrationMissing, match="attune calibrate"):
        await engine.configure_stream("s", "brimpr", None)
    assert (await engine.configure_stream("s"))["classify"]["method"] == "tent"


async def test_another_method_drops_the_tracks_of_its_task_only(
    settings: Callable[..., Settings],
) -> None:
    async with running_engine(settings(**TENT), encoder=ToyEncoder(), classifier=ToyClassifier()) as engine:
        await fill(engine)
        await classify(engine, both(16), adapt="sync", stream="s")
        queries = tuple(Query(pixels=picture(n)) for n in range(16))
        await engine.retrieve(RetrieveRequest(queries=queries, stream="s", adapt="sync"))
        await settled_version(engine, "s", 2)
        changed = await engine.configure_stream("s", "sar", None, task="classify")
        assert changed["reset"] is True
        assert [track["direction"] for track in changed["tracks"]] == ["image->text"]
        await classify(engine, both(16), adapt="sync", stream="s")
        changed = await engine.configure_stream("s", "tcr_untrain", None)
        assert [track["direction"] for track in changed["tracks"]] == ["audio+video->label"]


async def test_reset_gives_the_source_answers_again(engine: Engine) -> None:
    await classify(engine, both(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 1)
    assert (await engine.reset_stream("s"))["tracks"] == []
    answer = await classify(engine, both(1), adapt="async", stream="s", top=5)
    torch.testing.assert_close(probabilities(answer.samples[0]), expected(both(1))[0])


async def test_the_guard_says_that_it_does_not_watch_the_classifier(
    settings: Callable[..., Settings],
) -> None:
    watched = settings(**TENT, guard={"policy": "rollback"})
    async with running_engine(watched, encoder=ToyEncoder(), classifier=ToyClassifier()) as engine:
        for number in range(6):
            await classify(engine, both(16, 16 * number), adapt="sync")
        guard = (await track_of(engine, "default", 6))["guard"]
        assert (guard["policy"], guard["batches"]) == ("off", 0)
        assert "does not watch" in guard["why"]


async def test_a_server_without_a_classifier_says_so(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:
        assert engine.classifier is None
        assert engine.describe_models()["classifier"] is None
        with pytest.raises(NotFound) as refusal:
            await classify(engine, both(1))
        assert refusal.value.code == "no_classifier"
        with pytest.raises(ServiceError, match="no classifier"):
            await engine.configure_stream("s", "tent", None, task="classify")
        await engine.configure_stream("s", "source", None)  # here only one task has it
        assert (await engine.describe_stream("s"))["classify"] is None


async def test_a_default_method_without_its_calibration_stops_the_start(
    settings: Callable[..., Settings],
) -> None:
    with pytest.raises(CalibrationMissing, match="brimpr needs statistics"):
        await Engine.start(settings(), encoder=ToyEncoder(), classifier=ToyClassifier())


async def test_the_card_says_what_the_classifier_takes(engine: Engine) -> None:
    card = engine.classifier
    assert card is not None
    assert (card.name, card.labels, card.fingerprint) == ("toy-classifier", LABELS, "toy-classifier-0")
    assert (card.audio_spec, card.image_spec) == (ToyClassifier().audio_spec, ToyClassifier().image_spec)
    shown = engine.describe_models()["classifier"]
    assert set(shown["methods"]) == set(CLASSIFY_METHODS)
    presets = engine.describe_models()["methods"]["tcr"]["presets"]
    assert presets["paper"] == {}
    assert "learn_from_shift" in presets["attune"]
    assert shown["default_method"] == "tent"


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "code"),
    [
        (Sample(), "bad_sample"),
        (Sample(text="a dog"), "unsupported_modality"),
        (Sample(fbank=sound(0, frames=13)), "bad_fbank"),
        (Sample(fbank=sound(0, frames=0)), "bad_fbank"),
        (Sample(fbank=sound(0)[:, :5]), "bad_fbank"),
        (Sample(fbank=sound(0).ravel()), "bad_fbank"),
        (Sample(fbank=sound(0) * np.float32("nan")), "bad_fbank"),
        (Sample(fbank=sound(0).astype(np.float64)), "bad_fbank"),
        (Sample(fbank=sound(0), pixels=picture(0)[:, :4]), "bad_sample"),
        (Sample(pixels=picture(0).astype(np.float32)), "bad_sample"),
    ],
)
async def test_a_bad_sample_fails_its_own_request_and_changes_nothing(
    engine: Engine, sample: Sample, code: str
) -> None:
    with pytest.raises(ServiceError) as refusal:
        await classify(engine, (*both(1), sample), stream="s")
    assert refusal.value.code == code
    assert refusal.value.status in (400, 422)
    assert await engine.list_streams() == []


async def test_a_sample_of_which_the_model_makes_no_numbers_fails_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ToyClassifier.forward

    def broken(self: ToyClassifier, inputs: AVInputs, *more: Any) -> AVOutput:
        output = forward(self, inputs, *more)
        assert inputs.audio is not None
        bad = inputs.audio.mean((1, 2)) > 100
        logits = torch.where(bad[:, None], torch.full_like(output.logits, math.inf), output.logits)
        return replace(output, logits=logits)

    monkeypatch.setattr(ToyClassifier, "forward", broken)
    loud = Sample(fbank=sound(0) + 500, pixels=picture(0))
    good, bad = await asyncio.gather(
        classify(engine, both(2), adapt="off"),
        classify(engine, (loud,), adapt="off"),
        return_exceptions=True,
    )
    assert isinstance(good, ClassifyAnswer)
    assert isinstance(bad, UnusableSample)
    adapted = await asyncio.gather(
        classify(engine, both(16), adapt="sync"),
        classify(engine, (loud, *both(15)), adapt="sync", stream="t"),
        return_exceptions=True,
    )
    assert isinstance(adapted[1], UnusableSample)
    assert (await engine.describe_stream("t"))["tracks"][0]["undone"] == 1


async def test_a_request_without_samples_is_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest):
        await classify(engine, ())


# -- the small real classifier -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> CavMae:
    return small_classifier(torch.float32)


@pytest.fixture
async def real_engine(settings: Callable[..., Settings], real: CavMae) -> AsyncIterator[Engine]:
    chosen = settings(classify_method_settings={"learning_rate": 0.01}, batch_size=8, gather_min_items=2)
    async with running_engine(chosen, encoder=ToyEncoder(), classifier=real) as running:
        yield running


async def test_brimpr_learns_from_a_batch_and_skips_a_batch_of_one(real_engine: Engine) -> None:
    answer = await classify(real_engine, small(8), adapt="sync")
    assert (told(answer).method, told(answer).status) == ("brimpr", "applying")
    await settled_version(real_engine, "default", 1)
    alone = await classify(real_engine, small(1, 50), adapt="sync")
    assert (told(alone).status, told(alone).state_version) == ("skipped", 1)
    assert "2 samples or more" in told(alone).reason
    track = await track_of(real_engine, "default", 1)
    assert (track["applied"], track["skipped"]) == (1, 1)
    assert real_engine.metrics.value("attune_adaptations_total", method="brimpr", outcome="skipped") == 1


def without(samples: tuple[Sample, ...], field: str) -> tuple[Sample, ...]:
    changes: dict[str, Any] = {field: None}
    return tuple(replace(sample, **changes) for sample in samples)


@pytest.fixture
async def calmrl_engine(settings: Callable[..., Settings], real: CavMae) -> AsyncIterator[Engine]:
    chosen = settings(classify_method="calmrl", batch_size=8, gather_min_items=2, gather_max_age_s=1000)
    async with running_engine(chosen, encoder=ToyEncoder(), classifier=real) as running:
        yield running


@pytest.mark.parametrize("lacks", ["fbank", "pixels"])
async def test_calmrl_learns_from_samples_that_lack_a_modality(calmrl_engine: Engine, lacks: str) -> None:
    answer = await classify(calmrl_engine, without(small(8), lacks), adapt="sync")
    assert (told(answer).method, told(answer).status) == ("calmrl", "applying")
    track = await track_of(calmrl_engine, "default", 1)
    assert (track["applied"], track["skipped"], track["undone"]) == (1, 0, 0)
    assert math.isfinite(track["losses"]["align"])


async def test_a_stream_survives_whatever_its_samples_lack(calmrl_engine: Engine) -> None:
    """The picture disappears for good, and the sound appears late."""
    for number in range(12):
        samples = small(8, 8 * number)
        shown = without(samples, "fbank" if number < 4 else "pixels") if number not in (4, 5) else samples
        answer = await classify(calmrl_engine, shown, adapt="sync", stream="s")
        assert told(answer).status == "applying"
        await settled_version(calmrl_engine, "s", number + 1)
    track = await track_of(calmrl_engine, "s", 12)
    assert (track["applied"], track["undone"]) == (12, 0)
    state = calmrl_engine._backend.streams.find("s").tracks[TRACK].state
    assert all(torch.isfinite(value).all() for value in [*state.parameters.values(), *state.tensors.values()])
    assert state.numbers["latent.batches"] == 2  # the complete ones alone


async def test_samples_of_several_kinds_gather_and_adapt_together(calmrl_engine: Engine) -> None:
    """Every other sample lacks its picture: a full gathering is two batches of four."""
    for number in range(4):
        both_there = small(1, 2 * number)
        answers = [
            await classify(calmrl_engine, both_there, adapt="async", stream="s"),
            await classify(calmrl_engine, without(both_there, "pixels"), adapt="async", stream="s"),
        ]
        assert [told(answer).status for answer in answers] == ["queued", "queued"]
    track = await track_of(calmrl_engine, "s", 2)
    assert (track["applied"], track["batches"], track["gathered"], track["shed"]) == (2, 2, 0, 0)


async def test_a_kind_that_fails_takes_nothing_from_what_was_learned_of_another(
    calmrl_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = CalMRLClassifier.adapt

    def fails(self: CalMRLClassifier, model: Any, state: Any, inputs: Any) -> Any:
        if not inputs.complete:
            raise RuntimeError("out of memory")
        return learn(self, model, state, inputs)

    monkeypatch.setattr(CalMRLClassifier, "adapt", fails)
    await classify(calmrl_engine, small(4), adapt="async", stream="s")
    await classify(calmrl_engine, without(small(4), "pixels"), adapt="async", stream="s")
    track = await track_of(calmrl_engine, "s", 1)
    assert (track["applied"], track["gathered"]) == (1, 0)


async def test_a_silent_camera_or_a_covered_one_is_answered_by_the_models_own_path(
    real_engine: Engine, real: CavMae
) -> None:
    await real_engine.configure_stream("s", "source", None, task="classify")
    samples = tuple(Sample(fbank=sample.fbank) for sample in small(2))
    answer = await classify(real_engine, samples, stream="s", adapt="sync", top=6)
    wanted = real.forward(real.prepare([sample.fbank for sample in samples], None)).logits
    torch.testing.assert_close(
        torch.stack([probabilities(sample) for sample in answer.samples]), wanted.double().softmax(-1)
    )


@pytest.mark.parametrize("method", [name for name in CLASSIFY_METHODS if name != "source"])
async def test_a_restored_snapshot_continues_bit_exactly(real_engine: Engine, method: str) -> None:
    await real_engine.configure_stream("s", method, None, task="classify")
    for number in range(3):
        await classify(real_engine, small(8, 8 * number), adapt="sync", stream="s")
    seen = await _batches(real_engine, "s", 3)
    await real_engine.create_snapshot("s", "three")
    first = await classify(real_engine, small(8, 90), adapt="sync", stream="s", top=6)
    await _batches(real_engine, "s", 4)
    learned = pack_stream(real_engine._backend.streams.find("s"), kind="snapshot")
    assert (await real_engine.restore_snapshot("s", "three"))["batches"] == seen
    second = await classify(real_engine, small(8, 90), adapt="sync", stream="s", top=6)
    await _batches(real_engine, "s", 4)
    assert first.samples == second.samples
    tensors = _states(real_engine, learned)
    again = _states(real_engine, pack_stream(real_engine._backend.streams.find("s"), kind="snapshot"))
    assert tensors.keys() == again.keys()
    # By their bytes: figures that are not known are NaN, which equals nothing.
    differing = [
        name for name, value in tensors.items() if bytes(value.numpy()) != bytes(again[name].numpy())
    ]
    assert not differing


async def _batches(engine: Engine, stream: str, count: int) -> int:
    for _ in range(500):
        described = await engine.describe_stream(stream)
        if described["batches"] >= count:
            return int(described["batches"])
        await asyncio.sleep(0.01)
    raise AssertionError(described)


def _states(engine: Engine, data: bytes) -> dict[str, torch.Tensor]:
    """Every tensor of a packed stream, but for the times at which its batches were learned from."""
    from safetensors.torch import load

    return {name: value for name, value in load(data).items() if not name.endswith("history.at")}


async def test_a_snapshot_of_a_classifier_is_refused_where_there_is_none(
    engine: Engine, settings: Callable[..., Settings]
) -> None:
    await classify(engine, both(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 1)
    await engine.create_snapshot("s", "one")
    data = await engine.export_snapshot("s", "one")
    others: list[dict[str, Any]] = [{}, {"classifier": ToyClassifier(seed=1)}]
    for number, parts in enumerate(others):
        changed = settings(**TENT, data_folder=settings().data_folder / f"other{number}")
        async with running_engine(changed, encoder=ToyEncoder(), **parts) as second:
            with pytest.raises(Conflict) as refusal:
                await second.import_snapshot("s", "one", data)
            assert refusal.value.code == "fingerprint_mismatch"
            assert await second.list_streams() == []


async def test_states_survive_a_restart(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(**TENT), encoder=ToyEncoder(), classifier=ToyClassifier()) as engine:
        await engine.configure_stream("s", "sar", {"reset_constant": 0.1}, task="classify")
        await classify(engine, both(16), adapt="sync", stream="s")
        await settled_version(engine, "s", 0)
        before = {name: value.clone() for name, value in parameters(engine, "s").items()}
    async with running_engine(settings(**TENT), encoder=ToyEncoder(), classifier=ToyClassifier()) as engine:
        described = await engine.describe_stream("s")
        assert described["classify"] == {"method": "sar", "settings": {"reset_constant": 0.1}}
        assert all(torch.equal(value, before[name]) for name, value in parameters(engine, "s").items())


async def test_a_stream_keeps_what_it_learned_of_galleries_when_the_classifier_changes(
    settings: Callable[..., Settings],
) -> None:
    async with running_engine(settings(**TENT), encoder=ToyEncoder(), classifier=ToyClassifier()) as engine:
        await fill(engine)
        await engine.configure_stream("s", pinned=True)
        await classify(engine, both(16), adapt="sync", stream="s")
        queries = tuple(Query(pixels=picture(n)) for n in range(16))
        await engine.retrieve(RetrieveRequest(queries=queries, stream="s", adapt="sync"))
        await settled_version(engine, "s", 2)
    other = ToyClassifier(seed=1)
    async with running_engine(settings(**TENT), encoder=ToyEncoder(), classifier=other) as engine:
        described = await engine.describe_stream("s")
        assert [track["direction"] for track in described["tracks"]] == ["image->text"]
        assert (described["version"], described["pinned"]) == (1, True)
        assert (settings().data_folder / "streams" / "s.refused").is_file()
        await classify(engine, both(16), adapt="sync", stream="s")
        await settled_version(engine, "s", 2)
    async with running_engine(settings(), encoder=ToyEncoder()) as engine:  # and none at all
        described = await engine.describe_stream("s")
        assert (described["version"], described["classify"]["method"]) == (1, "tent")
        await engine.configure_stream("s", pinned=False)
    async with running_engine(settings(**TENT), encoder=ToyEncoder(), classifier=other) as engine:
        assert told(await classify(engine, both(2), stream="s")).method == "tent"


async def test_a_classifier_is_read_from_its_folder(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    save_cav_mae(CONFIG, small_weights(), tmp_path / "model")
    chosen = settings(**TENT, classifier=str(tmp_path / "model"))
    async with running_engine(chosen, encoder=ToyEncoder()) as engine:
        assert engine.classifier is not None
        assert engine.classifier.labels == CONFIG.labels
        answer = await classify(engine, small(2), adapt="off")
        assert len(answer.samples[0].labels) == 5
    with pytest.raises(EncoderError):
        await Engine.start(settings(classifier=str(tmp_path / "nowhere")), encoder=ToyEncoder())


async def test_unsupported_is_a_client_error() -> None:
    assert UnsupportedModality("x").status == 422
