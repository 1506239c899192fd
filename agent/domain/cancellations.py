"""Cancellations: an orchestrator takes its order back, or this host's operator ends it here.

Source: docs/contracts/chain.md, "Cancel".
"""

from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from agent.domain.ids import Digest, DigestField, KeyId, is_wire_time
from agent.domain.strict_json import decode
from agent.errors import CancellationNotYetValid

CANCEL_TYPE: Final = "application/vnd.dc-compute.cancel.v1+json"
MAX_CANCELLATION_BYTES: Final = 4 << 10

KEPT_WITHOUT_ORDER: Final = timedelta(days=30)  # from the last time it was sent
MOST_WITHOUT_ORDER: Final = 1000  # of one orchestrator

OPERATOR: Final = "operator"  # the source of a cancellation that nobody signed

CANCELLED: Final = (
    "cancelled"  # reasons, as reports carry them: the orchestrator knows its own from the operator's
)
BY_OPERATOR: Final = "cancelled-by-operator"


class Cancellation(Struct, frozen=True, forbid_unknown_fields=True):
    """What the orchestrator signs: which order, by the digest of its payload, and when it said so."""

    order: DigestField
    issued: datetime

    def __post_init__(self) -> None:
        if not is_wire_time(self.issued):
            raise ValueError("times are RFC 3339 in UTC with Z, whole seconds")


class SignedCancellation(Struct, frozen=True):
    """A cancellation whose signature, type and role were verified. `envelope` is the DSSE envelope as it came."""

    cancellation: Cancellation
    signer: KeyId
    envelope: bytes


class KeptCancellation(Struct, frozen=True, kw_only=True):
    """A row of the ledger: an order ends here, and so does what comes of it later.

    `source`: the orchestrator that signed it, or OPERATOR; only that of the order's own orchestrator or the operator counts.
    `uid` and `reason` are the operator's and stay on this host.
    """

    order: Digest
    source: str
    at: datetime
    keep_until: datetime
    envelope: bytes | None = None
    uid: int | None = None
    reason: str | None = None

    @property
    def told_reason(self) -> str:
        """What reports give as the reason."""
        return BY_OPERATOR if self.source == OPERATOR else CANCELLED


def parse_cancellation(payload: bytes) -> Cancellation:
    """The cancellation in these payload bytes. Raises: TooLarge, BadJson, BadOrder."""
    return decode(payload, Cancellation, limit_bytes=MAX_CANCELLATION_BYTES, what="the cancellation")


def check_issued(cancellation: Cancellation, now: datetime, skew: timedelta) -> None:
    """Refuse one that was issued in the future, give or take the one skew setting. Raises: CancellationNotYetValid."""
    if now + skew < cancellation.issued:
        raise CancellationNotYetValid(f"it was issued at {cancellation.issued.isoformat()}, which is to come")
