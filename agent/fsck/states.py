"""The jobs of one order, against what the table of moves and the transactions of the ledger leave behind."""

from collections.abc import Iterator, Mapping

from agent.domain.chain import plan
from agent.domain.ids import KeyId
from agent.domain.jobs import JobState
from agent.domain.receipts import Outcome, SignedReceipt
from agent.fsck.findings import BY_ITSELF, DECIDE, RESTORE, Code, Finding, Fix
from agent.fsck.orders import Chain, finding
from agent.fsck.seen import OrderRows, Row
from agent.ports.ledger import DeliveryKind, DeliveryState

RUNNABLE = frozenset({JobState.HELD, JobState.QUEUED, JobState.RUNNING})
ENDED_WELL = frozenset({JobState.ATTESTED, JobState.DONE})


def judge_order(rows: OrderRows, chain: Chain, me: KeyId) -> Iterator[Finding]:
    """What is wrong with the jobs of an order whose signed parts `chain` has looked at."""
    jobs: dict[int, Row] = {}
    for row in rows.jobs:
        wrong = list(_unreadable(row, rows.order))
        yield from wrong
        if not wrong:
            jobs[row["position"]] = row
    open_here = [position for position, row in sorted(jobs.items()) if _may_run(row)]
    if len(open_here) > 1:
        told = f"positions {', '.join(map(str, open_here))} could all run"
        yield finding(Code.TWO_PLACES, f"order {rows.order['id']}", told, DECIDE)
    for row in jobs.values():
        yield from _claim(row)
        yield from _attempts(row)
        yield from _receipts(row, rows, chain.receipts, me)
        yield from _deliveries(row, rows)
        if chain.signed is not None:
            yield from _place(row, chain)
            yield from _goes_on(row, jobs, rows, len(plan(chain.signed.order)), me)


def _where(row: Row) -> str:
    return f"job {row['id']}"


def _may_run(row: Row) -> bool:
    """Whether it is to run here, or may turn out so."""
    return row["state"] in RUNNABLE or (row["state"] == JobState.RECEIVED and row["next_agent"] is None)


def _unreadable(row: Row, order: Row) -> Iterator[Finding]:
    """Columns of which nothing can be made, or that name another order."""
    if row["state"] not in set(JobState):
        yield finding(Code.JOB_UNREADABLE, _where(row), f"its state is {row['state']!r}", DECIDE)
    if not all(isinstance(row[name], int) for name in ("position", "attempt", "max_attempts", "claim")):
        yield finding(
            Code.JOB_UNREADABLE, _where(row), "its position, attempts or claim are no numbers", DECIDE
        )
    elif row["id"] != f"{order['id']}.{row['position']}":
        yield finding(Code.JOB_DIFFERS, _where(row), "it is named after another place", DECIDE)
    if (row["order_digest"], row["signer"]) != (order["digest"], order["signer"]):
        yield finding(
            Code.JOB_DIFFERS, _where(row), "it is of another digest or signer than its order", DECIDE
        )


def _claim(row: Row) -> Iterator[Finding]:
    """RUNNING is somebody's until its lease ends, or rests with a reason; nothing else has a lease."""
    has = row["worker"] is not None or row["lease_until"] is not None
    if row["state"] == JobState.RUNNING:
        is_parked = row["worker"] is None and row["reason"] is not None
        if row["lease_until"] is None or (row["worker"] is None and not is_parked):
            yield _fixed(
                Code.RUNS_UNCLAIMED,
                row,
                "it runs without a worker or a lease: nobody takes it over",
                Fix.END_LEASE,
            )
    elif has:
        yield _fixed(
            Code.LEASE_LEFT, row, f"it is {row['state']}, and leased to {row['worker']}", Fix.DROP_LEASE
        )


def _attempts(row: Row) -> Iterator[Finding]:
    begun, allowed = row["attempt"], row["max_attempts"]
    if not 0 <= begun <= allowed:
        yield finding(Code.ATTEMPTS, _where(row), f"{begun} attempts of {allowed}", DECIDE)
    elif begun == 0 and row["state"] in {JobState.RUNNING, JobState.ATTESTED}:
        yield finding(Code.ATTEMPTS, _where(row), f"it is {row['state']} and no attempt ever began", DECIDE)


def _place(row: Row, chain: Chain) -> Iterator[Finding]:
    """The task that stands there in the order."""
    assert chain.signed is not None  # noqa: S101 - the caller asked
    tasks = plan(chain.signed.order)
    if not 0 <= row["position"] < len(tasks) or tasks[row["position"]].kind != row["kind"]:
        yield finding(
            Code.JOB_DIFFERS, _where(row), f"no {row['kind']} task stands there in the order", RESTORE
        )


def _receipts(
    row: Row, rows: OrderRows, readable: Mapping[int, SignedReceipt], me: KeyId
) -> Iterator[Finding]:
    """What was done before it, and what it says of itself."""
    recorded = {receipt["position"]: receipt["digest"] for receipt in rows.receipts}
    position = row["position"]
    missing = [before for before in range(position) if before not in recorded]
    if missing:
        yield finding(
            Code.RECEIPTS_MISSING,
            _where(row),
            f"without the receipts of {', '.join(map(str, missing[:10]))}",
            RESTORE,
        )
    elif row["last_receipt"] != (recorded[position - 1] if position else None):
        yield finding(
            Code.RECEIPTS_MISSING, _where(row), "it follows another receipt than is recorded", RESTORE
        )
    own = readable.get(position)
    if _may_run(row) and position in recorded:
        yield finding(
            Code.PLACE_DONE,
            _where(row),
            "its task is done by a recorded receipt, and it may still run",
            DECIDE,
        )
    if row["state"] in ENDED_WELL and row["attempt"] > 0 and position not in recorded:
        yield finding(Code.RECEIPT_MISSING, _where(row), f"it is {row['state']} without a receipt", RESTORE)
    elif row["state"] == JobState.ATTESTED and own is not None and _is_not_its(own, me):
        yield finding(
            Code.RECEIPT_MISSING, _where(row), "its receipt is another agent's, or of a failed task", RESTORE
        )


def _is_not_its(receipt: SignedReceipt, me: KeyId) -> bool:
    return receipt.signer != me or receipt.receipt.outcome is not Outcome.DONE


def _deliveries(row: Row, rows: OrderRows) -> Iterator[Finding]:
    """ATTESTED waits for a delivery, as RECEIVED does that goes elsewhere; DONE has told everybody."""
    own = [delivery for delivery in rows.deliveries if delivery["position"] == row["position"]]
    pending = [delivery for delivery in own if delivery["state"] == DeliveryState.PENDING]
    waits = row["state"] == JobState.ATTESTED or (
        row["state"] == JobState.RECEIVED and row["next_agent"] is not None
    )
    if waits and not pending:
        yield _fixed(Code.UNSETTLED, row, f"it is {row['state']}, and nobody is left to be told", Fix.SETTLE)
    if row["state"] == JobState.DONE:
        # A cancellation may come later, and one that was dead and that the operator sends again has failed before.
        for delivery in pending:
            if delivery["last_error"] is None and delivery["kind"] != DeliveryKind.CANCELLATION:
                told = f"it is done, and {delivery['id']} was never sent"
                yield finding(Code.DONE_UNTOLD, _where(row), told, "nothing: the worker sends it")


def _goes_on(row: Row, jobs: Mapping[int, Row], rows: OrderRows, tasks: int, me: KeyId) -> Iterator[Finding]:
    """After a task that was done here somebody goes on, or the result is told."""
    position = row["position"]
    if row["state"] not in ENDED_WELL or row["attempt"] == 0:
        return
    kinds = {delivery["kind"] for delivery in rows.deliveries if delivery["position"] == position}
    if position == tasks - 1:
        is_told = DeliveryKind.RESULT in kinds
    elif row["next_agent"] == me:
        is_told = position + 1 in jobs
    else:
        is_told = DeliveryKind.HANDOFF in kinds
    if not is_told:
        told = f"its task is done, and nothing hands position {position + 1} on"
        yield finding(Code.NOBODY_GOES_ON, _where(row), told, RESTORE)


def _fixed(code: Code, row: Row, seen: str, fix: Fix) -> Finding:
    return Finding(code=code, where=_where(row), seen=seen, mend=BY_ITSELF, fix=fix, target=row["id"])
