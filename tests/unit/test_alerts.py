"""Every alert is tested and explained, and the dashboard is one that Grafana can show."""

import json
import re

import pytest

from tests.support.commands import ROOT

METRICS = ROOT / "deploy/metrics"
ALERTS = re.findall(r"^ +- alert: (\w+)$", (METRICS / "alerts.yml").read_text(), re.MULTILINE)
DASHBOARD = json.loads((METRICS / "dashboard.json").read_text())


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_paragraph(alert: str) -> None:
    """It links to a section of docs/operations.md that has text."""
    page = (ROOT / "docs/operations.md").read_text()
    (text,) = re.findall(rf"^### {alert}\n\n(.+?)(?=\n#|\Z)", page, re.MULTILINE | re.DOTALL)
    assert len(text.split()) > 20
    assert f"runbook: docs/operations.md#{alert.lower()}\n" in (METRICS / "alerts.yml").read_text()


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_test_in_which_it_fires(alert: str) -> None:
    """`promtool test rules` runs it, in tests/containers."""
    tests = (METRICS / "alerts_test.yml").read_text()
    assert re.search(rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels:", tests)


def test_the_paragraphs_are_those_of_the_alerts() -> None:
    """No paragraph is left of an alert that is gone."""
    alerts = (ROOT / "docs/operations.md").read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", alerts, re.MULTILINE) == ALERTS


def test_the_dashboard_has_a_place_and_a_source_for_each_panel() -> None:
    """Panels have their own ids, do not overlap, and ask the data source that is provisioned."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (place["x"] + column, place["y"] + row)
        for place in (panel["gridPos"] for panel in panels)
        for column in range(place["w"])
        for row in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24
    source = (METRICS / "provisioning/datasources/prometheus.yml").read_text()
    for panel in [*panels, *DASHBOARD["templating"]["list"]]:
        assert f"uid: {panel['datasource']['uid']}\n" in source, panel
