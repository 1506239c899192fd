"""The audit log of a whole chain, held against what storages, peers and orchestrators received, and what engines ran."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from agent.domain.audit import CHECKPOINT
from agent.domain.audit_answers import ARRIVED, DEAD, TaskAccount, accounts
from agent.domain.ids import KeyId
from agent.errors import OrchestratorUnavailable
from agent.pipeline.audit import CHECKPOINT_AGE, CHECKPOINT_LINES, checkpoint, note_start
from agent.ports.audit import Wanted
from agent.ports.audit_sqlite import SqliteAuditLog
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.trust.audit_log import LogAudit, Verdict
from tests.builders import NOW, dataset, key_of, policy_text
from tests.pipeline.world import ALGO, PROBLEM, SMALL, Hospital, World

Thing = tuple[str, KeyId, int]  # what, to whom, bytes


class Counted:
    """A port that counts what it is given to send, before it may fail."""

    def __init__(self, port: Any, sent: Counter[Thing], own_storage: KeyId) -> None:
        self._port, self._sent, self._storage = port, sent, own_storage

    def __getattr__(self, name: str) -> Any:
        behind = getattr(self._port, name)
        counting: dict[str, Callable[..., Thing]] = {
            "put_blob": lambda digest, kind, source: (str(kind), self._storage, source.stat().st_size),
            "hand_off": lambda target, body: ("handoff", target, len(body)),
            "report": lambda to, order, position, n, body: ("report", to, len(body)),
            "result": lambda to, order, body: ("result", to, len(body)),
        }

        def call(*args: Any, **named: Any) -> Any:
            if name in counting:
                self._sent[counting[name](*args)] += 1
            return behind(*args, **named)

        return call


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world whose hospitals have real ledgers."""
    made = World(tmp_path, lambda folder: open_ledger(folder / "ledger.sqlite"))
    yield made
    for hospital in made:
        hospital.ledger.close()


def counted(world: World) -> dict[str, Counter[Thing]]:
    """From now on, what each hospital sends."""
    sent: dict[str, Counter[Thing]] = {}
    for hospital in world:
        count = sent[hospital.name] = Counter()
        now = hospital.host.ports
        ports = {name: getattr(now, name) for name in ("storage", "orchestrators", "peers")}
        hospital.ports(**{name: Counted(port, count, hospital.storage) for name, port in ports.items()})
    return sent


def log_of(hospital: Hospital) -> SqliteAuditLog:
    return SqliteAuditLog(hospital.world.root / hospital.name / "ledger.sqlite")


def told_of(hospital: Hospital, wanted: Wanted) -> list[TaskAccount]:
    with closing(log_of(hospital)) as log:
        return [one for order, at in log.orders(wanted) for one in accounts(order, log.about(order), at)]


def verdict_on(hospital: Hospital) -> Verdict:
    judge = LogAudit(hospital.world.people.roster)
    with closing(log_of(hospital)) as log:
        for one in log.recorded(1, log.newest()):
            judge.take_row(one.seq, one.line, one.digest)
        return judge.end_of_ledger(log.numbered())


def left_of(tasks: list[TaskAccount]) -> Counter[Thing]:
    return Counter((left.what, KeyId(left.to or ""), left.bytes) for task in tasks for left in task.left)


# ------------------------------------------------------------------ a chain in peace


def test_every_byte_that_left_is_told_with_its_recipient(world: World) -> None:
    sent = counted(world)
    order = world.order(train=("a1", "b1", "a2"), test=("c2",))

    world.post(order, world.a)
    world.settle()

    assert world.has_result(order)
    for hospital in world:
        tasks = told_of(hospital, Wanted(order=order.order.id))
        assert left_of(tasks) == sent[hospital.name]
        assert all(left.state == ARRIVED for task in tasks for left in task.left)
        assert sum(task.bytes_left for task in tasks) == sum(
            size * n for (_, _, size), n in sent[hospital.name].items()
        )
        assert verdict_on(hospital).is_sound
    assert {what for what, _, _ in sent["a"]} == {"model", "handoff", "report"}
    assert {what for what, _, _ in sent["c"]} == {"performance", "report", "result"}


def test_who_ran_what_on_a_dataset(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=("a2",))

    world.post(order, world.a)
    world.settle()

    (learn,) = told_of(world.a, Wanted(dataset=dataset("a1").id))
    (test,) = told_of(world.a, Wanted(dataset=dataset("a2").id))
    assert told_of(world.a, Wanted(dataset=dataset("b1").id)) == []
    assert (learn.order, learn.position, learn.kind) == (order.order.id, 0, "learn")
    assert (learn.dataset, learn.version) == (dataset("a1").id, dataset("a1").version)
    assert (learn.orchestrator, learn.sender, learn.state) == (order.signer, order.signer, "done")
    assert learn.images == {"algo": ALGO}
    assert [(run.run, run.image, run.attempt, run.outcome) for run in learn.runs] == [
        ("train", ALGO, 1, "done")
    ]
    assert [(run.run, run.image) for run in test.runs] == [
        ("detarget", PROBLEM),
        ("predict", ALGO),
        ("perf", PROBLEM),
    ]
    assert (test.sender, test.images) == (world.b.keyid, {"algo": ALGO, "problem": PROBLEM})
    cages = {run.cage for run in (*learn.runs, *test.runs)}
    assert all(cage is not None and cage.startswith("sha256:") for cage in cages)


def test_every_share_of_a_key_is_told(world: World) -> None:
    order = world.order(train=("a1",), test=("b2",))

    world.post(order, world.a)
    world.settle()

    for hospital in (world.a, world.b):
        told = [
            (KeyId(share.of), hospital.keyid, task.dataset)
            for task in told_of(hospital, Wanted(order=order.order.id))
            for share in task.shares
            if share.received is not None
        ]
        released = [(of, to, ref.id) for of, to, ref in world.orchestrators.releases if to == hospital.keyid]
        assert told == released
        assert len(told) == 2


# ------------------------------------------------------------------ what fails


def test_a_share_that_came_is_told_though_the_next_one_is_withheld(world: World) -> None:
    world.orchestrators.withheld.add((world.o2, dataset("a1").id))
    order = world.order(train=("a1",), test=())

    world.post(order, world.a)
    world.settle()

    (task,) = told_of(world.a, Wanted(dataset=dataset("a1").id))
    assert [(share.of, share.received is not None) for share in task.shares] == [
        (world.o1, True),
        (world.o2, False),
    ]
    assert (task.state, task.reason) == ("failed", "share-withheld")
    assert task.runs == []


def test_an_answer_that_was_lost_is_one_thing_with_two_tries(world: World) -> None:
    sent = counted(world)
    order = world.order(train=("a1",), test=())
    lose_first_answer(world.a)

    world.post(order, world.a)
    world.settle()

    (task,) = told_of(world.a, Wanted(order=order.order.id))
    tries = {(left.what, left.n): left.tries for left in task.left}
    assert tries[("report", 1)] == 2
    assert sum(tries.values()) == sum(sent["a"].values())
    assert set(left_of(task_list := [task])) == set(sent["a"])
    assert sum(left_of(task_list).values()) == len(task.left)


def lose_first_answer(hospital: Hospital) -> None:
    """The orchestrator records the first report, and its answer is lost on the way."""
    behind = hospital.host.ports.orchestrators
    lost: list[str] = []

    class Losing:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> Any:
                told = getattr(behind, name)(*args)
                if name == "report" and not lost:
                    lost.append(name)
                    raise OrchestratorUnavailable("no answer came")
                return told

            return call

    hospital.ports(orchestrators=Losing())


def test_a_delivery_that_died_is_told_as_dead(world: World) -> None:
    world.b.allows(policy_text(orchestrators=[], images=[ALGO, PROBLEM], rest=SMALL))
    order = world.order(train=("a1", "b1"), test=())

    world.post(order, world.a)
    world.settle()

    (task,) = told_of(world.a, Wanted(dataset=dataset("a1").id))
    assert [left.state for left in task.left if left.what == "handoff"] == [DEAD]


def test_a_run_that_failed_is_told_with_its_cause(world: World) -> None:
    world.algo = lambda guest: 3
    order = world.order(train=("a1",), test=())

    world.post(order, world.a)
    world.settle()

    (task,) = told_of(world.a, Wanted(order=order.order.id))
    assert [(run.run, run.outcome) for run in task.runs] == [("train", "exit:3")]
    assert (task.state, [left.what for left in task.left if left.what != "report"]) == ("failed", [])


def test_no_line_holds_a_key_a_body_or_what_the_guest_wrote(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=("c2",))

    world.post(order, world.a)
    world.settle()

    for hospital in world:
        told = repr([asdict(event) for event in hospital.ledger.events(limit=10_000)])
        for secret in ("target of", "payload", "BEGIN", *(repr(s)[2:20] for s in shares_of(world))):
            assert secret not in told


def shares_of(world: World) -> list[bytes]:
    return list(world.orchestrators.shares.values())


# ------------------------------------------------------------------ the host itself


def test_a_changed_policy_or_roster_is_told_at_the_next_start(world: World) -> None:
    host = world.a.host
    note_start("api", "1", host)
    note_start("worker", "1", host)
    before = host.policy.digest
    world.a.allows(policy_text(orchestrators=[key_of("o1").keyid], images=[ALGO], rest=SMALL))
    note_start("api", "2", world.a.host)

    told = [(event.name, event.values) for event in world.a.ledger.events()]

    assert [name for name, _ in told] == [*["service.started"] * 3, "policy.changed"]
    assert told[3][1] == {"was": before, "now": world.a.host.policy.digest}
    assert told[2][1]["policy"] == world.a.host.policy.digest


def test_the_sweep_signs_what_stands_in_the_log(world: World) -> None:
    world.post(world.order(train=("a1",), test=()), world.a)
    world.settle()
    assert CHECKPOINT not in world.a.events()

    world.pass_time(CHECKPOINT_AGE.total_seconds() + 1)
    world.a.sweep()
    world.a.sweep()

    verdict = verdict_on(world.a)
    assert world.a.events().count(CHECKPOINT) == 1
    assert (verdict.is_sound, verdict.checkpoints, verdict.signers) == (True, 1, (world.a.keyid,))
    assert verdict.vouched == verdict.last - 1


def test_many_lines_are_signed_without_waiting(world: World) -> None:
    for _ in range(CHECKPOINT_LINES):
        world.a.ledger.record_event("x", NOW)

    checkpoint(world.a.host)

    assert world.a.ledger.events(after=CHECKPOINT_LINES)[0].name == CHECKPOINT
