"""The alerts and the dashboard of docs/monitoring: they parse, they fire when they should, and name only what is told."""

import json
import re
from pathlib import Path

import pytest

from tests.api.house import open_house
from tests.monitoring.promtool import needs_promtool, promtool
from tests.monitoring.stage import busy

HERE = Path(__file__).parent
MONITORING = HERE.parents[1] / "docs" / "monitoring"
RULES = MONITORING / "dc-compute.rules.yml"
DASHBOARD = MONITORING / "dc-compute.dashboard.json"

NAME = re.compile(r"\bdc_compute_[a-z_]+\b")
FROM_ELSEWHERE = {"dc_compute_certificate_expiry_timestamp_seconds"}  # told with the certificates


def queries() -> list[str]:
    """Every query of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def alerts() -> list[str]:
    return re.findall(r"^      - alert: (\w+)$", RULES.read_text(), re.MULTILINE)


@needs_promtool
def test_the_rules_are_well_formed() -> None:
    said = promtool("check", "rules", str(RULES))

    assert said.returncode == 0, said.stdout + said.stderr
    assert f"{len(alerts())} rules found" in said.stdout


@needs_promtool
@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.yml")), ids=lambda file: file.name)
def test_each_alert_fires_when_it_should_and_not_before(file: Path) -> None:
    said = promtool("test", "rules", str(file))

    assert said.returncode == 0, said.stdout + said.stderr


def test_each_alert_is_tested_and_says_what_to_do() -> None:
    tested = "".join(file.read_text() for file in HERE.glob("*.test.yml"))
    rules = RULES.read_text()

    assert len(set(alerts())) == len(alerts()) > 15
    assert [name for name in alerts() if f'alertname="{name}"' not in tested] == []
    for part in ("summary:", "description:", "severity:"):
        assert rules.count(part) == len(alerts())


def test_alerts_and_dashboard_read_only_what_the_page_tells(tmp_path: Path) -> None:
    told, house = set(), open_house(tmp_path)
    busy(house)
    for family in house.desk.metrics.families():
        ending = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        told |= {family.name + end for end in ending}

    read = set(NAME.findall(RULES.read_text() + "\n".join(queries())))

    assert read - told - FROM_ELSEWHERE == set()


@needs_promtool
def test_each_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{n}", "expr": query.replace("$instance", ".*").replace("$__rate_interval", "5m")}
        for n, query in enumerate(queries())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML

    said = promtool("check", "rules", "--lint=none", str(file))

    assert len(rules) > 10
    assert said.returncode == 0, said.stdout + said.stderr
