"""The base of every method's settings: frozen, nothing unknown, every range checked."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class MethodSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
