"""AdamW over an explicit state, so that moments can be cloned, stored and restored like the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from adapters.state import AdaptationState


@dataclass(frozen=True)
class AdamWSettings:
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


def gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """d loss / d parameter by name. A parameter that the loss does not reach is absent, not zero.

    BLIP's cross-attention norms are the case: they are listed but not on the path of a text query, and
    an absent gradient must neither decay nor move a parameter.
    """
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: grad for name, grad in zip(parameters, found, strict=True) if grad is not None}


def all_finite(tensors: Mapping[str, Tensor]) -> Tensor:
    """True (a bool scalar tensor) when every value is finite. One synchronisation when it is read."""
    if not tensors:
        return torch.tensor(True)
    # The norm of a tensor is finite exactly when its values are (short of overflow at 1e19 in fp32,
    # which no usable gradient reaches), and one fused call covers all tensors.
    norms = torch._foreach_norm(list(tensors.values()))
    return torch.isfinite(torch.stack(list(norms))).all()


@torch.no_grad()
def adamw_step(state: AdaptationState, grads: Mapping[str, Tensor], settings: AdamWSettings) -> None:
    """One AdamW update of `state.parameters` (in place) for the parameters that have a gradient."""
    moments = state.optimizer
    for name, grad in grads.items():
        if name not in moments.steps:
            moments.steps[name] = torch.tensor(0.0)
            moments.exp_avg[name] = torch.zeros_like(grad)
            moments.exp_avg_sq[name] = torch.zeros_like(grad)
    adamw(
        [state.parameters[name] for name in grads],
        list(grads.values()),
        [moments.exp_avg[name] for name in grads],
        [moments.exp_avg_sq[name] for name in grads],
        [],
        [moments.steps[name] for name in grads],
        amsgrad=False,
        beta1=settings.betas[0],
        beta2=settings.betas[1],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        eps=settings.epsilon,
        maximize=False,
        foreach=True,
    )


def descend(
    loss: Tensor, state: AdaptationState, settings: AdamWSettings, *, also: Mapping[str, Tensor] | None = None
) -> Tensor:
    """One update of `state` along the gradient of `loss`.

    Returns whether the loss, its gradient and the tensors of `also` are finite (a bool scalar tensor); where
    they are not the state is spoilt.
    """
    grads = gradients(loss, state.parameters)
    finite = all_finite({"loss": loss.detach(), **(also or {}), **grads})
    adamw_step(state, grads, settings)
    return finite


@torch.no_grad()
def sharpest_nearby(
    parameters: Mapping[str, Tensor], grads: Mapping[str, Tensor], *, radius: float
) -> dict[str, Tensor]:
    """SAM's first step: w + radius * g / (||g|| + 1e-12), the norm over all gradients together.

    New leaves of the graph, so that nothing has to be put back; parameters without a gradient stay where
    they are.
    """
    names = list(grads)
    norms = torch._foreach_norm([grads[name] for name in names])
    scale = radius / (torch.linalg.vector_norm(torch.stack(list(norms))) + 1e-12)
    moved = {name: parameters[name] + scale * grads[name] for name in names}
    found = {name: moved.get(name, value).detach() for name, value in parameters.items()}
    return {name: value.requires_grad_() for name, value in found.items()}
