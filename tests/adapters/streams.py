"""A small float64 stream for the tests of this folder: encoder, gallery, batches, and the service's loop.

Letters: B queries, G gallery items, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base import Method
from adapters.completion import fit_completion
from adapters.state import AdaptationState
from benchmarks.exact import ExactSide
from benchmarks.online import BatchResult, adapt_batch
from encoders.base import Modality
from service.composed import ComposedInputs, ComposedTower, under
from tests.adapters.classifier import run_to_end

D, G = 8, 30
AnyTower: TypeAlias = "SmallTower | ComposedTower"


class SmallTower:
    """LayerNorm -> linear -> tanh -> linear -> unit rows. Inputs [B, 6]."""

    modality: Modality = "image"

    def __init__(self, dtype: torch.dtype = torch.float64, *, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(12, 6, generator=generator, dtype=dtype)
        self.second = torch.randn(D, 12, generator=generator, dtype=dtype)
        self.parameters: Mapping[str, Tensor] = {
            "norm.weight": torch.ones(6, dtype=dtype),
            "norm.bias": torch.zeros(6, dtype=dtype),
        }

    def prepare(self, items: Sequence[Any]) -> Tensor:
        return torch.stack(list(items))

    def encode(self, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        used = self.parameters if parameters is None else parameters
        hidden = F.layer_norm(inputs, (6,), used["norm.weight"], used["norm.bias"])
        return F.normalize(torch.tanh(hidden @ self.first.T) @ self.second.T, dim=-1)


def small_tower(name: str, dtype: torch.dtype = torch.float64) -> AnyTower:
    """As the method of this name needs it: CalMRL learns where queries are completed."""
    return completing_tower(dtype) if name == "calmrl" else SmallTower(dtype)


def completing_tower(dtype: torch.dtype = torch.float64) -> ComposedTower:
    """Two small towers, and a completion fitted to what they make of clean inputs of one origin."""
    towers: dict[Modality, SmallTower] = {"image": SmallTower(dtype), "text": SmallTower(dtype, seed=6)}
    generator = torch.Generator().manual_seed(12)
    clean = torch.randn(200, 6, generator=generator, dtype=dtype)
    pairs: dict[str, Tensor] = {modality: tower.encode(clean) for modality, tower in towers.items()}
    completion = run_to_end(fit_completion(pairs, unit=True, latent=4))
    return ComposedTower(towers, completion)


def inputs_for(tower: AnyTower, inputs: Tensor, *, lacks: str = "") -> Any:
    """Inputs [B, 6] as the tower takes them; both modalities of a query come from one row."""
    if isinstance(tower, SmallTower):
        return inputs
    parts: dict[Modality, Tensor] = {"image": inputs, "text": 0.5 - inputs}
    return ComposedInputs({modality: part for modality, part in parts.items() if modality != lacks})


def gallery(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return F.normalize(torch.randn(G, D, generator=generator, dtype=dtype), dim=-1)


def batch(seed: int, size: int = 10, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs [B, 6] around a common offset: a shifted stream."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(size, 6, generator=generator, dtype=dtype) + torch.linspace(-1, 2, 6, dtype=dtype)


def start(method: Method, tower: AnyTower) -> AdaptationState:
    return method.initial_state(fingerprint="small", parameters=tower.parameters)


def adapt_one(
    method: Method,
    state: AdaptationState,
    inputs: Tensor,
    tower: AnyTower,
    *,
    name: str = "batch",
    lacks: str = "",
) -> BatchResult:
    side = ExactSide(gallery(inputs.dtype))
    return adapt_batch(
        tower=under(tower, state),
        inputs=inputs_for(tower, inputs, lacks=lacks),
        side=side,
        k=G,
        method=method,
        state=state,
        batch_id=name,
    )


def run(
    method: Method, state: AdaptationState, batches: Sequence[Tensor], tower: AnyTower
) -> tuple[AdaptationState, list[BatchResult]]:
    """Batch after batch; the state after the last, and every result."""
    results = []
    for number, inputs in enumerate(batches):
        result = adapt_one(method, state, inputs, tower, name=f"batch-{state.batches}-{number}")
        state = result.next_state(state)
        results.append(result)
    return state, results


def everything(state: AdaptationState) -> dict[str, Any]:
    """All that a state holds, flat, tensors as copies."""
    optimizer = state.optimizer
    flat: dict[str, Any] = {
        f"{group}/{name}": value.detach().clone()
        for group, values in (
            ("parameters", state.parameters),
            ("steps", optimizer.steps),
            ("exp_avg", optimizer.exp_avg),
            ("exp_avg_sq", optimizer.exp_avg_sq),
            ("tensors", state.tensors),
        )
        for name, value in values.items()
    }
    for name in ("method", "fingerprint", "version", "batches", "applied_batches"):
        flat[name] = getattr(state, name)
    return flat | {f"numbers/{name}": value for name, value in state.numbers.items()}


def assert_identical(one: AdaptationState, other: AdaptationState | Mapping[str, Any]) -> None:
    """Bit for bit, dtypes and order of parameters included."""
    left = everything(one)
    right = everything(other) if isinstance(other, AdaptationState) else other
    assert list(left) == list(right)
    for name, value in left.items():
        if isinstance(value, Tensor):
            assert value.dtype == right[name].dtype, name
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name
