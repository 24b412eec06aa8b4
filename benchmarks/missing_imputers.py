"""Ways to make the embeddings that samples lack: the mean, regression, and completions.

Letters: N samples, B of a batch, d features of a modality, p of all that a regression reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from adapters.completion import Completion
from adapters.latent import Samples, infer

Embeddings = Mapping[str, Tensor]
"""[N, d] of each modality, by name."""

LAMBDAS = tuple(10.0**power for power in range(-4, 3))
"""Of ridge regression, as shares of the mean variance of what it reads."""
FEWEST_ROWS = 10
"""With fewer training samples a regression is the mean."""
_HELD_OUT = 5  # one row of so many chooses lambda


class Imputer(Protocol):
    """Makes every modality of samples that have the same ones. [B, d] each, not of unit length."""

    def impute(self, observed: Embeddings) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class MeanImputer:
    """The mean of the training samples that have the modality; zeros where none has."""

    means: Mapping[str, Tensor]

    @classmethod
    def of(cls, embeddings: Embeddings, observed: Tensor) -> MeanImputer:
        """observed bool [N, M]"""
        means = {}
        for m, (name, part) in enumerate(embeddings.items()):
            there = part[observed[:, m]]
            means[name] = there.mean(0) if len(there) else torch.zeros_like(part[0])
        return cls(means)

    def impute(self, observed: Embeddings) -> dict[str, Tensor]:
        count = len(next(iter(observed.values())))
        return {
            name: observed[name] if name in observed else mean.expand(count, -1)
            for name, mean in self.means.items()
        }


@dataclass(frozen=True)
class RidgeImputer:
    """Ridge regression for every pattern of what is there, fitted when it is first asked for.

    A regression reads all observed modalities side by side. It learns from the training samples that have all
    of these and the wanted one; its lambda is the best of `LAMBDAS` on a fifth of them.
    """

    embeddings: Embeddings
    observed: Tensor
    fitted: dict[tuple[tuple[str, ...], str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def impute(self, observed: Embeddings) -> dict[str, Tensor]:
        names = tuple(name for name in self.embeddings if name in observed)
        values = torch.cat([observed[name] for name in names], dim=1)
        made = {}
        for name in self.embeddings:
            if name in observed:
                made[name] = observed[name]
                continue
            if (names, name) not in self.fitted:
                self.fitted[names, name] = self._fit(names, name)
            matrix, shift = self.fitted[names, name]
            made[name] = values @ matrix + shift
        return made

    def _fit(self, names: Sequence[str], wanted: str) -> tuple[Tensor, Tensor]:
        """The regression as a product: [p, d] and [d]."""
        order = list(self.embeddings)
        rows = self.observed[:, [order.index(name) for name in (*names, wanted)]].all(1)
        given = torch.cat([self.embeddings[name][rows] for name in names], dim=1)
        target = self.embeddings[wanted][rows]
        if len(target) < FEWEST_ROWS:
            mean = MeanImputer.of(self.embeddings, self.observed).means[wanted]
            return given.new_zeros(given.shape[1], len(mean)), mean
        # At random: samples may come in turn, so that every fifth is of one class.
        drawn = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
        back = drawn % _HELD_OUT == 0
        tried = _ridges(given[~back], target[~back])
        errors = [(given[back] @ matrix + shift - target[back]).square().sum() for matrix, shift in tried]
        return _ridges(given, target)[int(torch.stack(errors).argmin())]


def _ridges(given: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """One for each of LAMBDAS, as product and shift; one decomposition for all."""
    centre, aim = given.mean(0), target.mean(0)
    centred = given - centre
    power, directions = torch.linalg.eigh(centred.T @ centred)
    power = power.clamp_min(0)
    turned = directions.T @ (centred.T @ (target - aim))
    scale = power.mean().clamp_min(torch.finfo(power.dtype).tiny)
    found = []
    for share in LAMBDAS:
        matrix = directions @ (turned / (power + share * scale)[:, None])
        found.append((matrix, aim - centre @ matrix))
    return found


@dataclass(frozen=True)
class CompletionImputer:
    """A completion's posterior means, before unit length is given to them."""

    completion: Completion

    @classmethod
    def of(cls, completion: Completion) -> CompletionImputer:
        return cls(replace(completion, unit=False))

    def impute(self, observed: Embeddings) -> dict[str, Tensor]:
        return dict(self.completion.complete(observed).embeddings)


def impute_all(imputer: Imputer, embeddings: Embeddings, observed: Tensor) -> dict[str, Tensor]:
    """What every sample lacks, pattern by pattern. observed bool [N, M]; hidden values are not read."""
    names = list(embeddings)
    made = {name: part.clone() for name, part in embeddings.items()}
    for pattern in torch.unique(observed, dim=0):
        rows = (observed == pattern).all(1)
        given = {name: embeddings[name][rows] for m, name in enumerate(names) if pattern[m]}
        for name, part in imputer.impute(given).items():
            made[name][rows] = part
    return made


def reconstructed(completion: Completion, observed: Embeddings) -> dict[str, Tensor]:
    """What the latent says of every modality, also of those that are there. [B, d], not of unit length"""
    names, loadings = completion.modalities, completion.model.loadings
    there = torch.tensor([name in observed for name in names])
    count = len(next(iter(observed.values())))
    spreads = completion.spreads or (None,) * len(names)
    parts = []
    for name, size, spread in zip(names, completion.sizes, spreads, strict=True):
        value = observed.get(name)
        if value is None:
            value = torch.zeros(count, size, dtype=torch.float64)
        elif spread is not None:
            value = spread.even(value)
        parts.append(value)
    latent = infer(completion.model, Samples(tuple(parts), there.expand(count, -1))).mean
    made = {}
    for name, loading, spread in zip(names, loadings, spreads, strict=True):
        value = latent @ loading.weight.T + loading.mean
        made[name] = value if spread is None else spread.uneven(value)
    return made
