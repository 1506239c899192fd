"""What only the real ledger has: a file that takes room, gives it back, and says so when there is none."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from agent.domain.retention import Garbage, retention
from agent.errors import AgentError, LedgerFull, LedgerUnavailable
from agent.ports import ledger_sqlalchemy_file
from agent.ports.ledger_schema import metadata
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, open_ledger
from agent.ports.ledger_sqlalchemy_disk import KEPT_FOR_EVER, ORDER_COLUMNS, _belongs_to
from agent.ports.ledger_sqlalchemy_file import translated
from tests.builders import SKEW
from tests.ports.ledger_stage import at, attested, fresh_ledger, report
from tests.ports.test_ledger_migrations import make_revision

OF_NO_ORDER = {"control", "restores", "targets", "nonces", "rulings", "descriptions", "listings", "probe"}
OF_NO_ORDER |= {
    "job_counts",
    "delivery_counts",
    "dataset_lines",
    "image_needs",
    "tallies",
}  # counts of all of them


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlAlchemyLedger]:
    with closing(fresh_ledger(tmp_path / "ledger")) as opened:
        yield opened


def long_done(ledger: SqlAlchemyLedger, count: int) -> None:
    for n in range(count):
        job = attested(ledger, report(bytes(100_000)), name=f"order {n}")
        ledger.keep_log(job, "train", bytes(100_000))
        for delivery in ledger.deliveries(order_id=job.order_id):
            ledger.acknowledge(delivery.id, at(3))


def collect(ledger: SqlAlchemyLedger) -> Garbage:
    late = at(400 * 86400)
    rule = retention(late, skew=SKEW, log_age=timedelta(days=1), order_age=timedelta(days=1))
    return ledger.collect(rule, late, 1000)


# ------------------------------------------------------------------ room comes back


def test_what_went_comes_back_to_the_file_system_while_others_write(
    ledger: SqlAlchemyLedger, tmp_path: Path
) -> None:
    path = tmp_path / "ledger" / "ledger.db"
    long_done(ledger, 20)
    ledger.give_back()
    before = path.stat().st_size
    assert collect(ledger).orders == 20

    with closing(open_ledger(path)) as other:
        other.check()
        given = ledger.give_back()
        other.check()

    assert before > 4_000_000
    assert given == before - path.stat().st_size > 3_500_000
    assert path.with_name("ledger.db-wal").stat().st_size < 10_000  # what was written since
    sizes = ledger.sizes()
    assert (sizes.can_shrink, sizes.free_bytes) == (True, 0)
    assert sizes.file_bytes == path.stat().st_size


def test_a_reader_that_stays_keeps_only_the_log_s_end_from_going(
    ledger: SqlAlchemyLedger, tmp_path: Path
) -> None:
    long_done(ledger, 3)
    with closing(sqlite3.connect(tmp_path / "ledger" / "ledger.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM orders").fetchone()
        assert collect(ledger).orders == 3

        ledger.give_back()  # returns, and the ledger goes on
        ledger.check()

        assert reader.execute("SELECT count(*) FROM orders").fetchone() == (3,)


def test_a_ledger_of_an_older_version_is_rebuilt_once_so_that_it_can_shrink(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    make_revision(path, "0001")

    with closing(open_ledger(path)) as ledger:
        assert ledger.sizes().can_shrink
        long_done(ledger, 1)
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ------------------------------------------------------------------ what belongs to an order


def test_every_table_is_known_to_belong_to_an_order_or_not(tmp_path: Path) -> None:
    """A new table must say which order its rows are of, by a column or a foreign key; else they would stay for ever."""
    order = {"id": "x", "digest": "y"}
    belong = {table.name for table in metadata.sorted_tables if _belongs_to(table, order) is not None}

    assert {table.name for table in metadata.sorted_tables} - belong == KEPT_FOR_EVER | OF_NO_ORDER
    assert set(ORDER_COLUMNS.values()) == set(order)


# ------------------------------------------------------------------ no room


def full(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "cause",
    [full(sqlite3.SQLITE_FULL), OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota")],
)
def test_a_full_disk_has_an_error_of_its_own(cause: Exception, tmp_path: Path) -> None:
    with pytest.raises(LedgerFull, match="is full") as caught, translated(tmp_path / "ledger.db"):
        raise cause

    error: AgentError = caught.value
    assert (error.code, error.status, error.is_retried) == ("ledger-full", 507, True)
    assert isinstance(error, LedgerUnavailable)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_CANTOPEN])
def test_what_sqlite_calls_an_io_error_is_a_full_disk_when_nothing_is_free(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LedgerUnavailable) as elsewhere, translated(tmp_path / "ledger.db"):
        raise full(code)
    assert not isinstance(elsewhere.value, LedgerFull)

    monkeypatch.setattr(ledger_sqlalchemy_file, "NEARLY_NOTHING", 1 << 60)
    with pytest.raises(LedgerFull), translated(tmp_path / "ledger.db"):
        raise full(code)
