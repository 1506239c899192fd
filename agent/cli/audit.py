"""`verify`: an order, its receipts and a model judged off line. No agent is asked, and no setting is needed."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.here import here_of, read_file
from agent.cli.out import JsonFlag, clean, complain, print_json, print_table, say, short, when
from agent.domain.chain import plan
from agent.domain.ids import Digest, digest_from_hex
from agent.domain.orders import MAX_ORDER_BYTES
from agent.domain.receipts import MAX_RECEIPT_BYTES, Outcome, Receipt, SignedReceipt
from agent.domain.traces import TraceId, own_trace
from agent.errors import BadSettings, BrokenLink, DigestMismatch
from agent.trust.audit import Audit, Fault, Link, audit_chain
from agent.trust.roster import Roster

NOT_VERIFIED = 4
PIECE_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(verify)


def verify(
    context: typer.Context,
    order: Annotated[Path, typer.Argument(help="The order's envelope (order.json of `receipts --out`).")],
    receipts: Annotated[
        list[Path] | None, typer.Argument(help="The receipts' envelopes, by position.")
    ] = None,
    roster: Annotated[
        Path | None, typer.Option("--roster", metavar="FILE", help="Who is who; default: the agent's own.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="Check that this is the model the chain left."),
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Also demand that every task of the order is done.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say who ran what on which data in which cage, or which link is broken (exit code 4). Works off line."""
    known = roster_in(here_of(context).settings.trust.roster if roster is None else roster)
    chain = [read_file(path, limit_bytes=4 * MAX_RECEIPT_BYTES) for path in receipts or ()]
    audit = audit_chain(read_file(order, limit_bytes=2 * MAX_ORDER_BYTES), chain, known)
    faults = [*_faults(audit, [order, *(receipts or ())]), *_model_faults(audit, model)]
    if complete and not audit.is_complete:
        missing = ", ".join(str(task.position) for task in audit.remaining)
        faults.append(
            ("the chain", Fault(BrokenLink.code, f"it is not complete: nothing done is told of {missing}"))
        )
    if as_json:
        print_json(_document(audit, known, faults, model))
    else:
        _print(audit, known)
    for what, fault in faults:
        complain(
            fault.code,
            f"{what}: {fault.detail}",
            "Whoever gave you this file has altered it, or was deceived.",
        )
    if faults:
        raise typer.Exit(NOT_VERIFIED)
    if not as_json:
        say(_verdict(audit, model))


def roster_in(path: Path) -> Roster:
    try:
        return Roster.from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as cause:
        raise BadSettings(f"the roster {path} cannot be read: {cause}") from cause


# ------------------------------------------------------------------ the judgement


def _faults(audit: Audit, paths: list[Path]) -> list[tuple[str, Fault]]:
    """(what, why) of everything in the chain that does not hold."""
    found = [] if audit.order_fault is None else [(f"the order in {paths[0]}", audit.order_fault)]
    for link in audit.links:
        if link.fault is not None:
            found.append((f"receipt {link.position} in {paths[link.position + 1]}", link.fault))
    return found


def _model_faults(audit: Audit, model: Path | None) -> list[tuple[str, Fault]]:
    if model is None:
        return []
    if audit.final_model is None:
        return [(str(model), Fault(BrokenLink.code, "no sound chain says what the model must be"))]
    digest = digest_of_file(model)
    if digest != audit.final_model:
        why = f"it is {digest}, the last receipt tells of {audit.final_model}"
        return [(f"the model in {model}", Fault(DigestMismatch.code, why))]
    return []


def digest_of_file(path: Path) -> Digest:
    """The digest of a file's bytes, however large. Raises: BadSettings when it cannot be read."""
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                sha256.update(piece)
    except OSError as cause:
        raise BadSettings(f"{path} cannot be read: {cause.strerror}") from cause
    return digest_from_hex(sha256.hexdigest())


# ------------------------------------------------------------------ telling


def name_of(roster: Roster, keyid: str) -> str:
    entry = next((entry for entry in roster.entries if entry.keyid == keyid), None)
    return short(keyid) if entry is None else entry.name


def _print(audit: Audit, roster: Roster) -> None:
    if audit.order is not None:
        signed = audit.order
        count = len(plan(signed.order))
        say(
            f"order {signed.order.id}, signed by {name_of(roster, signed.signer)} ({short(signed.signer)}), {count} tasks"
        )
    columns = ("pos#", "task~", "dataset", "agent", "finished (UTC)", "cage~", "model", "score#", "holds~")
    print_table(columns, [_row(link, roster) for link in audit.links])
    traces = _traces(audit)
    if traces:
        say(f"trace {', '.join(traces)}")


def _traces(audit: Audit) -> tuple[TraceId, ...]:
    """By which the chain is found in the hosts' logs, as its receipts tell it: one, where they agree."""
    told = [link.receipt.receipt.trace_id for link in audit.links if link.receipt is not None]
    own = [own_trace(audit.order.digest)] if audit.order is not None and not told else []
    return tuple(dict.fromkeys([*told, *own]))


def _row(link: Link, roster: Roster) -> tuple[object, ...]:
    holds = "yes" if link.fault is None else f"NO: {link.fault.code}"
    if link.receipt is None:
        return (link.position, *(None,) * 7, holds)
    told = link.receipt.receipt
    return (
        link.position,
        told.task.kind if told.outcome is Outcome.DONE else f"{told.task.kind} failed ({told.reason})",
        f"{told.task.dataset[:8]}@{told.task.version}",
        name_of(roster, link.receipt.signer),
        when(told.finished)[: len("2026-01-01 00:00")],
        _cage(told),
        short(told.model_out)[:8],
        told.score,
        holds,
    )


def _cage(receipt: Receipt) -> str:
    if receipt.sandbox is None:
        return "never started"
    absent = f", lacks {' '.join(receipt.sandbox.absent)}" if receipt.sandbox.absent else ""
    approved = [use for use in receipt.images if use.approved is not None]
    absent += "".join(f", {use.role} image approved {when(use.approved)[:10]}" for use in approved)
    engine = receipt.sandbox.version.partition(",")[0]
    return (
        engine + absent
        if engine.startswith(receipt.sandbox.runtime)
        else f"{receipt.sandbox.runtime} {engine}{absent}"
    )


def _verdict(audit: Audit, model: Path | None) -> str:
    words = f"verified: {len(audit.links)} receipts hold and link"
    if audit.remaining:
        words += f"; {len(audit.remaining)} tasks are still to be told of"
    if audit.final_model is not None:
        words += f"; the model is {audit.final_model}" + ("" if model is None else f", and {model} is it")
    return words + ". Who holds which dataset was not judged: only storage knows."


def _document(
    audit: Audit, roster: Roster, faults: list[tuple[str, Fault]], model: Path | None
) -> dict[str, Any]:
    """The same for programs."""
    signed = audit.order
    return {
        "is_verified": not faults,
        "is_complete": audit.is_complete,
        "order": None
        if signed is None
        else {"id": signed.order.id, "digest": signed.digest, "signer": signed.signer},
        "traces": _traces(audit),
        "links": [_link(link, roster) for link in audit.links],
        "remaining": [task.position for task in audit.remaining],
        "final_model": audit.final_model,
        "is_model_checked": model is not None,
        "faults": [
            {"what": clean(what), "code": fault.code, "detail": fault.detail} for what, fault in faults
        ],
    }


def _link(link: Link, roster: Roster) -> dict[str, Any]:
    told = _told(link.receipt, roster) if link.receipt is not None else {}
    return {"position": link.position, "fault": link.fault, **told}


def _told(signed: SignedReceipt, roster: Roster) -> dict[str, Any]:
    receipt = signed.receipt
    return {
        "digest": signed.digest,
        "agent": signed.signer,
        "agent_name": name_of(roster, signed.signer),
        "task": receipt.task,
        "outcome": receipt.outcome,
        "reason": receipt.reason,
        "started": receipt.started,
        "finished": receipt.finished,
        "model_in": receipt.model_in,
        "model_out": receipt.model_out,
        "outputs": receipt.outputs,
        "images": receipt.images,
        "sandbox": receipt.sandbox,
        "score": receipt.score,
        "trace": receipt.trace_id,
    }
