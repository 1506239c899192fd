"""The ledger as a whole: its file, every order in it, and the rows that belong to none."""

from collections.abc import Iterator

from agent.domain.ids import KeyId
from agent.fsck.findings import BY_ITSELF, RESTORE, Code, Finding, Fix
from agent.fsck.orders import Chain, finding
from agent.fsck.seen import LedgerSeen, OrderRows
from agent.fsck.states import judge_order
from agent.trust.roster import Roster

LEDGER = "ledger"


def judge_file(ledger: LedgerSeen) -> Iterator[Finding]:
    """Whether SQLite can read all of it, and whether it is this version's."""
    for complaint in ledger.damage():
        yield finding(Code.DAMAGED, LEDGER, complaint, RESTORE)
    for complaint in ledger.references():
        yield finding(Code.REFERENCE, LEDGER, complaint, RESTORE)
    revision = ledger.revision()
    if revision == ledger.head:
        for complaint in ledger.differences():
            yield finding(Code.SCHEMA, LEDGER, complaint, RESTORE)
    elif revision is not None and revision > ledger.head:
        told = f"its schema is {revision}, and this version knows {ledger.head}"
        yield finding(Code.NEWER, LEDGER, told, "install the version that wrote it")
    else:
        yield Finding(
            code=Code.BEHIND,
            where=LEDGER,
            seen=f"its schema is {revision}, this version's {ledger.head}",
            mend=f"{BY_ITSELF}, or the next start of a service",
            fix=Fix.MIGRATE,
        )


def judge_orders(ledger: LedgerSeen, roster: Roster, me: KeyId) -> Iterator[Finding]:
    """Every order with its jobs, receipts and deliveries. Only for a ledger of this version's schema."""
    for order, jobs, receipts, deliveries in ledger.orders():
        rows = OrderRows(
            order=order, jobs=tuple(jobs), receipts=tuple(receipts), deliveries=tuple(deliveries)
        )
        chain = Chain(rows, roster)
        yield from chain.findings()
        yield from judge_order(rows, chain, me)


def judge_rows(ledger: LedgerSeen) -> Iterator[Finding]:
    """The log of events, rulings, descriptions, the mode: each readable."""
    for where, what in ledger.odd_rows():
        yield finding(Code.UNREADABLE_ROW, where, what, RESTORE)
