"""Every ledger that a released program left behind opens, is whole, and is worked on: `tests/vectors/ledgers`, made by the
real programs of those revisions (`make.py` there says how), with rows in every table.
"""

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agent.domain.ids import OrderId, job_id
from agent.domain.jobs import FINAL, Job, JobState
from agent.fsck.findings import Code
from agent.fsck.ledger import judge_file
from agent.ports.ledger import DeliveryState, JobQuery, Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.ledger_sqlalchemy_backup import back_up, restore
from agent.ports.ledger_sqlalchemy_look import look_into
from tests.builders import NOW, SKEW, key_of, uuid_of
from tests.fsck.stage import codes_in, findings_in
from tests.pipeline.world import LEASE, World

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "ledgers"
RELEASED = ("0001", "0002")  # every revision that a release ever wrote; each has its file
STATES = {
    "expired": JobState.EXPIRED,
    "done": JobState.DONE,
    "handed on": JobState.DONE,
    "attested": JobState.ATTESTED,
    "failed": JobState.FAILED,
    "running": JobState.RUNNING,
    "queued": JobState.QUEUED,
    "received": JobState.RECEIVED,
}
every_release = pytest.mark.parametrize("revision", RELEASED)


def unpack(revision: str, folder: Path) -> Path:
    """The ledger of that revision in a folder of its own."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "ledger.sqlite"
    path.write_bytes(gzip.decompress((VECTORS / f"{revision}.sqlite.gz").read_bytes()))
    path.chmod(0o600)
    return path


def job_of(ledger: Ledger, name: str, position: int = 0) -> Job:
    return ledger.job(job_id(OrderId(uuid_of(f"ledger/{name}")), position))


@pytest.fixture
def path(revision: str, tmp_path: Path) -> Path:
    return unpack(revision, tmp_path / "data")


def test_every_file_is_of_the_revision_that_it_is_named_after_and_has_rows_in_every_table(
    tmp_path: Path,
) -> None:
    assert sorted(file.name for file in VECTORS.glob("*.gz")) == [f"{one}.sqlite.gz" for one in RELEASED]
    for revision in RELEASED:
        with closing(sqlite3.connect(unpack(revision, tmp_path / revision))) as plain:
            assert plain.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
            tables = [row[0] for row in plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            counts = {n: plain.execute(f'SELECT count(*) FROM "{n}"').fetchone()[0] for n in tables}  # noqa: S608
        assert all(counts.values()), counts


@every_release
def test_it_opens_with_everything_in_its_place(revision: str, path: Path) -> None:
    with closing(open_ledger(path)) as ledger:
        assert {name: job_of(ledger, name).state for name in STATES} == STATES
        for job in ledger.jobs(JobQuery(limit=1000)):
            assert ledger.order(job.order_id).digest == job.order
            assert (job.claim, ledger.steps(job)) == (0, ())
            assert (ledger.given_trace(job.order_id), ledger.phase_times(job.order_id)) == (None, ())
        assert [d.id for d in ledger.deliveries(state=DeliveryState.PENDING)] != []
        assert ledger.control().may_start
        assert ledger.restores() == ()
        assert ledger.tallies() == ()  # counting begins with the upgrade
        assert len(ledger.events(limit=1000)) > 20
        assert not ledger.remember_nonce(key_of("o1").keyid, "a-nonce-of-that-time", NOW, NOW)
        if revision >= "0002":
            assert job_of(ledger, "held").state is JobState.HELD
            assert [ruling.uid for ruling in ledger.rulings()] == [1000, 1000]


@every_release
def test_it_agrees_with_itself_before_and_after_it_is_migrated(revision: str, path: Path) -> None:
    with look_into(path) as ledger:
        assert [found.code for found in judge_file(ledger)] == [Code.BEHIND], revision

    open_ledger(path).close()

    assert findings_in(path) == []


@every_release
def test_its_orders_go_on_to_their_end(revision: str, tmp_path: Path) -> None:
    def open_old(folder: Path) -> Ledger:
        if folder.name == "a":
            unpack(revision, folder)
        return open_ledger(folder / "ledger.sqlite")

    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", open_old)
    world.pass_time(600)

    for _ in range(6):
        world.sweep()
        world.work()
        world.pass_time(LEASE.total_seconds() + 1)

    ledger = world.a.ledger
    for name in ("attested", "running", "queued", "received"):
        assert (job_of(ledger, name).state, job_of(ledger, name, 1).state) == (JobState.DONE, JobState.DONE)
    assert job_of(ledger, "running").attempt in {1, 2}
    assert all(job.state in FINAL | {JobState.HELD} for job in world.a.jobs())
    assert ledger.deliveries(state=DeliveryState.PENDING) == ()
    ledger.close()
    assert codes_in(tmp_path / "world" / "a" / "ledger.sqlite") == []


@every_release
def test_a_backup_of_that_time_is_put_back(revision: str, path: Path, tmp_path: Path) -> None:
    file, me = tmp_path / "old.backup", key_of("agent-a").keyid
    back_up(path, file, agent=me, now=NOW, overwrite=False)
    new = tmp_path / "new" / "ledger.sqlite"

    with file.open("rb") as opened:
        told = restore(new, opened, agent=me, now=NOW, skew=SKEW, uid=None)

    assert told.backup.revision == revision
    with closing(open_ledger(new)) as ledger:
        assert {name: job_of(ledger, name).state for name in STATES} == STATES
    assert findings_in(new) == []
