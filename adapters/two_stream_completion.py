"""An audio-video classifier whose samples are completed: what a sample lacks is imputed, then classified.

A completion of such a model has three modalities (adapters/completion.py): what either tower makes of its
input, and the fused feature that the head reads. Of a sample without sound or picture the fused feature
follows from the tower that is there. The released models answer such samples on a path of their own, through
the joint block alone; which of the two is right more often is measured by `attune calibrate`.

A tower's part is the mean over its tokens behind the first joint block's norm, BriMPR's last feature
(methods.md 3.8): of it the fused feature followed a little better than of the plain mean of the tokens, and
as well as of what the joint block makes of one modality. Letters: B samples, N tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.base import at_least_fp32
from adapters.classification import Inputs, TwoStream, Values
from adapters.completion import Completion


@dataclass(frozen=True)
class CompletedOutput:
    """logits [B, C]; features [B, D] behind the head's norm; pooled [B, D] before it, imputed or not."""

    logits: Tensor
    features: Tensor
    pooled: Tensor


def representations(
    model: TwoStream, inputs: Inputs, values: Values | None = None, prompts: Any = None
) -> dict[str, Tensor]:
    """What is there of "audio", "video" and, of complete samples, "fused": [B, D] each, fp32 at least.

    Differentiable in `values` and `prompts` as the model's own forward.
    """
    tokens, found = _behind_towers(model, inputs, values, prompts)
    if inputs.complete:
        found["fused"] = at_least_fp32(model.fuse(tokens, values))
    return found


def _behind_towers(
    model: TwoStream, inputs: Inputs, values: Values | None, prompts: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tokens [B, N, D] and part [B, D] of each modality that is there."""
    tokens: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    for modality, embedded in model.embed(inputs, values).items():
        own = None if prompts is None else prompts[modality]
        (output,) = model.tower_packed(modality, [embedded], values=values, prompts=own, features=True)
        tokens[modality] = output.tokens
        parts[modality] = _part(output)
    return tokens, parts


def _part(output: Any) -> Tensor:
    return at_least_fp32(output.features[:, -1])


class CompletedTwoStream:
    """A model that imputes; otherwise the model as it is, bit for bit where nothing is missing.

    completion  what imputes
    imputes     whether it does; else samples that lack something take the model's own path
    seen        [B, D] of each part that the first pass had, without gradient: of one batch, if the object is
                made for one. Methods pass through the model in their own ways; this costs no further pass.
    """

    def __init__(self, model: TwoStream, completion: Completion, *, imputes: bool = True) -> None:
        self.completion = completion
        self.imputes = imputes
        self.seen: dict[str, Tensor] = {}
        self.fingerprint = model.fingerprint
        self.depth, self.width, self.label_count = model.depth, model.width, model.label_count
        self.device = model.device
        self.weights = model.weights
        self.groups = model.groups
        self.calibration = model.calibration
        self._model = model

    def forward(self, inputs: Any, values: Values | None = None, prompts: Any = None) -> CompletedOutput:
        """As the model's; of incomplete samples the fused feature is imputed and classified."""
        tokens, parts = _behind_towers(self, inputs, values, prompts)
        if inputs.complete or not self.imputes:
            pooled = self.fuse(tokens, values)
        else:
            pooled = self.completion.complete(parts).embeddings["fused"]
        logits, features = self.head(pooled, values)
        return CompletedOutput(logits, features, pooled)

    def embed(self, inputs: Any, values: Values | None = None) -> dict[Any, Tensor]:
        return self._model.embed(inputs, values)

    def tower_packed(
        self,
        modality: Any,
        token_sets: Sequence[Tensor],
        *,
        values: Values | None = None,
        prompts: Tensor | None = None,
        features: bool = False,
    ) -> Any:
        wanted = features or modality not in self.seen
        outputs = self._model.tower_packed(
            modality, token_sets, values=values, prompts=prompts, features=wanted
        )
        if modality not in self.seen:
            self.seen[modality] = _part(outputs[0]).detach()
        return outputs

    def joint_packed(
        self, segments: Sequence[tuple[Tensor, Any]], values: Values | None = None
    ) -> list[Tensor]:
        pooled = self._model.joint_packed(segments, values)
        self._see_fused(pooled[0])
        return pooled

    def fuse(self, tokens: Mapping[Any, Tensor], values: Values | None = None) -> Tensor:
        pooled = self._model.fuse(tokens, values)
        self._see_fused(pooled)
        return pooled

    def head(self, pooled: Tensor, values: Values | None = None) -> tuple[Tensor, Tensor]:
        return self._model.head(pooled, values)

    def _see_fused(self, pooled: Tensor) -> None:
        """Behind both towers the first is of all tokens, in every method."""
        if "fused" not in self.seen and {"audio", "video"} <= self.seen.keys():
            self.seen["fused"] = at_least_fp32(pooled).detach()

    @torch.no_grad()
    def novelty(self) -> Tensor | None:
        """How unusual the batch's samples are, [B] in 0..1; None: not known, or nothing passed yet."""
        if not self.seen or not self.completion.knows_novelty(list(self.seen)):
            return None
        return self.completion.novelty_of(self.seen)
