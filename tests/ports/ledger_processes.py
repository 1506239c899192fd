"""What the tests of the ledger run in processes: `python -m tests.ports.ledger_processes claim|attest|admit|crowd|read FILE …`.

Each prints a line only after the ledger said that it was done.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from agent.domain.chain import TaskKind
from agent.domain.ids import JobId
from agent.domain.jobs import JobEvent, JobState
from agent.errors import LostRace
from agent.ports.ledger import JobQuery, Successor
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, open_ledger
from tests.builders import NOW
from tests.ports.ledger_stage import LEASE, PEER, arrival, chain_of, handoff, order_named, report, running


def say(*words: object) -> None:
    """One line to the parent, at once, and whole whoever else says one."""
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def claim(ledger: SqlAlchemyLedger, name: str) -> None:
    """Start the next of the queued jobs at each line from the parent; tell which one, or that another was quicker."""
    jobs = ledger.jobs(JobQuery(states=frozenset({JobState.QUEUED}), limit=1000))
    say("ready")
    for job, _ in zip(jobs, sys.stdin, strict=False):
        try:
            ledger.start(job, NOW, worker=name, lease_until=NOW + LEASE)
        except LostRace:
            say("lost")
        else:
            say(job.id)


def attest(ledger: SqlAlchemyLedger, name: str) -> None:
    """For ever: one more order, run and attested with a receipt, two deliveries and a successor."""
    for number in count():
        job = running(ledger, f"{name} {number}", worker=name)
        receipt = chain_of(order_named(f"{name} {number}"), 1)[0]
        done = ledger.move(
            job,
            JobEvent.ATTEST,
            NOW,
            receipt=receipt,
            next_agent=PEER,
            deliveries=[report(bytes(20_000)), handoff()],
            successor=Successor(1, TaskKind.LEARN),
        )
        say(done.id)


def admit(ledger: SqlAlchemyLedger, name: str) -> None:
    """For ever: one more order from its orchestrator, acknowledged once the ledger said so."""
    for number in count():
        order = order_named(f"{name} {number}")
        ledger.admit(arrival(order), NOW, max_attempts=3, queue_limit=1_000_000)
        say(order.order.id)


def crowd(ledger: SqlAlchemyLedger, name: str) -> None:
    """The same from many threads at once, which share commits."""
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(admit, ledger, f"{name} {number}")


def read(ledger: SqlAlchemyLedger, job: str) -> None:
    """The job's state, and whether Alembic had to be imported to find out."""
    say(ledger.job(JobId(job)).state, "alembic" in sys.modules)


if __name__ == "__main__":
    action, path, argument = sys.argv[1:]
    {"claim": claim, "attest": attest, "admit": admit, "crowd": crowd, "read": read}[action](
        open_ledger(Path(path)), argument
    )
