"""Where two parts meet that did not know each other: retention, fsck, letters, cancelling, reconcile, restores, the audit log.

All ledgers are real files.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.retention import retention
from agent.errors import DeliveryOver, LogRestored, StorageUnavailable
from agent.pipeline.letters import drop, retry
from agent.pipeline.lost import Known, send_again
from agent.pipeline.reconcile import reconcile
from agent.ports.audit_sqlite import SqliteAuditLog
from agent.ports.ledger import DeliveryKind, DeliveryState
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.ledger_sqlalchemy_backup import back_up, restore
from agent.trust.audit_log import LogAudit, open_head, sign_head
from tests.builders import SKEW, consortium, key_of
from tests.fsck.stage import codes_in
from tests.pipeline.world import POLICY, Hospital, World

ONE_HOP: dict[str, Any] = {"train": ("a1", "b1"), "test": ()}
OPERATOR = 1000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world whose hospitals have real ledgers."""
    made = World(tmp_path, lambda folder: open_ledger(folder / "ledger.sqlite"))
    yield made
    for hospital in made:
        hospital.ledger.close()


def path_of(hospital: Hospital) -> Path:
    return hospital.world.root / hospital.name / "ledger.sqlite"


def done(world: World) -> SignedOrder:
    """An order that a began and b ended."""
    order = world.order(**ONE_HOP)
    world.post(order, world.a)
    world.settle()
    assert world.has_result(order)
    return order


def handoff_of(world: World) -> Any:
    return world.a.delivery(DeliveryKind.HANDOFF)


def collect_bodies(world: World) -> int:
    """Whatever went of bodies at a once everything was long over, but not so long that orders go."""
    now = world.clock() + timedelta(days=40)
    told = retention(now, skew=SKEW, log_age=timedelta(days=30), order_age=timedelta(days=365))
    return world.a.ledger.collect(told, now, 100).bodies


# ------------------------------------------------------------------ fsck, and what others leave behind rightly


def test_a_body_that_went_after_its_time_is_nothing_for_fsck(world: World) -> None:
    done(world)
    assert codes_in(path_of(world.a)) == []

    assert collect_bodies(world) > 0
    assert codes_in(path_of(world.a)) == []


def test_reports_that_were_counted_on_are_nothing_for_fsck(world: World) -> None:
    order = done(world)

    world.a.ledger.count_on(world.a.job(order, 0), 1500, world.clock())

    assert codes_in(path_of(world.a)) == []


def test_what_is_sent_again_because_its_receiver_lost_it_is_nothing_for_fsck(world: World) -> None:
    done(world)

    assert send_again(handoff_of(world), "the peer does not know it", world.a.host)

    assert codes_in(path_of(world.a)) == []


# ------------------------------------------------------------------ retention while somebody asks again


def test_a_body_that_is_asked_for_again_while_garbage_is_collected_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(world)
    ledger: Any = world.a.ledger
    file, name = ledger._file, handoff_of(world).id
    writing, is_first = file.writing, [True]

    @contextmanager
    def late() -> Iterator[Connection]:
        """Between the search and the deletion somebody is quicker."""
        if is_first.pop() if is_first else False:
            assert ledger.send_again(name, world.clock(), "lost")
        with writing() as tx:
            yield tx

    monkeypatch.setattr(file, "writing", late)
    collect_bodies(world)

    assert ledger.delivery(name).state is DeliveryState.PENDING
    assert ledger.delivery(name).body


# ------------------------------------------------------------------ letters, and orders that were cancelled


def withdrawn_at_a(world: World) -> SignedOrder:
    """An order that was cancelled while its hand-off had not arrived."""
    order = world.order(**ONE_HOP)
    real = world.peers.doors[world.b.keyid]

    def away(body: bytes, sender: object) -> object:
        raise StorageUnavailable("b is away")

    world.peers.doors[world.b.keyid] = away
    world.post(order, world.a)
    world.work()
    world.cancel(order, world.a)
    world.peers.doors[world.b.keyid] = real
    assert handoff_of(world).state is DeliveryState.WITHDRAWN
    return order


@pytest.mark.parametrize("act", [retry, drop])
def test_the_withdrawn_hand_off_of_a_cancelled_order_is_nobody_s_to_decide_on(world: World, act: Any) -> None:
    withdrawn_at_a(world)

    with pytest.raises(DeliveryOver, match="withdrawn"):
        act(handoff_of(world).id, OPERATOR, world.a.host)

    assert handoff_of(world).state is DeliveryState.WITHDRAWN


def test_the_hand_off_of_a_cancelled_order_is_not_sent_again_to_a_peer_that_lost_it(world: World) -> None:
    order = world.order(**ONE_HOP)
    world.post(order, world.a)
    real, world.peers.doors[world.b.keyid] = world.peers.doors[world.b.keyid], lambda body, sender: None
    world.work()
    assert handoff_of(world).state is DeliveryState.ACKNOWLEDGED
    world.peers.cancel_doors[world.b.keyid] = lambda body, sender: None  # b loses all it takes
    world.cancel(order, world.a)
    world.work()
    world.peers.doors[world.b.keyid] = real

    reconcile(world.a.host, Known())
    world.work()

    assert world.b.runs() == []


def test_a_hand_off_that_was_retried_and_went_elsewhere_is_followed_by_a_cancellation(world: World) -> None:
    order = world.order(**ONE_HOP)
    world.b.allows("")
    world.post(order, world.a)
    world.work()
    assert handoff_of(world).state is DeliveryState.DEAD
    assert world.a.job(order, 0).state is JobState.DONE
    world.b.allows(POLICY)
    world.move("b1", to="c")
    world.c.rules(queue_limit=0)  # it takes nothing just now

    retry(handoff_of(world).id, OPERATOR, world.a.host)
    world.work()
    world.cancel(order, world.a)
    sent = [d.target for d in world.a.deliveries(DeliveryKind.CANCELLATION)]

    assert world.a.job(order, 0).next_agent == world.c.keyid
    assert sent == [world.c.keyid]


# ------------------------------------------------------------------ restores, and heads that were kept


@pytest.mark.parametrize("lines_more", [1, 2, 3])
def test_every_head_that_was_kept_before_a_restore_is_explained_by_it(
    world: World, tmp_path: Path, lines_more: int
) -> None:
    done(world)
    ledger, key, now = world.a.ledger, key_of("agent-a"), world.clock()
    back_up(path_of(world.a), tmp_path / "backup", agent=key.keyid, now=now, overwrite=False)
    for _ in range(lines_more):
        ledger.record_event("something.else", now)
    newest = ledger.events(limit=10_000)[-1]
    roster = consortium().roster
    kept = open_head(sign_head(key, seq=newest.seq, digest=newest.digest, at=now), roster)
    ledger.close()
    with (tmp_path / "backup").open("rb") as file:
        restore(path_of(world.a), file, me=(key.keyid,), now=now, skew=SKEW, uid=OPERATOR)

    audit = LogAudit(roster, [kept])
    with closing(SqliteAuditLog(path_of(world.a))) as log:
        for one in log.recorded(1, log.newest()):
            audit.take_row(one.seq, one.line, one.digest)
        verdict = audit.end_of_ledger(log.numbered())

    assert [fault.code for fault in verdict.faults] == [LogRestored.code]
