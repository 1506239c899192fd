"""Backups of the ledger, and what putting one back leaves behind."""

from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from agent.domain.ids import Digest, KeyId

# For each generation of a ledger, claims and the numbers of reports go on beyond any that an earlier one can have given: a
# process of before, with whatever claim, moves nothing, and the orchestrator keeps the first body of each number for ever. A
# claim grows by one at each start and take-over, a number by one at each report on one place.
CLAIMS_BETWEEN: Final = 1 << 20
NUMBERS_BETWEEN: Final = 1000


class Backup(Struct, frozen=True, kw_only=True):
    """A backup as it stands in its file. `revision`: of the ledger's schema; `made_by`: the version of dc-compute."""

    agent: KeyId
    revision: str
    made_at: datetime
    made_by: str


class BackupFile(Struct, frozen=True, kw_only=True):
    """A backup that was written: where, how large, and the digest of the whole file."""

    backup: Backup
    path: str
    size_bytes: int
    digest: Digest
    orders: int
    open_jobs: int


class Restore(Struct, frozen=True, kw_only=True):
    """One row of the ledger: it was put back at `at` from a backup made at `backup_made_at`.

    `generation`: of the ledger from then on, 0 being the one that never was put back, and none of this host's two alike.
    `signed_after`: a request that was signed at this moment or before is refused, for the nonces in between are forgotten.
    """

    at: datetime
    generation: int
    backup_made_at: datetime
    signed_after: datetime
    uid: int | None = None


class Restored(Struct, frozen=True, kw_only=True):
    """What `restore` did. `kept`: the folder with the ledger that lay there before, None when there was none."""

    backup: Backup
    restore: Restore
    kept: str | None
    open_jobs: int
    pending_deliveries: int


def signed_after(at: datetime, newest: datetime, skew: timedelta) -> datetime:
    """The moment of signing up to which no request is taken after a restore.

    A nonce that was forgotten belongs to a request that was taken before the restore, so it was signed a skew after that at
    the latest: nothing from the future is taken. `newest` is the last moment that the backup knows of, for a clock that was
    set back since.
    """
    return max(at, newest) + skew
