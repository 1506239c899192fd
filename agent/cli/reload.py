"""`reload`: tell the services that their files changed, and whether each took it."""

import os
import re
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from agent.api.services import ServicesView
from agent.cli.here import Here, Refused, here_of
from agent.cli.out import JsonFlag, print_json, say, warn, when
from agent.errors import AgentUnreachable, BadSettings
from agent.pipeline.services import Service, running

LOOK_EVERY_S = 0.05
PATIENCE_S = 30.0


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(name="reload")(reload)


def reload(
    context: typer.Context,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait.")] = PATIENCE_S,
    as_json: JsonFlag = False,
) -> None:
    """Let the running services read roster, policy, certificate and log level again, and tell whether each took them.

    As root, or as the agent's user. Exit code 1 when a service refused: it goes on with what it had. What else changed in
    the settings waits for a restart, and is named.
    """
    from agent.cli.app import ExitCode

    folder = here_of(context).settings.paths.services
    asked = ask_all(folder)
    done = _wait(folder, asked, time.monotonic() + timeout)
    if as_json:
        print_json({"services": done})
    else:
        for one in done:
            say(_told(one))
    for one in done:
        if one.last is not None and one.last.waits and not as_json:
            say(f"{one.service} needs a restart for {', '.join(one.last.waits)}")
    if missing := set(asked) - {one.pid for one in done}:
        warn(f"no answer within {timeout:g} s from process {', '.join(map(str, sorted(missing)))}")
        raise typer.Exit(ExitCode.NOT_YET)
    if any(one.last is not None and not one.last.is_taken for one in done):
        raise typer.Exit(ExitCode.FAILED)


def ask_all(folder: Path) -> dict[int, int]:
    """When each running service was asked, on the monotonic clock, by its process. Raises: BadSettings, AgentUnreachable.

    A service writes its own file: root signals no process of anybody else that one of them names.
    """
    asked = {}
    try:
        for one in running(folder):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended just now
                if _user_of(one.pid) != (folder / one.file).lstat().st_uid:
                    continue
                begun = time.monotonic_ns()
                os.kill(one.pid, signal.SIGHUP)
                asked[one.pid] = begun
    except PermissionError as cause:
        raise BadSettings(
            "the services are another user's: run this as root or as the agent's user"
        ) from cause
    if not asked:
        raise AgentUnreachable("no service of this agent runs")
    return asked


def _user_of(pid: int) -> int | None:
    """Whose process this is; None for a number of none. Its folder in /proc is root's where its memory is its own.

    Raises: FileNotFoundError, ProcessLookupError.
    """
    if pid <= 0:  # to `kill`: many processes
        return None
    found = re.search(r"(?m)^Uid:\t([0-9]+)", Path("/proc", str(pid), "status").read_text())
    return None if found is None else int(found[1])


def _wait(folder: Path, asked: dict[int, int], ends_at: float) -> tuple[Service, ...]:
    """Every service that answered in time, that is, began a reload after it was asked and ended it."""
    while True:
        done = tuple(one for one in running(folder) if one.pid in asked and one.asked_ns >= asked[one.pid])
        if len(done) == len(asked) or time.monotonic() > ends_at:
            return done
        time.sleep(LOOK_EVERY_S)


def _told(one: Service) -> str:
    last = one.last
    if last is None:  # it answered, so it has one
        return one.service
    if not last.is_taken:
        return f"{one.service} refused, and goes on with what it had [{last.code}]: {last.detail}"
    return f"{one.service} took it: {', '.join(last.changed) or 'nothing changed'}"


def reload_lines(services: Iterable[Service]) -> list[str]:
    """What an operator should know of the last reloads: those that were refused, and what waits for a restart."""
    lines = []
    for one in services:
        if one.last is None:
            continue
        if not one.last.is_taken:
            at = when(one.last.at)
            lines.append(f"not reloaded: {one.service} at {at} UTC [{one.last.code}]: {one.last.detail}")
        if one.last.waits:
            lines.append(f"needs a restart: {one.service}: {', '.join(one.last.waits)}")
    return lines


def services_of(here: Here) -> tuple[Service, ...]:
    """Every service that runs: by their files, or by the operator's socket for who may not read those."""
    try:
        return running(here.settings.paths.services)
    except OSError:
        pass
    try:
        with here.operator() as desk:
            return desk.get("/v1/services", ServicesView).services
    except (AgentUnreachable, Refused):
        return ()
