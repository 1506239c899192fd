"""The page for Prometheus: by its conventions, as documented, with bounded labels and numbers that do not fall."""

import os
import re
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from agent.api import metrics_host
from agent.api.expiring import Expiring
from agent.api.metrics import Metrics
from agent.api.metrics_ledger import COUNTERS, DURATIONS
from agent.domain.jobs import JobEvent, JobState
from agent.domain.measures import BUCKETS_S, Gauges
from agent.pipeline.gate import STATE_FILE, Breach, Gate
from tests.api.house import House, open_house
from tests.monitoring.promtool import needs_promtool, promtool
from tests.monitoring.stage import busy
from tests.ports.ledger_stage import at, attested, report, running

OPERATORS = Path(__file__).resolve().parents[2] / "docs" / "operators.md"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(metrics_host, "KEPT_S", 0.0)
    monkeypatch.setattr(metrics_host, "SLOW_S", 0.0)
    return open_house(tmp_path)


def value(house: House, name: str, **labels: str) -> float | None:
    """What the page tells of this sample; None: nothing."""
    for family in text_string_to_metric_families(house.network.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


# ------------------------------------------------------------------ conventions, documentation


@needs_promtool
def test_promtool_has_nothing_to_say_about_the_page(house: House) -> None:
    busy(house)

    for door in (house.network, house.operator):
        said = promtool("check", "metrics", told=door.get("/metrics").text)

        assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def kind_and_labels(family: Metric, metrics: Metrics) -> tuple[str, str, str]:
    """(name, type, labels) as the table of the documentation tells them."""
    counted_here = {
        one._name: one._labelnames for one in (metrics.requests, metrics.durations, metrics.refusals)
    }
    labels = getattr(family, "_labelnames", None) or counted_here.get(family.name, ())
    name = family.name + ("_total" if family.type == "counter" else "")
    return name, family.type, ", ".join(f"`{label}`" for label in labels)


def test_the_documentation_has_a_row_for_every_metric_and_for_nothing_else(house: House) -> None:
    busy(house)
    _, _, after = OPERATORS.read_text().partition("\n### Every metric\n")
    rows = re.findall(
        r"^\| `(dc_compute_\w+)` \| (\w+) \| ([^|]*?) ?\| .+ \|$", after.split("\n## ")[0], re.MULTILINE
    )

    house.desk.metrics.also(Expiring(lambda: house.desk.host, Path("no certificate here")))
    told = {kind_and_labels(family, house.desk.metrics) for family in house.desk.metrics.families()}

    assert set(rows) == told
    assert len(rows) == len(told)


# ------------------------------------------------------------------ what is told


def test_what_the_ledger_counted_is_told(house: House) -> None:
    busy(house)

    assert value(house, "dc_compute_jobs_ended_total", state="failed", reason="exit") == 1
    assert value(house, "dc_compute_job_moves_total", state="running") == 2
    assert value(house, "dc_compute_job_moves_total", state="cancelled") == 0
    assert value(house, "dc_compute_runs_total", run="train", outcome="exit") == 1
    assert value(house, "dc_compute_shares_total", what="received") == 1
    assert value(house, "dc_compute_uploaded_bytes_total", kind="model") == 4096
    assert value(house, "dc_compute_attempts_failed_total", code="storage-unavailable") == 1
    assert value(house, "dc_compute_attempts_put_off_total", reason="storage-unavailable") == 1
    assert value(house, "dc_compute_attempts_taken_over_total") == 1
    assert value(house, "dc_compute_delivery_tries_total", kind="report", outcome="acknowledged") == 1
    assert value(house, "dc_compute_selftests_total", outcome="held") == 1
    assert value(house, "dc_compute_audit_lines_total") == len(house.ledger.events())


def test_durations_are_histograms_whose_buckets_hold_all_below_them(house: House) -> None:
    busy(house)
    name, labels = "dc_compute_phase_duration_seconds", {"task": "learn", "phase": "train"}

    assert value(house, f"{name}_bucket", **labels, le="300.0") == 0
    assert value(house, f"{name}_bucket", **labels, le="900.0") == 1
    assert value(house, f"{name}_bucket", **labels, le="+Inf") == 1
    assert value(house, f"{name}_count", **labels) == 1
    assert value(house, f"{name}_sum", **labels) == 400.0
    assert value(house, "dc_compute_delivery_duration_seconds_bucket", kind="report", le="60.0") == 1


def test_ages_grow_with_the_hosts_clock_and_are_0_without_anything_that_waits(house: House) -> None:
    assert value(house, "dc_compute_job_oldest_age_seconds", state="running") == 0
    assert value(house, "dc_compute_delivery_oldest_age_seconds") == 0
    running(house.ledger, "one")
    attested(house.ledger, report(), name="two")

    house.clock.pass_by(timedelta(hours=1))

    assert value(house, "dc_compute_job_oldest_age_seconds", state="running") == 3600
    assert value(house, "dc_compute_delivery_oldest_age_seconds") == 3599
    assert value(house, "dc_compute_audit_unsigned_age_seconds") == 3600


def test_the_cage_is_told_by_state_and_since_when(house: House, tmp_path: Path) -> None:
    name = "dc_compute_selftest_state"
    assert value(house, name, state="closed") == 1
    assert value(house, "dc_compute_selftest_age_seconds") is None

    Gate(house.host, lambda: (Breach("runc", "mount", "refused", "done"),)).try_open()
    moment = house.clock().timestamp() - 60
    os.utime(tmp_path / STATE_FILE, (moment, moment))

    assert (value(house, name, state="broken"), value(house, name, state="closed")) == (1, 0)
    assert value(house, "dc_compute_selftest_age_seconds") == 60


def test_a_second_process_tells_the_same_numbers(house: House) -> None:
    busy(house)
    other = Metrics(house.host)

    def counted(metrics: Metrics) -> dict[str, list[float]]:
        names = {told.metric for told in (*COUNTERS.values(), *DURATIONS.values())}
        return {
            family.name: [sample.value for sample in family.samples]
            for family in metrics.families()
            if family.name in names
        }

    assert counted(other) == counted(house.desk.metrics)
    assert len(counted(other)) == len(COUNTERS) + len(DURATIONS)


# ------------------------------------------------------------------ bounds


def test_what_others_chose_is_never_a_label(house: House) -> None:
    wild = 'a "stranger\n} says'
    job = running(house.ledger, "one")
    house.ledger.move(job, JobEvent.FAIL, at(2), reason=wild)
    for name in ("attempt.failed", "run.ended", "upload.ended", "job.parked"):
        told: dict[str, str | int | float | None] = dict.fromkeys(
            ("code", "run", "outcome", "kind", "reason"), wild
        )
        house.ledger.record_event(name, at(3), values=told)
    house.network.get("/" + "x" * 50)

    page = house.network.get("/metrics").text

    assert "stranger" not in page
    assert "xxxxx" not in page
    assert value(house, "dc_compute_jobs_ended_total", state="failed", reason="other") == 1


def test_the_page_stays_small(house: House) -> None:
    busy(house)

    assert len(house.network.get("/metrics").content) < 40_000
    assert len(BUCKETS_S) < 15


def test_the_page_is_made_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = open_house(tmp_path)
    asked: list[int] = []
    gauges = house.ledger.gauges

    def count() -> Gauges:
        asked.append(1)
        return gauges()

    monkeypatch.setattr(house.ledger, "gauges", count)
    monkeypatch.setattr(metrics_host, "KEPT_S", 3600.0)

    for _ in range(5):
        assert house.network.get("/metrics").status_code == 200

    assert len(asked) == 1


def test_jobs_are_told_as_they_are_now(house: House) -> None:
    assert value(house, "dc_compute_jobs", state="failed") == 0
    job = running(house.ledger, "one")
    running(house.ledger, "two")
    house.ledger.move(job, JobEvent.FAIL, at(2), reason="oom")

    assert value(house, "dc_compute_jobs", state="running") == 1
    assert value(house, "dc_compute_jobs", state="failed") == 1
    assert len(JobState) == 9
