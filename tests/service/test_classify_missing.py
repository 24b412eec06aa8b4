"""Samples that lack sound or picture: who answers them, and what is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from adapters.calibration import Calibration
from adapters.classification import CalibrationMissing
from adapters.completion import Completion, remember
from adapters.registry import CLASSIFY_METHODS
from adapters.state import AdaptationState
from adapters.two_stream_completion import CompletedTwoStream, fit_parts, parts_of
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae
from service import classification
from service.classification import MissingBy
from service.engine import Engine, running_engine
from service.messages import ClassifyAnswer, ClassifyRequest, Sample, SampleAnswer
from service.settings import Settings
from service.tasks import Classifier
from tests.adapters.classifier import CONFIG, classifier, run_to_end, small_weights
from tests.service.test_engine import settled_version
from tests.toy import ToyClassifier, ToyEncoder, picture, sound

pytestmark = pytest.mark.anyio

MODEL_BETTER = {"model": 0.9, "imputation": 0.8, "samples": 100}
IMPUTATION_BETTER = {"model": 0.8, "imputation": 0.9, "samples": 100}


def completion_of(model: Any, seed: int = 0) -> Completion:
    inputs = model.prepare([sound(seed + n) for n in range(40)], [picture(seed + n) for n in range(40)])
    return run_to_end(fit_parts(*parts_of(model, [inputs]), latent=4))


def toy(missing: Mapping[str, Any] | None = None) -> ToyClassifier:
    """Calibrated; `missing`: what was measured."""
    model = ToyClassifier()
    about = {} if missing is None else {"missing": missing}
    model.calibration = Calibration(model.fingerprint, completion=completion_of(model), about=about)
    return model


def both(count: int, start: int = 0) -> tuple[Sample, ...]:
    return tuple(Sample(fbank=sound(start + n), pixels=picture(start + n)) for n in range(count))


def without(samples: tuple[Sample, ...], hidden: str) -> tuple[Sample, ...]:
    changes: dict[str, Any] = {"fbank" if hidden == "audio" else "pixels": None}
    return tuple(replace(sample, **changes) for sample in samples)


def inputs_of(model: Any, samples: tuple[Sample, ...]) -> AVInputs:
    fbanks = [sample.fbank for sample in samples if sample.fbank is not None]
    frames = [sample.pixels for sample in samples if sample.pixels is not None]
    inputs: AVInputs = model.prepare(fbanks or None, frames or None)
    return inputs


async def classify(engine: Engine, samples: tuple[Sample, ...], **more: Any) -> ClassifyAnswer:
    return await engine.classify(ClassifyRequest(samples=samples, **more))


def probabilities(answer: ClassifyAnswer) -> torch.Tensor:
    rows = [{score.index: score.probability for score in sample.labels} for sample in answer.samples]
    return torch.tensor([[row[index] for index in range(len(row))] for row in rows], dtype=torch.float64)


def serving(settings: Callable[..., Settings], model: Any, **changes: Any) -> Any:
    chosen = settings(**{"classify_method": "tent", **changes})
    return running_engine(chosen, encoder=ToyEncoder(), classifier=model)


def known(sample: SampleAnswer) -> Any:
    assert sample.completeness is not None
    return sample.completeness


# -- who answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "measured", "imputed"),
    [
        ("auto", {"audio": IMPUTATION_BETTER, "video": MODEL_BETTER}, True),
        ("auto", {"audio": MODEL_BETTER, "video": IMPUTATION_BETTER}, False),
        ("auto", {"audio": MODEL_BETTER | {"imputation": 0.9}}, False),
        ("auto", {"video": IMPUTATION_BETTER}, False),
        ("auto", {"audio": "no counts"}, False),
        ("auto", None, False),
        ("model", {"audio": IMPUTATION_BETTER}, False),
        ("impute", {"audio": MODEL_BETTER}, True),
        ("impute", None, True),
    ],
)
async def test_samples_without_sound_are_answered_by_whoever_is_set_or_was_right_more_often(
    settings: Callable[..., Settings], by: MissingBy, measured: Any, imputed: bool
) -> None:
    model = toy(measured)
    silent = without(both(3), "audio")
    assert model.calibration is not None
    assert model.calibration.completion is not None
    inputs = inputs_of(model, silent)
    completed = CompletedTwoStream(model, model.calibration.completion, imputes=imputed).forward(inputs)
    async with serving(settings, model, classify_missing=by) as engine:
        answer = await classify(engine, silent, adapt="off")
    torch.testing.assert_close(probabilities(answer), completed.logits.double().softmax(-1))
    for sample in answer.samples:
        assert (sample.missing, sample.completed_by) == (("audio",), "imputation" if imputed else "model")


async def test_without_a_completion_the_model_answers_and_nothing_more_is_told(
    settings: Callable[..., Settings],
) -> None:
    async with serving(settings, ToyClassifier()) as engine:
        lacking = await classify(engine, without(both(1), "video"))
        whole = await classify(engine, both(1))
    assert (lacking.samples[0].completed_by, lacking.samples[0].completeness) == ("model", None)
    assert (whole.samples[0].completed_by, whole.samples[0].completeness) == ("", None)


@pytest.mark.parametrize("calibrated", [False, True])
async def test_imputing_without_a_completion_stops_the_start(
    settings: Callable[..., Settings], calibrated: bool
) -> None:
    model = ToyClassifier()
    model.calibration = Calibration(model.fingerprint) if calibrated else None
    with pytest.raises(CalibrationMissing, match=r"classify_missing is impute.*attune calibrate"):
        async with serving(settings, model, classify_missing="impute"):
            pass


async def test_without_a_classifier_the_setting_means_nothing(settings: Callable[..., Settings]) -> None:
    async with running_engine(settings(classify_missing="impute"), encoder=ToyEncoder()) as engine:
        assert engine.classifier is None


# -- what is told --------------------------------------------------------------------------------------


async def test_parts_say_what_was_there_and_how_much_is_known(settings: Callable[..., Settings]) -> None:
    model = toy({"audio": IMPUTATION_BETTER})
    assert model.calibration is not None
    assert model.calibration.completion is not None
    confidence = model.calibration.completion.confidence(["video"])
    async with serving(settings, model) as engine:
        (silent,) = (await classify(engine, without(both(1), "audio"))).samples
        (whole,) = (await classify(engine, both(1))).samples
    parts = known(silent).parts
    assert {name: part.observed for name, part in parts.items()} == {
        "audio": False,
        "video": True,
        "fused": False,
    }
    assert {name: part.confidence for name, part in parts.items()} == confidence
    assert 0 < parts["fused"].confidence < 1 == parts["video"].confidence
    assert (whole.missing, whole.completed_by) == ((), "")
    assert [(part.observed, part.confidence) for part in known(whole).parts.values()] == [(True, 1.0)] * 3


async def test_novelty_is_each_samples_own_among_clean_ones(settings: Callable[..., Settings]) -> None:
    """The last of four is black and very loud."""
    strange = Sample(fbank=sound(3) + 60, pixels=np.zeros_like(picture(3)))
    async with serving(settings, toy()) as engine:
        answer = await classify(engine, (*both(3, 500), strange), adapt="off")
    novelty = [known(sample).novelty for sample in answer.samples]
    assert novelty[3] == 1.0
    assert min(novelty[:3]) < 1.0


@pytest.mark.parametrize("adapt", ["sync", "async", "off"])
async def test_complete_samples_are_answered_as_without_a_calibration(
    settings: Callable[..., Settings], adapt: Any
) -> None:
    found = []
    for number, model in enumerate((ToyClassifier(), toy())):
        async with serving(settings, model, data_folder=settings().data_folder / str(number)) as engine:
            await classify(engine, both(8), adapt="sync")
            await settled_version(engine, "default", 1)
            found.append(probabilities(await classify(engine, both(4, 50), adapt=adapt)))
    assert torch.equal(*found)


async def test_a_streams_own_completion_wins_over_the_models() -> None:
    model, other = toy(), completion_of(ToyClassifier(), seed=1000)
    silent = without(both(3), "audio")
    imputed = CompletedTwoStream(model, other).forward(inputs_of(model, silent))
    state = AdaptationState("source", model.fingerprint, {})
    remember(state, other)
    found = classification.completed(model, state, missing=("audio",), by="auto")
    assert found is not None
    assert torch.equal(found.forward(inputs_of(model, silent)).logits, imputed.logits)
    measured = toy({"audio": MODEL_BETTER})
    kept = classification.completed(measured, state, missing=("audio",), by="auto")
    assert kept is not None
    assert not kept.imputes  # what was measured of the model holds for its streams
    assert kept.completion is found.completion


# -- streams -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> CavMae:
    """The small real classifier, which imputes."""
    model = CavMae(CONFIG, small_weights(), dtype=torch.float32)
    model.calibration = classifier(torch.float32).calibration
    return model


def small(count: int, start: int = 0) -> tuple[Sample, ...]:
    """For the small real classifier: sounds of 64 frames and 32 bins, frames of 32 x 32."""
    made = []
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        fbank = random.normal(-5, 4, (64, 32)).astype(np.float32)
        made.append(Sample(fbank=fbank, pixels=random.integers(0, 256, (3, 32, 32), dtype=np.uint8)))
    return tuple(made)


@pytest.fixture(params=list(CLASSIFY_METHODS))
async def streamed(
    request: pytest.FixtureRequest, settings: Callable[..., Settings], real: Classifier
) -> AsyncIterator[Engine]:
    chosen = {"classify_method": request.param, "classify_missing": "impute", "batch_size": 8}
    async with serving(settings, real, **chosen) as running:
        yield running


@pytest.mark.parametrize("hidden", ["audio", "video"])
async def test_a_modality_may_disappear_for_good_under_every_method(streamed: Engine, hidden: str) -> None:
    for number in range(6):
        samples = small(8, 8 * number)
        shown = samples if number < 3 else without(samples, hidden)
        answer = await classify(streamed, shown, adapt="sync", top=6)
        assert bool(probabilities(answer).isfinite().all())
        assert {sample.completed_by for sample in answer.samples} == {"" if number < 3 else "imputation"}
        assert all(known(sample).novelty is not None for sample in answer.samples)
    assert await undone(streamed) == 0


@pytest.mark.parametrize("hidden", ["audio", "video"])
async def test_a_modality_may_appear_late_under_every_method(streamed: Engine, hidden: str) -> None:
    """Before, methods that compare modalities learn nothing; from then on as in a stream that begins."""
    for number in range(6):
        samples = small(8, 8 * number)
        shown = without(samples, hidden) if number < 3 else samples
        answer = await classify(streamed, shown, adapt="sync", top=6)
        assert bool(probabilities(answer).isfinite().all())
        assert {sample.completed_by for sample in answer.samples} == {"imputation" if number < 3 else ""}
    assert await undone(streamed) == 0


async def undone(engine: Engine) -> int:
    described = await engine.describe_stream("default")
    return sum(track["undone"] for track in described["tracks"])


async def test_a_late_sound_leaves_the_state_as_if_the_stream_had_begun_with_it(
    settings: Callable[..., Settings], real: CavMae
) -> None:
    """BriMPR does not learn from silence, so its stream is bit for bit the shorter one."""
    found = []
    for number, silent in enumerate((3, 0)):
        folder = settings().data_folder / str(number)
        async with serving(
            settings, real, classify_method="brimpr", batch_size=8, data_folder=folder
        ) as engine:
            for start in range(silent):
                await classify(engine, without(small(8, 100 * start), "audio"), adapt="sync")
            await classify(engine, small(8), adapt="sync")
            await settled_version(engine, "default", 1)
            found.append(probabilities(await classify(engine, small(4, 50), adapt="async", top=6)))
    assert torch.equal(*found)
