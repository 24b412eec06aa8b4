"""TCR: test-time adaptation for cross-modal retrieval with query shift (ICLR 2025; methods.md 2.7).

Each step: refine every query's prediction to its nearest gallery vector (the candidate), keep the pairs
that look most like source data, and lower three losses over the norm parameters of the query's encoder:

    L_REM  self-weighted entropy of the reliable queries over the batch's candidates
    L_UNI  uniformity of the queries
    L_EMG  squared difference of the batch's modality gap from the remembered, source-like one

Defaults are the released code's. Differences, all marked [ours]:
  * no reliable query: L_REM is 0 for that step (released: NaN, which destroys the weights);
  * first batch too small for an entry: one pair is remembered (released: crash);
  * a loss or gradient that is not finite: the whole batch is undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.base import Forward, StepReport, at_least_fp32
from adapters.drift import drift_against_memory
from adapters.losses import modality_gap, noise_robust_entropy, uniformity
from adapters.memory import read_memory, remember
from adapters.optimizer import AdamWSettings, adamw_step, all_finite, gradients
from adapters.settings import MethodSettings
from adapters.state import AdaptationState


class TCRSettings(MethodSettings):
    """Every constant of the released code."""

    steps: int = Field(3, ge=1, le=20, description="Forward, loss, backward and update per batch (K).")
    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="AdamW. Released: 3e-4, and 3e-5 for text queries with BLIP."
    )
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW, decoupled.")
    temperature: float = Field(0.02, gt=0, le=10, description="Softmax temperature over the candidates (T).")
    relative_temperature: float | None = Field(
        None,
        gt=0,
        le=100,
        description="T in multiples of the model's own softmax temperature, over `temperature` [ours].",
    )
    uniformity_temperature: float = Field(0.1, gt=0, le=100, description="t of L_UNI.")
    uniformity_mode: Literal["mul", "div"] = Field(
        "mul", description="exp(-t d) as released, or exp(-d / t) as on the paper's slides."
    )
    memory_fraction: float = Field(0.3, gt=0, le=1, description="Share of a batch that is remembered.")
    memory_capacity: int = Field(64, ge=1, le=65536, description="Entries the memory keeps (Q).")
    memory_batches: int = Field(10, ge=1, description="Batches after which the memory is frozen.")
    entropy_epsilon: float = Field(1e-3, gt=0, description="Added to E_m in the weight of L_REM.")
    weight_rem: float = Field(1.0, ge=0, description="Weight of L_REM.")
    weight_uni: float = Field(1.0, ge=0, description="Weight of L_UNI.")
    weight_emg: float = Field(1.0, ge=0, description="Weight of L_EMG.")
    learn_from_shift: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Smallest shift from clean batches (1: none) to learn from, where a calibration "
        "tells it; 0: all [ours].",
    )
    shifted_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="AdamW's for batches that have that shift; None: `learning_rate` [ours].",
    )
    predict_after_update: bool = Field(
        False, description="Answer from one more forward after the last update (released: no)."
    )


class TCR:
    name = "tcr"
    adapts = True
    learns = True
    rectifies = False
    most_classes = 0
    needs_completion = False

    def __init__(
        self, settings: TCRSettings | None = None, *, model_temperature: float | None = None
    ) -> None:
        """`model_temperature`: the encoder's 1 / exp(logit scale), for `relative_temperature`."""
        self.settings = settings or TCRSettings()
        self.temperature = self.settings.temperature
        if self.settings.relative_temperature is not None and model_temperature is not None:
            self.temperature = self.settings.relative_temperature * model_temperature
        self.steps = self.settings.steps
        self.predict_after_update = self.settings.predict_after_update
        self.learn_from_shift = self.settings.learn_from_shift
        self._adamw = AdamWSettings(self.settings.learning_rate, self.settings.weight_decay)
        sure = self.settings.shifted_learning_rate or self.settings.learning_rate
        self._adamw_shifted = AdamWSettings(sure, self.settings.weight_decay)

    def initial_state(self, *, fingerprint: str, parameters: Mapping[str, Tensor]) -> AdaptationState:
        copies = {name: value.detach().clone() for name, value in parameters.items()}
        return AdaptationState(method=self.name, fingerprint=fingerprint, parameters=copies)

    @torch.no_grad()
    def observe(self, state: AdaptationState, forward: Forward) -> None:
        """Remember the most source-like pairs, at the first step of each of the first batches."""
        if forward.step > 0 or state.batches >= self.settings.memory_batches:
            return
        queries = at_least_fp32(forward.queries.detach())
        remember(
            state,
            queries,
            forward.candidates.to(queries.dtype),
            fraction=self.settings.memory_fraction,
            capacity=self.settings.memory_capacity,
            temperature=self.temperature,
        )

    def answer(self, state: AdaptationState, forward: Forward) -> Tensor:
        return forward.queries.detach()

    def answer_alone(self, state: AdaptationState, queries: Tensor) -> Tensor:
        return queries

    def losses(self, state: AdaptationState, queries: Tensor, candidates: Tensor) -> dict[str, Tensor]:
        """The three losses and what they are measured against. [B, D], [B, D] -> scalars."""
        settings = self.settings
        memory = read_memory(state)
        if memory is None:
            raise ValueError("TCR learns only after `observe` has seen the batch")
        target_gap = memory.gap()
        logits = queries @ candidates.T / self.temperature  # [B, B]
        rem, reliable = noise_robust_entropy(
            logits, ceiling_nats=memory.entropy_ceiling_nats(), epsilon=settings.entropy_epsilon
        )
        gap = modality_gap(queries, candidates)
        return {
            "rem": rem,
            "uni": uniformity(
                queries, temperature=settings.uniformity_temperature, mode=settings.uniformity_mode
            ),
            "emg": (gap - target_gap).square(),
            "modality_gap": gap.detach(),
            "modality_gap_target": target_gap,
            "entropy_ceiling_nats": memory.entropy_ceiling_nats(),
            "reliable_fraction": reliable.float().mean(),
        }

    def rate(self, forward: Forward) -> AdamWSettings:
        """By whether the batch is known to be shifted."""
        return self._adamw_shifted if forward.shifted else self._adamw

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the three losses."""
        settings = self.settings
        return (
            settings.weight_rem * terms["rem"]
            + settings.weight_uni * terms["uni"]
            + settings.weight_emg * terms["emg"]
        )

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        queries = at_least_fp32(forward.queries)
        terms = self.losses(state, queries, forward.candidates.to(queries.dtype))
        loss = self.total(terms)
        grads = gradients(loss, state.parameters)
        finite = all_finite({"loss": loss.detach(), **grads})
        adamw_step(state, grads, self.rate(forward))
        losses = {name: value.detach() for name, value in terms.items()}
        return StepReport(losses={"total": loss.detach(), **losses}, applied=True, finite=finite)

    def drift(self, state: AdaptationState, forward: Forward) -> Mapping[str, Tensor]:
        queries = at_least_fp32(forward.queries.detach())
        return drift_against_memory(state, queries, forward.candidates, temperature=self.temperature)
