"""`watch`: an order's chain, or all jobs of this host, live."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import msgspec
import typer

from agent.api.views import JobPage, OrderView
from agent.cli.here import Here, here_of
from agent.cli.orders import chain_table, get_order, jobs_table
from agent.cli.out import JsonFlag, console, print_json, warn
from agent.domain.ids import KeyId
from agent.domain.jobs import FINAL, JobState
from agent.errors import BadSettings

LOST = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


class Ending(Enum):
    """How an order ended, as far as this host can tell."""

    DONE = "done"
    LOST = "lost"  # failed, cancelled or expired
    ELSEWHERE = "elsewhere"  # nothing is left to do here; another host goes on


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
    every: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two looks.")] = 1.0,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Give up after so many seconds, exit code 1.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Watch an order's chain until it ends: exit code 0 when it is done, 1 when it failed, expired or was cancelled."""
    here = here_of(context)
    deadline = None if timeout is None else time.monotonic() + timeout
    with here.operator() as desk, _screen(as_json) as show:
        if order is None:
            for _ in _looks(every, deadline):
                show(desk.get("/v1/orders?limit=30", JobPage))
            raise typer.Exit(0)
        names = _names(here)
        for _ in _looks(every, deadline):
            view = get_order(desk, order)
            show(view if as_json else chain_table(view, names))
            ending = ending_of(view, datetime.now(UTC))
            if ending is Ending.DONE or (here_only and ending is Ending.ELSEWHERE):
                raise typer.Exit(0)
            if ending is Ending.LOST:
                raise typer.Exit(1)
    warn(f"order {order} had not ended after {timeout:.0f} s")
    raise typer.Exit(1)


def ending_of(view: OrderView, now: datetime) -> Ending | None:
    """How the order ended; None while it goes on here."""
    if any(job.state in LOST for job in view.jobs) or any(task.state in LOST for task in view.chain):
        return Ending.LOST
    if view.chain[-1].state is JobState.DONE:
        return Ending.DONE
    if any(job.state not in FINAL for job in view.jobs):
        return None
    return Ending.LOST if now >= view.expires else Ending.ELSEWHERE


def _looks(every_s: float, deadline: float | None) -> Iterator[None]:
    """Once at first, then after every pause, until the deadline."""
    yield
    while deadline is None or time.monotonic() < deadline:
        time.sleep(every_s)
        yield


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
        told = msgspec.json.encode(shown) if as_json else _text_of(_drawn(shown))
        if told != before[0]:
            before[0] = told
            if as_json:
                print_json(shown)
            else:
                console().print(_drawn(shown))

    yield show


def _drawn(shown: Any) -> Any:
    return jobs_table(shown.jobs) if isinstance(shown, JobPage) else shown


def _text_of(drawn: Any) -> bytes:
    made = console()
    with made.capture() as captured:
        made.print(drawn)
    return captured.get().encode()
