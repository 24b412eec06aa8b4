"""What a method of classification is, and what it sees of the model.

Letters: B samples, N tokens, D width, L tower blocks, C classes, P prompts, Lp blocks with prompts.

Retrieval methods see features and candidates (adapters/base.py). Methods of classification see the model
itself, because several pass through it in their own way: twice (SAR, READ), with shuffled inputs (DeYO), with
masked tokens and one modality alone (BriMPR). The caller (service/classification.py) owns everything else:

    slices = method.adapt(model, working_state, inputs)
    for answer in slices: ...       # the batch's answer, once; None: others may be answered now
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from adapters.base import AdapterError, BadSettings, StepReport, at_least_fp32
from adapters.calibration import Calibration
from adapters.settings import MethodSettings
from adapters.state import AdaptationState

Modality = Literal["audio", "video"]
Values = Mapping[str, Tensor]
Artefact = Literal["statistics", "fisher", "completion"]
_WORDS: Mapping[Artefact, str] = {
    "statistics": "statistics",
    "fisher": "fisher values",
    "completion": "a completion",
}


@dataclass(frozen=True)
class Answer:
    """A batch's logits [B, C], detached, which nothing changes any more.

    learns: whether an update follows; false where there is none, or where it is in the answer already.
    """

    logits: Tensor
    learns: bool = True


Slices = Generator[Answer | None, None, StepReport]


class CalibrationMissing(AdapterError):
    """The method needs something that is measured on clean samples first."""


class Inputs(Protocol):
    """A prepared batch: audio [B, T, F] and video [B, 3, H, W], normalised; None where it has none."""

    @property
    def audio(self) -> Tensor | None: ...
    @property
    def video(self) -> Tensor | None: ...
    @property
    def complete(self) -> bool: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor) -> Any: ...


class TwoStream(Protocol):
    """What methods use of an audio-video classifier; see encoders/cav_mae.py for every function.

    weights      frozen values by name
    groups       names of adaptable weights: norms, early_norms, joint_attention
    calibration  measured on clean samples, or None
    """

    fingerprint: str
    depth: int
    width: int
    label_count: int
    device: torch.device
    weights: dict[str, Tensor]
    groups: Mapping[str, tuple[str, ...]]
    calibration: Calibration | None

    # Inputs and outputs are the model's own types, hence Any.
    def forward(self, inputs: Any, values: Values | None = None, prompts: Any = None) -> Any: ...
    def embed(self, inputs: Any, values: Values | None = None) -> dict[Any, Tensor]: ...
    def tower_packed(
        self,
        modality: Any,
        token_sets: Sequence[Tensor],
        *,
        values: Values | None = None,
        prompts: Tensor | None = None,
        features: bool = False,
    ) -> Any: ...
    def joint_packed(
        self, segments: Sequence[tuple[Tensor, Any]], values: Values | None = None
    ) -> list[Tensor]: ...
    def fuse(self, tokens: Mapping[Any, Tensor], values: Values | None = None) -> Tensor: ...
    def head(self, pooled: Tensor, values: Values | None = None) -> tuple[Tensor, Tensor]: ...


class ClassifyMethod(Protocol):
    """An adaptation algorithm for classification. Immutable: everything that changes lives in the state."""

    name: str
    adapts: bool
    """Whether batches change the state at all (only `source` says no)."""
    needs: frozenset[Artefact]
    """What the model's calibration has to hold."""
    fewest: int
    """Samples that a batch needs for the method to learn from it."""
    takes_incomplete: bool
    """Whether it also learns from samples that lack a modality."""

    @property
    def settings(self) -> MethodSettings: ...

    def check(self, model: TwoStream) -> None:
        """Raises BadSettings or CalibrationMissing where the method cannot work with this model."""

    def initial_state(self, model: TwoStream) -> AdaptationState:
        """The source state: the adaptable values as they are in the model, nothing remembered."""

    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        """Logits [B, C] under a state. Reads only; also for samples that lack a modality."""

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        """Learn from one batch, changing `state`, whose parameters are leaves of the graph.

        The batch is complete, unless the method `takes_incomplete`.

        Yields the batch's answer once, as soon as it is known and whether an update follows, and None
        wherever other batches may be answered meanwhile. Returns what became of it; where that is not
        finite the caller drops the state.
        """


def require_calibration(method: ClassifyMethod, model: TwoStream) -> None:
    """Raises CalibrationMissing unless the model's calibration holds what the method needs."""
    held = model.calibration.holds if model.calibration is not None else frozenset()
    missing = sorted(method.needs - held)
    if missing:
        what = " and ".join(_WORDS[artefact] for artefact in missing)
        raise CalibrationMissing(
            f"{method.name} needs {what} of clean samples, which this model has not; make a calibration with "
            "`attune calibrate`"
        )


def require_group(method: ClassifyMethod, model: TwoStream, group: str) -> None:
    """Raises BadSettings unless the model has weights of that group."""
    if not model.groups[group]:
        raise BadSettings(
            f"{method.name} adapts the {group.replace('_', ' ')}, a model of {model.depth} blocks has none"
        )


def source_values(model: TwoStream, group: str) -> dict[str, Tensor]:
    """Copies of a group's frozen weights, in fp32 (fp64 stays), in module order."""
    return {name: at_least_fp32(model.weights[name]).detach().clone() for name in model.groups[group]}


def generator(state: AdaptationState) -> torch.Generator:
    """Random numbers for one draw, on the host so that every device draws the same; counts the draw.

    A seed and a count say all, so a state restores without a generator's inner bytes.
    """
    seed, draw = int(state.numbers["seed"]), int(state.numbers["draws"])
    state.numbers["draws"] = draw + 1
    return torch.Generator().manual_seed((seed * 1_000_003 + draw) % (1 << 63))
