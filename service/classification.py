"""From a prepared batch to its labels, with or without adaptation: the pipeline of an audio-video classifier.

Knows the model and its methods; knows neither queue, streams nor HTTP. Letters: B samples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from adapters.base import StepReport
from adapters.calibration import PARTS, Calibration
from adapters.classification import Answer, CalibrationMissing, ClassifyMethod, TwoStream
from adapters.completion import hand_on
from adapters.losses import softmax_entropy
from adapters.state import AdaptationState
from adapters.two_stream_completion import CompletedTwoStream, completion_of
from service.pipeline import EarlyAnswer, Outcome, StageTimes, settle

MissingBy = Literal["auto", "model", "impute"]
"""Who answers samples that lack sound or picture: the setting `classify_missing`."""

OnLogits = Callable[[EarlyAnswer[Tensor]], None]
"""Called with a batch's logits [B, C] once they are final."""


# -- samples that lack something ------------------------------------------------------------------------


def check_missing(by: MissingBy, model: TwoStream) -> None:
    """Raises CalibrationMissing where samples are to be imputed and nothing is known that could."""
    if by == "impute" and completion_of(model, None) is None:
        raise CalibrationMissing(
            "classify_missing is impute, and the classifier's calibration has no completion; make one with "
            "`attune calibrate`, or leave classify_missing at auto"
        )


def completed(
    model: TwoStream, state: AdaptationState | None, *, missing: Sequence[str], by: MissingBy
) -> CompletedTwoStream | None:
    """The model for one batch of samples that all lack `missing`; None: nothing completes them."""
    completion = completion_of(model, state)
    if completion is None:
        return None
    calibration = model.calibration
    streams_own = calibration is None or completion is not calibration.completion
    imputes = by == "impute" or (
        by == "auto" and all(_imputed(name, calibration, unmeasured=streams_own) for name in missing)
    )
    return CompletedTwoStream(model, completion, imputes=imputes)


def _imputed(modality: str, calibration: Calibration | None, *, unmeasured: bool) -> bool:
    """Whether imputation was right more often than the model's own path on clean samples without it.

    Where nobody measured, `unmeasured`: a stream that was given a completion of its own shall use it.
    """
    match calibration.about.get("missing") if calibration is not None else None:
        case {**measured} if modality in measured:
            match measured[modality]:
                case {"model": int() | float() as own, "imputation": int() | float() as imputation}:
                    return imputation > own
    return unmeasured


# -- batches --------------------------------------------------------------------------------------------


@torch.no_grad()
def answer(
    *,
    model: TwoStream,
    method: ClassifyMethod | None,
    state: AdaptationState | None,
    inputs: Any,
    times: StageTimes,
) -> Tensor:
    """Logits [B, C] under a stream's current state, or of the source model (`state` None)."""
    started = time.perf_counter()
    if method is None or state is None:
        logits: Tensor = model.forward(inputs).logits
    else:
        logits = method.predict(model, state, inputs)
    times.encode_ms += (time.perf_counter() - started) * 1e3
    return logits


def adapt(
    *,
    model: TwoStream,
    method: ClassifyMethod,
    state: AdaptationState,
    inputs: Any,
    batch_id: str,
    times: StageTimes,
    on_answer: OnLogits | None = None,
    answer_before_last_update: bool = True,
) -> Generator[None, None, Outcome]:
    """Let a stream's state learn from one batch; the online protocol of the papers.

    A generator like service.pipeline.adapt: it yields where other batches may be answered, works on a clone
    of `state` and returns the outcome. `on_answer` is called exactly once unless an exception escapes:
    before the update where the method's answer does not depend on it and `answer_before_last_update`.
    """
    refusal = _refusal(method, inputs)
    if refusal:
        if on_answer is not None:
            logits = answer(model=model, method=method, state=state, inputs=inputs, times=times)
            on_answer(EarlyAnswer(logits, "skipped", refusal, state.version))
        return Outcome("skipped", refusal, None)
    working = state.clone()
    hand_on(state, working, PARTS)
    for value in working.parameters.values():
        value.requires_grad_(True)
    slices = method.adapt(model, working, inputs)
    answered: Answer | None = None
    report: StepReport | None = None
    while report is None:
        stage = "encode_ms" if answered is None else "adapt_ms"
        started = time.perf_counter()
        try:
            found = next(slices)
        except StopIteration as ended:
            report, found = ended.value, None
        setattr(times, stage, getattr(times, stage) + (time.perf_counter() - started) * 1e3)
        if found is not None:
            answered = found
            if on_answer is not None and found.learns and answer_before_last_update:
                on_answer = _answer_early(on_answer, found.logits, state)
        if report is None:
            yield
    assert answered is not None
    logits = answered.logits
    outcome = settle(working, report, batch_id, finite=_finite(report, logits), figures=_figures(logits))
    if on_answer is not None:
        if outcome.status == "undone":  # the working state is dropped, and what it answered with it
            logits = answer(model=model, method=method, state=state, inputs=inputs, times=times)
        version = (outcome.state or state).version
        on_answer(EarlyAnswer(logits, outcome.status, outcome.reason, version))
    return outcome


def _answer_early(on_answer: OnLogits, logits: Tensor, state: AdaptationState) -> OnLogits | None:
    """Answer, and None; where the logits are none (the batch will be undone) it is done later."""
    if not bool(torch.isfinite(logits).all()):
        return on_answer
    on_answer(EarlyAnswer(logits, "applying", "answered before the update", state.version + 1))
    return None


def _refusal(method: ClassifyMethod, inputs: Any) -> str:
    """Why the method cannot learn from this batch at all; empty: it can."""
    if not inputs.complete and not method.takes_incomplete:
        return f"the samples lack {' and '.join(inputs.missing)}"
    if len(inputs) < method.fewest:
        return f"{method.name} learns from {method.fewest} samples or more, the batch has {len(inputs)}"
    return ""


def _finite(report: StepReport, logits: Tensor) -> bool:
    return bool(torch.isfinite(logits).all()) and (report.finite is None or bool(report.finite))


def _figures(logits: Tensor) -> Mapping[str, Tensor]:
    """How sure the answers are: mean entropy of a sample, and entropy of the mean answer; 0..log C nats.

    The second falls towards 0 where a stream collapses into one label.
    """
    probabilities = logits.float().softmax(-1)
    mean = probabilities.mean(0)
    return {
        "entropy_nats": softmax_entropy(logits.float()).mean(),
        "label_entropy_nats": -(mean * mean.clamp_min(1e-12).log()).sum(),
    }
