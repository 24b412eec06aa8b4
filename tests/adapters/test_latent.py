"""The shared latent: likelihood, posterior, imputation and missing modalities, beyond the goldens."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from adapters.latent import (
    BadEmbeddings,
    Form,
    LatentModel,
    Loading,
    NothingObserved,
    Online,
    Samples,
    choose_latent,
    fit,
    impute,
    infer,
    initial_model,
    maximise,
    samples_of,
    statistics_of,
)

SIZES, LATENT = (7, 5, 6), 3
FORMS: tuple[Form, ...] = ("joint", "sequential")


def true_model(seed: int = 0) -> LatentModel:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return LatentModel(
        tuple(
            Loading(normal(size, LATENT), normal(size), torch.tensor(0.05 * (m + 1), dtype=torch.float64))
            for m, size in enumerate(SIZES)
        )
    )


def draw(count: int, seed: int = 1, *, missing: float = 0.0) -> tuple[Samples, list[Tensor]]:
    """Samples of the true model, of which modalities are missing at random, and all their embeddings."""
    random, model = torch.Generator().manual_seed(seed), true_model()
    latent = torch.randn(count, LATENT, generator=random, dtype=torch.float64)
    whole = [
        latent @ part.weight.T
        + part.mean
        + part.noise.sqrt() * torch.randn(count, len(part.mean), generator=random, dtype=torch.float64)
        for part in model.loadings
    ]
    observed = torch.rand(count, len(SIZES), generator=random) >= missing
    observed[~observed.any(1), 0] = True
    return samples_of(whole, observed), whole


def stacked(model: LatentModel, modalities: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """W, mean and noise variances of several modalities as one."""
    parts = [model.loadings[m] for m in modalities]
    noise = torch.cat([part.noise.expand(len(part.mean)) for part in parts])
    return torch.cat([part.weight for part in parts]), torch.cat([part.mean for part in parts]), noise


@pytest.mark.parametrize("there", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_the_posterior_is_that_of_conditioning_one_large_gaussian(there: list[int]) -> None:
    model, (_, whole) = true_model(), draw(4)
    observed = torch.tensor([[m in there for m in range(3)]] * 4)
    posterior = infer(model, samples_of(whole, observed))
    weight, mean, noise = stacked(model, there)
    covariance = weight @ weight.T + torch.diag(noise)
    values = torch.cat([whole[m] for m in there], dim=1) - mean
    gain = weight.T @ torch.linalg.inv(covariance)
    torch.testing.assert_close(posterior.mean, values @ gain.T)
    torch.testing.assert_close(posterior.covariance[0], torch.eye(LATENT).double() - gain @ weight)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros_like(mean), covariance)
    torch.testing.assert_close(posterior.fit, gaussian.log_prob(values))
    distance = (values @ torch.linalg.inv(covariance) * values).sum(1)
    torch.testing.assert_close(posterior.novelty, distance)
    assert posterior.degrees.tolist() == [sum(SIZES[m] for m in there)] * 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.7])
def test_the_likelihood_never_falls(form: Form, missing: float) -> None:
    samples, _ = draw(120, missing=missing)
    start = initial_model(samples, LATENT, start="random")
    history = fit(samples, LATENT, form=form, most_iterations=60, tolerance=0.0, start=start).history
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(history))
    assert history[-1] > history[0] + 1


def test_principal_directions_are_a_better_start_with_the_same_end() -> None:
    samples, _ = draw(400, missing=0.2)
    found = {
        kind: fit(samples, LATENT, start=initial_model(samples, LATENT, start=kind), tolerance=1e-9)
        for kind in ("principal", "random")
    }
    one, other = found["principal"], found["random"]
    assert one.history[0] > other.history[0] + 1
    assert one.history[-1] == pytest.approx(other.history[-1], abs=1e-3)


@pytest.mark.parametrize("latent", [4, 40])
def test_more_latents_than_samples_or_features_fit_too(latent: int) -> None:
    samples, _ = draw(6, missing=0.3)
    history = fit(samples, latent, most_iterations=30).history
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(history))


def test_imputation_beats_the_mean_and_nears_the_true_model() -> None:
    samples, _ = draw(800, missing=0.3)
    model = fit(samples, LATENT).model
    _, whole = draw(300, seed=2)
    observed = torch.tensor([[True, True, False]] * 300)
    held = samples_of(whole, observed)
    truth = whole[2]

    def error(found: LatentModel) -> float:
        return float((impute(found, infer(found, held), 2).mean - truth).square().mean())

    mean_error = float((truth - samples.embeddings[2][samples.observed[:, 2]].mean(0)).square().mean())
    assert error(model) < 0.3 * mean_error
    assert error(model) < 1.05 * error(true_model())
    predicted = impute(model, infer(model, held), 2).variance.mean()
    assert float(predicted) == pytest.approx(error(model), rel=0.1)


def test_nothing_depends_on_the_latents_rotation() -> None:
    samples, _ = draw(50, missing=0.4)
    model = true_model()
    rotation = torch.linalg.qr(torch.randn(LATENT, LATENT, dtype=torch.float64)).Q
    turned = LatentModel(
        tuple(Loading(part.weight @ rotation, part.mean, part.noise) for part in model.loadings)
    )
    one, other = infer(model, samples), infer(turned, samples)
    torch.testing.assert_close(one.fit, other.fit)
    torch.testing.assert_close(one.novelty, other.novelty)
    for m in range(3):
        mine, theirs = impute(model, one, m), impute(turned, other, m)
        torch.testing.assert_close(mine.mean, theirs.mean)
        torch.testing.assert_close(mine.variance, theirs.variance)
        torch.testing.assert_close(mine.confidence, theirs.confidence)


def test_confidence_rises_with_what_is_observed() -> None:
    _, whole = draw(3)
    observed = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    model = true_model()
    confidence = impute(model, infer(model, samples_of(whole, observed)), 2).confidence
    assert 0 <= float(confidence[0]) < float(confidence[1]) < float(confidence[2]) <= 1


def test_strange_samples_are_novel() -> None:
    samples, whole = draw(200)
    strange = samples_of([part + 5 for part in whole])
    model = true_model()
    usual, odd = infer(model, samples), infer(model, strange)
    assert float((usual.novelty / usual.degrees).mean()) == pytest.approx(1, abs=0.1)
    assert float((odd.novelty / odd.degrees).mean()) > 20


def test_a_sample_without_anything_is_an_error_or_has_the_prior() -> None:
    _, whole = draw(2)
    samples = samples_of(whole, torch.tensor([[False] * 3, [True] * 3]))
    with pytest.raises(NothingObserved):
        infer(true_model(), samples)
    posterior = infer(true_model(), samples, allow_empty=True)
    assert posterior.mean[0].tolist() == [0.0] * LATENT
    torch.testing.assert_close(impute(true_model(), posterior, 0).mean[0], true_model().loadings[0].mean)
    assert float(impute(true_model(), posterior, 0).confidence[0]) == 0
    assert fit(samples, 1, most_iterations=3).history  # it is left out of the fit


def test_what_is_missing_may_hold_anything_and_what_is_there_may_not() -> None:
    _, whole = draw(3)
    broken = [part.clone() for part in whole]
    broken[1][0] = float("nan")
    there = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(BadEmbeddings, match="finite"):
        samples_of(broken, there)
    there[0, 1] = False
    mended = infer(true_model(), samples_of(broken, there))
    assert torch.isfinite(mended.mean).all()
    with pytest.raises(BadEmbeddings):
        samples_of([whole[0], whole[1][:2]])
    with pytest.raises(BadEmbeddings):
        samples_of(whole, torch.ones(3, 2, dtype=torch.bool))


@pytest.mark.parametrize("count", [1, 2])
def test_few_or_equal_samples_and_constant_coordinates_fit(count: int) -> None:
    one = [torch.full((count, size), 0.5) for size in SIZES]
    fitted = fit(samples_of(one), 2, most_iterations=20)
    for part in fitted.model.loadings:
        assert all(torch.isfinite(value).all() for value in (part.weight, part.mean, part.noise))
        assert float(part.noise) >= 1e-6
        torch.testing.assert_close(part.mean, torch.full_like(part.mean, 0.5), atol=1e-3, rtol=0)


def test_a_modality_that_nobody_has_keeps_its_loading() -> None:
    _, whole = draw(40)
    observed = torch.ones(40, 3, dtype=torch.bool)
    observed[:, 1] = False
    samples = samples_of(whole, observed)
    start = initial_model(samples, LATENT)
    fitted = fit(samples, LATENT, start=start, most_iterations=10).model
    assert torch.equal(fitted.loadings[1].weight, start.loadings[1].weight)
    assert not torch.allclose(fitted.loadings[0].weight, start.loadings[0].weight)


def test_the_latent_size_is_found_by_samples_that_were_kept_back() -> None:
    samples, _ = draw(600, missing=0.2)
    assert choose_latent(samples, [1, 2, 3, 5], seed=3) == LATENT


def test_a_step_on_all_data_is_a_step_of_the_batch_form() -> None:
    samples, _ = draw(100, missing=0.3)
    model = initial_model(samples, LATENT)
    expected = maximise(model, statistics_of(samples, infer(model, samples)))
    found = Online.after(model, samples).learned(samples, rate=1.0).model
    for one, other in zip(found.loadings, expected.loadings, strict=True):
        torch.testing.assert_close(one.weight, other.weight)
        torch.testing.assert_close(one.noise, other.noise)


def test_learning_from_a_stream_comes_near_the_fit_of_everything() -> None:
    samples, _ = draw(1600, missing=0.3)
    batches = [
        Samples(tuple(part[rows] for part in samples.embeddings), samples.observed[rows])
        for rows in torch.arange(1600).split(32)
    ]
    first = Samples(tuple(part[:160] for part in samples.embeddings), samples.observed[:160])
    online = Online.after(fit(first, LATENT).model, first)
    for batch in batches:
        online = online.learned(batch)
    held, _ = draw(500, seed=9, missing=0.3)
    whole = fit(samples, LATENT).model
    near, best = (float(infer(model, held).fit.mean()) for model in (online.model, whole))
    assert near > best - 0.15
    assert online.batches == len(batches)


def test_a_modality_that_disappears_is_not_forgotten() -> None:
    samples, whole = draw(400)
    online = Online.after(fit(samples, LATENT).model, samples)
    before = online.model.loadings[2]
    gone = torch.ones(400, 3, dtype=torch.bool)
    gone[:, 2] = False
    for rows in torch.arange(400).split(50):
        online = online.learned(samples_of([part[rows] for part in whole], gone[rows]), rate=0.2)
    assert torch.equal(online.model.loadings[2].mean, before.mean) or torch.allclose(
        online.model.loadings[2].mean, before.mean, atol=0.05
    )
    back = online.learned(samples_of(whole), rate=0.2)
    assert torch.isfinite(back.model.loadings[2].weight).all()
