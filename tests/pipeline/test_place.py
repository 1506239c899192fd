"""Where a new order begins: here, or with the host that storage names, and with nobody once its time is over."""

import pytest
from msgspec.structs import replace

from agent.domain.chain import Task, plan
from agent.domain.jobs import JobState
from agent.domain.reports import ReportState
from agent.errors import DatasetMissing
from agent.pipeline.host import context_of
from agent.pipeline.place import holder_of, place
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryKind
from agent.ports.storage import Location
from tests.builders import DAY, NOW, changed, dataset, key_of
from tests.fakes.broker import Ring
from tests.pipeline.world import World, seal


def test_an_order_whose_first_dataset_lies_here_is_queued_here(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    world.a.work(Queue.LEARNUPLETS)

    job = world.a.job(order, 0)
    assert (job.state, job.next_agent) == (JobState.QUEUED, None)
    assert world.a.broker.rings[-1] == Ring(Queue.LEARN_TASKS, job.id, 0.0)
    assert world.a.deliveries() == ()


@pytest.mark.parametrize(
    ("train", "test", "queue"),
    [(("a1",), (), Queue.LEARN_TASKS), ((), ("a1",), Queue.TEST_TASKS)],
    ids=["learn", "test"],
)
def test_each_kind_of_task_has_its_own_queue(
    train: tuple[str, ...], test: tuple[str, ...], queue: Queue, world: World
) -> None:
    job = world.post(world.order(train=train, test=test), world.a).job

    world.a.work(Queue.LEARNUPLETS)

    assert world.a.broker.rings[-1] == Ring(queue, job.id, 0.0)


def test_a_predict_task_waits_in_the_queue_of_preduplets(world: World) -> None:
    order = world.preduplet("a1", model=b"w")
    world.post(order, world.a)

    place(context_of(world.a.job(order, 0), world.a.host), world.a.host)

    assert world.a.broker.rings[-1].queue is Queue.PREDUPLETS
    assert world.a.job(order, 0).state is JobState.QUEUED


def test_an_order_whose_first_dataset_lies_elsewhere_is_handed_there_at_position_0(world: World) -> None:
    order = world.order(train=("b1",), test=())
    world.post(order, world.a)

    world.a.work(Queue.LEARNUPLETS)

    job, handoff = world.a.job(order, 0), world.a.delivery(DeliveryKind.HANDOFF)
    assert (job.state, job.next_agent) == (JobState.RECEIVED, world.b.keyid)
    assert (handoff.target, handoff.position, handoff.expires_at) == (world.b.keyid, 0, order.order.expires)


def test_a_placed_order_is_done_here_once_the_other_host_has_it_and_runs_there(world: World) -> None:
    order = world.order(train=("b1",), test=())
    world.post(order, world.a)

    world.work()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.runs() == []
    assert world.b.job(order, 0).state is JobState.DONE
    assert world.b.runs() == ["train"]
    assert world.story(order) == [(0, "started"), (0, "done")]


def test_an_order_sent_to_two_hosts_runs_where_its_dataset_lies_once(world: World) -> None:
    order = world.order(train=("b1",), test=())
    for hospital in world:
        world.post(order, hospital)

    world.work()

    assert world.b.runs() == ["train"]
    assert [world.a.runs(), world.c.runs()] == [[], []]
    assert world.is_quiet


def test_a_doubled_bell_places_once(world: World) -> None:
    order = world.order(train=("b1",), test=())
    job = world.post(order, world.a).job
    world.a.work(Queue.LEARNUPLETS)

    world.a.broker.ring(Queue.LEARNUPLETS, job.id)
    world.a.work(Queue.LEARNUPLETS)

    assert len(world.a.deliveries(DeliveryKind.HANDOFF)) == 1


# ------------------------------------------------------------------ storage does not say


def test_an_order_waits_for_storage_and_is_asked_for_again_after_a_rest(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.storages.down.add(world.a.storage)

    world.work()
    waiting, rest = world.a.job(order, 0), world.a.broker.rings[-1]
    world.storages.down.clear()
    world.pass_time(rest.delay_s)
    world.work()

    assert waiting.state is JobState.RECEIVED
    assert rest == Ring(Queue.LEARNUPLETS, waiting.id, 2.0)
    assert world.a.job(order, 0).state is JobState.DONE


def test_it_rests_longer_each_time_and_a_minute_at_most(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.storages.down.add(world.a.storage)

    for _ in range(9):
        world.work()
        world.pass_time(world.a.broker.rings[-1].delay_s)

    rests = [ring.delay_s for ring in world.a.broker.rings[1:]]
    assert rests == [2.0, 2.0, 4.0, 8.0, 16.0, 32.0]  # from a minute on, the sweep rings


def test_a_dataset_that_storage_does_not_know_is_waited_for_until_the_order_ends(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    del world.storages.datasets[dataset("a1")]
    world.work()

    world.pass_time(DAY.total_seconds() + 31)
    world.work()

    job = world.a.job(order, 0)
    assert (job.state, job.reason) == (JobState.EXPIRED, "order-expired")
    assert world.story(order) == [(0, "failed")]


def test_an_order_whose_time_is_over_is_not_placed_and_its_orchestrator_is_told(world: World) -> None:
    order = world.order(train=("b1",), test=())
    world.post(order, world.a)
    world.pass_time(DAY.total_seconds() + 31)

    world.work()

    (told,) = world.told(order)
    assert world.a.job(order, 0).state is JobState.EXPIRED
    assert (told.state, told.reason, told.receipt) == (ReportState.FAILED, "order-expired", None)
    assert world.a.deliveries(DeliveryKind.HANDOFF) == ()
    assert world.b.jobs() == ()


# ------------------------------------------------------------------ who goes on


def test_this_host_goes_on_when_it_is_among_those_that_hold_the_dataset(world: World) -> None:
    sealed = seal("b1")
    world.storages.keep_dataset(world.a.keyid, sealed.ref, sealed.header, sealed.file)

    assert holder_of(first_task("b1", world), world.a.host) == world.a.keyid
    assert holder_of(first_task("b1", world), world.c.host) == world.b.keyid


def test_agents_that_the_roster_does_not_know_are_passed_over(world: World) -> None:
    name_holders("c1", ["stranger", "agent-c"], world)

    assert holder_of(first_task("c1", world), world.a.host) == world.c.keyid


def test_a_dataset_that_only_strangers_hold_is_missing(world: World) -> None:
    name_holders("c1", ["stranger"], world)

    with pytest.raises(DatasetMissing, match="no valid agent"):
        holder_of(first_task("c1", world), world.a.host)


def test_an_agent_whose_key_was_revoked_is_passed_over(world: World) -> None:
    name_holders("c1", ["agent-b", "agent-c"], world)
    world.a.trusts(changed(world.people.roster, world.b.keyid, revoked_at=NOW))

    assert holder_of(first_task("c1", world), world.a.host) == world.c.keyid


def test_a_key_of_another_role_is_no_agent(world: World) -> None:
    name_holders("c1", ["storage-b", "o1"], world)

    with pytest.raises(DatasetMissing):
        holder_of(first_task("c1", world), world.a.host)


def test_a_hand_off_whose_dataset_moved_on_after_it_was_taken_fails_here_and_its_orchestrator_is_told(
    world: World,
) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.hand_over(order, 1, to=world.b)
    world.move("b1", to="c")

    world.settle()

    assert world.told(order)[-1].state is ReportState.FAILED  # only who signed the last receipt may hand over
    assert world.b.job(order, 1).state is JobState.FAILED
    assert world.c.jobs() == ()


def test_an_order_is_not_sent_back_to_the_agent_it_came_from(world: World) -> None:
    order = world.order(train=("b1",), test=())
    world.hand_over(order, 0, to=world.b, sender=world.a)
    world.move("b1", to="a")

    world.work()
    waiting = world.b.job(order, 0)
    world.move("b1", to="c")
    world.settle()

    assert (waiting.state, waiting.next_agent) == (JobState.RECEIVED, None)
    assert world.a.jobs() == ()
    assert world.c.runs() == ["train"]


def first_task(name: str, world: World) -> Task:
    return plan(world.order(train=(name,), test=()).order)[0]


def name_holders(name: str, keys: list[str], world: World) -> None:
    info = world.storages.datasets[dataset(name)]
    places = tuple(Location(key_of(key).keyid, world.c.storage) for key in keys)
    world.storages.datasets[dataset(name)] = replace(info, locations=places)
