"""The JSON form of a guard, checked: it may come from a damaged or forged file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Figures = dict[str, float]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class StoredReference(_Stored):
    centre: list[float]
    scatter: float = Field(ge=0)
    queries: float = Field(gt=0)
    batches: int = Field(ge=1)
    usual: float = Field(ge=1)
    figures: _Figures


class StoredEvent(_Stored):
    time: float
    stream: str
    track: str
    batch: _Count
    finding: str
    action: str
    reason: str
    figures: _Figures


class StoredGuard(_Stored):
    batches: _Count
    healthy: _Count
    cooldown: _Count
    strikes: _Count
    update: float = Field(ge=0)
    finding: str | None
    spent: bool
    reference: StoredReference | None
    pending: StoredReference | None
    rises: list[dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]]
    latest: _Figures
    rolling: _Figures
    events: list[StoredEvent]
