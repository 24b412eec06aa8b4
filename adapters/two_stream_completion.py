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

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapters.base import at_least_fp32
from adapters.calibration import PARTS
from adapters.classification import Inputs, TwoStream, Values
from adapters.completion import Completion, Progress, fit_completion, remembered
from adapters.state import AdaptationState


@dataclass(frozen=True)
class CompletedOutput:
    """logits [B, C]; features [B, D] behind the head's norm; pooled [B, D] before it, imputed or not."""

    logits: Tensor
    features: Tensor
    pooled: Tensor


def completion_of(model: TwoStream, state: AdaptationState | None) -> Completion | None:
    """What completes a stream's samples: the state's completion, else the model's. Raises BadCompletion."""
    own = None if state is None else remembered(state, PARTS)
    if own is not None or model.calibration is None:
        return own
    return model.calibration.completion


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


# -- measuring ------------------------------------------------------------------------------------------

Parts = dict[str, Tensor]


@torch.no_grad()
def parts_of(model: TwoStream, batches: Iterable[Inputs]) -> tuple[Parts, Parts]:
    """Of clean samples, complete or not: each part [N, D], zeros where one lacks it, and bool [N] who has it.

    Raises ValueError where there are no samples.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in PARTS}
    there: dict[str, list[Tensor]] = {name: [] for name in PARTS}
    for inputs in batches:
        found = representations(model, inputs)
        like = next(iter(found.values()))
        for name in PARTS:
            parts[name].append(found.get(name, torch.zeros_like(like)))
            there[name].append(torch.full((len(like),), name in found, device=like.device))
    if not parts["audio"]:
        raise ValueError("there are no samples")
    return (
        {name: torch.cat(rows) for name, rows in parts.items()},
        {name: torch.cat(rows) for name, rows in there.items()},
    )


def fit_parts(
    parts: Parts, there: Parts, *, latent: int | None = None, seed: int = 0
) -> Generator[Progress, None, Completion]:
    """`fit_completion` as it suits such parts: spreads as they are, imputed from sound or picture alone.

    Of both classifiers that we measured (the demo's clips, real digits) the fused feature followed better
    without evened spreads, and labels as well.
    """
    return fit_completion(
        parts,
        there,
        unit=False,
        latent=latent,
        even=False,
        seed=seed,
        patterns=[[name] for name in PARTS if name != "fused"],
    )


@torch.no_grad()
def compare_missing(
    model: TwoStream, completion: Completion, batches: Iterable[tuple[Any, Tensor]]
) -> dict[str, dict[str, float]]:
    """Complete samples with int64 [B] labels, a modality hidden: who is right how often, 0..1 each.

    {"audio": {"model": 0.71, "imputation": 0.74, "samples": 400}, "video": ...}: without sound the model's
    own path is right in 71 % of 400. Empty where there are no samples.
    """
    imputing = CompletedTwoStream(model, completion)
    right = {name: {"model": 0, "imputation": 0} for name in ("audio", "video")}
    count = 0
    for inputs, labels in batches:
        count += len(labels)
        for hidden, counts in right.items():
            rest = replace(inputs, **{hidden: None})
            for way, how in (("model", model), ("imputation", imputing)):
                counts[way] += int((how.forward(rest).logits.argmax(-1) == labels).sum())
    if not count:
        return {}
    return {
        hidden: {**{way: hits / count for way, hits in counts.items()}, "samples": count}
        for hidden, counts in right.items()
    }
