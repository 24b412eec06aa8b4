"""Texts and pictures as one tower: features, gradients, who completes what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import adapters.completion
from adapters.completion import hand_on, remember, remembered
from adapters.optimizer import gradients
from adapters.registry import make_method
from adapters.state import AdaptationState
from encoders.base import MODALITIES, EncoderError
from service.composed import ComposedTower, composed_parameters, prepared, under
from service.messages import Query, Sample
from service.tasks import Tasks, is_track
from tests.adapters.streams import batch, completing_tower, inputs_for
from tests.service.calibrated import encoder_completion
from tests.toy import ToyEncoder, picture, sentence

KINDS = {"image": (False, True), "text": (True, False), "image+text": (True, True)}


def queries(kind: str, count: int = 6) -> list[Query]:
    text, image = KINDS[kind]
    return [
        Query(text=sentence(n) if text else None, pixels=picture(n) if image else None) for n in range(count)
    ]


def alone(encoder: ToyEncoder, asked: list[Query]) -> dict[str, Tensor]:
    """What each tower makes of what the queries have."""
    found: dict[str, Tensor] = {}
    for modality in MODALITIES:
        values: list[Any] = [query.pixels if modality == "image" else query.text for query in asked]
        if values[0] is not None:
            tower = encoder.towers[modality]
            found[modality] = tower.encode(tower.prepare(values))
    return found


def state_with(parameters: Mapping[str, Tensor], **more: Any) -> AdaptationState:
    return AdaptationState("tcr", "toy-0", dict(parameters), **more)


# Features


@pytest.mark.parametrize("kind", ["image", "text"])
def test_one_modality_without_completion_is_the_plain_tower(kind: str) -> None:
    encoder = ToyEncoder()
    tower = ComposedTower(encoder.towers)
    features, completed = tower.encode_completed(tower.prepare(queries(kind)))
    assert torch.equal(features, alone(encoder, queries(kind))[kind])
    assert completed is None


def test_both_without_completion_are_the_normalised_mean_of_the_unit_embeddings() -> None:
    encoder = ToyEncoder()
    tower = ComposedTower(encoder.towers)
    parts = alone(encoder, queries("image+text"))
    mean = F.normalize((parts["image"] + parts["text"]) / 2, dim=-1)
    torch.testing.assert_close(tower.encode(tower.prepare(queries("image+text"))), mean)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_anchors_of_what_is_given_and_what_is_imputed(kind: str) -> None:
    encoder, completion = ToyEncoder(), encoder_completion()
    tower = ComposedTower(encoder.towers, completion)
    features, completed = tower.encode_completed(tower.prepare(queries(kind)))
    parts = alone(encoder, queries(kind))
    assert completed is not None
    assert completed.observed == set(parts)
    for modality in MODALITIES:
        wanted = parts.get(modality, completion.complete(parts).embeddings[modality])
        assert torch.equal(completed.embeddings[modality], wanted)
    whole = completion.complete(parts).embeddings
    torch.testing.assert_close(features, F.normalize(whole["image"] + whole["text"], dim=-1))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_prepared_queries_are_queries_of_their_own(kind: str) -> None:
    tower = ComposedTower(ToyEncoder().towers, encoder_completion())
    inputs = tower.prepare(queries(kind))
    rows = torch.tensor([4, 0, 3])
    assert len(inputs) == 6
    assert len(inputs[rows]) == 3
    torch.testing.assert_close(tower.encode(inputs[rows]), tower.encode(inputs)[rows])


def test_queries_of_several_kinds_of_none_and_embeddings_are_refused() -> None:
    tower = ComposedTower(ToyEncoder().towers)
    for asked in ([], [*queries("text"), *queries("image")], [Query(embedding=torch.ones(16).numpy())]):
        with pytest.raises(EncoderError, match="one kind"):
            tower.prepare(asked)


def test_samples_and_queries_are_prepared_for_plain_towers_alike() -> None:
    tower = ToyEncoder().towers["text"]
    asked = [Sample(text=sentence(n)) for n in range(3)]
    assert torch.equal(prepared(tower, asked), prepared(tower, queries("text", 3)))


# Parameters


def test_parameters_are_those_of_both_towers_by_modality() -> None:
    encoder = ToyEncoder()
    found = composed_parameters(encoder)
    assert list(found) == ["image/norm.weight", "image/norm.bias", "text/norm.weight", "text/norm.bias"]
    assert found["text/norm.bias"] is encoder.towers["text"].parameters["norm.bias"]
    tower = ComposedTower(encoder.towers, encoder_completion())
    inputs = tower.prepare(queries("image+text"))
    torch.testing.assert_close(tower.encode(inputs, found), tower.encode(inputs))


def test_parameters_of_a_tower_replace_its_own_only() -> None:
    encoder = ToyEncoder()
    tower = ComposedTower(encoder.towers, encoder_completion())
    moved = {**tower.parameters, "image/norm.bias": torch.full((48,), 0.3)}
    texts, pictures = tower.prepare(queries("text")), tower.prepare(queries("image"))
    torch.testing.assert_close(tower.encode(texts, moved), tower.encode(texts))
    assert not torch.allclose(tower.encode(pictures, moved), tower.encode(pictures))


@pytest.mark.parametrize("completed", [True, False])
@pytest.mark.parametrize("lacks", ["", "image", "text"])
def test_the_gradient_is_that_of_finite_differences(lacks: str, completed: bool) -> None:
    whole = completing_tower()
    tower = whole if completed else ComposedTower(whole.towers)
    inputs = inputs_for(tower, batch(3, 5), lacks=lacks)
    names = [name for name in tower.parameters if not lacks or not name.startswith(f"{lacks}/")]
    towards = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def scalar(*values: Tensor) -> Tensor:
        given = {**tower.parameters, **dict(zip(names, values, strict=True))}
        return (tower.encode(inputs, given) * towards).sum()

    start = tuple(tower.parameters[name].clone().requires_grad_() for name in names)
    assert len(start) == (4 if not lacks else 2)
    assert torch.autograd.gradcheck(scalar, start)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_queries_of_one_modality_reach_only_their_towers_parameters(kind: str) -> None:
    tower = ComposedTower(ToyEncoder().towers, encoder_completion())
    values = {name: value.clone().requires_grad_() for name, value in tower.parameters.items()}
    features = tower.encode(tower.prepare(queries(kind)), values)
    reached = gradients(features.sum(), values)
    assert {name.partition("/")[0] for name in reached} == {kind}
    assert all(float(value.abs().sum()) > 0 for value in reached.values())


# Whose completion


def test_a_states_own_completion_wins_over_the_gallerys() -> None:
    towers = ToyEncoder().towers
    tower = ComposedTower(towers, encoder_completion(0))
    assert tower.under(None) is tower
    assert tower.under(state_with(tower.parameters)) is tower
    state = state_with(tower.parameters)
    remember(state, encoder_completion(1))
    assert tower.under(state).completion is encoder_completion(1)
    assert under(towers["text"], state) is towers["text"]
    inputs = tower.prepare(queries("text"))
    mine, theirs = tower.under(state).encode(inputs), tower.encode(inputs)
    assert not torch.allclose(mine, theirs)


def test_a_copy_of_a_state_keeps_its_completion_without_reading_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = state_with({})
    remember(state, encoder_completion())
    copy = state.clone()
    hand_on(state, copy, MODALITIES)
    monkeypatch.setattr(adapters.completion, "completion_of_tensors", None)
    assert remembered(copy, MODALITIES) is encoder_completion()
    hand_on(state_with({}), copy, MODALITIES)
    assert remembered(state_with({}), MODALITIES) is None


# Tracks


def test_tracks_of_composed_queries_begin_with_both_towers() -> None:
    encoder = ToyEncoder()
    tasks = Tasks(encoder)
    method = make_method("tcr", {})
    for direction in ("image+text->image", "image+text->text", "image+text->anchor"):
        state = tasks.source_state(method, direction)
        assert set(state.parameters) == set(composed_parameters(encoder))
        tasks.check(state, direction, tasks.choose("retrieve", "tcr", {}))
    for modality in MODALITIES:
        state = tasks.source_state(method, f"{modality}->text")
        assert state.parameters["norm.bias"].shape == encoder.towers[modality].parameters["norm.bias"].shape


@pytest.mark.parametrize(
    ("gallery", "direction", "there"),
    [
        ("shop", "image+text->anchor", True),
        ("shop", "image+text->image", True),
        ("shop", "image->text", True),
        ("shop", "text->anchor", False),
        ("shop", "embedding->anchor", False),
        ("shop", "image+text->label", False),
        ("labels:ab", "image+text->text", False),
        ("labels:ab", "image->text", True),
    ],
)
def test_there_are_tracks_of_what_is_encoded(gallery: str, direction: str, there: bool) -> None:
    assert is_track(gallery, direction) is there
