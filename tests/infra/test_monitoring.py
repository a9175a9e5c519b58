"""Dashboards and alerts: every query is PromQL, and every metric in it exists."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import promql_parser
import pytest
import yaml
from promql_parser import VectorSelector
from ray.dashboard.modules.metrics import dashboards

from counterray.training import metrics as training_metrics
from serve.metrics import Metrics
from serve.noise_cache import Counts
from serve.schemas import Audit, AuditRequest
from tests.conftest import ROOT
from tests.infra.rendered import named, ray_pods

MONITORING = ROOT / "infra" / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana").glob("*.json"))
PROMETHEUS = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yaml").read_text())
ALERTS = yaml.safe_load((MONITORING / "prometheus" / "alerts.yaml").read_text())


def metrics_in(query: str) -> set[str]:
    """Names of the metrics that a query reads."""
    query = query.replace("$run", "run").replace("$__rate_interval", "5m")
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, VectorSelector):
            found.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def names_of_ray() -> set[str]:
    """What the dashboards of the installed Ray read, which are made from Ray's own metrics."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(dashboards.__path__, f"{dashboards.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            for panel in getattr(value, "panels", None) or [value]:
                for target in getattr(panel, "targets", None) or ():
                    found |= set(re.findall(r"\bray_[a-z0-9_]+", target.expr))
    return found


def names_of_the_gateway() -> set[str]:
    """What a gateway shows that has answered, made and audited something."""
    metrics = Metrics("one")
    metrics.answered("/v1/models", 200, 0.1)
    metrics.stage("model", "predict", 0.1)
    metrics.batches.labels("one", "model").observe(1)
    metrics.audited([audit()])
    page = metrics.page(inside=1, noise=Counts(nbytes=1, entries=1, hits=1, misses=1)).decode()
    return {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}


def names_of_trainings() -> set[str]:
    """What the metrics of a training become when Ray shows them."""
    shown = training_metrics.TrainingMetrics("run", "stage")
    return {
        f"ray_{m.info['name']}{'_total' if type(m).__name__ == 'Counter' else ''}" for m in members(shown)
    }


def members(shown: training_metrics.TrainingMetrics) -> list[Any]:
    return [value for name, value in vars(shown).items() if name != "_tags"]


def audit() -> Audit:
    request = {"classifiers": ["s3://m/b"], "data": "s3://d/p", "generator": "exact", "attributes": ["sex"]}
    return Audit(
        id="0" * 32,
        state="succeeded",
        created=datetime.now(UTC),
        finished=None,
        request=AuditRequest.model_validate(request),
        message="",
        verdicts={"sex": {"edema": "dependent", "effusion": "no evidence"}},
    )


@pytest.fixture(scope="module")
def known() -> set[str]:
    return names_of_ray() | names_of_the_gateway() | names_of_trainings()


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query."""
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem}: {panel['title']}", target["expr"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_query_reads_metrics_that_exist(where, query, known):
    assert metrics_in(query), where
    assert metrics_in(query) - known == set()


def test_a_metric_that_does_not_exist_would_be_noticed(known):
    assert metrics_in("rate(ray_counterray_training_loss_total[5m])") - known
    with pytest.raises(ValueError, match=r"."):
        metrics_in("rate(ray_counterray_training_step")


def test_the_variables_of_a_dashboard_read_metrics_that_exist(known):
    for file in DASHBOARDS:
        for variable in json.loads(file.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                (name,) = re.findall(r"^label_values\((\w+), \w+\)$", variable["query"])
                assert name in known


def test_dashboards_cover_what_is_watched():
    titles = {where for where, _ in queries()}
    wanted = {
        "training: Loss", "training: Throughput", "training: Data stalls", "training: GPU utilisation",
        "serving: Latency", "serving: Queues", "audits: Verdicts",
    }  # fmt: skip
    assert wanted <= titles


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file):
    board = json.loads(file.read_text())
    assert board["uid"] == f"counterray-{file.stem}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    boxes = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(boxes) == len(board["panels"]), "panels lie on each other"
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_alerts_say_what_to_do():
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "remedy"}


def test_prometheus_reads_ports_that_the_pods_have_and_the_network_opens():
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    (namespace,) = jobs["ray"]["kubernetes_sd_configs"][0]["namespaces"]["names"]
    keep = next(rule for rule in jobs["ray"]["relabel_configs"] if rule.get("action") == "keep")
    opened = {
        port["port"]
        for rule in named("a100", "NetworkPolicy", "ray")["spec"]["ingress"]
        for peer in rule["from"]
        if "monitoring" in str(peer)
        for port in rule["ports"]
    }
    for pod in ray_pods("a100"):
        ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
        assert ports[keep["regex"]] in opened, pod.where
    (target,) = jobs["gateway"]["static_configs"][0]["targets"]
    service = named("a100", "RayService", "serve")["metadata"]
    assert target == f"{service['name']}-serve-svc.{namespace}:8000"
    assert 8000 in opened
    assert PROMETHEUS["rule_files"] == ["alerts.yaml"]
