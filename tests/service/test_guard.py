"""What the guard makes of batches, from figures alone; no encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from adapters.state import AdaptationState
from service.guard.canaries import CanaryCheck, mean_reciprocal_rank
from service.guard.guard import EVENTS_KEPT, Guard, Ruling
from service.guard.look import SMALLEST_SAMPLE, Look, sample_rows
from service.guard.reference import Reference
from service.guard.settings import GuardSettings

D = 32
HERE = np.zeros(D)
THERE = np.eye(D)[0] * 3
ELSEWHERE = np.eye(D)[1] * 3


def look(
    centre: np.ndarray = HERE,
    *,
    seed: int = 0,
    uniformity: float = 0.9,
    queries: int = 16,
    distance: float = 0.001,
    **rises: float,
) -> Look:
    """A batch around `centre`, where chance puts its own; `rises`: adapted minus source, surely."""
    frozen = {
        "source_likeness": -0.5,
        "modality_gap": 0.2,
        "uniformity": uniformity,
        "top1_similarity": 0.7,
        "entropy_nats": 0.1,
    }
    chance = np.random.default_rng(seed).normal(0, (1 / D / queries) ** 0.5, D)
    return Look(
        queries=queries,
        frozen=frozen,
        adapted={name: value + rises.get(name, 0.0) for name, value in frozen.items()},
        agreement=0.8,
        distance=distance,
        centre=centre + chance,
        rises={name: rises.get(name, 0.0) for name in ("source_likeness", "modality_gap", "top1_similarity")},
        errors={"source_likeness": 0.004, "modality_gap": 0.001, "top1_similarity": 0.001},
        scatter=1.0,
    )


def state(version: int = 3) -> AdaptationState:
    return AdaptationState("tcr", "print", {"w": torch.full((2,), float(version))}, version=version)


def guard(**settings: Any) -> Guard:
    return Guard(GuardSettings(**settings), stream="s", track="g/image->text")


def shown(start: Guard, looks: Sequence[Look]) -> tuple[Guard, list[Ruling]]:
    rulings = []
    for number, each in enumerate(looks):
        rulings.append(start.rule(each, state(number)))
        start = rulings[-1].guard
    return start, rulings


def usual(count: int, **changes: Any) -> list[Look]:
    return [look(seed=seed, **changes) for seed in range(count)]


def harmful(count: int) -> list[Look]:
    return usual(count, source_likeness=0.05)


def test_usual_batches_are_learned_from_without_an_event() -> None:
    after, rulings = shown(guard(), usual(40))
    assert all(ruling.learn and ruling.weights == "keep" and ruling.event is None for ruling in rulings)
    assert after.finding is None
    assert after.events == ()


def test_a_batch_of_near_duplicates_is_not_learned_from_and_leaves_the_reference() -> None:
    before, _ = shown(guard(), usual(6))
    ruling = before.rule(look(THERE, uniformity=0.1), state())
    assert (ruling.learn, ruling.weights) == (False, "keep")
    assert ruling.reason == "guard: its queries are almost the same (uniformity 0.10)"
    assert ruling.guard.reference is before.reference
    assert ruling.guard.pending is None


def test_near_duplicates_are_never_a_new_shift_however_long_they_last() -> None:
    before, _ = shown(guard(), usual(6))
    after, rulings = shown(before, [look(THERE, seed=n, uniformity=0.1) for n in range(20)])
    assert not any(ruling.learn for ruling in rulings)
    assert [event.action for event in after.events] == ["skip"]
    assert after.rule(look(), state()).learn


def test_near_duplicates_at_the_very_start_make_no_reference() -> None:
    after, rulings = shown(guard(), [look(uniformity=0.1)])
    assert not rulings[0].learn
    assert after.reference is None


def test_one_unusual_batch_is_skipped_and_the_next_usual_one_is_learned_from() -> None:
    before, _ = shown(guard(), usual(6))
    after, (odd, next_one) = shown(before, [look(THERE), look(seed=50)])
    assert not odd.learn
    assert odd.event is not None
    assert odd.event.finding == "unusual"
    assert odd.guard.reference is before.reference
    assert next_one.learn
    assert after.pending is None


def test_unusual_batches_that_resemble_each_other_are_a_new_shift_and_reset_all() -> None:
    before, _ = shown(guard(), usual(12))
    assert before.good is not None
    after, (first, second) = shown(before, [look(THERE, seed=1), look(THERE, seed=2)])
    assert not first.learn
    assert (second.learn, second.weights) == (True, "source")
    assert second.event is not None
    assert (second.event.finding, second.event.action) == ("changed", "reset")
    assert after.good is None
    assert after.reference is not None
    assert after.reference.batches == 2
    assert np.allclose(after.reference.centre, THERE, atol=0.5)


def test_unusual_batches_that_differ_are_no_new_shift() -> None:
    before, _ = shown(guard(), usual(6))
    _, rulings = shown(before, [look(THERE), look(ELSEWHERE), look(THERE)])
    assert [(ruling.learn, ruling.weights) for ruling in rulings] == [(False, "keep")] * 3


def test_a_change_is_noticed_again_after_a_change() -> None:
    looks = [*usual(6), *(look(THERE, seed=n) for n in range(6)), *usual(2)]
    _, rulings = shown(guard(), looks)
    resets = [number for number, ruling in enumerate(rulings) if ruling.weights == "source"]
    assert resets == [7, 13]


def test_a_stream_of_changing_topics_learns_that_its_batches_differ() -> None:
    """Centres spread ten times as far (squared) as chance spreads them: usual for this stream."""
    spread = np.random.default_rng(3).normal(0, (10 / D / 16) ** 0.5, (40, D))
    _, rulings = shown(guard(), [look(at, seed=n) for n, at in enumerate(spread)])
    assert all(ruling.learn for ruling in rulings)
    assert all(ruling.weights == "keep" for ruling in rulings)


def test_the_ratio_of_two_groups_is_computed_as_documented() -> None:
    """Centres 3 apart, scatter 1 each, 16 queries each: 9 / (1/16 + 1/16) = 72."""
    reference = Reference(np.zeros(2), 1.0, 16, 1, 1.0, {})
    far = Look(16, {}, {}, {}, {}, 1.0, 0.0, np.asarray([3.0, 0.0]), 1.0)
    assert reference.ratio(far) == pytest.approx(72)


def test_old_batches_fade_from_the_reference() -> None:
    reference = Reference.of(look(HERE))
    for seed in range(40):
        reference = reference.joined(look(THERE, seed=seed), window_batches=4)
    assert np.allclose(reference.centre, THERE, atol=0.2)
    assert reference.queries == 4 * 16


def test_harm_without_a_good_state_goes_back_to_the_source() -> None:
    _, rulings = shown(guard(), [*usual(1), *harmful(1)])
    assert (rulings[-1].learn, rulings[-1].weights) == (False, "source")
    event = rulings[-1].event
    assert event is not None
    assert (event.finding, event.action) == ("harm", "reset")
    assert event.figures["adapted.source_likeness"] == pytest.approx(-0.45)


def test_harm_goes_back_to_the_last_good_state_itself() -> None:
    before, _ = shown(guard(), usual(8))
    good = before.good
    assert good is not None
    _, rulings = shown(before, harmful(3))
    back = next(ruling for ruling in rulings if ruling.weights != "keep")
    assert back.weights == "good"
    assert back.good is good


@pytest.mark.parametrize(
    "rise", [{"source_likeness": 0.02}, {"modality_gap": 0.01}, {"top1_similarity": -0.03}, {"distance": 0.2}]
)
def test_each_sign_of_harm_alone_is_enough(rise: dict[str, Any]) -> None:
    _, rulings = shown(guard(), usual(4, **rise))
    assert any(ruling.event is not None and ruling.event.finding == "harm" for ruling in rulings)


@pytest.mark.parametrize(
    "fall",
    [{"source_likeness": -0.3}, {"modality_gap": -0.1}, {"top1_similarity": 0.03}, {"uniformity": 0.1}],
)
def test_change_for_the_better_is_no_harm(fall: dict[str, Any]) -> None:
    _, rulings = shown(
        guard(), usual(12, **{name: value for name, value in fall.items() if name != "uniformity"})
    )
    assert all(ruling.learn for ruling in rulings)


def test_a_rise_within_its_error_is_no_harm() -> None:
    before, _ = shown(guard(), usual(8))
    assert before.rule(look(seed=9, source_likeness=0.0115), state()).learn


def test_an_update_too_large_is_harm_before_any_figure_tells() -> None:
    before, _ = shown(guard(), usual(8))
    ruling = before.learned({"update_norm": 0.05, "modality_gap_target": 0.3}).rule(look(seed=9), state())
    assert (ruling.learn, ruling.weights) == (False, "good")
    assert ruling.reason == "guard: the last batch moved the parameters by 0.050"
    assert ruling.guard.update == 0.0
    assert before.learned({"update_norm": 0.01}).rule(look(seed=9), state()).learn


def test_rolling_figures_follow_slowly() -> None:
    before, _ = shown(guard(), usual(4))
    after, _ = shown(before, [look(seed=5, distance=0.009)])
    assert after.latest["distance"] == 0.009
    assert after.rolling["distance"] == pytest.approx(0.001 + 0.008 / 8)


def test_features_that_are_not_finite_are_harm_at_once() -> None:
    before, _ = shown(guard(), usual(8))
    ruling = before.rule(look(seed=9, source_likeness=float("nan")), state())
    assert (ruling.learn, ruling.weights) == (False, "good")
    assert all(np.isfinite(value) for rise in ruling.guard.rises for value in rise.values())


def test_a_good_state_that_harms_again_is_not_gone_back_to_twice() -> None:
    before, _ = shown(guard(cooldown_batches=0), usual(8))
    _, rulings = shown(before, harmful(8))
    assert [ruling.weights for ruling in rulings if ruling.weights != "keep"][:2] == ["good", "source"]


def test_after_a_rollback_nothing_is_learned_for_a_while_and_each_time_longer() -> None:
    current, rests = guard(cooldown_batches=2), []
    for _ in range(3):
        current, rulings = shown(current, [*usual(1), *harmful(1)])
        assert rulings[-1].weights == "source"
        rest = 0
        while not (ruling := current.rule(look(seed=rest, distance=0.0), state())).learn:
            assert "no learning" in ruling.reason
            current, rest = ruling.guard, rest + 1
        rests.append(rest)
    assert rests == [2, 4, 8]


def test_healthy_batches_make_a_good_state_and_forgive_earlier_strikes() -> None:
    current, _ = shown(guard(cooldown_batches=0), [*usual(1), *harmful(1)])
    assert current.strikes == 1
    after, _ = shown(current, usual(6))
    assert after.strikes == 0
    assert after.good is not None
    assert after.good.version == 3


def test_a_suspicious_state_is_no_harm_but_no_good_one_either() -> None:
    after, rulings = shown(guard(), usual(20, source_likeness=0.008))
    assert all(ruling.learn for ruling in rulings)
    assert after.good is None


def test_policy_off_watches_nothing() -> None:
    from adapters.registry import make_method

    assert not guard(policy="off").watches(make_method("tcr"))
    assert not guard().watches(make_method("source"))
    assert guard().watches(make_method("tcr_untrain"))


@pytest.mark.parametrize("looks", [[look(uniformity=0.1)], [look(THERE)], [look(THERE)] * 2, harmful(4)])
def test_policy_warn_learns_whatever_it_finds_and_says_so(looks: list[Look]) -> None:
    before, _ = shown(guard(policy="warn"), usual(6))
    after, rulings = shown(before, looks)
    assert all(ruling.learn and ruling.weights == "keep" for ruling in rulings)
    assert {event.action for event in after.events} == {"warn"}


def test_policy_freeze_keeps_the_weights_and_learns_again_when_the_finding_is_gone() -> None:
    before, _ = shown(guard(policy="freeze"), usual(6))
    after, rulings = shown(before, harmful(4))
    assert not rulings[-1].learn
    assert all(ruling.weights == "keep" for ruling in rulings)
    _, rulings = shown(after, usual(20))
    assert rulings[-1].learn


def test_policy_freeze_learns_nothing_from_a_new_shift_until_the_old_one_is_back() -> None:
    before, _ = shown(guard(policy="freeze"), usual(6))
    after, rulings = shown(before, [look(THERE, seed=n) for n in range(9)])
    assert not any(ruling.learn for ruling in rulings)
    assert [event.action for event in after.events] == ["skip", "freeze"]
    assert after.rule(look(seed=20), state()).learn


def test_policy_reset_goes_to_the_source_though_there_is_a_good_state() -> None:
    before, _ = shown(guard(policy="reset"), usual(8))
    assert before.good is not None
    _, rulings = shown(before, harmful(3))
    assert {ruling.weights for ruling in rulings} == {"source"}


def test_a_finding_that_lasts_is_one_event() -> None:
    before, _ = shown(guard(policy="freeze"), usual(6))
    after, rulings = shown(before, harmful(8))
    assert [event.action for event in after.events] == ["freeze"]
    assert sum(ruling.event is not None for ruling in rulings) == 1


def test_only_the_latest_events_are_kept() -> None:
    odd = [each for n in range(2 * EVENTS_KEPT) for each in (look(uniformity=0.1), look(seed=n))]
    after, rulings = shown(guard(), odd)
    assert sum(ruling.event is not None for ruling in rulings) == 2 * EVENTS_KEPT
    assert len(after.events) == EVENTS_KEPT
    assert after.events[-1].batch == len(odd) - 1


def test_a_batch_too_small_to_judge_is_learned_from_unless_learning_rests() -> None:
    before, _ = shown(guard(), usual(6))
    ruling = before.unjudged()
    assert ruling.learn
    assert ruling.guard.reference is before.reference
    resting = before.rule(look(seed=9, source_likeness=1.0), state()).guard
    assert not resting.unjudged().learn
    assert resting.unjudged().guard.cooldown == resting.cooldown - 1


def test_queries_that_the_source_model_cannot_encode_say_nothing_of_the_state() -> None:
    before, _ = shown(guard(), usual(6))
    broken = replace(look(seed=9, source_likeness=1.0), scatter=float("nan"))
    ruling = before.rule(broken, state())
    assert ruling.learn
    assert ruling.guard.reference is before.reference
    assert ruling.guard.rises == before.rises
    assert ruling.guard.latest == before.latest


def test_a_fall_of_the_canaries_is_harm() -> None:
    """Ranks 0, 0 and 1 under the source: (1 + 1 + 1/2) / 3; adapted one of them is lost: (1 + 1/2) / 3."""
    assert mean_reciprocal_rank([0, 0, 1]) == pytest.approx(2.5 / 3)
    check = CanaryCheck(adapted=[0, None, 1], source=[0, 0, 1])
    assert check.fall() == pytest.approx(1 / 3)
    before, _ = shown(guard(), usual(6))
    ruling = before.rule(look(seed=9), state(), check)
    assert not ruling.learn
    assert ruling.event is not None
    assert ruling.event.finding == "canaries"
    assert before.rule(look(seed=9), state(), CanaryCheck([0, 1], [0, 1])).learn


def test_canaries_are_due_every_so_many_batches() -> None:
    current, due = guard(canary_every_batches=3), []
    for each in usual(7):
        due.append(current.canaries_are_due)
        current = current.rule(each, state()).guard
    assert due == [True, False, False, True, False, False, True]


def test_a_guard_stored_as_json_rules_on_as_if_it_had_never_left() -> None:
    looks = [
        *usual(9),
        look(THERE),
        *usual(2),
        *harmful(3),
        *usual(4),
        *(look(ELSEWHERE, seed=n) for n in range(4)),
    ]
    whole, rulings = shown(guard(cooldown_batches=1), looks)
    for cut in range(len(looks)):
        current, early = shown(guard(cooldown_batches=1), looks[:cut])
        plain = json.loads(json.dumps(current.to_plain(), allow_nan=False))
        current = Guard.from_plain(
            plain,
            settings=current.settings,
            stream="s",
            track="g/image->text",
            good=current.good,
            dimension=D,
        )
        late = []
        for number in range(cut, len(looks)):
            late.append(current.rule(looks[number], state(number)))
            current = late[-1].guard
        assert [_told(ruling) for ruling in early + late] == [_told(ruling) for ruling in rulings]
        assert _timeless(current) == _timeless(whole)


def test_a_guard_that_was_altered_is_refused() -> None:
    plain = shown(guard(), usual(3))[0].to_plain()

    def read(changed: dict[str, Any], dimension: int = D) -> Guard:
        settings = GuardSettings()
        return Guard.from_plain(
            changed, settings=settings, stream="s", track="t", good=None, dimension=dimension
        )

    assert read(plain).batches == 3
    without = {name: value for name, value in plain.items() if name != "strikes"}
    short = {**plain["reference"], "centre": [0.0]}
    for wrong in (
        without,
        {**plain, "surplus": 1},
        {**plain, "strikes": -1},
        {**plain, "update": float("nan")},
        {**plain, "reference": short},
        {**plain, "reference": {**plain["reference"], "figures": {}}},
        {**plain, "rises": [{"modality_gap": [0.0, 0.0]}]},
    ):
        with pytest.raises(ValueError):
            read(wrong)
    with pytest.raises(ValueError):
        read(plain, dimension=D + 1)


def test_the_description_is_json_and_names_every_figure() -> None:
    current, _ = shown(guard(), [*usual(6), look(THERE)])
    described = json.loads(json.dumps(current.describe(), allow_nan=False))
    assert described["policy"] == "rollback"
    assert described["finding"] == "unusual"
    assert described["events"][0]["stream"] == "s"
    assert {"source.modality_gap", "adapted.modality_gap", "agreement", "distance", "ratio"} <= set(
        described["figures"]
    )


def test_the_sample_is_a_quarter_of_the_batch_evenly_spread() -> None:
    assert sample_rows(64, 0.25).tolist() == list(range(0, 64, 4))
    assert len(sample_rows(16, 0.25)) == SMALLEST_SAMPLE
    assert sample_rows(3, 0.25).tolist() == [0, 1, 2]
    assert len(sample_rows(40, 1.0)) == 40


@pytest.mark.parametrize(
    "wrong", [{"policy": "panic"}, {"unusal_ratio": 3}, {"max_distance": 0}, {"sample_fraction": 2}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GuardSettings(**wrong)


def _told(ruling: Ruling) -> tuple[Any, ...]:
    return ruling.learn, ruling.weights, ruling.reason, ruling.event is None


def _timeless(current: Guard) -> dict[str, Any]:
    plain = current.to_plain()
    return {**plain, "events": [{**event, "time": 0} for event in plain["events"]]}


def test_the_manual_names_every_setting_with_its_default() -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "guard.md").read_text()
    for name, field in GuardSettings.model_fields.items():
        assert f"| `{name}` | `{field.default}` | {field.description} |" in manual, name
