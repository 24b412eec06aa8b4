"""BriMPR beyond its goldens, which tests/benchmarks/test_replay.py replays."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from adapters.alignment import adaptive_temperature, instance_contrast, statistics_distance
from adapters.base import BadSettings, StepReport
from adapters.brimpr import BriMPR, BriMPRSettings, History
from adapters.calibration import Calibration, LayerStatistics, source_statistics
from adapters.classification import Answer, CalibrationMissing
from adapters.state import AdaptationState, pack_states, unpack_states
from benchmarks.brimpr_cost import packed_step, plain_step
from encoders.audio import AudioSpec
from encoders.audiovisual import AVInputs
from encoders.cav_mae import CavMae, CavMaeConfig, fresh_weights
from encoders.preprocessing import ImageSpec

CONFIG = CavMaeConfig(
    labels=("a", "b", "c"),
    width=16,
    heads=2,
    depth=3,
    audio=AudioSpec(frames=48, mel_bins=32),
    image=ImageSpec(height=32, width=32),
)


def inputs(count: int = 6, seed: int = 0, shift: float = 0.0) -> AVInputs:
    random = torch.Generator().manual_seed(seed)
    return AVInputs(
        torch.randn(count, 48, 32, generator=random) + shift,
        torch.randn(count, 3, 32, 32, generator=random) + shift,
    )


@pytest.fixture
def model() -> CavMae:
    made = CavMae(CONFIG, fresh_weights(CONFIG, seed=1))
    made.calibration = Calibration(made.fingerprint, source_statistics(made, inputs(32, seed=9)))
    return made


def leaves(state: AdaptationState) -> AdaptationState:
    copy = state.clone()
    for value in copy.parameters.values():
        value.requires_grad_(True)
    return copy


def learn(
    method: BriMPR, model: CavMae, state: AdaptationState, batch: AVInputs
) -> tuple[Tensor, StepReport]:
    """Logits and report; changes `state`."""
    for value in state.parameters.values():
        value.requires_grad_(True)
    slices, logits = method.adapt(model, state, batch), None
    while True:
        try:
            found = next(slices)
        except StopIteration as ended:
            for value in state.parameters.values():
                value.requires_grad_(False)
            assert logits is not None
            return logits, ended.value
        if isinstance(found, Answer):
            logits = found.logits


def test_packed_passes_give_the_losses_and_gradients_of_separate_ones(model: CavMae) -> None:
    model.packs = True
    method = BriMPR(BriMPRSettings(prompts=2))
    state = method.initial_state(model)
    one = plain_step(model, method, leaves(state), inputs())
    other = packed_step(model, method, leaves(state), inputs())
    torch.testing.assert_close(one.loss, other.loss)
    for name, value in one.grads.items():
        torch.testing.assert_close(value, other.grads[name], rtol=1e-4, atol=1e-7)


def test_the_masked_twin_keeps_the_tokens_with_the_smallest_numbers(model: CavMae) -> None:
    tokens = model.embed(inputs(2))
    drawn: list[tuple[str, tuple[int, int]]] = []

    def noise(modality: str, shape: tuple[int, int]) -> Tensor:
        drawn.append((modality, shape))
        return torch.arange(shape[1]).flip(0).expand(shape).float()

    kept = BriMPR(noise=noise).kept_tokens(BriMPR().initial_state(model), tokens)
    assert drawn == [("audio", (2, 6)), ("video", (2, 4))]  # audio first
    assert kept["audio"].tolist() == [[5, 4, 3]] * 2
    assert kept["video"].tolist() == [[3, 2]] * 2


def test_masks_differ_between_batches_and_repeat_with_the_seed(model: CavMae) -> None:
    def masks(seed: int) -> Iterator[list[list[int]]]:
        method = BriMPR(BriMPRSettings(seed=seed))
        state = method.initial_state(model)
        while True:
            yield method.kept_tokens(state, model.embed(inputs(8)))["audio"].tolist()

    one, same, other = masks(0), masks(0), masks(1)
    first, second = next(one), next(one)
    assert first != second
    assert [next(same), next(same)] == [first, second]
    assert next(other) != first


def test_learning_brings_the_features_back_to_the_source(model: CavMae) -> None:
    method = BriMPR(BriMPRSettings(learning_rate=1e-2, prompts=4))
    state, batch = method.initial_state(model), inputs(16, shift=0.7)
    reports = [learn(method, model, state, batch)[1].losses for _ in range(12)]
    assert float(reports[-1]["pmgfa"]) < 0.97 * float(reports[0]["pmgfa"])


def test_the_answer_comes_from_before_the_update(model: CavMae) -> None:
    method = BriMPR(BriMPRSettings(learning_rate=0.1))
    state = method.initial_state(model)
    expected = method.predict(model, state, inputs())
    logits, report = learn(method, model, state, inputs())
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert report.applied
    assert not torch.allclose(method.predict(model, state, inputs()), expected, rtol=1e-4)


def test_a_restored_state_draws_the_same_masks_and_ends_in_the_same_bits(model: CavMae) -> None:
    method = BriMPR(BriMPRSettings(continual=True, learning_rate=1e-3))
    state = method.initial_state(model)
    learn(method, model, state, inputs(seed=1))
    restored = unpack_states(pack_states({"x": state}, header={}))[0]["x"]
    for seed in (2, 3):
        learn(method, model, state, inputs(seed=seed))
        learn(method, model, restored, inputs(seed=seed))
    for name, value in state.parameters.items():
        assert torch.equal(value, restored.parameters[name])
    assert state.numbers == restored.numbers
    assert torch.equal(state.tensors["history.audio"], restored.tensors["history.audio"])


def test_a_jump_draws_only_that_modalitys_prompts_anew(model: CavMae) -> None:
    method = BriMPR(BriMPRSettings(continual=True, restore_window=4, restore_threshold=5, learning_rate=1e-3))
    # Another number of prompts than is set: the setting was changed since the stream began.
    state = BriMPR(BriMPRSettings(prompts=3)).initial_state(model)
    for seed in range(5):
        learn(method, model, state, inputs(16, seed=seed))
    before = {name: value.clone() for name, value in state.parameters.items()}
    calm = inputs(16, seed=7)
    assert calm.audio is not None
    learn(method, model, state, AVInputs(calm.audio * 6 + 9, calm.video))
    assert float(state.parameters["prompts_a"].abs().max()) <= 1e-4  # drawn anew
    assert float((state.parameters["prompts_v"] - before["prompts_v"]).abs().max()) < 2e-3
    assert float(before["prompts_a"].abs().max()) > 1e-3
    assert state.tensors["history.audio"].tolist() == []
    assert len(state.tensors["history.video"]) == 4


def test_a_value_is_judged_by_those_before_it() -> None:
    history = History(window=3, threshold=5)
    assert [history.score(value) for value in (1.0,)] == [0.0]
    assert [history.jumps(value) for value in (1.0, 1.1, 0.9)] == [False, False, False]
    assert history.score(1.6) == pytest.approx(6.0)
    assert history.jumps(1.6)
    assert history.values == []
    assert not History(window=3, threshold=5, values=[1.0, 1.1]).jumps(100.0)  # the window is not full
    assert not History(window=3, threshold=5, values=[1.0, 1.0, 1.0]).jumps(2.0)  # it has no spread


def test_without_source_statistics_it_says_what_to_do(model: CavMae) -> None:
    model.calibration = None
    with pytest.raises(CalibrationMissing, match="attune calibrate"):
        BriMPR().initial_state(model)
    model.calibration = Calibration(model.fingerprint, fisher={})
    with pytest.raises(CalibrationMissing, match="statistics"):
        BriMPR().check(model)


def test_more_prompt_layers_than_blocks_are_refused(model: CavMae) -> None:
    with pytest.raises(BadSettings, match="3 blocks"):
        BriMPR(BriMPRSettings(prompt_layers=4)).check(model)
    assert BriMPR(BriMPRSettings(prompt_layers=2)).initial_state(model).parameters["prompts_a"].shape[0] == 2


def test_identical_samples_give_finite_gradients(model: CavMae) -> None:
    one = inputs(1)
    assert one.audio is not None
    assert one.video is not None
    same = AVInputs(one.audio.repeat(4, 1, 1), one.video.repeat(4, 1, 1, 1))
    method = BriMPR()
    _, report = learn(method, model, method.initial_state(model), same)
    assert report.finite is not None
    assert bool(report.finite)


def test_distances_and_temperature_follow_their_definitions() -> None:
    features = torch.tensor([[[0.0, 0.0]], [[2.0, 4.0]]])  # mean (1, 2), std (sqrt 2, 2 sqrt 2)
    source = LayerStatistics(torch.tensor([[math.sqrt(2), 2 * math.sqrt(2)]]), torch.tensor([[1.0, 5.0]]))
    torch.testing.assert_close(statistics_distance(features, source), torch.tensor([3.0]), atol=1e-5, rtol=0)
    far, near = adaptive_temperature(torch.tensor([1e3, -1e3]))
    assert (float(far), float(near)) == pytest.approx((1.2, 1.0))


def test_matching_pairs_contrast_lower_than_swapped_ones() -> None:
    rows = torch.eye(4)
    assert float(instance_contrast(rows, rows, temperature=0.07)) < 1e-4
    assert float(instance_contrast(rows, rows.flip(0), temperature=0.07)) > 10
