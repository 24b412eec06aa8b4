"""Files of streams with a classifier's states: what fits comes back, what was made up is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.base import BadSettings, StateMismatch
from adapters.registry import CLASSIFY_METHODS
from adapters.state import AdaptationState, StateFileError, pack_states, unpack_states
from encoders.cav_mae import CavMae
from service.messages import CLASSES
from service.stream_files import LABEL_SETS, pack_stream, unpack_stream
from service.tasks import CLASSIFIER_DIRECTION, Chosen, Tasks
from service.tracks import Stream, Track
from tests.adapters.classifier import classifier, run, stream
from tests.toy import ToyEncoder

KEY = f"{CLASSES}/{CLASSIFIER_DIRECTION}"
DTYPE = torch.float32


def model() -> CavMae:
    return classifier(DTYPE)


def tasks(method: str = "brimpr", settings: dict[str, Any] | None = None) -> Tasks:
    defaults: dict[Any, Any] = {"retrieve": ("tcr", {}), "classify": (method, settings or {})}
    return Tasks(ToyEncoder(), model(), defaults=defaults)  # type: ignore[arg-type]


def learned(method: str, settings: dict[str, Any] | None = None) -> Stream:
    """A stream whose classifier track has learned from three batches."""
    known = tasks(method, settings)
    chosen = known.defaults["classify"]
    state, _ = run(model(), chosen.method, chosen.method.initial_state(model()), stream(3, dtype=DTYPE))
    track = Track(CLASSES, CLASSIFIER_DIRECTION, state, applied=3)
    return Stream("s", dict(known.defaults), 0.0, 0.0, tracks={track.name: track})


def tensors(state: AdaptationState) -> dict[str, Tensor]:
    optimizer = state.optimizer
    groups = {
        "p": state.parameters, "t": state.tensors, "s": optimizer.steps, "m": optimizer.exp_avg,
        "v": optimizer.exp_avg_sq,
    }  # fmt: skip
    return {f"{letter}/{name}": value for letter, group in groups.items() for name, value in group.items()}


@pytest.mark.parametrize("method", list(CLASSIFY_METHODS))
def test_every_methods_state_comes_back_bit_for_bit(method: str) -> None:
    settings = {"continual": True} if method == "brimpr" else {}
    before = learned(method, settings)
    found = unpack_stream(pack_stream(before, kind="stream"), tasks())
    one, other = before.tracks[KEY].state, found.tracks[KEY].state
    assert tensors(one).keys() == tensors(other).keys()
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())
    assert (one.numbers, one.version, one.applied_batches) == (
        other.numbers,
        other.version,
        other.applied_batches,
    )
    assert found.methods["classify"].describe() == {"method": method, "settings": settings}


def test_prompts_of_other_settings_are_still_of_use() -> None:
    """Settings may change while the state stays."""
    before = learned("brimpr", {"prompts": 3, "prompt_layers": 2})
    before.methods["classify"] = tasks("brimpr", {"prompts": 7}).defaults["classify"]
    found = unpack_stream(pack_stream(before, kind="stream"), tasks())
    assert found.tracks[KEY].state.parameters["prompts_a"].shape == (2, 3, 16)


def test_a_file_from_before_classification_still_loads() -> None:
    plain = Stream("s", {"retrieve": Chosen("tcr", {}, None)}, 0.0, 0.0)
    states, header = unpack_states(pack_stream(plain, kind="stream"))
    del header["classify"]
    found = unpack_stream(pack_states(states, header=header), tasks())
    assert set(found.methods) == {"retrieve"}


Change = Callable[[AdaptationState], None]


def _put(group: str, name: str, value: Any) -> Change:
    return lambda state: getattr(state, group).__setitem__(name, value)


def _nan(state: AdaptationState) -> None:
    next(iter(state.parameters.values())).view(-1)[0] = float("nan")


def _moment(state: AdaptationState) -> None:
    state.optimizer.exp_avg["prompts_a"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("brimpr", _put("parameters", "prompts_a", torch.zeros(3, 10, 17))),
        ("brimpr", _put("parameters", "prompts_a", torch.zeros(3, 101, 16))),
        ("brimpr", _put("parameters", "prompts_a", torch.zeros(4, 10, 16))),
        ("brimpr", _put("parameters", "prompts_a", torch.zeros(0, 10, 16))),
        ("brimpr", _put("parameters", "prompts_a", torch.zeros(480))),
        ("brimpr", _put("parameters", "prompts_a", torch.zeros(3, 10, 16, dtype=torch.float64))),
        ("brimpr", _put("parameters", "prompts_x", torch.zeros(3, 10, 16))),
        ("brimpr", lambda state: state.parameters.pop("prompts_v")),
        ("brimpr", _nan),
        ("brimpr", _moment),
        ("brimpr", _put("tensors", "history.audio", torch.zeros(1001))),
        ("brimpr", _put("tensors", "history.audio", torch.zeros(2, 2))),
        ("brimpr", _put("tensors", "history.audio", torch.full((3,), float("inf")))),
        ("brimpr", _put("tensors", "history.audio", torch.zeros(3, dtype=torch.int64))),
        ("brimpr", _put("tensors", "anything", torch.zeros(3))),
        ("brimpr", _put("numbers", "draws", -1)),
        ("brimpr", _put("numbers", "draws", 0.5)),
        ("brimpr", _put("numbers", "seed", float("nan"))),
        ("brimpr", _put("numbers", "seed", "0")),
        ("brimpr", _put("numbers", "seed", 1 << 60)),
        ("brimpr", lambda state: state.numbers.pop("seed")),
        ("brimpr", lambda state: state.numbers.update({f"n{n}": 0.0 for n in range(40)})),
        ("brimpr", lambda state: setattr(state, "version", -1)),
        ("brimpr", lambda state: setattr(state, "fingerprint", "another")),
        ("brimpr", lambda state: setattr(state, "method", "tent")),
        ("tent", _put("parameters", "norm.weight", torch.zeros(17))),
        ("tent", lambda state: state.parameters.pop("norm.weight")),
        ("tent", _put("parameters", "blocks_u.0.attn.qkv.bias", torch.zeros(48))),
        ("eata", _put("tensors", "probability_average", torch.zeros(7))),
        ("t3a", _put("tensors", "supports.labels", torch.full((6,), 6))),
        ("t3a", lambda state: state.tensors.pop("supports.labels")),
        ("t3a", _put("tensors", "supports.entropies", torch.zeros(2))),
        ("t3a", _put("tensors", "supports.features", torch.zeros(6, 15))),
        ("t3a", _put("tensors", "supports.labels", torch.zeros(6))),
    ],
)
def test_a_state_that_was_made_up_is_refused(method: str, change: Change) -> None:
    forged = learned(method)
    change(forged.tracks[KEY].state)
    data = pack_stream(forged, kind="stream")
    with pytest.raises(StateMismatch):
        unpack_stream(data, tasks())
    left = unpack_stream(data, tasks(), whole=False)
    assert (set(left.methods), left.tracks) == ({"retrieve"}, {})
    assert left.refused


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(classify=None),
        lambda header: header.update(classify={"method": "brimpr"}),
        lambda header: header.update(classify={"method": ["brimpr"], "settings": {}}),
        lambda header: header.update(classify={"method": "nobody", "settings": {}}),
        lambda header: header.update(classify={"method": "brimpr", "settings": ["prompts"]}),
        lambda header: header.update(classify={"method": "brimpr", "settings": {"prompts": 0}}),
        lambda header: header.update(classify={"method": "brimpr", "settings": {"prompt_layers": 99}}),
        lambda header: header.update(classify="brimpr"),
    ],
)
def test_a_header_that_was_made_up_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    states, header = unpack_states(pack_stream(learned("brimpr"), kind="stream"))
    change(header)
    data = pack_states(states, header=header)
    with pytest.raises((StateFileError, StateMismatch, BadSettings)):
        unpack_stream(data, tasks())
    assert unpack_stream(data, tasks(), whole=False).refused


@pytest.mark.parametrize(
    ("gallery", "direction"),
    [
        (CLASSES, "image->text"),
        ("things", CLASSIFIER_DIRECTION),
        ("labels:0123456789ab", "image->image"),
        ("labels:0123456789ab", CLASSIFIER_DIRECTION),
        ("things", "audio->label"),
    ],
)
def test_a_track_that_there_cannot_be_is_refused(gallery: str, direction: str) -> None:
    forged = learned("brimpr")
    state = forged.tracks[KEY].state
    made_up = Track(gallery, direction, state)
    forged.tracks = {made_up.name: made_up}
    if (gallery, direction) == (CLASSES, "image->text"):
        with pytest.raises((StateFileError, StateMismatch)):
            unpack_stream(pack_stream(forged, kind="stream"), tasks())
        return
    with pytest.raises(StateFileError, match="unknown track"):
        unpack_stream(pack_stream(forged, kind="stream"), tasks())


def test_a_file_of_too_many_label_sets_is_refused() -> None:
    known = tasks()
    made = Stream("s", dict(known.defaults), 0.0, 0.0)
    for number in range(LABEL_SETS + 1):
        state = known.source_state(made.methods["retrieve"].method, "image->text")
        track = Track(f"labels:{number:012x}", "image->text", state)
        made.tracks[track.name] = track
    with pytest.raises(StateFileError, match="label sets"):
        unpack_stream(pack_stream(made, kind="stream"), known)
    made.tracks.popitem()
    assert len(unpack_stream(pack_stream(made, kind="stream"), known).tracks) == LABEL_SETS


def test_a_file_from_outside_has_so_many_tracks_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.stream_files.MOST_TRACKS", 2)
    known = tasks()
    made = Stream("s", dict(known.defaults), 0.0, 0.0)
    for number in range(3):
        state = known.source_state(made.methods["retrieve"].method, "image->text")
        track = Track(f"g{number}", "image->text", state)
        made.tracks[track.name] = track
    with pytest.raises(StateFileError, match="more than 2 tracks"):
        unpack_stream(pack_stream(made, kind="snapshot"), known)
    assert len(unpack_stream(pack_stream(made, kind="stream"), known, whole=False).tracks) == 3


def test_a_classifiers_choice_without_tracks_does_not_matter_where_there_is_none() -> None:
    made = Stream("s", dict(tasks("tent").defaults), 0.0, 0.0)
    found = unpack_stream(pack_stream(made, kind="snapshot"), Tasks(ToyEncoder()))  # type: ignore[arg-type]
    assert found.methods["classify"].describe() == {"method": "tent", "settings": {}}
    with pytest.raises(StateMismatch, match="classifier"):
        unpack_stream(pack_stream(learned("tent"), kind="snapshot"), Tasks(ToyEncoder()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("drift", {"modality_gap": "<img>"}),
        ("drift", [1.0]),
        ("drift", {"modality_gap": {"a": 1}}),
        ("losses", "none"),
        ("losses", {f"loss_{number}": 0.5 for number in range(1000)}),
        ("losses", {"total": 10**400}),
        ("losses", {"<b>": 1.0}),
        ("applied", float("inf")),
        ("applied", -1),
        ("skipped", True),
        ("undone", 10**300),
        ("shed", "3"),
    ],
)
def test_figures_and_counts_that_are_none_are_refused(field: str, value: Any) -> None:
    states, header = unpack_states(pack_stream(learned("tent"), kind="stream"))
    header["tracks"][KEY][field] = value
    with pytest.raises(StateFileError):
        unpack_stream(pack_states(states, header=header), tasks())


def test_figures_of_a_batch_that_was_undone_may_be_infinite() -> None:
    before = learned("tent")
    before.tracks[KEY].losses = {"total": float("inf")}
    assert unpack_stream(pack_stream(before, kind="stream"), tasks()).tracks[KEY].losses == {
        "total": float("inf")
    }


@pytest.mark.parametrize("depth_of", ["header", "description"])
def test_a_file_of_endless_brackets_is_refused(depth_of: str) -> None:
    brackets = b"[" * 100_000
    content = brackets if depth_of == "header" else b'{"__metadata__": {"attune": "%s"}}' % brackets
    with pytest.raises(StateFileError):
        unpack_stream(struct.pack("<Q", len(content)) + content, tasks())
