"""What a crash or a lost bell left behind is taken up again: at the start of a worker and every minute."""

from collections.abc import Iterator
from pathlib import Path

from agent.domain.control import Mode
from agent.domain.ids import JobId
from agent.domain.jobs import JobState
from agent.domain.retries import LONGEST_REST
from agent.errors import AgentError, NotFound, RuntimeUnavailable
from agent.log import get_logger
from agent.pipeline.audit import checkpoint
from agent.pipeline.bells import ring_all, ring_job
from agent.pipeline.garbage import Gone, Kind, collect_garbage
from agent.pipeline.host import Host
from agent.pipeline.ringing import Ringing, ring_unsent, ring_waiting
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL
from agent.pipeline.space import used_bytes
from agent.pipeline.trials import TRIAL_LABEL, abandoned, is_under_way
from agent.pipeline.workspace import parse_folder_name, remove_folder
from agent.ports.broker import Queue

log = get_logger(__name__)

BATCH = 1000


def sweep(host: Host, ringing: Ringing | None = None) -> None:
    """Ring what should be ringing, remove what no live attempt owns. `ringing`: how far this process came; None: all anew.

    Raises: LedgerUnavailable, RuntimeUnavailable.
    """
    control, ringing = host.ports.ledger.control(), ringing or Ringing()
    if control.mode is Mode.RESTORED:
        return  # whose container and folder that is, orchestrators may know
    ringing.note(control)
    try:
        _take_up(host, ringing)
    finally:  # a full disk keeps the ledger from being written: what gives room back goes on
        tidy(host)


def tidy(host: Host, *, is_asked: bool = False, is_rehearsal: bool = False) -> tuple[Gone, ...]:
    """Remove what no live attempt owns, then collect what else is over, in the order that `garbage.py` states; what went.

    A rehearsal only tells. `is_asked`, by the operator: everything is due, and what stays is told.
    Raises: LedgerUnavailable, RuntimeUnavailable unless asked, after all that could go went.
    """
    if host.ports.ledger.control().mode is Mode.RESTORED:
        why = "the ledger was restored: nothing goes until orchestrators were asked"
        return (Gone(Kind.WORKSPACES, 0, None, why),)
    gone: list[Gone] = []
    try:
        gone += _would_clean(host) if is_rehearsal else _clean(host)
    except AgentError as error:
        if not is_asked:
            raise
        gone.append(Gone(Kind.WORKSPACES, 0, None, error.detail))
    finally:
        gone += collect_garbage(host, is_asked=is_asked, is_rehearsal=is_rehearsal)
    return tuple(gone)


def _take_up(host: Host, ringing: Ringing) -> None:
    now = host.ports.now()
    if corrected := host.ports.ledger.correct_clock(now, lease=host.rules.lease, rest=LONGEST_REST):
        log.warning("clock.set_back", corrected=corrected)
    unrung = host.ports.ledger.unrung(now, BATCH)
    for job in unrung.orphans:  # first: their containers run
        ring_job(job, host)
    is_whole = ringing.is_whole
    ring_waiting(host, ringing)
    ring_all(Queue.DELIVERIES, unrung.deliveries, host)
    if is_whole:
        ring_unsent(host)
        ringing.is_whole = False
    checkpoint(host)


def _clean(host: Host) -> list[Gone]:
    """Remove every container and workspace whose attempt is not running any more; one that cannot go keeps no other."""
    gone = []
    try:
        gone.append(Gone(Kind.CONTAINERS, _remove_containers(host)))
    finally:  # plaintext goes though the engine is away
        gone.append(_remove_folders(host))
    return gone


def _would_clean(host: Host) -> list[Gone]:
    folders = tuple(dead_folders(host))
    size = sum(used_bytes(folder) for folder in folders)
    return [
        Gone(Kind.CONTAINERS, len(tuple(dead_containers(host)))),
        Gone(Kind.WORKSPACES, len(folders), size),
    ]


def _remove_containers(host: Host) -> int:
    count = 0
    for name in dead_containers(host):
        try:
            host.ports.runtime.remove(name)
            log.warning("leftover.removed", container=name)
            count += 1
        except RuntimeUnavailable as error:
            log.error("leftover.stays", container=name, detail=str(error))
    return count


def _remove_folders(host: Host) -> Gone:
    found = [(folder, used_bytes(folder)) for folder in dead_folders(host)]
    for folder, _ in found:
        _remove_folder(folder, host)
    went = [size for folder, size in found if not folder.exists()]
    return Gone(Kind.WORKSPACES, len(went), sum(went))


def dead_containers(host: Host) -> Iterator[str]:
    """The name of every container whose attempt is not running any more. Raises: LedgerUnavailable, RuntimeUnavailable."""
    for leftover in host.ports.runtime.leftovers():
        if is_under_way(leftover.labels.get(TRIAL_LABEL, ""), host.rules.workspace_root):
            continue
        job, attempt = leftover.labels.get(JOB_LABEL, ""), leftover.labels.get(ATTEMPT_LABEL, "")
        if not _is_live(JobId(job), attempt, host):
            yield leftover.name


def dead_folders(host: Host) -> Iterator[Path]:
    """Every folder of an attempt that is not running any more, in the workspace and the spool. Raises: LedgerUnavailable."""
    for folder in (*_folders(host.rules.workspace_root), *_folders(host.rules.spool)):
        owner = parse_folder_name(folder.name)
        if owner is not None and not _is_live(owner[0], str(owner[1]), host):
            yield folder
    if host.rules.workspace_root.is_dir():
        yield from abandoned(host.rules.workspace_root)


def _remove_folder(folder: Path, host: Host) -> None:
    try:
        remove_folder(folder, host.ports.runtime)
        log.warning("leftover.removed", workspace=folder.name)
    except (RuntimeUnavailable, OSError) as error:
        log.error("leftover.stays", workspace=folder.name, detail=str(error))


def _is_live(job_id: JobId, attempt: str, host: Host) -> bool:
    try:
        job = host.ports.ledger.job(job_id)
    except NotFound:
        return False
    return job.state is JobState.RUNNING and str(job.attempt) == attempt


def _folders(root: Path) -> tuple[Path, ...]:
    """None where the root is not there: no worker has started since the boot."""
    if not root.is_dir():
        return ()
    return tuple(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
