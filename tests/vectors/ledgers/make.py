"""Writes the ledger that the program of a tree leaves behind: `PYTHONPATH=TREE python make.py FILE.sqlite.gz`.

Run it once, with the tree of the version that brings a revision, and commit the file: it is never made again. It speaks to
that tree's own tests (`tests.pipeline.world`), so that every row is one which that program really wrote; it knows what all
trees since 0001 have in common. The ledger is hospital a's, at NOW and some minutes; nothing in it is secret.
"""

import gzip
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from agent.domain.jobs import JobState
from agent.ports.broker import Queue
from agent.ports.ledger import JobQuery
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.builders import NOW, digest_named, uuid_of
from tests.pipeline.world import LEASE, POLICY, World

TASKS = (Queue.LEARN_TASKS, Queue.TEST_TASKS)


def order(world: World, name: str, **changes: Any) -> Any:
    """An order named so; by default it trains and is tested at hospital a."""
    return world.order(id=uuid_of(f"ledger/{name}"), **{"train": ("a1",), "test": ("a2",)} | changes)


def work_of_many_days(world: World) -> None:
    """One order in each state that this program knows, and a row in each table."""
    a = world.a
    world.post(order(world, "expired", expires=NOW + timedelta(minutes=1)), a)
    world.pass_time(180)
    world.settle()
    world.post(order(world, "done"), a)
    world.post(order(world, "handed on", train=("b1",), test=("c2",)), a)
    world.settle()
    world.post(order(world, "attested"), a)
    a.work(Queue.LEARNUPLETS)
    a.work(*TASKS)
    a.work(*TASKS)
    algo, world.algo = world.algo, lambda _guest: 1
    world.post(order(world, "failed"), a)
    a.work(Queue.LEARNUPLETS)
    a.work(*TASKS)
    world.algo = algo
    world.post(order(world, "running"), a)
    a.work(Queue.LEARNUPLETS)
    (queued,) = a.ledger.jobs(JobQuery(states=frozenset({JobState.QUEUED})))
    a.ledger.start(queued, world.clock(), worker="a worker that died", lease_until=world.clock() + LEASE)
    world.post(order(world, "queued"), a)
    a.work(Queue.LEARNUPLETS)
    if hasattr(a.ledger, "rule"):
        since_0002(world)
    if hasattr(a.ledger, "begin_step"):
        since_0003(world)
    world.post(order(world, "received"), a)
    a.ledger.remember_nonce(world.o1, "a-nonce-of-that-time", world.clock() + LEASE, world.clock())
    a.ledger.check()


def since_0002(world: World) -> None:
    """An order that waits for the operator's word, and words on other images."""
    from agent.domain.approvals import Ruling, Verdict
    from agent.domain.images import ImageDescription, ImageEntry

    a, image = world.a, digest_named("an image that nobody knows")
    a.allows(f"hold_unknown = true\n{POLICY}")
    algo = order(world, "queued").order.algo_image
    world.post(order(world, "held", algo_image=type(algo)(algo.id, image)), a)
    a.work(Queue.LEARNUPLETS)
    a.allows(POLICY)
    for verdict in (Verdict.DENIED, Verdict.APPROVED):
        a.ledger.rule(Ruling(image=digest_named("another"), verdict=verdict, at=world.clock(), uid=1000))
    entry = ImageEntry(layer=0, path="usr/bin/python3", kind="file", size_bytes=3, mode=0o755)
    read = ImageDescription(image=image, read_at=world.clock(), archive_bytes=1, problem="no archive")
    a.ledger.describe(read, [entry])


def since_0003(world: World) -> None:
    """An attempt that came half way, and the operator's word on the host."""
    from agent.domain.control import Control, Mode

    ledger, now = world.a.ledger, world.clock()
    (running,) = ledger.jobs(JobQuery(states=frozenset({JobState.RUNNING})))
    ledger.begin_step(running, "inputs", now)
    ledger.set_control(Control(mode=Mode.PAUSED, since=now, reason="maintenance", uid=0), now)
    ledger.set_control(Control(mode=Mode.RUNNING, since=now, uid=0), now)


def main(target: Path) -> None:
    """Write it, with something in every table."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        world = World(Path(folder), lambda home: open_ledger(home / "ledger.sqlite"))
        work_of_many_days(world)
        for hospital in world:
            hospital.ledger.close()
        path = Path(folder) / "a" / "ledger.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as plain:
            plain.execute("PRAGMA journal_mode = DELETE")
            plain.execute("VACUUM")
            names = [row[0] for row in plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            empty = [n for n in names if not plain.execute(f'SELECT 1 FROM "{n}" LIMIT 1').fetchone()]  # noqa: S608
        target.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    sys.stdout.write(f"{target}: {target.stat().st_size} bytes, empty tables: {empty}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
