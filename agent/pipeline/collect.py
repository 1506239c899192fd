"""Images that nobody needs leave the container engine: those unused for long, and when space is short the longest unused.

An image that an open job of the ledger names stays, however old it is and however full the disk. What is gone is fetched
again when an order names it.
"""

import shutil
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum

from msgspec import Struct

from agent.log import get_logger
from agent.pipeline.host import Host, Rules
from agent.ports.runtime import ImageInfo

log = get_logger(__name__)

FRESH = timedelta(minutes=10)  # what was loaded by hand, or for a look at the host, is let alone for so long


class Reason(StrEnum):
    """Why an image goes."""

    AGE = "age"
    SPACE = "space"
    ASKED = "asked"  # by the operator


class Unneeded(Struct, frozen=True):
    """An image that may go, and why."""

    image: ImageInfo
    reason: Reason


def collect_images(
    host: Host, *, is_everything: bool = False, is_rehearsal: bool = False
) -> tuple[Unneeded, ...]:
    """Discard what is not needed, and what interrupted loads left. Gives what went, or what would in a rehearsal.

    `is_everything`: whatever no open job names, of any age. Raises: LedgerUnavailable, RuntimeUnavailable.
    """
    runtime, now = host.ports.runtime, host.ports.now()
    if not is_rehearsal and (cleared := runtime.clear_images()):
        log.warning("leftover.removed", images=cleared)
        host.ports.ledger.record_event("image.leftovers_removed", now, values={"count": cleared})
    images = runtime.images()
    if is_everything:
        chosen = tuple(Unneeded(image, Reason.ASKED) for image in images)
    else:
        free = [shutil.disk_usage(folder).free for folder in host.rules.disks]
        chosen = choose(images, host.rules, now, min(free))
    if is_rehearsal:
        needed = host.ports.ledger.needed_images()
        return tuple(one for one in chosen if one.image.digest not in needed)
    return tuple(one for one in chosen if _discard(one, host))


def choose(images: Iterable[ImageInfo], rules: Rules, now: datetime, free_bytes: int) -> tuple[Unneeded, ...]:
    """The images that are too old, and of the others the longest unused until there is space enough."""
    known = sorted(images, key=lambda image: (image.used_at, image.digest))
    used_bytes = sum(image.size_bytes for image in known)
    chosen = []
    for image in known:
        unused = now - image.used_at
        is_short = used_bytes > rules.images_bytes or free_bytes < rules.low_disk_bytes
        if abs(unused) < FRESH:  # long after now: a clock was set back
            continue
        if unused <= rules.image_age and not is_short:
            continue
        chosen.append(Unneeded(image, Reason.AGE if unused > rules.image_age else Reason.SPACE))
        used_bytes -= image.size_bytes
        free_bytes += image.size_bytes
    return tuple(chosen)


def _discard(one: Unneeded, host: Host) -> bool:
    """Whether it went. The ledger is asked right before: what is fetched after that finds no image, and fetches it."""
    image = one.image
    if image.digest in host.ports.ledger.needed_images():
        return False
    if not host.ports.runtime.discard(image.digest):
        log.info("image.in_use", image=image.digest)
        return False
    now = host.ports.now()
    about: dict[str, str | int | float | None] = {
        "image": image.digest,
        "reason": one.reason,
        "size_bytes": image.size_bytes,
        "unused_s": int((now - image.used_at).total_seconds()),
    }
    log.info("image.discarded", **about)
    host.ports.ledger.record_event("image.discarded", now, values=about)
    return True
