"""What a person decides on deliveries: sent again, or dropped. Each act is an event with the operator's user id.

A report or a result that is dead or dropped holds no job open; sent again, it moves none. A hand-off has an orchestrator who
waits for it: one that is dropped while it was pending is told as refused by this host's operator, and fails a job that was
only placed; one that was refused may be sent again while its order lives, and the orchestrator is told that too.
"""

from agent.domain.jobs import JobState
from agent.domain.orders import is_expired
from agent.domain.reports import ReportState
from agent.errors import DeliveryOver, LostRace
from agent.log import get_logger
from agent.pipeline.bells import ring, ring_deliveries
from agent.pipeline.host import Host, context_of
from agent.pipeline.report import report
from agent.ports.broker import Queue
from agent.ports.ledger import Delivery, DeliveryId, DeliveryKind, DeliveryState

log = get_logger(__name__)

DROPPED = "dropped-by-operator"  # the reason that the orchestrator reads


def retry(delivery_id: DeliveryId, uid: int | None, host: Host) -> Delivery:
    """The delivery, pending and due at once. Raises: NotFound; DeliveryOver when nothing is to be sent any more."""
    ledger, now = host.ports.ledger, host.ports.now()
    delivery = ledger.delivery(delivery_id)
    if delivery.state not in {DeliveryState.PENDING, DeliveryState.DEAD}:
        raise DeliveryOver(f"{delivery.id} is {delivery.state}")
    told = []
    if delivery.kind is DeliveryKind.HANDOFF and delivery.state is DeliveryState.DEAD:
        context = context_of(ledger.job(delivery.job), host)
        if is_expired(context.signed.order, now, host.rules.skew):
            raise DeliveryOver(f"{delivery.id} ended with its order")
        if context.job.state not in {JobState.ATTESTED, JobState.DONE}:
            raise DeliveryOver(f"{delivery.id} is of a job that is {context.job.state}")
        if context.job.next_agent != delivery.target:
            raise DeliveryOver(f"{delivery.id}: the order goes on at {context.job.next_agent} by now")
        told = [report(context, ReportState.HANDOFF_RETRIED, host, next_agent=delivery.target)]
    try:
        ledger.retry_delivery(delivery, now, uid=uid, deliveries=told)
    except LostRace as race:
        raise DeliveryOver(f"{race.detail}: it moved just now") from race
    log.info("delivery.retried", delivery=delivery.id, uid=uid)
    ring(Queue.DELIVERIES, delivery.id, host)
    ring_deliveries(ledger.job(delivery.job), host)
    return ledger.delivery(delivery.id)


def drop(delivery_id: DeliveryId, uid: int | None, host: Host) -> Delivery:
    """The delivery, dropped for good; dropped already is fine. Raises: NotFound; DeliveryOver when it was acknowledged or
    withdrawn, or is being sent."""
    ledger, now = host.ports.ledger, host.ports.now()
    delivery = ledger.delivery(delivery_id)
    if delivery.state is DeliveryState.DROPPED:
        return delivery
    if delivery.state not in {DeliveryState.PENDING, DeliveryState.DEAD}:
        raise DeliveryOver(f"{delivery.id} is {delivery.state}")
    told = []
    if delivery.kind is DeliveryKind.HANDOFF and delivery.state is DeliveryState.PENDING:
        context = context_of(ledger.job(delivery.job), host)
        state = ReportState.HANDOFF_REFUSED
        told = [report(context, state, host, reason=DROPPED, next_agent=delivery.target)]
    try:
        job = ledger.drop_delivery(delivery, now, uid=uid, reason=DROPPED, deliveries=told)
    except LostRace as race:
        raise DeliveryOver(f"{race.detail}: look again in a minute") from race
    log.warning("delivery.dropped", delivery=delivery.id, uid=uid, job_state=job.state)
    ring_deliveries(job, host)
    return ledger.delivery(delivery.id)
