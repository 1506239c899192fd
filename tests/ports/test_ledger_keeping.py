"""What every ledger keeps, and for how long: run on the one in memory and on SQLAlchemy over a real SQLite file."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.domain.jobs import Job, JobEvent, JobState
from agent.domain.retention import Garbage, Retention, retention
from agent.errors import NotFound, OrderConflict, OrderExpired
from agent.ports.ledger import ATTEMPT_FAILED, DeliveryState, JobQuery, Ledger
from tests.builders import SKEW
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import (
    LEASE,
    arrival,
    at,
    attested,
    chain_of,
    fresh_ledger,
    handoff,
    order_named,
    queued,
    received,
    report,
    running,
)
from tests.simulate.ledger import SwiftLedger

DAY_S = 86400.0  # after NOW the orders expire


@pytest.fixture(params=["memory", "simulated", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    in_memory = {"memory": MemoryLedger, "simulated": SwiftLedger}
    made: Ledger = (
        in_memory[request.param]() if request.param in in_memory else fresh_ledger(tmp_path / "ledger")
    )
    yield made
    made.close()


# ------------------------------------------------------------------ how attempts ended


def end_badly(ledger: Ledger, job: Job, code: str) -> Job:
    """This attempt ended with an error, and the next one began."""
    tell_attempt(ledger, job, code)
    again = ledger.move(job, JobEvent.RETRY, at(job.attempt), reason=code)
    return ledger.start(again, at(job.attempt), worker="w1", lease_until=at(job.attempt) + LEASE)


def tell_attempt(ledger: Ledger, job: Job, code: str) -> None:
    ledger.record_event(
        ATTEMPT_FAILED,
        at(job.attempt),
        order_id=job.order_id,
        position=job.position,
        values={"attempt": job.attempt, "code": code},
    )


def test_a_first_attempt_has_nothing_before_it(ledger: Ledger) -> None:
    job = running(ledger)
    tell_attempt(ledger, job, "no-space")

    assert ledger.codes_before(job) == ()


def test_the_codes_of_earlier_attempts_are_told_in_their_order(ledger: Ledger) -> None:
    job = end_badly(ledger, end_badly(ledger, running(ledger), "no-space"), "storage-unavailable")
    other = end_badly(ledger, running(ledger, position=1), "digest-mismatch")

    assert ledger.codes_before(job) == ("no-space", "storage-unavailable")
    assert ledger.codes_before(other) == ("digest-mismatch",)


def test_an_attempt_that_was_taken_up_again_counts_once(ledger: Ledger) -> None:
    """Its worker died between telling how it ended and moving the job: the next one tells it again."""
    job = running(ledger)
    tell_attempt(ledger, job, "no-space")
    job = end_badly(ledger, job, "no-space")

    assert ledger.codes_before(job) == ("no-space",)


# ------------------------------------------------------------------ what goes, and when


def told(now: float, **ages_s: float) -> Retention:
    """What is over so many seconds after NOW: logs after 100 s, orders after 1000 s, unless said otherwise."""
    ages = {
        name: timedelta(seconds=value) for name, value in ({"logs": 100, "orders": 1000} | ages_s).items()
    }
    return retention(at(now), skew=SKEW, log_age=ages["logs"], order_age=ages["orders"])


def done(ledger: Ledger, name: str = "order") -> Job:
    """A job whose task is done and whose two deliveries arrived, all 3 s after NOW."""
    job = attested(ledger, report(b"a report"), handoff(), name=name)
    ledger.keep_log(job, "train", b"sealed words")
    for delivery in ledger.deliveries(order_id=job.order_id):
        ledger.acknowledge(delivery.id, at(3))
    return ledger.job(job.id)


def everything_of(ledger: Ledger, job: Job) -> tuple[Any, ...]:
    """All that a ledger holds of a job's order."""
    return (
        ledger.order(job.order_id),
        ledger.jobs(JobQuery(order_id=job.order_id)),
        ledger.receipts(job.order),
        ledger.deliveries(order_id=job.order_id),
        ledger.logs(job.order_id),
    )


def test_nothing_goes_before_its_time(ledger: Ledger) -> None:
    job = done(ledger)
    before = everything_of(ledger, job)

    gone = ledger.collect(told(103), at(103), 10)

    assert gone == Garbage()
    assert everything_of(ledger, job) == before


EXPIRED = DAY_S + SKEW.total_seconds() + 1


def test_a_log_goes_first(ledger: Ledger) -> None:
    job = done(ledger)

    gone = ledger.collect(told(104), at(104), 10)

    assert gone == Garbage(logs=1, log_bytes=12)
    assert ledger.logs(job.order_id) == ()
    assert ledger.collect(told(104), at(104), 10) == Garbage()


def test_bodies_of_what_arrived_go_when_nobody_can_ask_for_them_again(ledger: Ledger) -> None:
    job = done(ledger)
    ledger.collect(told(104), at(104), 10)
    first, second = (d.id for d in ledger.deliveries(order_id=job.order_id))
    assert ledger.send_again(first, at(200), "the orchestrator lost it")
    ledger.acknowledge(first, at(201))

    gone = ledger.collect(told(EXPIRED, orders=1e9), at(EXPIRED), 10)

    assert gone == Garbage(bodies=2, body_bytes=8 + len(handoff().body))
    assert [d.body for d in ledger.deliveries(order_id=job.order_id)] == [b"", b""]
    assert not ledger.send_again(second, at(EXPIRED), "too late")
    assert ledger.deliveries(state=DeliveryState.PENDING) == ()


def test_an_order_whose_last_letter_a_person_dropped_goes(ledger: Ledger) -> None:
    job = a_report_is_dead(ledger)
    (head,) = ledger.outbox([DeliveryState.DEAD], 10)
    ledger.drop_delivery(head, at(5), uid=0, reason="dropped-by-operator")

    assert ledger.job(job.id).is_final
    assert ledger.collect(told(2 * DAY_S), at(2 * DAY_S), 10).orders == 1


@pytest.mark.parametrize("make", [received, queued, running], ids=["received", "queued", "running"])
def test_a_log_of_a_job_that_goes_on_stays(ledger: Ledger, make: Callable[[Ledger], Job]) -> None:
    ledger.keep_log(make(ledger), "train", b"sealed words")

    assert ledger.collect(told(1 << 30, logs=0, orders=0), at(1 << 30), 10) == Garbage()


def test_an_order_goes_with_all_that_is_its_own_and_its_events_stay(ledger: Ledger) -> None:
    job, other = done(ledger), done(ledger, "other")
    events = ledger.events(order_id=job.order_id)
    late = DAY_S + SKEW.total_seconds() + 1

    gone = ledger.collect(told(late), at(late), 1)

    assert gone.orders == 1
    first, second = sorted((job, other), key=lambda each: each.order_id)
    with pytest.raises(NotFound):
        ledger.order(first.order_id)
    with pytest.raises(NotFound):
        ledger.job(first.id)
    assert ledger.jobs(JobQuery(order_id=first.order_id)) == ()
    assert ledger.deliveries(order_id=first.order_id) == ()
    assert ledger.logs(first.order_id) == ()
    assert ledger.receipts(first.order) == ()
    assert ledger.order(second.order_id).id == second.order_id
    assert ledger.collect(told(late), at(late), 10).orders == 1
    now = ledger.events(order_id=job.order_id)
    assert now[: len(events)] == events
    assert [event.name for event in now[len(events) :]] == ["order.forgotten"]


def test_an_order_stays_until_it_expired_by_more_than_the_skew_whatever_the_retention_says(
    ledger: Ledger,
) -> None:
    job = done(ledger)

    early = DAY_S + SKEW.total_seconds()
    assert ledger.collect(told(early, orders=0), at(early), 10).orders == 0
    assert ledger.order(job.order_id).digest == job.order
    assert ledger.collect(told(early + 1, orders=0), at(early + 1), 10).orders == 1


def a_report_waits(ledger: Ledger) -> Job:
    job = attested(ledger, report(), report(b"another"))
    ledger.acknowledge(ledger.deliveries()[0].id, at(3))
    return job


def a_report_is_dead(ledger: Ledger) -> Job:
    job = attested(ledger, report())
    ledger.bury(ledger.deliveries()[0].id, at(3), "refused")
    return job


def a_failure_was_not_told(ledger: Ledger) -> Job:
    job = running(ledger)
    return ledger.move(job, JobEvent.FAIL, at(1), reason="oom", deliveries=[report()])


def another_place_is_open(ledger: Ledger) -> Job:
    job = done(ledger)
    received(ledger, position=2)
    return job


@pytest.mark.parametrize(
    "make",
    [
        received,
        queued,
        running,
        a_report_waits,
        a_report_is_dead,
        a_failure_was_not_told,
        another_place_is_open,
    ],
    ids=lambda make: make.__name__,
)
def test_an_order_that_somebody_still_waits_for_stays(ledger: Ledger, make: Callable[[Ledger], Job]) -> None:
    job = make(ledger)

    gone = ledger.collect(told(1 << 30, orders=0), at(1 << 30), 10)

    assert gone.orders == 0
    assert ledger.order(job.order_id).digest == job.order
    assert len(ledger.deliveries(state=DeliveryState.DEAD)) == (make is a_report_is_dead)


def test_bodies_that_did_not_arrive_stay(ledger: Ledger) -> None:
    a_report_waits(ledger)
    attested(ledger, report(), name="other")
    ledger.bury(ledger.deliveries()[-1].id, at(3), "refused")

    assert ledger.collect(told(1 << 30), at(1 << 30), 10).bodies == 1
    assert [bool(d.body) for d in ledger.deliveries()] == [False, True, True]


# ------------------------------------------------------------------ what must not come again


def forgotten(ledger: Ledger) -> Job:
    job = done(ledger)
    assert ledger.collect(told(2 * DAY_S), at(2 * DAY_S), 10).orders == 1
    return job


def test_a_forgotten_order_never_runs_again_though_the_clock_is_set_back(ledger: Ledger) -> None:
    job = forgotten(ledger)
    order = order_named("order")

    for position in (0, 1):
        with pytest.raises(OrderExpired, match="ended here"):
            ledger.admit(arrival(order, chain_of(order, position)), at(5), max_attempts=3, queue_limit=10)
    assert ledger.digest_of_order(job.order_id) == job.order
    assert ledger.counts()[JobState.RECEIVED] == 0


def test_the_id_of_a_forgotten_order_is_not_free(ledger: Ledger) -> None:
    forgotten(ledger)

    with pytest.raises(OrderConflict):
        ledger.admit(arrival(order_named("order", rank=1)), at(5), max_attempts=3, queue_limit=10)


def test_what_would_go_is_told_beforehand(ledger: Ledger) -> None:
    done(ledger)
    done(ledger, "other")
    late = 2 * DAY_S

    would = ledger.garbage(told(late))

    assert would.orders == 2
    assert ledger.garbage(told(late)) == would
    assert ledger.collect(told(late), at(late), 10) == would


def test_the_sizes_count_what_is_there(ledger: Ledger) -> None:
    done(ledger)
    a_report_waits_elsewhere = attested(ledger, report(b"12345"), name="other")

    sizes = ledger.sizes()

    envelopes = [ledger.order(job.order_id).envelope for job in ledger.jobs(JobQuery())]
    envelopes += [r.envelope for job in ledger.jobs(JobQuery()) for r in ledger.receipts(job.order)]
    assert (sizes.orders, sizes.order_bytes) == (2, sum(map(len, envelopes)))
    assert (sizes.logs, sizes.log_bytes) == (1, 12)
    assert (sizes.bodies, sizes.pending_bytes) == (3, 5)
    assert sizes.events == len(ledger.events())
    assert a_report_waits_elsewhere.state is JobState.ATTESTED
