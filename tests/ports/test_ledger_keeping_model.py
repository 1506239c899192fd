"""Whatever happened to orders, what is collected was over: no open order goes, and nothing that guards against a repeat.

Hypothesis draws histories of a few orders, each with an ending of its own at a time of its own; both ledgers go through them,
and are collected from again and again while days pass. A bystander holds what went against the words of the rule.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from agent.domain.ids import OrderId
from agent.domain.jobs import FINAL, Job, JobEvent
from agent.domain.retention import retention, under_pressure
from agent.errors import OrderConflict, OrderExpired
from agent.ports.ledger import DeliveryState, JobQuery, Ledger
from agent.ports.ledger_schema import metadata
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger
from tests.builders import SKEW
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import (
    LEASE,
    PEER,
    arrival,
    at,
    chain_of,
    fresh_ledger,
    handoff,
    miscounted,
    order_named,
    report,
)
from tests.ports.test_ledger_model import outcome

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
HOUR = 3600.0
LOG_AGE = timedelta(days=1)
NAMES = ("one", "two", "three", "four")  # all expire a day after NOW


# ------------------------------------------------------------------ histories

Ending = Callable[[Ledger, Job, float], object]  # of a job that a worker runs, so many seconds after NOW


def runs_on(_ledger: Ledger, _job: Job, _now: float) -> None:
    """Its worker is at it."""


def waits_again(ledger: Ledger, job: Job, now: float) -> None:
    ledger.move(job, JobEvent.RETRY, at(now), reason="no-space")


def is_done_and_told(ledger: Ledger, job: Job, now: float) -> None:
    is_done(ledger, job, now, told=2)


def is_done_and_half_told(ledger: Ledger, job: Job, now: float) -> None:
    is_done(ledger, job, now, told=1)


def is_done_with_a_dead_letter(ledger: Ledger, job: Job, now: float) -> None:
    is_done(ledger, job, now, told=1)
    ledger.bury(ledger.deliveries(order_id=job.order_id)[-1].id, at(now), "refused")


def fails_and_is_told(ledger: Ledger, job: Job, now: float) -> None:
    ledger.move(job, JobEvent.FAIL, at(now), reason="oom", deliveries=[report()])
    ledger.acknowledge(ledger.deliveries(order_id=job.order_id)[-1].id, at(now + HOUR))


def fails_untold(ledger: Ledger, job: Job, now: float) -> None:
    ledger.move(job, JobEvent.FAIL, at(now), reason="oom", deliveries=[report()])


def is_done(ledger: Ledger, job: Job, now: float, *, told: int) -> None:
    receipt = chain_of(next(o for o in map(order_named, NAMES) if o.digest == job.order), job.position + 1)[
        -1
    ]
    new = [report(b"done"), handoff()]
    ledger.move(job, JobEvent.ATTEST, at(now), receipt=receipt, next_agent=PEER, deliveries=new)
    mine = [d for d in ledger.deliveries(order_id=job.order_id) if d.job == job.id]
    for delivery in mine[:told]:
        ledger.acknowledge(delivery.id, at(now + HOUR))


ENDINGS: tuple[Ending, ...] = (
    is_done_and_told,
    is_done_and_told,
    fails_and_is_told,
    is_done_and_half_told,
    is_done_with_a_dead_letter,
    fails_untold,
    runs_on,
    waits_again,
)


class History(Struct, frozen=True):
    """What happens to one order on this host: at each of these positions a job, begun and ended at these hours."""

    stays: tuple[tuple[int, float, Ending], ...]


histories = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from([0.0, 1.0, 5.0, 22.0, 30.0, 70.0]), st.sampled_from(ENDINGS)
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda stay: stay[0],
).map(lambda stays: History(tuple(sorted(stays, key=lambda stay: stay[0]))))


def happen(ledger: Ledger, name: str, history: History) -> None:
    order = order_named(name)
    for position, hours, ending in history.stays:
        now = hours * HOUR
        came = arrival(order, chain_of(order, position))
        job = ledger.admit(came, at(now), max_attempts=2, queue_limit=100).job
        job = ledger.move(job, JobEvent.ENQUEUE, at(now))
        job = ledger.start(job, at(now), worker="w", lease_until=at(now) + LEASE)
        ledger.keep_log(job, "train", b"sealed words")
        ending(ledger, job, now)


# ------------------------------------------------------------------ both ledgers, and a bystander


@pytest.fixture(scope="module")
def real() -> Iterator[SqlAlchemyLedger]:
    """One file for all histories, emptied before each: to open one takes longer than a history."""
    with (
        tempfile.TemporaryDirectory(prefix="keepers-", dir=MEMORY) as folder,
        closing(fresh_ledger(Path(folder) / "ledger")) as opened,
    ):
        yield opened


def empty(ledger: SqlAlchemyLedger) -> None:
    with ledger._file.writing() as tx:
        guards = tx.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").all()
        for name, _ in guards:
            tx.exec_driver_sql(f"DROP TRIGGER {name}")
        for table in reversed(metadata.sorted_tables):
            if table.name != "probe":
                tx.execute(table.delete())
        tx.exec_driver_sql("DELETE FROM sqlite_sequence")
        for _, guard in guards:
            tx.exec_driver_sql(guard)


def same(ledgers: tuple[Ledger, Ledger], call: Callable[[Ledger], Any]) -> Any:
    real, fake = (outcome(lambda: call(ledger)) for ledger in ledgers)  # noqa: B023 - called at once
    assert real == fake
    return real


def holdings(ledger: Ledger) -> dict[OrderId, tuple[Any, Any, Any, Any]]:
    """(jobs, deliveries, receipts, logs) by order, of the orders that are there."""
    found = {}
    for order in map(order_named, NAMES):
        name = order.order.id
        if jobs := ledger.jobs(JobQuery(order_id=name)):
            sent = ledger.deliveries(order_id=name)
            found[name] = (jobs, sent, ledger.receipts(order.digest), ledger.logs(name))
    return found


def must_be_over(jobs: Any, sent: Any, expires: datetime, now: datetime, order_age: timedelta) -> None:
    assert all(job.state in FINAL for job in jobs)
    assert all(d.state is DeliveryState.ACKNOWLEDGED for d in sent)
    assert expires + SKEW < now
    assert max([job.changed_at for job in jobs] + [d.acknowledged_at for d in sent]) + order_age < now


def must_be_whole(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    """What stays of an order that stays: all but words of jobs that ended and bodies that arrived."""
    assert (before[0], before[2]) == (after[0], after[2])
    assert [d.id for d in before[1]] == [d.id for d in after[1]]
    for was, stays in zip(before[1], after[1], strict=True):
        assert was.body == stays.body or was.state is DeliveryState.ACKNOWLEDGED
    is_open = {job.id for job in before[0] if job.state not in FINAL}
    assert [log for log in before[3] if log[0] in is_open] == [log for log in after[3] if log[0] in is_open]


collections = st.tuples(
    st.sampled_from([3, 8, 20, 24, 25, 40, 100]),
    st.sampled_from([0, 0, 1, 30]),
    st.booleans(),
    st.sampled_from([1, 50]),
)


@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    told=st.lists(histories, min_size=1, max_size=len(NAMES)),
    rounds=st.lists(collections, min_size=1, max_size=4),
    nonces=st.lists(st.integers(0, 200), max_size=4),
)
def test_what_is_collected_was_over_and_never_comes_again(
    real: SqlAlchemyLedger,
    told: list[History],
    rounds: list[tuple[int, int, bool, int]],
    nonces: list[int],
) -> None:
    empty(real)
    ledgers = (real, MemoryLedger())
    for name, history in zip(NAMES, told, strict=False):
        same(ledgers, partial(happen, name=name, history=history))
    for n, hours in enumerate(nonces):
        for ledger in ledgers:
            assert ledger.remember_nonce(PEER, str(n), at(hours * HOUR), at(0))
    for hours, order_days, is_low, limit in rounds:
        nonces = [
            each if each >= hours else -1 for each in nonces
        ]  # forgotten, though a clock be set back later
        collect(ledgers, at(hours * HOUR), timedelta(days=order_days), is_low, limit, nonces)
    events = same(ledgers, lambda ledger: ledger.events(limit=10_000))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def collect(
    ledgers: tuple[SqlAlchemyLedger, Ledger],
    now: datetime,
    order_age: timedelta,
    is_low: bool,
    limit: int,
    nonces: list[int],
) -> None:
    rule = retention(now, skew=SKEW, log_age=LOG_AGE, order_age=order_age)
    rule = under_pressure(rule, now) if is_low else rule
    before = same(ledgers, holdings)
    same(ledgers, lambda ledger: ledger.garbage(rule))

    same(ledgers, lambda ledger: ledger.collect(rule, now, limit))
    same(ledgers, lambda ledger: ledger.forget_nonces(now))

    assert miscounted(ledgers[0]) == []
    after = same(ledgers, holdings)
    for order_id, held in before.items():
        if order_id in after:
            must_be_whole(held, after[order_id])
        else:
            order = next(o for o in map(order_named, NAMES) if o.order.id == order_id)
            must_be_over(held[0], held[1], order.order.expires, now, order_age)
    for name in NAMES:
        if order_named(name).order.id in before.keys() - after.keys():
            must_not_come_again(ledgers, name)
    for n, hours in enumerate(nonces):
        if at(hours * HOUR) >= now:
            for ledger in ledgers:
                assert not ledger.remember_nonce(PEER, str(n), at(1000 * HOUR), now)


def must_not_come_again(ledgers: tuple[Ledger, Ledger], name: str) -> None:
    """Whatever the clock says: it may have been set back."""
    for position in (0, 2):
        for rank, error in ((0, OrderExpired), (1, OrderConflict)):
            order = order_named(name, rank=rank)
            came = arrival(order, chain_of(order, position))
            for ledger in ledgers:
                refused = outcome(lambda: ledger.admit(came, at(0), max_attempts=2, queue_limit=100))  # noqa: B023
                assert refused is error
