"""TCR without training: the queries are rectified, no parameter moves (methods.md 2.8).

    z = mu + lambda (q - mu)                           spread the batch around its centre (Eq. 12)
    z = z + (1 - Delta_S / Delta_T) (mean(c) - mu)     move it to its candidates (Eq. 13)

Delta_S comes from the memory, Delta_T from the batch before it is spread. Differences, marked [ours]:
  * Delta_T below 1e-12: no move;
  * a query answered alone (asynchronous mode) has no batch to be a centre of; it is rectified with the
    centres of the last observed batch, which the state keeps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapters.base import Forward, StepReport, at_least_fp32
from adapters.drift import drift_against_memory
from adapters.losses import modality_gap
from adapters.memory import read_memory, remember
from adapters.settings import MethodSettings
from adapters.state import AdaptationState

_SMALLEST_GAP = 1e-12


class TCRUntrainSettings(MethodSettings):
    """Every constant of the released code."""

    scale: float = Field(2.0, gt=0, le=100, description="lambda_scale: how far the batch is spread.")
    temperature: float = Field(
        0.01,
        gt=0,
        le=10,
        description="Softmax temperature of the remembered entropies; the answer never reads them.",
    )
    memory_fraction: float = Field(0.3, gt=0, le=1, description="Share of a batch that is remembered.")
    memory_capacity: int = Field(64, ge=1, le=65536, description="Entries the memory keeps (Q).")
    memory_batches: int = Field(10, ge=1, description="Batches after which the memory is frozen.")


class TCRUntrain:
    name = "tcr_untrain"
    steps = 1
    adapts = True
    learns = False
    rectifies = True
    most_classes = 0
    needs_completion = False
    learn_from_shift = 0.0
    predict_after_update = False

    def __init__(self, settings: TCRUntrainSettings | None = None) -> None:
        self.settings = settings or TCRUntrainSettings()

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        return AdaptationState(method=self.name, fingerprint=fingerprint, parameters={})

    @torch.no_grad()
    def observe(self, state: AdaptationState, forward: Forward) -> None:
        queries = at_least_fp32(forward.queries.detach())
        candidates = forward.candidates.to(queries.dtype)
        if state.batches < self.settings.memory_batches:
            remember(
                state,
                queries,
                candidates,
                fraction=self.settings.memory_fraction,
                capacity=self.settings.memory_capacity,
                temperature=self.settings.temperature,
            )
        state.tensors["centre.queries"] = queries.mean(0)
        state.tensors["centre.candidates"] = candidates.mean(0)
        state.tensors["centre.gap"] = modality_gap(queries, candidates)

    @torch.no_grad()
    def answer(self, state: AdaptationState, forward: Forward) -> Tensor:
        """Rectified queries of an observed batch, [B, D] unit rows."""
        return self._rectify(state, at_least_fp32(forward.queries.detach()))

    @torch.no_grad()
    def answer_alone(self, state: AdaptationState, queries: Tensor) -> Tensor:
        if "centre.queries" not in state.tensors:
            return queries
        return self._rectify(state, at_least_fp32(queries))

    def _rectify(self, state: AdaptationState, queries: Tensor) -> Tensor:
        memory = read_memory(state)
        if memory is None:
            return queries
        centre = state.tensors["centre.queries"].to(queries.dtype)
        shift = state.tensors["centre.candidates"].to(queries.dtype) - centre
        gap = state.tensors["centre.gap"]
        rate = torch.where(gap < _SMALLEST_GAP, torch.ones_like(gap), memory.gap() / gap)
        spread = centre + self.settings.scale * (queries - centre)
        return F.normalize(spread + (1 - rate) * shift, dim=-1)

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        """There is nothing to train; the batch counts as applied because the memory has seen it."""
        return StepReport(applied=True)

    def drift(self, state: AdaptationState, forward: Forward) -> Mapping[str, Tensor]:
        queries = at_least_fp32(forward.queries.detach())
        return drift_against_memory(state, queries, forward.candidates, temperature=self.settings.temperature)
