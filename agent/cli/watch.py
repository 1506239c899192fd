"""`watch`: an order's chain, or all jobs of this host, live: looked at again whenever the agent's stream tells of something."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec.structs import replace

from agent.api.endings import Ending, ending_of
from agent.api.views import JobPage, JobView, OrderView
from agent.cli.here import AgentOption, Desk, Here, SignOption, here_of
from agent.cli.orders import chain_table, find_agent, get_order, jobs_table, order_path
from agent.cli.out import JsonFlag, console, print_json, warn
from agent.domain.ids import KeyId
from agent.errors import AgentUnreachable, BadSettings
from agent.ports.client import ApiAnswer, Client
from agent.trust.keys import SigningKey

__all__ = ["Ending", "ending_of"]

CALM_S = 0.1  # between two looks, however much happens
IDLE_S = 10.0  # a look even when the stream tells of nothing
AGAIN_S = 1.0  # before a stream that ended is taken up again
PATIENCE_S = 300.0  # for an agent that answered before and does not now: it may be starting again


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(watch)


def watch(
    context: typer.Context,
    order: Annotated[
        str | None, typer.Argument(help="An order's id; without one: every job of this host.")
    ] = None,
    here_only: Annotated[
        bool, typer.Option("--here", help="End as soon as this host has nothing left to do for the order.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=60, help="Seconds between two looks where the agent has no stream.")
    ] = 1.0,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Give up after so many seconds, exit code 1.")
    ] = None,
    agent: AgentOption = None,
    sign_with: SignOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Watch an order's chain until it ends: exit code 0 when it is done, 1 when it failed, expired or was cancelled."""
    here = here_of(context)
    deadline = None if timeout is None else time.monotonic() + timeout
    with _asked(here, agent, sign_with) as desk, _screen(as_json) as show:
        if order is None:
            target = "/v1/events?name=job" if agent is None else None
            for _ in _looks(desk.client, target, every, deadline):
                show(desk.get("/v1/orders?limit=30", JobPage))
            raise typer.Exit(0)
        names, view = _names(here), None
        for view in _views(desk, order, every, deadline):
            show(view if as_json else _Chain(view, names))
            ending = ending_of(view, datetime.now(UTC))
            if ending is Ending.DONE or (here_only and ending is Ending.ELSEWHERE):
                raise typer.Exit(0)
            if ending is Ending.LOST:
                raise typer.Exit(1)
    warn(f"order {order} had not ended after {timeout:.0f} s")
    raise typer.Exit(1)


class _Chain(msgspec.Struct, frozen=True):
    """An order to be drawn with the names of agents."""

    view: OrderView
    names: dict[KeyId, str]


@contextmanager
def _asked(here: Here, who: str | None, sign_with: Path | None) -> Iterator[Desk]:
    """The agent that is asked: the own one as its operator, or another by signed requests. Raises: BadSettings."""
    if who is None:
        with here.operator() as desk:
            yield desk
        return
    from agent.wiring import open_agent, read_roster

    if sign_with is None:
        raise BadSettings("--agent needs --sign-with KEY: another agent answers signed requests")
    entry = find_agent(read_roster(here.settings), who)
    with open_agent(here.settings, entry, SigningKey.load(sign_with)) as client:
        yield Desk(client)


def _views(desk: Desk, order: str, every_s: float, deadline: float | None) -> Iterator[OrderView]:
    """The order, again and again. An agent that does not answer any more is waited for. Raises: AgentUnreachable, Refused."""
    answered: float | None = None
    for _ in _looks(desk.client, order_path(order, "/events"), every_s, deadline):
        try:
            view = get_order(desk, order)
        except AgentUnreachable:
            if answered is None or time.monotonic() - answered > PATIENCE_S:
                raise
            time.sleep(CALM_S)
            continue
        answered = time.monotonic()
        yield view


def _looks(client: Client, target: str | None, every_s: float, deadline: float | None) -> Iterator[None]:
    """Once at first, then whenever the stream at `target` tells of something, until the deadline; without one, by the clock."""
    yield
    bell = _Bell(client, target)
    while deadline is None or time.monotonic() < deadline:
        left_s = IDLE_S if bell.is_heard else every_s
        bell.wait(left_s if deadline is None else max(0.0, min(left_s, deadline - time.monotonic())))
        yield
        time.sleep(CALM_S)


class _Bell:
    """Rings when a stream tells of something. A thread reads it, and takes it up again behind the last event it had."""

    def __init__(self, client: Client, target: str | None) -> None:
        self.is_heard = False  # a stream is open: there is no need to look by the clock
        self._client, self._rings = client, queue.SimpleQueue[None]()
        if target is not None:
            threading.Thread(target=self._listen, args=(target,), name="stream", daemon=True).start()

    def wait(self, timeout_s: float) -> None:
        """Returns at a ring, or after that long. Rings that came meanwhile are one."""
        try:
            self._rings.get(timeout=timeout_s)
            while True:
                self._rings.get_nowait()
        except queue.Empty:
            return

    def _listen(self, target: str) -> None:
        last: str | None = None
        while True:
            try:
                with self._client.events(target, last) as events:
                    if isinstance(events, ApiAnswer):
                        if events.status in {404, 405}:  # an agent that has no streams yet
                            return
                    else:
                        self.is_heard = True
                        self._rings.put(None)  # for what happened before it was open
                        for event in events:
                            last = event.id or last
                            self._rings.put(None)
            except (
                AgentUnreachable,
                RuntimeError,
            ):  # RuntimeError: the command is over, and its client closed
                pass
            self.is_heard = False
            self._rings.put(None)
            time.sleep(AGAIN_S)


def _names(here: Here) -> dict[KeyId, str]:
    """The names of agents, when the roster can be read by who watches."""
    from agent.wiring import read_roster

    try:
        return {entry.keyid: entry.name for entry in read_roster(here.settings).agents()}
    except BadSettings:
        return {}


@contextmanager
def _screen(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Shows a value: as a line of JSON when it changed, in place on a terminal, else as a table when it changed."""
    if not as_json and sys.stdout.isatty():
        from rich.live import Live

        with Live(console=console(), auto_refresh=False) as live:
            yield lambda shown: live.update(_drawn(shown), refresh=True)
        return
    before: list[bytes] = [b""]

    def show(shown: Any) -> None:
        still = _without_progress(
            shown
        )  # what changes every second is shown, and is no reason to show it again
        told = msgspec.json.encode(still) if as_json else _text_of(_drawn(still))
        if told != before[0]:
            before[0] = told
            if as_json:
                print_json(shown)
            else:
                console().print(_drawn(shown))

    yield show


def _drawn(shown: Any) -> Any:
    return jobs_table(shown.jobs) if isinstance(shown, JobPage) else chain_table(shown.view, shown.names)


def _without_progress(shown: Any) -> Any:
    match shown:
        case _Chain():
            return replace(shown, view=_without_progress(shown.view))
        case _:
            return replace(shown, jobs=tuple(_at_rest(job) for job in shown.jobs))


def _at_rest(job: JobView) -> JobView:
    """The job, and of its progress only what it is at, not how far it came."""
    if job.progress is None:
        return job
    at = replace(job.progress, done=None, total=None, limit_s=None, at=job.progress.since)
    return replace(job, progress=at)


def _text_of(drawn: Any) -> bytes:
    made = console()
    with made.capture() as captured:
        made.print(drawn)
    return captured.get().encode()
