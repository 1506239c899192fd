"""`submit`, `orders`, `log`, `receipts`: what goes in, and what came of it."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
import typer

from agent.api.doing import ProgressView
from agent.api.views import JobPage, JobView, LogView, OrderView
from agent.cli.files import make_folder, write_new
from agent.cli.here import AgentOption, Desk, Here, SignOption, here_of, read_file
from agent.cli.out import (
    JsonFlag,
    clean,
    console,
    print_json,
    print_table,
    say,
    seconds,
    short,
    short_when,
    table,
    when,
)
from agent.cli.timings import timings_of_chain, timings_of_jobs, timings_table
from agent.domain.ids import KeyId
from agent.domain.jobs import JobState
from agent.domain.orders import LEARNUPLET_TYPE, MAX_ORDER_BYTES, PREDUPLET_TYPE, parse_order
from agent.domain.strict_json import encode, parse
from agent.errors import BadOrder, BadSettings
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster, RosterEntry

ROUTES = {LEARNUPLET_TYPE: "/v1/learnuplets", PREDUPLET_TYPE: "/v1/preduplets"}
MAX_FILE_BYTES = 2 * MAX_ORDER_BYTES


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(submit)
    app.command()(orders)
    app.command(name="log")(show_log)
    app.command()(receipts)


# ------------------------------------------------------------------ submit


def submit(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="An order: its DSSE envelope, or plain JSON with --sign-with.")
    ],
    sign_with: SignOption = None,
    agent: AgentOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Send an order to an agent."""
    here = here_of(context)
    key = None if sign_with is None else SigningKey.load(sign_with)
    envelope, payload_type = read_order(file, key)
    route = ROUTES[payload_type]
    if agent is None:
        with here.operator() as desk:
            job = desk.post(route, envelope, JobView)
    else:
        job = _post_signed(here, agent, key, route, envelope)
    if as_json:
        print_json(job)
    else:
        say(f"order {job.order} is {job.state} at position {job.position}")


def read_order(file: Path, key: SigningKey | None) -> tuple[bytes, str]:
    """The order of this file as an envelope, and its payload type; a plain one is signed with `key`.

    Raises: BadSettings, BadJson, BadOrder, TooLarge.
    """
    from agent.trust.signed import sign_order

    data = read_file(file, limit_bytes=MAX_FILE_BYTES)
    tree = parse(data, limit_bytes=MAX_FILE_BYTES, what=str(file))
    if not isinstance(tree, dict):
        raise BadOrder(f"{file} is no order: it is not a JSON object")
    if "payloadType" in tree:
        payload_type = str(tree["payloadType"])
        if payload_type not in ROUTES:
            raise BadOrder(f"{file} holds {payload_type[:80]!r}, which is no order")
        return data, payload_type
    if key is None:
        raise BadSettings(f"{file} is a plain order: sign it with --sign-with KEY")
    payload_type = LEARNUPLET_TYPE if "train_data" in tree else PREDUPLET_TYPE
    return sign_order(parse_order(payload_type, encode(tree)), key).envelope, payload_type


def _post_signed(here: Here, who: str, key: SigningKey | None, route: str, envelope: bytes) -> JobView:
    from agent.wiring import open_agent, read_roster

    if key is None:
        raise BadSettings(
            "--agent needs --sign-with KEY: another agent takes requests signed by an orchestrator"
        )
    entry = find_agent(read_roster(here.settings), who)
    with open_agent(here.settings, entry, key) as client:
        return Desk(client).post(route, envelope, JobView)


def find_agent(roster: Roster, who: str) -> RosterEntry:
    """The one agent that this URL, name, key id or the beginning of one (8 digits) means. Raises: BadSettings."""
    found = [
        entry
        for entry in roster.agents()
        if who == entry.name
        or (entry.agent_url is not None and who.rstrip("/") == entry.agent_url.rstrip("/"))
        or (len(who) >= 8 and entry.keyid.startswith(who))
    ]
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found or roster.agents()) or "none"
        raise BadSettings(f"{who!r} means {len(found)} agents of the roster ({names})")
    return found[0]


# ------------------------------------------------------------------ orders


def orders(
    context: typer.Context,
    order: Annotated[str | None, typer.Argument(help="An order's id: show its chain.")] = None,
    state: Annotated[
        list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many jobs, newest first.")] = 50,
    after: Annotated[str | None, typer.Option(help="The page after this job.")] = None,
    timings: Annotated[
        bool, typer.Option("--timings", help="Where the time of each task went, phase by phase.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the jobs of this host, or show one order with its chain."""
    with here_of(context).operator() as desk:
        if order is not None:
            _show_order(get_order(desk, order), timings=timings, as_json=as_json)
            return
        query: list[tuple[str, Any]] = [("limit", limit), *(("state", each.value) for each in state or ())]
        if after is not None:
            query.append(("after", after))
        page = desk.get(f"/v1/orders?{urlencode(query)}", JobPage)
    if as_json:
        print_json({"jobs": timings_of_jobs(page.jobs), "next": page.next} if timings else page)
        return
    console().print(timings_table(timings_of_jobs(page.jobs)) if timings else jobs_table(page.jobs))
    if page.next is not None:
        say(f"more: dc-compute orders --after {page.next}")


def _show_order(view: OrderView, *, timings: bool, as_json: bool) -> None:
    if timings and as_json:
        print_json({"order": view.id, "trace": view.trace, "tasks": timings_of_chain(view)})
    elif as_json:
        print_json(view)
    else:
        console().print(timings_table(timings_of_chain(view)) if timings else chain_table(view))
        say(f"trace {view.trace}")


def get_order(desk: Desk, order: str) -> OrderView:
    """One order. Raises: AgentUnreachable, Refused."""
    return desk.get(order_path(order), OrderView)


def order_path(order: str, part: str = "") -> str:
    """The path of an order that the command line names."""
    from urllib.parse import quote

    return f"/v1/orders/{quote(order, safe='')}{part}"


def jobs_table(jobs: tuple[JobView, ...]) -> Any:
    """The table of `orders`."""
    now = datetime.now(UTC)
    rows = [
        (job.order, job.position, job.kind, job.state, f"{job.attempt}/{job.max_attempts}", short_when(job.changed_at),
         job.score, job.reason or told_progress(job.progress, now))
        for job in jobs
    ]  # fmt: skip
    return table(
        ("order", "pos#", "task", "state", "try#", "changed (UTC)", "score#", "reason, progress~"), rows
    )


def told_progress(progress: ProgressView | None, now: datetime) -> str:
    """What a running task is doing, in a few words; what its worker told last, when that is old, is said to be."""
    if progress is None:
        return ""
    words = progress.phase if progress.step is None else f"{progress.phase} {progress.step}"
    if progress.total:
        words += f" {min(100, 100 * (progress.done or 0) // progress.total)} %"
    elif progress.limit_s is not None:
        words += f" {max(0, (now - progress.since).total_seconds()):.0f} of {progress.limit_s} s"
    return f"{words} (not heard of since {short_when(progress.at)})" if progress.is_stale else words


def chain_table(view: OrderView, names: dict[KeyId, str] | None = None) -> Any:
    """The table of one order's chain. `names`: of agents, instead of the beginning of their key ids."""
    names, now = names or {}, datetime.now(UTC)
    doing = {job.position: told_progress(job.progress, now) for job in view.jobs}
    rows = [
        (task.position, task.kind, f"{task.dataset.id[:8]}@{task.dataset.version}", task.state,
         names.get(task.agent, short(task.agent)) if task.agent else "", task.attempt, short_when(task.started),
         seconds(task.wall_s), task.score, task.reason or doing.get(task.position))
        for task in view.chain
    ]  # fmt: skip
    title = f"{view.kind} {view.id} of {short(view.orchestrator)}, until {when(view.expires)} UTC"
    columns = (
        "pos#",
        "task",
        "dataset",
        "state",
        "agent",
        "try#",
        "started (UTC)",
        "took#",
        "score#",
        "reason, progress~",
    )
    return table(columns, rows, title=title)


# ------------------------------------------------------------------ log, receipts


def show_log(
    context: typer.Context,
    order: Annotated[str, typer.Argument(help="An order's id.")],
    as_json: JsonFlag = False,
) -> None:
    """Print what an order's containers wrote on this host. It may carry data: it never leaves the host by itself."""
    with here_of(context).operator() as desk:
        view = desk.get(order_path(order, "/log"), LogView)
    if as_json:
        print_json(view)
        return
    say(f"trace {view.trace}")
    for run in view.runs:
        say(f"── {run.job} · attempt {run.attempt} · {run.run}")
        if run.unopened is not None:
            say(f"not shown: {run.unopened}")
            continue
        sys.stdout.write(clean(run.text, keeps_lines=True).rstrip("\n") + "\n")
    if not view.runs:
        say("no container of this order has written anything on this host")


def receipts(
    context: typer.Context,
    order: Annotated[str, typer.Argument(help="An order's id.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write order.json and receipt-000.json … there, for `verify`."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show or save the signed receipts of an order, as far as they reached this host."""
    with here_of(context).operator() as desk:
        chain = desk.get(order_path(order, "/receipts"), dict[str, Any])
    envelopes = list(chain["receipts"])
    if out is not None:
        make_folder(out)
        for name, envelope in [("order", chain["order"]), *_numbered(envelopes)]:
            path = out / f"{name}.json"
            data = encode(envelope)
            if not write_new(path, data, 0o644) and path.read_bytes() != data:
                raise BadSettings(f"{path} is there already and holds something else")
    if as_json:
        print_json(chain)
    elif out is not None:
        say(f"{len(envelopes)} receipts and the order are in {out}")
    else:
        _print_receipts(envelopes)


def _numbered(envelopes: list[Any]) -> list[tuple[str, Any]]:
    return [(f"receipt-{position:03d}", envelope) for position, envelope in enumerate(envelopes)]


def _print_receipts(envelopes: list[Any]) -> None:
    """What the receipts say; whether they hold is `verify`'s to judge."""
    from agent.domain.receipts import MAX_RECEIPT_BYTES, parse_receipt
    from agent.trust.envelope import parse_envelope

    rows = []
    for envelope in envelopes:
        opened = parse_envelope(msgspec.json.encode(envelope), limit_bytes=MAX_RECEIPT_BYTES)
        told = parse_receipt(opened.payload)
        rows.append((told.position, told.task.kind, told.task.dataset[:8], told.outcome, short(told.agent),
                     when(told.finished), seconds(told.usage.wall_s), told.score, short(opened.digest)))  # fmt: skip
    columns = ("pos#", "task", "dataset", "outcome", "agent", "finished (UTC)", "took#", "score#", "receipt")
    print_table(columns, rows)
