"""What a crash or a lost bell left behind is taken up again: at the start of a worker and every minute."""

from pathlib import Path

from agent.domain.control import Mode
from agent.domain.ids import JobId
from agent.domain.jobs import JobState
from agent.domain.retries import LONGEST_REST
from agent.errors import NotFound, RuntimeUnavailable
from agent.log import get_logger
from agent.pipeline.bells import ring, ring_job
from agent.pipeline.collect import collect_images
from agent.pipeline.hold import clear
from agent.pipeline.host import Host
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL
from agent.pipeline.trials import TRIAL_LABEL, abandoned, is_under_way
from agent.pipeline.workspace import parse_folder_name, remove_folder
from agent.ports.broker import Queue

log = get_logger(__name__)

BATCH = 1000


def sweep(host: Host) -> None:
    """Ring what should be ringing, remove what no live attempt owns.

    Raises: LedgerUnavailable, RuntimeUnavailable.
    """
    if host.ports.ledger.control().mode is Mode.RESTORED:
        return  # whose container and folder that is, orchestrators may know
    now = host.ports.now()
    if corrected := host.ports.ledger.correct_clock(now, lease=host.rules.lease, rest=LONGEST_REST):
        log.warning("clock.set_back", corrected=corrected)
    unrung = host.ports.ledger.unrung(now, BATCH)
    for job in (*unrung.orphans, *unrung.jobs, *unrung.held):  # orphans first: their containers run
        ring_job(job, host)
    for delivery in unrung.deliveries:
        ring(Queue.DELIVERIES, delivery, host)
    host.ports.ledger.forget_nonces(now)
    host.ports.ledger.forget_cancellations(now)
    clear(host)
    _clean(host)  # late: a container service that is away must not keep bells from ringing
    collect_images(host)


def _clean(host: Host) -> None:
    """Remove every container and workspace whose attempt is not running any more; one that cannot go keeps no other."""
    try:
        _remove_containers(host)
    finally:  # plaintext goes though the engine is away
        _remove_folders(host)


def _remove_containers(host: Host) -> None:
    for leftover in host.ports.runtime.leftovers():
        if is_under_way(leftover.labels.get(TRIAL_LABEL, ""), host.rules.workspace_root):
            continue
        job, attempt = leftover.labels.get(JOB_LABEL, ""), leftover.labels.get(ATTEMPT_LABEL, "")
        if not _is_live(JobId(job), attempt, host):
            try:
                host.ports.runtime.remove(leftover.name)
                log.warning("leftover.removed", container=leftover.name)
            except RuntimeUnavailable as error:
                log.error("leftover.stays", container=leftover.name, detail=str(error))


def _remove_folders(host: Host) -> None:
    for folder in (*_folders(host.rules.workspace_root), *_folders(host.rules.spool)):
        owner = parse_folder_name(folder.name)
        if owner is not None and not _is_live(owner[0], str(owner[1]), host):
            _remove_folder(folder, host)
    for folder in abandoned(host.rules.workspace_root):
        _remove_folder(folder, host)


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
    return tuple(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
