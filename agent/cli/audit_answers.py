"""`audit query`: who ran what on a dataset, and what left this host, for whom, how many bytes."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agent.cli.audit import roster_in
from agent.cli.here import Here, here_of
from agent.cli.out import JsonFlag, print_json, print_table, say, short, size, when
from agent.domain.audit import Line
from agent.domain.audit_answers import TaskAccount, accounts, values_of
from agent.domain.ids import parse_digest, parse_keyid, parse_order_id
from agent.errors import BadSettings
from agent.ports.audit import AuditLog, Wanted
from agent.trust.roster import Roster

COLUMNS = (
    "when (UTC)",
    "order",
    "pos#",
    "task",
    "for",
    "what",
    "is",
    "attempt#",
    "outcome~",
    "with",
    "bytes#",
)


def query(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="ID", help="Tasks on this dataset.")
    ] = None,
    order: Annotated[str | None, typer.Option("--order", metavar="ID", help="Tasks of this order.")] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="DIGEST", help="Tasks that ran this image.")
    ] = None,
    who: Annotated[
        str | None,
        typer.Option("--who", metavar="KEY|NAME", help="Tasks this party asked for, sent, or was told of."),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Of which something happened since then.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", metavar="FILE", help="Another ledger than the agent's own.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Who ran what, and what left this host: runs, shares of keys, outputs and messages, with bytes and recipients."""
    from agent.cli.audit_log import moment
    from agent.wiring import open_audit

    here = here_of(context)
    known = _names(here)
    wanted = _wanted(known, dataset=dataset, order=order, image=image, who=who)
    start = None if since is None else moment(since)
    with open_audit(here.settings.paths.ledger if ledger is None else ledger) as log:
        tasks = [one for one in _accounts(log, wanted) if start is None or (one.last or start) >= start]
        about = (line for order in {task.order for task in tasks} for line in log.about(order))
        rest = [line for line in about if line.position is None]
        rest += [line for line in log.elsewhere(wanted) if start is None or line.at >= start]
    if as_json:
        print_json(_document(tasks, rest, known))
    else:
        _print(tasks, rest, known)


def _accounts(log: AuditLog, wanted: Wanted) -> Iterable[TaskAccount]:
    for order, positions in log.orders(wanted):
        yield from accounts(order, log.about(order), positions)


def _wanted(
    known: Roster | None, *, dataset: str | None, order: str | None, image: str | None, who: str | None
) -> Wanted:
    """What is asked. Raises: BadSettings unless it is one thing, well written."""
    given = [text for text in (dataset, order, image, who) if text is not None]
    if len(given) != 1:
        raise BadSettings("name one of --dataset, --order, --image and --who")
    try:
        if dataset is not None:
            return Wanted(dataset=str(parse_order_id(dataset)))  # a dataset's id is a uuid too
        if order is not None:
            return Wanted(order=parse_order_id(order))
        if image is not None:
            return Wanted(text=parse_digest(image))
        return Wanted(text=_key(known, given[0]))
    except ValueError as cause:
        raise BadSettings(str(cause)) from cause


def _key(known: Roster | None, who: str) -> str:
    """A key id, or that of the one entry of the roster with this name."""
    named = [entry.keyid for entry in (known.entries if known else ()) if entry.name == who]
    return named[0] if len(named) == 1 else parse_keyid(who)


def _names(here: Here) -> Roster | None:
    """The roster, for names; a host without one is asked in key ids."""
    try:
        return roster_in(here.settings.trust.roster)
    except BadSettings:
        return None


# ------------------------------------------------------------------ telling


def _name(known: Roster | None, keyid: str | None) -> str | None:
    if keyid is None:
        return None
    entry = next((one for one in (known.entries if known else ()) if one.keyid == keyid), None)
    return short(keyid) if entry is None else entry.name


def _print(tasks: Sequence[TaskAccount], rest: Sequence[Line], known: Roster | None) -> None:
    rows = [row for task in tasks for row in _rows(task, known)]
    rows += [_refusal(line, known) for line in rest]
    if not rows:
        say("nothing is told of it")
        return
    print_table(COLUMNS, rows)
    say(_sum(tasks, known))


def _rows(task: TaskAccount, known: Roster | None) -> Iterable[tuple[object, ...]]:
    """A row for each thing that happened in a task; the first one says what the task is."""

    def row(
        at: datetime | None, what: str, about: str | None, attempt: int | None, *rest: object
    ) -> tuple[object, ...]:
        head = (when(at), task.order[:8], task.position, task.kind, _name(known, task.orchestrator))
        return (*head, what, about, attempt, *rest)

    end = task.state if task.reason is None else f"{task.state}: {task.reason}"
    yield row(
        task.first,
        "task",
        f"{(task.dataset or '')[:8]}@{task.version}",
        task.attempts,
        end,
        _name(known, task.sender),
        None,
    )
    for share in task.shares:
        outcome = "asked" if share.received is None else "received"
        yield row(
            share.asked or share.received,
            "key share",
            None,
            share.attempt,
            outcome,
            _name(known, share.of),
            None,
        )
    for run in task.runs:
        cage = "" if run.cage is None else f", cage {short(run.cage)}"
        outcome = f"{run.outcome or 'not known'}{cage}"
        yield row(
            run.started or run.ended, f"run {run.run}", short(run.image), run.attempt, outcome, None, None
        )
    for left in task.left:
        number = "" if left.n is None else f" {left.n}"
        tries = f", {left.tries} tries" if left.tries > 1 else ""
        about = None if left.digest is None else short(left.digest)
        yield row(
            left.first,
            f"{left.what}{number} out",
            about,
            None,
            f"{left.state}{tries}",
            _name(known, left.to),
            left.bytes,
        )


def _refusal(line: Line, known: Roster | None) -> tuple[object, ...]:
    told = values_of(line)
    order = told.get("order_id")
    who = told.get("who") or told.get("orchestrator")
    outcome = told.get("code") or told.get("reason")
    uid = f"user {told['uid']}" if told.get("uid") is not None else None
    return (
        when(line.at),
        None if order is None else str(order)[:8],
        told.get("position"),
        told.get("kind"),
        _name(known, None if who is None else str(who)),
        line.name,
        None,
        None,
        outcome,
        uid,
        None,
    )


def _sum(tasks: Sequence[TaskAccount], known: Roster | None) -> str:
    runs = sum(len(task.runs) for task in tasks)
    orders = len({task.order for task in tasks})
    total = sum(task.bytes_left for task in tasks)
    words = (
        f"{len(tasks)} tasks of {orders} orders, {runs} runs; {total} bytes ({size(total)}) left this host"
    )
    to = [
        f"{_name(known, keyid) or 'nobody known'} {told['bytes']}"
        for keyid, told in _recipients(tasks, known).items()
    ]
    return words + (": " + ", ".join(to) if to else "")


def _recipients(tasks: Sequence[TaskAccount], known: Roster | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        for left in task.left:
            told = found.setdefault(left.to or "", {"name": _name(known, left.to), "bytes": 0, "things": 0})
            told["bytes"] += left.bytes
            told["things"] += 1
    return found


def _document(tasks: Sequence[TaskAccount], rest: Sequence[Line], known: Roster | None) -> dict[str, Any]:
    names = {one.keyid: one.name for one in (known.entries if known else ())}
    return {
        "tasks": [{**msgspec.structs.asdict(task), "bytes_left": task.bytes_left} for task in tasks],
        "elsewhere": [
            {"seq": line.seq, "at": line.at, "name": line.name, "values": values_of(line)} for line in rest
        ],
        "bytes_left": sum(task.bytes_left for task in tasks),
        "recipients": _recipients(tasks, known),
        "names": names,
    }
