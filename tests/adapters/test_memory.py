"""What TCR's memory keeps, in which order, and its rules at the edges."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.losses import source_likeness
from adapters.memory import Memory, read_memory, remember, source_like_pairs
from adapters.state import AdaptationState


def empty() -> AdaptationState:
    return AdaptationState(method="tcr", fingerprint="none", parameters={})


def pairs(seed: int, size: int = 10) -> tuple[Tensor, Tensor]:
    """Queries and candidates, [size, 6] unit rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(2, size, 6, generator=generator, dtype=torch.float64), dim=-1)
    return rows[0], rows[1]


def add(
    state: AdaptationState, seed: int, *, size: int = 10, fraction: float = 0.3, capacity: int = 64
) -> Memory:
    queries, candidates = pairs(seed, size)
    remember(state, queries, candidates, fraction=fraction, capacity=capacity, temperature=0.02)
    memory = read_memory(state)
    assert memory is not None
    return memory


def test_a_new_state_has_no_memory() -> None:
    assert read_memory(empty()) is None


def test_a_batch_gives_its_most_source_like_pairs_in_ascending_order() -> None:
    queries, candidates = pairs(0)
    likeness = source_likeness(queries, candidates)
    order = likeness.argsort()[:3]
    memory = add(empty(), 0)
    assert len(memory) == 3
    assert torch.equal(memory.likeness, likeness[order])
    assert torch.equal(memory.queries, queries[order])
    assert torch.equal(memory.candidates, candidates[order])


def test_remembered_entropy_is_over_the_candidates_of_the_batch() -> None:
    """Two orthogonal pairs at temperature 1 / log 3: logits (log 3, 0), so H of (3/4, 1/4) for both."""
    corners = torch.eye(2, dtype=torch.float64)
    memory = source_like_pairs(corners, corners, count=2, temperature=1 / math.log(3))
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(memory.entropy, torch.full((2,), expected, dtype=torch.float64))


@pytest.mark.parametrize(("size", "count"), [(64, 19), (10, 3), (4, 1), (3, 1), (1, 1)])
def test_the_share_is_rounded_down_but_an_empty_memory_takes_one(size: int, count: int) -> None:
    assert len(add(empty(), 0, size=size)) == count


def test_a_batch_too_small_for_an_entry_leaves_a_filled_memory_alone() -> None:
    state = empty()
    before = add(state, 0)
    after = add(state, 1, size=3)
    assert torch.equal(before.likeness, after.likeness)
    assert torch.equal(before.queries, after.queries)


def test_below_capacity_entries_stay_in_order_of_arrival() -> None:
    state = empty()
    first, second = add(empty(), 1).likeness, add(empty(), 2).likeness
    add(state, 1)
    memory = add(state, 2)
    assert torch.equal(memory.likeness, torch.cat([first, second]))
    assert not torch.equal(memory.likeness, memory.likeness.sort().values), (
        "choose seeds that tell the orders apart"
    )


def test_a_full_memory_keeps_the_smallest_likeness_ascending() -> None:
    state = empty()
    everything = torch.cat([add(empty(), seed).likeness for seed in range(4)])
    for seed in range(4):
        memory = add(state, seed, capacity=7)
    assert torch.equal(memory.likeness, everything.sort().values[:7])


def test_reaching_the_capacity_exactly_already_sorts() -> None:
    state = empty()
    add(state, 1, capacity=6)
    memory = add(state, 2, capacity=6)
    assert len(memory) == 6
    assert torch.equal(memory.likeness, memory.likeness.sort().values)


def test_entries_of_equal_likeness_keep_the_older_one() -> None:
    state = empty()
    first = add(state, 3, fraction=0.2, capacity=3)
    queries, candidates = pairs(3)
    state.tensors["memory.entropy"] = torch.tensor([7.0, 8.0], dtype=torch.float64)
    remember(state, queries, candidates, fraction=0.2, capacity=3, temperature=0.02)
    memory = read_memory(state)
    assert memory is not None
    assert torch.equal(memory.likeness[:2], first.likeness[[0, 0]])
    assert memory.entropy[0] == 7.0
    assert memory.entropy[2] == 8.0


def test_all_four_parts_move_together() -> None:
    state = empty()
    for seed in range(4):
        memory = add(state, seed, capacity=7)
    originals = [pairs(seed) for seed in range(4)]
    for query, candidate in zip(memory.queries, memory.candidates, strict=True):
        found = [
            torch.equal(candidates[(queries == query).all(1)][0], candidate)
            for queries, candidates in originals
            if (queries == query).all(1).any()
        ]
        assert found == [True]


def test_entries_are_copies() -> None:
    state = empty()
    queries, candidates = pairs(0)
    remember(state, queries, candidates, fraction=0.3, capacity=64, temperature=0.02)
    before = state.tensors["memory.queries"].clone()
    queries.zero_()
    assert torch.equal(state.tensors["memory.queries"], before)


def test_gap_and_ceiling_by_hand() -> None:
    """Queries all (1, 0), candidates all (0, 1): sqrt(2) apart. The ceiling is the largest entropy."""
    right = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    memory = Memory(torch.zeros(3), right, right.flip(1), torch.tensor([0.2, 0.9, 0.4]))
    assert memory.gap().item() == pytest.approx(math.sqrt(2))
    assert memory.entropy_ceiling_nats().item() == pytest.approx(0.9)
