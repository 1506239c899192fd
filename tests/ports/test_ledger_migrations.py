"""The ledger's schema grows by revisions: each old file opens, none is opened by a program that is too old for it."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from agent.domain.approvals import Ruling, Verdict
from agent.domain.ids import digest_of, job_id
from agent.domain.jobs import JobEvent, JobState
from agent.domain.measures import MOVES, Tally
from agent.errors import LedgerUnavailable
from agent.ports import ledger_sqlalchemy_file
from agent.ports.ledger_schema import HEAD, metadata
from agent.ports.ledger_sqlalchemy import migrate, open_ledger
from tests.ports.ledger_stage import (
    arrival,
    at,
    attested,
    fresh_ledger,
    miscounted,
    order_named,
    received,
    report,
    running,
)

ROOT = Path(__file__).resolve().parents[2]
FIRST = "0001"


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "agent.ports:migrations")
    return ScriptDirectory.from_config(config)


def schema_of(path: Path) -> set[str]:
    """Every column, key, constraint, index and trigger, however SQLite words the tables: added columns stand last there."""
    with closing(sqlite3.connect(path)) as plain:
        found = set()
        for kind, name, table, sql in plain.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master"
        ).fetchall():
            if kind != "table":
                found.add(f"{kind} {name} of {table}: {sql}")
                continue
            for about in ("table_xinfo", "foreign_key_list", "index_list"):
                rows = plain.execute(f"SELECT * FROM pragma_{about}(?)", (name,)).fetchall()  # noqa: S608 - our own words
                found.update(
                    f"{about} of {name}: {row[1:] if about != 'foreign_key_list' else row[2:]}"
                    for row in rows
                )
            found.add(f"table {name}: {'WITHOUT ROWID' in sql}, {'AUTOINCREMENT' in sql}")
        return found


def make_revision(path: Path, revision: str) -> None:
    """A ledger as the program of that revision left it, with one order and its job."""
    path.touch(0o600)
    config = Config()
    config.set_main_option("script_location", "agent.ports:migrations")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def test_the_program_knows_the_newest_revision() -> None:
    assert scripts().get_current_head() == HEAD
    assert scripts().get_base() == FIRST


def test_the_revisions_lead_to_the_tables_the_program_uses(tmp_path: Path) -> None:
    migrate(tmp_path / "migrated.db")
    engine = create_engine(f"sqlite:///{tmp_path}/made.db")
    metadata.create_all(engine)
    engine.dispose()

    extra = schema_of(tmp_path / "migrated.db") ^ schema_of(tmp_path / "made.db")

    assert {line for line in extra if "alembic_version" not in line} == set()


def test_a_ledger_of_the_first_revision_opens(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    make_revision(path, FIRST)
    order = order_named("order")
    values = {
        "id": order.order.id,
        "digest": order.digest,
        "payload_type": order.order.payload_type,
        "signer": order.signer,
        "sender": order.signer,
        "expires": int(order.order.expires.timestamp() * 1_000_000),
        "envelope": order.envelope,
        "job": job_id(order.order.id, 0),
    }
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute(
            "INSERT INTO orders VALUES (:id, :digest, :payload_type, :signer, :sender, :expires, 1000000, :envelope)",
            values,
        )
        plain.execute(
            "INSERT INTO jobs VALUES (1, :job, :id, :digest, :signer, 0, NULL, 'learn', 'received', 0, 3,"
            " 1000000, 1000000, NULL, NULL, NULL, NULL, NULL, NULL)",
            values,
        )

    with closing(open_ledger(path)) as ledger:
        assert ledger.order(order.order.id).envelope == order.envelope
        assert ledger.job(job_id(order.order.id, 0)).state is JobState.RECEIVED
        assert ledger.admit(arrival(order), at(1), max_attempts=3, queue_limit=10).is_repeat
        received(ledger, "another")
        ruling = Ruling(image=digest_of(b"image"), verdict=Verdict.APPROVED, at=at(2), uid=0)
        assert ledger.rule(ruling)
        assert ledger.rulings() == (ruling,)


def test_an_order_of_before_0009_has_its_own_trace_and_is_counted_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    make_revision(path, "0008")
    order = order_named("order")
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?, 4000000000000000, 1000000, ?)",
            (
                order.order.id,
                order.digest,
                order.order.payload_type,
                order.signer,
                order.signer,
                order.envelope,
            ),
        )
        plain.execute(
            "INSERT INTO jobs VALUES (1, ?, ?, ?, ?, 0, NULL, 'learn', 'received', 0, 3, 1000000, 1000000,"
            " NULL, NULL, NULL, NULL, NULL, NULL, 0)",
            (job_id(order.order.id, 0), order.order.id, order.digest, order.signer),
        )

    with closing(open_ledger(path)) as ledger:
        assert ledger.order(order.order.id).trace is None
        assert (ledger.given_trace(order.order.id), ledger.tallies()) == (None, ())
        ledger.move(ledger.job(job_id(order.order.id, 0)), JobEvent.ENQUEUE, at(1))
        assert ledger.tallies() == (Tally(MOVES, ("queued",), 1.0),)
        assert ledger.gauges().waiting == {JobState.QUEUED: datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)}


def test_what_was_there_before_0011_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(fresh_ledger(tmp_path / "new")) as source:
        running(source, "one")
        attested(source, report(), name="two")
        source.move(received(source, "three"), JobEvent.HOLD, at(1))
        source.move(received(source, "four"), JobEvent.CANCEL, at(1))
        needed = [source.needed_images(is_held=is_held) for is_held in (False, True)]
    make_revision(path, "0010")
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("ATTACH ? AS new", (str(tmp_path / "new" / "ledger.db"),))
        for table in ("orders", "jobs", "deliveries", "events"):
            columns = ", ".join(
                f'"{row[1]}"' for row in plain.execute(f"PRAGMA main.table_info({table})").fetchall()
            )
            plain.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")  # noqa: S608 - our own words

    with closing(open_ledger(path)) as ledger:
        assert miscounted(ledger) == []
        assert [ledger.needed_images(is_held=is_held) for is_held in (False, True)] == needed
        assert all(needed)
        received(ledger, "five")
        assert miscounted(ledger) == []


def test_a_ledger_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    migrate(path)
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("UPDATE alembic_version SET version_num = '9999'")
    before = schema_of(path)

    with pytest.raises(LedgerUnavailable, match="another version"):
        open_ledger(path)

    assert schema_of(path) == before


def test_a_migration_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    whole_upgrade = command.upgrade

    def upgrade_and_fail(config: Config, revision: str) -> None:
        whole_upgrade(config, revision)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(command, "upgrade", upgrade_and_fail)
    with pytest.raises(LedgerUnavailable, match="disk I/O"):
        migrate(path)
    assert schema_of(path) == set()

    monkeypatch.undo()
    open_ledger(path).close()


def test_opening_a_ledger_that_is_not_behind_imports_no_alembic(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with closing(fresh_ledger(folder)) as ledger:
        job = received(ledger)

    command_line = [sys.executable, "-m", "tests.ports.ledger_processes", "read", str(folder / "ledger.db")]
    done = subprocess.run([*command_line, job.id], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "received False\n"


def test_migrating_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    migrate(path)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing was to be migrated")

    monkeypatch.setattr(ledger_sqlalchemy_file, "_upgrade", refuse)
    migrate(path)
