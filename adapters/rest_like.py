"""rest_like: TCR whose gradient may not undo what the source model knows.

Our reading of the idea of REST (arXiv 2511.14416), whose formulas could not be obtained: do not report it as
REST. TCR's losses give g_a. What is to be kept is the source model's refined prediction,

    L_keep = KL( softmax(q0 c^T / T) || softmax(q c^T / T) ),    q0 the same queries by the source model,

with gradient g_k. Where both point apart, <g_a, g_k> < 0, the part of g_a along g_k is left out. One more
forward without gradient and one more backward a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapters.base import Forward, StepReport, at_least_fp32
from adapters.optimizer import adamw_step, all_finite
from adapters.state import AdaptationState
from adapters.tcr import TCR, TCRSettings

_SMALLEST = 1e-30


class RESTLikeSettings(TCRSettings):
    """TCR's, and how much the source counts."""

    keep_temperature: float | None = Field(
        None, gt=0, le=10, description="Temperature of the kept prediction; None: that of the candidates."
    )


class RESTLike(TCR):
    name = "rest_like"
    settings: RESTLikeSettings

    def __init__(
        self, settings: RESTLikeSettings | None = None, *, model_temperature: float | None = None
    ) -> None:
        super().__init__(settings or RESTLikeSettings(), model_temperature=model_temperature)

    def learn(self, state: AdaptationState, forward: Forward) -> StepReport:
        queries = at_least_fp32(forward.queries)
        candidates = forward.candidates.to(queries.dtype)
        terms = self.losses(state, queries, candidates)
        adapt = self.total(terms)
        keep = self._keep(queries, candidates, forward)
        leaves = list(state.parameters.values())
        towards = torch.autograd.grad(adapt, leaves, retain_graph=True, allow_unused=True)
        against = torch.autograd.grad(keep, leaves, allow_unused=True)
        reached = [
            (name, g, k)
            for name, g, k in zip(state.parameters, towards, against, strict=True)
            if g is not None
        ]
        names = [name for name, _, _ in reached]
        grads, agreement = _decoupled(
            [g for _, g, _ in reached], [torch.zeros_like(g) if k is None else k for _, g, k in reached]
        )
        named = dict(zip(names, grads, strict=True))
        finite = all_finite({"loss": adapt.detach(), "keep": keep.detach(), **named})
        adamw_step(state, named, self.rate(forward))
        losses = {name: value.detach() for name, value in terms.items()}
        return StepReport(
            losses={**losses, "keep": keep.detach(), "agreement": agreement}, applied=True, finite=finite
        )

    def _keep(self, queries: Tensor, candidates: Tensor, forward: Forward) -> Tensor:
        assert forward.again is not None
        temperature = self.settings.keep_temperature or self.temperature
        with torch.no_grad():
            source = at_least_fp32(forward.again.encode(forward.again.source, None))
            wanted = (source @ candidates.T / temperature).log_softmax(-1)
        found = (queries @ candidates.T / temperature).log_softmax(-1)
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean")


@torch.no_grad()
def _decoupled(grads: list[Tensor], keep: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """`grads` without what they have against `keep`, all tensors as one vector; and the cosine of both."""
    inner = torch.stack([(g * k).sum() for g, k in zip(grads, keep, strict=True)]).sum()
    length = torch.stack([k.square().sum() for k in keep]).sum()
    own = torch.stack([g.square().sum() for g in grads]).sum()
    share = (inner / length.clamp_min(_SMALLEST)).clamp_max(0.0)
    cosine = inner / (length * own).sqrt().clamp_min(_SMALLEST)
    return [g - share * k for g, k in zip(grads, keep, strict=True)], cosine
