"""`status`, `pause`, `drain`, `resume`: what the host does as a whole."""

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from agent.api.controlling import ControlBody
from agent.api.views import ControlView, Readiness
from agent.cli.here import Desk, here_of, read_answer
from agent.cli.out import JsonFlag, print_json, print_table, say, warn, when
from agent.domain.control import Mode
from agent.domain.jobs import JobState
from agent.domain.strict_json import encode

EVERY_S = 1.0

WORDS = {
    Mode.RUNNING: "takes orders and runs tasks",
    Mode.PAUSED: "takes orders, starts no task; what runs ends by itself",
    Mode.DRAINING: "takes no orders, starts no task; what runs ends by itself",
    Mode.RESTORED: "was restored from a backup: nothing runs or leaves before orchestrators told what they know",
}

ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the record of this host.")
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(status)
    app.command()(pause)
    app.command()(drain)
    app.command()(resume)


def status(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Show what this host does, its jobs by state, and what keeps it from taking orders."""
    with here_of(context).operator() as desk:
        view = desk.get("/v1/control", ControlView)
        answer = desk.client.get("/ready")
    ready = read_answer(answer, Readiness, also={503})
    if as_json:
        print_json({"control": view, "ready": ready})
        return
    _print(view)
    rows = [(state, count) for state, count in view.jobs.items() if count]
    if rows:
        print_table(("jobs", "count#"), rows)
    for check in ready.checks:
        if not check.is_ok:
            say(f"not ready: {check.name}: {check.detail or check.code}")


def pause(context: typer.Context, reason: ReasonOption = None, as_json: JsonFlag = False) -> None:
    """Start no task any more. Orders are still taken, what runs ends by itself, and it stays so across restarts."""
    with here_of(context).operator() as desk:
        view = _say(desk, ControlBody(mode="paused", reason=reason))
    print_json(view) if as_json else _print(view)


def resume(
    context: typer.Context,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also after a restore, before orchestrators told what happened since."),
    ] = False,
    reason: ReasonOption = None,
    if_reason: Annotated[
        str | None,
        typer.Option("--if-reason", metavar="TEXT", help="Only a drain that was begun for this reason."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """End a pause or a drain: tasks start again, and orders are taken."""
    with here_of(context).operator() as desk:
        if if_reason is not None:
            view = desk.get("/v1/control", ControlView)
            if (view.mode, view.reason) != (Mode.DRAINING, if_reason):
                print_json(view) if as_json else _print(view)
                return
        view = _say(desk, ControlBody(mode="running", reason=reason, force=force))
    print_json(view) if as_json else _print(view)


def drain(
    context: typer.Context,
    deadline: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="Wait no longer than this: exit code 5 when a task still runs."
        ),
    ] = None,
    if_running: Annotated[
        bool,
        typer.Option("--if-running", help="Not when somebody paused or drained the host: their word stays."),
    ] = False,
    reason: ReasonOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take no orders, start no task, and wait until none runs. It stays so, across restarts, until `resume`.

    What still runs at the deadline goes on, and a worker that starts later goes on waiting for it.
    """
    from agent.cli.app import ExitCode

    ends_at = None if deadline is None else time.monotonic() + deadline
    until = None if deadline is None else datetime.now(UTC) + timedelta(seconds=deadline)
    with here_of(context).operator() as desk:
        if if_running:
            view = desk.get("/v1/control", ControlView)
            if view.mode is not Mode.RUNNING:
                print_json(view) if as_json else _print(view)
                return
        view = _say(desk, ControlBody(mode="draining", until=until, reason=reason))
        is_over = _wait(desk, view, ends_at, is_quiet=as_json)
        view = desk.get("/v1/control", ControlView)
    if as_json:
        print_json(view)
    if view.mode is not Mode.DRAINING:
        warn(f"somebody ended the drain: the host is {view.mode}")
        raise typer.Exit(ExitCode.FAILED)
    if not is_over:
        left = view.jobs[JobState.RUNNING]
        warn(f"still running after {deadline:g} s, and goes on by itself: {left}")
        raise typer.Exit(ExitCode.NOT_YET)
    if not as_json:
        say("nothing runs here; dc-compute resume ends the drain")


def _wait(desk: Desk, view: ControlView, ends_at: float | None, *, is_quiet: bool) -> bool:
    """Whether nothing runs any more, told as it goes; False when time was over or the drain was ended."""
    told = None
    while view.mode is Mode.DRAINING:
        running = view.jobs[JobState.RUNNING]
        if running == 0:
            return True
        if running != told and not is_quiet:
            say(f"still running: {running}")
            told = running
        if ends_at is not None and time.monotonic() + EVERY_S > ends_at:
            time.sleep(max(0.0, ends_at - time.monotonic()))
            return desk.get("/v1/control", ControlView).jobs[JobState.RUNNING] == 0
        time.sleep(EVERY_S)
        view = desk.get("/v1/control", ControlView)
    return False


def _say(desk: Desk, word: ControlBody) -> ControlView:
    return desk.post("/v1/control", encode(word), ControlView)


def _print(view: ControlView) -> None:
    since = "" if view.since is None else f" since {when(view.since)} UTC"
    by = "" if view.uid is None else f" by user {view.uid}"
    why = "" if view.reason is None else f": {view.reason}"
    say(f"{view.mode}{since}{by}{why}")
    say(f"this host {WORDS[view.mode]}")
