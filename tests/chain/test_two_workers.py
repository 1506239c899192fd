"""Two `work` processes share one ledger and one set of queues: every order is run, none twice."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agent.devkit.consortium import Party, running
from agent.domain.reports import ReportState
from tests.chain.conftest import Town, make_town

ROOT = Path(__file__).resolve().parents[2]
ORDERS = 50


@pytest.fixture
def town(runtime: Mapping[str, str]) -> Iterator[Town]:
    yield from make_town(runtime, ("A",), ("noop",))


@contextmanager
def second_worker(party: Party) -> Iterator[Path]:
    """One more `dc-compute work` on this agent's home; gives its log."""
    log = party.folder / "second.log"
    with log.open("wb") as out, ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "--home", str(party.folder), "work"],
            stdout=out,
            stderr=out,
            cwd=ROOT,
            env={name: os.environ[name] for name in ("PATH", "HOME", "XDG_RUNTIME_DIR")},
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        yield log


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_two_workers_run_fifty_orders_and_none_twice(town: Town) -> None:
    hospital = town.consortium.hospital("A")
    with running(town.consortium), second_worker(hospital.agent) as log:
        town.bring("noop")
        dataset = town.dataset(hospital)

        orders = [town.issue("noop", [dataset]) for _ in range(ORDERS)]
        for signed in orders:
            town.wait_for_result(signed)

        told = {
            signed.order.id: Counter(report.state for report in town.reports(signed)) for signed in orders
        }
        shares = log.read_text().count('"task.attested"')
    assert all(states == {ReportState.STARTED: 1, ReportState.DONE: 1} for states in told.values()), told
    assert town.consortium.book().alarms() == ()
    assert 0 < shares < ORDERS
