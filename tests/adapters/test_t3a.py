"""T3A against lists and loops."""

from __future__ import annotations

import pytest
import torch

from adapters.base import BadSettings
from adapters.losses import softmax_entropy
from adapters.registry import make_classify_method
from adapters.t3a import T3A, T3ASettings
from tests.adapters.classifier import C, classifier, run, samples, stream

FEATURES, LABELS, ENTROPIES = "supports.features", "supports.labels", "supports.entropies"


def plain_t3a(limit: int, batches: int) -> list[torch.Tensor]:
    """Scores of every batch; supports as tuples (entropy, features) of each class."""
    model = classifier()
    rows, bias = model.weights["mlp_head.1.weight"], model.weights["mlp_head.1.bias"]
    supports: list[list[tuple[float, torch.Tensor]]] = [[] for _ in range(C)]

    def add(features: torch.Tensor, logits: torch.Tensor) -> None:
        for row, label, entropy in zip(features, logits.argmax(1), softmax_entropy(logits), strict=True):
            supports[int(label)].append((float(entropy), row))

    add(rows, rows @ rows.T + bias)
    answers = []
    for inputs in stream(batches):
        output = model.forward(inputs)
        add(output.features, output.logits)
        centres = []
        for label in range(C):
            supports[label] = sorted(supports[label], key=lambda entry: entry[0])[:limit]
            units = [row / row.norm() for _, row in supports[label]]
            centre = torch.stack(units).sum(0) if units else torch.zeros(rows.shape[1], dtype=rows.dtype)
            centres.append(centre / centre.norm().clamp(min=1e-12))
        answers.append(output.features @ torch.stack(centres).T)
    return answers


@pytest.mark.parametrize("limit", [1, 2, 20])
def test_three_batches_equal_lists_and_loops(limit: int) -> None:
    model, method = classifier(), T3A(T3ASettings(filter_k=limit))
    state, results = run(model, method, method.initial_state(model), stream(3))
    for result, expected in zip(results, plain_t3a(limit, 3), strict=True):
        torch.testing.assert_close(result.answer.answered, expected)
    assert int(torch.bincount(state.tensors[LABELS]).max()) <= limit


def test_supports_stand_class_by_class_the_surest_first() -> None:
    model, method = classifier(), T3A(T3ASettings(filter_k=3))
    state, _ = run(model, method, method.initial_state(model), stream(3))
    labels, entropies = state.tensors[LABELS].tolist(), state.tensors[ENTROPIES].tolist()
    assert sorted(zip(labels, entropies, strict=True)) == list(zip(labels, entropies, strict=True))


def test_the_first_supports_are_the_heads_rows_with_the_labels_that_they_predict() -> None:
    model = classifier()
    state = T3A().initial_state(model)
    rows = model.weights["mlp_head.1.weight"]
    assert torch.equal(state.tensors[FEATURES], rows)
    expected = (rows @ rows.T + model.weights["mlp_head.1.bias"]).argmax(1)
    assert torch.equal(state.tensors[LABELS], expected)


def test_a_class_without_support_scores_nothing() -> None:
    model, method = classifier(), T3A()
    state = method.initial_state(model)
    kept = state.tensors[LABELS] != 1
    for name in (FEATURES, LABELS, ENTROPIES):
        state.tensors[name] = state.tensors[name][kept]
    logits = method.predict(model, state, samples(3))
    assert torch.equal(logits[:, 1], torch.zeros(8, dtype=logits.dtype))
    assert (logits[:, 0] != 0).all()


def test_no_limit_keeps_the_worst_support_and_is_bounded_all_the_same() -> None:
    model = classifier()
    endless, bounded = T3A(T3ASettings(filter_k=-1)), T3A(T3ASettings(filter_k=-1, max_supports_per_class=4))
    state, _ = run(model, endless, endless.initial_state(model), stream(3))
    assert len(state.tensors[LABELS]) == C + 3 * 8
    state, _ = run(model, bounded, bounded.initial_state(model), stream(6))
    assert int(torch.bincount(state.tensors[LABELS], minlength=C).max()) == 4


def test_keeping_no_support_at_all_is_refused() -> None:
    with pytest.raises(BadSettings, match="filter_k"):
        make_classify_method("t3a", {"filter_k": 0})
    with pytest.raises(BadSettings, match="filter_k"):
        make_classify_method("t3a", {"filter_k": -2})
