"""What the API tells: the shapes of its answers, made from what the ledger holds. No request is known here.

The same types describe the answers in /openapi.json and are read back by the command line.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct
from msgspec.structs import replace

from agent.api.doing import ProgressView
from agent.domain.approvals import Ruling
from agent.domain.chain import Task, TaskKind, plan
from agent.domain.control import Mode
from agent.domain.ids import Digest, JobId, KeyId, OrderId
from agent.domain.images import ImageDescription, ImageEntry
from agent.domain.jobs import Job, JobState
from agent.domain.orders import DatasetRef, Learnuplet, SignedOrder
from agent.domain.receipts import Receipt, SignedReceipt
from agent.domain.strict_json import encode
from agent.domain.traces import TraceId, trace_of
from agent.errors import BadSeal
from agent.ports.ledger import DeliveryHead, DeliveryId, DeliveryKind, DeliveryState, OrderRecord
from agent.trust.handoff import HandoffBody
from agent.trust.job_log import open_log
from agent.trust.keys import SigningKey

Kind = Literal["learnuplet", "preduplet"]


class JobView(Struct, frozen=True, kw_only=True):
    """An order's stay at one position on this host.

    `attempt`: attempts begun, of `max_attempts`. `phases`: seconds by phase of the attempt that ended. `reason`: why it
    failed, or why its last attempt was lost. `next_agent`: who goes on with the order. `progress`: of a task that runs.
    """

    id: JobId
    order: OrderId
    digest: Digest
    position: int
    kind: TaskKind
    state: JobState
    attempt: int
    max_attempts: int
    received_at: datetime
    changed_at: datetime
    not_before: datetime | None
    reason: str | None
    score: str | None
    next_agent: KeyId | None
    phases: dict[str, float]
    progress: ProgressView | None = None


class TaskView(Struct, frozen=True, kw_only=True):
    """One task of the chain, as far as this host knows.

    `state` is that of the job here; "done" or "failed" when only a receipt tells of it; null when nothing is known
    here yet. `agent`: who ran it, or was to. `wall_s`: seconds it took, `phases`: where they went, by its receipt.
    """

    position: int
    kind: TaskKind
    dataset: DatasetRef
    state: JobState | None
    agent: KeyId | None
    attempt: int | None
    score: str | None
    reason: str | None
    started: datetime | None
    finished: datetime | None
    wall_s: float | None
    phases: dict[str, float] = {}


class OrderView(Struct, frozen=True, kw_only=True):
    """An order this host knows: who wants what until when, its chain, and its jobs on this host, first position first.

    `trace`: by which everything of it is found in every host's log.
    """

    id: OrderId
    digest: Digest
    trace: TraceId
    kind: Kind
    orchestrator: KeyId
    received_at: datetime
    not_before: datetime
    expires: datetime
    chain: tuple[TaskView, ...]
    jobs: tuple[JobView, ...]


class JobPage(Struct, frozen=True):
    """A page of jobs, newest first. `next`: what to give as `after` for the page that follows; null on the last."""

    jobs: tuple[JobView, ...]
    next: JobId | None


class ImageState(Struct, frozen=True, kw_only=True):
    """One image of a held order. `is_read`: a worker looked into its archive; `problem`: why it may not be loaded."""

    role: str
    digest: Digest
    is_admitted: bool
    is_read: bool
    problem: str | None


class HeldJob(Struct, frozen=True, kw_only=True):
    """An order that waits for the operator: who asks, from whom it came, for what on which dataset, until when."""

    job: JobId
    order: OrderId
    position: int
    task: TaskKind
    dataset: DatasetRef
    orchestrator: KeyId
    sender: KeyId
    held_since: datetime
    expires: datetime
    images: tuple[ImageState, ...]


class HeldPage(Struct, frozen=True):
    """Everything that waits for the operator, oldest first."""

    held: tuple[HeldJob, ...]


class ImageView(Struct, frozen=True, kw_only=True):
    """An image as the operator decides on it. Everything in `description` was written by its author, and may lie."""

    digest: Digest
    is_listed: bool
    description: ImageDescription | None
    rulings: tuple[Ruling, ...]
    asked_by: tuple[HeldJob, ...]


class ImageFiles(Struct, frozen=True):
    """A page of an image's entries. `next`: the page that follows; null on the last."""

    entries: tuple[ImageEntry, ...]
    next: int | None


class RulingView(Struct, frozen=True):
    """The operator's word as it stands now, and the jobs it was about, with their states after it."""

    rulings: tuple[Ruling, ...]
    jobs: dict[JobId, JobState]


class CancellationView(Struct, frozen=True, kw_only=True):
    """A cancellation as it is kept, and the order's jobs here with their states now.

    `id`: of the order, when it is known here. `next_agent`: who went on with it, as far as this host knows.
    """

    order: Digest
    id: OrderId | None
    kept_until: datetime
    jobs: dict[JobId, JobState]
    next_agent: KeyId | None


class ControlView(Struct, frozen=True, kw_only=True):
    """What the host does, since when, by whose word (`uid`) and why; and its jobs by state. `until`: of a drain."""

    mode: Mode
    since: datetime | None
    until: datetime | None
    reason: str | None
    uid: int | None
    jobs: dict[JobState, int]


class DeliveryView(Struct, frozen=True, kw_only=True):
    """Something that must reach `target`. `attempts`: tried so often in vain, last with `last_error`, next at `next_try_at`."""

    id: DeliveryId
    order: OrderId
    position: int
    kind: DeliveryKind
    target: KeyId
    state: DeliveryState
    attempts: int
    created_at: datetime
    next_try_at: datetime
    expires_at: datetime | None
    last_error: str | None


class DeliveryPage(Struct, frozen=True):
    """Deliveries, oldest first; and how many are pending and dead in all."""

    deliveries: tuple[DeliveryView, ...]
    counts: dict[DeliveryState, int]


class RunLog(Struct, frozen=True, kw_only=True):
    """The capped output of one container. `text`: as UTF-8, other bytes as \\xNN; written by the guest, so it may lie.

    `unopened`: why the text is not there though an output was kept.
    """

    job: JobId
    attempt: int
    run: str
    text: str
    unopened: str | None = None


class LogView(Struct, frozen=True):
    """The outputs of an order's containers on this host, oldest first. `trace`: of the order."""

    runs: tuple[RunLog, ...]
    trace: TraceId


class Check(Struct, frozen=True):
    """One thing this agent stands on. `code`: of the error that was met; `detail`: what was seen, for the operator."""

    name: str
    is_ok: bool
    code: str | None = None
    detail: str | None = None


class Readiness(Struct, frozen=True):
    """Whether an order would be accepted now, and what was looked at."""

    is_ready: bool
    checks: tuple[Check, ...]


class Health(Struct, frozen=True):
    """That the process answers, and who it is."""

    status: Literal["alive"]
    version: Annotated[str, Meta(max_length=40)]
    agent: KeyId


ReceiptsView = HandoffBody  # the order's envelope and its receipts' so far, as a hand-off carries them


def view_job(job: Job, receipts: Iterable[SignedReceipt], progress: ProgressView | None = None) -> JobView:
    """The job, with the timings of the receipt that stands at its position."""
    own = next((r.receipt for r in receipts if r.receipt.position == job.position), None)
    return JobView(
        id=job.id,
        order=job.order_id,
        digest=job.order,
        position=job.position,
        kind=job.kind,
        state=job.state,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        received_at=job.received_at,
        changed_at=job.changed_at,
        not_before=job.not_before,
        reason=job.reason,
        score=job.score,
        next_agent=job.next_agent,
        phases={} if own is None else dict(own.usage.phases),
        progress=progress,
    )


def view_order(
    record: OrderRecord,
    signed: SignedOrder,
    jobs: Sequence[Job],
    receipts: Sequence[SignedReceipt],
    me: KeyId,
    doing: Mapping[JobId, ProgressView] | None = None,
) -> OrderView:
    """The order with its whole chain; `me` is the agent of this host, `doing` what its running tasks are at."""
    here = {job.position: job for job in jobs}
    told = {signed.receipt.position: signed.receipt for signed in receipts}
    agents = _agents(here, told, me)
    chain = tuple(
        _view_task(task, here.get(task.position), told.get(task.position), agents.get(task.position))
        for task in plan(signed.order)
    )
    return OrderView(
        id=record.id,
        digest=record.digest,
        trace=trace_of(record.trace, record.digest),
        kind="learnuplet" if isinstance(signed.order, Learnuplet) else "preduplet",
        orchestrator=record.signer,
        received_at=record.received_at,
        not_before=signed.order.not_before,
        expires=signed.order.expires,
        chain=chain,
        jobs=tuple(
            view_job(here[position], receipts, (doing or {}).get(here[position].id))
            for position in sorted(here)
        ),
    )


def view_delivery(head: DeliveryHead) -> DeliveryView:
    """The delivery, without what it carries."""
    return DeliveryView(
        id=head.id,
        order=head.order_id,
        position=head.position,
        kind=head.kind,
        target=head.target,
        state=head.state,
        attempts=head.attempts,
        created_at=head.created_at,
        next_try_at=head.next_try_at,
        expires_at=head.expires_at,
        last_error=head.last_error,
    )


def view_receipts(record: OrderRecord, receipts: Sequence[SignedReceipt]) -> bytes:
    """The envelopes, as JSON of the shape `ReceiptsView`."""
    return encode({"order": Raw(record.envelope), "receipts": [Raw(r.envelope) for r in receipts]})


def view_log(
    record: OrderRecord, logs: Iterable[tuple[JobId, int, str, bytes]], keys: Sequence[SigningKey]
) -> LogView:
    """The outputs as text, opened with one of the agent's keys. One that does not open says why and hides no other."""
    runs = tuple(_run_log(job, attempt, run, sealed, keys) for job, attempt, run, sealed in logs)
    return LogView(runs, trace_of(record.trace, record.digest))


def _run_log(job: JobId, attempt: int, run: str, sealed: bytes, keys: Sequence[SigningKey]) -> RunLog:
    why = "no key is at hand"
    for key in keys:
        try:
            output = open_log(sealed, key, job=job, attempt=attempt, run=run)
        except BadSeal as refusal:
            why = refusal.detail
        else:
            break
    else:
        return RunLog(job=job, attempt=attempt, run=run, text="", unopened=why)
    return RunLog(job=job, attempt=attempt, run=run, text=output.decode("utf-8", errors="backslashreplace"))


def _agents(here: Mapping[int, Job], told: Mapping[int, Receipt], me: KeyId) -> dict[int, KeyId]:
    """Who ran or runs the task at each position, as far as this host knows; its receipt has the last word."""
    agents: dict[int, KeyId] = {}
    for position, job in sorted(here.items()):
        was_passed_on = job.next_agent is not None and job.attempt == 0
        if job.next_agent is not None:
            agents[position if was_passed_on else position + 1] = job.next_agent
        if not was_passed_on:
            agents[position] = me
    return agents | {position: receipt.agent for position, receipt in told.items()}


def _view_task(task: Task, job: Job | None, receipt: Receipt | None, agent: KeyId | None) -> TaskView:
    known = TaskView(
        position=task.position,
        kind=task.kind,
        dataset=task.dataset,
        state=None if job is None else job.state,
        agent=agent,
        attempt=None if job is None else job.attempt,
        score=None,
        reason=None if job is None else job.reason,
        started=None,
        finished=None,
        wall_s=None,
    )
    if receipt is None:
        return known
    return replace(
        known,
        state=known.state or JobState(receipt.outcome),
        attempt=receipt.attempt,
        score=receipt.score,
        reason=receipt.reason,
        started=receipt.started,
        finished=receipt.finished,
        wall_s=receipt.usage.wall_s,
        phases=dict(receipt.usage.phases),
    )
