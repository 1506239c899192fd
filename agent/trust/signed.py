"""Orders, receipts and cancellations out of their envelopes and into them: the only makers of SignedOrder, SignedReceipt and
SignedCancellation.

Source: docs/contracts/chain.md, "Order" and "Receipt"; docs/contracts/roster.md for whose dates are judged
when.
"""

from collections.abc import Collection
from datetime import datetime

from msgspec.structs import replace

from agent.domain.cancellations import (
    CANCEL_TYPE,
    MAX_CANCELLATION_BYTES,
    Cancellation,
    SignedCancellation,
    parse_cancellation,
)
from agent.domain.ids import digest_of, is_wire_time
from agent.domain.orders import MAX_ORDER_BYTES, ORDER_TYPES, Order, SignedOrder, parse_order
from agent.domain.receipts import (
    MAX_RECEIPT_BYTES,
    RECEIPT_TYPE,
    Receipt,
    SignedReceipt,
    parse_receipt,
    receipt_payload,
)
from agent.domain.strict_json import encode
from agent.errors import NotYours, ReceiptRefused
from agent.trust.envelope import open_envelope, sign_envelope
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster


def open_order(
    envelope: bytes, roster: Roster, now: datetime | None, *, types: Collection[str] = frozenset(ORDER_TYPES)
) -> SignedOrder:
    """The order in this envelope, signed by an orchestrator whose key holds `now`.

    `now` is None only where the caller judges the key's dates itself, later (`Roster.require`). The order's
    own time window is not judged here. `types`: the payload types that are welcome.
    Raises: as open_envelope; TooLarge, BadJson, BadOrder; NotYours when the order names another orchestrator than
    signed it: the digest that everybody knows an order by does not cover the signature.
    """
    opened = open_envelope(
        envelope, roster, role=Role.ORCHESTRATOR, types=types, at=now, limit_bytes=MAX_ORDER_BYTES
    )
    order = parse_order(opened.payload_type, opened.payload)
    if order.orchestrator != opened.signer:
        raise NotYours(f"orchestrator {opened.signer} signed an order of {order.orchestrator}")
    return SignedOrder(order, opened.digest, opened.signer, envelope)


def open_receipt(envelope: bytes, roster: Roster) -> SignedReceipt:
    """The receipt in this envelope, signed by an agent whose key held when the task finished and is not
    revoked.

    Its place in a chain is not judged here.
    Raises: as open_envelope; TooLarge, BadJson, BadOrder, ReceiptRefused.
    """
    opened = open_envelope(
        envelope, roster, role=Role.AGENT, types={RECEIPT_TYPE}, at=None, limit_bytes=MAX_RECEIPT_BYTES
    )
    receipt = parse_receipt(opened.payload)
    _check_times(receipt)
    roster.require(opened.signer, role=Role.AGENT, at=receipt.finished)
    return SignedReceipt(receipt, opened.digest, opened.signer, envelope)


def open_cancellation(envelope: bytes, roster: Roster, now: datetime) -> SignedCancellation:
    """The cancellation in this envelope, signed by an orchestrator whose key holds now.

    Whether the order is that orchestrator's own is not judged here: only the order tells.
    Raises: as open_envelope; TooLarge, BadJson, BadOrder.
    """
    opened = open_envelope(
        envelope,
        roster,
        role=Role.ORCHESTRATOR,
        types={CANCEL_TYPE},
        at=now,
        limit_bytes=MAX_CANCELLATION_BYTES,
    )
    return SignedCancellation(parse_cancellation(opened.payload), opened.signer, envelope)


def sign_cancellation(cancellation: Cancellation, key: SigningKey) -> SignedCancellation:
    """This cancellation under this key. Raises: BadOrder when nobody would accept it."""
    payload = encode(cancellation)
    parse_cancellation(payload)
    return SignedCancellation(cancellation, key.keyid, sign_envelope(CANCEL_TYPE, payload, key))


def sign_order(order: Order, key: SigningKey) -> SignedOrder:
    """This order under this key, in its holder's name. Raises: TooLarge, BadJson, BadOrder when nobody would accept it."""
    if order.orchestrator != key.keyid:
        order = replace(order, orchestrator=key.keyid)
    payload = encode(order)
    parse_order(order.payload_type, payload)
    envelope = sign_envelope(order.payload_type, payload, key)
    return SignedOrder(order, digest_of(payload), key.keyid, envelope)


def sign_receipt(receipt: Receipt, key: SigningKey) -> SignedReceipt:
    """This receipt under this key.

    Raises: TooLarge, BadJson, BadOrder, ReceiptRefused when nobody would accept it.
    """
    payload = receipt_payload(receipt)
    _check_times(parse_receipt(payload))
    envelope = sign_envelope(RECEIPT_TYPE, payload, key)
    return SignedReceipt(receipt, digest_of(payload), key.keyid, envelope)


def _check_times(receipt: Receipt) -> None:
    if not (is_wire_time(receipt.started) and is_wire_time(receipt.finished)):
        raise ReceiptRefused("times in a receipt are RFC 3339 in UTC with Z, whole seconds")
    if receipt.finished < receipt.started:
        raise ReceiptRefused("the receipt's task finished before it started")
