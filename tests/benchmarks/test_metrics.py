"""Recall and average precision against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metrics import (
    both_directions,
    mean_average_precision,
    recall_at,
    relevant_ranks,
    retrieval_metrics,
)


def test_ranks_count_the_items_that_score_higher() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.3], [0.4, 0.3, 0.2, 0.1]])
    ranks = relevant_ranks(scores, [[0, 2], [3]])
    assert [found.tolist() for found in ranks] == [[1, 3], [3]]


def test_equal_scores_rank_by_position() -> None:
    scores = np.array([[0.5, 0.5, 0.5]])
    assert [relevant_ranks(scores, [[i]])[0][0] for i in range(3)] == [0, 1, 2]


def test_recall_counts_a_query_once_its_best_relevant_item_is_in() -> None:
    """Best ranks 0, 4, 5, 30: one of four in the first 1, two in the first 5, three in the first 10."""
    ranks = [np.array(r) for r in ([0, 7], [4], [5, 6, 7], [30])]
    assert [recall_at(ranks, k) for k in (1, 5, 10)] == [25.0, 50.0, 75.0]


def test_average_precision_by_hand() -> None:
    """Ranks 1 and 3: (1/2 + 2/4) / 2 = 0.5. Rank 0: 1. Their mean is 75 %."""
    assert mean_average_precision([np.array([1, 3])]) == pytest.approx(50.0)
    assert mean_average_precision([np.array([1, 3]), np.array([0])]) == pytest.approx(75.0)


def test_perfect_retrieval_is_a_hundred_everywhere() -> None:
    ranks = relevant_ranks(np.eye(12), [[i] for i in range(12)])
    assert retrieval_metrics(ranks) == {"r1": 100.0, "r5": 100.0, "r10": 100.0, "map": 100.0}


def test_published_sums_add_the_six_recalls() -> None:
    """Recalls 0/100/100 and 100/100/100: mean 66.67 and 100, mean of all 83.33, sum 500."""
    figures = both_directions([np.array([2])], [np.array([0])])
    assert figures["txt_r_mean"] == 66.67
    assert figures["img_r_mean"] == 100.0
    assert figures["r_mean"] == 83.33
    assert figures["r_sum"] == 500.0
    assert figures["txt_map"] == 33.33


def test_a_query_without_a_relevant_item_is_refused() -> None:
    with pytest.raises(ValueError, match="without any relevant item"):
        relevant_ranks(np.zeros((1, 2)), [[]])


def test_scores_and_relevant_items_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 queries are scored, but 1"):
        relevant_ranks(np.zeros((2, 2)), [[0]])
