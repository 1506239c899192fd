"""An order waits for the operator's word on its images, and this is all that happens meanwhile: the archives are read.

What may run is the policy's to say, with the rulings of the ledger; a held job is asked about again whenever its bell rings,
and every minute. So a ruling needs to move nothing itself: it is recorded, and what waits for it follows.

An archive is read here, in the worker, where it will be loaded from later: the API has no way to storage's bytes or to
containers, and answers from the ledger alone. One archive at a time per host, capped in bytes, entries and time.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from agent.domain.ids import Digest
from agent.domain.images import ImageDescription
from agent.domain.jobs import WAITING, Job, JobEvent, JobState
from agent.domain.orders import is_expired
from agent.domain.reports import ReportState
from agent.errors import BadImage, LostRace, NoSpace, PolicyRefused, TooLarge
from agent.log import get_logger
from agent.pipeline.attest import Work, attest_failure
from agent.pipeline.bells import ring_deliveries, ring_job
from agent.pipeline.fetch import image_bytes
from agent.pipeline.host import Context, Host, context_of
from agent.pipeline.phases import Phases
from agent.pipeline.place import expire
from agent.pipeline.report import report
from agent.pipeline.run import Runs
from agent.pipeline.space import SHELF, reserve
from agent.ports.ledger import JobQuery

log = get_logger(__name__)

UNKNOWN_IMAGE = "image-unknown"  # the reason of a held job
READ_WITHIN_S = 120.0  # about 20 GiB of content
COMES_WITHIN_S = 600.0  # from storage; in both, the thread that places orders does nothing else

PAGE = 500
# An order that could not be placed within this time is somebody's to mend: it keeps nobody waiting.
PLACING = timedelta(seconds=60)


def hold(context: Context, host: Host) -> Job | None:
    """The job of a new order, HELD for the operator's word or FAILED by it; None when it may go on. Raises: LostRace."""
    if is_expired(context.signed.order, host.ports.now(), host.rules.skew):
        return None  # `place` tells so
    try:
        unknown = _unknown(context, host)
    except PolicyRefused as error:
        return _refuse(context, error, host)
    if not unknown:
        return None
    told = report(context, ReportState.HELD, host, reason=UNKNOWN_IMAGE)
    now = host.ports.now()
    job = host.ports.ledger.move(context.job, JobEvent.HOLD, now, reason=UNKNOWN_IMAGE, deliveries=[told])
    ring_deliveries(job, host)
    ring_job(job, host)  # to have its images read
    return job


def look_again(context: Context, host: Host) -> Job | None:
    """A held job as policy, operator and time have it now: EXPIRED, FAILED, back to RECEIVED, or held with its images read.

    None: held, and an image is still to be read, for something else goes first.
    Raises: LostRace; OutsideError and DigestMismatch when an archive cannot be had.
    """
    if is_expired(context.signed.order, host.ports.now(), host.rules.skew):
        return expire(context, host)
    try:
        unknown = _unknown(context, host)
    except PolicyRefused as error:
        return _refuse(context, error, host)
    if unknown:
        was_read = [read(image, host) is not None for image in unknown]
        return context.job if all(was_read) else None
    job = host.ports.ledger.move(context.job, JobEvent.APPROVE, host.ports.now())
    ring_job(job, host)
    return job


def follow_ruling(image: Digest, host: Host) -> tuple[Job, ...]:
    """Every job that waits here and whose order names this image, as the ruling on it leaves it.

    A job that somebody else moves meanwhile is theirs; what is missed here, the sweep's bells make up for.
    """
    moved = []
    for job in tuple(_jobs(WAITING, host)):
        context = context_of(job, host)
        if image not in context.signed.order.images:
            continue
        try:
            moved.append(_follow(context, host))
        except LostRace:
            log.info("ruling.lost_race", job=job.id)
    return tuple(moved)


def _jobs(states: Set[JobState], host: Host) -> Iterator[Job]:
    """Every job of this host in these states that does not go on elsewhere, newest first."""
    after = None
    while True:
        page = host.ports.ledger.jobs(JobQuery(states=frozenset(states), after=after, limit=PAGE))
        yield from (job for job in page if job.next_agent is None)
        if len(page) < PAGE:
            return
        after = page[-1].id


def _follow(context: Context, host: Host) -> Job:
    """One waiting job after a ruling. Nothing is read or fetched here: this runs in the operator's request."""
    try:
        unknown = _unknown(context, host)
    except PolicyRefused as error:
        return _refuse(context, error, host)
    if unknown or context.job.state is not JobState.HELD:
        return context.job
    job = host.ports.ledger.move(context.job, JobEvent.APPROVE, host.ports.now())
    ring_job(job, host)
    return job


def _unknown(context: Context, host: Host) -> tuple[Digest, ...]:
    return host.policy.admit_or_hold(context.signed, [context.task], host.ports.ledger.verdict_on)


def _refuse(context: Context, error: PolicyRefused, host: Host) -> Job:
    """The job -> FAILED before it began, and its orchestrator is told: with a receipt where the task's dataset is known to
    lie here, for only a holder's receipt counts. Raises: LostRace.
    """
    job, now = context.job, host.ports.now()
    log.warning("order.not_admitted", job=job.id, code=error.code, detail=error.detail)
    if job.state is JobState.QUEUED or job.position > 0:
        failed = attest_failure(context, Work(now, Phases(), Runs()), error, host)
    else:
        told = report(context, ReportState.FAILED, host, reason=error.code)
        failed = host.ports.ledger.move(job, JobEvent.FAIL, now, reason=error.code, deliveries=[told])
    ring_deliveries(failed, host)
    return failed


# ------------------------------------------------------------------ reading an archive


def read(image: Digest, host: Host) -> ImageDescription | None:
    """What the archive holds, read and recorded unless it was before; None while another one is read, or an order is to be
    placed, which goes first.

    Raises: OutsideError, DigestMismatch (both tried again), NoSpace.
    """
    known = host.ports.ledger.description(image)
    if known is not None:
        return known
    if _is_placing(host):
        return None
    try:
        with _shelf(host.rules.spool) as shelf:
            if shelf is None:
                return None
            return _read(image, shelf, host)
    except OSError as cause:
        raise NoSpace(f"the spool cannot hold an archive: {cause.strerror}") from cause


def _is_placing(host: Host) -> bool:
    """Whether an order that just came is to be placed: archives are read by the same thread, one in two minutes."""
    return host.ports.ledger.is_placing(host.ports.now(), PLACING)


def _read(image: Digest, shelf: Path, host: Host) -> ImageDescription:
    now, archive = host.ports.now(), shelf / "image"
    try:
        size = image_bytes(image, host)
        reserve(shelf, size, keep_free=host.rules.low_disk_bytes)
        host.ports.storage.fetch_blob(image, archive, limit_bytes=size, within_s=COMES_WITHIN_S)
        look = host.ports.images.look(archive, image, within_s=READ_WITHIN_S)
    except (BadImage, TooLarge) as error:
        size = archive.stat().st_size if archive.exists() else 0
        return _record(
            ImageDescription(image=image, read_at=now, archive_bytes=size, problem=error.detail[:500]), host
        )
    found = ImageDescription(image=image, read_at=now, archive_bytes=size, about=look.about)
    host.ports.ledger.describe(found, look.listing)
    log.info("image.read", image=image, entries=look.about.entries, layers=len(look.about.layers))
    return found


def _record(found: ImageDescription, host: Host) -> ImageDescription:
    host.ports.ledger.describe(found)
    log.warning("image.not_loadable", image=found.image, detail=found.problem)
    return found


@contextmanager
def _shelf(spool: Path) -> Iterator[Path | None]:
    """A place for one archive, where nothing lies yet, and nothing afterwards; None when somebody else has it.

    The lock dies with its holder; what a killed one left is removed by the next.
    """
    fd = os.open(spool / f"{SHELF}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        folder = spool / SHELF
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)


def clear(host: Host) -> None:
    """Forget what was read of images for which nothing waits any more, and remove an archive that a killed reader left."""
    host.ports.ledger.forget_descriptions(host.ports.ledger.needed_images(is_held=True))
    try:
        if (host.rules.spool / SHELF).exists():
            with _shelf(host.rules.spool):
                pass
    except OSError as error:
        log.error("leftover.stays", archive=SHELF, detail=str(error))
