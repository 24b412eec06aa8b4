"""Readers of the deployment files, shared by the tests of this folder."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SECRETS = {"ATTUNE_ADMIN_KEY": "key", "REDIS_PASSWORD": "password", "GRAFANA_ADMIN_PASSWORD": "password"}
"""What a deployment has to set; without defaults."""

VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def with_gpu() -> dict[str, Any]:
    return merged(compose(), compose("docker-compose.gpu.yml"))


def merged(below: Any, above: Any) -> Any:
    """As Compose puts an override over a file: tables key by key, everything else replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Compose's `${NAME:-default}`, `${NAME:?message}` and `$$`. Raises KeyError for a missing name."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = environment.get(match["name"], "")
        if not found and match["kind"] == "-":
            return match["rest"]
        if not found:
            raise KeyError(match["name"])
        return found

    return VARIABLE.sub(value, text)


def texts(tree: Any) -> Iterator[str]:
    """Every text in a tree of tables and lists, keys left out."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value)
    elif isinstance(tree, str):
        yield tree


@dataclass
class Dockerfile:
    """The instructions of a Dockerfile; `environment`, `user` and the like are those of its last stage."""

    instructions: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
        parts = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
        return cls([(word.upper(), rest) for word, rest in parts])

    def all(self, word: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == word]

    def final(self, word: str) -> list[str]:
        start = max(place for place, (name, _) in enumerate(self.instructions) if name == "FROM")
        return [rest for name, rest in self.instructions[start:] if name == word]

    def stages(self) -> list[str]:
        return [rest.split()[-1] for rest in self.all("FROM") if " AS " in rest]

    def bases(self) -> list[str]:
        return [base for rest in self.all("FROM") if (base := rest.split()[0]) not in self.stages()]

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.final("ENV") for pair in rest.split())

    def probe(self) -> list[str]:
        """The command of HEALTHCHECK as a list."""
        (check,) = self.final("HEALTHCHECK")
        return json.loads(check.split("CMD", 1)[1])


def dockerfile(service: Mapping[str, Any]) -> Dockerfile:
    return Dockerfile.read(ROOT / service["build"]["context"] / service["build"]["dockerfile"])


def seconds(text: str) -> float:
    """`90s`, `5m`."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]
