"""`attune classify` and `attune calibrate` from the terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.calibration import load_calibration
from encoders.cav_mae import load_cav_mae, save_cav_mae
from service.cli import app
from service.http.app import create_app
from service.settings import Settings
from tests.encoders.av import CONFIG, lively_weights
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.pictures import encoded, png
from tests.service.http.sounds import tone, wav
from tests.service.running import running

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with running(create_app(Settings(), engine)) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(wav())
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def attune(*arguments: str, code: int = 0, url: str = "") -> tuple[str, str]:
    """What the command writes on stdout and on stderr."""
    result = CliRunner().invoke(app, arguments, env={"ATTUNE_URL": url, "COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout, result.stderr


def test_pair_of_files_is_one_sample(url: str, engine: FakeEngine, folder: Path) -> None:
    out, told = attune(
        "classify", "--audio", str(folder / "a.wav"), "--image", str(folder / "a.png"), "-k", "2", url=url
    )
    assert re.search(r"1 +0\.5000 +bell", out)
    assert "car" not in out
    assert "audio+video->label: brimpr async, queued, state 3" in told
    assert engine.classified[0].samples[0].missing == ()


def test_files_are_samples_by_their_endings(url: str, engine: FakeEngine, folder: Path) -> None:
    out, _ = attune(
        "classify", str(folder / "a.wav"), str(folder / "a.png"), "--adapt", "off", "--stream", "s", url=url
    )
    assert "a.wav:  (without video)" in out
    assert "a.png:  (without audio)" in out
    assert (engine.classified[0].adapt, engine.classified[0].stream) == ("off", "s")


def test_labels_make_it_zero_shot(url: str, engine: FakeEngine) -> None:
    out, _ = attune(
        "classify", "--text", "miaow", "-l", "cat", "-l", "dog", "--template", "a {}", "--json", url=url
    )
    assert json.loads(out)["results"][0]["labels"][0] == {"label": "cat", "probability": 0.5}
    assert (engine.classified[0].labels, engine.classified[0].template) == (("cat", "dog"), "a {}")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["notes.txt"], 2),
        (["none.wav"], 2),
        (["--ndjson", "--text", "a"], 2),
        (["--text", "a", "--batch", "3"], 2),
        (["--text", "a"], 1),
    ],
)
def test_wrong_use_and_refusals_are_told(url: str, arguments: list[str], code: int) -> None:
    _, told = attune("classify", *arguments, code=code, url=url)
    assert told
    assert "Traceback" not in told


def test_streams_method_is_set_for_a_task(url: str, engine: FakeEngine) -> None:
    attune("stream", "set", "s", "--method", "eata", "--task", "classify", url=url)
    assert engine.streams["s"]["classify"] == {"method": "eata", "settings": {}}


class TestNdjson:
    def start(self, url: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "service.cli", "classify", "--ndjson", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"ATTUNE_URL": url},
        )

    def test_answers_come_while_lines_are_still_written(self, url: str, engine: FakeEngine) -> None:
        process = self.start(url, "--top", "1", "--adapt", "off")
        assert process.stdin is not None
        assert process.stdout is not None
        for i in range(3):
            process.stdin.write(json.dumps({"id": str(i), "image": encoded(png())}) + "\n\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert (answer["index"], answer["id"], len(answer["labels"])) == (i, str(i), 1)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
        assert {request.adapt for request in engine.classified} == {"off"}

    def test_failed_lines_are_answered_and_counted(self, url: str) -> None:
        process = self.start(url)
        out, told = process.communicate(f'{{\n{{"image": "{encoded(png())}"}}', timeout=30)
        assert ["error" in json.loads(line) for line in out.splitlines()] == [True, False]
        assert told == "attune: 1 lines failed; their answers say why\n"
        assert process.returncode == 1

    def test_refused_stream_ends_while_stdin_stays_open(self, url: str) -> None:
        process = self.start(url, "-l", "only one")
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.wait(30) == 1
        assert "[invalid_request]" in process.stderr.read()
        process.communicate()


class TestCalibrate:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        save_cav_mae(CONFIG, lively_weights(), tmp_path / "model")
        return tmp_path / "model"

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        lines = ["audio\timage\tlabel"]
        for i in range(6):
            (folder / f"{i}.wav").write_bytes(wav(tone(0.3, amplitude=0.1 + i / 10)))
            (folder / f"{i}.png").write_bytes(png(20 + i, 20, "blue"))
            lines.append(f"{i}.wav\t{i}.png\tlabel")
        lines.append("0.wav\t\tlabel")
        (folder / "labels.tsv").write_text("\n".join(lines))
        return folder

    def run(self, model: Path, data: Path, out: Path, *further: str, code: int = 0) -> tuple[str, str]:
        where = ["--model", str(model), "--data", str(data), "--out", str(out), "--device", "cpu"]
        return attune("calibrate", *where, *further, code=code)

    def test_statistics_and_fisher_values_are_measured_and_tied_to_the_model(
        self, model: Path, data: Path
    ) -> None:
        out = model / "calibration.safetensors"
        told, warned = self.run(
            model, data, out, "--samples", "4", "--fisher-samples", "5", "--batch-size", "2"
        )
        assert "source statistics of 4 samples, Fisher values of 5" in told
        assert "only" not in warned
        classifier = load_cav_mae(model, device="cpu")
        calibration = load_calibration(out, classifier)
        assert calibration.fingerprint == classifier.fingerprint
        assert calibration.holds == {"statistics", "fisher"}
        assert calibration.about == {
            "data": "data",
            "seed": 0,
            "statistics_samples": 4,
            "fisher_samples": 5,
            "fisher_batch": 2,
        }

    def test_same_seed_draws_the_same_samples(self, model: Path, data: Path, tmp_path: Path) -> None:
        found: list[Any] = []
        for i, seed in enumerate(("0", "0", "1")):
            out = tmp_path / f"{i}.safetensors"
            self.run(model, data, out, "--samples", "3", "--fisher-samples", "0", "--seed", seed)
            calibration = load_calibration(out, load_cav_mae(model, device="cpu"))
            assert calibration.holds == {"statistics"}
            assert calibration.statistics is not None
            found.append(calibration.statistics.audio.mean.tolist())
        assert found[0] == found[1] != found[2]

    def test_fewer_samples_than_asked_are_told(self, model: Path, data: Path) -> None:
        _, warned = self.run(model, data, model / "c.safetensors")
        assert "only 6 complete samples" in warned

    @pytest.mark.parametrize(
        ("broken", "words"),
        [("labels.tsv", "no labels.tsv"), ("3.wav", "there is no file"), ("model", "folder lacks")],
    )
    def test_what_is_missing_is_named_and_nothing_is_written(
        self, model: Path, data: Path, tmp_path: Path, broken: str, words: str
    ) -> None:
        if broken == "model":
            (model / "model.safetensors").unlink()
        else:
            (data / broken).unlink()
        out = tmp_path / "c.safetensors"
        _, told = self.run(model, data, out, code=2)
        assert words in told
        assert not out.exists()

    def test_bad_sound_is_named(self, model: Path, data: Path, tmp_path: Path) -> None:
        (data / "2.wav").write_bytes(b"hello")
        _, told = self.run(model, data, tmp_path / "c.safetensors", code=2)
        assert "2.wav" in told
