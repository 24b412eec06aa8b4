"""The file of a run: what is kept, what is refused, what is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runs import FORMAT, BadRun, RunFile, read_run

HEAD: dict[str, Any] = {
    "format": FORMAT,
    "protocol": "online",
    "encoder": {"name": "toy", "fingerprint": "f"},
    "data": {"name": "scenes", "digest": "d"},
    "settings": {"batch": 8},
    "methods": {"source": {}},
    "machine": {"cores": 2, "platform": "one"},
}


def stream(shift: str, **more: Any) -> dict[str, Any]:
    made = {"direction": "i2t", "seed": 0, "shift": shift, "method": "source", "queries": 8}
    return {**made, "metrics": {"r1": 12.5}, **more}


def begin(path: Path, head: dict[str, Any] | None = None, **more: Any) -> RunFile:
    return RunFile.begin(path, HEAD if head is None else head, lambda key: key, **more)


def test_the_file_is_whole_after_every_stream_and_ordered(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    run = begin(path)
    for shift in ("snow:1", "fog:1"):
        run.add(stream(shift))
        assert shift in [result.shift for result in read_run(path).results]
    assert [result.shift for result in read_run(path).results] == ["fog:1", "snow:1"]
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


def test_batches_are_rounded_and_what_is_no_number_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    batch = {"size": 8, "losses": {"rem": float("nan")}, "drift": {"modality_gap": 0.123456789}}
    begin(path).add(stream("fog:1", batches=[batch]))
    (read,) = read_run(path).results[0].batches
    assert read.losses == {"rem": None}
    assert read.drift == {"modality_gap": 0.123457}


def test_a_kernel_and_a_folder_of_another_name_do_not_make_another_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    begin(path).add(stream("fog:1"))
    renamed = {**HEAD, "machine": {"cores": 2, "platform": "two"}, "data": {"name": "copy", "digest": "d"}}
    assert len(begin(path, renamed)) == 1


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("encoder", {"name": "toy", "fingerprint": "g"}, "encoder.fingerprint is 'f' there, 'g' now"),
        ("settings", {"batch": 8, "limit": 3}, "settings.limit is None there, 3 now"),
        ("protocol", "continual", "protocol is 'online' there"),
        ("machine", {"cores": 64}, "machine.cores is 2 there"),
        ("gallery", {"digest": "x"}, "gallery is None there"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path: Path, part: str, value: Any, message: str) -> None:
    path = tmp_path / "run.json"
    begin(path).add(stream("fog:1"))
    with pytest.raises(BadRun, match=message):
        begin(path, {**HEAD, part: value})
    assert len(begin(path, {**HEAD, part: value}, restart=True)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "its `format` is not"),
        ('{"format": "other"}', "its `format` is not"),
        (json.dumps({**HEAD, "results": [stream("fog:1", queries=0)]}), r"results\.0\.queries"),
        (
            json.dumps({**HEAD, "results": [stream("fog:1", metrics={"r1": "much"})]}),
            r"results\.0\.metrics\.r1",
        ),
        (json.dumps({**HEAD, "results": [stream("fog:1", metrics={"r1": float("inf")})]}), r"metrics\.r1"),
        (json.dumps({**HEAD, "encoder": {}, "results": []}), r"encoder\.name"),
        (json.dumps(HEAD), "results: Field required"),
        (json.dumps({**HEAD, "results": [stream("f" * 500)]}), r"results\.0\.shift"),
    ],
)
def test_what_is_no_run_is_said_with_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(BadRun, match=message) as caught:
        read_run(path)
    assert str(path) in str(caught.value)
    with pytest.raises(BadRun):
        begin(path)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRun, match="cannot be read"):
        read_run(tmp_path / "none.json")
