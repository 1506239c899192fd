"""What must reach others is sent until they acknowledge: hand-offs and cancellations to peers, reports and results to
orchestrators.

Each delivery rests longer after each failure, and so does its target as a whole: while somebody is away, one call at a time
finds out whether they are back, however much waits for them. What waits for others is not held up.
"""

from datetime import timedelta
from typing import assert_never

from agent.domain.control import Mode
from agent.domain.jobs import JobState
from agent.domain.reports import ReportState, SignedRefusal, parse_refusal
from agent.domain.retries import LONGEST_REST, backoff, dice
from agent.errors import DatasetNotHere, OrderError, OutsideError, PeerRefused, TrustError
from agent.log import bound, get_logger
from agent.pipeline.bells import ring, ring_deliveries
from agent.pipeline.host import Context, Host, about, context_of
from agent.pipeline.place import holder_of
from agent.pipeline.report import report
from agent.ports.broker import Queue
from agent.ports.ledger import Delivery, DeliveryId, DeliveryKind, NewDelivery

log = get_logger(__name__)

BATCH = 1000  # deliveries that are rung for somebody who is back; the sweep rings the rest


def deliver(delivery_id: DeliveryId, host: Host) -> None:
    """Try one delivery once: acknowledged, postponed, or buried with the orchestrator told. Raises: LedgerUnavailable."""
    if host.ports.ledger.control().mode is Mode.RESTORED:
        return  # it may have been told already, or be no longer true
    now = host.ports.now()
    delivery = host.ports.ledger.lease_delivery(delivery_id, now, now + host.rules.lease)
    if delivery is None:
        return  # acknowledged, resting, or another worker has it
    with about(delivery, host), bound(delivery=delivery.id):
        _see_to(delivery, host)


def _see_to(delivery: Delivery, host: Host) -> None:
    now = host.ports.now()
    try:
        if _is_over(delivery, host) and delivery.kind is DeliveryKind.CANCELLATION:
            host.ports.ledger.bury(delivery.id, now, "the order ended before the peer heard of it")
        elif _is_over(delivery, host):
            _bury(delivery, ReportState.HANDOFF_EXPIRED, "the order expired before the peer took it", host)
        else:
            _try(delivery, host)
    except (OutsideError, TrustError) as error:
        _postpone(delivery, error, host)


def _try(delivery: Delivery, host: Host) -> None:
    try:
        _send(delivery, host)
    except PeerRefused as error:
        _note_answer(delivery, host)
        _refused(delivery, error, host)
    except (OutsideError, TrustError) as error:
        _note_silence(delivery, error, host)
    else:
        job = host.ports.ledger.acknowledge(delivery.id, host.ports.now())
        log.info("delivery.acknowledged", delivery=delivery.id, to=delivery.target, job_state=job.state)
        _note_answer(delivery, host)


def _send(delivery: Delivery, host: Host) -> None:
    orchestrators, peers = host.ports.orchestrators, host.ports.peers
    match delivery.kind:
        case DeliveryKind.HANDOFF:
            peers.hand_off(delivery.target, delivery.body)
        case DeliveryKind.CANCELLATION:
            peers.cancel(delivery.target, delivery.body)
        case DeliveryKind.REPORT:
            orchestrators.report(
                delivery.target, delivery.order_id, delivery.position, delivery.n, delivery.body
            )
        case DeliveryKind.RESULT:
            orchestrators.result(delivery.target, delivery.order_id, delivery.body)
        case _:
            assert_never(delivery.kind)


def _is_over(delivery: Delivery, host: Host) -> bool:
    return delivery.expires_at is not None and host.ports.now() - host.rules.skew >= delivery.expires_at


def _note_answer(delivery: Delivery, host: Host) -> None:
    """Its target is there: what rested because it was not is rung."""
    for other in host.ports.ledger.target_is_back(delivery.target, host.ports.now(), BATCH):
        ring(Queue.DELIVERIES, other, host)


def _note_silence(delivery: Delivery, error: OutsideError | TrustError, host: Host) -> None:
    """Its target did not take it and did not refuse it: both rest, the target as long as it failed whatever was sent."""
    ledger = host.ports.ledger
    failures = ledger.target_failures(delivery.target) + 1
    rest = max(backoff(failures, dice(delivery.target, failures)), _rest_asked(error))
    ledger.rest_target(delivery.target, failures, host.ports.now() + rest)
    _postpone(delivery, error, host, at_least=rest)


def _rest_asked(error: OutsideError | TrustError) -> timedelta:
    asked_s = error.rest_s if isinstance(error, OutsideError) else None
    return timedelta(seconds=min(asked_s or 0.0, LONGEST_REST.total_seconds()))


def _postpone(
    delivery: Delivery, error: OutsideError | TrustError, host: Host, at_least: timedelta = timedelta()
) -> None:
    rest = max(backoff(delivery.attempts + 1, dice(delivery.id, delivery.attempts)), at_least)
    host.ports.ledger.postpone(delivery.id, host.ports.now() + rest, f"{error.code}: {error.detail}")
    ring(Queue.DELIVERIES, delivery.id, host, delay_s=rest.total_seconds())
    log.warning(
        "delivery.postponed", delivery=delivery.id, to=delivery.target, code=error.code, detail=error.detail
    )


def _refused(delivery: Delivery, error: PeerRefused, host: Host) -> None:
    """A signed refusal: a hand-off may go to the agent that holds the dataset now; everything else is dead."""
    log.error(
        "delivery.refused",
        delivery=delivery.id,
        to=delivery.target,
        refusal=error.refusal,
        detail=error.detail,
    )
    if delivery.kind is not DeliveryKind.HANDOFF:
        host.ports.ledger.bury(delivery.id, host.ports.now(), error.detail)
        return
    elsewhere = _elsewhere(delivery, error, host)
    if elsewhere is None:
        _bury(delivery, ReportState.HANDOFF_REFUSED, error.detail, host, _evidence(error))
        return
    host.ports.ledger.bury(delivery.id, host.ports.now(), error.detail, deliveries=[elsewhere])
    ring_deliveries(host.ports.ledger.job(delivery.job), host)


def _evidence(error: PeerRefused) -> SignedRefusal | None:
    """The peer's signed answer, for the orchestrator to check; None when it is none that anybody could read."""
    try:
        return parse_refusal(error.evidence) if error.evidence else None
    except OrderError as cause:
        log.warning("refusal.not_readable", code=cause.code, detail=cause.detail)
        return None


def _elsewhere(delivery: Delivery, error: PeerRefused, host: Host) -> NewDelivery | None:
    """The same hand-off for another agent, when the dataset moved meanwhile."""
    if error.refusal != DatasetNotHere.code:
        return None
    context = _context(delivery, host)
    task = context.task if context.job.state is JobState.RECEIVED else context.next_task
    if task is None:
        return None
    target = holder_of(task, host)
    if target in {delivery.target, host.me}:
        return None
    return NewDelivery(DeliveryKind.HANDOFF, target, delivery.body, expires_at=delivery.expires_at)


def _bury(
    delivery: Delivery, state: ReportState, detail: str, host: Host, refusal: SignedRefusal | None = None
) -> None:
    context = _context(delivery, host)
    told = report(context, state, host, reason=detail[:200], next_agent=delivery.target, refusal=refusal)
    host.ports.ledger.bury(delivery.id, host.ports.now(), detail, deliveries=[told])
    ring_deliveries(host.ports.ledger.job(delivery.job), host)


def _context(delivery: Delivery, host: Host) -> Context:
    return context_of(host.ports.ledger.job(delivery.job), host)
