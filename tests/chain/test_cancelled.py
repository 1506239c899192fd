"""An order is cancelled while a hospital trains for it: the container dies, the chain ends, nothing is left."""

import os
import signal
import socket
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.devkit.consortium import HOST, Party, running
from agent.devkit.issuing import cancel
from agent.devkit.waiting import wait_for
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.domain.standings import OrderState
from agent.pipeline.workspace import parse_folder_name
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town

PROGRAM = b"/opt/program/as_told.py"
GONE_WITHIN_S = 20.0  # on a machine that has other things to do


@pytest.fixture
def town(runtime: Mapping[str, str]) -> Iterator[Town]:
    yield from make_town(runtime, ("A", "B", "C"), ("as_told",))


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_an_order_that_is_cancelled_while_the_second_of_three_trains_ends_there_and_leaves_nothing(
    town: Town,
) -> None:
    first, second, third = town.consortium.hospitals
    book, client = town.consortium.book(), town.consortium.client(town.consortium.orchestrators[0])
    with running(town.consortium):
        town.bring("as_told")
        seconds = {first: b"0", second: b"600", third: b"0"}
        signed = town.issue("as_told", [town.dataset(at, text) for at, text in seconds.items()])
        wait_for(lambda: _is_at(town, 1), "the second task", timeout_s=ORDER_TIMEOUT_S)
        wait_for(lambda: _guests(signed) != [], "the second guest", timeout_s=ORDER_TIMEOUT_S)

        had_it_first = first.agent.key.keyid  # it follows the chain from there
        cancel(signed.order.id, book, client, to=had_it_first)
        wait_for(lambda: _guests(signed) == [], "the end of the guest", timeout_s=GONE_WITHIN_S)
        wait_for(
            lambda: book.order(signed.order.id).state is not OrderState.OPEN,  # type: ignore[union-attr]
            "the orchestrator to be told",
            timeout_s=ORDER_TIMEOUT_S,
        )
        wait_for(lambda: _workspaces(town) == [], "an end of the workspaces", timeout_s=ORDER_TIMEOUT_S)
        states = [(told.position, told.state) for told in town.reports(signed)]

    assert book.order(signed.order.id).state is OrderState.CANCELLED  # type: ignore[union-attr]
    assert (1, ReportState.CANCELLED) in states
    assert {state for position, state in states if position == 0} == {ReportState.STARTED, ReportState.DONE}
    assert {position for position, _ in states} == {0, 1}
    assert book.alarms() == ()
    told = (
        second.agent.log.read_text()
    )  # on a slow machine the task may be given up before its container is there
    assert '"task.killed"' in told or '"task.given_up"' in told
    assert '"order.placed"' not in third.agent.log.read_text()


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_a_container_that_nobody_watched_when_its_order_was_cancelled_is_removed_and_not_taken_over(
    town: Town,
) -> None:
    hospital = town.consortium.hospital("A")
    agent = hospital.agent
    api_alone = replace(agent, command=(*agent.command[:-1], "serve"))
    book, client = town.consortium.book(), town.consortium.client(town.consortium.orchestrators[0])
    with running(town.consortium):
        town.bring("as_told")
        signed = town.issue("as_told", [town.dataset(hospital, b"600")])
        wait_for(lambda: _guests(signed) != [], "the guest", timeout_s=ORDER_TIMEOUT_S)
        _kill_all_of(town, agent)

        town.consortium.start(api_alone)
        town.consortium.wait_until_ready([api_alone])
        cancel(signed.order.id, book, client)
        outlived = _guests(signed)
        town.consortium.stop(api_alone)
        town.consortium.start(agent)
        town.consortium.wait_until_ready([agent])
        wait_for(lambda: _guests(signed) == [], "the end of the guest", timeout_s=GONE_WITHIN_S)
        wait_for(
            lambda: book.order(signed.order.id).state is not OrderState.OPEN,  # type: ignore[union-attr]
            "the orchestrator to be told",
            timeout_s=ORDER_TIMEOUT_S,
        )
        wait_for(lambda: _workspaces(town) == [], "an end of the workspace", timeout_s=ORDER_TIMEOUT_S)
        reports = [(told.state, told.attempt) for told in town.reports(signed)]

    assert len(outlived) > 0
    assert sorted(reports) == [(ReportState.CANCELLED, 1), (ReportState.STARTED, 1)]
    assert '"task.taken_over"' not in agent.log.read_text()


def _kill_all_of(town: Town, agent: Party) -> None:
    """SIGKILL for `run`, `serve` and `work`: all processes of this agent's home, as the kernel lists them."""
    process = town.consortium.processes.pop(agent.name)
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if str(agent.folder).encode() in words:
                os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: _is_refused(agent.port), "an end of the dead one's port", timeout_s=GONE_WITHIN_S)


def _is_refused(port: int) -> bool:
    with socket.socket() as door:
        door.settimeout(1)
        return door.connect_ex((HOST, port)) != 0


def _is_at(town: Town, position: int) -> bool:
    """Whether somebody told that the task at that position began."""
    orders = town.consortium.book().orders()
    bodies = [body for order in orders for body in town.consortium.book().reports(order.id)]
    return any(f'"position":{position},"state":"started"'.encode() in body for body in bodies)


def _guests(signed: SignedOrder) -> list[str]:
    """The processes of this order's guests, as the kernel lists them: their mounts name the workspace they are in."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            continue
        if PROGRAM in words and signed.order.id in mounts:
            found.append(pid)
    return found


def _workspaces(town: Town) -> list[str]:
    """The attempts' folders in the agents' memory."""
    found = []
    for hospital in town.consortium.hospitals:
        settings = tomllib.loads((hospital.agent.folder / "agent.toml").read_text())
        root = Path(settings["workspace"]["root"])
        found += [path.name for path in root.glob("*") if parse_folder_name(path.name)]
    return found
