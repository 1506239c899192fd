"""What the pages on refusals and datasets tell, from the audit log, newest first and page by page."""

from datetime import datetime
from typing import Final

from msgspec import Struct

from agent import errors
from agent.api.page.lens import Lens, Party
from agent.api.page.pictures import MARKS, TONES
from agent.domain.ids import JobId, KeyId, OrderId, job_id, parse_order_id
from agent.domain.jobs import JobState
from agent.errors import AgentError, NotFound
from agent.ports.ledger import EventRecord

PAGE = 50

REFUSALS: Final = frozenset({"request.refused", "requests.refused"})
ADVICE: Final = {
    kind.code: kind.advice
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AgentError)
}


class Refusal(Struct, frozen=True, kw_only=True):
    """A call that was refused: whose (None: of a stranger, or of the operator), which, why, and what to do.

    `count`: how many such calls this line sums up.
    """

    at: datetime
    who: Party | None
    code: str
    detail: str
    advice: str | None
    call: str
    order: OrderId | None
    is_here: bool
    dataset: str | None
    count: int = 1


class RefusalList(Struct, frozen=True):
    """A page of refusals. `next`: the number below which the next page begins."""

    lines: tuple[Refusal, ...]
    next: int | None


class DatasetLine(Struct, frozen=True, kw_only=True):
    """A dataset: how many lines tell of it, what the newest says, when, and who asked."""

    dataset: str
    lines: int
    at: datetime
    what: str
    who: Party | None


class DatasetList(Struct, frozen=True):
    """A page of datasets."""

    lines: tuple[DatasetLine, ...]
    next: int | None


class Use(Struct, frozen=True, kw_only=True):
    """A line about a dataset: a task on it with its state now, or a call that was refused."""

    at: datetime
    what: str
    who: Party | None
    order: OrderId | None
    position: int | None
    kind: str | None
    version: str | None
    state: JobState | None
    tone: str
    mark: str
    score: str | None
    reason: str | None
    is_here: bool = True  # the order is one that this host knows


class DatasetPage(Struct, frozen=True):
    """One dataset and who used it, or tried to."""

    dataset: str
    uses: tuple[Use, ...]
    next: int | None


def refusals(lens: Lens, before: int | None, limit: int = PAGE) -> RefusalList:
    """A page of refusals."""
    lines = lens.host.ports.ledger.events_of_host(REFUSALS, before=before, limit=limit + 1)
    page = lines[:limit]
    return RefusalList(
        tuple(_refusal(line, lens) for line in page), page[-1].seq if len(lines) > limit and page else None
    )


def _refusal(line: EventRecord, lens: Lens) -> Refusal:
    told = line.values
    who, order = told.get("who"), _order_in(told.get("order_id"))
    if line.name == "requests.refused":
        code, detail = (
            "over the budget",
            f"not kept one by one since {told.get('since')}: {told.get('codes')}",
        )
    else:
        code, detail = str(told.get("code")), str(told.get("detail") or "")
    count = told.get("count", 1)
    return Refusal(
        at=line.at,
        who=lens.who(KeyId(str(who))) if who else None,
        code=code,
        detail=detail,
        advice=ADVICE.get(code),
        call=" ".join(str(told[name]) for name in ("method", "path") if told.get(name)),
        order=order,
        is_here=order is not None and _is_known(order, lens),
        dataset=line.dataset,
        count=count if isinstance(count, int) else 1,
    )


def _order_in(value: object) -> OrderId | None:
    """The id, where a refused caller named one that can be one."""
    try:
        return parse_order_id(str(value)) if value else None
    except ValueError:
        return None


def _is_known(order: OrderId, lens: Lens) -> bool:
    try:
        lens.host.ports.ledger.order(order)
    except NotFound:
        return False
    return True


def datasets(lens: Lens, before: int | None, limit: int = PAGE) -> DatasetList:
    """A page of datasets, the one that was told of last first."""
    uses = lens.host.ports.ledger.datasets_used(before=before, limit=limit + 1)
    page = uses[:limit]
    lines = tuple(
        DatasetLine(
            dataset=use.dataset,
            lines=use.lines,
            at=use.last.at,
            what=_what(use.last),
            who=_asked(use.last, lens),
        )
        for use in page
    )
    return DatasetList(lines, page[-1].last.seq if len(uses) > limit and page else None)


def dataset(lens: Lens, name: str, before: int | None, limit: int = PAGE) -> DatasetPage:
    """One dataset, used here or not. Raises: NotFound when nothing can be called so."""
    lines = lens.host.ports.ledger.events_of_dataset(name, before=before, limit=limit + 1)
    if not lines and _order_in(name) is None:  # datasets and orders are both named by UUIDs
        raise NotFound(f"there is no dataset {name[:80]!r}")
    page = lines[:limit]
    next_before = page[-1].seq if len(lines) > limit and page else None
    return DatasetPage(name, tuple(_use(line, lens) for line in page), next_before)


def _use(line: EventRecord, lens: Lens) -> Use:
    told = line.values
    state = score = reason = None
    if line.order_id is not None and line.position is not None:
        state, score, reason = _now(job_id(line.order_id, line.position), lens)
    if line.name in REFUSALS:
        tone, reason = "bad", f"{told.get('code')}: {told.get('detail')}"
    else:
        tone = "idle" if state is None else TONES[state]
    order = line.order_id or _order_in(told.get("order_id"))
    position = line.position if line.position is not None else told.get("position")
    return Use(
        at=line.at,
        what=_what(line),
        who=_asked(line, lens),
        order=order,
        position=position if isinstance(position, int) else None,
        kind=_text(told.get("kind")),
        version=_text(told.get("version")),
        state=state,
        tone=tone,
        mark=MARKS[tone],
        score=score,
        reason=reason,
        is_here=order is not None and (state is not None or _is_known(order, lens)),
    )


def _now(job: JobId, lens: Lens) -> tuple[JobState | None, str | None, str | None]:
    try:
        found = lens.host.ports.ledger.job(job)
    except NotFound:  # kept long enough and collected; its lines stay
        return None, None, None
    return found.state, found.score, found.reason


def _what(line: EventRecord) -> str:
    if line.name in REFUSALS:
        return "refused"
    kind = line.values.get("kind")
    return f"{kind} task" if kind and line.name.startswith("job.") else line.name


def _asked(line: EventRecord, lens: Lens) -> Party | None:
    """The orchestrator whose order it was; of a refused call who made it."""
    told = line.values.get("orchestrator") or line.values.get("who")
    return lens.who(KeyId(str(told))) if told else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
