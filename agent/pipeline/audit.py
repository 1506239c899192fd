"""What the pipeline tells the audit log beside what the ledger tells of its own changes: runs, shares, uploads, starts.

Each function makes lines; whoever makes a ledger call anyway hands them over with it, so that few cost a commit of their own.
Which lines there are: docs/operators.md, "The audit log".
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from agent.domain.audit import NewEvent, Plain
from agent.domain.ids import Digest, KeyId, digest_of
from agent.domain.jobs import Job
from agent.domain.receipts import Output
from agent.domain.strict_json import encode
from agent.log import get_logger
from agent.pipeline.host import Context, Host
from agent.ports.runtime import RunOutcome
from agent.ports.storage import BlobKind
from agent.trust.audit_log import sign_head
from agent.trust.policy import HostPolicy
from agent.trust.roster import Roster

log = get_logger(__name__)

CHECKPOINT_LINES: Final = 1000  # a signed head at least after so many lines, or
CHECKPOINT_AGE: Final = timedelta(hours=1)  # when there are any that are older
STARTED: Final = "service.started"
RELOADED: Final = "service.reloaded"
FILES: Final = ("policy", "roster")  # whose digests a start tells


def run_started(job: Job, run: str, role: str, image: Digest) -> NewEvent:
    """A container is about to be made."""
    return _of_attempt("run.started", job, run=run, role=role, image=image)


def run_ended(job: Job, run: str, image: Digest, outcome: RunOutcome) -> NewEvent:
    """A container ended: how, and in which cage. `cage` is the digest of everything that was read back of it."""
    return _of_attempt(
        "run.ended",
        job,
        run=run,
        image=image,
        outcome=outcome.cause or "done",
        wall_s=round(outcome.wall_s, 3),
        cage=digest_of(encode(outcome.cage)),
        runtime=outcome.cage.runtime,
        absent=" ".join(outcome.cage.absent),
    )


def shares(
    name: str, context: Context, holders: Iterable[KeyId], request_bytes: int | None = None
) -> tuple[NewEvent, ...]:
    """`share.asked` or `share.received`, a line for each orchestrator: for which dataset, version, task and attempt."""
    task = context.task
    about: dict[str, Plain] = {"dataset": task.dataset.id, "version": task.dataset.version, "kind": task.kind}
    if request_bytes is not None:
        about["bytes"] = request_bytes
    return tuple(_of_attempt(f"share.{name}", context.job, of=holder, **about) for holder in holders)


def upload(name: str, job: Job, output: Output, kind: BlobKind, host: Host) -> NewEvent:
    """`upload.started` or `upload.ended`: an output goes to this node's storage."""
    storage = host.newest.roster.storage_of(host.me)
    to = None if storage is None else storage.keyid
    return _of_attempt(f"upload.{name}", job, digest=output.digest, kind=kind, bytes=output.size, to=to)


def _of_attempt(name: str, job: Job, **values: Plain) -> NewEvent:
    about: dict[str, Plain] = {"attempt": job.attempt}
    return NewEvent(name=name, order_id=job.order_id, position=job.position, values=about | values)


# ------------------------------------------------------------------ the host itself


def note_start(service: str, version: str, host: Host) -> None:
    """A line for the start of a service, with the digests of policy and roster, and one for each that changed since the last.

    Raises: LedgerUnavailable.
    """
    _note(STARTED, {"service": service, "version": version, "agent": host.me}, host)


def note_reload(service: str, host: Host, owners: Mapping[str, int]) -> None:
    """The same for a reload, by a host with what is to be in force. `owners`: the user id that each file belongs to.

    The first of an agent's services that reloads tells what changed, the others find it told.
    Raises: LedgerUnavailable.
    """
    _note(RELOADED, {"service": service, "agent": host.me}, host, owners)


def _note(
    name: str, about: dict[str, Plain], host: Host, owners: Mapping[str, int] = MappingProxyType({})
) -> None:
    ledger = host.ports.ledger
    seen = digests(host.roster, host.policy)
    told_before = [event for kind in (STARTED, RELOADED) if (event := ledger.last_event(kind)) is not None]
    before = max(told_before, key=lambda event: event.seq, default=None)
    told = [NewEvent(name=name, values=about | seen)]
    for file in FILES:
        was = None if before is None else before.values.get(file)
        if was != seen[file] and before is not None:
            log.info("file.changed", file=file, was=was, now=seen[file])
            by: dict[str, Plain] = {"owner": owners[file]} if file in owners else {}
            told.append(NewEvent(name=f"{file}.changed", values={"was": was, "now": seen[file], **by}))
    ledger.record_events(told, host.ports.now())


def digests(roster: Roster, policy: HostPolicy) -> dict[str, Digest]:
    """By which the audit log, and whoever compares, knows them."""
    return {"policy": policy.digest, "roster": digest_of(roster.to_json())}


def checkpoint(host: Host) -> None:
    """A signed head among the lines, where one is due. Raises: LedgerUnavailable."""
    now = host.ports.now()

    def sign(seq: int, digest: Digest | None) -> str:
        return sign_head(host.key, seq=seq, digest=digest, at=now).decode()

    host.ports.ledger.checkpoint(sign, now, lines=CHECKPOINT_LINES, age=CHECKPOINT_AGE)
