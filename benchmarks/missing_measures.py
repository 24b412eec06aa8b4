"""The figures of benchmarks.missing: what is hidden, and how good what was made in its place is.

Letters: n samples, M modalities, d features, Q queries, G gallery items, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.anchors import anchor_shift, anchors_of
from benchmarks.missing_imputers import Embeddings

FUSED = "fused"
"""The modality that is there where all others are."""


def hide(count: int, names: Sequence[str], hideable: Sequence[str], rate: float, seed: int) -> Tensor:
    """bool [n, M]: which modalities are left where each of `hideable` is hidden from a share `rate`.

    A sample that would lose all keeps one, drawn at random. So with two modalities that are both hidden at a
    rate r, r - r^2 / 2 of the parts are missing.
    """
    random = torch.Generator().manual_seed(seed)
    free = [name for name in names if name != FUSED]
    hidden = torch.rand(count, len(free), generator=random) < rate
    hidden &= torch.tensor([name in hideable for name in free])
    spared = F.one_hot(torch.randint(len(free), (count,), generator=random), len(free)).bool()
    observed = ~hidden | (hidden.all(1, keepdim=True) & spared)
    if FUSED in names:
        observed = torch.cat([observed, observed.all(1, keepdim=True)], dim=1)
    return observed


def patterns_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every set of modalities that an incomplete sample can have."""
    free = [name for name in names if name != FUSED]
    return [
        tuple(name for place, name in enumerate(free) if bits >> place & 1)
        for bits in range(1, (1 << len(free)) - 1)
    ]


def unit_columns(embeddings: Embeddings) -> Tensor:
    """[n, d, M]"""
    return torch.stack([F.normalize(part, dim=1) for part in embeddings.values()], dim=2)


def joined(columns: Tensor) -> Tensor:
    """Anchors [n, d] of columns [n, d, M] of any lengths, as `Completion.anchors` makes them of unit ones."""
    if columns.shape[2] <= 2:
        return F.normalize(columns.sum(2), dim=1)
    return anchors_of(columns).vectors


def imputation(
    made: Embeddings, truth: Embeddings, means: Embeddings, observed: Tensor
) -> dict[str, dict[str, float]]:
    """Of each modality that is hidden somewhere: squared error over that of `means`, cosine to the truth."""
    found = {}
    for m, (name, right) in enumerate(truth.items()):
        rows = ~observed[:, m]
        if bool(rows.any()):
            wrong = (made[name][rows] - right[rows]).square().sum()
            spread = (right[rows] - means[name]).square().sum()
            cosine = F.cosine_similarity(made[name][rows], right[rows], dim=1).mean()
            found[name] = {"error": float(wrong / spread), "cosine": float(cosine)}
    return found


def shift_before(columns: Tensor, observed: Tensor) -> dict[str, float]:
    """Anchors of what is there against complete ones: mean distance and bounds over incomplete samples.

    columns [n, d, M] complete, observed bool [n, M]. outside: samples beyond a bound, counted.
    """
    parts: dict[str, list[Tensor]] = {}
    for pattern in torch.unique(observed, dim=0):
        if bool(pattern.all()):
            continue
        shift = anchor_shift(columns[(observed == pattern).all(1)], pattern)
        slack = 1e-6
        outside = (shift.distance < shift.lower - slack) | (shift.distance > shift.upper + slack)
        values = {
            "shift": shift.distance,
            "lower": shift.lower,
            "upper": shift.upper.clamp(max=2**0.5),
            "published_upper": shift.published_upper.clamp(max=2**0.5),
            "outside": outside.double(),
        }
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    means = {name: float(torch.cat(values).mean()) for name, values in parts.items()}
    if means:
        means["outside"] = float(torch.cat(parts["outside"]).sum())
    return means


def shift_after(columns: Tensor, made: Tensor, observed: Tensor) -> float | None:
    """Mean distance of the anchors of made columns from complete ones, over incomplete samples."""
    rows = ~observed.all(1)
    if not bool(rows.any()):
        return None
    cosine = (anchors_of(columns[rows]).vectors * anchors_of(made[rows]).vectors).sum(1)
    return float((2 - 2 * cosine.abs().clamp(max=1)).sqrt().mean())


def ranks(scores: Tensor) -> Tensor:
    """Of item i for query i, from 0: scores [Q, Q] -> int64 [Q]. An item with score -inf is not found."""
    own = scores.diagonal()[:, None]
    places = torch.arange(len(scores), device=scores.device)
    before = (scores > own) | ((scores == own) & (places < places[:, None]))
    return torch.where(own[:, 0].isinf(), len(scores), before.sum(1))


def recalls(places: Tensor) -> dict[str, float]:
    """Percent of queries whose item is first, and among the first ten."""
    return {f"r{k}": 100 * float((places < k).double().mean()) for k in (1, 10)}


def area(scores: Tensor, wrong: Tensor) -> float | None:
    """How well scores rank errors before the rest: area under the ROC curve; None where all are alike."""
    count = int(wrong.sum())
    if count in (0, len(wrong)):
        return None
    order = _mean_ranks(scores)
    return float((order[wrong].sum() - count * (count - 1) / 2) / (count * (len(wrong) - count)))


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's, None where one of them is constant."""
    a, b = (_mean_ranks(values) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = a.norm() * b.norm()
    return float(a @ b / size) if float(size) > 0 else None


def _mean_ranks(values: Tensor) -> Tensor:
    """From 0; equal values share the mean of their places."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() + 1) / 2)[inverse]


def answer_figures(logits: Tensor, labels: Tensor, novelty: Tensor | None) -> dict[str, float | None]:
    """Accuracy, and how far confidence can be trusted. logits [n, C]

    accuracy, confident_half     percent; of all, and of the half with the largest probability
    calibration_error            points between confidence and accuracy, mean over tenths of the samples
    area_probability, area_novelty   how well 1 - probability, or novelty, ranks the errors (0.5: not at all)
    """
    probability, guess = logits.softmax(1).max(1)
    right = guess == labels
    order = probability.argsort(descending=True)
    gaps = [
        (probability[part].mean() - right[part].double().mean()).abs() * len(part) / len(order)
        for part in order.chunk(10)
    ]
    return {
        "accuracy": 100 * float(right.double().mean()),
        "confident_half": 100 * float(right[order[: max(1, len(order) // 2)]].double().mean()),
        "calibration_error": 100 * float(torch.stack(gaps).sum()),
        "area_probability": area(1 - probability, ~right),
        "area_novelty": None if novelty is None else area(novelty, ~right),
    }


def by_parts(places: Tensor, observed: Tensor, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Recalls by what the wanted items have: only a picture, only texts, both."""
    image = observed[:, list(names).index("image")]
    text = observed[:, [m for m, name in enumerate(names) if name != "image"]].any(1)
    kinds: Mapping[str, Tensor] = {
        "only a picture": image & ~text,
        "only text": text & ~image,
        "both": image & text,
    }
    return {
        kind: {**recalls(places[rows]), "items": int(rows.sum())}
        for kind, rows in kinds.items()
        if bool(rows.any())
    }
