"""An order is cancelled: by its orchestrator, whose signed word follows the chain, or by the operator, for this host alone.

One transaction of the ledger keeps the cancellation and ends what would go on here, so a race is won or lost there: a receipt
that was recorded first stays, and then the cancellation goes after the hand-off. Whoever still runs the task loses its next
compare-and-set; its container is killed by the handler of a queue of its own, or by the sweep.

A signed cancellation is taken by these rules, in this order:

(1) One envelope of its type, signed by an orchestrator whose key holds now.
    BadEnvelope, UnknownPayloadType, UnknownKey, WrongRole, KeyNotValid, BadSignature, BadOrder
(2) The sender, who signed the request (the API room verified that), is that orchestrator, or an agent of the roster that
    forwards it.                                                                        UnknownKey, WrongRole, KeyNotValid
(3) It was not issued in the future.                                                            CancellationNotYetValid
(4) Where the order is known, it is that very orchestrator's. Where it is not, the word is kept beside the name of who gave it,
    and counts for an order of theirs only; one orchestrator has so many of these at most.              NotYours, QueueFull

Source: docs/contracts/chain.md, "Cancel".
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

from msgspec import Struct
from msgspec.structs import replace

from agent.domain.cancellations import (
    KEPT_WITHOUT_ORDER,
    MOST_WITHOUT_ORDER,
    OPERATOR,
    KeptCancellation,
    check_issued,
)
from agent.domain.ids import JobId, KeyId, OrderId
from agent.domain.jobs import Job, JobState
from agent.domain.orders import MAX_TASKS
from agent.domain.reports import ReportState
from agent.domain.traces import trace_of
from agent.errors import LedgerUnavailable, LostRace, NotYours
from agent.log import bound, get_logger
from agent.pipeline.bells import ring, ring_deliveries
from agent.pipeline.host import Host, about, context_of
from agent.pipeline.report import report
from agent.pipeline.run import JOB_LABEL
from agent.pipeline.workspace import parse_folder_name
from agent.ports.broker import Queue
from agent.ports.ledger import (
    CancelStep,
    Delivery,
    DeliveryKind,
    DeliveryState,
    JobQuery,
    NewDelivery,
    OrderRecord,
)
from agent.trust.roster import Role
from agent.trust.signed import open_cancellation

log = get_logger(__name__)

TRIES = 20  # against jobs that move meanwhile; each of them moves a few times in its life
LOOK_AGAIN_S = 1.0
LOOKED_AFTER = timedelta(minutes=1)  # after that the sweep alone looks

OPEN = frozenset({JobState.RECEIVED, JobState.HELD, JobState.QUEUED, JobState.RUNNING})
WENT_ON = frozenset({JobState.RECEIVED, JobState.ATTESTED, JobState.DONE})


class Taken(Struct, frozen=True):
    """A cancellation as it is kept here, the order when it is known, its jobs as they stand now, and what was said before."""

    kept: KeptCancellation
    order: OrderRecord | None
    jobs: tuple[Job, ...]
    is_repeat: bool


def take_cancellation(envelope: bytes, sender: KeyId | None, host: Host) -> Taken:
    """A signed cancellation, kept and carried out here. `sender` is None for the operator, who only brings it.

    Raises: OrderError, TrustError by the rules above; QueueFull, LedgerUnavailable.
    """
    now = host.ports.now()
    signed = open_cancellation(envelope, host.roster, now)  # (1)
    if sender is not None and sender != signed.signer:
        host.roster.require(sender, role=Role.AGENT, at=now)  # (2)
    check_issued(signed.cancellation, now, host.rules.skew)  # (3)
    order = host.ports.ledger.order_of_digest(signed.cancellation.order)
    kept = KeptCancellation(
        order=signed.cancellation.order,
        source=signed.signer,
        at=now,
        keep_until=now + KEPT_WITHOUT_ORDER,
        envelope=envelope,
    )
    return _carry_out(kept, order, host)


def cancel_here(order_id: OrderId, host: Host, *, uid: int | None, reason: str | None) -> Taken:
    """The operator's word: the order ends on this host, now and when it comes back. Nobody else is told to stop it.

    What was handed over is another host's; a task that was done stays done. Raises: NotFound, LedgerUnavailable.
    """
    order, now = host.ports.ledger.order(order_id), host.ports.now()
    kept = KeptCancellation(
        order=order.digest, source=OPERATOR, at=now, keep_until=now, uid=uid, reason=reason
    )
    return _carry_out(kept, order, host)


def end_if_cancelled(job: Job, host: Host) -> Job | None:
    """The job, CANCELLED, when its order was cancelled before it came; None when it was not."""
    order = host.ports.ledger.order(job.order_id)
    for kept in host.ports.ledger.cancellations(order.digest):
        if kept.source in {order.signer, OPERATOR}:
            _carry_out(kept, order, host)
            return host.ports.ledger.job(job.id)
    return None


def remove_guests(job_id: JobId, host: Host) -> None:
    """Kill and remove the containers of a cancelled job, whoever waits on them.

    Looks again while an attempt is at work: it may be about to start one. Raises: NotFound, RuntimeUnavailable.
    """
    job = host.ports.ledger.job(job_id)
    if job.state is not JobState.CANCELLED:
        return
    with about(job, host):
        for leftover in host.ports.runtime.leftovers():
            if leftover.labels.get(JOB_LABEL) == job_id:
                host.ports.runtime.remove(leftover.name)
                log.info("task.killed", job=job_id, container=leftover.name)
    if _is_at_work(job_id, host) and host.ports.now() - job.changed_at < LOOKED_AFTER:
        ring(Queue.CANCELLATIONS, job_id, host, delay_s=LOOK_AGAIN_S)


# ------------------------------------------------------------------ one transaction, tried again while jobs move


def _carry_out(kept: KeptCancellation, order: OrderRecord | None, host: Host) -> Taken:
    """Keep it and end what would go on here. Raises: NotYours, QueueFull, LedgerUnavailable."""
    ledger = host.ports.ledger
    for _ in range(TRIES):
        order = order or ledger.order_of_digest(kept.order)
        if order is not None:
            _require_own(kept, order)
            kept = replace(kept, keep_until=max(order.expires, host.ports.now()) + host.rules.skew)
        steps = () if order is None else tuple(_steps(kept, order, host))
        try:
            is_new = ledger.cancel(kept, steps, host.ports.now(), most_without_order=MOST_WITHOUT_ORDER)
        except LostRace:
            continue
        _ring(steps, host)
        ended = sum(step.is_ended for step in steps)
        with _about(order):
            log.info("order.cancelled", digest=kept.order, source=kept.source, ended=ended)
        jobs = () if order is None else _jobs(order, host)
        return Taken(kept, order, jobs, is_repeat=not is_new)
    raise LedgerUnavailable(f"the jobs of order {kept.order} moved {TRIES} times while it was cancelled")


def _about(order: OrderRecord | None) -> AbstractContextManager[None]:
    return (
        nullcontext() if order is None else bound(order=order.id, trace=trace_of(order.trace, order.digest))
    )


def _require_own(kept: KeptCancellation, order: OrderRecord) -> None:
    """(4) Raises: NotYours."""
    if kept.source not in {order.signer, OPERATOR}:
        raise NotYours(f"order {order.id} is not of {kept.source}: its own orchestrator cancels it")


def _steps(kept: KeptCancellation, order: OrderRecord, host: Host) -> Iterator[CancelStep]:
    """What the cancellation does to the order's jobs here, as they stand now; what is done already is left out."""
    jobs, deliveries = _jobs(order, host), host.ports.ledger.deliveries(order_id=order.id)
    for job in jobs:
        if kept.source == OPERATOR:
            step = _end_here(kept, job, host)
        else:
            own = [delivery for delivery in deliveries if delivery.job == job.id]
            step = _end_or_follow(kept, order, job, own, is_last=job == jobs[-1], host=host)
        if step is not None:
            yield step


def _end_here(kept: KeptCancellation, job: Job, host: Host) -> CancelStep | None:
    if job.state not in OPEN or job.next_agent is not None:
        return None
    return CancelStep(job=job, is_ended=True, deliveries=(_told(kept, job, host),))


def _end_or_follow(
    kept: KeptCancellation,
    order: OrderRecord,
    job: Job,
    deliveries: Sequence[Delivery],
    *,
    is_last: bool,
    host: Host,
) -> CancelStep | None:
    """An open job ends. Where the order went on, the hand-off is withdrawn, and the cancellation goes after it: it may have
    arrived though nobody acknowledged it."""
    is_ended = job.state in OPEN
    unsent = [
        d
        for d in deliveries
        if d.kind is DeliveryKind.HANDOFF and d.state in {DeliveryState.PENDING, DeliveryState.DEAD}
    ]
    new = []
    if is_ended or any(handoff.state is DeliveryState.PENDING for handoff in unsent):
        new.append(_told(kept, job, host))
    if is_last and _went_to_another(job, host) and not _was_forwarded(job, deliveries):
        new.append(_forward(kept, order, job))
    if not (is_ended or unsent or new):
        return None
    return CancelStep(
        job=job, is_ended=is_ended, withdrawn=tuple(d.id for d in unsent), deliveries=tuple(new)
    )


def _told(kept: KeptCancellation, job: Job, host: Host) -> NewDelivery:
    return report(context_of(job, host), ReportState.CANCELLED, host, reason=kept.told_reason)


def _forward(kept: KeptCancellation, order: OrderRecord, job: Job) -> NewDelivery:
    """The cancellation as it came, for the agent that goes on. After the order's end nothing starts there by itself."""
    assert job.next_agent is not None and kept.envelope is not None  # noqa: S101, PT018 - the callers looked
    return NewDelivery(DeliveryKind.CANCELLATION, job.next_agent, kept.envelope, expires_at=order.expires)


def _went_to_another(job: Job, host: Host) -> bool:
    return job.state in WENT_ON and job.next_agent not in {None, host.me}


def _was_forwarded(job: Job, deliveries: Sequence[Delivery]) -> bool:
    return any(d.kind is DeliveryKind.CANCELLATION and d.target == job.next_agent for d in deliveries)


def _jobs(order: OrderRecord, host: Host) -> tuple[Job, ...]:
    """The order's jobs here, by position."""
    found = host.ports.ledger.jobs(JobQuery(order_id=order.id, limit=MAX_TASKS))
    return tuple(sorted(found, key=lambda job: job.position))


def _ring(steps: Sequence[CancelStep], host: Host) -> None:
    for step in steps:
        if step.is_ended and step.job.state is JobState.RUNNING:
            ring(Queue.CANCELLATIONS, step.job.id, host)
        ring_deliveries(step.job, host)


def _is_at_work(job_id: JobId, host: Host) -> bool:
    """Whether the workspace of an attempt of this job is there still."""
    root = host.rules.workspace_root
    owners = (parse_folder_name(folder.name) for folder in (root.iterdir() if root.is_dir() else ()))
    return any(owner is not None and owner[0] == job_id for owner in owners)
