"""What a method remembers for one track, and its file form.

A state is named tensors and plain values, nothing else, so that it can be cloned, compared, written and
read back bit for bit. The file is one safetensors file whose metadata holds the JSON part and a digest
over everything; a truncated or altered file is refused before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FORMAT_VERSION = 1
APPLIED_BATCHES_KEPT = 256
"""How many ids of applied batches a state remembers, so that a redelivered batch adapts once."""


class StateFileError(Exception):
    """The bytes are no state file, or not all of one, or were altered."""


@dataclass
class OptimizerState:
    """AdamW's moments by parameter name. A parameter without an entry has never had a gradient."""

    steps: dict[str, Tensor] = field(default_factory=dict)
    exp_avg: dict[str, Tensor] = field(default_factory=dict)
    exp_avg_sq: dict[str, Tensor] = field(default_factory=dict)

    def clone(self) -> OptimizerState:
        return OptimizerState(
            steps=_clone(self.steps), exp_avg=_clone(self.exp_avg), exp_avg_sq=_clone(self.exp_avg_sq)
        )


@dataclass
class AdaptationState:
    """All that a method remembers for one track.

    method, fingerprint  who made it: the method's name and the encoder's fingerprint
    parameters           adapted values by name; leaves of the graph while a batch adapts
    optimizer            moments
    tensors, numbers     the method's own (TCR: the memory), by name
    version              applied batches so far; rises by one with each
    batches              batches seen, applied or not
    applied_batches      ids of the latest applied batches, oldest first
    """

    method: str
    fingerprint: str
    parameters: dict[str, Tensor]
    optimizer: OptimizerState = field(default_factory=OptimizerState)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    version: int = 0
    batches: int = 0
    applied_batches: tuple[str, ...] = ()

    def clone(self) -> AdaptationState:
        """A copy that shares nothing with this one."""
        return AdaptationState(
            method=self.method,
            fingerprint=self.fingerprint,
            parameters=_clone(self.parameters),
            optimizer=self.optimizer.clone(),
            tensors=_clone(self.tensors),
            numbers=dict(self.numbers),
            version=self.version,
            batches=self.batches,
            applied_batches=self.applied_batches,
        )

    def mark_applied(self, batch_id: str) -> None:
        self.version += 1
        self.applied_batches = (*self.applied_batches, batch_id)[-APPLIED_BATCHES_KEPT:]

    def to(self, device: torch.device | str) -> AdaptationState:
        moved = self.clone()
        for prefix, group in zip(_PREFIXES, _groups(moved), strict=True):
            for name, value in group.items():
                group[name] = value.to(_home(prefix, device))
        return moved

    def byte_size(self) -> int:
        return sum(t.numel() * t.element_size() for group in _groups(self) for t in group.values())


def _clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _groups(state: AdaptationState) -> Iterable[dict[str, Tensor]]:
    optimizer = state.optimizer
    return (state.parameters, optimizer.steps, optimizer.exp_avg, optimizer.exp_avg_sq, state.tensors)


_PREFIXES = ("parameters/", "steps/", "exp_avg/", "exp_avg_sq/", "tensors/")


def _home(prefix: str, device: torch.device | str) -> torch.device | str:
    """Step counts stay on the host: AdamW reads them there without waiting for the device."""
    return "cpu" if prefix == "steps/" else device


def pack_states(states: Mapping[str, AdaptationState], *, header: Mapping[str, Any]) -> bytes:
    """States by key, and a JSON header about them, to one file."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for position, (key, state) in enumerate(states.items()):
        for prefix, group in zip(_PREFIXES, _groups(state), strict=True):
            for name, value in group.items():
                tensors[f"{position}/{prefix}{name}"] = value.detach().contiguous().cpu()
        described[key] = {
            "names": [list(group) for group in _groups(state)],
            "method": state.method,
            "fingerprint": state.fingerprint,
            "numbers": state.numbers,
            "version": state.version,
            "batches": state.batches,
            "applied_batches": list(state.applied_batches),
        }
    document = json.dumps(
        {"format_version": FORMAT_VERSION, "header": dict(header), "states": described},
        sort_keys=False,
        allow_nan=True,
    )
    return save(tensors, metadata={"attune": document, "sha256": _digest(document, tensors)})


def unpack_header(data: bytes) -> dict[str, Any]:
    """The JSON header alone, without checking the tensors. Raises StateFileError."""
    header: dict[str, Any] = _document(_metadata(data))["header"]
    return header


def unpack_states(
    data: bytes, *, device: torch.device | str = "cpu"
) -> tuple[dict[str, AdaptationState], dict[str, Any]]:
    """The inverse of `pack_states`. Raises StateFileError for anything but a whole, unaltered file."""
    from safetensors.torch import load

    metadata = _metadata(data)
    document = _document(metadata)
    try:
        tensors = load(data)
    except Exception as error:  # safetensors raises several types, all mean the same here
        raise StateFileError(f"not a whole state file: {error}") from error
    if _digest(metadata["attune"], tensors) != metadata.get("sha256"):
        raise StateFileError("the state file was altered: its digest does not match its content")
    states: dict[str, AdaptationState] = {}
    try:
        for position, (key, plain) in enumerate(document["states"].items()):
            groups = [
                {name: tensors[f"{position}/{prefix}{name}"].to(_home(prefix, device)) for name in names}
                for prefix, names in zip(_PREFIXES, plain["names"], strict=True)
            ]
            states[key] = AdaptationState(
                method=plain["method"],
                fingerprint=plain["fingerprint"],
                parameters=groups[0],
                optimizer=OptimizerState(steps=groups[1], exp_avg=groups[2], exp_avg_sq=groups[3]),
                tensors=groups[4],
                numbers=plain["numbers"],
                version=plain["version"],
                batches=plain["batches"],
                applied_batches=tuple(plain["applied_batches"]),
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StateFileError(f"the state file lacks a field: {error}") from error
    return states, document["header"]


def _metadata(data: bytes) -> dict[str, str]:
    """The safetensors header's metadata: 8 bytes length, then JSON."""
    if len(data) < 8:
        raise StateFileError("not a state file: shorter than its own header")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        raise StateFileError("not a whole state file: its header is cut off")
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if not isinstance(metadata, dict) or "attune" not in metadata:
            raise StateFileError("not a state file of Attune")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateFileError("not a state file: unreadable header") from error
    return metadata


def _document(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(metadata["attune"])
        version = document["format_version"]
        if not isinstance(document["header"], dict) or not isinstance(document["states"], dict):
            raise StateFileError("not a state file: unreadable description")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateFileError("not a state file: unreadable description") from error
    if version != FORMAT_VERSION:
        raise StateFileError(f"state file format {version}; this version of Attune reads {FORMAT_VERSION}")
    return document


def _digest(document: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous().cpu()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
