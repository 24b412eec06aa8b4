"""Whether a state that came from outside fits the encoder and the method that would use it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base import StateMismatch
from adapters.state import AdaptationState

_LARGEST_MEMORY = 65536
_ROWS = {"memory.likeness": 1, "memory.entropy": 1, "memory.queries": 2, "memory.candidates": 2}
_CENTRES = {"centre.queries": 1, "centre.candidates": 1, "centre.gap": 0}


def check_state(
    state: AdaptationState, *, fingerprint: str, parameters: Mapping[str, Tensor], dimension: int
) -> None:
    """Raises StateMismatch unless `state` can be used with an encoder of these parameters (D = dimension)."""
    if state.fingerprint != fingerprint:
        raise StateMismatch(
            f"the state was made with encoder {state.fingerprint[:12]}, this one is {fingerprint[:12]}"
        )
    if state.parameters and set(state.parameters) != set(parameters):
        raise StateMismatch("the state's parameters are not those of the encoder's tower")
    for name, value in state.parameters.items():
        if value.shape != parameters[name].shape or value.dtype != parameters[name].dtype:
            raise StateMismatch(f"parameter {name} has another shape or type than the encoder's")
    _check_moments(state)
    _check_method_tensors(state, dimension)
    _check_counters(state)


def _check_moments(state: AdaptationState) -> None:
    optimizer = state.optimizer
    names = set(optimizer.steps)
    if names != set(optimizer.exp_avg) or names != set(optimizer.exp_avg_sq) or names - set(state.parameters):
        raise StateMismatch("the optimiser's moments do not belong to the state's parameters")
    for name in names:
        shape = state.parameters[name].shape
        if optimizer.exp_avg[name].shape != shape or optimizer.exp_avg_sq[name].shape != shape:
            raise StateMismatch(f"the moments of {name} have another shape than the parameter")
        if optimizer.steps[name].numel() != 1:
            raise StateMismatch(f"the step count of {name} is no number")
    everything = [*state.parameters.values(), *optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values()]
    if not all(bool(torch.isfinite(value).all()) for value in everything):
        raise StateMismatch("a parameter or moment is not finite")


def _check_method_tensors(state: AdaptationState, dimension: int) -> None:
    rows: int | None = None
    for name, value in state.tensors.items():
        ranks = _ROWS if name in _ROWS else _CENTRES
        if name not in ranks or value.ndim != ranks[name]:
            raise StateMismatch(f"unknown or misshapen tensor {name!r}")
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise StateMismatch(f"{name} is not finite")
        if name in _ROWS:
            rows = len(value) if rows is None else rows
            if len(value) != rows or not 1 <= rows <= _LARGEST_MEMORY:
                raise StateMismatch("the memory's parts differ in length, or it is empty or too large")
        if name.endswith(("queries", "candidates")) and value.shape[-1] != dimension:
            raise StateMismatch(f"{name} has {value.shape[-1]} features, the encoder {dimension}")
    if rows is not None and not all(name in state.tensors for name in _ROWS):
        raise StateMismatch("the memory lacks a part")
    centres = [name for name in _CENTRES if name in state.tensors]
    if centres and len(centres) != len(_CENTRES):
        raise StateMismatch("the centres lack a part")


def _check_counters(state: AdaptationState) -> None:
    for count in (state.version, state.batches):
        if not isinstance(count, int) or count < 0:
            raise StateMismatch("a counter is no natural number")
