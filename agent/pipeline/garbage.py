"""Garbage goes in one stated order: what gives most room and is missed least goes first.

| | what | by age | below the low mark |
|---|---|---|---|
| 1 | containers, workspaces and folders in the spool of attempts that are over (`resume.py`) | always | |
| 2 | an archive that was read for the operator, a build that was killed | always | |
| 3 | images: interrupted loads; unused for `image_days`, or over `images_bytes` | always | the longest unused |
| 4 | nonces, and cancellations of orders that never came, whose time is over | always | |
| 5 | logs of jobs `log_days` after their end; bodies of deliveries that arrived, the same | about hourly | of any age |
| | … and whose order expired: before that they may be asked for again | | |
| 6 | orders: `order_days` after their end, and expired by more than the skew | about hourly | |
| 7 | pages of the ledger that became free go back to the file system | after 5 and 6 | |

Never goes: an open order, an image it names, a delivery that did not arrive, what guards against repeats before its time,
and the log of events. A step that fails holds up no later one. The sweep does this, a task's retry after `no-space`, and
`dc-compute gc`.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from agent.domain.retention import Garbage, retention, under_pressure
from agent.domain.retries import dice
from agent.errors import AgentError
from agent.log import get_logger
from agent.pipeline.collect import collect_images
from agent.pipeline.hold import clear
from agent.pipeline.host import Host
from agent.pipeline.space import is_low, used_bytes

log = get_logger(__name__)

BUILDS, BUILD_PREFIX = "builds", "build-"  # the folder of builds in the spool, and how what lies there begins
ON_ITS_WAY = timedelta(minutes=10)  # a request that was judged in time may still be asked about its nonce
BATCH = 200  # rows of a kind in one transaction of the ledger


class Kind(StrEnum):
    """What goes, in this order."""

    CONTAINERS = "containers"
    WORKSPACES = "workspaces"
    SPOOL = "spool"
    IMAGES = "images"
    NONCES = "nonces"
    LOGS = "job logs"
    BODIES = "delivered bodies"
    ORDERS = "orders"
    PAGES = "ledger pages"


class Gone(Struct, frozen=True):
    """How much of a kind went, or would go. `size_bytes` is None where nobody measured it. `failed`: why it stays."""

    kind: Kind
    count: int
    size_bytes: int | None = None
    failed: str | None = None


def collect_garbage(host: Host, *, is_asked: bool = False, is_rehearsal: bool = False) -> tuple[Gone, ...]:
    """Steps 2 to 7; what went, or what would in a rehearsal. `is_asked`: by the operator, so it is due now."""
    gone: list[Gone] = []
    for kinds, step in _STEPS:
        try:
            gone += step(host, is_asked, is_rehearsal)
        except (AgentError, OSError) as error:
            log.error("garbage.stays", kind=kinds, detail=str(error))
            gone.append(Gone(kinds, 0, None, str(error)))
    return tuple(gone)


# ------------------------------------------------------------------ the steps


def _spool(host: Host, _is_asked: bool, is_rehearsal: bool) -> list[Gone]:
    found = [(folder, used_bytes(folder)) for folder in _killed_builds(host.rules.spool, not is_rehearsal)]
    if not is_rehearsal:
        clear(host)
    return [Gone(Kind.SPOOL, len(found), sum(size for _, size in found))]


def _images(host: Host, _is_asked: bool, is_rehearsal: bool) -> list[Gone]:
    went = collect_images(host, is_rehearsal=is_rehearsal)
    return [Gone(Kind.IMAGES, len(went), sum(one.image.size_bytes for one in went))]


def _nonces(host: Host, _is_asked: bool, is_rehearsal: bool) -> list[Gone]:
    if is_rehearsal:
        return []
    now, ledger = host.ports.now(), host.ports.ledger
    ledger.forget_cancellations(now)
    return [Gone(Kind.NONCES, ledger.forget_nonces(now - ON_ITS_WAY))]


def _records(host: Host, is_asked: bool, is_rehearsal: bool) -> list[Gone]:
    """What is over in the ledger, in transactions that are short. The log of events tells how much went, and of each order."""
    now, rules, ledger = host.ports.now(), host.rules, host.ports.ledger
    is_short = is_low(rules.disks, rules.low_disk_bytes)
    if not (is_asked or is_short or now.minute == int(60 * dice(host.me))):
        return []
    told = retention(now, skew=rules.skew, log_age=rules.log_age, order_age=rules.order_age)
    if is_short:
        told = under_pressure(told, now)
    if is_rehearsal:
        return _as_lines(ledger.garbage(told))
    went = batch = ledger.collect(told, now, BATCH)
    while batch != Garbage():
        batch = ledger.collect(told, now, BATCH)
        went += batch
    if went != Garbage():
        values = {"logs": went.logs, "bodies": went.bodies, "orders": went.orders, "is_low": int(is_short)}
        log.info("garbage.collected", **values)
        ledger.record_event("garbage.collected", now, values=dict(values))
    lines = _as_lines(went)
    if went != Garbage() or is_asked:
        lines.append(Gone(Kind.PAGES, 0, ledger.give_back()))
    return lines


def _as_lines(went: Garbage) -> list[Gone]:
    return [
        Gone(Kind.LOGS, went.logs, went.log_bytes),
        Gone(Kind.BODIES, went.bodies, went.body_bytes),
        Gone(Kind.ORDERS, went.orders),
    ]


_STEPS: tuple[tuple[Kind, Callable[[Host, bool, bool], list[Gone]]], ...] = (
    (Kind.SPOOL, _spool),
    (Kind.IMAGES, _images),
    (Kind.NONCES, _nonces),
    (Kind.ORDERS, _records),
)


# ------------------------------------------------------------------ builds


def _killed_builds(spool: Path, is_removed: bool) -> Iterator[Path]:
    """What builds left whose process is gone, removed after each was looked at: none while a build goes on."""
    with building(spool) as work:
        if work is None:
            return
        for folder in sorted(work.glob(f"{BUILD_PREFIX}*")):
            yield folder
            if is_removed:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def building(spool: Path, *, is_made: bool = False) -> Iterator[Path | None]:
    """The folder of builds for this process alone; None when there is none, or another process builds.

    The kernel lets go of the lock of a process that dies.
    """
    work = spool / BUILDS
    if is_made:
        work.mkdir(mode=0o700, exist_ok=True)
    elif not work.is_dir():
        yield None
        return
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield None
    else:
        yield work
    finally:
        os.close(lock)
