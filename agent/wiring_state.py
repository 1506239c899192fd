"""The doors to what an agent keeps, without the agent: backup, restore and fsck. Like `wiring.py` it names adapters."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from agent.config import Settings
from agent.domain.backups import BackupFile, Restored
from agent.errors import LedgerInUse
from agent.fsck.seen import LedgerSeen, Mends, QueuesSeen
from agent.trust.keys import SigningKey
from agent.wiring import now
from agent.wiring_trust import own_keys


def back_up(settings: Settings, target: Path, *, overwrite: bool) -> BackupFile:
    """A copy of the ledger as it is now, whole and durable, while services run. Raises: BadSettings, LedgerUnavailable."""
    from agent.ports.ledger_sqlalchemy_backup import back_up

    me = SigningKey.load(settings.identity.key).keyid
    return back_up(settings.paths.ledger, target, agent=me, now=now(), overwrite=overwrite)


def restore(settings: Settings, file: BinaryIO, uid: int | None) -> Restored:
    """Put a backup in the ledger's place, while no service runs. Raises: LedgerInUse, BadBackup, LedgerUnavailable."""
    from agent.ports.ledger_sqlalchemy_backup import restore

    me = SigningKey.load(settings.identity.key).keyid
    skew = timedelta(seconds=settings.limits.skew_s)
    keys = own_keys(settings, me)  # a backup made under an older one is its own
    return restore(settings.paths.ledger, file, me=keys, now=now(), skew=skew, uid=uid)


@contextmanager
def alone(settings: Settings) -> Iterator[bool]:
    """Whether nobody has this agent's ledger open; while the block runs nobody then gets it. Nothing is made."""
    from agent.ports.ledger_sqlalchemy_use import alone

    with ExitStack() as held:
        try:
            if settings.paths.ledger.parent.is_dir():
                held.enter_context(alone(settings.paths.ledger))
        except (LedgerInUse, OSError):
            yield False
            return
        yield True


def look_into_ledger(settings: Settings) -> AbstractContextManager[LedgerSeen]:
    """The ledger's rows as they lie. Raises: LedgerUnavailable."""
    from agent.ports.ledger_sqlalchemy_look import look_into

    return look_into(settings.paths.ledger)


def interrupted(settings: Settings) -> str:
    """The folder beside the ledger to which a restore moved what lay there before it was interrupted; empty: none was."""
    from agent.ports.ledger_sqlalchemy_use import interrupted

    return interrupted(settings.paths.ledger)


def look_into_queues(settings: Settings) -> QueuesSeen:
    """The rings as they lie."""
    from agent.ports.broker_huey_look import look_into_queues

    return look_into_queues(settings.paths.queues)


@contextmanager
def open_mends(settings: Settings) -> Iterator[Mends]:
    """The mends of the ledger that lose nothing. Raises: LedgerUnavailable."""
    from agent.ports.ledger_sqlalchemy_file import open_staged
    from agent.ports.ledger_sqlalchemy_mend import LedgerMends

    file = open_staged(settings.paths.ledger)  # whoever mends may hold the lock alone
    try:
        yield LedgerMends(file)
    finally:
        file.close()


def migrate_ledger(settings: Settings) -> None:
    """Bring the ledger to this version's schema. Raises: LedgerUnavailable."""
    with open_mends(settings):
        pass


def drop_ring(settings: Settings, ring: str) -> bool:
    """Take one ring, as `look_into_queues` named it, out of its queue; whether it was there. Raises: OutsideError."""
    from agent.ports.broker_huey_look import drop_ring

    return drop_ring(settings.paths.queues, ring)


def set_queues_aside(settings: Settings, ending: str) -> None:
    """Give the file of the queues another name, while no service runs. Raises: OutsideError."""
    from agent.ports.broker_huey_look import set_aside

    set_aside(settings.paths.queues, ending)
