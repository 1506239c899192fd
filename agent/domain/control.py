"""What the host does as a whole: the operator's word, or what a restored ledger asks for. One row of the ledger."""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct


class Mode(StrEnum):
    """Whether tasks start here."""

    RUNNING = "running"
    PAUSED = "paused"  # intake goes on, no task starts; what runs ends by itself
    DRAINING = "draining"  # no intake, no task starts
    RESTORED = "restored"  # the ledger is an old one: nothing runs or leaves before orchestrators told what they know


class Control(Struct, frozen=True, kw_only=True):
    """The mode, since when, and who said so and why. `until`: when a drain should be over."""

    mode: Mode = Mode.RUNNING
    since: datetime | None = None
    until: datetime | None = None
    reason: str | None = None
    uid: int | None = None

    @property
    def may_start(self) -> bool:
        """Whether a queued task may begin."""
        return self.mode is Mode.RUNNING
