"""The guard's benchmark from its command line to its report, on small pictures and the toy encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import encoders.load
from benchmarks import guard
from tests.toy import ToyEncoder, sentence

BATCH = 8
IMAGES = BATCH * (guard.WARM + guard.AFTER)


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
def _toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(encoders.load, "load_encoder", lambda *args, **kwargs: ToyEncoder())
    monkeypatch.setattr(guard, "default_cache", lambda: tmp_path / "cache")


def run(folder: Path, out: Path, *arguments: str) -> dict[str, Any]:
    sizes = ["--batch", str(BATCH), "--batches", "3", "--segment", "2"]
    assert guard.main(["--data", str(folder), "--json", str(out), *sizes, *arguments]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_poison_is_told_with_and_without_the_guard(folder: Path, tmp_path: Path) -> None:
    found = run(folder, tmp_path / "out.json", "--part", "poison")
    rows = {(row["poison"], row["guard"]): row for row in found["poison"]}
    assert len(rows) == 12
    assert rows["near-duplicates", "off"]["learned_from"] == guard.POISONED
    assert rows["near-duplicates", "off"]["noticed_at_batch"] is None
    assert rows["near-duplicates", "on"]["learned_from"] == 0
    assert rows["near-duplicates", "on"]["noticed_at_batch"] == 1
    recall = rows["noise", "off"]["after"]
    assert 0 <= recall["r1"] <= recall["r10"] <= 100
    assert len(rows["noise", "on"]["records"]) == guard.WARM + guard.POISONED + guard.AFTER


def test_other_streams_are_bit_identical_beside_a_poisoned_one(folder: Path, tmp_path: Path) -> None:
    found = run(folder, tmp_path / "out.json", "--part", "isolation")
    assert found["isolation"]["bit_identical"] == {"clean": True, "contrast:3": True}
    assert len(set(found["isolation"]["digests"].values())) == 2


def test_steady_and_changing_streams_and_the_cost_are_measured(folder: Path, tmp_path: Path) -> None:
    parts = ["--part", "steady", "--part", "changes", "--part", "cost"]
    found = run(folder, tmp_path / "out.json", *parts)
    assert {row["shift"] for row in found["steady"]} == set(guard.STEADY)
    assert [row["guard"] for row in found["changes"][:3]] == ["off", "on", "reset by hand"]
    assert all(
        row["recall"]["source_r1"] == found["changes"][0]["recall"]["source_r1"] for row in found["changes"]
    )
    assert {(row["direction"], row["method"]) for row in found["cost"]} == {
        (direction, method) for direction in ("i2t", "t2i") for method in ("tcr", "tcr_untrain")
    }
    assert found["about"]["thresholds_chosen_on"] == list(guard.CHOSEN_ON)


def test_what_is_reported_was_not_what_the_thresholds_were_chosen_on() -> None:
    assert (set(guard.STEADY) | set(guard.CHANGES)) & set(guard.CHOSEN_ON) <= {"clean"}


def test_the_picture_is_drawn(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(folder, tmp_path / "out.json", "--part", "changes", "--plot", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_pictures_are_said_plainly(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard.main(["--data", str(folder), "--batch", str(2 * BATCH), "--part", "poison"]) == 2
    assert f"poison needs {2 * IMAGES} queries" in capsys.readouterr().out
