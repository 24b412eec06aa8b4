"""Methods by name; every misspelling and every value out of range is refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.base import BadSettings, UnknownMethod
from adapters.registry import METHODS, PRESETS, make_method
from adapters.tcr import TCR


def test_settings_are_laid_over_the_defaults() -> None:
    method = make_method("tcr", {"learning_rate": 0.01})
    assert method.settings.model_dump()["learning_rate"] == 0.01
    assert method.settings.model_dump()["temperature"] == 0.02
    assert make_method("tcr", {"steps": 5}).steps == 5


def test_the_defaults_are_the_released_ones() -> None:
    """K 3, T 0.02, t 0.1, lr 3e-4, decay 1e-4, share 0.3, 64 entries, 10 batches, epsilon 1e-3."""
    assert make_method("tcr").settings.model_dump() == {
        "steps": 3,
        "learning_rate": 3e-4,
        "weight_decay": 1e-4,
        "temperature": 0.02,
        "relative_temperature": None,
        "uniformity_temperature": 0.1,
        "uniformity_mode": "mul",
        "memory_fraction": 0.3,
        "memory_capacity": 64,
        "memory_batches": 10,
        "entropy_epsilon": 1e-3,
        "weight_rem": 1.0,
        "weight_uni": 1.0,
        "weight_emg": 1.0,
        "predict_after_update": False,
        "learn_from_shift": 0.0,
        "shifted_learning_rate": None,
    }
    untrain = make_method("tcr_untrain").settings.model_dump()
    assert untrain["scale"] == 2.0
    assert (untrain["memory_fraction"], untrain["memory_capacity"], untrain["memory_batches"]) == (
        0.3,
        64,
        10,
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trc", "did you mean 'tcr'"),
        ("tcr_untrained", "did you mean 'tcr_untrain'"),
        ("", "unknown method ''; there are source"),
        ("TCR", "there are source, tcr"),
    ],
)
def test_an_unknown_method_names_what_there_is(name: str, message: str) -> None:
    with pytest.raises(UnknownMethod, match=message):
        make_method(name)


@pytest.mark.parametrize("name", list(METHODS))
def test_an_unknown_setting_is_refused_by_every_method(name: str) -> None:
    with pytest.raises(BadSettings, match=f"{name} has no setting 'nonsense'"):
        make_method(name, {"nonsense": 1})


def test_a_misspelt_setting_names_the_nearest() -> None:
    with pytest.raises(BadSettings, match="did you mean 'learning_rate'"):
        make_method("tcr", {"learning_rat": 0.1})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("steps", 21),
        ("steps", 1.5),
        ("learning_rate", 0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("temperature", 0),
        ("weight_decay", -0.1),
        ("uniformity_mode", "both"),
        ("memory_fraction", 0),
        ("memory_fraction", 1.1),
        ("memory_capacity", 0),
        ("memory_batches", 0),
        ("weight_rem", -1),
        ("weight_rem", None),
        ("predict_after_update", "perhaps"),
    ],
)
def test_a_value_out_of_range_names_method_setting_and_value(setting: str, value: Any) -> None:
    with pytest.raises(BadSettings, match=f"tcr: {setting}: .*got ") as caught:
        make_method("tcr", {setting: value})
    assert repr(value) in str(caught.value)


def test_a_preset_stands_for_settings_and_others_go_over_it() -> None:
    attune = make_method("tcr", {"preset": "attune", "steps": 2}, model_temperature=0.05)
    assert isinstance(attune, TCR)
    assert attune.steps == 2
    assert attune.learn_from_shift == PRESETS["tcr"]["attune"]["learn_from_shift"]
    assert attune.temperature == pytest.approx(0.05 * PRESETS["tcr"]["attune"]["relative_temperature"])
    assert make_method("tcr", {"preset": "paper"}).settings == make_method("tcr").settings
    assert make_method("tent", {"preset": "paper"}).settings == make_method("tent").settings


def test_an_unknown_preset_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(BadSettings, match="tcr has no preset 'best'; it has paper, attune"):
        make_method("tcr", {"preset": "best"})


def test_a_relative_temperature_needs_the_model() -> None:
    relative = make_method("tcr", {"relative_temperature": 2.0})
    assert isinstance(relative, TCR)
    assert relative.temperature == relative.settings.temperature
    told = make_method("rest_like", {"relative_temperature": 2.0}, model_temperature=0.1)
    assert isinstance(told, TCR)
    assert told.temperature == pytest.approx(0.2)
