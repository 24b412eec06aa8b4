"""`attune classify` and `attune calibrate` from the terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.calibration import Calibration, load_calibration, load_encoder_calibration
from encoders.cav_mae import load_cav_mae, save_cav_mae
from encoders.load import load_encoder
from service.cli import app
from service.cli.calibrate_encoder import pairs_of
from service.http.app import create_app
from service.settings import Settings
from tests.encoders.av import CONFIG, lively_weights
from tests.encoders.models import save
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
        assert "a completion needs 10 complete samples at least, there are 6: none is made" in warned

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


class TestCalibrateCompletion:
    """Sixteen complete samples of two labels, and two that lack something."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        save_cav_mae(CONFIG, lively_weights(CONFIG), tmp_path / "model")
        return tmp_path / "model"

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        lines = ["audio\timage\tlabel"]
        for i in range(16):
            (folder / f"{i}.wav").write_bytes(wav(tone(0.3, amplitude=0.1 + i / 20)))
            (folder / f"{i}.png").write_bytes(png(20 + i, 20, "blue" if i % 2 else "red"))
            lines.append(f"{i}.wav\t{i}.png\t{CONFIG.labels[i % 2]}")
        lines += ["0.wav\t\tlabel", "\t1.png\tlabel"]
        (folder / "labels.tsv").write_text("\n".join(lines))
        return folder

    def run(self, model: Path, data: Path, *further: str, code: int = 0) -> tuple[str, str]:
        out = model / "calibration.safetensors"
        where = ["--model", str(model), "--data", str(data), "--out", str(out), "--device", "cpu"]
        return attune("calibrate", *where, "--fisher-samples", "0", *further, code=code)

    def calibration(self, model: Path) -> Calibration:
        return load_calibration(model / "calibration.safetensors", load_cav_mae(model, device="cpu"))

    def test_completion_is_fitted_and_compared_with_the_models_own_path(
        self, model: Path, data: Path
    ) -> None:
        told, warned = self.run(model, data, "--latent", "3")
        made = self.calibration(model)
        assert made.completion is not None
        assert made.completion.modalities == ("audio", "video", "fused")
        assert made.completion.about["complete_samples"] == 13  # a fifth of 16 is held out
        assert made.completion.about["samples"] == 15
        assert {"audio", "fused"} <= set(made.completion.about["relative_error"])
        assert {hidden: counts["samples"] for hidden, counts in made.about["missing"].items()} == {
            "audio": 3,
            "video": 3,
        }
        assert "latent 3, fitted to 13 complete samples and 2 incomplete ones" in told
        assert "relative error of what is imputed (1.00: no better than the mean): audio" in told
        assert re.search(r"without audio: the model's own path is right \d+\.\d%, imputation", told)
        assert "features" in warned

    def test_latent_is_chosen_where_none_is_given(self, model: Path, data: Path) -> None:
        self.run(model, data)
        made = self.calibration(model)
        assert made.completion is not None
        assert made.completion.model.latent >= 1

    def test_fewer_samples_may_be_asked_for(self, model: Path, data: Path) -> None:
        self.run(model, data, "--latent", "2", "--latent-samples", "12")
        made = self.calibration(model)
        assert made.completion is not None
        assert made.completion.about["complete_samples"] == 10

    def test_latent_of_zero_makes_none(self, model: Path, data: Path) -> None:
        told, _ = self.run(model, data, "--latent", "0")
        assert self.calibration(model).holds == {"statistics"}
        assert "completion" not in told

    def test_labels_that_are_not_the_models_compare_nothing(self, model: Path, data: Path) -> None:
        text = (data / "labels.tsv").read_text()
        for label in CONFIG.labels[:2]:
            text = text.replace(f"\t{label}\n", "\tstrange\n")
        (data / "labels.tsv").write_text(text)
        told, warned = self.run(model, data, "--latent", "2")
        made = self.calibration(model)
        assert made.completion is not None
        assert "missing" not in made.about
        assert "own path is not compared" in warned
        assert "without" not in told

    @pytest.mark.parametrize(
        ("latent", "words"),
        [("best", "--latent is auto, 0 or a number"), ("-1", "--latent"), ("1025", "up to 1024"),
         ("500", "larger than the model's width"), ("²", "--latent is auto")],
    )  # fmt: skip
    def test_latent_that_cannot_be_is_refused_before_anything_is_read(
        self, model: Path, data: Path, latent: str, words: str
    ) -> None:
        _, told = self.run(model, data, "--latent", latent, code=2)
        assert words in told
        assert not (model / "calibration.safetensors").exists()

    def test_a_number_asks_for_a_completion_so_too_few_samples_are_an_error(
        self, model: Path, data: Path
    ) -> None:
        _, told = self.run(model, data, "--latent", "2", "--latent-samples", "9", code=2)
        assert "needs 10 complete samples at least, there are 9" in told
        assert not (model / "calibration.safetensors").exists()

    def test_one_model_is_named_not_two_and_not_none(self, model: Path, data: Path) -> None:
        for further in (["--encoder", "demo", "--model", str(model)], []):
            out = ["--data", str(data), "--out", str(model / "c.safetensors")]
            _, told = attune("calibrate", *out, *further, code=2)
            assert "give one of --model and --encoder" in told


class TestCalibrateEncoder:
    @pytest.fixture
    def encoder(self, tmp_path: Path) -> Path:
        return save("clip", tmp_path / "encoder")

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """Twelve pictures, the first with two captions; one without a caption."""
        folder = tmp_path / "data"
        folder.mkdir()
        lines = ["file\tcaption", "0.png\ta first caption"]
        for i in range(12):
            (folder / f"{i}.png").write_bytes(png(20 + i, 20, "blue" if i % 2 else "red"))
            lines.append(f"{i}.png\tcaption number {i} {'blue' if i % 2 else 'red'}")
        (folder / "captions.tsv").write_text("\n".join(lines))
        (folder / "alone.png").write_bytes(png(9, 9, "green"))
        return folder

    def run(self, encoder: Path, data: Path, *further: str, code: int = 0) -> tuple[str, str]:
        out = encoder / "calibration.safetensors"
        where = ["--encoder", str(encoder), "--data", str(data), "--out", str(out), "--device", "cpu"]
        return attune("calibrate", *where, *further, code=code)

    def test_pictures_and_texts_are_fitted_and_tied_to_the_encoder(self, encoder: Path, data: Path) -> None:
        told, _ = self.run(encoder, data, "--latent", "3")
        loaded = load_encoder(str(encoder), device="cpu")
        made = load_encoder_calibration(
            encoder / "calibration.safetensors", fingerprint=loaded.fingerprint, dimension=loaded.dimension
        )
        completion = made.completion
        assert completion is not None
        assert (completion.modalities, completion.unit) == (("image", "text"), True)
        assert (completion.about["samples"], completion.about["complete_samples"]) == (14, 13)
        assert made.about == {"data": "data", "seed": 0, "pairs": 13}
        assert "a completion of pictures and texts" in told
        assert "fitted to 13 complete samples and 1 incomplete ones" in told
        assert "relative error of what is imputed" in told

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda data: (data / "captions.tsv").unlink(), "0 items with picture and text; 8 are needed"),
            (lambda data: (data / "3.png").write_bytes(b"no picture"), "3.png"),
            (lambda data: [file.unlink() for file in data.iterdir()], "holds no items"),
        ],
    )
    def test_data_that_teach_nothing_are_named(
        self, encoder: Path, data: Path, change: Callable[[Path], object], words: str
    ) -> None:
        change(data)
        _, told = self.run(encoder, data, code=2)
        assert words in told
        assert not (encoder / "calibration.safetensors").exists()

    def test_nothing_but_a_completion_can_be_measured_of_it(self, encoder: Path, data: Path) -> None:
        _, told = self.run(encoder, data, "--latent", "0", code=2)
        assert "nothing to measure but a completion" in told
        _, told = self.run(encoder, data, "--latent", "1000", code=2)
        assert "larger than the encoder's" in told

    def test_items_of_a_table_pair_as_they_are(self, tmp_path: Path) -> None:
        items = [
            {"id": "a", "image": tmp_path, "text": "x", "payload": {"captions": ["x", "y"]}},
            {"id": "b", "text": "only"},
            {"id": "c", "image": tmp_path, "payload": {"captions": [1]}},
            {"id": "d", "embeddings": {"image": [1.0]}},
        ]
        pairs = pairs_of(items)
        assert [(pair.image is not None, pair.text) for pair in pairs] == [
            (True, "x"),
            (True, "y"),
            (False, "only"),
            (True, None),
        ]
        with pytest.raises(ValueError, match="'e': the picture has to be a file"):
            pairs_of([{"id": "e", "image": "data:image/png;base64,AAAA"}])
