"""Grafana's board and Prometheus' alerts name metrics and labels that there are."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service.test_metrics import busy

ROOT = Path(__file__).parents[2]
BOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
OF_PROMETHEUS = {"job", "instance"}

SAMPLES = [sample for family in busy().registry.collect() for sample in family.samples]
LABELS: dict[str, set[str]] = {}
for _sample in SAMPLES:
    LABELS.setdefault(_sample.name, set()).update(_sample.labels)


def board_expressions() -> list[str]:
    expressions = []
    for path in BOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            expressions += [target["expr"] for target in panel.get("targets", [])]
        expressions += [annotation["expr"] for annotation in board["annotations"]["list"]]
        expressions += [variable["definition"] for variable in board["templating"]["list"]]
    return expressions


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


EXPRESSIONS = board_expressions() + [rule["expr"] for rule in alerts()]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:attune|process)_\w+", expression))


def labels_in(expression: str) -> set[str]:
    """Of selectors, `by (...)` and `label_values(metric, label)`."""
    selectors = " ".join(re.findall(r"\{([^}]*)\}", expression))
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors))
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        labels |= {label.strip() for label in group.split(",")}
    return labels | set(re.findall(r"label_values\(\w+, (\w+)\)", expression))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_of_boards_and_alerts_exist(expression: str) -> None:
    names = names_in(expression)
    assert names or expression.startswith("up{") or 'up{job="api"}' in expression
    assert names <= set(LABELS)
    known = OF_PROMETHEUS.union(*(LABELS[name] for name in names))
    assert labels_in(expression) <= known


def test_every_metric_is_on_the_board_or_in_an_alert() -> None:
    shown = set().union(*(names_in(expression) for expression in EXPRESSIONS))
    for family in busy().registry.collect():
        if family.name.startswith("attune_") and not family.name.endswith("_created"):
            samples = {sample.name for sample in family.samples}
            assert samples & shown, f"{family.name} is shown nowhere"


def test_every_metric_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(attune_\w+)", text))
    families = {family.name: family.type for family in busy().registry.collect()}
    expected = {
        f"{name}_total" if kind == "counter" else name
        for name, kind in families.items()
        if name.startswith("attune_") and not name.endswith("_created")
    }
    assert documented == expected


def test_panels_have_a_place_of_their_own_and_a_source() -> None:
    for path in BOARDS:
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["title"]
            assert panel["type"] == "row" or panel["datasource"]["uid"] == "prometheus"
        for one, other in combinations([panel["gridPos"] for panel in panels], 2):
            apart = (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            )
            assert apart, (one, other)


def test_provisioned_source_is_the_one_that_the_boards_name() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    assert BOARDS


def test_alerts_say_how_bad_it_is_and_what_happened() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in text, "docs/operations.md says what to do"


def test_prometheus_scrapes_both_services_and_loads_the_alerts() -> None:
    settings = yaml.safe_load(PROMETHEUS.read_text())
    jobs = {job["job_name"]: job for job in settings["scrape_configs"]}
    assert {"api", "worker"} <= set(jobs)
    for service in ("api", "worker"):
        (discovery,) = jobs[service]["dns_sd_configs"]
        assert (discovery["names"], discovery["type"], discovery["port"]) == ([service], "A", 8080)
    assert settings["rule_files"] == [ALERTS.name]
