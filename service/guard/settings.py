"""What can be set of the guard, for a server and, over that, for each stream."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Policy = Literal["off", "warn", "freeze", "rollback", "reset"]


class GuardSettings(BaseModel):
    """Frozen plain values; the defaults are measured in docs/guard.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    policy: Policy = Field(
        "rollback",
        description="What follows a finding. `off`: nothing is measured; `warn`: events only; `freeze`: no "
        "learning while it lasts; `rollback`: back to the last good state; `reset`: back to the source.",
    )
    sample_fraction: float = Field(
        0.25, gt=0, le=1, description="Share of a batch (at least 8 queries) that the source model sees too."
    )

    # Batches that are not learned from
    min_uniformity: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="A batch whose queries stand closer to their centre is not used: near-duplicates, noise.",
    )
    unusual_ratio: float = Field(
        2.5,
        gt=1,
        le=1000,
        description="A batch is unusual when its centre is this many times further (squared) from the "
        "stream's than usual batches are.",
    )
    change_batches: int = Field(
        2,
        ge=1,
        le=1000,
        description="Unusual batches in a row that resemble each other: the shift has changed.",
    )
    reference_batches: int = Field(
        4, ge=2, le=1000, description="First batches of a stream, or of a new shift, that say what is usual."
    )
    reference_window_batches: int = Field(
        32, ge=2, le=100_000, description="Batches that the rolling reference remembers, about."
    )

    # Harm: the adapted model against the source model on the same queries
    harm_window_batches: int = Field(
        16, ge=1, le=1000, description="Latest batches whose differences are averaged, all of them or fewer."
    )
    harm_sigmas: float = Field(
        3.0,
        gt=0,
        le=100,
        description="Standard errors that such an average must stand above 0, besides its limit.",
    )
    max_source_likeness_rise: float = Field(0.01, gt=0, le=8, description="SI, adapted minus source.")
    max_modality_gap_rise: float = Field(0.005, gt=0, le=2, description="Modality gap, adapted minus source.")
    max_similarity_fall: float = Field(
        0.015, gt=0, le=2, description="Mean cosine of a query with its nearest item, source minus adapted."
    )
    max_update: float = Field(
        0.02,
        gt=0,
        le=100,
        description="Distance that one batch moves the parameters, relative to their length.",
    )
    max_distance: float = Field(
        0.1,
        gt=0,
        le=100,
        description="Distance of the parameters from the source's, relative to their length.",
    )

    # What follows
    healthy_batches: int = Field(
        4, ge=1, le=1000, description="Healthy batches that make a state the last good one."
    )
    cooldown_batches: int = Field(
        8,
        ge=0,
        le=100_000,
        description="Batches without learning after a rollback; doubles with each in a row.",
    )

    # Canaries
    canary_every_batches: int = Field(
        8, ge=1, le=100_000, description="Batches between two checks of the canaries."
    )
    max_canary_fall: float = Field(
        0.1, gt=0, le=1, description="Mean reciprocal rank of the right answers, source minus adapted."
    )
