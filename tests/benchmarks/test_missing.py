"""The benchmark of missing modalities: figures by hand, imputers on tiny data, and whole small runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adapters.two_stream_completion import CompletedTwoStream
from benchmarks.av_data import load_av_data
from benchmarks.av_digits import as_samples
from benchmarks.datasets import CaptionedImages
from benchmarks.missing import RATES, fit_all, gallery_vectors, main, path_logits, run, vector_methods
from benchmarks.missing_imputers import (
    CompletionImputer,
    MeanImputer,
    RidgeImputer,
    impute_all,
    reconstructed,
)
from benchmarks.missing_measures import (
    answer_figures,
    area,
    by_parts,
    hide,
    imputation,
    joined,
    patterns_of,
    rank_correlation,
    ranks,
    recalls,
    shift_after,
    shift_before,
    unit_columns,
)
from benchmarks.missing_report import BadRuns, average, markdown, of
from benchmarks.missing_report import main as report
from benchmarks.missing_sets import (
    ClassifierSet,
    RetrievalSet,
    _as_views,
    _first,
    _mirrored,
    answers,
    reworded,
)
from demo import demo_classifier_path, demo_encoder_path
from demo.measure_clips import prepared
from demo.scenes import scenes
from encoders.audiovisual import AVInputs
from encoders.cav_mae import load_cav_mae
from encoders.load import load_encoder

PAIR = ("image", "text")


def drawn(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Unit embeddings of two modalities that share three directions of eight."""
    fixed, random = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    latent = torch.randn(count, 3, generator=random, dtype=torch.float64)
    found = {}
    for name in PAIR:
        weight = torch.randn(3, 8, generator=fixed, dtype=torch.float64)
        noise = torch.randn(count, 8, generator=random, dtype=torch.float64)
        found[name] = F.normalize(latent @ weight + 0.3 * noise, dim=1)
    return found


def everything(count: int, modalities: int = 2) -> Tensor:
    return torch.ones(count, modalities, dtype=torch.bool)


# -- what is hidden -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_one_modality_is_hidden_at_the_rate_and_the_other_stays(rate: float) -> None:
    observed = hide(20_000, PAIR, ["image"], rate, seed=1)
    assert abs(1 - float(observed[:, 0].double().mean()) - rate) < 0.02
    assert bool(observed[:, 1].all())


@pytest.mark.parametrize("rate", RATES)
def test_where_both_are_hidden_every_sample_keeps_one(rate: float) -> None:
    observed = hide(20_000, PAIR, PAIR, rate, seed=1)
    assert bool(observed.any(1).all())
    missing = 1 - observed.double().mean(0)
    # Hidden at the rate, and given back to half of those that would have lost both.
    assert float((missing - (rate - rate**2 / 2)).abs().max()) < 0.02


def test_what_is_hidden_follows_the_seed_and_the_fused_feature_needs_both() -> None:
    names = ("audio", "video", "fused")
    one, again, other = (hide(200, names, ("audio", "video"), 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one[:, 2], one[:, 0] & one[:, 1])
    assert patterns_of(names) == [("audio",), ("video",)]
    assert len(patterns_of(("image", "caption1", "caption2"))) == 6


# -- imputers -------------------------------------------------------------------------------------------


def test_the_mean_of_what_is_there_is_imputed() -> None:
    values = {"image": torch.tensor([[1.0, 0.0], [3.0, 2.0], [100.0, 100.0]]), "text": torch.ones(3, 2)}
    observed = torch.tensor([[True, True], [True, True], [False, True]])
    imputer = MeanImputer.of(values, observed)
    made = impute_all(imputer, values, observed)
    assert made["image"].tolist() == [[1, 0], [3, 2], [2, 1]]
    assert torch.equal(made["text"], values["text"])
    assert values["image"][2, 0] == 100


def test_ridge_regression_finds_a_linear_map_and_reads_every_modality_that_is_there() -> None:
    random = torch.Generator().manual_seed(0)
    one, two = (torch.randn(200, 3, generator=random, dtype=torch.float64) for _ in range(2))
    values = {"one": one, "two": two, "sum": one + 2 * two + 1}
    imputer = RidgeImputer(values, everything(200, 3))
    made = imputer.impute({"one": one[:5], "two": two[:5]})["sum"]
    torch.testing.assert_close(made, values["sum"][:5], atol=1e-3, rtol=0)
    half = imputer.impute({"one": one[:5]})["sum"]
    assert float((half - values["sum"][:5]).abs().max()) > 0.1


def test_ridge_chooses_lambda_also_where_classes_come_in_turn() -> None:
    """Every fifth sample is of a class that nothing else says anything of: it must not decide alone."""
    random = torch.Generator().manual_seed(0)
    one = F.one_hot(torch.arange(500) % 5, 5).double() + 0.01 * torch.randn(500, 5, generator=random)
    right = one @ torch.randn(5, 4, generator=random, dtype=torch.float64)
    other = right + 2 * torch.randn(500, 4, generator=random, dtype=torch.float64)
    made = RidgeImputer({"one": one, "other": other}, everything(500)).impute({"one": one})["other"]
    assert float((made - right).square().mean()) < 0.15 * float(right.var(0).mean())


def test_ridge_learns_only_from_samples_that_have_both_and_is_the_mean_where_these_are_few() -> None:
    values, observed = drawn(40), everything(40)
    observed[:20, 0] = False
    poisoned = {**values, "image": values["image"].clone()}
    poisoned["image"][:20] = 1e6
    clean = {name: part[20:] for name, part in values.items()}
    asked = {"text": drawn(3, seed=1)["text"]}
    torch.testing.assert_close(
        RidgeImputer(poisoned, observed).impute(asked)["image"],
        RidgeImputer(clean, everything(20)).impute(asked)["image"],
    )
    observed[5:, 0] = False
    few = RidgeImputer(values, observed).impute(asked)["image"]
    assert not bool(observed[:, 0].any())
    assert float(few.abs().max()) == 0.0


def test_completions_are_fitted_where_pairs_are_and_left_out_where_not() -> None:
    values, lonely = drawn(60), everything(60)
    fits = fit_all(values, everything(60), unit=True, latent=2, seed=0)
    assert set(fits.completions) == {"published", "attune"}
    assert fits.completions["published"].spreads is None
    assert fits.completions["attune"].spreads is not None
    lonely[::2, 0], lonely[1::2, 1] = False, False
    fits = fit_all(values, lonely, unit=True, latent=2, seed=0)
    assert set(fits.imputers) == {"mean", "ridge"}


def test_what_the_latent_says_of_a_modality_that_is_missing_is_what_is_imputed() -> None:
    values = drawn(100)
    for name in ("attune", "published"):
        completion = fit_all(values, everything(100), unit=True, latent=2, seed=0).completions[name]
        asked = {"text": values["text"][:4]}
        found = reconstructed(completion, asked)
        torch.testing.assert_close(found["image"], CompletionImputer.of(completion).impute(asked)["image"])
        assert not torch.allclose(found["text"], asked["text"], atol=1e-3)


# -- figures --------------------------------------------------------------------------------------------


def test_relative_error_is_1_for_the_mean_and_0_for_the_truth_and_counts_hidden_samples_only() -> None:
    truth = {"image": torch.tensor([[1.0], [3.0], [9.0]]), "text": torch.ones(3, 1)}
    observed = torch.tensor([[False, True], [False, True], [True, True]])
    means = {"image": torch.tensor([2.0]), "text": torch.ones(1)}
    half = {"image": torch.tensor([[1.0], [2.0], [0.0]]), "text": truth["text"]}
    assert imputation(half, truth, means, observed) == {"image": {"error": 0.5, "cosine": 1.0}}
    mean = {"image": means["image"].expand(3, 1), "text": truth["text"]}
    assert imputation(mean, truth, means, observed)["image"]["error"] == 1.0
    assert imputation(truth, truth, means, everything(3)) == {}


def test_the_shift_of_two_orthogonal_columns_is_known() -> None:
    """Anchor of (e1 + e2) / sqrt 2 against e1: cosine 1 / sqrt 2."""
    columns = torch.eye(3, dtype=torch.float64)[:, :2].expand(4, -1, -1).contiguous()
    columns[:, 1, 1], columns[:, 0, 1] = 0.8, 0.6
    observed = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
    whole = F.normalize(columns.sum(2), dim=1)
    right = float((2 - 2 * whole[0, 0]).sqrt())
    before = shift_before(columns, observed)
    assert before["shift"] == pytest.approx(right)
    assert before["lower"] <= right <= before["upper"]
    assert before["outside"] == 0
    assert shift_after(columns, columns, observed) == pytest.approx(0, abs=1e-6)
    assert shift_after(columns, columns, everything(4)) is None
    assert shift_before(columns, everything(4)) == {}


def test_ranks_count_ties_by_place_and_never_find_what_has_no_score() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.3, 0.3, 0.3], [0.0, 0.0, -torch.inf]])
    assert ranks(scores).tolist() == [1, 1, 3]
    assert recalls(ranks(scores)) == {"r1": 0.0, "r10": 100.0}
    assert recalls(torch.tensor([0, 3, 10, 11])) == {"r1": 25.0, "r10": 50.0}


def test_recall_by_what_an_item_has() -> None:
    observed = torch.tensor(
        [[True, False, False], [False, True, True], [True, True, False], [True, False, False]]
    )
    found = by_parts(torch.tensor([0, 20, 0, 20]), observed, ("image", "caption1", "caption2"))
    assert {kind: (row["r1"], row["items"]) for kind, row in found.items()} == {
        "only a picture": (50.0, 2),
        "only text": (0.0, 1),
        "both": (100.0, 1),
    }


def test_areas_and_rank_correlations_by_hand() -> None:
    wrong = torch.tensor([False, False, True, True])
    assert area(torch.tensor([0.1, 0.2, 0.3, 0.4]), wrong) == 1.0
    assert area(torch.tensor([0.4, 0.3, 0.2, 0.1]), wrong) == 0.0
    assert area(torch.ones(4), wrong) == 0.5
    assert area(torch.tensor([0.1, 0.3, 0.2, 0.4]), wrong) == 0.75
    assert area(torch.ones(4), torch.zeros(4, dtype=torch.bool)) is None
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 100.0])) == pytest.approx(
        1
    )
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert rank_correlation(torch.ones(3), torch.tensor([3.0, 2.0, 1.0])) is None


def test_figures_of_answers_by_hand() -> None:
    logits = torch.tensor([[9.0, 0.0], [8.0, 0.0], [0.0, 0.1], [0.2, 0.0]], dtype=torch.float64)
    found = answer_figures(logits, torch.tensor([0, 0, 0, 1]), torch.tensor([0.1, 0.2, 0.8, 0.9]))
    assert found["accuracy"] == 50.0
    assert found["confident_half"] == 100.0
    assert found["area_probability"] == found["area_novelty"] == 1.0
    assert found["calibration_error"] is not None
    assert 20 < found["calibration_error"] < 35


def test_joined_columns_are_the_anchors_of_completions() -> None:
    columns = unit_columns(drawn(5))
    torch.testing.assert_close(joined(columns), F.normalize(columns.sum(2), dim=1))
    three = torch.cat([columns, columns[:, :, :1]], dim=2)
    leading = torch.linalg.svd(three)[0][:, :, 0]
    torch.testing.assert_close((joined(three) * leading).sum(1).abs(), torch.ones(5).double())


def test_gallery_vectors_are_made_of_what_each_item_has() -> None:
    items, observed = drawn(6), torch.tensor([[True, False], [False, True], [True, True]] * 2)
    fits = fit_all(drawn(100), everything(100), unit=True, latent=2, seed=0)
    methods = vector_methods(fits)
    plain = gallery_vectors(methods["no calibration"], items, observed)
    torch.testing.assert_close(plain[0], items["image"][0])
    torch.testing.assert_close(plain[1], items["text"][1])
    torch.testing.assert_close(plain[2], F.normalize(items["image"][2] + items["text"][2], dim=0))
    completion = fits.completions["attune"]
    anchored = gallery_vectors(methods["attune"], items, observed)
    torch.testing.assert_close(
        anchored[:1], completion.anchors(completion.complete({"image": items["image"][:1]}))
    )
    torch.testing.assert_close(anchored[2], plain[2])


# -- sets -----------------------------------------------------------------------------------------------


def test_reworded_captions_say_the_same_in_other_words() -> None:
    listed = scenes("test", 40)
    for scene in listed:
        other = reworded(scene)
        assert other != scene.caption
        assert all(thing.shape in other and thing.colour in other for thing in scene.things)


@pytest.fixture
def captioned(tmp_path: Path) -> CaptionedImages:
    """Three pictures with five captions each."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture = Image.new("RGB", (16, 12), (40 * number, 0, 0))
        picture.putpixel((4, 5), (0, 255, 0))
        picture.save(path)
    captions = [f"picture {number}, caption {view}" for number in range(3) for view in range(5)]
    return CaptionedImages(tmp_path, "dev", paths, captions, [number // 5 for number in range(15)])


def test_a_query_is_the_middle_of_the_picture_mirrored_and_its_last_caption(
    captioned: CaptionedImages, tmp_path: Path
) -> None:
    made = _mirrored(tmp_path, captioned)
    assert list(made.captions) == [f"picture {number}, caption 4" for number in range(3)]
    with Image.open(made.images[0]) as opened:
        assert opened.size == (12, 8)
        assert opened.getpixel((16 - 1 - 4 - 2, 5 - 2)) == (0, 255, 0)
    few = _first(captioned, 2)
    assert len(few.images) == 2
    assert list(few.captions) == list(captioned.captions)[:10]


def test_views_are_the_picture_and_three_captions(captioned: CaptionedImages) -> None:
    encoder = load_encoder(str(demo_encoder_path()), device="cpu")
    numbers = torch.arange(15, dtype=torch.float64)[:, None]
    part = {"image": torch.arange(3, dtype=torch.float64)[:, None], "text": numbers}
    asked = {"image": part["image"] + 0.5, "text": numbers[4::5]}
    made = _as_views("flickr8k-views", captioned, captioned, [part, part, asked], encoder)
    assert list(made.train) == ["image", "caption1", "caption2", "caption3"]
    assert made.test["caption2"][:, 0].tolist() == [1, 6, 11]
    assert list(made.queries["image+text"]) == ["image", "caption1"]
    assert made.queries["text"]["caption1"][:, 0].tolist() == [4, 9, 14]


# -- whole runs -----------------------------------------------------------------------------------------


class NoEncoder:
    name, fingerprint, dtype_name = "none", "none", "fp32"


def test_a_run_on_embeddings_measures_everything_and_imputation_helps() -> None:
    test = drawn(60, seed=2)
    queries: dict[str, Any] = {
        "text": {"text": test["text"]},
        "image": {"image": test["image"]},
        "image+text": dict(test),
    }
    measured = RetrievalSet(
        "tiny",
        drawn(200),
        test,
        queries,
        {"text": "image", "image": "text", "image+text": "image"},
        NoEncoder(),  # type: ignore[arg-type]
        "",
    )
    rows, facts = run(
        measured,
        rates=[0.3, 0.9],
        seeds=[0, 1],
        fit_seeds=[0],
        latent=3,
        bar=lambda title, total: lambda count: None,
    )
    assert facts["attune"]["latent"] == 3
    error = of("error")
    for modality in PAIR:
        wanted = {"fit": "complete", "hidden": "all", "modality": modality}
        found = {
            m: average(rows["imputation"], error, method=m, **wanted) for m in ("mean", "ridge", "attune")
        }
        assert found["attune"] is not None
        assert found["mean"] is not None
        assert found["attune"] < 0.6 < found["mean"]
    shift = of("shift")
    before, after = (
        average(rows["anchors"], shift, fit="complete", method=method) for method in ("observed", "attune")
    )
    assert after is not None
    assert before is not None
    assert after < before
    assert sum(row.get("outside", 0) for row in rows["anchors"]) == 0
    methods = {row["method"] for row in rows["retrieval"]}
    assert {
        "one modality",
        "best modality",
        "no calibration",
        "mean",
        "ridge",
        "published",
        "attune",
    } <= methods
    nowhere = average(
        rows["retrieval"],
        of("by_parts", "only text", "r10"),
        method="one modality",
        query="text",
        hidden="all",
    )
    assert nowhere == 0.0
    seeds = {(row["fit"], row["seed"]) for row in rows["retrieval"]}
    assert seeds == {("complete", 0), ("complete", 1), ("incomplete", 0)}
    assert {row["given"] for row in rows["trust"]} == {"image", "text"}


def test_the_command_measures_scenes_and_the_report_draws_them(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    arguments = ["--set", "scenes", "--train", "60", "--test", "20", "--rates", "0.5", "--seeds", "0"]
    assert main([*arguments, "--latent", "2", "--no-cache", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    assert document["set"] == "scenes"
    assert document["calibrations"]["attune"]["samples"] == 60
    assert report([str(out), "--out", str(tmp_path / "tables"), "--no-plots"]) == 0
    text = (tmp_path / "tables" / "missing.md").read_text()
    assert "## scenes" in text
    assert "Queries: text and picture together. R@1 / R@10" in text


def test_plots_are_drawn_of_what_the_runs_hold(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    about = {"fit": "complete", "hidden": "all", "rate": 0.5, "seed": 0, "method": "attune"}
    recall = {
        "query": "text",
        "r1": 50.0,
        "r10": 90.0,
        "by_parts": {"both": {"r1": 50.0, "r10": 90.0, "items": 3}},
    }
    document = {
        "set": "tiny",
        "model": {"name": "none"},
        "note": "",
        "protocol": {"rates": [0.5]},
        "results": {
            "imputation": [{**about, "modality": "text", "error": 0.5, "cosine": 0.8}],
            "anchors": [{**about, "shift": 0.2}],
            "trust": [],
            "retrieval": [{**about, **recall}],
            "queries": [],
        },
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))
    assert report([str(path), "--out", str(tmp_path / "out")]) == 0
    assert sorted(found.name for found in (tmp_path / "out").iterdir()) == [
        "missing.md",
        "missing_anchors.png",
        "missing_imputation.png",
        "missing_items.png",
        "missing_retrieval.png",
    ]


def test_the_command_measures_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.av_data.DEMO_CLIPS", 48)
    out = tmp_path / "run.json"
    arguments = ["--set", "clips", "--train", "48", "--test", "24", "--rates", "0.5", "--seeds", "0"]
    assert main([*arguments, "--latent", "4", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    rows = document["results"]["classification"]
    assert {row["method"] for row in rows} == {"model", "mean", "ridge", "published", "attune", "auto"}
    chosen = document["calibrations"]["auto"]
    assert set(chosen) == {"audio", "video"}
    for alone, hidden in (("video", "audio"), ("audio", "video")):
        wanted = {"fit": "complete", "hidden": hidden}
        assert average(rows, of("accuracy"), method="auto", **wanted) == average(
            rows, of("accuracy"), method=chosen[alone], **wanted
        )
    assert "Incomplete samples alone" in markdown([document])


def test_the_paths_are_those_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.av_data.DEMO_CLIPS", 24)
    model = load_cav_mae(demo_classifier_path(), device="cpu")
    clips = as_samples(load_av_data("demo", split="test"), model.config)
    found = answers(model, clips, lambda count: None)
    measured = ClassifierSet("tiny", found.features, found, found, model, "")
    fits = fit_all(found.features, everything(24, 3), unit=False, latent=4, seed=0)
    paths = path_logits(measured, found, fits.imputers)
    ((inputs, _),) = prepared(model, clips)
    served = CompletedTwoStream(model, fits.completions["attune"])
    for alone, part in (("audio", AVInputs(inputs.audio, None)), ("video", AVInputs(None, inputs.video))):
        with torch.no_grad():
            torch.testing.assert_close(
                paths["attune"][alone].float(), served.forward(part).logits, atol=1e-3, rtol=1e-4
            )
            torch.testing.assert_close(paths["model"][alone].float(), model.forward(part).logits)


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--cost", "--set", "scenes"]) == 2
    assert main(["--set", "flickr8k"]) == 2
    assert main(["--set", "flickr8k", "--data", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):
        main(["--set", "scenes", "--rates", "1"])
    assert "rate" in capsys.readouterr().err


def test_other_files_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(BadRuns, match="no result"):
        markdown([{"results": {"imputation": 3}}])
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert report([str(path), "--out", str(tmp_path)]) == 2
