"""What is counted, on the caller's open writing transaction: tallies that grow, and the phases of an attempt that ends."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, Float, bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert

from agent.domain.jobs import Job
from agent.domain.measures import PHASES_MOST, Tally, added_up, observed_phases
from agent.domain.prepared import prepared
from agent.ports.ledger_schema import phases, tallies
from agent.ports.ledger_sqlalchemy_prepared import Prepared, driver_of

_NEW: Final = insert(tallies).values(
    name=bindparam("name"), labels=bindparam("labels"), value=bindparam("value", type_=Float)
)
_GROW: Final = Prepared(
    _NEW.on_conflict_do_update(
        index_elements=("name", "labels"), set_={tallies.c.value: tallies.c.value + _NEW.excluded.value}
    )
)


def count(tx: Connection, grown: Sequence[Tally]) -> None:
    """Let these numbers grow."""
    rows = [
        {"name": one.name, "labels": msgspec.json.encode(one.labels).decode(), "value": one.value}
        for one in added_up(grown)
        if one.value > 0
    ]
    if rows:
        _GROW.run_for(driver_of(tx), rows)


def put_phases(tx: Connection, job: Job, seconds: Mapping[str, float]) -> None:
    """How long the phases of the job's attempt took, which ends in this transaction."""
    told = dict(list(seconds.items())[:PHASES_MOST])
    rows = [
        {"job_id": job.id, "attempt": job.attempt, "n": n, "phase": phase, "seconds": took}
        for n, (phase, took) in enumerate(told.items())
    ]
    if rows:
        tx.execute(delete(phases).where(phases.c.job_id == job.id, phases.c.attempt == job.attempt))
        tx.execute(insert(phases), rows)
        count(tx, observed_phases(job.kind, told))


def read_tallies(tx: Connection) -> tuple[Tally, ...]:
    """Every number, by name and labels."""
    rows = tx.execute(select(tallies).order_by(tallies.c.name, tallies.c.labels)).mappings()
    return tuple(
        Tally(row["name"], msgspec.json.decode(row["labels"], type=prepared(tuple[str, ...])), row["value"])
        for row in rows
    )
