"""Recall at k and mean average precision of a retrieval run (methods.md 5.4).

Letters: B queries, G gallery items, R relevant items of a query. Ranks are 0-based. Equal scores rank by
gallery position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]

RECALL_AT = (1, 5, 10)


def relevant_ranks(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> list[Ranks]:
    """Ranks of each query's relevant items, ascending. scores [B, G] -> B arrays [R_i], R_i >= 1."""
    if len(scores) != len(relevant):
        raise ValueError(f"{len(scores)} queries are scored, but {len(relevant)} have relevant items")
    order = np.argsort(-scores, axis=1, kind="stable")
    rank_of = np.empty_like(order)
    np.put_along_axis(rank_of, order, np.arange(scores.shape[1])[None, :], axis=1)
    found = []
    for row, wanted in zip(rank_of, relevant, strict=True):
        if not len(wanted):
            raise ValueError("a query without any relevant item cannot be scored")
        found.append(np.sort(row[np.asarray(wanted)]))
    return found


def recall_at(ranks: Sequence[Ranks], k: int) -> float:
    """Percent of queries whose best-ranked relevant item is among the first k."""
    return 100.0 * float(np.mean([found[0] < k for found in ranks]))


def mean_average_precision(ranks: Sequence[Ranks]) -> float:
    """Percent: mean over queries of the mean over relevant items of (i + 1) / (rank_i + 1)."""
    precision = [np.mean(np.arange(1, len(found) + 1) / (found + 1)) for found in ranks]
    return 100.0 * float(np.mean(precision))


def retrieval_metrics(ranks: Sequence[Ranks]) -> Mapping[str, float]:
    """r1, r5, r10 and map, all percent and not rounded."""
    return {**{f"r{k}": recall_at(ranks, k) for k in RECALL_AT}, "map": mean_average_precision(ranks)}


def both_directions(image_ranks: Sequence[Ranks], text_ranks: Sequence[Ranks]) -> Mapping[str, float]:
    """The twelve figures of the papers' tables: txt_* image->text, img_* text->image, and their sums.

    Recalls and r_sum are not rounded; mAP and the means have 2 decimals, as published.
    """
    figures: dict[str, float] = {}
    for prefix, ranks in (("txt", image_ranks), ("img", text_ranks)):
        values = retrieval_metrics(ranks)
        recalls = {f"{prefix}_r{k}": values[f"r{k}"] for k in RECALL_AT}
        figures |= recalls
        figures[f"{prefix}_r_mean"] = round(sum(recalls.values()) / len(recalls), 2)
        figures[f"{prefix}_map"] = round(values["map"], 2)
    recalls = {name: figures[name] for name in figures if name.split("_r")[-1].isdigit()}
    figures["r_mean"] = round(sum(recalls.values()) / len(recalls), 2)
    figures["r_sum"] = sum(recalls.values())
    return figures
