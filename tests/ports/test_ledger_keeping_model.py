"""Whatever happened to orders, what is collected was over: no open order goes, and nothing that guards against a repeat.

Hypothesis draws histories of a few orders, days that pass, clocks that are set back, and collections in between; both ledgers
go through them, and a bystander wrote down what they must not lose.
"""

import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.domain.ids import OrderId
from agent.domain.jobs import FINAL, Job, JobEvent, JobState
from agent.domain.retention import retention, under_pressure
from agent.errors import OrderConflict, OrderExpired
from agent.ports.ledger import DeliveryId, DeliveryState, JobQuery, Ledger
from tests.builders import SKEW
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import PEER, arrival, at, chain_of, fresh_ledger, handoff, order_named, report
from tests.ports.test_ledger_model import outcome, receipts_in

NAMES = ("one", "two", "three")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
LOG_AGE = timedelta(days=1)
SOME = st.integers(0, 100)


def jobs_of(ledger: Ledger, order_id: OrderId) -> Any:
    return ledger.jobs(JobQuery(order_id=order_id))


def deliveries_of(ledger: Ledger, order_id: OrderId) -> Any:
    return ledger.deliveries(order_id=order_id)


def digest_of(ledger: Ledger, order_id: OrderId) -> Any:
    return ledger.digest_of_order(order_id)


class Keepers(RuleBasedStateMachine):
    """Both ledgers get every call; each answer must be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="keepers-", dir=MEMORY))
        self.real = fresh_ledger(self.folder / "ledger")
        self.fake = MemoryLedger()
        self.clock = 0
        self.guarded: dict[str, datetime] = {}  # nonces, and until when each must be known
        self.forgotten: set[OrderId] = set()

    def teardown(self) -> None:
        self.real.close()
        shutil.rmtree(self.folder)

    def same(self, call: Callable[[Ledger], Any]) -> Any:
        real, fake = outcome(lambda: call(self.real)), outcome(lambda: call(self.fake))
        assert real == fake
        return real

    # ---- histories

    @rule(name=st.sampled_from(NAMES), position=st.integers(0, 2))
    def an_order_comes(self, name: str, position: int) -> None:
        came, now = arrival(order_named(name), chain_of(order_named(name), position)), at(self.clock)
        admission = self.same(lambda ledger: ledger.admit(came, now, max_attempts=2, queue_limit=100))
        is_past = order_named(name).order.id in self.forgotten
        assert (admission is OrderExpired) == is_past

    @rule(some=SOME, kind=st.sampled_from(["report", "handoff", "both", "none"]))
    def a_job_is_done(self, some: int, kind: str) -> None:
        new = {"report": [report()], "handoff": [handoff()], "both": [report(), handoff()], "none": []}[kind]
        job, now = self.job(some, JobState.RECEIVED), at(self.clock)
        if job is None or job.next_agent is not None:
            return
        queued = self.same(lambda ledger: ledger.move(job, JobEvent.ENQUEUE, now))
        until = at(self.clock + 60)
        started = self.same(lambda ledger: ledger.start(queued, now, worker="w", lease_until=until))
        self.same(lambda ledger: ledger.keep_log(started, "train", b"words"))
        if kind == "none" and some % 2:
            return  # it runs on
        order = next(order_named(name) for name in NAMES if order_named(name).digest == job.order)
        receipt = chain_of(order, job.position + 1)[-1]
        self.same(
            lambda ledger: ledger.move(
                started, JobEvent.ATTEST, now, receipt=receipt, next_agent=PEER, deliveries=new
            )
        )

    @rule(some=SOME, event=st.sampled_from([JobEvent.FAIL, JobEvent.EXPIRE]), is_told=st.booleans())
    def a_job_ends_badly(self, some: int, event: JobEvent, is_told: bool) -> None:
        job, now = self.job(some, JobState.RECEIVED), at(self.clock)
        told = [report(b"failed")] if is_told else []
        if job is not None:
            self.same(lambda ledger: ledger.move(job, event, now, reason="why", deliveries=told))

    @rule(some=SOME, ending=st.sampled_from(["acknowledge", "acknowledge", "bury"]))
    def a_delivery_ends(self, some: int, ending: str) -> None:
        pending, now = self.fake.deliveries(state=DeliveryState.PENDING), at(self.clock)
        if not pending:
            return
        name: DeliveryId = pending[some % len(pending)].id
        if ending == "bury":
            self.same(lambda ledger: ledger.bury(name, now, "refused"))
        else:
            self.same(lambda ledger: ledger.acknowledge(name, now))

    def job(self, some: int, state: JobState) -> Job | None:
        found = self.fake.jobs(JobQuery(states=frozenset({state})))
        return found[some % len(found)] if found else None

    @rule(hours=st.sampled_from([6, 30, 30, 24 * 40]))
    def hours_pass(self, hours: int) -> None:
        self.clock += hours * 3600

    @rule(hours=st.sampled_from([6, 30]))
    def the_clock_is_set_back(self, hours: int) -> None:
        self.clock = max(0, self.clock - hours * 3600)

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

    @rule(name=st.sampled_from(NAMES), position=st.integers(0, 2), rank=st.sampled_from([0, 1]))
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

    @rule()
    def events_stay(self) -> None:
        seqs = [event.seq for event in self.real.events(limit=100_000)]
        assert seqs == list(range(1, len(seqs) + 1))


Keepers.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKeepers = Keepers.TestCase
