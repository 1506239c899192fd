"""What the operator decided on images, by the digest of their archive. The last word on a digest counts."""

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from agent.domain.ids import Digest


class Verdict(StrEnum):
    """May it run on this host?"""

    APPROVED = "approved"
    DENIED = "denied"


class Ruling(Struct, frozen=True, kw_only=True):
    """One decision. `uid` is the operator's, as the kernel told it of the socket's peer; `reason` stays on this host."""

    image: Digest
    verdict: Verdict
    at: datetime
    uid: int | None = None
    reason: str | None = None


VerdictOn = Callable[[Digest], Verdict | None]
"""The operator's last word on an image; None when there is none."""


def no_word(_image: Digest) -> None:
    """Nobody was ever asked: only the policy's file counts."""
