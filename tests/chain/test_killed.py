"""Everything of an agent is killed in the middle of a task: the order still ends, once, and nothing is left behind."""

import os
import signal
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agent.devkit.consortium import running
from agent.devkit.waiting import wait_for
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.pipeline.workspace import parse_folder_name
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town


@pytest.fixture
def town(runtime: Mapping[str, str]) -> Iterator[Town]:
    yield from make_town(runtime, ("A",), ("slow",))


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_an_agent_killed_while_it_trains_ends_the_order_in_a_second_attempt(town: Town) -> None:
    agent = town.consortium.hospital("A").agent
    with running(town.consortium):
        town.bring("slow")
        dataset = town.dataset(town.consortium.hospital("A"), b"a canary in the data\n")
        signed = town.issue("slow", [dataset])
        wait_for(lambda: _workspaces(town) != [], "a workspace", timeout_s=ORDER_TIMEOUT_S)

        _kill_all_of(town)
        town.consortium.start(agent)
        town.consortium.wait_until_ready([agent])
        town.wait_for_result(signed)
        wait_for(lambda: _is_told(town, signed), "the report", timeout_s=ORDER_TIMEOUT_S)  # each goes alone

        states = [report.state for report in town.reports(signed)]
        attempts = {report.attempt for report in town.reports(signed) if report.state is ReportState.DONE}
        left = _workspaces(town)
    assert states.count(ReportState.DONE) == 1
    assert attempts == {2}
    assert left == []
    assert town.consortium.book().alarms() == ()
    assert (
        agent.log.read_text().count('"selftest.held"') == 2
    )  # each worker proved the cage before its first task


def _is_told(town: Town, signed: SignedOrder) -> bool:
    return any(report.state is ReportState.DONE for report in town.reports(signed))


def _workspaces(town: Town) -> list[str]:
    """The attempts' folders in the agent's memory."""
    settings = tomllib.loads((town.consortium.hospital("A").agent.folder / "agent.toml").read_text())
    root = settings["workspace"]["root"]
    return [name for name in os.listdir(root) if parse_folder_name(name)] if os.path.isdir(root) else []


def _kill_all_of(town: Town) -> None:
    """SIGKILL for `run`, `serve` and `work`: all processes of this agent's home, as the kernel lists them."""
    agent = town.consortium.hospital("A").agent
    process = town.consortium.processes.pop(agent.name)
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(agent.folder).encode() in words:
            os.kill(pid, signal.SIGKILL)
    process.wait()
