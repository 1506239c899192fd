"""The audit log in a real ledger: no statement changes it that does not first take the triggers away, and whoever does is seen.

Each test does to the file what somebody with the right to write it could do, and asks the same audit as the command does.
"""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from agent.domain.audit import CHECKPOINT, RESTORED, Head, NewEvent, bytes_of, digest_of_line
from agent.domain.ids import Digest, KeyId
from agent.domain.receipts import RECEIPT_TYPE
from agent.domain.strict_json import encode
from agent.errors import (
    AgentError,
    BrokenLog,
    KeyNotValid,
    LedgerUnavailable,
    LogRestored,
    LogTruncated,
    NotYours,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.ports.audit import Wanted
from agent.ports.audit_sqlite import SqliteAuditLog
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, open_ledger
from agent.trust.audit_log import LogAudit, Verdict, open_head, sign_head
from agent.trust.envelope import sign_envelope
from agent.trust.keys import SigningKey
from agent.trust.roster import AUDIT_HEAD_TYPE
from tests.builders import dataset, key_of
from tests.ports.ledger_stage import WORLD, at, attested, fresh_ledger, handoff, order_named, report, running
from tests.ports.test_ledger_migrations import make_revision

KEY = key_of("agent-a")
ROOT = Path(__file__).resolve().parents[2]
ANOTHERS = encode(Head(agent=key_of("agent-b").keyid, first=1, seq=0, digest=None, is_newest=True, at=at(0)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(folder: Path) -> Iterator[SqlAlchemyLedger]:
    """A ledger with a dozen lines of two orders."""
    with closing(fresh_ledger(folder)) as opened:
        attested(opened, report(), handoff(), name="one")
        running(opened, "two")
        opened.record_event("policy.changed", at(2), values={"was": None, "now": "sha256:…"})
        yield opened


def path_of(folder: Path) -> Path:
    return folder / "ledger.db"


def signer(key: SigningKey = KEY) -> Callable[[int, Digest | None], str]:
    return lambda seq, digest: sign_head(key, seq=seq, digest=digest, at=at(3)).decode()


def checkpoint(ledger: SqlAlchemyLedger) -> None:
    assert ledger.checkpoint(signer(), at(3), lines=1, age=timedelta(hours=1))


def kept_head(folder: Path) -> Head:
    """What an auditor was given and kept."""
    with closing(SqliteAuditLog(path_of(folder))) as log:
        seq = log.newest()
        (last,) = log.recorded(seq, seq)
    return open_head(sign_head(KEY, seq=seq, digest=last.digest, at=at(4)), WORLD.roster)


def audit(folder: Path, *heads: Head) -> Verdict:
    judge = LogAudit(WORLD.roster, heads)
    with closing(SqliteAuditLog(path_of(folder))) as log:
        for one in log.recorded(1, log.newest()):
            judge.take_row(one.seq, one.line, one.digest)
        return judge.end_of_ledger(log.numbered())


def write(folder: Path, *statements: str, keeps_triggers: bool = False, **values: int) -> None:
    """As somebody who can write the file and knows what stands in its way. `values` are the statements' own."""
    with closing(sqlite3.connect(path_of(folder))) as plain, plain:
        if not keeps_triggers:
            for trigger in ("events_stay", "events_last", "events_once"):
                plain.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            plain.execute(statement, values)


def forge(folder: Path, first: int, *statements: str, **values: int) -> None:
    """Write, and then make every digest from line `first` on anew, as somebody would who knows how they are made."""
    write(folder, *statements, keeps_triggers=False, **values)
    with closing(SqliteAuditLog(path_of(folder))) as log:
        before = next((one.digest for one in log.recorded(first - 1, first - 1)), None)
        lines = [one.line for one in log.recorded(first, log.newest())]
    with closing(sqlite3.connect(path_of(folder))) as plain, plain:
        for line in lines:
            assert line is not None
            members = {name: getattr(line, name) for name in line.__struct_fields__} | {"previous": before}
            before = digest_of_line(type(line)(**members))
            plain.execute("UPDATE events SET digest = ? WHERE seq = ?", (before, line.seq))


def codes(verdict: Verdict) -> list[tuple[int | None, str]]:
    return [(fault.seq, fault.code) for fault in verdict.faults]


# ------------------------------------------------------------------ whole


def test_a_log_that_nobody_touched_holds(ledger: SqlAlchemyLedger, folder: Path) -> None:
    checkpoint(ledger)

    verdict = audit(folder, kept_head(folder))

    assert verdict.is_sound
    assert (verdict.first, verdict.last) == (1, ledger.events()[-1].seq)
    assert verdict.digest == ledger.events()[-1].digest
    assert (verdict.checkpoints, verdict.signers) == (1, (KEY.keyid,))
    assert verdict.vouched == verdict.last


def test_an_empty_log_holds(folder: Path) -> None:
    fresh_ledger(folder).close()

    verdict = audit(folder)

    assert (verdict.is_sound, verdict.last, verdict.digest) == (True, 0, None)


def test_the_log_is_read_and_holds_while_processes_write_it(folder: Path) -> None:
    fresh_ledger(folder).close()
    command = [sys.executable, "-m", "tests.ports.ledger_processes", "attest", str(path_of(folder))]
    writers = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in ("w1", "w2")
    ]
    seen = []
    try:
        for _ in range(10):
            for writer in writers:
                assert writer.stdout is not None
                assert writer.stdout.readline()  # both committed since the last look
            seen.append(audit(folder))
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()

    assert all(verdict.is_sound for verdict in seen)
    assert len({verdict.last for verdict in seen}) > 1, "nobody wrote meanwhile"
    assert audit(folder).is_sound  # also what they left when they were killed


# ------------------------------------------------------------------ append-only


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET name = 'other' WHERE seq = 2",
        "UPDATE events SET digest = NULL",
        "DELETE FROM events WHERE seq = 2",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events SELECT 2, at, 'other', order_id, position, \"values\", dataset, digest"
        " FROM events WHERE seq = 1",
    ],
)
def test_no_statement_changes_or_removes_a_line(
    ledger: SqlAlchemyLedger, folder: Path, statement: str
) -> None:
    before = ledger.events()

    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        write(folder, statement, keeps_triggers=True)

    assert ledger.events() == before


# ------------------------------------------------------------------ what somebody did who took the triggers away


@pytest.mark.parametrize(
    "change",
    [
        "at = at + 1",
        "name = 'job.done'",
        "order_id = NULL",
        "position = 3",
        "dataset = 'd'",
        "\"values\" = '{}'",
        "\"values\" = x'00'",
        "at = 'never'",
        "digest = NULL",
    ],
)
def test_a_line_that_was_edited_is_named(ledger: SqlAlchemyLedger, folder: Path, change: str) -> None:
    write(folder, f"UPDATE events SET {change} WHERE seq = 4")  # noqa: S608 - our own words

    verdict = audit(folder)

    assert codes(verdict)[0] == (4, BrokenLog.code)
    assert {seq for seq, _ in codes(verdict)} <= {4, 5}  # the next one names the digest that was there


def test_a_line_that_was_taken_out_is_named(ledger: SqlAlchemyLedger, folder: Path) -> None:
    write(folder, "DELETE FROM events WHERE seq = 4")

    verdict = audit(folder)

    assert codes(verdict)[0] == (5, BrokenLog.code)
    assert "the lines 4 before it" in verdict.faults[0].detail


def test_two_lines_that_changed_places_are_named(ledger: SqlAlchemyLedger, folder: Path) -> None:
    write(
        folder,
        "UPDATE events SET seq = -3 WHERE seq = 3",
        "UPDATE events SET seq = 3 WHERE seq = 5",
        "UPDATE events SET seq = 5 WHERE seq = -3",
    )

    assert [seq for seq, _ in codes(audit(folder))] == [3, 4, 5, 6]


def test_a_line_that_was_put_in_the_middle_shows(ledger: SqlAlchemyLedger, folder: Path) -> None:
    write(
        folder,
        "UPDATE events SET seq = seq + 1000 WHERE seq >= 4",
        "INSERT INTO events SELECT 4, at, 'job.done', order_id, position, \"values\", dataset, digest"
        " FROM events WHERE seq = 3",
        "UPDATE events SET seq = seq - 999 WHERE seq >= 1000",
    )

    assert (4, BrokenLog.code) in codes(audit(folder))


def test_a_line_that_was_appended_without_its_digest_shows(ledger: SqlAlchemyLedger, folder: Path) -> None:
    last = ledger.events()[-1].seq
    write(
        folder,
        "INSERT INTO events SELECT seq + 1, at, 'job.done', order_id, position, \"values\", dataset, digest"
        " FROM events WHERE seq = :last",
        keeps_triggers=True,
        last=last,
    )

    assert codes(audit(folder)) == [(last + 1, BrokenLog.code)]


def test_lines_that_were_cut_off_at_the_end_show_by_their_numbers(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    write(folder, "DELETE FROM events WHERE seq > 5")

    assert codes(audit(folder)) == [(None, LogTruncated.code)]


def test_a_cut_that_hides_the_numbers_too_shows_against_an_earlier_head(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    head = kept_head(folder)
    write(folder, "DELETE FROM events WHERE seq > 5", "UPDATE sqlite_sequence SET seq = 5")

    assert audit(folder).is_sound, "a chain that ends earlier is a chain: only who kept a head sees it"
    assert codes(audit(folder, head)) == [(head.seq, LogTruncated.code)]


def test_lines_that_were_written_again_after_a_cut_show_against_an_earlier_head(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    head = kept_head(folder)
    write(folder, "DELETE FROM events WHERE seq > 5", "UPDATE sqlite_sequence SET seq = 5")
    for _ in range(head.seq):
        ledger.record_event("something.else", at(5))

    assert audit(folder).is_sound
    assert codes(audit(folder, head)) == [(head.seq, BrokenLog.code)]


def test_a_rewriting_with_all_digests_made_anew_shows_at_the_signed_checkpoint(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    checkpoint(ledger)
    last = ledger.events()[-1].seq
    forge(folder, 4, "UPDATE events SET name = 'job.done' WHERE seq = 4")

    assert codes(audit(folder)) == [(last, BrokenLog.code)]
    assert "vouches for another line" in audit(folder).faults[0].detail


def test_a_rewriting_after_the_last_checkpoint_shows_only_against_a_head(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    checkpoint(ledger)
    ledger.record_event("roster.changed", at(4))
    head, last = kept_head(folder), ledger.events()[-1].seq
    forge(folder, last, "UPDATE events SET name = 'other' WHERE seq = :last", last=last)

    assert audit(folder).is_sound
    assert audit(folder).vouched == last - 2
    assert codes(audit(folder, head)) == [(head.seq, BrokenLog.code)]


def test_a_checkpoint_that_another_key_signed_counts_for_nothing(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    ledger.checkpoint(signer(key_of("stranger")), at(3), lines=1, age=timedelta(hours=1))

    verdict = audit(folder)

    assert (verdict.checkpoints, verdict.vouched, verdict.signers) == (0, 0, ())
    assert [note.code for note in verdict.unjudged] == ["unknown-key"]


def test_a_checkpoint_whose_signature_is_false_is_a_fault(ledger: SqlAlchemyLedger, folder: Path) -> None:
    right = sign_head(KEY, seq=1, digest=None, at=at(3)).decode()
    other = sign_head(KEY, seq=2, digest=None, at=at(3)).decode()
    payload = right.split('"payload":"')[1].split('"')[0]
    wrong = other.replace(other.split('"payload":"')[1].split('"')[0], payload)
    ledger.record_event(CHECKPOINT, at(3), values={"head": wrong})

    assert codes(audit(folder)) == [(ledger.events()[-1].seq, BrokenLog.code)]


# ------------------------------------------------------------------ a restored backup


def test_a_restored_backup_is_seen_as_what_it_is(ledger: SqlAlchemyLedger, folder: Path) -> None:
    old = ledger.events()[-1].seq
    for n in range(5):
        ledger.record_event("lost", at(4), values={"n": n})
    head = kept_head(folder)
    write(folder, "DELETE FROM events WHERE seq > :old", "UPDATE sqlite_sequence SET seq = :old", old=old)
    ledger.record_event(RESTORED, at(10), values={"reason": "disk", "uid": 1000})

    without, against = audit(folder), audit(folder, head)

    assert without.is_sound
    assert [(one.seq, one.uid) for one in without.restores] == [(old + 1, 1000)]
    assert codes(against) == [(head.seq, LogRestored.code)]
    assert "by user 1000" in against.faults[0].detail


def test_a_restore_excuses_nothing_that_was_signed_after_it(ledger: SqlAlchemyLedger, folder: Path) -> None:
    ledger.record_event(RESTORED, at(3), values={"uid": 1000})
    ledger.record_event("later", at(4))
    head = kept_head(folder)  # signed after the restore
    write(
        folder,
        "DELETE FROM events WHERE seq = :last",
        "UPDATE sqlite_sequence SET seq = :last - 1",
        last=head.seq,
    )

    assert codes(audit(folder, head)) == [(head.seq, LogTruncated.code)]


# ------------------------------------------------------------------ checkpoints


def test_a_checkpoint_is_made_when_lines_or_time_went_by(ledger: SqlAlchemyLedger) -> None:
    hour = timedelta(hours=1)
    count = len(ledger.events())

    assert not ledger.checkpoint(signer(), at(3), lines=count + 1, age=hour)
    assert ledger.checkpoint(signer(), at(3), lines=count, age=hour)
    assert not ledger.checkpoint(signer(), at(30 * 86400), lines=1000, age=hour), "nothing came since"
    ledger.record_event("one", at(10))
    assert not ledger.checkpoint(signer(), at(11), lines=1000, age=hour)
    assert ledger.checkpoint(signer(), at(3700), lines=1000, age=hour)


def test_lines_written_together_are_one_transaction_and_one_chain(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    before = len(ledger.events())

    ledger.record_events([NewEvent(name="a"), NewEvent(name="b"), NewEvent(name="c")], at(5))
    ledger.record_events([], at(6))

    assert [event.name for event in ledger.events()[before:]] == ["a", "b", "c"]
    assert audit(folder).is_sound


# ------------------------------------------------------------------ older ledgers


def test_the_lines_of_an_older_ledger_are_chained_and_its_tasks_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "ledger.db"
    path.parent.mkdir(mode=0o700)
    make_revision(path, "0002")
    order = order_named("order")
    us = int(at(0).timestamp() * 1_000_000)
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                order.order.id,
                order.digest,
                order.order.payload_type,
                order.signer,
                order.signer,
                us,
                us,
                order.envelope,
            ),
        )
        plain.executemany(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, NULL, ?, 'done', 1, 3, ?, ?, NULL, NULL, NULL, NULL, NULL, NULL)",
            [
                (n + 1, f"{order.order.id}.{n}", order.order.id, order.digest, order.signer, n, kind, us, us)
                for n, kind in ((0, "learn"), (4, "test"))
            ],
        )
        plain.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
            [(n, us + n, "job.done", order.order.id, 0, '{"attempt": 1}') for n in range(1, 50)],
        )

    open_ledger(path).close()

    verdict = audit(path.parent)
    assert (verdict.is_sound, verdict.last) == (True, 52)
    with closing(SqliteAuditLog(path)) as log:
        began, learn, test = (one.line for one in log.recorded(50, 52))
        assert began is not None
        assert began.told == {"lines": 49}
        assert learn is not None
        assert learn.dataset == dataset("a1").id
        assert test is not None
        assert test.told["problem_image"] == order.order.images[0]
        assert list(log.orders(Wanted(dataset=dataset("c2").id))) == [(order.order.id, frozenset({4}))]


def test_a_ledger_of_an_older_program_is_not_read_half_and_half(tmp_path: Path) -> None:
    make_revision(tmp_path / "ledger.db", "0002")

    with pytest.raises(LedgerUnavailable, match="brought up to date"):
        SqliteAuditLog(tmp_path / "ledger.db")


# ------------------------------------------------------------------ reading


def test_reading_cannot_write(ledger: SqlAlchemyLedger, folder: Path) -> None:
    with (
        closing(SqliteAuditLog(path_of(folder))) as log,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        log._file.execute("DELETE FROM events")


def test_a_question_finds_tasks_by_dataset_order_image_and_party(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    one, two = order_named("one"), order_named("two")
    refused = {"who": KeyId("f" * 64), "order_id": one.order.id}
    ledger.record_event("request.refused", at(9), dataset=dataset("a1").id, values=dict(refused))

    with closing(SqliteAuditLog(path_of(folder))) as log:
        found = {
            name: ([order for order, _ in log.orders(wanted)], [line.name for line in log.elsewhere(wanted)])
            for name, wanted in {
                "dataset": Wanted(dataset=dataset("a1").id),
                "other dataset": Wanted(dataset=dataset("b1").id),
                "order": Wanted(order=one.order.id),
                "image": Wanted(text=one.order.images[1]),
                "party": Wanted(text="f" * 64),
            }.items()
        }

    assert found == {
        "dataset": ([one.order.id, two.order.id], ["request.refused"]),
        "other dataset": ([], []),
        "order": ([one.order.id], ["request.refused"]),
        "image": ([one.order.id, two.order.id], []),
        "party": ([], ["request.refused"]),
    }


def test_lines_of_a_time_are_a_range(ledger: SqlAlchemyLedger, folder: Path) -> None:
    ledger.record_event("later", at(100))
    last = ledger.events()[-1].seq

    with closing(SqliteAuditLog(path_of(folder))) as log:
        ranges = [
            log.between(*ends)
            for ends in ((None, None), (at(50), None), (None, at(50)), (at(200), None), (None, at(-1)))
        ]

    assert ranges == [(1, last), (last, last), (1, last - 1), (1, 0), (1, 0)]


def test_the_bytes_of_a_line_read_are_those_its_digest_is_of(ledger: SqlAlchemyLedger, folder: Path) -> None:
    with closing(SqliteAuditLog(path_of(folder))) as log:
        for one in log.recorded(3, 6):
            assert one.line is not None
            assert digest_of_line(one.line) == one.digest
            assert bytes_of(one.line).startswith(f'{{"seq":{one.seq},'.encode())


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (sign_head(key_of("stranger"), seq=1, digest=None, at=at(0)), UnknownKey),
        (sign_head(key_of("o1"), seq=1, digest=None, at=at(0)), WrongRole),
        (sign_head(KEY, seq=1, digest=None, at=at(100 * 365 * 86400)), KeyNotValid),
        (sign_envelope(AUDIT_HEAD_TYPE, ANOTHERS, KEY), NotYours),
        (sign_envelope(RECEIPT_TYPE, ANOTHERS, KEY), UnknownPayloadType),
    ],
    ids=["stranger", "orchestrator", "out of its dates", "of another's log", "of another type"],
)
def test_a_head_is_an_agent_s_own_word_while_its_key_holds(head: bytes, error: type[AgentError]) -> None:
    with pytest.raises(error):
        open_head(head, WORLD.roster)
