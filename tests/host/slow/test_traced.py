"""One order over three hospitals: its trace is in every host's log, in every report and receipt; and the metrics of each host
tell what its worker did, though another process serves them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import load_settings
from agent.devkit.consortium import Party, on_podman, running
from agent.devkit.waiting import wait_for
from agent.domain.reports import ReportState, envelope_bytes, parse_result
from agent.domain.traces import trace_for
from agent.trust.signed import open_receipt
from agent.wiring import open_operator
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town
from tests.host.podman import Engine

TRAINED = 'dc_compute_phase_duration_seconds_count{phase="train",task="learn"} 1.0'


@pytest.fixture
def town(engine: Engine) -> Iterator[Town]:
    yield from make_town(on_podman(engine.socket), ("A", "B", "C"), ("noop",))


def lines_of(party: Party) -> list[dict[str, Any]]:
    """What a process logged so far."""
    return [json.loads(line) for line in party.log.read_text().splitlines() if line.startswith("{")]


def metrics_of(home: Path) -> str:
    with open_operator(load_settings(home, os.environ)) as client:
        return client.get("/metrics").body.decode()


def operator(home: Path, *words: str) -> str:
    """What the operator's command prints."""
    command = [sys.executable, "-m", "agent", "--home", str(home), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_one_trace_is_found_in_all_logs_reports_and_receipts_of_three_hosts(town: Town) -> None:
    hospitals, book = town.consortium.hospitals, town.consortium.book()
    with running(town.consortium):
        town.bring("noop")
        signed = town.issue("noop", [town.dataset(hospital) for hospital in hospitals])
        town.wait_for_result(signed)
        homes = [hospital.agent.folder for hospital in hospitals]
        wait_for(
            lambda: all(TRAINED in metrics_of(home) for home in homes), "metrics", timeout_s=ORDER_TIMEOUT_S
        )
        shown = [operator(home, "orders", signed.order.id) for home in homes]
        logged = [operator(home, "log", signed.order.id) for home in homes]
        agents = [lines_of(hospital.agent) for hospital in hospitals]
        others = [
            lines_of(party) for party in town.consortium.parties if party not in [h.agent for h in hospitals]
        ]
        reports = town.reports(signed)
        result = parse_result(book.result(signed.order.id) or b"")

    trace = trace_for(signed.order.id)
    for lines in agents:
        of_order = [line for line in lines if line.get("order") == signed.order.id]
        assert {line["trace"] for line in of_order} == {trace}
        assert {"order.received", "task.started", "task.attested", "delivery.acknowledged"} <= {
            line["event"] for line in of_order
        }
        (attested,) = [line for line in of_order if line["event"] == "task.attested"]
        assert (attested["attempt"], "position" in attested) == (1, True)
    events = {line["event"] for lines in others for line in lines if line.get("trace") == trace}
    assert {
        "share.released",
        "blob.stored",
        "result.taken",
    } <= events  # orchestrators and storages carry it on

    receipts = [open_receipt(envelope_bytes(one), town.consortium.roster).receipt for one in result.receipts]
    assert len({receipt.agent for receipt in receipts}) == 3
    assert {receipt.trace for receipt in receipts} == {report.trace for report in reports} == {trace}
    assert result.trace == trace
    assert [report.state for report in reports].count(ReportState.DONE) == 3
    assert all(f"trace {trace}" in words for words in (*shown, *logged))
    assert book.alarms() == ()
