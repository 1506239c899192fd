"""Where a new order begins: here, when storage says that its first dataset lies here, else with the host that holds it."""

from contextlib import suppress

from agent.domain.chain import Task
from agent.domain.ids import KeyId
from agent.domain.jobs import Job, JobEvent
from agent.domain.orders import is_expired
from agent.domain.reports import ReportState
from agent.errors import DatasetMissing, TrustError
from agent.pipeline.attest import handoff
from agent.pipeline.bells import ring_deliveries, ring_job
from agent.pipeline.host import Context, Host
from agent.pipeline.report import report


def place(context: Context, host: Host) -> Job:
    """RECEIVED -> QUEUED here, or handed to the agent that holds the dataset, or EXPIRED.

    Raises: StorageUnavailable, DatasetMissing (both tried again while the order lives); LostRace.
    """
    if is_expired(context.signed.order, host.ports.now(), host.rules.skew):
        return expire(context, host)
    target = holder_of(context.task, host)
    if host.is_me(target):
        job = host.ports.ledger.move(context.job, JobEvent.ENQUEUE, host.ports.now())
        ring_job(job, host)
        return job
    if host.roster.is_same_agent(target, context.sender):
        # That agent says the dataset lies here; it would take its own order back as a repeat, and nobody would run it.
        raise DatasetMissing(f"{context.task.dataset} lies with the agent that sent the order here")
    delivery = handoff(context, context.receipts, target)
    job = host.ports.ledger.redirect(context.job, host.ports.now(), next_agent=target, delivery=delivery)
    ring_deliveries(job, host)
    return job


def holder_of(task: Task, host: Host) -> KeyId:
    """The agent that goes on with this task: this one when it holds the dataset, else the first that storage names and
    whose key holds now.

    Raises: DatasetMissing, StorageUnavailable.
    """
    agents = [location.agent for location in host.ports.storage.dataset(task.dataset).locations]
    if host.roster.is_among(host.me, agents):
        return host.me
    now = host.ports.now()
    for agent in agents:
        with suppress(TrustError):
            entry = host.roster.reach(agent, now)
            # The name that storage uses, while it holds: not everybody need know a newer key of that agent yet.
            return agent if agent in host.roster.valid_keys_of(agent, now) else entry.keyid
    raise DatasetMissing(f"storage names no valid agent of the roster for {task.dataset}")


def expire(context: Context, host: Host) -> Job:
    """The job -> EXPIRED: its task did not start in time, and the orchestrator is told. Raises: LostRace."""
    told = report(context, ReportState.FAILED, host, reason="order-expired")
    job = host.ports.ledger.move(
        context.job, JobEvent.EXPIRE, host.ports.now(), reason="order-expired", deliveries=[told]
    )
    ring_deliveries(job, host)
    return job
