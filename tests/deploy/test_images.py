from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .stack import DEPLOY, PROJECT, ROOT, Dockerfile, compose

NAMES = ["Dockerfile.cpu", "Dockerfile.cuda"]
FILES = {name: Dockerfile.read(DEPLOY / name) for name in NAMES}
EXTRAS = {"Dockerfile.cpu": {"cpu", "otel", "video"}, "Dockerfile.cuda": {"gpu", "otel", "video"}}


def constraints(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def let_through() -> set[str]:
    """What .dockerignore lets into a build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


def travels(path: str) -> bool:
    """Whether a file gets into a build: the last rule that fits it, or a folder above it, decides."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    places = [path, *map(str, PurePosixPath(path).parents)]
    decision = True
    for rule in (line for line in lines if line and not line.startswith("#")):
        pattern = PurePosixPath(rule.removeprefix("!"))
        depth = len(pattern.parts)
        for place in map(PurePosixPath, places):
            if pattern.parts[0] == "**":
                fits = place.match(str(PurePosixPath(*pattern.parts[1:])))
            else:
                fits = len(place.parts) == depth and place.match(str(pattern))
            if fits:
                decision = rule.startswith("!")
    return decision


@pytest.mark.parametrize("file", NAMES)
def test_bases_are_pinned(file: str) -> None:
    assert FILES[file].bases()
    for base in FILES[file].bases():
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w.-]+(@sha256:[0-9a-f]{64})?", base), base


@pytest.mark.parametrize("file", NAMES)
def test_the_last_stage_starts_attune_without_a_shell_or_root(file: str) -> None:
    image = FILES[file]
    assert image.final("USER") == ["10001:10001"]
    assert image.final("ENTRYPOINT") == ['["attune"]']
    assert image.final("CMD") == ['["serve"]']


@pytest.mark.parametrize("file", NAMES)
def test_volumes_get_the_owner_of_the_process(file: str) -> None:
    (made,) = [rest for rest in FILES[file].final("RUN") if "useradd" in rest]
    assert "--uid 10001" in made
    owned = made.split("install -d -o attune")[1].split()
    seen = FILES[file].environment()
    assert {seen["ATTUNE_DATA_FOLDER"], seen["HF_HOME"]} <= set(owned)


@pytest.mark.parametrize("file", NAMES)
def test_no_secret_and_no_remote_file_gets_into_a_layer(file: str) -> None:
    image = FILES[file]
    assert not image.all("ADD")
    for rest in image.all("ARG") + image.all("ENV"):
        assert not re.search("PASSWORD|_KEY|TOKEN|SECRET|REDIS_URL", rest), rest


@pytest.mark.parametrize("file", NAMES)
def test_the_last_stage_takes_only_the_installed_environment(file: str) -> None:
    assert FILES[file].final("COPY") == ["--from=build /opt/attune /opt/attune"]
    assert not [rest for rest in FILES[file].final("RUN") if "pip" in rest]


@pytest.mark.parametrize("file", NAMES)
def test_pip_installs_under_constraints_the_right_extras(file: str) -> None:
    runs = [rest for rest in FILES[file].all("RUN") if "pip install" in rest]
    installs = [part for rest in runs for part in rest.split("&&") if "pip install" in part]
    assert installs
    assert all("-c deploy/constraints.txt" in part for part in installs)
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', " ".join(installs))
    assert set(extras.split(",")) == EXTRAS[file]


@pytest.mark.parametrize("file", NAMES)
def test_version_is_that_of_the_project(file: str) -> None:
    version = PROJECT["project"]["version"]
    (label,) = FILES[file].final("LABEL")
    assert f'org.opencontainers.image.version="{version}"' in label
    (title,) = re.findall(r'image\.title="([\w-]+)"', label)
    services = compose()["services"] | {
        f"gpu-{name}": service for name, service in compose("docker-compose.gpu.yml")["services"].items()
    }
    built = {service["image"] for service in services.values() if "build" in service}
    assert f"{title}:{version}" in built


@pytest.mark.parametrize("file", NAMES)
def test_what_is_copied_reaches_the_build(file: str) -> None:
    copied = [word for rest in FILES[file].all("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    assert set(copied) - {"."} <= let_through()


def test_the_context_holds_the_project_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]}
    needed = packages - {"benchmarks"} | modules | {"pyproject.toml", PROJECT["project"]["readme"]}
    assert needed <= let_through()
    assert let_through() - needed == {
        "LICENSE", "deploy/constraints.txt", "deploy/constraints-cuda.txt",
        "benchmarks/__init__.py", "benchmarks/corruptions",
        "service/web/__init__.py", "service/web/files.py", "service/web/built",
    }  # fmt: skip
    assert all((ROOT / name).exists() for name in let_through())


def test_console_travels_built_and_the_benchmarks_with_their_corruptions_only() -> None:
    for path in (
        "service/settings.py",
        "service/web/__init__.py",
        "service/web/files.py",
        "service/web/built/index.html",
        "service/web/built/main-ABCD2345.js",
        "benchmarks/__init__.py",
        "benchmarks/corruptions/image.py",
    ):
        assert travels(path), path
    for path in (
        "service/web/src/main.tsx",
        "service/web/node_modules/esbuild/bin/esbuild",
        "service/web/package.json",
        "service/web/.npmrc",
        "service/web/tests/api.test.ts",
        "service/web/__pycache__/files.cpython-311.pyc",
        "benchmarks/corruptions/__pycache__/image.cpython-311.pyc",
        "benchmarks/retrieval.py",
        "benchmarks/results/demo.json",
        "service/.env",
        ".git/config",
        "tests/conftest.py",
    ):
        assert not travels(path), path


def test_corruptions_import_nothing_that_does_not_travel(tmp_path: Path) -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        name = path.relative_to(ROOT)
        if travels(name.as_posix()):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "encoders").symlink_to(ROOT / "encoders")
    program = (
        "from benchmarks.corruptions import audio, av_shift, folder, sheet, shift; print(audio.__file__)"
    )
    command = [sys.executable, "-P", "-c", program]
    seen = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        command,
        check=True,
        env=seen | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert Path(answer.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("files", "extras"),
    [
        (["deploy/constraints.txt"], ["cpu", "otel", "video"]),
        (["deploy/constraints.txt", "deploy/constraints-cuda.txt"], ["gpu", "otel", "video"]),
    ],
)
def test_constraints_hold_every_dependency_in_its_range(files: list[str], extras: list[str]) -> None:
    pinned = constraints(*files)
    groups = PROJECT["project"]["optional-dependencies"]
    named = PROJECT["project"]["dependencies"] + [line for extra in extras for line in groups[extra]]
    for requirement in map(Requirement, named):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in {files}: renew them as deploy/README.md says"
        assert requirement.specifier.contains(version), f"{requirement} but {version}"


def test_both_constraints_agree_and_torch_is_the_one_of_the_development_machine() -> None:
    common, cuda = constraints("deploy/constraints.txt"), constraints("deploy/constraints-cuda.txt")
    assert not common.keys() & cuda.keys()
    assert common["torch"] == constraints("constraints-cpu.txt")["torch"]


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers /livez with `status`; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def probe(file: str, port: int, folder: Path) -> int:
    """The exit code of the image's healthcheck against `port`; proxies of the environment must not matter."""
    python, *rest = FILES[file].probe()
    assert python == "python"
    seen = os.environ | {"ATTUNE_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    command = [sys.executable, *rest]
    return subprocess.run(command, check=False, env=seen, cwd=folder, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("file", NAMES)
def test_healthcheck_follows_livez(file: str, tmp_path: Path) -> None:
    with answering(200) as port:
        assert probe(file, port, tmp_path) == 0
    assert probe(file, port, tmp_path) == 1, "nobody listens any more"
    with answering(503) as port:
        assert probe(file, port, tmp_path) == 1
