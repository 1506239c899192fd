"""`policy show|check`: what the operator lets run here."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agent.cli.here import here_of, read_file
from agent.cli.orders import MAX_FILE_BYTES
from agent.cli.out import JsonFlag, print_json, print_table, say
from agent.domain.chain import plan
from agent.errors import PolicyRefused
from agent.trust.policy import HostPolicy

app = typer.Typer(help="The host's policy: whose orders, which images, datasets and kinds of task run here.")


@app.command()
def show(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Show the policy in force."""
    from agent.wiring import read_policy

    settings = here_of(context).settings
    policy = read_policy(settings)
    if as_json:
        print_json(policy)
        return
    rows = [
        ("orchestrators", _lines(policy.orchestrators)),
        ("images", _lines(policy.images)),
        ("others are", "held for your word" if policy.hold_unknown else "refused"),
        ("datasets", _lines(policy.datasets)),
        ("kinds", _lines(policy.kinds)),
        ("may be missing", _lines(policy.accept_missing)),
        (
            "ceilings",
            "\n".join(f"{name} {value}" for name, value in msgspec.structs.asdict(policy.ceilings).items()),
        ),
    ]
    for name, told in rows:
        say(f"{name:<15} {told.splitlines()[0]}")
        for line in told.splitlines()[1:]:
            say(f"{'':<15} {line}")
    say(f"{'digest':<15} {policy.digest}")
    if not admits_anything(policy):
        say(f"Nothing runs here: a list is empty. Edit {settings.trust.policy}.")


@app.command()
def check(
    context: typer.Context,
    order: Annotated[Path | None, typer.Argument(help="An order's envelope: would it run here?")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check the policy's file, or an order against it: exit code 1 when a task of it would be refused.

    What you approved or denied is in the ledger, not in this file: `dc-compute held IMAGE` tells it.
    """
    from agent.trust.signed import open_order
    from agent.wiring import read_policy, read_roster

    settings = here_of(context).settings
    policy = read_policy(settings)
    if order is None:
        if as_json:
            print_json({"digest": policy.digest, "admits_anything": admits_anything(policy)})
        else:
            say(
                f"{settings.trust.policy} is well formed"
                + ("" if admits_anything(policy) else " and admits nothing")
            )
        return
    signed = open_order(read_file(order, limit_bytes=MAX_FILE_BYTES), read_roster(settings), None)
    verdicts: list[dict[str, Any]] = []
    for task in plan(signed.order):
        verdict = {"position": task.position, "kind": task.kind, "dataset": str(task.dataset)}
        try:
            verdicts.append({**verdict, "refusal": None, "held_for": policy.admit_or_hold(signed, [task])})
        except PolicyRefused as error:
            verdicts.append({**verdict, "refusal": error.detail, "held_for": ()})
    if as_json:
        print_json({"order": signed.order.id, "tasks": verdicts})
    else:
        rows = [(v["position"], v["kind"], v["dataset"], _verdict(v)) for v in verdicts]
        print_table(("pos#", "task", "dataset", "verdict~"), rows)
    if any(verdict["refusal"] for verdict in verdicts):
        raise typer.Exit(1)


def _verdict(told: dict[str, Any]) -> str:
    if told["held_for"]:
        return f"waits for your word on {', '.join(told['held_for'])}, unless you approved it"
    return told["refusal"] or "runs here"


def admits_anything(policy: HostPolicy) -> bool:
    """Whether any order at all could run: no list is empty, but that of images where others are held."""
    images = policy.images or policy.hold_unknown
    return all((policy.orchestrators, images, policy.datasets, policy.kinds))


def _lines(entries: tuple[str, ...] | str) -> str:
    if isinstance(entries, str):
        return "every one of this host"
    return "\n".join(entries) or "none"
