"""The ledger in memory and the real one agree on whatever happens to them, step by step.

The fake is short enough to be read; every test of the pipeline stands on it. Hypothesis looks for a sequence of calls after
which the two tell different stories, and for one after which what every ledger must hold does not hold: the laws at the end.
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
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.domain.approvals import Ruling, Verdict
from agent.domain.chain import TaskKind
from agent.domain.control import Control, Mode
from agent.domain.ids import Digest, JobId, digest_of
from agent.domain.jobs import IllegalMove, Job, JobEvent, JobState
from agent.errors import AgentError
from agent.ports.ledger import (
    Delivery,
    DeliveryId,
    DeliveryState,
    JobQuery,
    Ledger,
    NewDelivery,
    Successor,
)
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import (
    ORCHESTRATOR,
    OTHER_PEER,
    PEER,
    arrival,
    at,
    chain_of,
    fresh_ledger,
    handoff,
    miscounted,
    order_named,
    other_receipt,
    report,
)

NAMES = ("one", "two")
WORKERS = ("w1", "w2")
WHOLE_CHAIN = 5
STEPS = ("inputs", "run.train", "output")

NEW_DELIVERIES = st.lists(
    st.sampled_from([report(b"1"), report(b"2"), handoff(PEER), handoff(OTHER_PEER)]), max_size=2
)
POSITIONS = st.integers(0, WHOLE_CHAIN - 1)
SOME = st.integers(0, 1000)
RESTS = st.sampled_from([None, 5, 10])


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gave, or the kind of error it raised."""
    try:
        return call()
    except (AgentError, IllegalMove) as error:
        return type(error)


def receipts_in(ledger: Ledger, order: Digest) -> Any:
    return ledger.receipts(order)


def every_bell(ledger: Ledger, now: datetime) -> tuple[set[JobId], set[DeliveryId]]:
    """What the sweep's pages hold, in all."""
    jobs, deliveries, after, place = set[JobId](), set[DeliveryId](), 0, None
    while True:
        page = ledger.waiting(now, after=after, limit=2)
        jobs |= {job.id for job in page.jobs}
        if page.next is None:
            break
        after = page.next
    while True:
        unsent = ledger.unsent(now, after=place, limit=2)
        deliveries |= set(unsent.deliveries)
        if unsent.next is None:
            return jobs, deliveries
        place = unsent.next


class TwoLedgers(RuleBasedStateMachine):
    """Both ledgers get every call; each answer must be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="two-ledgers-"))
        self.real = fresh_ledger(self.folder / "ledger")
        self.fake = MemoryLedger()
        self.clock = 0
        self.claims: dict[JobId, int] = {}
        self.ended: set[JobId] = set()
        self.deliveries: dict[DeliveryId, Delivery] = {}
        self.seen: list[Job] = []  # every state of a job that a caller ever saw, stale ones too

    def teardown(self) -> None:
        try:
            self.same(lambda ledger: ledger.events(limit=10_000))
            self.same(lambda ledger: ledger.deliveries())
            self.same(lambda ledger: ledger.counts())
            assert miscounted(self.real) == []  # one that went wrong stays so
            for digest in [order_named(name).digest for name in NAMES]:
                self.same(partial(receipts_in, order=digest))
        finally:
            self.real.close()
            shutil.rmtree(self.folder)

    def same(self, call: Callable[[Ledger], Any]) -> Any:
        real, fake = outcome(lambda: call(self.real)), outcome(lambda: call(self.fake))
        assert real == fake
        self.seen += [real] if isinstance(real, Job) else []
        return real

    def job_at(self, some: int) -> Job:
        """A job as it is now, mostly; else as somebody saw it once."""
        views = self.seen if some % 5 == 0 else self.fake.jobs(JobQuery())
        return views[some // 5 % len(views)]

    def job_in(self, state: JobState, some: int) -> Job:
        """A job in this state if there is one."""
        found = self.fake.jobs(JobQuery(states=frozenset({state})))
        return found[some % len(found)] if found else self.job_at(some)

    def in_hand(self, some: int) -> Job:
        """A running job as somebody had it in hand: who has it now, or one who was given up and does not know."""
        views = [job for job in self.seen if job.state is JobState.RUNNING][-6:]
        return views[some % len(views)] if views else self.job_at(some)

    def a_delivery(self, some: int) -> DeliveryId:
        pending = self.fake.deliveries(state=DeliveryState.PENDING)
        known = pending if some % 5 and pending else self.fake.deliveries()
        return known[some // 5 % len(known)].id if known else DeliveryId("none")

    @rule(seconds=st.sampled_from([1, 5, 10, 20]))
    def time_passes(self, seconds: int) -> None:
        self.clock += seconds

    @initialize()
    def something_is_there(self) -> None:
        self.same(
            lambda ledger: ledger.admit(arrival(order_named("one")), at(0), max_attempts=2, queue_limit=5).job
        )

    @rule(
        name=st.sampled_from(NAMES),
        position=POSITIONS,
        rank=st.sampled_from([0, 0, 0, 1]),
        is_other=st.sampled_from([False, False, True]),
        limit=st.sampled_from([2, 100, 100]),
    )
    def admit(self, name: str, position: int, rank: int, is_other: bool, limit: int) -> None:
        order, now = order_named(name, rank=rank), at(self.clock)
        receipts = chain_of(order, position)
        if is_other and receipts:
            receipts = (*receipts[:-1], other_receipt(order, position - 1))
        came = arrival(order, receipts, sender=PEER)
        admission = self.same(lambda ledger: ledger.admit(came, now, max_attempts=2, queue_limit=limit))
        if not isinstance(admission, type):
            self.seen.append(admission.job)

    @rule(
        some=SOME,
        event=st.sampled_from(JobEvent),
        rest=RESTS,
        reason=st.sampled_from([None, "why"]),
        next_agent=st.sampled_from([None, None, OTHER_PEER]),
        deliveries=NEW_DELIVERIES,
    )
    def move(
        self,
        some: int,
        event: JobEvent,
        rest: int | None,
        reason: str | None,
        next_agent: Any,
        deliveries: list[NewDelivery],
    ) -> None:
        job, now = self.job_at(some), at(self.clock)
        not_before = None if rest is None else at(self.clock + rest)
        self.same(
            lambda ledger: ledger.move(
                job,
                event,
                now,
                reason=reason,
                not_before=not_before,
                next_agent=next_agent,
                deliveries=deliveries,
            )
        )

    @rule(some=SOME, is_other=st.booleans(), has_next=st.booleans(), deliveries=NEW_DELIVERIES)
    def attest(self, some: int, is_other: bool, has_next: bool, deliveries: list[NewDelivery]) -> None:
        job, now = self.in_hand(some), at(self.clock)
        order = next(order_named(name) for name in NAMES if order_named(name).order.id == job.order_id)
        receipt = other_receipt(order, job.position) if is_other else chain_of(order, job.position + 1)[-1]
        successor = Successor(job.position + 1, TaskKind.LEARN) if has_next else None
        event = JobEvent.FAIL if is_other and not has_next else JobEvent.ATTEST
        self.same(
            lambda ledger: ledger.move(
                job, event, now, receipt=receipt, score="0.5", successor=successor, deliveries=deliveries
            )
        )

    @rule(some=SOME, worker=st.sampled_from(WORKERS), deliveries=NEW_DELIVERIES)
    def start(self, some: int, worker: str, deliveries: list[NewDelivery]) -> None:
        job, now = self.job_in(JobState.QUEUED, some), at(self.clock)
        lease_until = at(self.clock + 20)
        self.same(
            lambda ledger: ledger.start(
                job, now, worker=worker, lease_until=lease_until, deliveries=deliveries
            )
        )

    @rule(some=SOME, worker=st.sampled_from(WORKERS))
    def adopt(self, some: int, worker: str) -> None:
        job, now, until = self.job_in(JobState.RUNNING, some), at(self.clock), at(self.clock + 20)
        self.same(lambda ledger: ledger.adopt(job, now, worker=worker, lease_until=until))

    @rule(some=SOME, rest=st.sampled_from([1, 10]))
    def park(self, some: int, rest: int) -> None:
        job, now, until = self.in_hand(some), at(self.clock), at(self.clock + rest)
        self.same(lambda ledger: ledger.park(job, now, until=until, reason="storage-unavailable"))

    @rule(process=st.sampled_from(["w", "w1"]))
    def release(self, process: str) -> None:
        now = at(self.clock)
        self.same(lambda ledger: ledger.release(process, now))

    @rule(some=SOME, name=st.sampled_from(STEPS))
    def begin_step(self, some: int, name: str) -> None:
        job, now = self.in_hand(some), at(self.clock)
        self.same(lambda ledger: ledger.begin_step(job, name, now))

    @rule(some=SOME, name=st.sampled_from(STEPS), log=st.sampled_from([None, ("train", b"sealed")]))
    def end_step(self, some: int, name: str, log: tuple[str, bytes] | None) -> None:
        job, now = self.in_hand(some), at(self.clock)
        self.same(lambda ledger: ledger.end_step(job, name, now, b"%d" % some, log=log))

    @rule(some=SOME)
    def look_at_steps(self, some: int) -> None:
        job = self.job_at(some)
        self.same(lambda ledger: ledger.steps(job))
        self.same(lambda ledger: ledger.codes_before(job))

    @rule(mode=st.sampled_from(Mode))
    def say_what_the_host_does(self, mode: Mode) -> None:
        said, now = Control(mode=mode, since=at(self.clock), reason="the operator"), at(self.clock)
        self.same(lambda ledger: ledger.set_control(said, now))
        self.same(lambda ledger: ledger.control())

    @rule(seconds=st.sampled_from([5, 30, 120]))
    def the_clock_is_set_back(self, seconds: int) -> None:
        self.clock -= seconds
        now = at(self.clock)
        self.same(
            lambda ledger: ledger.correct_clock(now, lease=timedelta(seconds=20), rest=timedelta(seconds=10))
        )

    @rule()
    def the_host_restarts(self) -> None:
        """Nothing is in the process: the file, opened anew, tells the same."""
        self.real.close()
        self.real = open_ledger(self.folder / "ledger" / "ledger.db")

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        lease_until = at(self.clock + 10)
        self.same(lambda ledger: ledger.renew(worker, lease_until))

    @rule(some=SOME)
    def enqueue(self, some: int) -> None:
        job, now = self.job_in(JobState.RECEIVED, some), at(self.clock)
        self.same(lambda ledger: ledger.move(job, JobEvent.ENQUEUE, now))

    @rule(some=SOME)
    def redirect(self, some: int) -> None:
        job, now = self.job_in(JobState.RECEIVED, some), at(self.clock)
        self.same(lambda ledger: ledger.redirect(job, now, next_agent=PEER, delivery=handoff(PEER)))

    @rule(some=SOME)
    def lease(self, some: int) -> None:
        delivery, now, until = self.a_delivery(some), at(self.clock), at(self.clock + 10)
        self.same(lambda ledger: ledger.lease_delivery(delivery, now, until))

    @rule(some=SOME)
    def acknowledge(self, some: int) -> None:
        delivery, now = self.a_delivery(some), at(self.clock)
        self.same(lambda ledger: ledger.acknowledge(delivery, now))

    @rule(some=SOME)
    def postpone(self, some: int) -> None:
        delivery, until = self.a_delivery(some), at(self.clock + 10)
        self.same(lambda ledger: ledger.postpone(delivery, until, "no answer"))

    @rule(some=SOME, deliveries=NEW_DELIVERIES)
    def bury(self, some: int, deliveries: list[NewDelivery]) -> None:
        delivery, now = self.a_delivery(some), at(self.clock)
        self.same(lambda ledger: ledger.bury(delivery, now, "refused", deliveries=deliveries))

    @rule(nonce=st.sampled_from("ab"), seconds=st.sampled_from([0, 5, 10]))
    def remember(self, nonce: str, seconds: int) -> None:
        now, until = at(self.clock), at(self.clock + seconds)
        self.same(lambda ledger: ledger.remember_nonce(PEER, nonce, until, now))

    @rule()
    def forget(self) -> None:
        now = at(self.clock)
        self.same(lambda ledger: ledger.forget_nonces(now))

    @rule(some=SOME, run=st.sampled_from(["train", "perf"]))
    def keep_log(self, some: int, run: str) -> None:
        job = self.job_at(some)
        self.same(lambda ledger: ledger.keep_log(job, run, b"%d" % some))
        self.same(lambda ledger: ledger.logs(job.order_id))

    @rule(
        states=st.frozensets(st.sampled_from(JobState), max_size=3),
        some=SOME,
        pages=st.booleans(),
        limit=st.integers(1, 4),
        signer=st.sampled_from([None, ORCHESTRATOR, PEER]),
        is_one_order=st.booleans(),
    )
    def list_jobs(
        self,
        states: frozenset[JobState],
        some: int,
        pages: bool,
        limit: int,
        signer: Any,
        is_one_order: bool,
    ) -> None:
        job = self.job_at(some)
        query = JobQuery(
            states=states,
            order_id=job.order_id if is_one_order else None,
            signer=signer,
            after=job.id if pages else None,
            limit=limit,
        )
        self.same(lambda ledger: ledger.jobs(query))

    @rule(verdict=st.sampled_from(Verdict), image=st.sampled_from(NAMES))
    def rule_on_an_image(self, verdict: Verdict, image: str) -> None:
        word = Ruling(image=digest_of(image.encode()), verdict=verdict, at=at(self.clock))
        self.same(lambda ledger: ledger.rule(word))
        self.same(lambda ledger: ledger.rulings())

    @invariant()
    def both_tell_the_same(self) -> None:
        now = at(self.clock)
        self.same(lambda ledger: ledger.jobs(JobQuery()))
        self.same(lambda ledger: ledger.unrung(now, 3))
        self.same(lambda ledger: every_bell(ledger, now))

    @invariant()
    def the_laws_hold(self) -> None:
        """What is true of every ledger after every call, read from the real one."""
        jobs = {job.id: job for job in self.real.jobs(JobQuery())}
        pending = {delivery.job for delivery in self.real.deliveries(state=DeliveryState.PENDING)}
        for job in jobs.values():
            assert job.attempt <= job.claim, "each attempt begins with a claim of its own"
            assert (job.lease_until is None) or job.state is JobState.RUNNING, "only what runs is leased"
            assert (job.worker is None) or job.state is JobState.RUNNING, "only what runs has a worker"
            assert job.state is not JobState.DONE or job.id not in pending, "what is done has told everybody"
            assert job.state is not JobState.ATTESTED or job.id in pending, "what has told everybody is done"
        for job_id, claim in self.claims.items():
            assert jobs[job_id].claim >= claim, "a claim never goes back"
        for job_id in self.ended:
            assert jobs[job_id].is_final, "what ended never moves again"
        self.claims = {job.id: job.claim for job in jobs.values()}
        self.ended = {job.id for job in jobs.values() if job.is_final}

    @invariant()
    def what_was_acknowledged_stays_so(self) -> None:
        sent = {each.id: each for each in self.real.deliveries()}
        for found in sent.values():
            before = self.deliveries.get(found.id)
            if before is not None:
                assert (found.body, found.n, found.target) == (before.body, before.n, before.target)
                assert before.state is DeliveryState.PENDING or found.state in {
                    before.state,
                    DeliveryState.ACKNOWLEDGED,
                }
        assert self.deliveries.keys() <= sent.keys()
        self.deliveries = sent


TwoLedgers.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwoLedgers = TwoLedgers.TestCase
