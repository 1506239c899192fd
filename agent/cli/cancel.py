"""`cancel`: the operator ends an order on this host."""

from typing import Annotated

import typer

from agent.api.cancelling import CancelBody
from agent.api.views import CancellationView
from agent.cli.here import here_of
from agent.cli.orders import order_path
from agent.cli.out import JsonFlag, print_json, say, short
from agent.domain.strict_json import encode


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(cancel)


def cancel(
    context: typer.Context,
    order: Annotated[str, typer.Argument(help="An order's id.")],
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the record of this host.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """End an order on this host, now and when it comes back: its container is killed, its orchestrator is told.

    Other hosts are not told to stop: only the order's orchestrator can sign that. Where the order went on, it goes on.
    """
    with here_of(context).operator() as desk:
        view = desk.post(order_path(order, "/cancel"), encode(CancelBody(reason=reason)), CancellationView)
    if as_json:
        print_json(view)
        return
    for job, state in view.jobs.items():
        say(f"job {job} is {state}")
    if view.next_agent is not None:
        say(f"the order went on to {short(view.next_agent)}: ask its orchestrator to cancel it there")
    say("what comes back of it to this host ends too, until the order expires")
