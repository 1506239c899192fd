"""How orders stand elsewhere: what an orchestrator tells an agent that asks what a lost message hid, and what a peer tells.

An agent acts on none of it by itself: envelopes are opened and verified anew by `trust/`, whoever sent them.

Source: docs/contracts/http.md, "Asked of orchestrators" and "What the agent answers".
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from agent.domain.ids import DigestField, KeyId, KeyIdField, OrderId, OrderIdField
from agent.domain.jobs import JobState
from agent.domain.orders import MAX_TASKS
from agent.domain.receipts import Text
from agent.domain.reports import Envelope
from agent.domain.strict_json import decode
from agent.errors import BadReport

MAX_PAGE_BYTES = 32 << 20
MAX_STANDING_BYTES = 34 << 20  # an order and the receipts of all its tasks, as in a hand-off
MAX_PEER_ORDER_BYTES = 8 << 20
PAGE_ORDERS = 100

Position = Annotated[int, Meta(ge=0, le=MAX_TASKS)]


class OrderState(StrEnum):
    """How an order stands at its orchestrator."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ReceiptTold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A receipt that the orchestrator acknowledged for a place. It never acknowledges another one."""

    position: Position
    digest: DigestField
    agent: KeyIdField


class ReportsTold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The highest `n` of the reports on a place that it took from the agent that asks."""

    position: Position
    n: Annotated[int, Meta(ge=1)]


class Standing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one order stands.

    `position`: the first place without a receipt, as far as reports told. `holder`: who is said to have the order now.
    `receipts`: by position.
    """

    id: OrderIdField
    digest: DigestField
    state: OrderState
    position: Position
    tasks: Position
    holder: KeyIdField | None
    reason: Text | None
    receipts: Annotated[tuple[ReceiptTold, ...], Meta(max_length=MAX_TASKS)]
    reports: Annotated[tuple[ReportsTold, ...], Meta(max_length=MAX_TASKS)]

    def receipt_at(self, position: int) -> ReceiptTold | None:
        """The receipt that was acknowledged for this place."""
        return next((receipt for receipt in self.receipts if receipt.position == position), None)

    def reports_at(self, position: int) -> int:
        """How far the asking agent's reports on this place are counted there; 0 without any."""
        return next((told.n for told in self.reports if told.position == position), 0)


class StandingsPage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A page of orders, oldest first. `next`: what to give as `after` for the page that follows; None on the last."""

    orders: tuple[Standing, ...]
    next: OrderIdField | None


class WholeStanding(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One order with what was signed of it: its own envelope, and those of the receipts, in the order of
    `standing.receipts`."""

    standing: Standing
    envelope: Envelope
    receipts: Annotated[tuple[Envelope, ...], Meta(max_length=MAX_TASKS)]

    def __post_init__(self) -> None:
        if len(self.receipts) != len(self.standing.receipts):
            raise ValueError("an envelope for each receipt that the standing names")


class PeerJob(Struct, frozen=True, kw_only=True):
    """A job of an order at another agent. That agent may tell more."""

    position: int
    state: JobState
    next_agent: KeyId | None = None


class PeerOrder(Struct, frozen=True, kw_only=True):
    """An order as another agent knows it."""

    id: OrderId
    digest: DigestField
    jobs: tuple[PeerJob, ...]

    def is_known_at(self, position: int) -> bool:
        """Whether that agent took the order at this place."""
        return any(job.position == position for job in self.jobs)


def parse_standings(body: bytes) -> StandingsPage:
    """A page of what an orchestrator tells. Raises: TooLarge, BadJson, BadReport."""
    return decode(body, StandingsPage, limit_bytes=MAX_PAGE_BYTES, what="the standings", error=BadReport)


def parse_standing(body: bytes) -> WholeStanding:
    """What an orchestrator tells of one order. Raises: TooLarge, BadJson, BadReport."""
    return decode(body, WholeStanding, limit_bytes=MAX_STANDING_BYTES, what="the standing", error=BadReport)


def parse_peer_order(body: bytes) -> PeerOrder:
    """What another agent tells of an order. Raises: TooLarge, BadJson, BadReport."""
    return decode(body, PeerOrder, limit_bytes=MAX_PEER_ORDER_BYTES, what="the peer's order", error=BadReport)
