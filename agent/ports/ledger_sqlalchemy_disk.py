"""The ledger's transactions on what may go, and on what must not come again."""

import msgspec
from sqlalchemy import select

from agent.domain.jobs import Job
from agent.ports.ledger import ATTEMPT_FAILED
from agent.ports.ledger_schema import events
from agent.ports.ledger_sqlalchemy_file import LedgerFile


class Keeping:
    """The part of the ledger that knows how long things are kept."""

    _file: LedgerFile

    def codes_before(self, job: Job) -> tuple[str, ...]:
        here = (events.c.order_id == job.order_id, events.c.position == job.position)
        query = (
            select(events.c["values"]).where(*here, events.c.name == ATTEMPT_FAILED).order_by(events.c.seq)
        )
        with self._file.reading() as tx:
            told = [msgspec.json.decode(values) for values in tx.execute(query).scalars()]
        codes = {values["attempt"]: values["code"] for values in told if values["attempt"] < job.attempt}
        return tuple(codes.values())
