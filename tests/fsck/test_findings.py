"""Each thing that fsck can find in a ledger, made so by hand in one that agrees with itself."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.domain.cancellations import Cancellation
from agent.domain.ids import OrderId, job_id
from agent.domain.jobs import JobState
from agent.fsck.findings import Code, Fix
from agent.pipeline.cancel import take_cancellation
from agent.pipeline.host import signed_order
from agent.ports.broker import Queue
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.ledger_sqlalchemy_file import open_staged
from agent.ports.ledger_sqlalchemy_mend import LedgerMends
from agent.trust.roster import Roster
from agent.trust.signed import sign_cancellation
from tests.builders import NOW, consortium, key_of, tamper, uuid_of
from tests.fsck.stage import codes_in, findings_in
from tests.pipeline.world import World
from tests.ports.test_released_ledgers import unpack

C = Code


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with jobs in every state that agrees with itself."""
    path = unpack("0002", tmp_path / "data")
    open_ledger(path).close()
    return path


def order_of(name: str) -> OrderId:
    return OrderId(uuid_of(f"ledger/{name}"))


def job(name: str, position: int = 0) -> str:
    return job_id(order_of(name), position)


def spoil(path: Path, statement: str, *values: Any) -> None:
    """Write in the file as nobody should. References are not held, as in a file that was written by another program."""
    with closing(sqlite3.connect(path)) as plain, plain:
        guards = plain.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            plain.execute(f"DROP TRIGGER {name}")
        plain.execute(statement, values)
        for _, guard in guards:
            plain.execute(guard)


SPOILT: list[tuple[Code, str, tuple[Any, ...]]] = [
    (C.SCHEMA, "CREATE TABLE stranger (x)", ()),
    (C.SCHEMA, "DROP INDEX jobs_by_state", ()),
    (C.BEHIND, "UPDATE alembic_version SET version_num = '0001'", ()),
    (C.NEWER, "UPDATE alembic_version SET version_num = '9999'", ()),
    (C.UNREADABLE_ROW, "UPDATE events SET \"values\" = '{' WHERE seq = 3", ()),
    (C.UNREADABLE_ROW, "UPDATE rulings SET verdict = 'perhaps'", ()),
    (C.UNREADABLE_ROW, "UPDATE listings SET entries = x'00'", ()),
    (C.UNREADABLE_ROW, "INSERT INTO control (id, mode) VALUES (1, 'asleep')", ()),
    (C.ORDER_UNREADABLE, "UPDATE orders SET envelope = x'7b' WHERE id = ?", (order_of("done"),)),
    (C.ORDER_DIFFERS, "UPDATE orders SET expires = expires + 1 WHERE id = ?", (order_of("queued"),)),
    (C.ORDER_DIFFERS, "UPDATE orders SET payload_type = 'x' WHERE id = ?", (order_of("queued"),)),
    (C.JOB_UNREADABLE, "UPDATE jobs SET state = 'lost' WHERE id = ?", (job("queued"),)),
    (C.JOB_UNREADABLE, "UPDATE jobs SET attempt = 'two' WHERE id = ?", (job("queued"),)),
    (C.JOB_DIFFERS, "UPDATE jobs SET kind = 'predict' WHERE id = ?", (job("queued"),)),
    (C.JOB_DIFFERS, "UPDATE jobs SET signer = 'somebody' WHERE id = ?", (job("queued"),)),
    (C.ATTEMPTS, "UPDATE jobs SET attempt = 9 WHERE id = ?", (job("failed"),)),
    (C.ATTEMPTS, "UPDATE jobs SET attempt = 0 WHERE id = ?", (job("running"),)),
    (C.RUNS_UNCLAIMED, "UPDATE jobs SET lease_until = NULL WHERE id = ?", (job("running"),)),
    (C.RUNS_UNCLAIMED, "UPDATE jobs SET worker = NULL WHERE id = ?", (job("running"),)),
    (C.LEASE_LEFT, "UPDATE jobs SET lease_until = 1 WHERE id = ?", (job("queued"),)),
    (C.LEASE_LEFT, "UPDATE jobs SET worker = 'w' WHERE id = ?", (job("done"),)),
    (C.PLACE_DONE, "UPDATE jobs SET state = 'queued' WHERE id = ?", (job("done"),)),
    (C.TWO_PLACES, "UPDATE jobs SET state = 'queued' WHERE order_id = ?", (order_of("done"),)),
    (C.RECEIPTS_MISSING, "DELETE FROM receipts WHERE position = 0", ()),
    (C.RECEIPTS_MISSING, "UPDATE jobs SET last_receipt = NULL WHERE id = ?", (job("done", 1),)),
    (C.RECEIPT_MISSING, "DELETE FROM receipts WHERE position = 1", ()),
    (C.NOBODY_GOES_ON, "UPDATE jobs SET next_agent = NULL WHERE id = ?", (job("done"),)),
    (C.NOBODY_GOES_ON, "UPDATE deliveries SET kind = 'handoff' WHERE kind = 'result'", ()),
    (C.UNSETTLED, "UPDATE deliveries SET state = 'dead' WHERE job_id = ?", (job("attested"),)),
    (C.DONE_UNTOLD, "UPDATE deliveries SET state = 'pending' WHERE job_id = ?", (job("done"),)),
    (C.BODY_MISSING, "DELETE FROM bodies", ()),
    (C.DELIVERY_UNREADABLE, "UPDATE bodies SET body = x'7b7d'", ()),
    (C.DELIVERY_UNREADABLE, "UPDATE deliveries SET state = 'lost'", ()),
    (C.DELIVERY_DIFFERS, "UPDATE deliveries SET acknowledged_at = NULL WHERE job_id = ?", (job("done"),)),
    (C.DELIVERY_DIFFERS, "UPDATE deliveries SET order_digest = 'x' WHERE job_id = ?", (job("done"),)),
    (C.REFERENCE, "UPDATE logs SET job_id = 'nobody' || seq", ()),
]  # fmt: skip


def test_the_ledger_agrees_with_itself_before_anybody_writes_in_it(path: Path) -> None:
    assert findings_in(path) == []


@pytest.mark.parametrize(
    ("code", "statement", "values"), SPOILT, ids=[f"{case[0]}: {case[1][:60]}" for case in SPOILT]
)
def test_what_somebody_wrote_in_the_file_is_found(
    code: Code, statement: str, values: tuple[Any, ...], path: Path
) -> None:
    spoil(path, statement, *values)

    assert code in codes_in(path)


# ------------------------------------------------------------------ what was signed


def change_receipt(path: Path, change: Callable[[bytes], bytes], position: int = 0) -> None:
    where = "WHERE position = ? AND order_digest = (SELECT digest FROM orders WHERE id = ?)"
    with closing(sqlite3.connect(path)) as plain, plain:
        query = f"SELECT envelope FROM receipts {where}"  # noqa: S608
        (envelope,) = plain.execute(query, (position, order_of("done"))).fetchone()
        statement = f"UPDATE receipts SET envelope = ? {where}"  # noqa: S608
        plain.execute(statement, (change(envelope), position, order_of("done")))


def test_a_receipt_that_is_none_any_more_is_found(path: Path) -> None:
    change_receipt(path, lambda _: b"{}")

    assert codes_in(path) == [C.RECEIPT_UNREADABLE]


def test_a_receipt_whose_content_was_changed_is_found_by_its_signature_and_its_digest(path: Path) -> None:
    change_receipt(path, lambda envelope: tamper(envelope, subject=[]))

    assert codes_in(path) == [C.RECEIPT_UNREADABLE]


def test_receipts_that_changed_their_places_are_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as plain, plain:
        digest = "(SELECT digest FROM orders WHERE id = ?)"
        for before, after in ((0, 7), (1, 0), (7, 1)):
            statement = f"UPDATE receipts SET position = ? WHERE position = ? AND order_digest = {digest}"  # noqa: S608
            plain.execute(statement, (after, before, order_of("done")))

    assert {C.RECEIPT_DIFFERS, C.RECEIPTS_MISSING} <= set(codes_in(path))


def test_a_receipt_that_follows_another_is_found(path: Path) -> None:
    order = consortium()
    with closing(open_ledger(path)) as ledger:
        signed = signed_order(ledger.order(order_of("done")))
        stranger = order.receipt(signed, [], attempt=7)
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute(
            "UPDATE receipts SET envelope = ?, digest = ? WHERE position = 0 AND order_digest = ?",
            (stranger.envelope, stranger.digest, signed.digest),
        )

    assert {C.RECEIPT_LINK, C.RECEIPTS_MISSING} <= set(codes_in(path))


def test_a_signature_that_does_not_hold_and_a_signer_that_nobody_knows_are_found(path: Path) -> None:
    with closing(open_ledger(path)) as ledger:
        envelope = ledger.order(order_of("received")).envelope
        other = ledger.order(order_of("queued")).envelope
    swapped = json.loads(envelope) | {"signatures": json.loads(other)["signatures"]}
    spoil(
        path,
        "UPDATE orders SET envelope = ? WHERE id = ?",
        json.dumps(swapped).encode(),
        order_of("received"),
    )
    nobody = Roster(tuple(e for e in consortium().roster.entries if e.keyid != key_of("agent-a").keyid))

    assert codes_in(path) == [C.SIGNATURE]
    assert {C.SIGNER_UNKNOWN, C.SIGNATURE} == {found.code for found in findings_in(path, nobody)}


def test_a_damaged_page_is_found(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as plain:
        (root,) = plain.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_state'").fetchone()
    content[(root - 1) * 4096 : (root - 1) * 4096 + 512] = bytes(512)
    path.write_bytes(content)

    assert C.DAMAGED in codes_in(path)


def test_an_order_that_was_cancelled_on_its_way_leaves_a_ledger_that_agrees(tmp_path: Path) -> None:
    world = World(tmp_path, lambda folder: open_ledger(folder / "ledger.sqlite"))
    order = world.order(train=("a1", "b1"), test=("c2",))
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    world.a.work(Queue.LEARN_TASKS)
    world.a.work(Queue.DELIVERIES)
    said = sign_cancellation(Cancellation(order.digest, NOW), key_of("o1"))

    take_cancellation(said.envelope, key_of("o1").keyid, world.a.host)

    for hospital in world:
        assert (
            findings_in(tmp_path / hospital.name / "ledger.sqlite", world.people.roster, hospital.keyid) == []
        )
    world.settle()
    for hospital in world:
        hospital.ledger.close()
        assert (
            findings_in(tmp_path / hospital.name / "ledger.sqlite", world.people.roster, hospital.keyid) == []
        )


# ------------------------------------------------------------------ mends


@pytest.mark.parametrize(
    ("fix", "statement", "name", "state"),
    [
        (Fix.END_LEASE, "UPDATE jobs SET lease_until = NULL, worker = NULL WHERE id = ?", "running", JobState.RUNNING),
        (Fix.DROP_LEASE, "UPDATE jobs SET worker = 'w', lease_until = 1 WHERE id = ?", "queued", JobState.QUEUED),
        (
            Fix.SETTLE,
            "UPDATE deliveries SET state = 'acknowledged', acknowledged_at = 1 WHERE job_id = ?",
            "attested",
            JobState.DONE,
        ),
    ],
)  # fmt: skip
def test_a_mend_leaves_a_ledger_that_agrees_and_a_job_that_goes_on(
    fix: Fix, statement: str, name: str, state: JobState, path: Path
) -> None:
    spoil(path, statement, job(name))
    (found,) = findings_in(path)
    assert (found.fix, found.target) == (fix, job(name))

    with closing(open_staged(path)) as file:
        mends = LedgerMends(file)
        act = {
            Fix.END_LEASE: mends.end_lease,
            Fix.DROP_LEASE: mends.drop_lease,
            Fix.SETTLE: mends.settle,
        }[fix]
        assert act(found.target, NOW)

    assert findings_in(path) == []
    with closing(open_ledger(path)) as ledger:
        after = ledger.job(job_id(order_of(name), 0))
        assert after.state is state
        assert ledger.events(limit=10_000)[-1].name == "fsck.mended"
        if fix is Fix.END_LEASE:
            assert after.id in {orphan.id for orphan in ledger.unrung(NOW, 100).orphans}


def test_what_was_mended_or_moved_on_meanwhile_is_let_alone(path: Path) -> None:
    with closing(open_staged(path)) as file:
        mends = LedgerMends(file)

        assert not mends.end_lease(job("running"), NOW)
        assert not mends.end_lease(job("queued"), NOW)
        assert not mends.settle(job("queued"), NOW)
        assert not mends.drop_lease(job("running"), NOW)
