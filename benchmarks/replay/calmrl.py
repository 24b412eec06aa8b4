"""Replayers of CalMRL's goldens: EM with missing modalities, and its alignment losses."""

from __future__ import annotations

import re

import numpy as np
import torch

from adapters.anchors import alignment_loss, anchor_shift, anchors_of, instance_loss
from adapters.latent import (
    Form,
    LatentModel,
    Loading,
    Samples,
    impute,
    infer,
    maximise,
    samples_of,
    statistics_of,
)
from benchmarks.replay.compare import Comparison
from benchmarks.replay.golden import Golden, GoldenError
from benchmarks.replay.replayer import Replayer

_FORMS: tuple[Form, ...] = ("joint", "sequential")


def _is_em(golden: Golden) -> bool:
    return {"mask", "init.W0", "e.mean", "e.loglik"} <= set(golden.arrays)


def _replay_em(comparison: Comparison) -> None:
    names = range(comparison.take("mask").shape[1])
    observed = torch.from_numpy(comparison.take("mask"))
    samples = samples_of([torch.from_numpy(comparison.take(f"z{m}")) for m in names], observed)
    start = LatentModel(
        tuple(
            Loading(
                torch.from_numpy(comparison.take(f"init.W{m}")),
                torch.from_numpy(comparison.take(f"init.mu{m}")),
                torch.from_numpy(np.array(comparison.take(f"init.s2_{m}"))),
            )
            for m in names
        )
    )
    posterior = infer(start, samples)
    comparison.check("e.mean", posterior.mean.numpy())
    comparison.check("e.V", posterior.covariance[posterior.pattern].numpy())
    comparison.check("e.loglik", float(posterior.fit.sum()))
    fitted = {form: _iterate(comparison, start, samples, form) for form in _FORMS}
    _check_imputation(comparison, fitted["joint"], samples)


def _iterate(comparison: Comparison, model: LatentModel, samples: Samples, form: Form) -> LatentModel:
    recorded = comparison.golden.array(f"{form}.loglik")
    likelihoods = []
    for number in range(1, len(recorded) + 1):
        posterior = infer(model, samples)
        likelihoods.append(float(posterior.fit.sum()))
        model = maximise(model, statistics_of(samples, posterior), form=form)
        for m, loading in enumerate(model.loadings):
            if comparison.has(f"{form}.it{number}.W{m}"):
                comparison.check(f"{form}.it{number}.W{m}", loading.weight.numpy())
                comparison.check(f"{form}.it{number}.mu{m}", loading.mean.numpy())
                comparison.check(f"{form}.it{number}.s2_{m}", float(loading.noise))
    comparison.check(f"{form}.loglik", likelihoods)
    return model


def _check_imputation(comparison: Comparison, model: LatentModel, samples: Samples) -> None:
    posterior = infer(model, samples)
    for m in range(len(model.loadings)):
        imputed = impute(model, posterior, m)
        comparison.check(f"impute.z{m}", imputed.mean.numpy())
        comparison.check(f"impute.var{m}", imputed.variance.numpy())
    comparison.check("impute.latent_mean", posterior.mean.numpy())
    comparison.check("impute.latent_cov", posterior.covariance[posterior.pattern].numpy())


def _is_alignment(golden: Golden) -> bool:
    return {"u1", "loss_intra", "grad_intra0", "shift"} <= set(golden.arrays)


def _replay_alignment(comparison: Comparison) -> None:
    golden = comparison.golden
    count = golden.array("singular_values").shape[1]
    leaves = [torch.from_numpy(comparison.take(f"z{m}").copy()).requires_grad_() for m in range(count)]
    columns = torch.stack(leaves, dim=2)
    loss = alignment_loss(columns, temperature=float(golden.constant("tau1")))
    comparison.check("loss_intra", float(loss.detach()))
    for m, gradient in enumerate(torch.autograd.grad(loss, leaves)):
        comparison.check(f"grad_intra{m}", gradient.numpy())
    found = anchors_of(columns.detach())
    comparison.check("u1", found.vectors.numpy())
    comparison.check("singular_values", found.singular_values.numpy())
    inter = instance_loss(found.vectors, temperature=float(golden.constant("tau2")))
    comparison.check("loss_inter", float(inter))
    shift = anchor_shift(columns.detach(), _observed(golden, count))
    parts = (shift.distance, shift.energy, shift.lower, shift.upper, shift.published_upper)
    comparison.check("shift", torch.stack(parts, dim=1).numpy())


def _observed(golden: Golden, count: int) -> torch.Tensor:
    """The description ends in "observed modalities 0,2,3"."""
    said = re.search(r"observed modalities ([\d, ]+)", str(golden.described.get("shift", {}).get("doc", "")))
    if said is None:
        raise GoldenError("the sidecar does not say which modalities the shift has observed")
    named = {int(number) for number in re.findall(r"\d+", said[1])}
    return torch.tensor([number in named for number in range(count)])


REPLAYERS: tuple[Replayer, ...] = (
    Replayer("CalMRL EM", _is_em, _replay_em),
    Replayer("CalMRL alignment", _is_alignment, _replay_alignment),
)
