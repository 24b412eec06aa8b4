"""What an adaptation method is, and what it sees of a batch.

Letters: B queries, G gallery items, D features. A *step* is one forward, loss, backward and update;
a method makes `steps` of them on each batch (K in the papers).

The caller (service/pipeline.py) owns the loop over steps, the forwards and the decision which forward
answers; a method owns what it remembers and how it learns:

    for step in range(method.steps):
        forward = Forward(features, candidates, step)
        method.observe(state, forward)             # memory, no gradient
        answer = method.answer(state, forward)     # only the last step's is used
        report = method.learn(state, forward)      # loss, backward, update
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from adapters.settings import MethodSettings
from adapters.state import AdaptationState

if TYPE_CHECKING:
    from adapters.completion import Completed, Completion


class AdapterError(Exception):
    """Root of the errors of this package."""


class UnknownMethod(AdapterError):
    """No method of that name."""


class BadSettings(AdapterError):
    """A method setting is unknown or out of its range."""


class StateMismatch(AdapterError):
    """A state was made by another method, another encoder or other parameters."""


@dataclass(frozen=True)
class Classes:
    """Gallery vectors that a method takes for classes.

    vectors  [C, D] unit rows, constant
    version  grows when the gallery changes, so that what is remembered of its items can be dropped; None: the
             vectors are not the whole gallery and are others for every batch
    """

    vectors: Tensor
    version: int | None


@dataclass(frozen=True)
class Again:
    """The batch of a forward once more, in other ways.

    source    the frozen source values of the adaptable parameters
    encode    features [n, D] of the rows (int64 [n]; None: all) under other parameters; differentiable
    shuffled  features [n, D] of rows whose pictures have their patches in another order (see
              adapters.selection.shuffle_patches), under given parameters; None: the queries are no pictures
    """

    source: Mapping[str, Tensor]
    encode: Callable[[Mapping[str, Tensor], Tensor | None], Tensor]
    shuffled: Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Forward:
    """One forward pass of the batch being adapted.

    queries     [B, D] unit rows; differentiable in the state's parameters when the method learns
    candidates  [B, D] unit rows, constant: each query's nearest gallery vector under the same weights
    step        0-based step within the batch
    classes     the gallery's vectors, for methods that ask for them (`most_classes`)
    again       the batch once more, in other ways
    completed   where a calibration completes the queries: the embeddings of all modalities, whose anchors
                `queries` are; the observed ones differentiable
    completion  what completed them
    shifted     whether the batch is known to have the shift that the method wants
    """

    queries: Tensor
    candidates: Tensor
    step: int
    classes: Classes | None = None
    again: Again | None = None
    completed: Completed | None = None
    completion: Completion | None = None
    shifted: bool = False


@dataclass(frozen=True)
class StepReport:
    """What one `learn` did.

    losses   detached scalars by name
    applied  whether the state learned from the batch; else `reason` says why not
    finite   bool scalar tensor, None = nothing to check; when false the caller drops the working state
    Tensors are read by the caller, once per batch, so that a step never waits for the device.
    """

    losses: Mapping[str, Tensor] = field(default_factory=dict)
    applied: bool = False
    finite: Tensor | None = None
    reason: str = ""

    @classmethod
    def skipped(cls, reason: str) -> StepReport:
        return cls(reason=reason)


class Method(Protocol):
    """An adaptation algorithm. Immutable: everything that changes lives in the state."""

    name: str
    steps: int
    """Forwards per batch."""
    adapts: bool
    """Whether batches change the state at all (only `source` says no)."""
    learns: bool
    """Whether `learn` needs the gradient of the features."""
    rectifies: bool
    """Whether `answer` differs from the features of the forward (then the gallery is ranked once more)."""
    predict_after_update: bool
    """Whether the answer comes from one more forward after the last update."""
    learn_from_shift: float
    """Batches whose shift from clean ones (Completion.shift) is known and smaller are only remembered and
    answered; 0: it learns from all."""
    needs_completion: bool
    """Whether it learns only from queries that a calibration completes (`Forward.completed`)."""
    most_classes: int
    """Gallery vectors that it wants to see at most (`Forward.classes`); 0: none."""

    @property
    def settings(self) -> MethodSettings:
        """Plain values, frozen."""

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        """The source state: a copy of the encoder's adaptable parameters, nothing remembered."""

    def observe(self, state: AdaptationState, forward: Forward) -> None:
        """Remember what this forward shows. Changes `state`; never uses or keeps a gradient."""

    def answer(self, state: AdaptationState, forward: Forward) -> Tensor:
        """Features [B, D] to rank the gallery by, for the batch of `forward`. Reads `state` only."""

    def answer_alone(self, state: AdaptationState, queries: Tensor) -> Tensor:
        """Like `answer`, for queries [B, D] answered at once, which form no batch of their own."""

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        """Loss, gradient and update of `state` in place. Where the report is not finite: drop the state."""

    def drift(self, state: AdaptationState, forward: Forward) -> Mapping[str, Tensor]:
        """Scalars that describe how far this batch is from source-like data (no gradient)."""


def at_least_fp32(features: Tensor) -> Tensor:
    """Losses are computed in fp32 whatever the inference dtype; fp64 stays."""
    return features if features.dtype == torch.float64 else features.float()
