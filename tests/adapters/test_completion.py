"""Completions: what is imputed, how sure it is, what may be learned, and what a file may hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.completion import (
    FEWEST_PAIRS,
    BadCompletion,
    Completion,
    Progress,
    Spread,
    completion_of_tensors,
    fit_completion,
    relative_errors,
    remember,
    remembered,
    tensors_of_completion,
)
from adapters.latent import (
    BadEmbeddings,
    LatentModel,
    Loading,
    NothingObserved,
    fit,
    impute,
    infer,
    samples_of,
)
from adapters.state import AdaptationState

NAMES = ("image", "text", "sound")
SIZES = (7, 5, 6)
LATENT = 3
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(NAMES, size)]


def drawn(count: int, seed: int = 1, *, unit: bool = False) -> dict[str, Tensor]:
    """Samples of three modalities that share a latent; each has directions of its own that spread further."""
    fixed, random = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    latent = torch.randn(count, LATENT, generator=random, dtype=torch.float64)
    found = {}
    for name, size in zip(NAMES, SIZES, strict=True):
        weight = torch.randn(LATENT, size, generator=fixed, dtype=torch.float64)
        shift = torch.randn(size, generator=fixed, dtype=torch.float64)
        own = torch.randn(count, size, generator=random, dtype=torch.float64)
        scale = torch.linspace(1.2, 0.2, size, dtype=torch.float64)
        values = latent @ weight + shift + own * scale
        found[name] = F.normalize(values, dim=1) if unit else values
    return found


def completed_fit(slices: Generator[Progress, None, Completion]) -> Completion:
    while True:
        try:
            next(slices)
        except StopIteration as ended:
            found: Completion = ended.value
            return found


def fitted(count: int = 400, **options: Any) -> Completion:
    settings: dict[str, Any] = {"unit": False, "latent": LATENT, **options}
    return completed_fit(fit_completion(drawn(count, unit=settings["unit"]), **settings))


def picked(values: Mapping[str, Tensor], subset: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: values[name] for name in subset}


# -- imputing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_imputation_beats_the_mean_from_every_single_modality(even: bool, unit: bool) -> None:
    completion = fitted(unit=unit, even=even)
    values, means = drawn(300, seed=2, unit=unit), drawn(400, unit=unit)
    for given, wanted in itertools.permutations(NAMES, 2):
        made = replace(completion, unit=False).complete({given: values[given]}).embeddings[wanted]
        error = (made - values[wanted]).square().sum()
        assert error < 0.9 * (values[wanted] - means[wanted].mean(0)).square().sum(), (given, wanted)


def test_more_modalities_impute_better_and_make_it_surer() -> None:
    completion, values = fitted(), drawn(300, seed=2)
    for given in ("text", "sound"):
        alone, both = picked(values, (given,)), picked(values, ("text", "sound"))
        errors = [
            (completion.complete(part).embeddings["image"] - values["image"]).square().sum()
            for part in (alone, both)
        ]
        assert errors[1] < errors[0]
        assert (
            completion.confidence((given,))["image"] < completion.confidence(("text", "sound"))["image"] < 1
        )


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_pattern_keeps_what_is_given_and_makes_the_rest(subset: tuple[str, ...]) -> None:
    values = drawn(9, seed=2)
    found = fitted().complete(picked(values, subset))
    assert tuple(found.embeddings) == NAMES
    assert found.observed == frozenset(subset)
    assert set(found.imputed) == set(NAMES) - set(subset)
    assert found.complete == (len(subset) == 3)
    for name, size in zip(NAMES, SIZES, strict=True):
        assert found.embeddings[name].shape == (9, size)
        assert (found.embeddings[name] is values[name]) == (name in subset)
        assert 0 <= found.confidence[name] <= 1
        assert (found.confidence[name] == 1.0) == (name in subset)


def test_one_sample_is_completed_as_among_others() -> None:
    completion, values = fitted(), drawn(5, seed=2)
    whole = completion.complete({"text": values["text"]})
    one = completion.complete({"text": values["text"][3:4]})
    torch.testing.assert_close(one.embeddings["image"], whole.embeddings["image"][3:4])
    torch.testing.assert_close(
        completion.novelty_of({"text": values["text"][3:4]}),
        completion.novelty_of(picked(values, ("text",)))[3:4],
    )


def test_nothing_observed_unknown_modalities_and_wrong_sizes_are_refused() -> None:
    completion = fitted()
    with pytest.raises(NothingObserved):
        completion.complete({})
    with pytest.raises(NothingObserved):
        completion.confidence(())
    with pytest.raises(BadEmbeddings, match="unknown modality 'smell'"):
        completion.complete({"smell": torch.zeros(2, 7)})
    with pytest.raises(BadEmbeddings, match="features"):
        completion.complete({"image": torch.zeros(2, 5)})
    with pytest.raises(BadEmbeddings, match="features"):
        completion.novelty_of({"image": torch.zeros(7)})


def test_the_rotation_of_the_latent_changes_nothing() -> None:
    completion, values = fitted(), drawn(6, seed=2)
    turn, _ = torch.linalg.qr(
        torch.randn(LATENT, LATENT, generator=torch.Generator().manual_seed(3)).double()
    )
    turned = replace(
        completion,
        model=LatentModel(
            tuple(Loading(part.weight @ turn, part.mean, part.noise) for part in completion.model.loadings)
        ),
    )
    for subset in SUBSETS:
        given = picked(values, subset)
        one, other = completion.complete(given), turned.complete(given)
        for name in NAMES:
            torch.testing.assert_close(one.embeddings[name], other.embeddings[name])
            assert one.confidence[name] == pytest.approx(other.confidence[name])
        torch.testing.assert_close(completion.novelty_of(given), turned.novelty_of(given))
    gram = [part.views(one).transpose(1, 2) @ part.views(one) for part in (completion, turned)]
    torch.testing.assert_close(gram[0], gram[1])


def test_without_evened_spreads_it_is_the_published_model_exactly() -> None:
    values, asked = drawn(200), drawn(8, seed=2)
    completion = completed_fit(fit_completion(values, unit=False, latent=LATENT, even=False, seed=4))
    model = fit(samples_of([values[name] for name in NAMES]), LATENT, seed=4).model
    assert completion.spreads is None
    for mine, plain in zip(completion.model.loadings, model.loadings, strict=True):
        assert torch.equal(mine.weight, plain.weight)
        assert torch.equal(mine.mean, plain.mean)
        assert torch.equal(mine.noise, plain.noise)
    blank = [asked["image"], torch.zeros(8, SIZES[1]), torch.zeros(8, SIZES[2])]
    posterior = infer(model, samples_of(blank, torch.tensor([[True, False, False]] * 8)))
    found = completion.complete({"image": asked["image"]})
    for m in (1, 2):
        plain_imputed = impute(model, posterior, m)
        torch.testing.assert_close(found.embeddings[NAMES[m]], plain_imputed.mean)
        assert found.confidence[NAMES[m]] == pytest.approx(float(plain_imputed.confidence[0]))


def test_evened_embeddings_impute_as_inference_in_the_evened_space_says() -> None:
    completion, asked = fitted(), drawn(8, seed=2)
    assert completion.spreads is not None
    even = completion.spreads[1].even(asked["text"])
    blank = [torch.zeros(8, SIZES[0]), even, torch.zeros(8, SIZES[2])]
    posterior = infer(completion.model, samples_of(blank, torch.tensor([[False, True, False]] * 8)))
    right = completion.spreads[0].uneven(impute(completion.model, posterior, 0).mean)
    torch.testing.assert_close(completion.complete({"text": asked["text"]}).embeddings["image"], right)


def test_imputed_embeddings_have_unit_length_where_embeddings_do() -> None:
    values = drawn(6, seed=2, unit=True)
    found = fitted(unit=True).complete({"text": values["text"]})
    torch.testing.assert_close(found.embeddings["image"].norm(dim=1), torch.ones(6).double())
    assert found.embeddings["text"] is values["text"]
    longer = fitted().complete({"text": drawn(6, seed=2)["text"]})
    assert float((longer.embeddings["image"].norm(dim=1) - 1).abs().min()) > 1e-3


def test_embeddings_keep_their_type_and_agree_between_types() -> None:
    completion, values = fitted(unit=True), drawn(6, seed=2, unit=True)
    exact = completion.complete({"text": values["text"]})
    single = completion.complete({"text": values["text"].float()})
    assert exact.embeddings["image"].dtype == torch.float64
    assert single.embeddings["image"].dtype == torch.float32
    torch.testing.assert_close(
        single.embeddings["image"].double(), exact.embeddings["image"], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        completion.novelty_of({"text": values["text"].float()}),
        completion.novelty_of({"text": values["text"]}),
    )


@pytest.mark.parametrize("unit", [True, False])
def test_the_gradient_through_completing_is_that_of_finite_differences(unit: bool) -> None:
    completion, values = fitted(unit=unit), drawn(3, seed=2, unit=unit)

    def made(text: Tensor, sound: Tensor) -> Tensor:
        found = completion.complete({"text": text, "sound": sound})
        return torch.cat([found.embeddings["image"], completion.views(found).flatten(1)], dim=1)

    inputs = tuple(values[name].clone().requires_grad_() for name in ("text", "sound"))
    assert torch.autograd.gradcheck(made, inputs)


def test_what_is_not_finite_stays_so_and_leaves_the_other_samples_alone() -> None:
    completion, values = fitted(), drawn(3, seed=2)
    text = values["text"].clone()
    text[1, 2] = torch.nan
    found = completion.complete({"text": text}).embeddings["image"]
    assert bool(found[1].isnan().all())
    torch.testing.assert_close(
        found[[0, 2]], completion.complete({"text": values["text"]}).embeddings["image"][[0, 2]]
    )
    assert completion.novelty_of({"text": text})[1] == 1.0


# -- anchors --------------------------------------------------------------------------------------------


def pair(count: int, seed: int) -> dict[str, Tensor]:
    """Two modalities of one size."""
    values = drawn(count, seed, unit=True)
    return {"image": F.normalize(values["image"][:, :5], dim=1), "text": values["text"]}


def test_the_anchor_of_two_modalities_is_their_normalised_sum() -> None:
    completion = completed_fit(fit_completion(pair(200, 1), unit=True, latent=2))
    values = pair(4, 2)
    found = completion.complete(values)
    torch.testing.assert_close(
        completion.anchors(found), F.normalize(values["image"] + values["text"], dim=1)
    )
    alone = completion.complete({"text": values["text"]})
    torch.testing.assert_close(
        completion.anchors(alone), F.normalize(values["text"] + alone.embeddings["image"], dim=1)
    )


# -- fitting --------------------------------------------------------------------------------------------


def test_samples_that_lack_modalities_are_fitted_too() -> None:
    values, asked = drawn(600), drawn(300, seed=2)
    random = torch.Generator().manual_seed(5)
    observed = torch.rand(600, 3, generator=random) > 0.4
    masks = {name: observed[:, m] for m, name in enumerate(NAMES)}
    hidden = {name: torch.where(masks[name][:, None], part, torch.nan) for name, part in values.items()}
    completion = completed_fit(fit_completion(hidden, masks, unit=False, latent=LATENT))
    assert completion.about["samples"] == int(observed.any(1).sum())
    assert completion.about["complete_samples"] == int(observed.all(1).sum())
    errors = relative_errors(completion, samples_of([asked[name] for name in NAMES]))
    whole = relative_errors(fitted(600), samples_of([asked[name] for name in NAMES]))
    assert all(errors[name] < 1.2 * whole[name] for name in NAMES)


def test_a_modality_that_almost_none_has_is_still_imputed() -> None:
    values = drawn(300)
    masks = {name: torch.ones(300, dtype=torch.bool) for name in NAMES}
    masks["sound"] = torch.arange(300) < 2
    found = completed_fit(fit_completion(values, masks, unit=False, latent=2)).complete(
        {"text": values["text"]}
    )
    assert bool(torch.isfinite(found.embeddings["sound"]).all())


def test_constant_dimensions_and_duplicated_samples_are_fitted() -> None:
    values = {name: part[:20].repeat(10, 1) for name, part in drawn(20).items()}
    values["text"][:, 1] = 3.0
    for even in (True, False):
        completion = completed_fit(fit_completion(values, unit=False, latent=2, even=even))
        found = completion.complete({"image": values["image"]})
        assert all(bool(torch.isfinite(part).all()) for part in found.embeddings.values())
        torch.testing.assert_close(
            found.embeddings["text"][:, 1], torch.full((200,), 3.0).double(), atol=0.05, rtol=0
        )
        assert bool(torch.isfinite(completion.novelty_of(values)).all())


def test_embeddings_that_are_all_the_same_impute_themselves() -> None:
    same = {name: torch.ones(20, size).double() * 0.5 for name, size in zip(NAMES, SIZES, strict=True)}
    found = completed_fit(fit_completion(same, unit=False, latent=1)).complete({"image": same["image"]})
    torch.testing.assert_close(found.embeddings["text"], same["text"], atol=1e-3, rtol=0)


def test_too_few_pairs_and_values_that_are_not_finite_are_refused() -> None:
    few = {name: part[: FEWEST_PAIRS - 1] for name, part in drawn(FEWEST_PAIRS).items()}
    with pytest.raises(BadEmbeddings, match=f"at least {FEWEST_PAIRS}"):
        next(fit_completion(few, unit=False))
    with pytest.raises(BadEmbeddings, match="two modalities"):
        next(fit_completion({"image": drawn(50)["image"]}, unit=False))
    broken = drawn(50)
    broken["text"][3, 1] = torch.inf
    with pytest.raises(BadEmbeddings, match="not finite"):
        next(fit_completion(broken, unit=False))
    broken["text"] = broken["text"][:40]
    with pytest.raises(BadEmbeddings, match="as many rows"):
        next(fit_completion(broken, unit=False))


def test_the_latent_that_is_chosen_imputes_best_and_slices_say_where_a_fit_is() -> None:
    slices = fit_completion(drawn(400), unit=False, sizes=(1, 3), seed=0)
    stages = []
    while True:
        try:
            stages.append(next(slices))
        except StopIteration as ended:
            completion = ended.value
            break
    assert completion.about["latent"] == completion.model.latent == 3
    assert list(dict.fromkeys(stage.stage for stage in stages)) == [
        "latent 1",
        "latent 3",
        "latent 3 on all samples",
    ]
    assert {stage.of for stage in stages} == {3}


def test_the_latent_is_chosen_for_the_patterns_that_samples_can_have() -> None:
    """The sound is a copy of the picture: given that, the largest latent imputes best; from the text, not."""
    values = drawn(60)
    values["sound"] = values["image"] + 1e-3 * drawn(60, seed=9)["image"]
    sizes = (2, 4)
    free = completed_fit(fit_completion(values, unit=False, sizes=sizes, even=False))
    asked = completed_fit(fit_completion(values, unit=False, sizes=sizes, even=False, patterns=[("text",)]))
    assert set(free.about["relative_error"]) == set(NAMES)
    assert set(asked.about["relative_error"]) == {"image", "sound"}
    assert free.about["relative_error"]["image"] < 0.1 < asked.about["relative_error"]["image"]
    for size in sizes:
        tried = completed_fit(
            fit_completion(values, unit=False, latent=size, even=False, patterns=[("text",)])
        )
        errors = [sum(part.about["relative_error"].values()) for part in (asked, tried)]
        assert errors[0] <= errors[1]


def test_spreads_even_out_and_back() -> None:
    values = drawn(500)["image"]
    spread = Spread.of(values)
    even = spread.even(values)
    torch.testing.assert_close(spread.uneven(even), values)
    power = torch.linalg.eigvalsh(even.T @ even / len(even))
    before = torch.linalg.eigvalsh(torch.cov(values.T))
    assert float(power.max() / power.min()) < float(before.max() / before.min()) / 3


# -- novelty --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", SUBSETS)
def test_novelty_of_clean_samples_is_spread_evenly_and_of_strange_ones_is_high(
    subset: tuple[str, ...],
) -> None:
    completion, clean = fitted(2000), picked(drawn(1000, seed=2), subset)
    novelty = completion.novelty_of(clean)
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(float((novelty <= level).double().mean()) - level) < 0.08
    strange = {name: 4 * part for name, part in clean.items()}
    assert float(completion.novelty_of(strange).mean()) > 0.9


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("subset", SUBSETS)
def test_novelty_is_the_rank_of_the_distance_that_inference_finds(
    subset: tuple[str, ...], even: bool
) -> None:
    completion = completed_fit(fit_completion(drawn(200), unit=False, latent=LATENT, even=even))
    given = picked(drawn(20, seed=2), subset)
    samples = completion._samples(given)
    distance = infer(completion.model, samples).novelty
    pattern = sum(1 << m for m, name in enumerate(NAMES) if name in subset)
    ranks = (completion.novelty[pattern - 1] <= distance[:, None]).sum(1) / 100
    torch.testing.assert_close(completion.novelty_of(given).double(), ranks.clamp(0, 1).double())
    assert completion.knows_novelty(subset)


def test_novelty_is_0_where_no_clean_sample_had_these_modalities() -> None:
    values = drawn(60)
    masks = {name: torch.ones(60, dtype=torch.bool) for name in NAMES}
    masks["sound"] = torch.zeros(60, dtype=torch.bool)
    completion = completed_fit(fit_completion(values, masks, unit=False, latent=2))
    assert float(completion.novelty_of({"sound": 100 * values["sound"]}).max()) == 0.0
    assert float(completion.novelty_of({"text": 100 * values["text"]}).min()) == 1.0
    assert not completion.knows_novelty(["sound"])
    assert completion.knows_novelty({"text"})


# -- learning -------------------------------------------------------------------------------------------


def test_learning_from_complete_batches_approaches_a_fit_to_all_of_them() -> None:
    start, whole = fitted(60, even=False), fitted(4000, even=False)
    asked = samples_of([drawn(500, seed=2)[name] for name in NAMES])
    learned = start
    for number in range(60):
        rows = slice(64 * number, 64 * (number + 1))
        learned = learned.learned({name: part[rows] for name, part in drawn(4000).items()}, rate=0.1)
    fit_of = [float(infer(part.model, asked).fit.mean()) for part in (start, learned, whole)]
    assert fit_of[2] - fit_of[1] < 0.35 * (fit_of[2] - fit_of[0])
    assert learned.batches == 60
    assert start.batches == 0


def test_learning_from_incomplete_batches_leaves_what_they_lack_alone() -> None:
    completion = fitted()
    learned = completion.learned({"text": drawn(32, seed=3)["text"]}, rate=0.5)
    for name, before, after in zip(NAMES, completion.statistics, learned.statistics, strict=True):
        assert torch.equal(before.z, after.z) == (name != "text")
    for name, old, new in zip(NAMES, completion.model.loadings, learned.model.loadings, strict=True):
        assert torch.allclose(old.mean, new.mean, atol=1e-4) == (name != "text")


def test_nothing_is_learned_from_what_is_not_finite_or_without_statistics() -> None:
    completion, values = fitted(), drawn(4, seed=2)
    values["text"][0, 0] = torch.nan
    with pytest.raises(BadEmbeddings, match="not finite"):
        completion.learned(values, rate=0.1)
    with pytest.raises(BadEmbeddings, match="no statistics"):
        replace(completion, statistics=()).learned(drawn(4, seed=2), rate=0.1)


# -- as tensors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_tensors_come_back_as_the_same_completion(even: bool, statistics: bool) -> None:
    completion, values = fitted(even=even, unit=True), drawn(6, seed=2, unit=True)
    if not statistics:
        completion = replace(completion, statistics=())
    back = completion_of_tensors(tensors_of_completion(completion), modalities=NAMES, unit=True, batches=7)
    assert back.batches == 7
    assert (back.spreads is not None) == even
    assert bool(back.statistics) == statistics
    for subset in SUBSETS:
        one, other = (part.complete(picked(values, subset)) for part in (completion, back))
        assert all(torch.equal(one.embeddings[name], other.embeddings[name]) for name in NAMES)
        assert one.confidence == other.confidence
        assert torch.equal(
            completion.novelty_of(picked(values, subset)), back.novelty_of(picked(values, subset))
        )
    if statistics:
        first, second = (part.learned(values, rate=0.2) for part in (completion, back))
        assert torch.equal(first.model.loadings[0].weight, second.model.loadings[0].weight)


TENSORS = sorted(tensors_of_completion(fitted(60)))


BREAKS: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda value: torch.cat([value.reshape(-1), value.reshape(-1)]),
    "of more dimensions": lambda value: value.reshape(1, 1, *value.shape),
    "empty": lambda value: value.new_zeros(0),
    "of 32 bits": lambda value: value.float(),
    "of whole numbers": lambda value: value.nan_to_num(posinf=0).long(),
    "not a number": lambda value: torch.full_like(value, torch.nan),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("kind", BREAKS)
def test_a_tensor_that_is_misshapen_of_another_type_or_not_finite_is_refused(name: str, kind: str) -> None:
    tensors = tensors_of_completion(fitted(60))
    tensors[name] = BREAKS[kind](tensors[name])
    with pytest.raises(BadCompletion):
        completion_of_tensors(tensors, modalities=NAMES, unit=False)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_missing_is_refused(name: str) -> None:
    tensors = tensors_of_completion(fitted(60))
    del tensors[name]
    with pytest.raises(BadCompletion):
        completion_of_tensors(tensors, modalities=NAMES, unit=False)


@pytest.mark.parametrize("size", [1e12, 1e200])
def test_loadings_too_large_to_infer_with_are_refused(size: float) -> None:
    tensors = tensors_of_completion(fitted(60))
    tensors["latent/text/weight"] = torch.full_like(tensors["latent/text/weight"], size)
    with pytest.raises(BadCompletion, match="too large"):
        completion_of_tensors(tensors, modalities=NAMES, unit=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latent/image/noise", 0.0),
        ("latent/text/noise", -1.0),
        ("latent/text/spread.rest", 0.0),
        ("latent/sound/spread.scales", -1.0),
        ("latent/sound/sum.share", 1.5),
        ("latent/sound/sum.share", -0.5),
        ("latent/novelty", -1.0),
    ],
)
def test_numbers_that_no_fit_can_have_are_refused(name: str, value: float) -> None:
    tensors = tensors_of_completion(fitted(60))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    with pytest.raises(BadCompletion):
        completion_of_tensors(tensors, modalities=NAMES, unit=False)


def test_other_modalities_and_unknown_tensors_are_refused() -> None:
    tensors = tensors_of_completion(fitted(60))
    with pytest.raises(BadCompletion, match="unknown tensor"):
        completion_of_tensors({**tensors, "latent/smell": torch.zeros(1)}, modalities=NAMES, unit=False)
    with pytest.raises(BadCompletion):
        completion_of_tensors(tensors, modalities=("image", "text"), unit=False)
    with pytest.raises(BadCompletion):
        completion_of_tensors(tensors, modalities=("audio", "video", "fused"), unit=False)


def test_a_completion_that_is_moved_to_a_device_is_the_same() -> None:
    completion, values = fitted(), drawn(4, seed=2)
    moved = completion.to("cpu")
    assert torch.equal(
        moved.complete({"text": values["text"]}).embeddings["image"],
        completion.complete({"text": values["text"]}).embeddings["image"],
    )
    assert moved.about == completion.about


# -- as part of a state ---------------------------------------------------------------------------------


def test_a_state_remembers_a_completion_replaces_it_and_forgets_it() -> None:
    state = AdaptationState("calmrl", "print", {})
    state.tensors, state.numbers = {"weight": torch.zeros(2)}, {"steps": 3.0}
    assert remembered(state, NAMES) is None
    first, second = fitted(60), fitted(80, even=False).learned(drawn(9, seed=2), rate=0.1)
    remember(state, first)
    remember(state, second)
    found = remembered(state, NAMES)
    assert found is not None
    assert found.spreads is None
    assert found.batches == 1
    assert not found.unit
    assert remembered(state, NAMES) is found
    assert torch.equal(found.model.loadings[0].weight, second.model.loadings[0].weight)
    remember(state, None)
    assert remembered(state, NAMES) is None
    assert set(state.tensors) == {"weight"}
    assert dict(state.numbers) == {"steps": 3.0}


@pytest.mark.parametrize("even", [True, False])
def test_the_shift_of_clean_batches_is_about_one_whatever_their_size(even: bool) -> None:
    completion = fitted(even=even)
    clean = drawn(4000, seed=7)
    for name in completion.modalities:
        for size in (16, 64):
            batches = clean[name].split(size)[: 4000 // size]
            shifts = torch.stack([completion.shift(name, part) for part in batches])
            assert float(shifts.mean()) == pytest.approx(1.0, abs=0.25)


def test_the_shift_rises_with_how_far_a_batch_is_off_and_with_its_size() -> None:
    completion = fitted()
    name = completion.modalities[0]
    clean = drawn(64, seed=7)[name]
    offset = clean.std(0)
    shifts = [float(completion.shift(name, clean + far * offset)) for far in (0.0, 0.5, 1.0, 2.0)]
    assert shifts == sorted(shifts)
    assert shifts[-1] > 20
    assert float(completion.shift(name, (clean + offset)[:16])) < shifts[2]


def test_no_shift_is_known_without_statistics_or_of_an_unknown_modality() -> None:
    completion = fitted()
    name = completion.modalities[0]
    batch = drawn(8)[name]
    with pytest.raises(BadEmbeddings, match="no statistics"):
        replace(completion, statistics=()).shift(name, batch)
    with pytest.raises(BadEmbeddings, match="unknown modality"):
        completion.shift("smell", batch)
