"""The online protocol and its command, on pictures and captions made here and the toy encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.base import BadSettings, UnknownMethod
from adapters.registry import make_method
from benchmarks import retrieval
from benchmarks.corruptions import Shift
from benchmarks.datasets import CaptionedImages, load_split
from benchmarks.embedding import gallery_embeddings, generator_for, prepare_images
from benchmarks.exact import ExactSide
from benchmarks.metrics import relevant_ranks, retrieval_metrics
from benchmarks.protocol import Task, make_task, prepare_queries, run_method
from benchmarks.runs import read_run
from encoders.preprocessing import clean_caption, open_image, pixels
from tests.toy import ToyEncoder, sentence

IMAGES = 20


def silent(count: int) -> None:
    """No progress to show."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    (out / "images").mkdir()
    rows, files = ["file\tcaption"], []
    for number in range(IMAGES):
        file = f"images/{number}.png"
        values = np.random.default_rng(number).integers(0, 256, (9 + number % 3, 12, 3), dtype=np.uint8)
        Image.fromarray(values).save(out / file)
        rows += [f"{file}\tA {sentence(10 * number + i)} ." for i in range(2)]
        files.append(file)
    (out / "captions.tsv").write_text("\n".join(rows) + "\n")
    (out / "split_test.txt").write_text("\n".join(files) + "\n")
    return out


@pytest.fixture(scope="module")
def data(folder: Path) -> CaptionedImages:
    return load_split(folder, "test")


def stream(
    data: CaptionedImages, method: str, shift: str = "gaussian_noise:3", direction: Any = "i2t"
) -> Any:
    encoder, parsed = ToyEncoder(), Shift.parse(shift)
    task = make_task(data, direction, seed=0, limit=None)
    items = prepare_queries(task, encoder, parsed, seed=0, scale=False, done=silent)
    gallery = gallery_embeddings(encoder, data, task.gallery_modality, cache=None, done=silent)
    return run_method(
        encoder=encoder,
        task=task,
        shift=parsed,
        items=items,
        gallery=gallery,
        method=make_method(method),
        batch_size=8,
        done=silent,
    )


def test_the_order_is_a_fixed_permutation_and_a_limit_takes_its_head(data: CaptionedImages) -> None:
    whole = make_task(data, "t2i", seed=0, limit=None)
    assert sorted(whole.numbers) == list(range(2 * IMAGES))
    assert list(whole.numbers) != sorted(whole.numbers)
    assert list(make_task(data, "t2i", seed=0, limit=7).numbers) == list(whole.numbers)[:7]
    assert list(make_task(data, "t2i", seed=1, limit=None).numbers) != list(whole.numbers)


def test_relevant_items_follow_the_order(data: CaptionedImages) -> None:
    images = make_task(data, "i2t", seed=0, limit=None)
    for number, relevant in zip(images.numbers, images.relevant, strict=True):
        assert relevant == [2 * number, 2 * number + 1]
    texts = make_task(data, "t2i", seed=0, limit=None)
    for number, relevant in zip(texts.numbers, texts.relevant, strict=True):
        assert relevant == [number // 2]


def test_source_figures_equal_one_large_product(data: CaptionedImages) -> None:
    """No batches, no loop: all clean queries against the whole gallery at once."""
    encoder = ToyEncoder()
    pictures = [pixels(open_image(path.read_bytes()), encoder.image_spec) for path in data.images]
    tower_i, tower_t = encoder.towers["image"], encoder.towers["text"]
    images = tower_i.encode(tower_i.prepare(pictures))
    texts = tower_t.encode(tower_t.prepare([clean_caption(caption) for caption in data.captions]))
    for direction, scores, relevant in (
        ("i2t", images @ texts.T, [[2 * i, 2 * i + 1] for i in range(IMAGES)]),
        ("t2i", texts @ images.T, [[i // 2] for i in range(2 * IMAGES)]),
    ):
        expected = retrieval_metrics(relevant_ranks(scores.numpy(), relevant))
        assert stream(data, "source", "clean", direction).metrics == pytest.approx(expected)


@pytest.mark.parametrize("method", ["source", "tcr", "tcr_untrain"])
def test_a_stream_repeats_exactly_and_starts_from_the_source(data: CaptionedImages, method: str) -> None:
    one, other = stream(data, method), stream(data, method)
    assert one.metrics == other.metrics
    assert [b.drift for b in one.batches] == [b.drift for b in other.batches]
    assert [b.size for b in one.batches] == [8, 8, 4]
    applied = 0 if method == "source" else 3
    assert one.state_version == applied
    assert one.statuses == ({"skipped": 3} if method == "source" else {"applied": 3})


def test_adapting_answers_differently_than_the_source(data: CaptionedImages) -> None:
    drifts = {
        name: [b.drift["modality_gap"] for b in stream(data, name).batches] for name in ("source", "tcr")
    }
    assert drifts["source"][0] == pytest.approx(drifts["tcr"][0])
    assert drifts["source"][2] != pytest.approx(drifts["tcr"][2], abs=1e-7)


def test_a_corruption_depends_on_seed_shift_and_item_but_not_on_the_order(data: CaptionedImages) -> None:
    encoder, shift = ToyEncoder(), Shift.parse("gaussian_noise:5")

    def prepared(numbers: list[int], seed: int = 0) -> list[np.ndarray]:
        paths = [data.images[number] for number in numbers]
        return prepare_images(paths, numbers, encoder, shift, seed=seed, scale=False, done=silent)

    forward, backward = prepared([0, 1, 2]), prepared([2, 1, 0])
    for one, other in zip(forward, reversed(backward), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(forward[0], prepared([0], seed=1)[0])
    draws = [generator_for(0, Shift.parse(s), i).random() for s in ("fog:1", "fog:2") for i in (0, 1)]
    assert len(set(draws)) == 4


def test_a_gallery_is_embedded_once_per_encoder_and_data(data: CaptionedImages, tmp_path: Path) -> None:
    encoder = ToyEncoder()
    first = gallery_embeddings(encoder, data, "text", cache=tmp_path, done=silent)
    forwards = encoder.towers["text"].forwards
    again = gallery_embeddings(encoder, data, "text", cache=tmp_path, done=silent)
    assert torch.equal(first, again)
    assert encoder.towers["text"].forwards == forwards
    gallery_embeddings(encoder, data, "image", cache=tmp_path, done=silent)
    other = gallery_embeddings(ToyEncoder(seed=1), data, "text", cache=tmp_path, done=silent)
    assert not torch.equal(first, other)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_file_is_made_anew(data: CaptionedImages, tmp_path: Path) -> None:
    encoder = ToyEncoder()
    first = gallery_embeddings(encoder, data, "text", cache=tmp_path, done=silent)
    (kept,) = tmp_path.iterdir()
    for damage in (b"", b"no array", kept.read_bytes()[:-7]):
        kept.write_bytes(damage)
        assert torch.equal(gallery_embeddings(encoder, data, "text", cache=tmp_path, done=silent), first)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_exact_search_ranks_equal_scores_by_position() -> None:
    side = ExactSide(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    query = torch.tensor([[1.0, 0.0]])
    assert side.search(query, 3).positions.tolist() == [[1, 2, 0]]
    assert side.search(query, 1).positions.tolist() == [[1]]
    assert side.search(query, 99).positions.shape == (1, 3)
    assert torch.equal(side.vectors(np.array([2])), query)


def test_exact_search_with_fewer_hits_agrees_with_the_complete_ranking() -> None:
    generator = torch.Generator().manual_seed(0)
    side = ExactSide(torch.randn(50, 6, generator=generator))
    queries = torch.randn(7, 6, generator=generator)
    whole, ten = side.search(queries, 50), side.search(queries, 10)
    assert np.array_equal(ten.positions, whole.positions[:, :10])
    assert np.array_equal(ten.scores, whole.scores[:, :10])


def test_settings_go_to_the_methods_that_have_them() -> None:
    methods = retrieval.make_methods(["source", "tcr", "tcr_untrain"], ["temperature=0.1", "tcr.steps=2"])
    settings = {method.name: method.settings.model_dump() for method in methods}
    assert settings["tcr"]["temperature"] == settings["tcr_untrain"]["temperature"] == 0.1
    assert settings["tcr"]["steps"] == 2
    assert settings["source"] == {}


@pytest.mark.parametrize(
    ("names", "setting", "error", "message"),
    [
        (["tcr"], "steps", BadSettings, "is not KEY=VALUE"),
        (["tcr"], "stpes=1", BadSettings, "none of tcr has a setting 'stpes'"),
        (["tcr"], "tcr.stpes=1", BadSettings, "did you mean 'steps'"),
        (["source"], "tcr.steps=1", BadSettings, "'tcr' is not among source"),
        (["tcr"], "steps=0", BadSettings, "steps"),
        (["trc"], "trc.steps=1", UnknownMethod, "did you mean 'tcr'"),
    ],
)
def test_a_wrong_setting_is_refused(
    names: list[str], setting: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        retrieval.make_methods(names, [setting])


def command(folder: Path, *more: str) -> list[str]:
    return ["--encoder", "toy", "--data", str(folder), "--split", "test", "--batch", "8", "--no-cache", *more]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_encoder", lambda name, device, dtype: ToyEncoder())


@pytest.mark.usefixtures("toy")
def test_the_command_writes_every_setting_and_every_batch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    asked = [
        "--direction",
        "i2t",
        "--shift",
        "clean",
        "--shift",
        "fog:2",
        "--method",
        "source",
        "--method",
        "tcr",
    ]
    assert retrieval.main(command(folder, *asked, "--setting", "tcr.steps=2", "--json", str(out))) == 0
    shown = capsys.readouterr().out
    assert "fog:2" in shown
    assert "R@10" in shown
    document = json.loads(out.read_text())
    assert [(r["shift"], r["method"]) for r in document["results"]] == [
        ("clean", "source"),
        ("clean", "tcr"),
        ("fog:2", "source"),
        ("fog:2", "tcr"),
    ]
    assert document["methods"]["tcr"]["steps"] == 2
    assert document["encoder"]["fingerprint"] == "toy-0"
    assert document["protocol"] == "online"
    assert document["settings"] == {
        "batch": 8,
        "limit": None,
        "scale_blur": False,
        "corrupted_on_disk": False,
        "calibrated": False,
    }
    assert (
        document["versions"]["torch"] == torch.__version__.split("+")[0]
        or "+" in document["versions"]["torch"]
    )
    for result in document["results"]:
        assert len(result["batches"]) == 3
        assert set(result["metrics"]) == {"r1", "r5", "r10", "map"}
        assert {"size", "status", "reason", "recall", "drift", "losses", "ms"} == set(result["batches"][0])
        assert (result["direction"], result["seed"], result["queries"]) == ("i2t", 0, IMAGES)
        of_batches = sum(batch["size"] * batch["recall"]["r1"] for batch in result["batches"]) / IMAGES
        assert of_batches == pytest.approx(result["metrics"]["r1"], rel=1e-5)
    source, tcr = document["results"][:2]
    assert retrieval.ratio_to_source(source, document["results"]) == 1.0
    assert retrieval.ratio_to_source(tcr, document["results"][1:]) is None
    assert source["batches"][0]["reason"] == "the source model does not adapt"


@pytest.mark.usefixtures("toy")
def test_a_limit_and_a_text_shift_run_from_text_to_image(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--direction", "t2i", "--shift", "OCR:5", "--method", "tcr_untrain", "--limit", "11"]
    assert retrieval.main(command(folder, *asked)) == 0
    assert "2 applied" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--direction", "i2t", "--shift", "gausian_noise:5", "--method", "tcr"],
            "did you mean 'gaussian_noise'",
        ),
        (["--direction", "i2t", "--shift", "OCR:5", "--method", "tcr"], "OCR:5 corrupts texts"),
        (["--direction", "t2i", "--shift", "fog:5", "--method", "tcr"], "fog:5 corrupts images"),
        (["--direction", "i2t", "--shift", "clean", "--method", "trc"], "did you mean 'tcr'"),
        (["--direction", "i2t", "--shift", "clean", "--method", "tcr", "--setting", "steps=0"], "steps"),
        (
            ["--direction", "i2t", "--shift", "clean", "--method", "tcr", "--split", "dev"],
            "has no split 'dev'",
        ),
    ],
)
def test_what_cannot_be_run_is_said_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert retrieval.main(command(folder, *more)) == 2
    assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("toy")
def test_one_run_holds_both_directions_several_seeds_and_groups_of_shifts(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    asked = ["--direction", "both", "--shift", "clean", "--shifts", "texts:5", "--shift", "fog:1"]
    more = ["--method", "source", "--seed", "3", "--seed", "1", "--limit", "8", "--json", str(out)]
    assert retrieval.main(command(folder, *asked, *more)) == 0
    run = read_run(out)
    texts = [shift for shift in run.asked["shifts"] if shift not in ("clean", "fog:1")]
    assert {"OCR:5", "CD:5", "RS:5"} <= set(texts)
    assert [(stream.direction, stream.seed, stream.shift) for stream in run.results] == [
        *(("i2t", seed, shift) for seed in (3, 1) for shift in ("clean", "fog:1")),
        *(("t2i", seed, shift) for seed in (3, 1) for shift in ("clean", *texts)),
    ]
    assert {stream.queries for stream in run.results} == {8}


RESUMED = [
    "--direction",
    "i2t",
    "--shift",
    "clean",
    "--shift",
    "fog:1",
    "--method",
    "source",
    "--method",
    "tcr",
]


def without_times(document: Any) -> Any:
    """The document without what no two runs share."""
    timed = {"made_at", "ms", "ms_per_batch", "seconds"}
    if isinstance(document, dict):
        return {key: without_times(value) for key, value in document.items() if key not in timed}
    return [without_times(value) for value in document] if isinstance(document, list) else document


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_run_that_was_stopped_ends_as_an_undisturbed_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    assert retrieval.main(command(folder, *RESUMED, "--json", str(whole))) == 0
    ran: list[str] = []

    def until_stopped(**given: Any) -> Any:
        if len(ran) == stop_at:
            raise KeyboardInterrupt
        ran.append(f"{given['shift']} {given['method'].name}")
        return run_method(**given)

    def until_done(given: Any) -> Any:
        ran.append(f"{given['shift']} {given['method'].name}")
        return run_method(**given)

    monkeypatch.setattr(retrieval, "run_method", until_stopped)
    assert retrieval.main(command(folder, *RESUMED, "--json", str(broken))) == 130
    assert len(read_run(broken).results) == stop_at
    monkeypatch.setattr(retrieval, "run_method", lambda **given: until_done(given))
    assert retrieval.main(command(folder, *RESUMED, "--json", str(broken))) == 0
    assert ran == ["clean source", "clean tcr", "fog:1 source", "fog:1 tcr"]
    one, other = (json.loads(path.read_text()) for path in (whole, broken))
    assert without_times(one) == without_times(other)


@pytest.mark.usefixtures("toy")
def test_a_finished_run_can_be_asked_for_more(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    begun = ["--direction", "i2t", "--shift", "fog:1", "--json", str(out)]
    assert retrieval.main(command(folder, *begun, "--method", "tcr")) == 0
    first = json.loads(out.read_text())
    more = ["--method", "source", "--method", "tcr", "--shift", "clean"]
    assert retrieval.main(command(folder, *begun, *more)) == 0
    then = json.loads(out.read_text())
    assert first["results"][0] in then["results"]
    assert len(then["results"]) == 4
    assert first["made_at"] == then["made_at"]
    assert sorted(then["asked"]["shifts"]) == ["clean", "fog:1"]


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "4"], "settings.batch is 8 there, 4 now"),
        (["--setting", "tcr.steps=2"], "tcr.steps is 3 there, 2 now"),
        (["--limit", "9"], "settings.limit is None there, 9 now"),
    ],
)
def test_a_file_of_other_settings_is_refused_and_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "out.json"
    asked = ["--direction", "i2t", "--shift", "clean", "--method", "tcr", "--json", str(out)]
    assert retrieval.main(command(folder, *asked)) == 0
    before = out.read_bytes()
    assert retrieval.main(command(folder, *asked, *more)) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert message in shown
    assert "--restart" in shown
    assert out.read_bytes() == before
    assert retrieval.main(command(folder, *asked, *more, "--restart")) == 0
    assert len(json.loads(out.read_text())["results"]) == 1
    assert out.read_bytes() != before


@pytest.mark.usefixtures("toy")
def test_other_data_of_the_same_name_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / folder.name, tmp_path / "out.json"
    shutil.copytree(folder, copy)
    asked = ["--direction", "i2t", "--shift", "clean", "--method", "source", "--json", str(out)]
    assert retrieval.main(command(copy, *asked)) == 0
    captions = copy / "captions.tsv"
    captions.write_text(captions.read_text().replace("A ", "The ", 1))
    assert retrieval.main(command(copy, *asked)) == 2
    assert "data.digest is" in " ".join(capsys.readouterr().out.split())


def test_several_processes_give_what_one_gives(folder: Path, tmp_path: Path) -> None:
    """With the demo encoder, because other processes do not see what a test replaces."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    asked = [
        "--encoder",
        "demo",
        "--data",
        str(folder),
        "--split",
        "test",
        "--direction",
        "i2t",
        "--no-cache",
    ]
    asked += ["--shift", "clean", "--shift", "fog:1", "--method", "source", "--batch", "10"]
    assert retrieval.main([*asked, "--json", str(one)]) == 0
    assert retrieval.main([*asked, "--parallel", "2", "--json", str(two)]) == 0
    alone, beside = read_run(one), read_run(two)
    assert [stream.shift for stream in beside.results] == ["clean", "fog:1"]
    for stream, other in zip(alone.results, beside.results, strict=True):
        assert stream.metrics == pytest.approx(other.metrics)


def test_a_task_knows_both_modalities(data: CaptionedImages) -> None:
    task: Task = make_task(data, "t2i", seed=0, limit=None)
    assert (task.query_modality, task.gallery_modality) == ("text", "image")
