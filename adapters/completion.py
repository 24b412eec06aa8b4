"""What a sample lacks, made from what it has: a fitted latent model, ready to be used on batches (CalMRL).

A completion belongs to one model: the unit embeddings of a dual encoder, or the pooled features of an
audio-video classifier. It knows its modalities by name, so nothing here depends on which they are.

Two things are ours. (1) Before the latent model each modality's spread is evened out (`Spread`): the paper's
model has one noise variance a modality, so a latent of its size goes to the directions in which a modality
spreads most, shared or not; with even spreads it goes to what the modalities share. (2) How unusual a sample
is, is told by its rank among clean ones (`novelty`), because squared distances of real embeddings are far
from chi^2.

Letters: B samples, N samples to fit to, M modalities, d features of a modality, r latent size.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.anchors import anchors_of
from adapters.base import AdapterError
from adapters.latent import (
    BadEmbeddings,
    Fitted,
    LatentModel,
    Loading,
    NothingObserved,
    Samples,
    Statistics,
    fitting,
    impute,
    infer,
    maximise,
    samples_of,
    statistics_of,
)
from adapters.state import AdaptationState

LATENT_SIZES = (8, 16, 32, 64, 128)
"""From which the one is chosen that imputes best."""
FEWEST_PAIRS = 8
"""Samples with two modalities or more, without which nothing can be learned of one from another."""
_HELD_OUT = 0.2
_QUANTILES = 101
_DIRECTIONS = 64
_FLOOR = 0.03
"""Of the mean variance: what is added to every direction's, so that the smallest are not blown up."""


class BadCompletion(AdapterError):
    """Tensors that are no completion, or none for these modalities."""


@dataclass(frozen=True)
class Spread:
    """How far a modality's embeddings spread along their main directions, and how far across.

    shift [d], directions [d, q] orthonormal columns, scales [q], rest scalar; fp64
    """

    shift: Tensor
    directions: Tensor
    scales: Tensor
    rest: Tensor

    @classmethod
    def of(cls, embeddings: Tensor) -> Spread:
        """embeddings [N, d] fp64, one at least."""
        shift = embeddings.mean(0)
        size = len(shift)
        covariance = (embeddings - shift).T @ (embeddings - shift) / len(embeddings)
        power, directions = torch.linalg.eigh(covariance)
        power, directions = power.flip(0).clamp_min(0), directions.flip(1)
        count = min(_DIRECTIONS, size)
        floor = _FLOOR * power.mean()
        rest = power[count:].mean() if count < size else power[-1]
        tiny = torch.finfo(torch.float32).tiny  # embeddings that are all the same have no spread at all
        return cls(
            shift,
            directions[:, :count].contiguous(),
            (power[:count] + floor).clamp_min(tiny).sqrt(),
            (rest + floor).clamp_min(tiny).sqrt(),
        )

    def even(self, embeddings: Tensor) -> Tensor:
        """[..., d] -> [..., d] around zero, spread alike in every direction."""
        return self.stretched(embeddings - self.shift, 1 / self.scales, 1 / self.rest)

    def uneven(self, even: Tensor) -> Tensor:
        """The inverse."""
        return self.stretched(even, self.scales, self.rest) + self.shift

    def stretched(self, vectors: Tensor, along: Tensor, across: Tensor) -> Tensor:
        """[..., d] times `along` in each direction and times `across` in all others."""
        return vectors * across + (vectors @ self.directions) * (along - across) @ self.directions.T


@dataclass(frozen=True)
class Completed:
    """Embeddings of every modality, in the completion's order.

    embeddings  [B, d] each; those that were given as they were given, the others made from them
    observed    which were given
    confidence  0..1 each: how much of what the latent does to this modality is known; 1 where given
    """

    embeddings: Mapping[str, Tensor]
    observed: frozenset[str]
    confidence: Mapping[str, float]

    @property
    def complete(self) -> bool:
        return len(self.observed) == len(self.embeddings)

    @property
    def imputed(self) -> tuple[str, ...]:
        return tuple(name for name in self.embeddings if name not in self.observed)

    @property
    def columns(self) -> Tensor:
        """[B, d, M] unit columns; modalities of one size only."""
        return torch.stack([F.normalize(part, dim=-1) for part in self.embeddings.values()], dim=2)


@dataclass(frozen=True)
class _Plan:
    """All that a pattern of missingness needs, as products: latent = sum z @ inward + offset."""

    inward: dict[str, Tensor]  # [d, r]
    offset: Tensor  # [r]
    outward: dict[str, tuple[Tensor, Tensor]]  # [r, d], [d]
    confidence: dict[str, float]


@dataclass(frozen=True)
class _Scale:
    """All that the novelty of a pattern of missingness needs.

    The squared Mahalanobis distance of offsets x is sum ||x||^2 / noise - ||sum x @ weight||^2, weight being
    W / noise times a root of the posterior's covariance.
    """

    loadings: dict[str, tuple[Tensor, Tensor, Tensor]]  # weight [d, r], mean [d], noise scalar
    levels: Tensor  # [101] percentiles of clean samples
    known: bool


@dataclass(frozen=True)
class Completion:
    """A fitted latent model and what is known of the samples it was fitted to.

    modalities  their names, in order
    model       of embeddings whose spread was evened out
    spreads     of each modality; None: the model is of the embeddings as they are (as published)
    unit        whether embeddings have unit length, and imputed ones get it
    statistics  running sums from which the model goes on learning; empty: it cannot
    novelty     [2^M - 1, 101] percentiles of clean samples' novelty, the row of pattern p (bit m: modality m
                is there) at p - 1; infinite where no clean sample had these modalities
    batches     learned from since it was fitted
    about       plain facts of the fit, to be shown
    """

    modalities: tuple[str, ...]
    model: LatentModel
    spreads: tuple[Spread, ...] | None
    unit: bool
    novelty: Tensor
    statistics: tuple[Statistics, ...] = ()
    batches: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    _plans: dict[Any, _Plan] = field(default_factory=dict, init=False, repr=False, compare=False)
    _scales: dict[Any, _Scale] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of each modality."""
        return self.model.sizes

    # -- completing ---------------------------------------------------------------------------------

    def complete(self, observed: Mapping[str, Tensor]) -> Completed:
        """Impute what is not there; differentiable in what is. [B, d] each, all samples alike.

        Raises NothingObserved, BadEmbeddings (unknown modality, wrong size). What is not finite stays so.
        """
        self._check(observed)
        names = tuple(name for name in self.modalities if name in observed)
        first = observed[names[0]]
        plan = self._plan(names, first)
        made: dict[str, Tensor] = {}
        if len(names) < len(self.modalities):
            latent = plan.offset + sum(observed[name] @ plan.inward[name] for name in names)
            made = {name: latent @ matrix + shift for name, (matrix, shift) in plan.outward.items()}
        if self.unit:
            made = {name: F.normalize(part, dim=-1) for name, part in made.items()}
        embeddings = {name: observed[name] if name in names else made[name] for name in self.modalities}
        return Completed(embeddings, frozenset(names), plan.confidence)

    def confidence(self, observed: Sequence[str]) -> dict[str, float]:
        """Of each modality where these are there: it depends on nothing else. Raises NothingObserved."""
        names = tuple(name for name in self.modalities if name in observed)
        if not names:
            raise NothingObserved("none of the modalities is there")
        return dict(self._plan(names, self.model.loadings[0].mean).confidence)

    @torch.no_grad()
    def novelty_of(self, observed: Mapping[str, Tensor]) -> Tensor:
        """How unusual samples are: the share of clean ones that are less so, [B] from 0 to 1.

        0 where no clean sample with these modalities is known. What is not finite is as unusual as can be.
        """
        self._check(observed)
        scale = self._scale(tuple(name for name in self.modalities if name in observed))
        apart, pulls = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for name, (weight, mean, noise) in scale.loadings.items():
            offset = self._evened(self.modalities.index(name), observed[name].detach().double()) - mean
            apart = apart + offset.square().sum(1) / noise
            pulls = pulls + offset @ weight
        distance = apart - pulls.square().sum(1)
        rank = (scale.levels <= distance.nan_to_num(nan=torch.inf)[:, None]).sum(1)
        return (rank.double() / (len(scale.levels) - 1)).clamp(0, 1) * scale.known

    def knows_novelty(self, observed: Collection[str]) -> bool:
        """Whether clean samples with these modalities are known. Raises NothingObserved."""
        return self._scale(tuple(name for name in self.modalities if name in observed)).known

    @torch.no_grad()
    def shift(self, modality: str, embeddings: Tensor) -> Tensor:
        """How far a batch as a whole is from clean ones: a scalar, about 1 for clean batches of any size.

        Squared distance of the batch's mean from the clean mean, spreads evened out, over what it is expected
        to be for as many clean samples [ours]. On a small real encoder 64 clean pictures have 0.9 to 1.4,
        brightness of severity 3 has 2.7 and jpeg compression 8 (docs/methods.md). Samples of one topic are no
        random sample of clean ones and lie higher. Raises BadEmbeddings where it keeps no statistics of the
        modality.
        """
        self._check({modality: embeddings})
        m = self.modalities.index(modality)
        if not self.statistics or not bool(self.statistics[m].share > 0):
            raise BadEmbeddings(f"this completion keeps no statistics of {modality}")
        known = self.statistics[m]
        centre = known.z / known.share
        spread = known.zz / known.share - centre.square().sum()
        mean = self._evened(m, embeddings.detach().mean(0).double()[None])[0]
        away = (mean - centre).square().sum()
        return len(embeddings) * away / spread.clamp_min(torch.finfo(torch.float32).tiny)

    def views(self, completed: Completed) -> Tensor:
        """What each modality alone says of the latent, as unit columns [B, r, M]; differentiable.

        Comparable whatever the modalities' own spaces are, and up to the latent's rotation.
        """
        found = []
        for m, name in enumerate(self.modalities):
            loading = self.model.loadings[m]
            values = self._evened(m, completed.embeddings[name].double())
            found.append(F.normalize((values - loading.mean) @ loading.weight / loading.noise, dim=-1))
        return torch.stack(found, dim=2)

    def anchors(self, completed: Completed) -> Tensor:
        """One unit vector [B, d] a sample: what its modalities, given and imputed, have in common.

        The leading left singular vector. Of two columns that is their normalised sum, as long as they point
        to one side; where they do not it would be their difference, which is like neither, and the sum is
        taken all the same [ours].
        """
        parts = list(completed.embeddings.values())
        if len(parts) > 2:
            return anchors_of(completed.columns).vectors
        units = parts if self.unit else [F.normalize(part, dim=-1) for part in parts]
        return F.normalize(sum(units[1:], units[0]), dim=-1)

    # -- learning -----------------------------------------------------------------------------------

    @torch.no_grad()
    def learned(self, observed: Mapping[str, Tensor], *, rate: float) -> Completion:
        """After one batch of observed embeddings (never of imputed ones), forgetting at `rate` (0..1).

        Raises BadEmbeddings where one is not finite, or the completion keeps no statistics.
        """
        if not self.statistics:
            raise BadEmbeddings("this completion keeps no statistics to go on from")
        self._check(observed)
        samples = self._samples(observed)
        if not all(bool(torch.isfinite(part).all()) for part in samples.embeddings):
            raise BadEmbeddings("an observed embedding is not finite")
        new = statistics_of(samples, infer(self.model, samples))
        mixed = tuple(
            old.mixed(part, rate) if bool(part.share > 0) else old
            for old, part in zip(self.statistics, new, strict=True)
        )
        model = maximise(self.model, mixed)
        return replace(self, model=model, statistics=mixed, batches=self.batches + 1)

    # -- inside -------------------------------------------------------------------------------------

    def _check(self, observed: Mapping[str, Tensor]) -> None:
        if not observed:
            raise NothingObserved("none of the modalities is there")
        for name, part in observed.items():
            if name not in self.modalities:
                raise BadEmbeddings(f"unknown modality {name!r}; there are {', '.join(self.modalities)}")
            size = self.sizes[self.modalities.index(name)]
            if part.ndim != 2 or part.shape[1] != size:
                raise BadEmbeddings(f"{name} is {tuple(part.shape)}, its embeddings have {size} features")

    def _pattern(self, observed: Collection[str]) -> int:
        return sum(1 << m for m, name in enumerate(self.modalities) if name in observed)

    def _evened(self, m: int, values: Tensor) -> Tensor:
        return values if self.spreads is None else self.spreads[m].even(values)

    def _samples(self, observed: Mapping[str, Tensor]) -> Samples:
        count = len(next(iter(observed.values())))
        device = self.model.loadings[0].mean.device
        there = torch.tensor([name in observed for name in self.modalities], device=device)
        parts = [
            self._evened(m, observed[name].detach().double())
            if name in observed
            else torch.zeros(count, self.sizes[m], dtype=torch.float64, device=device)
            for m, name in enumerate(self.modalities)
        ]
        return Samples(tuple(parts), there.expand(count, -1))

    def _scale(self, names: tuple[str, ...]) -> _Scale:
        if not names:
            raise NothingObserved("none of the modalities is there")
        if names not in self._scales:
            self._scales[names] = self._make_scale(names)
        return self._scales[names]

    @torch.no_grad()
    def _make_scale(self, names: tuple[str, ...]) -> _Scale:
        parts = {name: self.model.loadings[self.modalities.index(name)] for name in names}
        precision = torch.eye(self.model.latent, dtype=torch.float64, device=self.novelty.device)
        for loading in parts.values():
            precision = precision + loading.weight.T @ loading.weight / loading.noise
        factor = torch.linalg.cholesky(precision)
        identity = torch.eye(self.model.latent, dtype=torch.float64, device=self.novelty.device)
        root = torch.linalg.solve_triangular(factor, identity, upper=False).T  # covariance = root root^T
        levels = self.novelty[self._pattern(names) - 1].contiguous()
        loadings = {
            name: (loading.weight @ root / loading.noise, loading.mean, loading.noise)
            for name, loading in parts.items()
        }
        return _Scale(loadings, levels, not bool(levels.isinf().all()))

    def _plan(self, names: tuple[str, ...], like: Tensor) -> _Plan:
        key = (names, like.dtype, like.device)
        if key not in self._plans:
            self._plans[key] = self._make_plan(names, like)
        return self._plans[key]

    @torch.no_grad()
    def _make_plan(self, names: tuple[str, ...], like: Tensor) -> _Plan:
        device = self.model.loadings[0].mean.device
        there = torch.tensor([[name in names for name in self.modalities]], device=device)
        zeros = [torch.zeros(1, size, dtype=torch.float64, device=device) for size in self.sizes]
        posterior = infer(self.model, Samples(tuple(zeros), there))
        covariance = posterior.covariance[0]
        inward: dict[str, Tensor] = {}
        outward: dict[str, tuple[Tensor, Tensor]] = {}
        confidence: dict[str, float] = {}
        offset = torch.zeros(self.model.latent, dtype=torch.float64, device=device)
        for m, (name, loading) in enumerate(zip(self.modalities, self.model.loadings, strict=True)):
            spread = None if self.spreads is None else self.spreads[m]
            if name in names:
                pull = loading.weight @ covariance / loading.noise  # [d, r]
                offset = offset - loading.mean @ pull
                if spread is not None:
                    pull = spread.stretched(pull.T, 1 / spread.scales, 1 / spread.rest).T
                    offset = offset - spread.shift @ pull
                inward[name] = pull.to(like.device, like.dtype).contiguous()
                confidence[name] = 1.0
                continue
            push, shift = loading.weight.T, loading.mean  # [r, d], [d]
            if spread is not None:
                push = spread.stretched(push, spread.scales, spread.rest)
                shift = spread.uneven(shift)
            outward[name] = (push.to(like.device, like.dtype).contiguous(), shift.to(like.device, like.dtype))
            confidence[name] = float(impute(self.model, posterior, m).confidence[0])
        return _Plan(inward, offset.to(like.device, like.dtype), outward, confidence)

    def to(self, device: torch.device | str) -> Completion:
        """On another device."""
        return completion_of_tensors(
            {name: value.to(device) for name, value in tensors_of_completion(self).items()},
            modalities=self.modalities, unit=self.unit, batches=self.batches, about=self.about,
        )  # fmt: skip


# -- fitting ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """What a fit is at: `stage` in words, and which of how many stages."""

    stage: str
    number: int
    of: int


def fit_completion(
    embeddings: Mapping[str, Tensor],
    observed: Mapping[str, Tensor] | None = None,
    *,
    unit: bool,
    latent: int | None = None,
    sizes: Sequence[int] = LATENT_SIZES,
    even: bool = True,
    seed: int = 0,
    patterns: Sequence[Sequence[str]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Generator[Progress, None, Completion]:
    """Fit a completion to clean embeddings [N, d] a modality, in slices (one an iteration of EM).

    observed   bool [N] a modality: which samples have it; None: all have all
    latent     its size; None: of `sizes` that one under which held-out samples are imputed best
    even       whether spreads are evened out first; without, the model is as published
    patterns   the sets of modalities that incomplete samples can have, where that is known: imputing from
               these is what the latent is chosen for; None: from all that a sample has but one

    A fifth of the samples is held out to choose the latent and to know how unusual clean samples are, then
    the model is fitted to all. Raises BadEmbeddings: shapes, values that are not finite, fewer than
    `FEWEST_PAIRS` samples with two modalities.
    """
    names = tuple(embeddings)
    mask = None if observed is None else torch.stack([observed[name] for name in names], dim=1)
    whole = samples_of([embeddings[name] for name in names], mask)
    whole = whole[whole.observed.any(1)]
    pairs = int((whole.observed.sum(1) >= 2).sum())
    if len(names) < 2 or pairs < FEWEST_PAIRS:
        raise BadEmbeddings(
            f"{pairs} samples have two modalities or more; at least {FEWEST_PAIRS} are needed to learn "
            "what one says of another"
        )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).to(
        whole.observed.device
    )
    kept = max(2, round(len(whole) * _HELD_OUT))
    back, rest = whole[order[:kept]], whole[order[kept:]]
    candidates = _possible(sizes, rest) if latent is None else (latent,)
    best: tuple[float, int, Completion] | None = None
    for number, size in enumerate(candidates):
        fitted = yield from _fitted(
            rest, size, even, seed, Progress(f"latent {size}", number, len(candidates) + 1)
        )
        tried = _completion(names, *fitted, unit=unit)
        error = _mean_error(tried, back, patterns)
        if best is None or error < best[0]:
            best = (error, size, tried)
    assert best is not None
    _, size, tried = best
    novelty = _percentiles(tried, back)
    stage = Progress(f"latent {size} on all samples", len(candidates), len(candidates) + 1)
    spreads, final = yield from _fitted(whole, size, even, seed, stage)
    facts = {
        **(about or {}),
        "samples": len(whole),
        "complete_samples": int(whole.observed.all(1).sum()),
        "latent": size,
        "converged": final.converged,
        "likelihood_nats": final.history[-1],
        "relative_error": relative_errors(tried, back, patterns),
        "seed": seed,
    }
    evened = _evened(whole, spreads)
    statistics = statistics_of(evened, infer(final.model, evened))
    return replace(
        _completion(names, spreads, final, unit=unit), statistics=statistics, novelty=novelty, about=facts
    )


def _possible(sizes: Sequence[int], samples: Samples) -> tuple[int, ...]:
    most = min(len(samples), *(part.shape[1] for part in samples.embeddings))
    return tuple(size for size in sizes if size < most) or (max(1, most - 1),)


def _fitted(
    samples: Samples, size: int, even: bool, seed: int, stage: Progress
) -> Generator[Progress, None, tuple[tuple[Spread, ...] | None, Fitted]]:
    spreads = None
    if even:
        spreads = tuple(
            Spread.of(part[samples.observed[:, m]] if bool(samples.observed[:, m].any()) else part[:1])
            for m, part in enumerate(samples.embeddings)
        )
    slices = fitting(_evened(samples, spreads), size, seed=seed)
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            return spreads, ended.value
        yield stage


def _evened(samples: Samples, spreads: tuple[Spread, ...] | None) -> Samples:
    if spreads is None:
        return samples
    parts = [
        torch.where(samples.observed[:, m : m + 1], spread.even(part), 0.0)
        for m, (spread, part) in enumerate(zip(spreads, samples.embeddings, strict=True))
    ]
    return Samples(tuple(parts), samples.observed)


def _completion(
    names: tuple[str, ...], spreads: tuple[Spread, ...] | None, fitted: Fitted, *, unit: bool
) -> Completion:
    rows = (1 << len(names)) - 1
    unknown = torch.full((rows, _QUANTILES), torch.inf, dtype=torch.float64)
    return Completion(names, fitted.model, spreads, unit, unknown.to(fitted.model.loadings[0].mean.device))


def relative_errors(
    completion: Completion, samples: Samples, patterns: Sequence[Sequence[str]] | None = None
) -> dict[str, float]:
    """Of each modality hidden from the samples that have it and another one: squared error over the mean's.

    It is imputed from all others that a sample has, or from each of `patterns` that does not hold it. 1 is
    what imputing the mean comes to; a modality of which nothing can be said is left out.
    """
    found: dict[str, float] = {}
    for m, name in enumerate(completion.modalities):
        error, spread = 0.0, 0.0
        mean = samples.embeddings[m][samples.observed[:, m]].mean(0)
        for given, rows in _hidden(completion.modalities, samples, m, patterns):
            parts = {completion.modalities[o]: samples.embeddings[o][rows] for o in given}
            wanted = samples.embeddings[m][rows]
            error += float((completion.complete(parts).embeddings[name] - wanted).square().sum())
            spread += float((wanted - mean).square().sum())
        if spread > 0:
            found[name] = error / spread
    return found


def _hidden(
    names: Sequence[str], samples: Samples, m: int, patterns: Sequence[Sequence[str]] | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Places of modalities that modality m can be imputed from, and which samples have these and m, [N]."""
    others = samples.observed.clone()
    others[:, m] = False
    usable = samples.observed[:, m] & others.any(1)
    if patterns is None:
        for pattern in torch.unique(others[usable], dim=0):
            yield pattern.nonzero()[:, 0].tolist(), usable & (others == pattern).all(1)
        return
    for listed in patterns:
        given = [names.index(name) for name in listed]
        rows = usable & samples.observed[:, given].all(1)
        if m not in given and bool(rows.any()):
            yield given, rows


def _mean_error(completion: Completion, samples: Samples, patterns: Sequence[Sequence[str]] | None) -> float:
    errors = relative_errors(completion, samples, patterns)
    return sum(errors.values()) / len(errors) if errors else 0.0


def _percentiles(completion: Completion, samples: Samples) -> Tensor:
    """Of the novelty under every pattern, of samples that the model has not seen."""
    rows = completion.novelty.clone()
    levels = torch.linspace(0, 1, rows.shape[1], dtype=torch.float64, device=rows.device)
    for pattern in range(1, len(rows) + 1):
        wanted = [m for m in range(len(completion.modalities)) if pattern >> m & 1]
        there = samples.observed[:, wanted].all(1)
        if not bool(there.any()):
            continue
        given = {completion.modalities[m]: samples.embeddings[m][there] for m in wanted}
        distance = infer(completion.model, completion._samples(given)).novelty
        rows[pattern - 1] = torch.quantile(distance, levels)
    return rows


# -- as tensors ---------------------------------------------------------------------------------------

_STATISTICS = ("share", "z", "zz", "b", "bb", "zb")
_SPREAD = ("shift", "directions", "scales", "rest")


def tensors_of_completion(completion: Completion) -> dict[str, Tensor]:
    """All of it but names, numbers and facts, by name: `latent/MODALITY/weight` and so on."""
    found = {"latent/novelty": completion.novelty}
    for m, name in enumerate(completion.modalities):
        loading = completion.model.loadings[m]
        parts = {"weight": loading.weight, "mean": loading.mean, "noise": loading.noise}
        if completion.spreads is not None:
            parts |= {f"spread.{key}": getattr(completion.spreads[m], key) for key in _SPREAD}
        if completion.statistics:
            parts |= {f"sum.{key}": getattr(completion.statistics[m], key) for key in _STATISTICS}
        found |= {f"latent/{name}/{key}": value for key, value in parts.items()}
    return found


def completion_of_tensors(
    tensors: Mapping[str, Tensor],
    *,
    modalities: Sequence[str],
    unit: bool,
    batches: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Completion:
    """The inverse of `tensors_of_completion`, checked: they may come from a user. Raises BadCompletion."""
    rest = dict(tensors)
    names = tuple(modalities)
    evened = f"latent/{names[0]}/spread.shift" in rest
    summed = f"latent/{names[0]}/sum.share" in rest
    latent = _shape(rest, f"latent/{names[0]}/weight", 2)[1]
    loadings, spreads, statistics = [], [], []
    for name in names:
        size = _shape(rest, f"latent/{name}/weight", 2)[0]

        def take(key: str, *shape: int, name: str = name) -> Tensor:
            return _taken(rest, f"latent/{name}/{key}", shape)

        loadings.append(Loading(take("weight", size, latent), take("mean", size), take("noise")))
        if evened:
            count = _shape(rest, f"latent/{name}/spread.directions", 2)[1]
            spreads.append(
                Spread(
                    take("spread.shift", size),
                    take("spread.directions", size, count),
                    take("spread.scales", count),
                    take("spread.rest"),
                )
            )
        if summed:
            square = (latent, latent)
            shapes = ((), (size,), (), (latent,), square, (size, latent))
            statistics.append(
                Statistics(
                    *(take(f"sum.{key}", *shape) for key, shape in zip(_STATISTICS, shapes, strict=True))
                )
            )
    novelty = _novelty(rest.pop("latent/novelty", None), len(names))
    if rest:
        raise BadCompletion(f"unknown tensor {next(iter(rest))[:80]!r}")
    _check_values(loadings, spreads, statistics)
    return Completion(
        names,
        LatentModel(tuple(loadings)),
        tuple(spreads) if evened else None,
        unit,
        novelty,
        tuple(statistics),
        batches,
        dict(about or {}),
    )


def _shape(tensors: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    value = tensors.get(key)
    if value is None or value.ndim != dimensions or 0 in value.shape:
        raise BadCompletion(f"{key} is missing or misshapen")
    return tuple(value.shape)


def _taken(tensors: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    value = tensors.pop(key, None)
    if value is None or tuple(value.shape) != shape or value.dtype != torch.float64:
        raise BadCompletion(f"{key} is missing, misshapen or not of 64-bit numbers")
    if not bool(torch.isfinite(value).all()):
        raise BadCompletion(f"{key} is not finite")
    return value


def _novelty(value: Tensor | None, modalities: int) -> Tensor:
    shape = ((1 << modalities) - 1, _QUANTILES)
    if value is None or tuple(value.shape) != shape or value.dtype != torch.float64:
        raise BadCompletion("the percentiles of novelty are missing or misshapen")
    if bool(value.isnan().any()) or not bool((value[:, 1:] >= value[:, :-1]).all()):
        raise BadCompletion("the percentiles of novelty do not rise")
    return value


def _check_values(
    loadings: Sequence[Loading], spreads: Sequence[Spread], statistics: Sequence[Statistics]
) -> None:
    positive = [loading.noise for loading in loadings]
    positive += [value for spread in spreads for value in (spread.scales, spread.rest)]
    if not all(bool((value > 0).all()) for value in positive):
        raise BadCompletion("a variance or a scale is not positive")
    if not all(0 <= float(part.share) <= 1 for part in statistics):
        raise BadCompletion("a share is not between 0 and 1")
    _check_inference(loadings)


def _check_inference(loadings: Sequence[Loading]) -> None:
    """Finite numbers can still be so large that inference overflows, or loses what is added to them."""
    products = torch.stack([part.weight.T @ part.weight / part.noise for part in loadings])
    bits = torch.arange(1, 1 << len(loadings), device=products.device)[:, None]
    patterns = bits >> torch.arange(len(loadings), device=products.device) & 1
    identity = torch.eye(products.shape[1], dtype=products.dtype, device=products.device)
    precision = identity + torch.einsum("pm,mij->pij", patterns.to(products.dtype), products)
    factors, failed = torch.linalg.cholesky_ex(precision)
    if bool(failed.any()) or not bool(torch.isfinite(factors).all()):
        raise BadCompletion("its loadings are too large to infer anything with")


# -- as part of a stream's state ----------------------------------------------------------------------

_UNIT, _BATCHES = "latent.unit", "latent.batches"
_recent: OrderedDict[int, tuple[weakref.ref[Tensor], Completion]] = OrderedDict()
_MOST_RECENT = 64


def remember(state: AdaptationState, completion: Completion | None) -> None:
    """Make a completion part of a state, in place of the one before; None: forget it."""
    state.tensors = {name: value for name, value in state.tensors.items() if not name.startswith("latent/")}
    for name in (_UNIT, _BATCHES):
        state.numbers.pop(name, None)
    if completion is not None:
        state.tensors |= tensors_of_completion(completion)
        state.numbers |= {_UNIT: float(completion.unit), _BATCHES: float(completion.batches)}
        _note(state, completion)


def remembered(state: AdaptationState, modalities: Sequence[str]) -> Completion | None:
    """The state's own completion, if it has one. Raises BadCompletion."""
    weight = state.tensors.get(f"latent/{modalities[0]}/weight")
    if weight is None:
        return None
    known = _recent.get(id(weight))
    if known is not None and known[0]() is weight:
        return known[1]
    found = completion_of_tensors(
        {name: value for name, value in state.tensors.items() if name.startswith("latent/")},
        modalities=modalities,
        unit=bool(state.numbers.get(_UNIT, 0.0)),
        batches=int(state.numbers.get(_BATCHES, 0.0)),
    )
    _note(state, found)
    return found


def hand_on(state: AdaptationState, copy: AdaptationState, modalities: Sequence[str]) -> None:
    """Let a copy of a state have its completion as it is, which then need not be checked and planned anew.

    Raises BadCompletion.
    """
    completion = remembered(state, modalities)
    if completion is not None:
        _note(copy, completion)


def _note(state: AdaptationState, completion: Completion) -> None:
    weight = state.tensors[f"latent/{completion.modalities[0]}/weight"]
    _recent[id(weight)] = (weakref.ref(weight), completion)
    _recent.move_to_end(id(weight))
    if len(_recent) > _MOST_RECENT:
        _recent.popitem(last=False)
