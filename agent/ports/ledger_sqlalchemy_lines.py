"""Lines of the audit log on the caller's open writing transaction, each chained to the one before, with what they count."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select

from agent.domain.audit import NewEvent, next_line
from agent.domain.ids import Digest, OrderId
from agent.domain.measures import tallies_of
from agent.ports.ledger_schema import events
from agent.ports.ledger_sqlalchemy_prepared import Prepared, driver_of, inserting
from agent.ports.ledger_sqlalchemy_rows import Plain, row_of_line
from agent.ports.ledger_sqlalchemy_tallies import count

_LAST: Final = Prepared(select(events.c.seq, events.c.digest).order_by(events.c.seq.desc()).limit(1))
_INSERT: Final = inserting(events)


def tell(
    tx: Connection,
    name: str,
    now: datetime,
    order_id: OrderId | None,
    position: int | None,
    values: dict[str, Plain],
    *,
    dataset: str | None = None,
) -> None:
    """One line more in the log of events."""
    tell_these(
        tx, (NewEvent(name=name, order_id=order_id, position=position, dataset=dataset, values=values),), now
    )


def tell_these(tx: Connection, told: Sequence[NewEvent], now: datetime) -> None:
    """These lines, each chained to the one before, with what they count."""
    if not told:
        return
    seq, digest = last_line(tx)
    rows = []
    for event in told:
        rows.append(row_of_line(next_line(event, now, seq, digest)))
        seq, digest = rows[-1]["seq"], rows[-1]["digest"]
    _INSERT.run_for(driver_of(tx), rows)
    count(tx, [tally for event in told for tally in tallies_of(event)])


def last_line(tx: Connection) -> tuple[int, Digest | None]:
    """(number, digest) of the newest line; (0, None) when there is none."""
    row = _LAST.first(driver_of(tx), {})
    return (0, None) if row is None else (row[0], row[1])
