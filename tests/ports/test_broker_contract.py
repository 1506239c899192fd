"""What every broker does, run on the one in memory and on Huey over a real SQLite file with a real consumer."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.ports.broker import Queue
from tests.ports.broker_stage import Desk, Heard, HueyDesk, MemoryDesk


@pytest.fixture(params=["memory", "huey"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    made: Desk = MemoryDesk() if request.param == "memory" else HueyDesk(tmp_path / "queues.db")
    yield made
    made.close()


def test_each_queue_rings_its_own_handler(desk: Desk) -> None:
    heard = Heard()
    for queue in Queue:
        desk.broker.ring(queue, f"for {queue}")

    desk.deliver(heard, len(Queue))

    assert sorted(heard.calls) == sorted((queue, f"for {queue}") for queue in Queue)


def test_a_ring_waits_until_somebody_works(desk: Desk) -> None:
    desk.broker.ring(Queue.LEARN_TASKS, "one")
    desk.broker.ring(Queue.LEARN_TASKS, "two")
    desk.broker.ring(Queue.DELIVERIES, "three", delay_s=3600)

    assert desk.broker.depth() == {
        Queue.LEARNUPLETS: 0,
        Queue.LEARN_TASKS: 2,
        Queue.TEST_TASKS: 0,
        Queue.PREDUPLETS: 0,
        Queue.DELIVERIES: 1,
        Queue.CANCELLATIONS: 0,
    }


def test_rings_of_a_queue_come_in_order(desk: Desk) -> None:
    heard = Heard()
    items = [f"item {n}" for n in range(30)]
    for item in items:
        desk.broker.ring(Queue.TEST_TASKS, item)

    desk.deliver(heard, len(items))

    assert [item for _, item in heard.calls] == items
    assert sum(desk.broker.depth().values()) == 0


@pytest.mark.parametrize(
    "item", ["", "3f1c.handoff.1", "ünïcode \u2028 \U0001f514", 'quote " and \\', "x" * 10_000]
)
def test_ids_arrive_as_they_were_rung(desk: Desk, item: str) -> None:
    heard = Heard()
    desk.broker.ring(Queue.DELIVERIES, item)

    desk.deliver(heard, 1)

    assert heard.calls == [(Queue.DELIVERIES, item)]


def test_a_ring_that_waits_already_counts_for_both(desk: Desk) -> None:
    heard = Heard()
    for _ in range(5):
        desk.broker.ring(Queue.LEARN_TASKS, "again")
    desk.broker.ring(Queue.TEST_TASKS, "again")

    desk.deliver(heard, 2)

    assert sorted(heard.calls) == [(Queue.LEARN_TASKS, "again"), (Queue.TEST_TASKS, "again")]


def test_many_are_rung_at_once_in_their_order_and_those_that_wait_already_are_not_rung_again(
    desk: Desk,
) -> None:
    heard, names = Heard(), [f"job {n}" for n in range(5)]
    desk.broker.ring(Queue.LEARN_TASKS, "job 3")

    desk.broker.ring_all(Queue.LEARN_TASKS, names)
    desk.broker.ring_all(Queue.LEARN_TASKS, [])
    desk.broker.ring_all(Queue.LEARN_TASKS, names)

    assert desk.broker.depth()[Queue.LEARN_TASKS] == 5
    desk.deliver(heard, 5)
    assert [item for _, item in heard.calls] == ["job 3", "job 0", "job 1", "job 2", "job 4"]


def test_what_was_worked_off_can_be_rung_again(desk: Desk) -> None:
    heard = Heard()
    desk.broker.ring(Queue.LEARN_TASKS, "again")
    desk.deliver(heard, 1)

    desk.broker.ring(Queue.LEARN_TASKS, "again")
    desk.deliver(heard, 2)

    assert heard.calls == [(Queue.LEARN_TASKS, "again")] * 2


def test_a_delayed_ring_waits_its_time(desk: Desk) -> None:
    heard = Heard()
    rung_at = time.monotonic()
    desk.broker.ring(Queue.LEARN_TASKS, "later", delay_s=1.0)
    desk.broker.ring(Queue.LEARN_TASKS, "now")
    desk.deliver(heard, 1)
    assert heard.calls == [(Queue.LEARN_TASKS, "now")]

    desk.pass_time(1.0)
    desk.deliver(heard, 2)

    assert heard.calls[1:] == [(Queue.LEARN_TASKS, "later")]
    assert isinstance(desk, MemoryDesk) or time.monotonic() - rung_at >= 1.0


def test_a_handler_that_raises_stops_nobody(desk: Desk) -> None:
    def act(_: Queue, item: str) -> None:
        if item == "bad":
            raise RuntimeError("a bug in a handler")

    heard = Heard(act)
    for item in ("bad", "good", "bad", "better"):
        desk.broker.ring(Queue.LEARN_TASKS, item)

    desk.deliver(heard, 3)

    assert [item for _, item in heard.calls] == ["bad", "good", "better"]


def test_a_handler_may_ring(desk: Desk) -> None:
    def act(queue: Queue, item: str) -> None:
        if queue is Queue.LEARN_TASKS:
            desk.broker.ring(Queue.DELIVERIES, f"{item}.report.1")

    heard = Heard(act)
    desk.broker.ring(Queue.LEARN_TASKS, "job")

    desk.deliver(heard, 2)

    assert heard.calls == [(Queue.LEARN_TASKS, "job"), (Queue.DELIVERIES, "job.report.1")]


def test_a_queue_without_a_handler_is_left_alone(desk: Desk) -> None:
    heard = Heard()
    desk.broker.ring(Queue.LEARN_TASKS, "not mine")
    desk.broker.ring(Queue.DELIVERIES, "mine")

    desk.deliver(heard, 1, heard.handlers(Queue.DELIVERIES))

    assert heard.calls == [(Queue.DELIVERIES, "mine")]
    assert desk.broker.depth()[Queue.LEARN_TASKS] == 1
