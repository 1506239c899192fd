"""Whatever happened to orders, what is collected was over: no open order goes, and nothing that guards against a repeat.

The histories are those of `test_ledger_model.py`, with days that pass, clocks that are set back, and collections in between.
"""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from agent.domain.ids import OrderId
from agent.domain.jobs import FINAL, Job, JobEvent, JobState
from agent.domain.retention import retention, under_pressure
from agent.errors import OrderConflict, OrderExpired
from agent.ports.ledger import DeliveryId, DeliveryState, JobQuery, Ledger
from tests.builders import SKEW
from tests.ports.ledger_stage import PEER, arrival, at, chain_of, order_named, report
from tests.ports.test_ledger_model import NAMES, POSITIONS, SOME, TwoLedgers, receipts_in

DAY_S = 86400
LOG_AGE = timedelta(days=1)


def jobs_of(ledger: Ledger, order_id: OrderId) -> Any:
    return ledger.jobs(JobQuery(order_id=order_id))


def deliveries_of(ledger: Ledger, order_id: OrderId) -> Any:
    return ledger.deliveries(order_id=order_id)


def digest_of(ledger: Ledger, order_id: OrderId) -> Any:
    return ledger.digest_of_order(order_id)


def acknowledge(ledger: Ledger, delivery: DeliveryId, now: datetime) -> Any:
    return ledger.acknowledge(delivery, now)


class Keepers(TwoLedgers):
    """Both ledgers, and what a bystander wrote down of what they must not lose."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded: dict[str, datetime] = {}  # nonces, and until when each must be known
        self.forgotten: set[OrderId] = set()

    def job_at(self, some: int) -> Job:
        views = self.fake.jobs(JobQuery())
        return super().job_at(some) if views else self.seen[some % len(self.seen)]

    @rule(hours=st.sampled_from([6, 18, 30, 24 * 40]))
    def hours_pass(self, hours: int) -> None:
        self.clock += hours * 3600

    @rule(hours=st.sampled_from([6, 30]))
    def the_clock_is_set_back(self, hours: int) -> None:
        self.clock = max(0, self.clock - hours * 3600)

    @rule(name=st.sampled_from(NAMES))
    def a_whole_order_is_done(self, name: str) -> None:
        """Much of chance's time would pass before it finds this way by itself."""
        order, now = order_named(name), at(self.clock)
        came = arrival(order)
        admission = self.same(lambda ledger: ledger.admit(came, now, max_attempts=2, queue_limit=100))
        if isinstance(admission, type) or admission.job.state is not JobState.RECEIVED:
            return
        queued = self.same(lambda ledger: ledger.move(admission.job, JobEvent.ENQUEUE, now))
        if isinstance(queued, type):
            return
        until = at(self.clock + 20)
        started = self.same(lambda ledger: ledger.start(queued, now, worker="w1", lease_until=until))
        receipt = chain_of(order, 1)[0]
        self.same(
            lambda ledger: ledger.move(
                started, JobEvent.ATTEST, now, receipt=receipt, next_agent=PEER, deliveries=[report(b"1")]
            )
        )
        for delivery in self.fake.deliveries(order_id=order.order.id):
            self.same(partial(acknowledge, delivery=delivery.id, now=now))

    @rule(nonce=st.sampled_from("cd"), hours=st.sampled_from([1, 20]))
    def a_nonce_is_kept(self, nonce: str, hours: int) -> None:
        now, until = at(self.clock), at(self.clock + hours * 3600)
        is_new = self.same(lambda ledger: ledger.remember_nonce(PEER, nonce, until, now))
        assert is_new == (self.guarded.get(nonce, at(-1)) < now)
        if is_new:
            self.guarded[nonce] = until

    @rule(order_days=st.sampled_from([0, 1, 30]), is_low=st.booleans(), limit=st.sampled_from([1, 10]))
    def collect(self, order_days: int, is_low: bool, limit: int) -> None:
        now, order_age = at(self.clock), timedelta(days=order_days)
        told = retention(now, skew=SKEW, log_age=LOG_AGE, order_age=order_age)
        told = under_pressure(told, now) if is_low else told
        before = self.holdings()
        logs = {key for name in NAMES for key in self.log_keys(name)}
        self.same(lambda ledger: ledger.garbage(told))
        self.same(lambda ledger: ledger.forget_nonces(now))

        self.same(lambda ledger: ledger.collect(told, now, limit))

        after = self.holdings()
        for order_id, (jobs, deliveries, receipts, expires) in before.items():
            if order_id in after:
                assert after[order_id][0] == jobs
                assert after[order_id][2] == receipts
                kept = after[order_id][1]
                assert [d.id for d in kept] == [d.id for d in deliveries]
                for was, stays in zip(deliveries, kept, strict=True):
                    assert was.body == stays.body or was.state is DeliveryState.ACKNOWLEDGED
            else:
                self.must_be_over(jobs, deliveries, expires, now, order_age)
                self.forgotten.add(order_id)
        kept_logs = {key for name in NAMES for key in self.log_keys(name)}
        open_jobs = {job.id for jobs, *_ in before.values() for job in jobs if job.state not in FINAL}
        assert {key for key in logs if key[0] in open_jobs} <= kept_logs

    def must_be_over(
        self, jobs: Any, deliveries: Any, expires: datetime, now: datetime, order_age: timedelta
    ) -> None:
        assert all(job.state in FINAL for job in jobs)
        assert all(d.state is DeliveryState.ACKNOWLEDGED for d in deliveries)
        assert expires + SKEW < now
        ends = [job.changed_at for job in jobs] + [d.acknowledged_at for d in deliveries]
        assert max(ends) + order_age < now

    def holdings(self) -> dict[OrderId, tuple[Any, Any, Any, datetime]]:
        """Everything that is held, by order."""
        found = {}
        for order in map(order_named, NAMES):
            jobs = self.same(partial(jobs_of, order_id=order.order.id))
            if jobs:
                found[order.order.id] = (
                    jobs,
                    self.same(partial(deliveries_of, order_id=order.order.id)),
                    self.same(partial(receipts_in, order=order.digest)),
                    order.order.expires,
                )
        return found

    def log_keys(self, name: str) -> set[Any]:
        logs = self.same(lambda ledger: ledger.logs(order_named(name).order.id))
        return {log[:3] for log in logs}

    @rule(name=st.sampled_from(NAMES), position=POSITIONS, rank=st.sampled_from([0, 1]))
    def a_forgotten_order_comes_again(self, name: str, position: int, rank: int) -> None:
        order, now = order_named(name, rank=rank), at(self.clock)
        if order.order.id not in self.forgotten:
            return
        came = arrival(order, chain_of(order, position), sender=PEER)
        refused = self.same(lambda ledger: ledger.admit(came, now, max_attempts=2, queue_limit=100))
        assert refused is (OrderConflict if rank else OrderExpired)

    @invariant()
    def what_is_forgotten_is_known_to_be(self) -> None:
        for name in NAMES:
            order = order_named(name)
            if order.order.id in self.forgotten:
                known = self.same(partial(digest_of, order_id=order.order.id))
                assert known == order.digest

    @rule(some=SOME)
    def events_stay(self, some: int) -> None:
        seqs = [event.seq for event in self.real.events(limit=100_000)]
        assert seqs == list(range(1, len(seqs) + 1))


Keepers.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKeepers = Keepers.TestCase
