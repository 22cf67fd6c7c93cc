"""The dashboard and the alerting rules name what is collected, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcached.telemetry import metric_table

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "kvcached.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
SCRAPE = DEPLOY / "prometheus" / "scrape.yaml"

if not DEPLOY.is_dir():
    pytest.skip("the tests of an sdist have no deploy/ beside them", allow_module_level=True)

KNOWN = {
    metric_table.INFO,
    metric_table.UNREADABLE,
    *(metric.name for metric in metric_table.LEASE),
    *(metric.name for metric in metric_table.PAGER),
    *(metric.name for metric in metric_table.DEVICE),
}


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bkvcached_\w+", text))


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    found = {
        name for query in queries(json.loads(DASHBOARD.read_text())) for name in metrics_in(query)
    }
    assert found
    assert found <= KNOWN


def test_the_alerts_ask_for_metrics_that_exist() -> None:
    found = metrics_in(ALERTS.read_text())
    assert {"kvcached_pager_denials_total", "kvcached_device_deaths_total"} <= found <= KNOWN


def test_every_panel_takes_the_chosen_data_source_and_a_place_of_its_own() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert "datasource" in [variable["type"] for variable in dashboard["templating"]["list"]]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        for part in (panel, *panel["targets"]):
            assert part["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("what", "file"), [("rules", ALERTS), ("config", SCRAPE)])
def test_prometheus_accepts_the_files(what: str, file: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run([promtool, "check", what, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
