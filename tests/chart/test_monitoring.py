"""Alerts and dashboard name metrics and labels that the programs really have."""

import json
import re
import time

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from omniserve_agent.http.metrics import Metrics as AgentMetrics
from omniserve_agent.http.records import Books
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.slo_metrics import SloCollector
from omniserve_operator.metrics import Metrics as OperatorMetrics
from support.chart import MONITORING

VALUES = {
    "metrics": {
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    }
}


@pytest.fixture
def rendered(render):
    return render(VALUES, api_versions=MONITORING)


@pytest.fixture
def alerts(rendered):
    return _alerts(rendered)


def _alerts(rendered):
    (rule,) = rendered.of("PrometheusRule")
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


@pytest.fixture
def dashboard(rendered):
    config = rendered.one("ConfigMap", "omniserve-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    return json.loads(config["data"]["omniserve.json"])


def _known():
    """Names as scraped, by the programs' own registries."""
    names, services = set(), ServiceRegistry(())
    agent = AgentMetrics(services)
    agent.include(SloCollector(services, Books(services, agent, time.monotonic), time.monotonic))
    for text in (
        agent.text(),
        generate_latest(OperatorMetrics().registry),
    ):
        for family in text_string_to_metric_families(text.decode()):
            ends = {
                "counter": ("_total",),
                "histogram": ("_bucket", "_sum", "_count"),
            }.get(family.type, ("",))
            names |= {family.name + end for end in ends}
    return names


def _used(expression):
    return set(re.findall(r"\bomniserve_\w+", expression))


def test_alerts_name_real_metrics(alerts):
    known = _known()
    for alert in alerts:
        assert _used(alert["expr"]), alert["alert"]
        assert _used(alert["expr"]) <= known, alert["alert"]


def test_the_dashboard_names_real_metrics(dashboard):
    known = _known()
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    for panel in panels:
        for target in panel["targets"]:
            assert _used(target["expr"]), panel["title"]
            assert _used(target["expr"]) <= known, panel["title"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "service"}


def test_panels_do_not_overlap(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    ("percent", "threshold"),
    [(None, "< min by (service) (omniserve_slo_objective_ratio)"), (95, "< 0.95"), (100, "< 1)")],
)
def test_attainment_is_held_against_each_services_objective_or_the_values(
    render, percent, threshold
):
    rule = {"enabled": True, "force": True} | ({"attainmentPercent": percent} if percent else {})
    alerts = _alerts(render({"metrics": {"prometheusRule": rule}}))
    (missed,) = (a for a in alerts if a["alert"] == "OmniServeSLOMissed")
    assert missed["expr"].count(threshold) == 2
    assert ("objective_ratio" in missed["expr"]) == (percent is None)
    assert "{{ $labels.service }}" in missed["annotations"]["summary"]


def test_every_alert_says_how_grave_it_is_and_what_it_means(alerts):
    assert len({alert["alert"] for alert in alerts}) == len(alerts) >= 8
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}
