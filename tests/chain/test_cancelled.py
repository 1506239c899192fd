"""An order of three hospitals is cancelled while the second trains: the container dies, the chain ends, nothing is left."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agent.devkit.book import OrderState
from agent.devkit.consortium import running
from agent.devkit.issuing import cancel
from agent.devkit.waiting import wait_for
from agent.domain.reports import ReportState
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
        wait_for(lambda: _guests() != [], "the second guest", timeout_s=ORDER_TIMEOUT_S)

        cancel(
            signed.order.id, book, client, to=first.agent.key.keyid
        )  # who had it first: it follows the chain
        wait_for(lambda: _guests() == [], "the end of the guest", timeout_s=GONE_WITHIN_S)
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
    assert '"task.killed"' in second.agent.log.read_text()
    assert '"order.placed"' not in third.agent.log.read_text()


def _is_at(town: Town, position: int) -> bool:
    """Whether somebody told that the task at that position began."""
    orders = town.consortium.book().orders()
    bodies = [body for order in orders for body in town.consortium.book().reports(order.id)]
    return any(f'"position":{position},"state":"started"'.encode() in body for body in bodies)


def _guests() -> list[str]:
    """The guests' processes, as the kernel lists them."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if PROGRAM in words:
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
