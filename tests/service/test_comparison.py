"""What two states of a stream differ by."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from adapters.state import AdaptationState
from index.base import CalibrationMark
from service.comparison import FARTHEST, Side, compare
from service.engine import Engine
from service.errors import NotFound
from service.http.schemas import ComparisonShown
from service.tasks import Tasks
from service.tracks import Track
from tests.service.test_engine import ask, pictures, settled_version, texts
from tests.toy import ToyEncoder

TASKS = Tasks(ToyEncoder(), defaults={"retrieve": ("tcr", {})})
IMAGES = "things/image->text"


def changed(by: Mapping[str, Tensor] | None = None, direction: str = "image->text") -> Track:
    chosen = TASKS.defaults["retrieve"]
    state: AdaptationState = TASKS.source_state(chosen.method, direction)
    for name, delta in (by or {}).items():
        state.parameters[name] = state.parameters[name] + delta
    return Track("things", direction, state)


def side(*tracks: Track, name: str | None = None, method: str = "tcr") -> Side:
    chosen = TASKS.choose("retrieve", method, {})
    return Side(name, 7.0, {"retrieve": chosen}, {track.name: track for track in tracks})


def source() -> dict[str, Tensor]:
    return dict(changed().state.parameters)


def length(parameters: Mapping[str, Tensor]) -> float:
    return sum(float(value.square().sum()) for value in parameters.values()) ** 0.5


def test_the_distance_is_that_of_all_parameters_over_the_length_of_the_source() -> None:
    """One number of one parameter moves by 0.3: ||a - b|| = 0.3."""
    name = next(iter(source()))
    delta = torch.zeros_like(source()[name])
    delta.view(-1)[0] = 0.3
    found = compare(side(changed(), name="one"), side(changed({name: delta})), TASKS)["tracks"][IMAGES]
    assert found["in"] == "both"
    assert found["distance"] == pytest.approx(0.3 / length(source()), rel=1e-4)
    assert found["first"]["distance_from_source"] == 0.0
    assert found["second"]["distance_from_source"] == pytest.approx(found["distance"])
    assert found["parameters"] == [
        {"name": name, "size": delta.numel(), "distance": pytest.approx(found["distance"])}
    ]


def test_the_farthest_parameters_come_first_and_their_squares_add_up() -> None:
    moved = {name: torch.full_like(value, 0.01 * n) for n, (name, value) in enumerate(source().items(), 1)}
    found = compare(side(changed()), side(changed(moved)), TASKS)["tracks"][IMAGES]
    distances = [parameter["distance"] for parameter in found["parameters"]]
    assert distances == sorted(distances, reverse=True)
    assert len(distances) == min(FARTHEST, len(source()))
    if len(source()) <= FARTHEST:
        assert sum(value**2 for value in distances) ** 0.5 == pytest.approx(found["distance"])


def test_the_same_on_both_sides_is_nothing_apart() -> None:
    found = compare(side(changed()), side(changed()), TASKS)["tracks"][IMAGES]
    assert (found["distance"], found["parameters"]) == (0.0, [])


def test_tracks_of_one_side_only_are_listed_as_such() -> None:
    one, other = side(changed(), name="one"), side(changed(direction="text->image"))
    found = compare(one, other, TASKS)["tracks"]
    assert {name: track["in"] for name, track in found.items()} == {
        IMAGES: "first",
        "things/text->image": "second",
    }
    assert found[IMAGES]["second"] is None
    assert (found[IMAGES]["distance"], found[IMAGES]["parameters"]) == (None, [])


def test_other_methods_are_no_error() -> None:
    """The source method has no parameters of its own or the same: either way nothing breaks."""
    found = compare(side(changed(), name="one"), side(changed(), method="source"), TASKS)
    assert (found["first"]["method"], found["second"]["method"]) == ("tcr", "source")
    json.dumps(found, allow_nan=False)


def test_a_parameter_of_another_shape_is_left_out() -> None:
    other = changed()
    other.state.parameters["norm.bias"] = torch.ones(3)
    found = compare(side(changed()), side(other), TASKS)["tracks"][IMAGES]
    assert (found["distance"], found["parameters"]) == (0.0, [])


def test_where_nothing_can_be_compared_there_is_no_distance() -> None:
    other = changed()
    other.state.parameters.clear()
    found = compare(side(changed()), side(other), TASKS)["tracks"][IMAGES]
    assert (found["in"], found["distance"], found["parameters"]) == ("both", None, [])
    assert found["second"]["distance_from_source"] is None


def test_calibrations_and_settings_are_shown() -> None:
    one = Side(
        "one", 7.0, {"retrieve": TASKS.choose("retrieve", "tcr", {"steps": 2})}, {},
        {"retrieve": CalibrationMark("clean", "0123456789abcdef")},
    )  # fmt: skip
    shown = compare(one, side(), TASKS)["first"]
    assert shown == {
        "name": "one", "created_at": 7.0, "version": 0, "batches": 0, "method": "tcr",
        "settings": {"steps": 2}, "classify": None,
        "calibrations": {"retrieve": {"name": "clean", "digest": "0123456789abcdef"}},
    }  # fmt: skip


@pytest.mark.anyio
async def test_a_snapshot_is_compared_with_the_stream_and_with_another(engine: Engine) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "one")
    same = await engine.compare_snapshots("s", "one")
    assert (same["stream"], same["first"]["name"], same["second"]["name"]) == ("s", "one", None)
    assert same["tracks"][IMAGES]["distance"] == 0.0
    await ask(engine, pictures(16, start=16), adapt="sync", stream="s")
    await ask(engine, texts(16), adapt="sync", stream="s")
    await settled_version(engine, "s", 3)
    await engine.create_snapshot("s", "two")
    whole = await engine.compare_snapshots("s", "one", "two")
    ComparisonShown.model_validate(whole)  # as it is documented
    apart = whole["tracks"]
    now = (await engine.compare_snapshots("s", "one"))["tracks"]
    assert apart == now
    assert apart[IMAGES]["distance"] > 0
    assert (apart[IMAGES]["first"]["version"], apart[IMAGES]["second"]["version"]) == (1, 2)
    assert apart["things/text->image"]["in"] == "second"
    json.dumps(apart, allow_nan=False)


@pytest.mark.anyio
async def test_what_is_not_there_cannot_be_compared(engine: Engine) -> None:
    await ask(engine, pictures(16), adapt="sync", stream="s")
    await engine.create_snapshot("s", "one")
    for first, second in (("none", None), ("one", "none"), ("none", "one")):
        with pytest.raises(NotFound):
            await engine.compare_snapshots("s", first, second)
