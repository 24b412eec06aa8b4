"""The command line against a real uvicorn in a thread, around the engine of dictionaries."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvicorn
from structlog.testing import capture_logs
from typer.testing import CliRunner

from service.cli import app
from service.cli.common import parse_assignments
from service.cli.serve import announcement
from service.cli.sources import read_items
from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.pictures import png

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_app(Settings(), engine), log_config=None, ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        with capture_logs():
            thread.start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


class Attune:
    """`attune ... --url URL`, and what came of it."""

    def __init__(self, url: str) -> None:
        self._environment = {"ATTUNE_URL": url, "COLUMNS": "200"}

    def __call__(self, *arguments: str, code: int = 0, input: str | None = None) -> str:
        result = CliRunner().invoke(app, arguments, env=self._environment, input=input)
        assert result.exit_code == code, (result.output, result.exception)
        self.stderr = result.stderr
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def cli(url: str) -> Attune:
    return Attune(url)


def test_query_shows_hits_and_what_was_done(cli: Attune) -> None:
    output = cli("query", "a red circle", "-k", "2")
    assert re.search(r'1 +1\.0000 +scene-0 +\{"colour": "red", "n": 0\}', output)
    assert "scene-2" not in output
    assert "text->text: tcr async, queued, state 3" in cli.stderr


def test_query_takes_pictures_filters_and_options(cli: Attune, engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    picture = str(tmp_path / "a.png")
    answer = cli.json(
        "query", "--image", picture, "-i", picture, "--filter", '{"n": 1}', "--adapt", "off",
        "--stream", "S", "--target", "text",
    )  # fmt: skip
    assert len(answer["results"]) == 2
    (asked,) = engine.requests
    assert [query.kind for query in asked.queries] == ["image", "image"]
    assert (asked.filter, asked.adapt, asked.stream, asked.target, asked.k) == (
        {"n": 1},
        "off",
        "S",
        "text",
        5,
    )


def test_a_text_and_a_picture_make_one_composed_query(
    cli: Attune, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    output = cli("query", "the same in blue", "--image", str(tmp_path / "a.png"))
    (asked,) = engine.requests
    assert [query.kind for query in asked.queries] == ["image+text"]
    assert "scene-0" in output


def test_query_shows_what_was_imputed(cli: Attune, engine: FakeEngine) -> None:
    engine.completed = True
    output = cli("query", "a red circle")
    assert "image imputed (0.50), text" in output
    assert "query: image imputed (0.40), text; novelty 0.25" in cli.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["query"],
        ["query", "a", "b", "--image", __file__],
        ["query", "a", "--filter", "{"],
        ["query", "a", "--filter", "[]"],
        ["query", "--image", "none.png"],
        ["query", "a", "-k", "many"],
        ["stream", "set", "s", "--set", "steps"],
        ["gallery", "add", "demo", "/no/such/folder"],
        ["brew"],
    ],
)
def test_wrong_use_is_exit_code_2(cli: Attune, arguments: list[str]) -> None:
    cli(*arguments, code=2)
    assert cli.stderr
    assert "Traceback" not in cli.stderr


def test_refusal_of_the_server_is_one_line_and_exit_code_1(cli: Attune) -> None:
    cli("gallery", "show", "none", code=1)
    assert cli.stderr == "attune: there is no gallery 'none' [unknown_gallery]\n"


def test_server_that_does_not_run_is_one_line_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    cli = Attune(f"http://127.0.0.1:{port}")
    cli("gallery", "list", code=1)
    assert "attune serve" in cli.stderr
    assert cli.stderr.count("\n") == 1


def test_gallery_is_filled_from_a_folder_with_captions(
    cli: Attune, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "sub" / "b.PNG").write_bytes(png())
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "captions.tsv").write_text("a.png\ta red scene\n\n")
    cli("gallery", "create", "shop", "--index", "kind=flat")
    added = cli.json("gallery", "add", "shop", str(tmp_path), "--batch-size", "1")
    assert added == {"added": 2, "replaced": 0, "items": 2}
    stored = engine.galleries["shop"]
    assert stored["a.png"].text == "a red scene"
    assert stored["sub/b.PNG"].text is None
    assert stored["sub/b.PNG"].pixels is not None
    assert stored["sub/b.PNG"].payload == {"file": "sub/b.PNG"}


def test_a_gallery_is_created_with_a_calibration(cli: Attune, engine: FakeEngine) -> None:
    card = cli.json("gallery", "create", "shop", "--calibration", "encoder")
    assert card["calibration"] == "encoder"
    assert re.search(r"shop +0 +\{\S+ 0\} +encoder +ready", cli("gallery", "list"))
    cli("gallery", "create", "other", "--calibration", "none", code=1)
    assert "unknown_calibration" in cli.stderr
    assert "other" not in engine.galleries


def test_several_captions_of_a_file_make_one_item_and_a_header_is_no_item(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "captions.tsv").write_text("file\tcaption\na.png\ta red scene\na.png\tsomething red\n")
    (item,) = read_items(tmp_path)
    assert item["text"] == "a red scene"
    assert item["payload"] == {
        "file": "a.png",
        "caption": "a red scene",
        "captions": ["a red scene", "something red"],
    }


def test_gallery_is_filled_from_jsonl(cli: Attune, engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    lines = [
        {"id": "one", "text": "words", "payload": {"n": 1}},
        {"id": "two", "image": "a.png"},
        {"id": "three", "embeddings": {"text": [1, 0, 0, 0]}},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert "added     3" in cli("gallery", "add", "demo", str(tmp_path / "items.jsonl"))
    assert engine.galleries["demo"]["two"].pixels is not None
    assert cli.json("gallery", "remove", "demo", "one", "none") == {"deleted": 1}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("captions.tsv", "a.png", r"captions\.tsv:1: a line is FILE<TAB>CAPTION"),
        ("captions.tsv", "\nnone.png\twords", r"captions\.tsv:2: there is no file"),
        ("items.jsonl", '{"id": "a", "text": "x"}\n{', r"items\.jsonl:2: "),
        ("items.jsonl", '{"text": "x"}', r"items\.jsonl:1: a line is a JSON object"),
        ("items.jsonl", '{"id": "a", "image": "none.png"}', "there is no file"),
        ("items.jsonl", "", "holds no items"),
        ("items.csv", "", "no folder"),
    ],
)
def test_source_that_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_items(tmp_path / name)


def test_galleries_are_listed_and_deleted_after_a_question(cli: Attune, engine: FakeEngine) -> None:
    assert re.search(r'demo +5 +\{"text": 5\} +- +ready', cli("gallery", "list"))
    assert cli.json("gallery", "list")[0]["name"] == "demo"
    assert "items        5" in cli("gallery", "show", "demo")
    cli("gallery", "delete", "demo", input="n\n", code=1)
    assert "demo" in engine.galleries
    cli("gallery", "delete", "demo", "--yes")
    assert "demo" not in engine.galleries


def test_calibrations_from_the_terminal(cli: Attune, engine: FakeEngine, tmp_path: Path) -> None:
    assert "encoder" in cli("calibration", "list")
    card = cli.json("calibration", "fit", "made", "--gallery", "demo", "--latent", "4", "--samples", "9")
    assert card["relative_error"] == {"text": 0.5}
    file = tmp_path / "a.safetensors"
    assert cli("calibration", "export", "made", str(file)).strip() == str(file)
    assert file.read_bytes() == b"5 items, latent 4, samples 9"
    cli("calibration", "add", "again", str(file))
    assert engine.calibrations["again"] == file.read_bytes()
    assert "unknown_calibration" in cli("calibration", "show", "none", code=1) + cli.stderr
    card = cli.json("stream", "set", "s", "--calibration", "made")
    assert card["calibrations"] == {"retrieve": {"name": "made"}}
    assert cli.json("stream", "set", "s", "--calibration", "")["calibrations"] == {}
    cli("calibration", "delete", "made", "--yes")
    assert "made" not in engine.calibrations


def test_streams_and_snapshots_from_the_terminal(cli: Attune, engine: FakeEngine, tmp_path: Path) -> None:
    card = cli.json("stream", "set", "s", "--method", "tcr", "--set", "steps=2", "--set", "name=x")
    assert card["settings"] == {"steps": 2, "name": "x"}
    assert "tcr" in cli("stream", "list")
    assert "method" in cli("stream", "show", "s")
    cli("stream", "reset", "s")
    assert cli.json("snapshot", "create", "s", "before", "--note", "n")["note"] == "n"
    target = tmp_path / "file"
    assert cli("snapshot", "export", "s", "before", str(target)).strip() == str(target)
    assert target.read_bytes() == b"state of s"
    cli("snapshot", "import", "s", str(target), "--name", "again")
    assert "again" in cli("snapshot", "list", "s")
    cli("snapshot", "restore", "s", "again")
    compared = cli("snapshot", "compare", "s", "before")
    for shown in ("before", "now", "demo/text->image", "both", "1 -> 2", "0.125", "norm.weight"):
        assert shown in compared
    assert cli.json("snapshot", "compare", "s", "before", "again")["second"]["name"] == "again"
    cli("snapshot", "compare", "s", "none", code=1)
    cli("snapshot", "delete", "s", "again", "--yes")
    cli("stream", "delete", "s", "--yes", code=1)
    cli("stream", "delete", "s", "--force", "--yes")
    assert engine.streams == {}


def test_assignments_are_json_or_text() -> None:
    assert parse_assignments(["a=1", "b=x=y", "c=[1]", "d="]) == {"a": 1, "b": "x=y", "c": [1], "d": ""}


def test_version_and_help() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("attune 0.")
    for command in ([], ["gallery"], ["calibration"], ["stream"], ["snapshot"], ["serve"], ["query"]):
        assert "Usage" in CliRunner().invoke(app, [*command, "--help"]).stdout


def test_client_commands_import_neither_torch_nor_the_server() -> None:
    heavy = "('torch', 'fastapi', 'uvicorn', 'numpy', 'pydantic', 'rich')"
    script = f"import sys, service.cli; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "port: "),
        (["--set", "bach_size=3"], "did you mean batch_size?"),
        (["--host", "0.0.0.0"], "ATTUNE_ADMIN_KEY"),
        (["--mode", "fast"], "mode: "),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_serve_with_bad_settings_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # serve sets the variable for itself; this puts it back afterwards.
    monkeypatch.setenv("ATTUNE_CONFIG", "")
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr


def test_serve_says_when_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = CliRunner().invoke(app, ["serve", "--port", str(listener.getsockname()[1])])
    assert result.exit_code == 2
    assert "cannot listen on 127.0.0.1" in result.stderr


def test_serve_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from service.engine import Engine

    async def broken(settings: Settings) -> Engine:
        raise FileNotFoundError("no weights in that folder")

    monkeypatch.setattr(Engine, "start", broken)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        result = CliRunner().invoke(app, ["serve", "--port", "0", "--data-folder", str(tmp_path)])
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "attune: the server did not start: no weights in that folder"


SERVE = """
import service.http.app as web
from tests.service.http.fake_engine import FakeEngine
make = web.create_app
web.create_app = lambda settings: make(settings, FakeEngine())
from service.cli import main
main()
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve_announces_itself_answers_and_stops_at_a_signal(stop: signal.Signals, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--port", "0", "--data-folder", str(tmp_path)],
        cwd=ROOT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"ready at (http://127\.0\.0\.1:\d+)", line)
        assert found, line
        assert "scene-0" in Attune(found[1])("query", "a red circle")
        process.send_signal(stop)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    logged = [json.loads(line) for line in errors.splitlines()]
    assert [line["route"] for line in logged if line["event"] == "request"] == ["/retrieve"]
    assert process.returncode in (0, -stop)
    assert "Traceback" not in errors


def test_announcement_tells_how_to_try_it() -> None:
    assert announcement(Settings(), 8080).count("--url") == 0
    text = announcement(Settings(host="::1"), 9000)
    assert "http://[::1]:9000/docs" in text
    assert 'attune query "a red circle" --url http://[::1]:9000' in text
