"""The reference itself, by hand, and that the comparison notices wrong answers."""

from __future__ import annotations

import numpy as np
import pytest

from index.exact import disagreement, exact_search, recall

MATRIX = np.array([[1, 0], [0, 1], [0.6, 0.8], [1, 0]], dtype=np.float32)
QUERY = np.array([[1, 0]], dtype=np.float32)


def test_reference_orders_by_score_then_position():
    """Products with (1, 0): 1, 0, 0.6, 1."""
    scores, positions = exact_search(MATRIX, QUERY, 3)
    assert positions.tolist() == [[0, 3, 2]]
    assert scores[0].tolist() == pytest.approx([1, 1, 0.6])


def test_reference_pads_what_is_not_allowed():
    scores, positions = exact_search(MATRIX, QUERY, 3, allowed=np.array([False, True, True, False]))
    assert positions.tolist() == [[2, 1, -1]]
    assert np.isneginf(scores[0, 2])


def test_tied_rows_may_stand_for_each_other():
    assert disagreement(MATRIX, QUERY, (np.float32([[1]]), np.array([[3]])), k=1) is None


@pytest.mark.parametrize(
    ("scores", "positions", "complaint"),
    [
        ([[1.0, 1.0]], [[0, 0]], "twice"),
        ([[1.0, 0.6]], [[0, 2]], "not the best"),
        ([[1.0, 1.0]], [[0, 2]], "do not belong"),
        ([[1.0]], [[0]], "shapes"),
        ([[1.0, -np.inf]], [[0, 3]], "coincide"),
    ],
)
def test_wrong_answers_are_noticed(scores, positions, complaint):
    found = (np.array(scores, dtype=np.float32), np.array(positions, dtype=np.int64))
    assert complaint in disagreement(MATRIX, QUERY, found, k=2)


def test_forbidden_answer_is_noticed():
    found = (np.float32([[1]]), np.array([[0]]))
    allowed = np.array([False, True, True, True])
    assert "forbidden" in disagreement(MATRIX, QUERY, found, k=1, allowed=allowed)


def test_recall_counts_shares_without_pads():
    """First row: 1 of 2; second: 1 of 1."""
    assert recall(np.array([[1, 2], [3, -1]]), np.array([[2, 5], [3, -1]])) == 0.75
