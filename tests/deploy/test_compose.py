from __future__ import annotations

import os
import re
from typing import Any

import pytest
import yaml

from service.settings import OTHER_NAMES, PREFIX, Settings, load

from .stack import (
    DEPLOY,
    ROOT,
    SECRETS,
    VARIABLE,
    compose,
    dockerfile,
    interpolated,
    seconds,
    texts,
    with_gpu,
)

FILES = ["docker-compose.yml", "docker-compose.gpu.yml"]
STACKS = {"cpu": compose(), "gpu": with_gpu()}
SERVICES = [
    pytest.param(service, id=f"{stack}-{name}")
    for stack, tree in STACKS.items()
    for name, service in tree["services"].items()
]
OWN = [
    pytest.param(name, tree["services"][name], id=f"{stack}-{name}")
    for stack, tree in STACKS.items()
    for name in ("api", "worker")
]
EXACT_TAG = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+(-[\w.]+)?(@sha256:[0-9a-f]{64})?")


def mounts(service: dict[str, Any]) -> list[list[str]]:
    """[source, target, mode...] of each volume."""
    return [volume.split(":") for volume in service.get("volumes", [])]


def environment(service: dict[str, Any]) -> dict[str, str]:
    """What a process of one of our services sees."""
    own = {name: interpolated(text, SECRETS) for name, text in service["environment"].items()}
    return dockerfile(service).environment() | own


@pytest.fixture
def clean(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without our names and a working directory without settings."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


@pytest.mark.parametrize(
    "path",
    [ROOT / name for name in FILES]
    + sorted(path for path in DEPLOY.iterdir() if path.is_file() and path.suffix != ".txt"),
    ids=lambda path: path.name,
)
def test_every_attune_name_is_a_setting_or_known(path: Any) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | set(OTHER_NAMES)
    named = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+\b", path.read_text(encoding="utf-8")))
    assert named <= known, f"unknown: {sorted(named - known)}"


def test_the_services_are_those_of_the_design() -> None:
    for tree in STACKS.values():
        assert set(tree["services"]) == {"redis", "api", "worker", "prometheus", "grafana"}


@pytest.mark.parametrize(("name", "service"), OWN)
def test_settings_of_each_role_are_accepted(
    name: str, service: dict[str, Any], clean: pytest.MonkeyPatch
) -> None:
    for variable, value in environment(service).items():
        clean.setenv(variable, value)
    settings = load()
    assert settings.role == name
    assert settings.host == "0.0.0.0"
    assert settings.admin_key is not None
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://:password@redis:6379/0"


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_secret_stops_the_start(name: str) -> None:
    uses = [text for text in texts(compose()) if f"${{{name}:" in text]
    assert uses
    given = {other: value for other, value in SECRETS.items() if other != name}
    for text in uses:
        with pytest.raises(KeyError, match=name):
            interpolated(text, given)


@pytest.mark.parametrize("file", FILES)
def test_no_secret_is_written_down(file: str) -> None:
    for name, service in compose(file)["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|TOKEN|SECRET|URL", variable):
                assert VARIABLE.search(value), f"{name}: {variable}"


@pytest.mark.parametrize("service", SERVICES)
def test_images_have_exact_tags(service: dict[str, Any]) -> None:
    assert EXACT_TAG.fullmatch(service["image"]), service["image"]


@pytest.mark.parametrize("tag", ["redis", "redis:latest", "redis:8", "redis:8.2-bookworm"])
def test_loose_tags_would_be_seen(tag: str) -> None:
    assert not EXACT_TAG.fullmatch(tag)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_a_healthcheck(service: dict[str, Any]) -> None:
    check = service["healthcheck"]
    assert not check.get("disable")
    assert check["interval"]
    assert check.get("test") or dockerfile(service).probe()


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "network_mode" not in service
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]


@pytest.mark.parametrize("service", SERVICES)
def test_no_process_runs_as_root(service: dict[str, Any]) -> None:
    user = service["user"] if "user" in service else dockerfile(service).final("USER")[-1]
    assert re.match(r"[1-9]\d*:", user), user


@pytest.mark.parametrize("service", SERVICES)
def test_services_come_back_and_their_logs_rotate(service: dict[str, Any]) -> None:
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"].keys() >= {"max-size", "max-file"}
    assert "container_name" not in service, "a fixed name cannot be scaled"


@pytest.mark.parametrize("service", SERVICES)
def test_every_mount_exists(service: dict[str, Any]) -> None:
    volumes = compose()["volumes"]
    for source, _, *mode in mounts(service):
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"], f"{source} comes from the repository"
        else:
            assert source in volumes


@pytest.mark.parametrize("service", SERVICES)
def test_dependencies_wait_for_a_condition_that_can_come(service: dict[str, Any]) -> None:
    assert set(service["networks"]) <= set(compose()["networks"])
    for name, needed in service.get("depends_on", {}).items():
        assert name in compose()["services"]
        assert needed["condition"] in {"service_healthy", "service_started"}


def test_redis_is_reached_by_api_and_worker_only() -> None:
    networks = compose()["networks"]
    services = compose()["services"]
    (own,) = services["redis"]["networks"]
    assert networks[own]["internal"] is True
    assert {name for name, service in services.items() if own in service["networks"]} == {
        "redis",
        "api",
        "worker",
    }


def test_only_api_and_grafana_are_published_and_on_loopback_unless_told() -> None:
    published = {
        name: interpolated(port, {})
        for name, service in compose()["services"].items()
        for port in service.get("ports", [])
    }
    assert published == {"api": "127.0.0.1:8080:8080", "grafana": "127.0.0.1:3000:3000"}


@pytest.mark.parametrize(("name", "service"), OWN)
def test_ports_agree_with_the_settings(name: str, service: dict[str, Any]) -> None:
    default = str(Settings.model_fields["port"].default)
    assert environment(service)["ATTUNE_PORT"] == default
    assert dockerfile(service).final("EXPOSE") == [default]
    assert all(port.rpartition(":")[2] == default for port in service.get("ports", []))


@pytest.mark.parametrize(("name", "service"), OWN)
def test_accepted_work_can_finish_before_a_container_is_killed(name: str, service: dict[str, Any]) -> None:
    grace_s = Settings.model_fields["shutdown_grace_s"].default
    assert seconds(service["stop_grace_period"]) > 2 * grace_s


@pytest.mark.parametrize("stack", STACKS)
def test_workers_share_one_folder_and_the_api_has_none(stack: str) -> None:
    services = STACKS[stack]["services"]
    targets = {target: source for source, target, *_ in mounts(services["worker"])}
    seen = environment(services["worker"])
    assert targets[seen["ATTUNE_DATA_FOLDER"]] == "galleries"
    assert targets[seen["HF_HOME"]] == "models"
    assert not mounts(services["api"])


def test_redis_writes_to_a_volume() -> None:
    redis = compose()["services"]["redis"]
    assert ["redis", "/data"] in mounts(redis)
    assert redis["command"][redis["command"].index("--dir") + 1] == "/data"


def test_the_override_touches_the_worker_only() -> None:
    assert set(compose("docker-compose.gpu.yml")) == {"services"}
    assert set(compose("docker-compose.gpu.yml")["services"]) == {"worker"}


def test_the_override_gives_the_worker_a_gpu() -> None:
    worker = STACKS["gpu"]["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert environment(worker)["ATTUNE_DEVICE"] == "cuda"
    assert worker["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile.cuda"}
    assert worker["image"] != STACKS["cpu"]["services"]["worker"]["image"]


def test_grafana_finds_the_boards_and_prometheus() -> None:
    targets = {target for _, target, *_ in mounts(compose()["services"]["grafana"])}
    provisioning = DEPLOY / "grafana" / "provisioning"
    boards = [yaml.safe_load(path.read_text()) for path in (provisioning / "dashboards").glob("*.y*ml")]
    sources = [yaml.safe_load(path.read_text()) for path in (provisioning / "datasources").glob("*.y*ml")]
    paths = [provider["options"]["path"] for file in boards for provider in file["providers"]]
    urls = [source["url"] for file in sources for source in file["datasources"]]
    assert paths
    assert set(paths) <= targets
    assert urls == ["http://prometheus:9090"]
