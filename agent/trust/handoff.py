"""The hand-off: what one agent sends the next, and the rulebook by which the next one takes it or refuses.

The rulebook (docs/contracts/chain.md, "Hand-off"), in this order, each check with refusals of its own;
`position` is the number of receipts:

(0) The sender, who signed the request (the API room verified that), is an agent of the roster whose key holds
    now; at position > 0 it is the signer of the last receipt, be it under another key of its own.
    UnknownKey, WrongRole, KeyNotValid, HandoffSender
(1) The order: one envelope of an order's type, signed by the orchestrator that it names; a task is left at
    `position`.
    BadEnvelope, UnknownPayloadType, UnknownKey, WrongRole, BadSignature, BadOrder, NotYours, ReceiptRefused
(2) A repeat (order, position and last receipt as recorded before) is answered as before, whatever time or
    storage say now; another last receipt for the place, or the order's id under another digest, is refused.
    HandoffConflict, OrderConflict
(3) The time: the order's own window, give or take the one skew; the orchestrator's key holds now.
    OrderNotYetValid, OrderExpired, KeyNotValid
(4) The host's policy admits the orchestrator, the images, and the kind and dataset of the next task. Images that only
    lack the operator's word are no refusal where the policy holds such orders: nothing runs before that word.
    PolicyRefused, ImageDenied
(5) Each receipt is signed by an agent whose key held when the task finished; it is for this order, its place
    and the task there, and done; its signer is one that storage names for that task's dataset.
    BadSignature, UnknownKey, WrongRole, KeyNotValid, ReceiptRefused
(6) The receipts link (`previous`), and so do their models (`model_in`, `model_out`).
    BrokenLink
(7) The next task's dataset lies on this node.
    DatasetNotHere

An order that an orchestrator sends itself (`verify_order`) takes (1) to (4); its sender must be its signer.

No I/O: what storage and the ledger know comes in as functions. A function that raises lets its error through.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final

from msgspec import Meta, Raw, Struct

from agent.domain.approvals import VerdictOn, no_word
from agent.domain.chain import Task, plan
from agent.domain.ids import Digest, KeyId, OrderId
from agent.domain.orders import MAX_TASKS, DatasetRef, SignedOrder, check_window
from agent.domain.receipts import MAX_RECEIPT_BYTES, SignedReceipt, check_link, check_place
from agent.domain.strict_json import decode, encode
from agent.errors import (
    BadEnvelope,
    BadOrder,
    DatasetNotHere,
    HandoffConflict,
    HandoffSender,
    NotYours,
    OrderConflict,
    ReceiptRefused,
)
from agent.trust.envelope import Envelope, WireEnvelope, parse_envelope
from agent.trust.policy import HostPolicy
from agent.trust.roster import Role, Roster
from agent.trust.signed import open_order, open_receipt

MAX_HANDOFF_BYTES: Final = 32 << 20

Locate = Callable[[DatasetRef], frozenset[KeyId]]
"""The agents that storage names for a dataset: those whose node holds it."""

Foresee = Callable[[Sequence[DatasetRef]], None]
"""Is told which datasets will be asked about, so that it can be done for all of them at the same time."""


class HandoffBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/handoffs: the order's envelope and those of its receipts, in order of position."""

    order: WireEnvelope
    receipts: Annotated[tuple[WireEnvelope, ...], Meta(max_length=MAX_TASKS)]


class ParsedHandoff(Struct, frozen=True):
    """A hand-off taken apart, nothing verified: envelopes as JSON bytes, and the last receipt's parts."""

    order: bytes
    receipts: tuple[bytes, ...]
    last: Envelope | None

    @property
    def position(self) -> int:
        """Where the chain goes on: the number of tasks done."""
        return len(self.receipts)


class Recorded(Struct, frozen=True):
    """What the ledger holds for an order at a position that this node took."""

    last_receipt: Digest | None  # of the task before; None at position 0


class Repeat(Struct, frozen=True):
    """The same thing again: nothing to do, the answer is 200 and the resource that is there already."""

    order_id: OrderId
    order: Digest
    position: int


class VerifiedHandoff(Struct, frozen=True):
    """A hand-off that passed every check: this node goes on with `task`, on the model of the last receipt."""

    order: SignedOrder
    receipts: tuple[SignedReceipt, ...]
    task: Task

    @property
    def position(self) -> int:
        """The position of `task`."""
        return self.task.position


RecordedAt = Callable[[Digest, int], Recorded | None]
"""What the ledger holds for (order digest, position); None when this node never took it."""

RecordedId = Callable[[OrderId], Digest | None]
"""The digest under which the ledger knows this order id; None when it does not."""


def build_handoff(order: SignedOrder, receipts: Sequence[SignedReceipt]) -> bytes:
    """The body that hands this order on after these receipts."""
    return encode({"order": Raw(order.envelope), "receipts": [Raw(r.envelope) for r in receipts]})


def parse_handoff(body: bytes) -> ParsedHandoff:
    """The envelopes in this body.

    Raises: TooLarge, BadJson; BadEnvelope when it is not one order's envelope and a list of others.
    """
    try:
        wire = decode(body, HandoffBody, limit_bytes=MAX_HANDOFF_BYTES, what="the hand-off")
    except BadOrder as cause:
        raise BadEnvelope(cause.detail) from cause
    receipts = tuple(encode(receipt) for receipt in wire.receipts)
    last = parse_envelope(receipts[-1], limit_bytes=MAX_RECEIPT_BYTES) if receipts else None
    return ParsedHandoff(encode(wire.order), receipts, last)


def verify_handoff(
    body: bytes,
    *,
    sender: KeyId,
    me: KeyId,
    roster: Roster,
    policy: HostPolicy,
    locate: Locate,
    recorded: RecordedAt,
    recorded_id: RecordedId,
    now: datetime,
    skew: timedelta,
    ruled: VerdictOn = no_word,
    foresee: Foresee = lambda _: None,
) -> VerifiedHandoff | Repeat:
    """The hand-off in this body, all of it verified, or the news that it was taken before.

    `sender`: who signed the request. `me`: this agent. `ruled`: what the operator decided on an image. `foresee`: is told for
    which datasets `locate` will be asked.
    Raises: what the rulebook above names, check by check.
    """
    parsed = parse_handoff(body)
    _check_sender(sender, parsed, roster, now)  # (0)
    order = _open_order_with_task_left(parsed, roster)  # (1)
    repeat = _find_repeat(order, parsed, recorded, recorded_id)  # (2)
    if repeat is not None:
        return repeat
    task = plan(order.order)[parsed.position]
    _check_time(order, roster, now, skew)  # (3)
    policy.admit_or_hold(order, [task], ruled)  # (4)
    foresee([each.dataset for each in plan(order.order)[: parsed.position + 1]])
    receipts = _open_receipts(order, parsed, roster, locate)  # (5)
    _check_links(order, receipts)  # (6)
    _check_lies_here(task, me, roster, locate)  # (7)
    return VerifiedHandoff(order, receipts, task)


def verify_order(
    envelope: bytes,
    *,
    payload_type: str,
    sender: KeyId,
    roster: Roster,
    policy: HostPolicy,
    recorded_id: RecordedId,
    now: datetime,
    skew: timedelta,
    ruled: VerdictOn = no_word,
) -> SignedOrder | Repeat:
    """The order that an orchestrator sent itself, verified, or the news that it was taken before.

    `payload_type`: the one that the route takes. `sender`: who signed the request. The policy judges the
    order's first task: a host takes only orders that it would be willing to begin.
    Raises: what checks (1) to (4) above name; NotYours when another than the sender signed the order.
    """
    order = open_order(envelope, roster, None, types={payload_type})  # (1)
    _check_own_order(sender, order)
    repeat = _find_known_order(order, recorded_id)  # (2)
    if repeat is not None:
        return repeat
    _check_time(order, roster, now, skew)  # (3)
    policy.admit_or_hold(order, plan(order.order)[:1], ruled)  # (4)
    return order


# ------------------------------------------------------------------ (0) the sender


def _check_sender(sender: KeyId, parsed: ParsedHandoff, roster: Roster, now: datetime) -> None:
    roster.require(sender, role=Role.AGENT, at=now)
    if parsed.last is not None and not roster.is_same_agent(parsed.last.keyid, sender):
        raise HandoffSender(f"agent {sender} sent it, the last receipt is of agent {parsed.last.keyid}")


def _check_own_order(sender: KeyId, order: SignedOrder) -> None:
    if order.signer != sender:
        raise NotYours(f"orchestrator {order.signer} signed the order, {sender} sent it")


# ------------------------------------------------------------------ (1) the order


def _open_order_with_task_left(parsed: ParsedHandoff, roster: Roster) -> SignedOrder:
    """The order. The dates of its signer's key are left to (3): a repeat is known whatever the time."""
    order = open_order(parsed.order, roster, None)
    task_count = len(plan(order.order))
    if parsed.position >= task_count:
        raise ReceiptRefused(
            f"the hand-off brings {parsed.position} receipts, the order has {task_count} tasks: none is left"
        )
    return order


# ------------------------------------------------------------------ (2) a repeat


def _find_repeat(
    order: SignedOrder, parsed: ParsedHandoff, recorded: RecordedAt, recorded_id: RecordedId
) -> Repeat | None:
    _find_known_order(order, recorded_id)
    before = recorded(order.digest, parsed.position)
    if before is None:
        return None
    last_receipt = None if parsed.last is None else parsed.last.digest
    if before.last_receipt != last_receipt:
        raise HandoffConflict(f"order {order.order.id} was taken at {parsed.position} after another receipt")
    return Repeat(order.order.id, order.digest, parsed.position)


def _find_known_order(order: SignedOrder, recorded_id: RecordedId) -> Repeat | None:
    known = recorded_id(order.order.id)
    if known is None:
        return None
    if known != order.digest:
        raise OrderConflict(f"order id {order.order.id} is known with other content")
    return Repeat(order.order.id, order.digest, 0)


# ------------------------------------------------------------------ (3) the time


def _check_time(order: SignedOrder, roster: Roster, now: datetime, skew: timedelta) -> None:
    check_window(order.order, now, skew)
    roster.require(order.signer, role=Role.ORCHESTRATOR, at=now)


# ------------------------------------------------------------------ (5) each receipt


def _open_receipts(
    order: SignedOrder, parsed: ParsedHandoff, roster: Roster, locate: Locate
) -> tuple[SignedReceipt, ...]:
    receipts = tuple(open_receipt(envelope, roster) for envelope in parsed.receipts)
    for position, receipt in enumerate(receipts):
        check_place(order, receipt, position)
    for task, receipt in zip(plan(order.order), receipts, strict=False):
        check_holder(task, receipt, roster, locate)
    return receipts


def check_holder(task: Task, receipt: SignedReceipt, roster: Roster, locate: Locate) -> None:
    """Refuse a receipt whose signer is not an agent that storage names, by any of its keys, for the task's dataset.

    Raises: ReceiptRefused.
    """
    if not roster.is_among(receipt.signer, locate(task.dataset)):
        raise ReceiptRefused(
            f"receipt {task.position} is of agent {receipt.signer}, which does not hold {task.dataset}"
        )


# ------------------------------------------------------------------ (6) the links


def _check_links(order: SignedOrder, receipts: tuple[SignedReceipt, ...]) -> None:
    for position, receipt in enumerate(receipts):
        check_link(order, receipts[max(position - 1, 0) : position], receipt)


# ------------------------------------------------------------------ (7) the place


def _check_lies_here(task: Task, me: KeyId, roster: Roster, locate: Locate) -> None:
    if not roster.is_among(me, locate(task.dataset)):
        raise DatasetNotHere(f"storage does not name this node for dataset {task.dataset}")
