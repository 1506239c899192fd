"""Settings become the values that ports and steps take: identity, timeouts, rules."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from agent.config import Settings
from agent.pipeline.host import Rules
from agent.ports import Clock
from agent.ports.runtime import Runtime
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster

if TYPE_CHECKING:
    from agent.ports.https import Identity, Timeouts


def identity_of(
    settings: Settings, key: SigningKey, roster: Callable[[], Roster], clock: Clock
) -> "Identity":
    from agent.ports.https import Identity

    return Identity(key, roster, clock, timedelta(seconds=settings.limits.skew_s))


def timeouts_of(settings: Settings) -> "Timeouts":
    from agent.ports.https import Timeouts

    told = settings.timeouts
    return Timeouts(told.connect_s, told.read_s, told.total_s, told.transfer_s)


def rules_of(settings: Settings, runtime: Runtime) -> Rules:
    limits = settings.limits
    return Rules(
        skew=timedelta(seconds=limits.skew_s),
        lease=timedelta(seconds=limits.lease_s),
        queue_limit=limits.queue_limit,
        workspace_root=settings.workspace.root,
        spool=settings.paths.spool,
        low_disk_bytes=limits.low_disk_bytes,
        max_model_bytes=limits.max_model_bytes,
        max_image_bytes=limits.max_image_bytes,
        image_age=timedelta(days=limits.image_days),
        images_bytes=limits.images_bytes,
        reconcile_first=timedelta(seconds=settings.reconcile.first_s),
        reconcile_every=timedelta(seconds=settings.reconcile.every_s),
        log_age=timedelta(days=limits.log_days),
        order_age=timedelta(days=limits.order_days),
        records=(settings.paths.data,),
        services=settings.paths.services,
        in_memory=(settings.runtime.run_dir,) if runtime.name == "runc" else (),  # conmon keeps a log there
    )
