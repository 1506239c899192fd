"""`deliveries`: what must reach orchestrators and peers, and what became of it."""

from typing import Annotated

import typer

from agent.api.views import DeliveryPage, DeliveryView
from agent.cli.here import Refused, here_of
from agent.cli.out import JsonFlag, print_json, say, short, warn, when
from agent.domain.strict_json import encode
from agent.ports.ledger import DeliveryState

app = typer.Typer(help="What this host has to tell others: hand-offs, reports, results.")

MOST_CHARACTERS = 200  # of the last error

IdsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="Deliveries, as `list` names them.")]


@app.command("list")
def list_deliveries(
    context: typer.Context,
    dead: Annotated[bool, typer.Option("--dead", help="Only what waits for your decision.")] = False,
    pending: Annotated[bool, typer.Option("--pending", help="Only what is still being tried.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List what is not acknowledged yet, and what was refused for good or came too late: that waits for your decision."""
    states = [name for name, is_asked in (("dead", dead), ("pending", pending)) if is_asked]
    query = "&".join(f"state={state}" for state in states)
    with here_of(context).operator() as desk:
        page = desk.get(f"/v1/deliveries?{query}" if query else "/v1/deliveries", DeliveryPage)
    if as_json:
        print_json(page)
        return
    for delivery in page.deliveries:
        _print(delivery)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(page.counts.items()))
    say(f"in all: {counts}" if any(page.counts.values()) else "everything was acknowledged")
    if page.counts.get(DeliveryState.DEAD):
        say("decide: dc-compute deliveries retry ID or dc-compute deliveries drop ID")


@app.command()
def retry(context: typer.Context, ids: IdsArgument, as_json: JsonFlag = False) -> None:
    """Send these again at once. A refused hand-off is told to its orchestrator as sent again."""
    _decide(context, ids, "retry", as_json=as_json)


@app.command()
def drop(context: typer.Context, ids: IdsArgument, as_json: JsonFlag = False) -> None:
    """Give these up for good. A hand-off that is still tried ends its order, and its orchestrator is told."""
    _decide(context, ids, "drop", as_json=as_json)


def _decide(context: typer.Context, ids: list[str], act: str, *, as_json: bool) -> None:
    """Each in turn; one that is refused keeps the others from nothing. Raises: AgentUnreachable."""
    views: list[DeliveryView] = []
    refusals: list[Refused] = []
    with here_of(context).operator() as desk:
        for name in ids:
            try:
                body = encode({"delivery": name, "act": act})
                views.append(desk.post("/v1/deliveries", body, DeliveryView))
            except Refused as refusal:
                refusals.append(refusal)
    if as_json:
        print_json({"deliveries": views})
    else:
        for view in views:
            say(f"{view.id} is {view.state}")
    for one in refusals[:-1]:
        warn(f"{one.code}: {one}")
    if refusals:
        raise refusals[-1]


def _print(delivery: DeliveryView) -> None:
    say(
        f"{delivery.id}  {delivery.state}, to {short(delivery.target)}, since {when(delivery.created_at)} UTC"
    )
    if delivery.attempts or delivery.last_error:
        told = (delivery.last_error or "no answer")[:MOST_CHARACTERS]
        following = f"; next {when(delivery.next_try_at)}" if delivery.state is DeliveryState.PENDING else ""
        say(f"  tried {delivery.attempts} times in vain{following}: {told}")
