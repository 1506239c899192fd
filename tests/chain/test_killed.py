"""Everything of an agent is killed in the middle of a task: the order ends, once, by the same container while that lives."""

import os
import signal
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from agent.devkit.consortium import Party, running
from agent.devkit.waiting import wait_for
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.pipeline.workspace import parse_folder_name
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town

TRAINING = b"-T\0train"


@pytest.fixture
def town(runtime: Mapping[str, str]) -> Iterator[Town]:
    yield from make_town(runtime, ("A",), ("slower",))


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_an_agent_killed_while_it_trains_goes_on_with_the_same_container(town: Town) -> None:
    agent = town.consortium.hospital("A").agent
    with running(town.consortium):
        signed, before = _train(town, "slower")

        _kill_all_of(town)
        while_nobody_watched = _trainings(signed)
        town.consortium.start(agent)
        town.consortium.wait_until_ready([agent])
        wait_for(
            lambda: '"task.taken_over"' in agent.log.read_text(), "the take-over", timeout_s=ORDER_TIMEOUT_S
        )
        taken_over = _trainings(signed)
        town.wait_for_result(signed)
        wait_for(lambda: _is_told(town, signed), "the report", timeout_s=ORDER_TIMEOUT_S)  # each goes alone
        # What was taken over runs in a cage that was proved; the new worker proves its own beside it.
        wait_for(lambda: _proofs(agent) == 2, "the second proof", timeout_s=ORDER_TIMEOUT_S)

        reports = [(report.state, report.attempt) for report in town.reports(signed)]
        left = _workspaces(town)
    assert before == while_nobody_watched == taken_over != []
    assert sorted(reports) == [(ReportState.DONE, 1), (ReportState.STARTED, 1)]
    assert left == []
    assert town.consortium.book().alarms() == ()


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_an_agent_killed_with_its_container_ends_the_order_in_a_second_attempt(town: Town) -> None:
    agent = town.consortium.hospital("A").agent
    with running(town.consortium):
        signed, trainings = _train(town, "slower")

        _kill_all_of(town)
        for (
            pid,
            _,
        ) in trainings:  # who would have recorded its exit code goes first: nobody can tell how it ended
            _kill(_parent(pid))
            _kill(pid)
        town.consortium.start(agent)
        town.consortium.wait_until_ready([agent])
        town.wait_for_result(signed)
        wait_for(lambda: _is_told(town, signed), "the report", timeout_s=ORDER_TIMEOUT_S)

        states = [report.state for report in town.reports(signed)]
        attempts = {report.attempt for report in town.reports(signed) if report.state is ReportState.DONE}
    assert states.count(ReportState.DONE) == 1
    assert attempts == {2}
    assert town.consortium.book().alarms() == ()


def _train(town: Town, guest: str) -> tuple[SignedOrder, list[tuple[int, int]]]:
    """An order, and the processes of its training, which has begun."""
    town.bring(guest)
    dataset = town.dataset(town.consortium.hospital("A"), b"a canary in the data\n")
    signed = town.issue(guest, [dataset])
    wait_for(lambda: _trainings(signed) != [], "the training", timeout_s=ORDER_TIMEOUT_S)
    return signed, _trainings(signed)


def _proofs(agent: Party) -> int:
    return agent.log.read_text().count('"selftest.held"')


def _trainings(signed: SignedOrder) -> list[tuple[int, int]]:
    """(pid, when it began) of every process of this order's training guest: its mounts name the workspace it is in."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError, IndexError, ValueError):
            is_training = path.name.isdigit() and TRAINING in (path / "cmdline").read_bytes()
            if is_training and signed.order.id in (path / "mountinfo").read_text():
                found.append(
                    (int(path.name), int((path / "stat").read_text().rpartition(")")[2].split()[19]))
                )
    return sorted(found)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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
