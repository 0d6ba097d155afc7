"""Dashboard and alerts speak of metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from deploy_files import DEPLOY, load, pod_templates, ray_service

DASHBOARD = json.loads((DEPLOY / "grafana" / "switchyard.json").read_text())
RULES = load((DEPLOY / "prometheus" / "rules.yaml").read_text())[0]["groups"]
# What Prometheus adds to the name of a counter and of a histogram.
SUFFIXES = ("_total", "_bucket", "_sum", "_count", "")


def expressions():
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    variables = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if isinstance(each["query"], dict)]
    return panels + variables + [rule["expr"] for group in RULES for rule in group["rules"]]


def metric_names():
    return sorted({name for each in expressions() for name in re.findall(r"\b(ray_\w+)", each)})


@pytest.fixture(scope="module")
def defined():
    """Every string of the parts of Ray that define metrics."""
    package = Path(importlib.util.find_spec("ray").origin).parent
    files = [
        *package.glob("serve/_private/*.py"),
        *package.glob("dashboard/modules/reporter/*.py"),
        *package.glob("dashboard/modules/metrics/dashboards/*_panels.py"),
    ]
    # Names that are made from a protocol stand whole in Ray's own dashboards.
    return set(re.findall(r"\b(?:serve|node|object|ray)_\w+", "\n".join(file.read_text() for file in files)))


@pytest.mark.parametrize("name", metric_names())
def test_metric_is_defined_by_the_installed_ray(name, defined):
    plain = name.removeprefix("ray_")
    bases = {plain.removesuffix(suffix) for suffix in SUFFIXES}
    assert name in defined or bases & defined


def test_a_metric_that_does_not_exist_would_be_noticed(defined):
    assert not {"serve_deployment_moods", "ray_serve_deployment_moods_total"} & defined


def test_panels_have_places_of_their_own_and_the_data_source_that_is_chosen():
    places = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in DASHBOARD["panels"])
    ]
    assert sum(map(len, places)) == len(set().union(*places))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"]


@pytest.mark.parametrize("expression", expressions())
def test_brackets_of_an_expression_are_closed(expression):
    bare = re.sub(r'"[^"]*"', "", expression)
    for opening, closing in ("()", "{}", "[]"):
        assert bare.count(opening) == bare.count(closing)


def test_alerts_say_what_is_wrong_and_how_bad_it_is():
    for group in RULES:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"critical", "warning"} and rule["annotations"]["summary"]


def test_prometheus_keeps_pods_by_the_labels_and_the_port_of_the_service():
    (config,) = load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    assert config["rule_files"] == ["rules.yaml"]
    (job,) = [each for each in config["scrape_configs"] if "kubernetes_sd_configs" in each]
    kept = {each["source_labels"][0]: each["regex"] for each in job["relabel_configs"] if each.get("action") == "keep"}
    for template in pod_templates(ray_service()).values():
        (only,) = template["spec"]["containers"]
        assert (
            template["metadata"]["labels"]["app.kubernetes.io/name"]
            == kept["__meta_kubernetes_pod_label_app_kubernetes_io_name"]
        )
        assert kept["__meta_kubernetes_pod_container_port_name"] in {port["name"] for port in only["ports"]}
