"""`df` and `gc`: who holds this host's room, and what may go."""

from typing import Annotated

import typer

from agent.cli.doctor_patient import owner_file
from agent.cli.files import as_owner_of
from agent.cli.here import here_of
from agent.cli.keys import load_key
from agent.cli.out import JsonFlag, print_json, print_table, say, size


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(df)
    app.command()(gc)


def df(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Show who holds what: ledger, queues, images, workspaces and spool with what is reserved, and what is free.

    Reads through the whole ledger. Run it as root or as the agent's user.
    """
    from agent.pipeline.usage import look
    from agent.wiring import open_host, runtimes

    settings = here_of(context).settings
    with as_owner_of(owner_file(settings)), open_host(settings) as host:
        engines = runtimes(settings, load_key(settings.identity.key).keyid)
        seen = look(host, settings.paths.ledger, settings.paths.queues, engines)
    if as_json:
        print_json(seen)
        return
    print_table(
        ("file system", "holds", "size#", "free#", "promised#", "low mark#", "is low"),
        [
            (
                f"{disk.folder} ({disk.kind})",
                ", ".join(disk.holds),
                _size(disk.size_bytes),
                _size(disk.free_bytes),
                size(disk.promised_bytes),
                _size(disk.low_mark_bytes),
                "NO ORDER IS ACCEPTED" if disk.is_low else None,
            )
            for disk in seen.disks
        ],
    )
    say()
    print_table(
        ("what", "size#", "of#", "reserved beside#", "where", "~"),
        [
            (
                holder.name,
                _size(holder.size_bytes),
                holder.count,
                size(holder.reserved_bytes) if holder.reserved_bytes else None,
                holder.where,
                holder.detail,
            )
            for holder in seen.holders
        ],
    )
    if seen.ledger is None:
        say("The ledger could not be read; `dc-compute doctor` may say why.")


def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Collect garbage now, in the order in which the worker does by itself.

    First workspaces and spool of attempts that are over, then unused images, then logs and bodies of deliveries after [limits]
    log_days, then orders after order_days. Never an open order, nor the log of events.
    """
    from agent.pipeline.resume import tidy
    from agent.wiring import open_host

    settings = here_of(context).settings
    with as_owner_of(owner_file(settings)), open_host(settings) as host:
        gone = tidy(host, is_asked=True, is_rehearsal=dry_run)
    if as_json:
        print_json({"is_rehearsal": dry_run, "gone": gone})
    else:
        print_table(
            ("what", "count#", "size#", "why it stays~"),
            [(one.kind, one.count, _size(one.size_bytes), one.failed) for one in gone],
        )
        say("nothing was changed" if dry_run else "collected")
    if any(one.failed for one in gone):
        raise typer.Exit(1)


def _size(count: int | None) -> str | None:
    return None if count is None else size(count)
