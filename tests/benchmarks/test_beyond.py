"""Streams beyond the papers, from the command line to the file, on small pictures and the toy encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapters.registry import make_method
from benchmarks import retrieval
from benchmarks.beyond import __main__ as command
from benchmarks.beyond import bench
from benchmarks.beyond.plans import PROTOCOLS
from benchmarks.beyond.topics import by_shape
from benchmarks.datasets import load_split
from benchmarks.embedding import batches, gallery_embeddings
from benchmarks.protocol import Ran, Sent, make_task, prepare_queries, run_stream
from benchmarks.report.sections import sections_of
from benchmarks.runs import read_run
from tests.toy import ToyEncoder, sentence

IMAGES, BATCH = 24, 4
ALL = [f"--protocol={name}" for name in PROTOCOLS]
METHODS = ["--method=source", "--method=tcr"]
COSTS = ["--cost=tcr=3"]


def silent(count: int) -> None:
    """No progress to show."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    (out / "images").mkdir()
    rows, files = ["file\tcaption"], []
    for number in range(IMAGES):
        file = f"images/{number}.png"
        values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(out / file)
        rows.append(f"{file}\t{sentence(number)}")
        files.append(file)
    (out / "captions.tsv").write_text("\n".join(rows) + "\n")
    (out / "split_test.txt").write_text("\n".join(files) + "\n")
    return out


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_encoder", lambda name, device, dtype: ToyEncoder())


def run(folder: Path, out: Path | None, *more: str, direction: str = "i2t") -> int:
    given = ["--encoder", "toy", "--data", str(folder), "--split", "test", "--direction", direction]
    sizes = ["--batch", str(BATCH), "--no-cache", "--topics", "3", "--change-every", "2", "--orders", "1"]
    return command.main([*given, *sizes, *more, *([] if out is None else ["--json", str(out)])])


def without_times(value: Any) -> Any:
    timed = {"made_at", "ms", "ms_per_batch", "seconds"}
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in timed}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def streamed(folder: Path, method: str, settings: dict[str, Any], **more: Any) -> Ran:
    encoder, data = ToyEncoder(), load_split(folder, "test")
    task = make_task(data, "i2t", seed=0, limit=None)
    clean = retrieval.Shift.parse("clean")
    items = prepare_queries(task, encoder, clean, seed=0, scale=False, done=silent)
    return run_stream(
        encoder=encoder,
        modality="image",
        sent=map(Sent, batches(items, BATCH), batches(task.relevant, BATCH)),
        gallery=gallery_embeddings(encoder, data, "text", cache=None, done=silent),
        method=make_method(method, settings),
        name="clean",
        done=silent,
        **more,
    )


def test_a_slow_method_answers_with_the_weights_of_before_and_does_not_learn(folder: Path) -> None:
    """Busy for three batches: the update of batch 0 is there from batch 3 on."""
    fast = {"learning_rate": 0.5, "steps": 1}
    source, late = streamed(folder, "source", {}), streamed(folder, "tcr", fast, learn_every=3)
    assert [batch.status for batch in late.batches] == ["applied", "stale", "stale"] * 2
    assert late.state_version == 2

    def same(number: int) -> bool:
        pairs = zip(source.ranks[number], late.ranks[number], strict=True)
        return all(np.array_equal(one, other) for one, other in pairs)

    # One step answers before its update, so batch 0 is the source's too.
    assert [same(number) for number in range(3)] == [True] * 3
    assert not any(same(number) for number in range(3, 6))


def test_a_batch_without_right_answers_is_learned_from_and_not_scored(folder: Path) -> None:
    pictures = [np.zeros((3, 8, 8), np.uint8)] * BATCH
    encoder, data = ToyEncoder(), load_split(folder, "test")
    ran = run_stream(
        encoder=encoder,
        modality="image",
        sent=[Sent(pictures, None), Sent(pictures, [[0]] * BATCH)],
        gallery=gallery_embeddings(encoder, data, "text", cache=None, done=silent),
        method=make_method("tcr", {}),
        name="copies",
        done=silent,
    )
    assert [len(found) for found in ran.ranks] == [0, BATCH]
    assert ran.batches[0].recall == {}
    assert ran.result(shift="clean", method="tcr", batch_size=BATCH).queries == BATCH


def test_every_protocol_is_a_run_that_the_report_reads(folder: Path, tmp_path: Path) -> None:
    sweep = ["--sweep=steps=1", "--sweep=batch=6", "--shift=clean", "--shift=fog:1", "--tiny=1", "--tiny=3"]
    assert run(folder, tmp_path, *ALL, *METHODS, *COSTS, *sweep) == 0
    runs = {name: read_run(tmp_path / f"{name}.json") for name in PROTOCOLS}
    assert {name: found.protocol for name, found in runs.items()} == {name: name for name in PROTOCOLS}
    streams = {
        name: {(stream.shift, stream.variant, stream.method) for stream in found.results}
        for name, found in runs.items()
    }
    both = ("source", "tcr")
    assert streams["continual"] == {
        ("order 1", guard, name) for guard in ("", "with the guard") for name in both
    }
    assert streams["mixed"] == {("order 1", "", name) for name in both}
    assert streams["long_clean"] == {("clean", "", name) for name in both}
    assert {variant for _, variant, _ in streams["correlated"]} == {"shuffled", "by topic"}
    assert {variant for _, variant, _ in streams["tiny"]} == {"batches of 1", "batches of 3"}
    assert {name for _, _, name in streams["sensitivity"]} == {*both, "tcr steps=1", "tcr batch=6"}
    sections = sections_of(list(runs.values()))
    assert [section.missing for section in sections] == [0] * len(sections)
    assert {section.protocol.title for section in sections} >= {"Continual", "Tiny batches", "In real time"}


def test_figures_are_those_of_the_ranks_and_source_is_no_better_than_itself(
    folder: Path, tmp_path: Path
) -> None:
    assert run(folder, tmp_path, "--protocol=near_duplicates", *METHODS, "--shift=fog:1") == 0
    document = json.loads((tmp_path / "near_duplicates.json").read_text())
    results = {(one["method"], one["variant"]): one for one in document["results"]}
    for one in results.values():
        whole = one["figures"]["whole"]
        assert whole["answers"] == one["queries"] == IMAGES
        assert whole["r1"] == pytest.approx(one["metrics"]["r1"])
        assert whole["gain_r10"] == pytest.approx(whole["r10"] - whole["other_r10"])
        assert whole["other_r10"] == pytest.approx(results["source", "without copies"]["metrics"]["r10"])
    source = results["source", "with copies"]["figures"]
    assert {part["gain_r1"] for part in source.values()} == {0.0}
    copied = results["tcr", "with copies"]
    assert copied["figures"]["control"]["other_r1"] == results["tcr", "without copies"]["metrics"]["r1"]
    assert copied["figures"]["control_after"]["answers"] == 2 * IMAGES // 3
    assert [batch["segment"] for batch in copied["batches"]].count("copies") == 6
    guarded = results["tcr", "with copies, with the guard"]
    assert [b["status"] for b in guarded["batches"] if b["segment"] == "copies"] == ["skipped"] * 6
    actions = [b["guard"] for b in guarded["batches"] if b["segment"] == "copies"]
    assert actions == ["skip", "", "", "skip", "", ""]  # a finding that lasts is told once
    assert {b["guard"] for b in copied["batches"]} == {""}
    assert document["settings"]["guard"]["policy"] == "rollback"


def test_a_given_cost_says_how_often_a_method_learns(folder: Path, tmp_path: Path) -> None:
    asked = ["--protocol=realistic", *METHODS, "--shift=fog:1"]
    assert run(folder, tmp_path, *asked, "--cost=tcr=2.5") == 0
    document = json.loads((tmp_path / "realistic.json").read_text())
    assert document["settings"]["cost"] == {"tcr": 2.5}
    found = {(one["method"], one["variant"]): one for one in document["results"]}
    assert found["tcr", "the stream does not wait"]["learns_every"] == 3
    assert found["tcr", "the stream does not wait"]["statuses"] == {"applied": 2, "stale": 4}
    assert found["tcr", "the stream waits"]["statuses"] == {"applied": 6}
    assert found["source", "the stream does not wait"]["statuses"] == {"skipped": 6}


def test_a_cost_that_is_not_given_is_measured_against_source(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, "--protocol=realistic", "--method=tcr", "--shift=clean") == 0
    document = json.loads((tmp_path / "realistic.json").read_text())
    (in_time,) = [one for one in document["results"] if one["variant"] == "the stream does not wait"]
    assert in_time["cost"] > 0
    assert in_time["statuses"]["applied"] == -(-6 // in_time["learns_every"])


def test_the_same_command_gives_the_same_and_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--protocol=continual", "--protocol=near_duplicates", *METHODS, "--shift=clean", "--shift=fog:1"]
    assert run(folder, tmp_path / "whole", *asked) == 0
    left = 3

    def until_stopped(**given: Any) -> Ran:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return run_stream(**given)

    with monkeypatch.context() as patch:
        patch.setattr(bench, "run_stream", until_stopped)
        assert run(folder, tmp_path / "broken", *asked) == 130
    begun = len(read_run(tmp_path / "broken" / "continual.json").results)
    assert 0 < begun < 4
    assert run(folder, tmp_path / "broken", *asked) == 0
    for name in ("continual.json", "near_duplicates.json"):
        one, other = (json.loads((tmp_path / each / name).read_text()) for each in ("whole", "broken"))
        assert without_times(one) == without_times(other)

    def never(**given: Any) -> Ran:
        raise AssertionError("everything is there already")

    monkeypatch.setattr(bench, "run_stream", never)
    assert run(folder, tmp_path / "broken", *asked) == 0


def test_texts_ask_for_pictures_under_every_protocol(folder: Path, tmp_path: Path) -> None:
    asked = [*ALL, "--method=tcr_untrain", "--shift=clean", "--shift=OCR:5", "--tiny=5", "--sweep=scale=1"]
    assert run(folder, tmp_path, *asked, direction="t2i") == 0
    assert {stream.direction for stream in read_run(tmp_path / "mixed.json").results} == {"t2i"}


def test_another_length_of_a_segment_is_another_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--protocol=continual", "--method=source", "--shift=clean"]
    assert run(folder, tmp_path, *asked) == 0
    assert run(folder, tmp_path, *asked, "--change-every", "3") == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "settings.change_every is 2 there, 3 now" in shown
    assert run(folder, tmp_path, *asked, "--passes", "9") == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--protocol=near_duplicates", "--batch=12"], "at least three batches"),
        (["--protocol=realistic", "--cost=tent=3"], "of a chosen method"),
        (["--protocol=realistic", "--cost=tcr=0.5"], "1 or more"),
        (["--protocol=sensitivity", "--sweep=stpes=1"], "has a setting 'stpes'"),
        (["--protocol=mixed", "--shift=OCR:5"], "OCR:5 corrupts texts"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    shift = [] if any(one.startswith("--shift") for one in more) else ["--shift=clean"]
    assert run(folder, None, "--method=tcr", *shift, *more) == 2
    assert message in " ".join(capsys.readouterr().out.split())


def test_drawn_scenes_are_ordered_by_shape_and_other_pictures_are_not(tmp_path: Path, folder: Path) -> None:
    from demo.scenes import write_folder

    rng = np.random.default_rng(0)
    assert by_shape(make_task(load_split(folder, "test"), "i2t", seed=0, limit=None), rng) is None
    write_folder(tmp_path, "test", 12, size=32)
    for direction in ("i2t", "t2i"):
        task = make_task(load_split(tmp_path, "test"), direction, seed=0, limit=None)
        order = by_shape(task, rng)
        assert order is not None
        assert sorted(order) == list(range(len(task.numbers)))
