"""An old ledger is put back under a real agent: it asks before it moves, and does nothing again that was acknowledged."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.config import load_settings
from agent.devkit.consortium import running
from agent.devkit.waiting import wait_for
from agent.domain.control import Control, Mode
from agent.domain.ids import job_id
from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town


@pytest.fixture
def town(runtime: Mapping[str, str]) -> Iterator[Town]:
    yield from make_town(runtime, ("A",), ("slow",))


def ledger_path(town: Town) -> Path:
    return load_settings(town.consortium.hospital("A").agent.folder, {}).paths.ledger


def copy_of(path: Path, target: Path) -> None:
    """A backup of a live ledger, as SQLite itself makes one."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def put_back(copy: Path, path: Path) -> None:
    """The old ledger in the place of the new one, saying so."""
    for left in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        left.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_bytes(copy.read_bytes())
    with closing(open_ledger(path)) as ledger:
        now = datetime.now(UTC)
        ledger.set_control(Control(mode=Mode.RESTORED, since=now, reason="restored"), now)


def is_told(town: Town, signed: SignedOrder) -> bool:
    return any(report.state is ReportState.DONE for report in town.reports(signed))


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_a_restored_agent_repeats_nothing_that_its_orchestrator_acknowledged(
    town: Town, tmp_path: Path
) -> None:
    hospital, book = town.consortium.hospital("A"), town.consortium.book()
    path, copies = ledger_path(town), [tmp_path / "before", tmp_path / "amid"]
    with running(town.consortium):
        town.bring("slow")
        copy_of(path, copies[0])
        signed = town.issue("slow", [town.dataset(hospital)])
        wait_for(
            lambda: [report.state for report in town.reports(signed)] == [ReportState.STARTED],
            "the task to begin",
            timeout_s=ORDER_TIMEOUT_S,
        )
        copy_of(path, copies[1])
        town.wait_for_result(signed)
        wait_for(lambda: is_told(town, signed), "the report", timeout_s=ORDER_TIMEOUT_S)
        told, releases, receipts = (
            book.reports(signed.order.id),
            book.releases(),
            book.receipts(signed.order.id),
        )

        for number, copy in enumerate(copies, start=1):
            town.consortium.stop(hospital.agent)
            put_back(copy, path)
            town.consortium.start(hospital.agent)
            wait_for(
                lambda many=number: hospital.agent.log.read_text().count('"host.runs_again"') == many,  # type: ignore[misc]
                "the agent to run again",
                timeout_s=ORDER_TIMEOUT_S,
            )
            town.consortium.wait_until_ready([hospital.agent])
        later = town.issue("slow", [town.dataset(hospital)])  # behind anything that would run again
        town.wait_for_result(later)

        place = job_id(signed.order.id, 0)
        with closing(open_ledger(path)) as ledger:
            wait_for(
                lambda: ledger.job(place).state is JobState.DONE,
                "everybody to have acknowledged",
                timeout_s=ORDER_TIMEOUT_S,
            )
            job = ledger.job(place)
    assert (job.state, job.attempt) == (JobState.DONE, 1)
    assert book.reports(signed.order.id) == told
    assert book.receipts(signed.order.id) == receipts
    assert [each for each in book.releases() if each.order_id == signed.order.id] == list(releases)
    assert book.alarms() == ()
    assert hospital.agent.log.read_text().count('"task.started"') == 2  # the order's, and the later one's
