"""`audit verify`, `audit head`, `audit export`: the audit log of this host, read beside the running agent. Nothing here writes
it. An export, and a head that was kept, are verified with nothing but a roster.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import msgspec
import typer

from agent.cli.audit import NOT_VERIFIED, name_of, roster_in
from agent.cli.audit_answers import query
from agent.cli.here import Here, here_of
from agent.cli.out import JsonFlag, complain, print_json, say, warn, when
from agent.domain.audit import FIRST, MAX_HEAD_BYTES, MAX_LINE_BYTES, Head, bytes_of
from agent.domain.ids import Digest
from agent.errors import BadSettings, BrokenLog, LogRestored, LogTruncated
from agent.ports.audit import AuditLog
from agent.trust.audit_log import LogAudit, Verdict, open_head, sign_head
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster

SQLITE: Final = b"SQLite format 3\0"
ENVELOPE: Final = b'{"payloadType"'
ADVICE: Final = {kind.code: kind.advice for kind in (BrokenLog, LogRestored, LogTruncated)}

app = typer.Typer(help="The audit log: verify, export, ask.", no_args_is_help=True)

RosterOption = Annotated[
    Path | None, typer.Option("--roster", metavar="FILE", help="Who is who; default: the agent's own.")
]
LedgerOption = Annotated[
    Path | None, typer.Option("--ledger", metavar="FILE", help="Another ledger than the agent's own.")
]


def moment(text: str) -> datetime:
    """A moment of the command line: 2026-01-31, or 2026-01-31T12:00:00Z; without a zone it is UTC."""
    try:
        told = datetime.fromisoformat(text)
    except ValueError as cause:
        raise typer.BadParameter(f"{text!r} is no date or time as 2026-01-31T12:00:00Z") from cause
    return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)


@app.command()
def verify(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="An export, or a ledger; default: the agent's own ledger."),
    ] = None,
    head: Annotated[
        list[Path] | None,
        typer.Option("--head", metavar="FILE", help="A head or an export kept from before: must be in it."),
    ] = None,
    roster: RosterOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether the audit log is whole, or which line is not (exit code 4). Needs no agent; an export needs no host."""
    here = here_of(context)
    known = _roster(here, roster)
    heads = tuple(open_head(_head_in(path), known) for path in head or ())
    verdict = _judge(here.settings.paths.ledger if file is None else file, LogAudit(known, heads))
    _tell(verdict, known, heads, as_json)


@app.command()
def head(context: typer.Context, ledger: LedgerOption = None) -> None:
    """Print the signed head of the log, to be kept by somebody else: `audit verify --head` holds the log against it."""
    here = here_of(context)
    key = SigningKey.load(here.settings.identity.key)
    with _open(here, ledger) as log:
        seq, digest = log.newest(), None
        for recorded in log.recorded(seq, seq) if seq else ():
            digest = recorded.digest
    _write(sys.stdout.buffer, sign_head(key, seq=seq, digest=digest, at=_now()))


@app.command()
def export(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="FILE|-", help="Where to; - is standard output.")],
    since: Annotated[
        datetime | None, typer.Option("--since", parser=moment, metavar="TIME", help="From then on.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--until", parser=moment, metavar="TIME", help="Up to then.")
    ] = None,
    ledger: LedgerOption = None,
) -> None:
    """Write the log as JSON lines, with a head signed by the agent as the last: whole, or the lines of a time."""
    here = here_of(context)
    key, known = SigningKey.load(here.settings.identity.key), _roster(here, None)
    with _open(here, ledger) as log, _target(target) as out:
        verdict = _export(log, log.between(since, until), key, known, out)
    count = verdict.last - verdict.first + 1 if verdict.first else 0
    warn(f"{count} lines, the last is {verdict.last} with {verdict.digest}")
    _complain(verdict)


app.command()(query)


# ------------------------------------------------------------------ reading


@contextmanager
def _open(here: Here, ledger: Path | None) -> Iterator[AuditLog]:
    from agent.wiring import open_audit

    with open_audit(here.settings.paths.ledger if ledger is None else ledger) as log:
        yield log


def _roster(here: Here, roster: Path | None) -> Roster:
    return roster_in(here.settings.trust.roster if roster is None else roster)


def _now() -> datetime:
    from agent.wiring import now

    return now()


def _judge(file: Path, audit: LogAudit) -> Verdict:
    """The verdict on a ledger or an export, told apart by how the file begins."""
    from agent.wiring import open_audit

    try:
        with file.open("rb") as opened:
            if opened.read(len(SQLITE)) != SQLITE:
                opened.seek(0)
                return _judge_export(opened, audit)
    except OSError as cause:
        raise BadSettings(f"{file} cannot be read: {cause.strerror}") from cause
    with open_audit(file) as log:
        for one in log.recorded(FIRST, log.newest()):
            audit.take_row(one.seq, one.line, one.digest)
        return audit.end_of_ledger(log.numbered())


def _judge_export(opened: BinaryIO, audit: LogAudit) -> Verdict:
    """Line by line: an export may be large. What stands after the signed head is no part of it."""
    while data := opened.readline(MAX_LINE_BYTES):
        if data.startswith(ENVELOPE):
            if opened.readline(1):
                audit.take_bytes(b"what stands after the head")
            return audit.end_of_export(data.rstrip(b"\n"))
        audit.take_bytes(data.rstrip(b"\n"))
    return audit.end_of_export(None)


def _head_in(path: Path) -> bytes:
    """The envelope of a kept head, or of the one that an export ends with. Raises: BadSettings."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - MAX_HEAD_BYTES))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    except OSError as cause:
        raise BadSettings(f"{path} cannot be read: {cause.strerror}") from cause
    if not last.startswith(ENVELOPE):
        raise BadSettings(f"{path} is no head of an audit log, and ends with none")
    return last


# ------------------------------------------------------------------ writing


@contextmanager
def _target(name: str) -> Iterator[BinaryIO]:
    """Standard output, or a new file that appears whole, for its owner alone. Raises: BadSettings."""
    if name == "-":
        yield sys.stdout.buffer
        return
    path = Path(name)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as cause:
        raise BadSettings(f"{path} cannot be written: {cause.strerror}") from cause
    finally:
        beside.unlink(missing_ok=True)


def _export(log: AuditLog, ends: tuple[int, int], key: SigningKey, known: Roster, out: BinaryIO) -> Verdict:
    """Write these lines and their head; the verdict on what was written. A broken log is exported as it is."""
    audit = LogAudit(known)
    first, last = ends
    digest: Digest | None = None
    for one in log.recorded(first, last):
        audit.take_row(one.seq, one.line, one.digest)
        digest = one.digest
        if one.line is not None:
            _write(out, bytes_of(one.line))
    is_newest = max(0, last) == log.newest()
    own = sign_head(key, first=first, seq=last, digest=digest, is_newest=is_newest, at=_now())
    _write(out, own)
    return audit.end_of_export(own)


def _write(out: BinaryIO, line: bytes) -> None:
    out.write(line + b"\n")
    if out is sys.stdout.buffer:
        out.flush()


# ------------------------------------------------------------------ telling


def _complain(verdict: Verdict) -> None:
    """Tell every fault. Raises: typer.Exit when there is one."""
    for fault in verdict.faults:
        what = "the log" if fault.seq is None else f"line {fault.seq}"
        complain(fault.code, f"{what}: {fault.detail}", ADVICE.get(fault.code, "Compare with the roster."))
    if verdict.fault_count > len(verdict.faults):
        warn(f"and {verdict.fault_count - len(verdict.faults)} faults more")
    if not verdict.is_sound:
        raise typer.Exit(NOT_VERIFIED)


def _tell(verdict: Verdict, known: Roster, heads: tuple[Head, ...], as_json: bool) -> None:
    if as_json:
        print_json(_document(verdict, heads))
    for note in verdict.unjudged:
        warn(f"not judged: {note.detail}")
    for restore in verdict.restores:
        who = "" if restore.uid is None else f" by user {restore.uid}"
        warn(f"a backup was restored at {when(restore.at)} UTC{who}: line {restore.seq} tells so")
    _complain(verdict)
    if as_json:
        return
    names = ", ".join(name_of(known, signer) for signer in verdict.signers)
    count = verdict.last - verdict.first + 1 if verdict.first else 0
    words = f"verified: {count} lines hold and link, the last is {verdict.last} with {verdict.digest}"
    if verdict.vouched:
        words += f"; signed heads{f' of {names}' if names else ''} vouch for all up to {verdict.vouched}"
    else:
        words += "; no signed head vouches for any"
    if heads:
        words += f"; {len(heads)} kept head{'s' * (len(heads) > 1)} hold{'s' * (len(heads) == 1)}"
    say(words + ". Whether lines were left out when they should have been written, no log can show.")


def _document(verdict: Verdict, heads: tuple[Head, ...]) -> dict[str, Any]:
    return {"is_verified": verdict.is_sound, "heads": len(heads), **msgspec.structs.asdict(verdict)}
