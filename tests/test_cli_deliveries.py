"""`deliveries`: the operator sees what does not arrive, sends it again or drops it, and it is on record who did."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.api.operator import listen_for_operator
from agent.api.serving import serving
from agent.ports.ledger import DeliveryState
from tests.api.house import House, open_house
from tests.builders import policy_for
from tests.ports.ledger_stage import at, attested, handoff, order_named, report
from tests.test_cli import FAILED, OK, Command, command, home, no_traceback  # noqa: F401 - fixtures

STEERING = "\x1b]0;owned\x07"


@pytest.fixture
def house(tmp_path: Path, home: Path) -> Any:  # noqa: F811
    """An agent behind its operator's socket: a report does not arrive, a hand-off was refused."""
    made = open_house(tmp_path, policy=policy_for(order_named("order")))
    attested(made.ledger, report(), handoff())
    told, handed = made.ledger.deliveries()
    made.ledger.postpone(told.id, at(300), "orchestrator-unavailable: no connection")
    made.ledger.bury(handed.id, at(5), f"b refuses (policy-refused){STEERING}")
    home.mkdir()
    (home / "agent.toml").write_text("[listen]\noperator_socket = 'op/operator.sock'\n")
    with ExitStack() as doors:
        listener = listen_for_operator(home / "op" / "operator.sock")
        doors.enter_context(serving(made.operator.app, listener, tls=None))
        yield made


def ids(house: House) -> tuple[str, str]:
    told, handed = house.ledger.deliveries()
    return told.id, handed.id


def test_what_does_not_arrive_is_listed_with_why(command: Command, house: House) -> None:  # noqa: F811
    told, handed = ids(house)

    said = command("deliveries", "list")

    assert said.code == OK, said.err
    for words in (told, handed, "no connection", "policy-refused", "in all: 1 dead, 1 pending"):
        assert words in said.out
    assert STEERING not in said.out


@pytest.mark.parametrize(("flags", "which"), [(["--dead"], [1]), (["--pending"], [0]), ([], [0, 1])])
def test_the_list_is_cut_down_by_state(
    command: Command,  # noqa: F811
    house: House,
    flags: list[str],
    which: list[int],
) -> None:
    page = command("deliveries", "list", *flags, "--json").json

    assert [one["id"] for one in page["deliveries"]] == [ids(house)[index] for index in which]
    assert page["counts"] == {"pending": 1, "dead": 1}


def test_deliveries_are_dropped_and_the_record_says_by_whom(command: Command, house: House) -> None:  # noqa: F811
    said = command("deliveries", "drop", *ids(house))

    assert said.code == OK, said.err
    assert {one.state for one in house.ledger.deliveries()} == {DeliveryState.DROPPED}
    events = [event for event in house.ledger.events() if event.name == "delivery.dropped"]
    assert len(events) == 2
    assert all(isinstance(event.values["uid"], int) for event in events)
    assert "everything was acknowledged" in command("deliveries", "list").out


def test_a_delivery_is_sent_again_and_one_that_cannot_be_keeps_no_other(
    command: Command,  # noqa: F811
    house: House,
) -> None:
    told, _ = ids(house)
    house.ledger.acknowledge(house.ledger.deliveries()[1].id, at(9))

    said = command("deliveries", "retry", ids(house)[1], told)

    assert said.code == FAILED
    assert "delivery-over" in said.err
    assert f"{told} is pending" in said.out
    assert house.ledger.delivery(house.ledger.deliveries()[0].id).next_try_at == house.clock()


def test_the_counts_are_on_the_page_for_prometheus_and_in_readiness(house: House) -> None:
    page = house.operator.get("/metrics").text
    ready = {one["name"]: one for one in house.operator.get("/ready").json()["checks"]}

    assert 'dc_compute_deliveries{state="dead"} 1.0' in page
    assert 'dc_compute_deliveries{state="pending"} 1.0' in page
    assert ready["outbox"]["is_ok"]
    assert "1 dead" in ready["outbox"]["detail"]
