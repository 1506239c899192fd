"""Ringing what a move in the ledger calls for. A bell may be lost or doubled: the sweep rings again, the ledger decides."""

from collections.abc import Sequence

from agent.domain.chain import TaskKind
from agent.domain.ids import job_id
from agent.domain.jobs import WAITING, Job, JobState
from agent.errors import OutsideError
from agent.log import get_logger
from agent.pipeline.host import Context, Host
from agent.ports.broker import PLACE_QUEUES, TASK_QUEUES, Queue
from agent.ports.ledger import DeliveryKind, DeliveryState

log = get_logger(__name__)


def ring(queue: Queue, item: str, host: Host, *, delay_s: float = 0.0) -> None:
    """Ring once. A bell that cannot be rung is a lost bell, no more: the state that called for it is recorded already."""
    try:
        host.ports.broker.ring(queue, item, delay_s=delay_s)
    except OutsideError as error:
        log.warning("bell.lost", queue=queue, item=item, code=error.code, detail=error.detail)


def ring_all(queue: Queue, items: Sequence[str], host: Host) -> None:
    """Ring once for each, at once; all of these bells are lost where they cannot be rung."""
    if not items:
        return
    try:
        host.ports.broker.ring_all(queue, items)
    except OutsideError as error:
        log.warning("bells.lost", queue=queue, count=len(items), code=error.code, detail=error.detail)


def queue_of(state: JobState, kind: TaskKind) -> Queue:
    """Where such a job waits to be placed or run; a held one waits to be placed."""
    return (PLACE_QUEUES if state in {JobState.RECEIVED, JobState.HELD} else TASK_QUEUES)[kind]


def ring_job(job: Job, host: Host, *, delay_s: float = 0.0) -> None:
    """Ring the queue in which this job waits."""
    ring(queue_of(job.state, job.kind), job.id, host, delay_s=delay_s)


def ring_jobs(jobs: Sequence[Job], host: Host) -> None:
    """The same for each of these that waits, each queue's at once."""
    by_queue: dict[Queue, list[str]] = {}
    for job in jobs:
        if job.state in WAITING:
            by_queue.setdefault(queue_of(job.state, job.kind), []).append(job.id)
    for queue, items in by_queue.items():
        if len(items) == 1:
            ring(queue, items[0], host)
        else:
            ring_all(queue, items, host)


def ring_deliveries(job: Job, host: Host) -> None:
    """Ring every pending delivery of this job's order that is not resting: first what others go on with, then what is told."""
    now = host.ports.now()
    pending = host.ports.ledger.deliveries(order_id=job.order_id, state=DeliveryState.PENDING)
    due = [delivery for delivery in pending if delivery.job == job.id and delivery.next_try_at <= now]
    due.sort(key=lambda delivery: delivery.kind is not DeliveryKind.HANDOFF)
    ring_all(Queue.DELIVERIES, [delivery.id for delivery in due], host)


def ring_successor(context: Context, job: Job, host: Host) -> None:
    """Ring the next task of the order when it goes on here."""
    if context.next_task is not None and host.is_me(job.next_agent):
        successor = job_id(job.order_id, context.next_task.position)
        ring(TASK_QUEUES[context.next_task.kind], successor, host)
