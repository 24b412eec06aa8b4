"""A recorded stream through the service's adaptation loop, with everything a golden may hold noted down.

Letters: N queries of the stream, B of a batch, G gallery items, K steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.base import Forward, Method, StepReport
from adapters.deyo import DeYO
from adapters.memory import Memory, read_memory
from adapters.optimizer import AdamWSettings
from adapters.registry import METHODS, make_method
from adapters.state import AdaptationState
from benchmarks.exact import ExactSide
from benchmarks.online import adapt_batch
from benchmarks.replay.compare import Comparison
from benchmarks.replay.golden import Golden, GoldenError
from encoders.base import Tower
from service.pipeline import Ranking


class NotReplayableError(Exception):
    """Nothing here knows how to replay the golden: its method is not implemented yet."""


@dataclass(frozen=True)
class MethodReplay:
    """How a method's recorded names translate.

    settings  constant of the sidecar -> setting of the method (not needed where the names agree)
    losses    recorded array -> name in the step's report, one value per batch and step
    total     names of the report whose sum is `loss_total`
    undefined_where_zero  a name of the report: where it is 0 the recorded total is NaN
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[str, str] = field(default_factory=dict)
    total: Sequence[str] = ()
    undefined_where_zero: str = ""


_COMMON = {"lr": "learning_rate", "steps_per_batch": "steps"}
_MEMORY = {
    "con_ratio": "memory_fraction",
    "queue_capacity": "memory_capacity",
    "queue_update_batches": "memory_batches",
}

# A new method's goldens are replayed by one more entry here.
METHOD_REPLAYS: Mapping[str, MethodReplay] = {
    "source": MethodReplay(),
    "tcr": MethodReplay(
        settings={**_COMMON, **_MEMORY, "t": "uniformity_temperature", "em_eps": "entropy_epsilon"},
        losses={
            "loss_REM": "rem",
            "loss_UNI": "uni",
            "loss_EMG": "emg",
            "margin": "modality_gap_target",
            "em": "entropy_ceiling_nats",
            "gap": "modality_gap",
            "frac": "reliable_fraction",
        },
        total=("rem", "uni", "emg"),
    ),
    "tcr_untrain": MethodReplay(settings=_MEMORY),
    "tent": MethodReplay(settings=_COMMON, total=("entropy",)),
    "shot": MethodReplay(
        settings={**_COMMON, "clf_coeff": "label_weight", "diversity_eps": "diversity_epsilon"},
        total=("total",),
    ),
    "read": MethodReplay(settings=_COMMON, total=("total",)),
    "sar": MethodReplay(
        settings=_COMMON, losses={"ema": "entropy_average", "reset": "recovered"}, total=("entropy",)
    ),
    "eata": MethodReplay(
        settings={
            **_COMMON,
            "e_margin_fraction": "margin_fraction",
            "e_margin_in_weight": "weight_margin_nats",
        },
        losses={"n_selected1": "sure", "n_selected2": "selected"},
        total=("entropy",),
        undefined_where_zero="selected",
    ),
    "deyo": MethodReplay(
        settings={
            **_COMMON,
            "deyo_margin_fraction": "margin_fraction",
            "margin_e0_fraction": "weight_fraction",
        },
        losses={"n_selected1": "sure", "n_selected2": "selected"},
        total=("total",),
        undefined_where_zero="selected",
    ),
}


def method_of(golden: Golden) -> tuple[Method, MethodReplay]:
    """The golden's method with the sidecar's constants as settings."""
    name = str(golden.constants.get("method", "")).lower()
    if name not in METHODS or name not in METHOD_REPLAYS:
        raise NotReplayableError(f"method {name}")
    replay = METHOD_REPLAYS[name]
    known = METHODS[name].settings.model_fields
    settings = {replay.settings.get(key, key): value for key, value in golden.constants.items()}
    method = make_method(name, {key: value for key, value in settings.items() if key in known})
    if isinstance(method, DeYO) and golden.arrays.get("rand") is not None:
        method = DeYO(method.settings, noise=RecordedNoise(golden.array("rand")))
    return method, replay


class RecordedNoise:
    """The uniform numbers of every step [steps, rows, patches], NaN where there were fewer rows."""

    def __init__(self, recorded: np.ndarray) -> None:
        self._steps = iter(recorded)

    def __call__(self, shape: tuple[int, int]) -> Tensor:
        for step in self._steps:
            drawn = step[~np.isnan(step).any(axis=1)]
            if len(drawn):
                break
        if drawn.shape != shape:
            raise GoldenError(f"recorded are numbers of shape {drawn.shape}, drawn are {shape}")
        return torch.from_numpy(drawn)


class Recorded:
    """A method that keeps the features and the report of every step."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.name = method.name
        self.settings = method.settings
        self.steps = method.steps
        self.adapts = method.adapts
        self.learns = method.learns
        self.rectifies = method.rectifies
        self.predict_after_update = method.predict_after_update
        self.most_classes = method.most_classes
        self.needs_completion = method.needs_completion
        self.learn_from_shift = method.learn_from_shift
        self.reports: list[StepReport] = []
        self.first_features: list[Tensor] = []
        self.first_moments: dict[str, Tensor] = {}

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        return self._method.initial_state(fingerprint=fingerprint, parameters=parameters)

    def observe(self, state: AdaptationState, forward: Forward) -> None:
        if forward.step == 0:
            self.first_features.append(forward.queries.detach().clone())
        self._method.observe(state, forward)

    def answer(self, state: AdaptationState, forward: Forward) -> Tensor:
        return self._method.answer(state, forward)

    def answer_alone(self, state: AdaptationState, queries: Tensor) -> Tensor:
        return self._method.answer_alone(state, queries)

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        report = self._method.learn(state, forward)
        if not self.reports:
            self.first_moments = {name: value.clone() for name, value in state.optimizer.exp_avg.items()}
        self.reports.append(report)
        return report

    def drift(self, state: AdaptationState, forward: Forward) -> Mapping[str, Tensor]:
        return self._method.drift(state, forward)


@dataclass(frozen=True)
class StreamRecord:
    """What a run left: answers [N, G], features of the first forwards [N, D], state after each batch."""

    outputs: np.ndarray
    features: np.ndarray
    states: Sequence[AdaptationState]
    method: Recorded

    def losses(self, names: Sequence[str]) -> np.ndarray:
        """The sum of the named losses of every step, [batches, K]."""
        reports = [report.losses for report in self.method.reports]
        flat = [sum(float(losses.get(name, np.nan)) for name in names) for losses in reports]
        return np.asarray(flat).reshape(len(self.states), self.method.steps)

    def memories(self) -> list[Memory]:
        found = [read_memory(state) for state in self.states]
        return [memory for memory in found if memory is not None]


def run_stream(
    *, tower: Tower, gallery: Tensor, items: Sequence[Any], batch_size: int, method: Method
) -> StreamRecord:
    """All items, batch after batch, from the source state."""
    recorded = Recorded(method)
    side = ExactSide(gallery)
    state = recorded.initial_state(fingerprint="golden", parameters=tower.parameters)
    outputs, states = [], []
    for start in range(0, len(items), batch_size):
        result = adapt_batch(
            tower=tower,
            inputs=tower.prepare(items[start : start + batch_size]),
            side=side,
            k=len(side),
            method=recorded,
            state=state,
            batch_id=str(start),
        )
        state = result.next_state(state)
        states.append(state)
        outputs.append(_scores(result.answer.ranking))
    return StreamRecord(np.concatenate(outputs), torch.cat(recorded.first_features).numpy(), states, recorded)


def _scores(ranking: Ranking) -> np.ndarray:
    """A complete ranking back in gallery order, [B, G]."""
    scores = np.empty_like(ranking.scores)
    np.put_along_axis(scores, ranking.positions, ranking.scores, axis=1)
    return scores


def check_stream(comparison: Comparison, record: StreamRecord, replay: MethodReplay) -> None:
    """Compare everything that both the golden and the record hold."""
    _check_outputs(comparison, record)
    _check_losses(comparison, record, replay)
    _check_parameters(comparison, record)
    _check_memory(comparison, record)
    if comparison.has("probs"):
        averages = [state.tensors["probability_average"].numpy() for state in record.states]
        comparison.check("probs", np.stack(averages))


def _check_outputs(comparison: Comparison, record: StreamRecord) -> None:
    golden = comparison.golden
    # Methods that take the gallery for classes return logits, the others similarities. They are compared as
    # similarities: rounding of fp32 divided by T = 0.01 is beyond an absolute tolerance near zero.
    tempered = record.method.most_classes > 0 or "outputs are tempered" in golden.text
    scale = float(golden.constant("temperature")) if tempered else 1.0
    comparison.check("outputs", record.outputs, golden.array("outputs").astype(np.float64) * scale)
    if comparison.has("raw_features"):
        comparison.check("raw_features", record.features)


def _check_losses(comparison: Comparison, record: StreamRecord, replay: MethodReplay) -> None:
    for array, name in replay.losses.items():
        if comparison.has(array):
            comparison.check(array, record.losses([name]))
    if comparison.has("loss_total") and replay.total:
        total = record.losses(replay.total)
        if replay.undefined_where_zero:
            total = np.where(record.losses([replay.undefined_where_zero]) == 0, np.nan, total)
        comparison.check("loss_total", total)


def _check_parameters(comparison: Comparison, record: StreamRecord) -> None:
    for name, value in record.states[-1].parameters.items():
        if comparison.has(f"params.{name}"):
            every = [state.parameters[name].numpy() for state in record.states]
            comparison.check(f"params.{name}", np.stack(every))
        if comparison.has(f"final.{name}"):
            comparison.check(f"final.{name}", value.numpy())
    for name, moment in record.method.first_moments.items():
        if comparison.has(f"grad0.{name}"):
            # After the first update the first moment is (1 - beta1) times the gradient.
            comparison.check(f"grad0.{name}", moment.numpy() / (1 - AdamWSettings.betas[0]))


def _check_memory(comparison: Comparison, record: StreamRecord) -> None:
    memories = record.memories()
    if not memories:
        return
    if comparison.has("margin") and comparison.golden.array("margin").ndim == 1:
        comparison.check("margin", [float(memory.gap()) for memory in memories])
    if comparison.has("queue_len"):
        comparison.check("queue_len", [len(memory) for memory in memories])
    for array, name in (("queue_SI", "likeness"), ("queue_entropy", "entropy")):
        if comparison.has(array):
            comparison.check(array, padded([getattr(memory, name) for memory in memories], comparison, array))
    for array, name in (("queue_query", "queries"), ("queue_gallery", "candidates")):
        if comparison.has(array):
            # Recorded only where the memory is full.
            size = comparison.golden.array(array).shape[1]
            full = [getattr(m, name) if len(m) == size else getattr(m, name)[:0] for m in memories]
            comparison.check(array, padded(full, comparison, array))


def padded(values: Sequence[Tensor], comparison: Comparison, array: str) -> np.ndarray:
    """Values of differing lengths in the recorded shape, the rest NaN."""
    out = np.full(comparison.golden.array(array).shape, np.nan)
    for row, value in zip(out, values, strict=True):
        row[: len(value)] = value.numpy()
    return out
