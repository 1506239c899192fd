"""What the pages on orders tell: lists of them, one with its chain, one receipt. Asked of the ledger, page by page."""

from collections.abc import Set
from datetime import datetime

from msgspec import Struct

from agent.api.page.lens import Chain, Lens, Party
from agent.api.page.pictures import MARKS, TONES, Plot, plot_scores
from agent.api.views import JobView, OrderView
from agent.domain.chain import TaskKind
from agent.domain.ids import JobId, OrderId
from agent.domain.jobs import FINAL, Job, JobState
from agent.domain.orders import Learnuplet, SignedOrder
from agent.domain.receipts import SignedReceipt
from agent.errors import AgentError, NotFound
from agent.pipeline.journal import INPUTS, OUTPUT, RUN

PAGE = 15  # orders on one page of the list
WINDOW = 40  # tasks of a chain on one page
SHOWN = 6  # tasks of a chain in a list of orders,
AHEAD = 2  # of them at most so many after the one where the order stands: nothing is known of those

RUNS = {
    TaskKind.LEARN: ("train",),
    TaskKind.TEST: ("detarget", "predict", "perf"),
    TaskKind.PREDICT: ("predict",),
}


class OrderLine(Struct, frozen=True, kw_only=True):
    """An order in a list: how it stands here, and its chain around that place. `problem`: why it cannot be drawn."""

    id: OrderId
    state: JobState
    tone: str
    mark: str
    kind: str
    orchestrator: Party
    received_at: datetime
    changed_at: datetime
    reason: str | None
    chain: Chain | None
    problem: str | None = None


class OrderList(Struct, frozen=True):
    """A page of orders. `next`: the job after which the next page begins."""

    lines: tuple[OrderLine, ...]
    next: JobId | None


class Step(Struct, frozen=True, kw_only=True):
    """A step of a task that runs: done, now or next; `since`: when it began; `took_s`: how long it took."""

    name: str
    standing: str
    since: datetime | None = None
    took_s: float | None = None


class Running(Struct, frozen=True, kw_only=True):
    """A task that runs here, and how far it came."""

    order: OrderId
    position: int
    kind: TaskKind
    attempt: int
    max_attempts: int
    since: datetime
    orchestrator: Party
    dataset: str
    steps: tuple[Step, ...]

    @property
    def done(self) -> int:
        return sum(step.standing == "done" for step in self.steps)


class OrderPage(Struct, frozen=True, kw_only=True):
    """One order. `jobs` are those of the tasks that are shown."""

    view: OrderView
    tone: str
    mark: str
    state: JobState
    orchestrator: Party
    sender: Party
    chain: Chain
    plot: Plot | None
    jobs: tuple[JobView, ...]
    rank: int | None
    images: tuple[tuple[str, str], ...]


class ReceiptPage(Struct, frozen=True, kw_only=True):
    """One receipt as it was signed, and what this host's roster knows of its signer now."""

    order: OrderId
    count: int
    signed: SignedReceipt
    signer: Party
    is_valid: bool | None
    orchestrator: Party
    before: bool
    after: bool


def orders(lens: Lens, states: Set[JobState], after: JobId | None, limit: int = PAGE) -> OrderList:
    """A page of orders, by their newest job here."""
    jobs = lens.host.ports.ledger.newest_jobs(states, after=after, limit=limit + 1)
    page = jobs[:limit]
    return OrderList(
        tuple(_line(job, lens) for job in page), page[-1].id if len(jobs) > limit and page else None
    )


def _line(job: Job, lens: Lens) -> OrderLine:
    record = lens.host.ports.ledger.order(job.order_id)
    chain, kind, problem = None, "order", None
    try:  # one that was written over in the file must not take the list with it
        jobs = lens.jobs_of(record)
        end = job.position + AHEAD + 1
        first = max(0, end - SHOWN)
        view, signed = lens.order(record, jobs, first, SHOWN)
        chain, kind = lens.chain(view, jobs, first, end - first), _kind(signed)
    except AgentError as error:
        problem = error.detail
    return OrderLine(
        id=job.order_id,
        state=job.state,
        tone=TONES[job.state],
        mark=MARKS[TONES[job.state]],
        kind=kind,
        orchestrator=lens.who(record.signer),
        received_at=record.received_at,
        changed_at=job.changed_at,
        reason=job.reason,
        chain=chain,
        problem=problem,
    )


def _kind(signed: SignedOrder) -> str:
    return "training" if isinstance(signed.order, Learnuplet) else "prediction"


def running(lens: Lens, limit: int) -> tuple[Running, ...]:
    """What runs here, the newest first."""
    jobs = lens.host.ports.ledger.newest_jobs({JobState.RUNNING}, limit=limit)
    return tuple(_running(job, lens) for job in jobs)


def _running(job: Job, lens: Lens) -> Running:
    record = lens.host.ports.ledger.order(job.order_id)
    view, _ = lens.order(record, (job,), job.position, 1)
    begun = {step.name: step for step in lens.host.ports.ledger.steps(job)}
    names = (INPUTS, *(RUN + run for run in RUNS[job.kind]), OUTPUT)
    done = {name for name in names if name in begun and begun[name].ended_at is not None}
    current = next((name for name in names if name not in done), None)
    steps = []
    for name in names:
        step = begun.get(name)
        words = {INPUTS: "fetch inputs", OUTPUT: "send output"}.get(name, name.removeprefix(RUN))
        if step is None:
            is_now = name == current
            since = job.changed_at if is_now and name == INPUTS else None
            steps.append(Step(name=words, standing="now" if is_now else "next", since=since))
            continue
        begun_at = (
            job.changed_at if name == INPUTS else step.begun_at
        )  # what is fetched is fetched from the start on
        took = None if step.ended_at is None else (step.ended_at - begun_at).total_seconds()
        standing = "done" if name in done else "now" if name == current else "next"
        steps.append(Step(name=words, standing=standing, since=begun_at, took_s=took))
    return Running(
        order=job.order_id,
        position=job.position,
        kind=job.kind,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        since=job.changed_at,
        orchestrator=lens.who(record.signer),
        dataset=view.chain[job.position].dataset.id,
        steps=tuple(steps),
    )


def order(lens: Lens, name: OrderId, first: int) -> OrderPage:
    """One order, with its tasks from `first` on. Raises: NotFound."""
    record = lens.host.ports.ledger.order(name)
    jobs = lens.jobs_of(record)
    view, signed = lens.order(record, jobs, first, WINDOW)
    if first >= len(view.chain):
        raise NotFound(f"order {name} has {len(view.chain)} tasks")
    chain = lens.chain(view, jobs, first, WINDOW)
    state = _state(jobs)
    shown = range(chain.first, chain.last + 1)
    told = signed.order
    roles = [("algorithm", told.algo_image.digest)]
    if isinstance(told, Learnuplet):
        roles.insert(0, ("problem", told.problem_image.digest))
    return OrderPage(
        view=view,
        tone=TONES[state],
        mark=MARKS[TONES[state]],
        state=state,
        orchestrator=lens.who(record.signer),
        sender=lens.who(record.sender),
        chain=chain,
        plot=plot_scores(chain.tasks, chain.names),
        jobs=tuple(job for job in view.jobs if job.position in shown),
        rank=told.rank if isinstance(told, Learnuplet) else None,
        images=tuple(roles),
    )


def _state(jobs: tuple[Job, ...]) -> JobState:
    """How the order stands on this host: as the job that still moves, else as the last one."""
    by_position = sorted(jobs, key=lambda job: job.position)
    return next((job.state for job in by_position if job.state not in FINAL), by_position[-1].state)


def receipt(lens: Lens, name: OrderId, position: int) -> ReceiptPage:
    """The receipt of one task. Raises: NotFound."""
    ledger = lens.host.ports.ledger
    record = ledger.order(name)
    found = ledger.receipts_from(record.digest, max(0, position - 1), 3)
    by_position = {one.receipt.position: one for one in found}
    if position not in by_position:
        raise NotFound(f"no receipt of task {position} of order {name} has reached this host")
    signed = by_position[position]
    view, _ = lens.order(record, (), position, 1)
    entry = lens.host.roster.find(signed.signer)
    return ReceiptPage(
        order=name,
        count=len(view.chain),
        signed=signed,
        signer=lens.who(signed.signer),
        is_valid=None if entry is None else entry.is_valid(lens.now),
        orchestrator=lens.who(record.signer),
        before=position - 1 in by_position,
        after=position + 1 in by_position,
    )
