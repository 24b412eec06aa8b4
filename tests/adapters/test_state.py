"""The state's file form: exact, and refused when anything of it is missing or altered."""

from __future__ import annotations

import random

import pytest
import torch

from adapters.registry import make_method
from adapters.state import (
    APPLIED_BATCHES_KEPT,
    AdaptationState,
    StateFileError,
    pack_states,
    unpack_header,
    unpack_states,
)
from tests.adapters.streams import SmallTower, assert_identical, batch, everything, run, start


@pytest.fixture(scope="module")
def adapted() -> AdaptationState:
    tower, method = SmallTower(), make_method("tcr", {"steps": 1})
    return run(method, start(method, tower), [batch(0), batch(1)], tower)[0]


def small() -> AdaptationState:
    return AdaptationState(
        method="tcr",
        fingerprint="f",
        parameters={"w": torch.tensor([1.0, -0.0])},
        tensors={"t": torch.tensor([[3], [4]])},
        numbers={"ema": 0.1, "unset": float("nan")},
        version=4,
        batches=5,
        applied_batches=("a", "b"),
    )


def test_a_round_trip_keeps_every_bit(adapted: AdaptationState) -> None:
    data = pack_states(
        {"gallery/image->text": adapted, "gallery/text->image": small()}, header={"stream": "s"}
    )
    states, header = unpack_states(data)
    assert list(states) == ["gallery/image->text", "gallery/text->image"]
    assert header == {"stream": "s"}
    assert_identical(states["gallery/image->text"], adapted)
    other = states["gallery/text->image"]
    assert torch.equal(torch.signbit(other.parameters["w"]), torch.tensor([False, True]))
    assert other.numbers["ema"] == 0.1
    assert other.numbers["unset"] != other.numbers["unset"]
    assert other.applied_batches == ("a", "b")


def test_no_state_at_all_is_a_file_too() -> None:
    assert unpack_states(pack_states({}, header={"stream": "empty"})) == ({}, {"stream": "empty"})


def test_tensors_that_are_empty_or_not_contiguous_survive() -> None:
    state = small()
    state.tensors["empty"] = torch.empty(0, 3)
    state.tensors["turned"] = torch.arange(6.0).reshape(2, 3).T
    states, _ = unpack_states(pack_states({"k": state}, header={}))
    assert states["k"].tensors["empty"].shape == (0, 3)
    assert torch.equal(states["k"].tensors["turned"], torch.arange(6.0).reshape(2, 3).T)


def test_the_header_can_be_read_alone(adapted: AdaptationState) -> None:
    data = pack_states({"k": adapted}, header={"stream": "s", "made": 1})
    assert unpack_header(data) == {"stream": "s", "made": 1}


def test_a_file_cut_anywhere_is_refused() -> None:
    data = pack_states({"k": small()}, header={"stream": "s"})
    for length in range(len(data)):
        with pytest.raises(StateFileError):
            unpack_states(data[:length])


def test_a_file_with_anything_behind_it_is_refused() -> None:
    with pytest.raises(StateFileError):
        unpack_states(pack_states({"k": small()}, header={}) + b"\0")


def test_a_flipped_bit_anywhere_is_refused() -> None:
    """Every byte of the file once, one random bit of it."""
    data = pack_states({"k": small()}, header={"stream": "s"})
    chance = random.Random(0)
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1 << chance.randrange(8)
        with pytest.raises(StateFileError):
            unpack_states(bytes(altered))


@pytest.mark.parametrize("data", [b"", b"{}", b"PK\x03\x04" * 10, b"\xff" * 64, bytes(64)])
def test_what_is_no_state_file_is_refused(data: bytes) -> None:
    with pytest.raises(StateFileError):
        unpack_states(data)
    with pytest.raises(StateFileError):
        unpack_header(data)


def test_other_safetensors_files_are_refused() -> None:
    from safetensors.torch import save

    for metadata in (None, {"format": "pt"}, {"attune": "[]"}, {"attune": "{}"}, {"attune": "no json"}):
        with pytest.raises(StateFileError):
            unpack_states(save({"a": torch.zeros(2)}, metadata=metadata))


def test_a_newer_format_says_which_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.state.FORMAT_VERSION", 99)
    data = pack_states({"k": small()}, header={})
    monkeypatch.undo()
    with pytest.raises(StateFileError, match="format 99; this version of Attune reads 1"):
        unpack_states(data)


def test_a_clone_shares_nothing(adapted: AdaptationState) -> None:
    before = everything(adapted)
    clone = adapted.clone()
    assert_identical(clone, adapted)
    for group in (clone.parameters, clone.tensors, clone.optimizer.exp_avg, clone.optimizer.steps):
        for value in group.values():
            value.add_(1)
    clone.numbers["new"] = 1.0
    clone.mark_applied("z")
    assert_identical(adapted, before)


def test_the_latest_applied_batches_are_remembered() -> None:
    state = small()
    for number in range(APPLIED_BATCHES_KEPT + 10):
        state.mark_applied(str(number))
    assert len(state.applied_batches) == APPLIED_BATCHES_KEPT
    assert state.applied_batches[0] == "10"
    assert state.applied_batches[-1] == str(APPLIED_BATCHES_KEPT + 9)
    assert state.version == 4 + APPLIED_BATCHES_KEPT + 10


def test_byte_size_counts_every_tensor() -> None:
    """Two fp32 parameters and two int64 values: 8 + 16 bytes."""
    assert small().byte_size() == 24


def test_moving_keeps_the_values(adapted: AdaptationState) -> None:
    assert_identical(adapted.to("cpu"), adapted)
