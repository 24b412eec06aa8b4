"""T3A: test-time classifier adjustment (NeurIPS 2021; methods.md 3.3).

No gradient. Each class has supports, features z behind the head's norm: first the rows of the head's matrix
W, then the samples that were predicted as that class. Only the surest of each class stay. Scores are

    z . c_k,   c_k = unit( sum of the unit supports of class k )

and a batch is among its own supports. A class without support scores 0. filter_k = -1 means "no limit" in
the paper; the released code then drops the worst support of every class [ours: it does not], and in a
service a limit has to be, `max_supports_per_class`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from adapters.base import BadSettings, StepReport, at_least_fp32
from adapters.classification import Answer, Artefact, Inputs, Slices, TwoStream
from adapters.losses import softmax_entropy
from adapters.settings import MethodSettings
from adapters.state import AdaptationState

_HEAD = "mlp_head.1"
_FEATURES, _LABELS, _ENTROPIES = "supports.features", "supports.labels", "supports.entropies"
"""[M, D], int64 [M] and nats [M]: M supports, class by class, the surest first."""


class T3ASettings(MethodSettings):
    """Every constant of the released code, and a limit."""

    filter_k: int = Field(
        20, ge=-1, le=1000, description="Supports that each class keeps (K); -1: max_supports_per_class."
    )
    max_supports_per_class: int = Field(
        100, ge=1, le=1000, description="The limit where filter_k sets none, so that memory stays bounded."
    )

    @field_validator("filter_k")
    @classmethod
    def _keeps_some(cls, value: int) -> int:
        if value == 0:
            raise ValueError("keep one support at least, or -1")
        return value


class T3A:
    name = "t3a"
    adapts = True
    needs: frozenset[Artefact] = frozenset()
    fewest = 1
    takes_incomplete = False

    def __init__(self, settings: T3ASettings | None = None) -> None:
        self.settings = settings or T3ASettings()
        chosen = self.settings.filter_k
        self._limit = chosen if chosen >= 0 else self.settings.max_supports_per_class

    def check(self, model: TwoStream) -> None:
        if f"{_HEAD}.weight" not in model.weights:
            raise BadSettings("t3a: the model has no linear head to take supports from")

    def initial_state(self, model: TwoStream) -> AdaptationState:
        self.check(model)
        rows = at_least_fp32(model.weights[f"{_HEAD}.weight"])
        state = AdaptationState(self.name, model.fingerprint, parameters={})
        _support(state, rows.clone(), F.linear(rows, rows, _bias(model)))
        return state

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        return _scores(state, model.forward(inputs).features, model.label_count)

    @torch.no_grad()
    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        output = model.forward(inputs)
        _support(state, output.features, output.logits)
        _prune(state, self._limit, model.label_count)
        yield Answer(_scores(state, output.features, model.label_count), learns=False)
        supports = output.features.new_full((), len(state.tensors[_LABELS]))
        finite = torch.isfinite(output.features).all()
        return StepReport(losses={"supports": supports}, applied=True, finite=finite)


def _bias(model: TwoStream) -> Tensor:
    return at_least_fp32(model.weights[f"{_HEAD}.bias"])


def _support(state: AdaptationState, features: Tensor, logits: Tensor) -> None:
    """Add features [n, D] with their logits [n, C]."""
    new = {_FEATURES: features, _LABELS: logits.argmax(-1), _ENTROPIES: softmax_entropy(logits)}
    for name, values in new.items():
        known = state.tensors.get(name)
        state.tensors[name] = values if known is None else torch.cat([known, values])


def _prune(state: AdaptationState, limit: int, classes: int) -> None:
    """Keep each class's surest supports, class by class."""
    labels, entropies = state.tensors[_LABELS], state.tensors[_ENTROPIES]
    surest = entropies.argsort(stable=True)
    order = surest[labels[surest].argsort(stable=True)]
    counts = F.one_hot(labels, classes).sum(0)
    first = (counts.cumsum(0) - counts)[labels[order]]
    place = torch.arange(len(order), device=order.device) - first
    kept = order[place < limit]
    for name in (_FEATURES, _LABELS, _ENTROPIES):
        state.tensors[name] = state.tensors[name][kept]


def _scores(state: AdaptationState, features: Tensor, classes: int) -> Tensor:
    """[B, D] -> [B, C]. A product with one-hot labels, whose sums have the same order on every run."""
    units = F.normalize(state.tensors[_FEATURES], dim=-1)
    members = F.one_hot(state.tensors[_LABELS], classes).to(units.dtype)
    return features @ F.normalize(members.T @ units, dim=-1).T
