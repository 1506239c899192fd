"""Ringing what a move in the ledger calls for. A bell may be lost or doubled: the sweep rings again, the ledger decides."""

from agent.domain.ids import job_id
from agent.domain.jobs import Job, JobState
from agent.pipeline.host import Context, Host
from agent.ports.broker import PLACE_QUEUES, TASK_QUEUES, Queue
from agent.ports.ledger import DeliveryState


def ring_job(job: Job, host: Host, *, delay_s: float = 0.0) -> None:
    """Ring the queue in which this job waits to be placed or run."""
    queues = PLACE_QUEUES if job.state is JobState.RECEIVED else TASK_QUEUES
    host.ports.broker.ring(queues[job.kind], job.id, delay_s=delay_s)


def ring_deliveries(job: Job, host: Host) -> None:
    """Ring every pending delivery of this job's order that is not resting."""
    now = host.ports.now()
    for delivery in host.ports.ledger.deliveries(order_id=job.order_id, state=DeliveryState.PENDING):
        if delivery.job == job.id and delivery.next_try_at <= now:
            host.ports.broker.ring(Queue.DELIVERIES, delivery.id)


def ring_successor(context: Context, job: Job, host: Host) -> None:
    """Ring the next task of the order when it goes on here."""
    if context.next_task is not None and job.next_agent == host.me:
        successor = job_id(job.order_id, context.next_task.position)
        host.ports.broker.ring(TASK_QUEUES[context.next_task.kind], successor)
