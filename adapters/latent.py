"""What a sample's modalities have in common: probabilistic PCA with a loading each (CalMRL, ICML 2026).

    z^m = W^m beta + mu^m + noise,    beta ~ N(0, I),    noise ~ N(0, s^m I)

Fitted by expectation maximisation in closed form from samples of which any may lack any modality; what a
sample lacks follows from what it has (methods.md 4.1-4.4, 4.7). The latent beta is defined up to a rotation,
so W means something only as W W^T.

Letters: N samples, M modalities, d_m features of modality m, r latent size. Everything inside is fp64: noise
variances of unit embeddings are small, and the sums of the M-step cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from adapters.base import AdapterError

NOISE_FLOOR = 1e-6
Form = Literal["joint", "sequential"]


class NothingObserved(AdapterError):
    """A sample has none of the modalities, so nothing follows for the others."""


class BadEmbeddings(AdapterError):
    """Embeddings of the wrong shape, or not finite."""


@dataclass(frozen=True)
class Loading:
    """One modality: W [d, r], mu [d], s scalar (variance of every coordinate's noise)."""

    weight: Tensor
    mean: Tensor
    noise: Tensor


@dataclass(frozen=True)
class LatentModel:
    """The loadings of all modalities, in a fixed order."""

    loadings: tuple[Loading, ...]

    @property
    def latent(self) -> int:
        return self.loadings[0].weight.shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(loading.mean) for loading in self.loadings)


@dataclass(frozen=True)
class Samples:
    """Embeddings of N samples.

    embeddings  [N, d_m] fp64 of each modality; zeros where a sample lacks it
    observed    bool [N, M]
    """

    embeddings: tuple[Tensor, ...]
    observed: Tensor

    @cached_property
    def squares(self) -> tuple[Tensor, ...]:
        """||z||^2 of each embedding, [N] a modality."""
        return tuple(torch.linalg.vector_norm(part, dim=1).square() for part in self.embeddings)

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        return Samples(tuple(part[rows] for part in self.embeddings), self.observed[rows])

    def __len__(self) -> int:
        return len(self.observed)


def samples_of(embeddings: Sequence[Tensor], observed: Tensor | None = None) -> Samples:
    """Check and take over embeddings [N, d_m]; `observed` bool [N, M], or None: all.

    Raises BadEmbeddings: shapes that do not fit, or values that are not finite where they are observed.
    """
    count = len(embeddings[0]) if embeddings else 0
    if not embeddings or any(part.ndim != 2 or len(part) != count for part in embeddings):
        raise BadEmbeddings("embeddings are matrices of as many rows each")
    if observed is None:
        observed = torch.ones(count, len(embeddings), dtype=torch.bool, device=embeddings[0].device)
    if observed.dtype != torch.bool or tuple(observed.shape) != (count, len(embeddings)):
        raise BadEmbeddings(f"`observed` is bool [{count}, {len(embeddings)}]")
    kept = [
        torch.where(observed[:, m : m + 1], part.detach().double(), 0.0) for m, part in enumerate(embeddings)
    ]
    if not all(bool(torch.isfinite(part).all()) for part in kept):
        raise BadEmbeddings("an observed embedding is not finite")
    return Samples(tuple(kept), observed)


# -- inference ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """What is known of the latent of each sample.

    mean        [N, r]
    patterns    bool [P, M], the different sets of observed modalities
    pattern     int64 [N], which of them is a sample's
    covariance  [P, r, r]: it depends on the pattern alone
    fit         nats [N], log likelihood of what is observed of each sample
    novelty     [N] squared Mahalanobis distance of what is observed; chi^2 of `degrees` where the model holds
    degrees     int64 [N], observed coordinates
    """

    mean: Tensor
    patterns: Tensor
    pattern: Tensor
    covariance: Tensor
    fit: Tensor
    novelty: Tensor
    degrees: Tensor


def infer(model: LatentModel, samples: Samples, *, allow_empty: bool = False) -> Posterior:
    """The E-step. Raises NothingObserved, unless `allow_empty` (such a sample then has the prior)."""
    observed = samples.observed
    if not allow_empty and not bool(observed.any(1).all()):
        raise NothingObserved("a sample has none of the modalities")
    patterns, pattern = torch.unique(observed, dim=0, return_inverse=True)
    products = torch.stack([part.weight.T @ part.weight / part.noise for part in model.loadings])
    identity = torch.eye(model.latent, dtype=products.dtype, device=products.device)
    precision = identity + torch.einsum("pm,mij->pij", patterns.to(products.dtype), products)
    factor = torch.linalg.cholesky(precision)
    covariance = torch.cholesky_inverse(factor)
    log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)

    pulls = torch.zeros(len(samples), model.latent, dtype=products.dtype, device=products.device)
    residual = torch.zeros(len(samples), dtype=products.dtype, device=products.device)
    for m, (loading, values) in enumerate(zip(model.loadings, samples.embeddings, strict=True)):
        # ||z - mu||^2 and (z - mu) W without the matrix z - mu, which would take longer than the products.
        there = observed[:, m].to(values.dtype)
        both = values @ torch.cat([loading.weight, loading.mean[:, None]], dim=1)
        pulls += torch.addr(both[:, :-1], there, loading.mean @ loading.weight, alpha=-1) / loading.noise
        square = samples.squares[m] - 2 * both[:, -1] + there * loading.mean.square().sum()
        residual += square.clamp_min(0) / loading.noise
    mean = _by_pattern(pulls, covariance, pattern)
    novelty = residual - (pulls * mean).sum(1)

    sizes = torch.tensor(model.sizes, device=observed.device, dtype=mean.dtype)
    logs = torch.stack([loading.noise.log() for loading in model.loadings]) * sizes
    there = observed.to(logs.dtype)
    constant = there @ (sizes * math.log(2 * math.pi) + logs) + log_determinant[pattern]
    return Posterior(
        mean, patterns, pattern, covariance, -(constant + novelty) / 2, novelty, (there @ sizes).long()
    )


def _by_pattern(rows: Tensor, matrices: Tensor, pattern: Tensor) -> Tensor:
    """rows [N, r] times the symmetric matrix [P, r, r] of each row's pattern; one product a pattern."""
    if len(matrices) == 1:
        return rows @ matrices[0]
    order = pattern.argsort()
    counts = torch.bincount(pattern, minlength=len(matrices)).tolist()
    parts = torch.split(rows[order], counts)
    products = torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])
    return torch.empty_like(rows).index_copy_(0, order, products)


@dataclass(frozen=True)
class Imputed:
    """What follows for one modality, of every sample.

    mean        [N, d], not of unit length
    variance    [N, d], the diagonal of the predictive covariance
    confidence  [N] in [0, 1]: how much of what the latent does to this modality is known
    """

    mean: Tensor
    variance: Tensor
    confidence: Tensor


def impute(model: LatentModel, posterior: Posterior, modality: int) -> Imputed:
    """What the posterior says of a modality, whether or not it was observed."""
    loading = model.loadings[modality]
    spread = torch.einsum("di,pij,dj->pd", loading.weight, posterior.covariance, loading.weight)
    power = loading.weight.square().sum()
    known = 1 - spread.sum(1) / power.clamp_min(torch.finfo(power.dtype).tiny)
    return Imputed(
        posterior.mean @ loading.weight.T + loading.mean,
        (spread + loading.noise)[posterior.pattern],
        known.clamp(0, 1)[posterior.pattern],
    )


# -- fitting --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Of one modality, sums over the samples that have it, divided by all: what the M-step needs.

    share    how many have it, 0..1
    z, zz    sum of z [d] and of ||z||^2
    b, bb    sum of the latent's mean [r] and second moment [r, r]
    zb       sum of z times the latent's mean [d, r]
    """

    share: Tensor
    z: Tensor
    zz: Tensor
    b: Tensor
    bb: Tensor
    zb: Tensor

    def mixed(self, other: Statistics, rate: float) -> Statistics:
        """(1 - rate) of these and `rate` of the others."""
        return Statistics(
            *(
                torch.lerp(mine, theirs, rate)
                for mine, theirs in zip(_fields(self), _fields(other), strict=True)
            )
        )


def _fields(statistics: Statistics) -> tuple[Tensor, ...]:
    return tuple(getattr(statistics, name) for name in ("share", "z", "zz", "b", "bb", "zb"))


def statistics_of(samples: Samples, posterior: Posterior) -> tuple[Statistics, ...]:
    """The expected complete-data statistics of each modality."""
    total = len(samples)
    found = []
    for m, values in enumerate(samples.embeddings):
        there = samples.observed[:, m].to(values.dtype)
        latent = posterior.mean * there[:, None]
        counts = torch.zeros(len(posterior.patterns), dtype=values.dtype, device=values.device)
        counts.index_add_(0, posterior.pattern, there)
        second = torch.einsum("p,pij->ij", counts, posterior.covariance) + latent.T @ posterior.mean
        found.append(
            Statistics(
                share=there.sum() / total,
                z=values.sum(0) / total,
                zz=samples.squares[m].sum() / total,
                b=latent.sum(0) / total,
                bb=second / total,
                zb=values.T @ latent / total,
            )
        )
    return tuple(found)


def maximise(model: LatentModel, statistics: Sequence[Statistics], *, form: Form = "joint") -> LatentModel:
    """The M-step. A modality that no sample has keeps its loading.

    joint       the exact maximiser over W and mu together
    sequential  mu with the old W, then W, as papers usually print it; it climbs as surely, but slower
    """
    update = _joint if form == "joint" else _sequential
    return LatentModel(
        tuple(
            update(loading, part) if bool(part.share > 0) else loading
            for loading, part in zip(model.loadings, statistics, strict=True)
        )
    )


def _joint(loading: Loading, s: Statistics) -> Loading:
    n, z, b = s.share, s.z / s.share, s.b / s.share
    spread = s.bb / n - torch.outer(b, b)
    cross = s.zb / n - torch.outer(z, b)
    weight = _right_divide(cross, spread)
    noise = (s.zz / n - z.square().sum() - (weight * cross).sum()) / len(z)
    return Loading(weight, z - weight @ b, noise.clamp_min(NOISE_FLOOR))


def _sequential(loading: Loading, s: Statistics) -> Loading:
    n = s.share
    mean = (s.z - loading.weight @ s.b) / n
    cross = s.zb - torch.outer(mean, s.b)
    weight = _right_divide(cross, s.bb)
    squares = s.zz - 2 * mean @ s.z + n * mean.square().sum()
    explained = 2 * (weight * cross).sum() - (weight @ s.bb * weight).sum()
    return Loading(weight, mean, ((squares - explained) / (n * len(mean))).clamp_min(NOISE_FLOOR))


def _right_divide(left: Tensor, symmetric: Tensor) -> Tensor:
    """left times the inverse of a symmetric positive definite matrix."""
    return torch.cholesky_solve(left.T, torch.linalg.cholesky(symmetric)).T


@dataclass(frozen=True)
class Fitted:
    """history: mean log likelihood of a sample (nats) before each M-step; converged: it stopped rising."""

    model: LatentModel
    history: tuple[float, ...]
    converged: bool


def initial_model(
    samples: Samples, latent: int, *, seed: int = 0, start: Literal["principal", "random"] = "principal"
) -> LatentModel:
    """Means of what is observed, half of its spread as noise, and loadings for the other half.

    principal  the leading principal directions of all modalities together, what is missing being at its mean:
               near the optimum, so that few iterations are left [ours]
    random     normal loadings
    """
    random = torch.Generator().manual_seed(seed)
    loadings = []
    for m, values in enumerate(samples.embeddings):
        seen = values[samples.observed[:, m]]
        mean = seen.mean(0) if len(seen) else values.new_zeros(values.shape[1])
        variance = seen.var(0, correction=0).mean() if len(seen) else values.new_ones(())
        variance = variance.clamp_min(2 * NOISE_FLOOR)
        normal = torch.randn(values.shape[1], latent, generator=random, dtype=torch.float64).to(values.device)
        loadings.append(Loading(normal * (0.5 * variance / latent).sqrt(), mean, 0.5 * variance))
    model = LatentModel(tuple(loadings))
    return _principal(samples, model) if start == "principal" else model


def _principal(samples: Samples, model: LatentModel) -> LatentModel:
    """`model` with loadings along principal directions, as many as there are."""
    centred = torch.cat(
        [
            torch.where(samples.observed[:, m : m + 1], values - loading.mean, 0.0)
            / samples.observed[:, m].double().mean().clamp_min(1 / len(samples)).sqrt()
            for m, (loading, values) in enumerate(zip(model.loadings, samples.embeddings, strict=True))
        ],
        dim=1,
    )
    size, count = centred.shape[1], min(model.latent, *centred.shape)
    if len(centred) < size:
        directions, singular, _ = torch.linalg.svd(centred.T, full_matrices=False)
        power = singular.square() / len(centred)
    else:
        power, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        power, directions = power.flip(0), directions.flip(1)
    rest = power[count:].sum() / max(size - count, 1)
    scaled = directions[:, :count] * (power[:count] - rest).clamp_min(0).sqrt()
    loadings = []
    for part, loading in zip(torch.split(scaled, list(model.sizes)), model.loadings, strict=True):
        weight = loading.weight * 1e-3  # what has no direction of its own begins next to nothing
        weight[:, :count] = part
        noise = rest.clamp_min(NOISE_FLOOR) if len(samples) > 1 else loading.noise
        loadings.append(Loading(weight, loading.mean, noise.reshape(())))
    return LatentModel(tuple(loadings))


def fit(
    samples: Samples,
    latent: int,
    *,
    seed: int = 0,
    most_iterations: int = 200,
    tolerance: float = 1e-6,
    form: Form = "joint",
    start: LatentModel | None = None,
    on_iteration: Callable[[int, float], None] = lambda number, likelihood: None,
) -> Fitted:
    """EM until the likelihood rises by less than `tolerance` of itself. Empty samples are left out.

    Raises BadEmbeddings: no sample has anything, or the latent is no natural number.
    """
    slices = fitting(
        samples,
        latent,
        seed=seed,
        most_iterations=most_iterations,
        tolerance=tolerance,
        form=form,
        start=start,
    )
    number = 0
    while True:
        try:
            on_iteration(number, next(slices))
        except StopIteration as ended:
            fitted: Fitted = ended.value
            return fitted
        number += 1


def fitting(
    samples: Samples,
    latent: int,
    *,
    seed: int = 0,
    most_iterations: int = 200,
    tolerance: float = 1e-6,
    form: Form = "joint",
    start: LatentModel | None = None,
) -> Generator[float, None, Fitted]:
    """`fit` in slices: yields the mean log likelihood of a sample in each iteration."""
    if latent < 1:
        raise BadEmbeddings(f"the latent size is {latent}, it has to be 1 at least")
    there = samples.observed.any(1)
    if not bool(there.any()):
        raise BadEmbeddings("no sample has any modality")
    if not bool(there.all()):
        samples = samples[there]
    model = start or initial_model(samples, latent, seed=seed)
    history: list[float] = []
    for number in range(most_iterations):
        posterior = infer(model, samples)
        history.append(float(posterior.fit.mean()))
        yield history[-1]
        if number and history[-1] - history[-2] < tolerance * abs(history[-2]):
            return Fitted(model, tuple(history), converged=True)
        model = maximise(model, statistics_of(samples, posterior), form=form)
    return Fitted(model, tuple(history), converged=False)


def choose_latent(samples: Samples, sizes: Sequence[int], *, seed: int = 0, held_out: float = 0.2) -> int:
    """The latent size under which samples that were kept back are most likely."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    order = order.to(samples.observed.device)
    kept = max(1, int(len(samples) * held_out))
    if kept >= len(samples):
        raise BadEmbeddings("too few samples to keep some back")
    back, rest = samples[order[:kept]], samples[order[kept:]]

    def likelihood(size: int) -> float:
        model = fit(rest, size, seed=seed).model
        return float(infer(model, back, allow_empty=True).fit.mean())

    return max(sizes, key=likelihood)


# -- going on while it serves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Online:
    """A model that learns from batches: running statistics, forgotten at the rate (t + t0)^-kappa.

    batches  t, how many it has learned from; where what comes drifts, give `learned` a constant rate
    """

    model: LatentModel
    statistics: tuple[Statistics, ...]
    batches: int = 0
    t0: float = 6.0
    kappa: float = 0.7

    @classmethod
    def after(cls, model: LatentModel, samples: Samples) -> Online:
        """Begin with a fitted model and the samples it was fitted to."""
        return cls(model, statistics_of(samples, infer(model, samples)))

    def learned(self, samples: Samples, *, rate: float | None = None) -> Online:
        """After one batch of observed embeddings (never of imputed ones)."""
        step = rate if rate is not None else (self.batches + 1 + self.t0) ** -self.kappa
        new = statistics_of(samples, infer(self.model, samples))
        mixed = tuple(
            old.mixed(part, step) if bool(part.share > 0) else old
            for old, part in zip(self.statistics, new, strict=True)
        )
        return replace(self, model=maximise(self.model, mixed), statistics=mixed, batches=self.batches + 1)
