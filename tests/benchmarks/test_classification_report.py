"""Tables made of the classification benchmark's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.classification_report import BadRuns, main, markdown, merge


def run(*results: tuple[str, str, float], fingerprint: str = "f") -> dict[str, Any]:
    return {
        "model": {"fingerprint": fingerprint},
        "data": {"note": "", "samples": 10},
        "results": [
            {
                "shift": shift,
                "kind": shift.partition(":")[0],
                "method": method,
                "accuracy": accuracy,
                "accuracy_spread": 0.0,
                "seeds": [{}],
                "ms_ratio_to_source": 1.0 if method == "source" else 3.0,
            }
            for shift, method, accuracy in results
        ],
    }


def test_rows_are_ordered_by_kind_and_the_best_is_bold() -> None:
    first = run(("video:fog:5", "source", 50.0), ("clean", "source", 90.0))
    second = run(("video:fog:5", "tent", 60.0), ("clean", "tent", 90.0), ("video:snow:5", "source", 10.0))
    lines = markdown(merge([first, second])).splitlines()
    assert lines[0] == "| shift | source | tent |"
    assert lines[2:] == [
        "| clean | **90.0** | **90.0** |",
        "| video:fog:5 | 50.0 | **60.0** |",
        "| video:snow:5 | **10.0** |  |",
        "| **mean of 2 video** | **30.0** |  |",
        "| cost of a batch, x source | 1.0 | 3.0 |",
    ]


def test_a_later_run_replaces_an_earlier_one() -> None:
    results = merge([run(("clean", "source", 1.0)), run(("clean", "source", 2.0))])
    assert results.cells["clean", "source"].accuracy == 2.0


def test_runs_of_different_models_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRuns, match="different models"):
        merge([run(("clean", "source", 1.0)), run(("clean", "source", 1.0), fingerprint="g")])
    with pytest.raises(BadRuns, match="lacks 'model'"):
        merge([{}])
    path = tmp_path / "x.json"
    path.write_text("[")
    assert main([str(path)]) == 2


def test_table_and_picture_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run(("clean", "source", 1.0), ("clean", "brimpr", 2.0))))
    assert main([str(path), "--markdown", str(tmp_path / "t.md"), "--plot", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "t.md").read_text().startswith("| shift | source | brimpr |")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
