"""An agent that lacks one of its guards: what a run with `--without GUARD` starts, to see that the checker finds it missing.

    python -m tests.chaos.maimed GUARD [words of dc-compute]

Nothing of the agent knows of this: the guard is taken out of the loaded modules before its command runs.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, delete, select, update

from agent import worker
from agent.cli.app import run
from agent.domain.jobs import Job
from agent.pipeline import deliver
from agent.pipeline.host import Host
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger import Arrival, Delivery
from agent.ports.ledger_schema import bodies, deliveries, jobs, receipts, steps


def without_sweep() -> None:
    """What was lost stays lost: bells, jobs of dead workers, containers, folders."""
    setattr(worker, "sweep", lambda *_: None)  # noqa: B010 - it is imported there, not its own


def without_outbox() -> None:
    """What could not be sent at once counts as sent. Nobody asks others what was lost: that would find it again."""

    def forget(delivery: Delivery, _error: Exception, host: Host, **_rest: object) -> None:
        host.ports.ledger.acknowledge(delivery.id, host.ports.now())

    deliver._postpone = forget  # type: ignore[assignment]
    setattr(worker, "run_round", lambda reconciler, host: None)  # noqa: B010


def without_compare_and_set() -> None:
    """A job is moved however it stands now, and whoever has it."""

    def change(tx: Connection, seen: Job, **columns: Any) -> Job:
        tx.execute(update(jobs).where(jobs.c.id == seen.id).values(**columns))
        return writes.read_job(tx, seen.id)

    writes.change = change
    writes.require_claim = lambda tx, seen: None


def without_dedup() -> None:
    """A hand-off that comes again counts as a new one: its task is done again."""

    def forget(tx: Connection, arrival: Arrival) -> None:
        place = writes.place_of(tx, arrival.order.digest, arrival.position)
        if place is None:
            return
        of_job = select(deliveries.c.id).where(deliveries.c.job_id == place[0])
        tx.execute(delete(bodies).where(bodies.c.delivery.in_(of_job)))
        tx.execute(delete(deliveries).where(deliveries.c.job_id == place[0]))
        tx.execute(delete(steps).where(steps.c.job_id == place[0]))
        here = (receipts.c.order_digest == arrival.order.digest, receipts.c.position >= arrival.position)
        tx.execute(delete(receipts).where(*here))
        tx.execute(delete(jobs).where(jobs.c.id == place[0]))

    writes.find_repeat = forget


GUARDS: Mapping[str, Callable[[], None]] = {
    "sweep": without_sweep,
    "outbox": without_outbox,
    "compare-and-set": without_compare_and_set,
    "dedup": without_dedup,
}


if __name__ == "__main__":
    GUARDS[sys.argv[1]]()
    sys.exit(run(sys.argv[2:]))
