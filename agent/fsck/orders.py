"""One order with everything that was signed for it or is to be told about it: each thing readable, itself, and in its place."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import assert_never

from msgspec.structs import replace

from agent.domain.cancellations import MAX_CANCELLATION_BYTES, parse_cancellation
from agent.domain.orders import MAX_ORDER_BYTES, SignedOrder, parse_order
from agent.domain.receipts import (
    MAX_RECEIPT_BYTES,
    Outcome,
    SignedReceipt,
    check_link,
    check_place,
    next_link,
    parse_receipt,
)
from agent.domain.reports import parse_report, parse_result
from agent.errors import AgentError, BadSignature
from agent.fsck.findings import DECIDE, RESTORE, Code, Finding
from agent.fsck.seen import OrderRows, Row
from agent.ports.ledger import DeliveryKind, DeliveryState
from agent.trust.envelope import Envelope, pae, parse_envelope
from agent.trust.handoff import parse_handoff
from agent.trust.roster import Roster

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WAITS = "nothing: the worker buries what cannot be sent; `dc-compute orders` shows it"


def moment(value: object) -> datetime | None:
    """A column of the ledger as a moment; None when it is empty or none."""
    return _EPOCH + timedelta(microseconds=value) if isinstance(value, int) else None


class Chain:
    """The order and its receipts as far as they could be read."""

    def __init__(self, rows: OrderRows, roster: Roster) -> None:
        self._rows, self._roster = rows, roster
        self.where = f"order {rows.order['id']}"
        self.signed: SignedOrder | None = None
        self.receipts: dict[int, SignedReceipt] = {}

    def findings(self) -> Iterator[Finding]:
        """What is wrong with the order, its receipts and its deliveries; the readable ones are kept for who comes next."""
        yield from self._order()
        for row in self._rows.receipts:
            yield from self._receipt(row)
        yield from self._links()
        for row in self._rows.deliveries:
            yield from self._delivery(row)

    # ---- the order

    def _order(self) -> Iterator[Finding]:
        row = self._rows.order
        try:
            envelope = parse_envelope(row["envelope"], limit_bytes=MAX_ORDER_BYTES)
            order = parse_order(envelope.payload_type, envelope.payload)
        except (AgentError, TypeError) as cause:
            yield finding(Code.ORDER_UNREADABLE, self.where, str(cause), RESTORE)
            return
        expected = {
            "digest": envelope.digest,
            "id": order.id,
            "payload_type": envelope.payload_type,
            "signer": envelope.keyid,
            "expires": order.expires,
        }
        told = {**row, "expires": moment(row["expires"])}
        wrong = [name for name, value in expected.items() if told[name] != value]
        if wrong:
            yield finding(
                Code.ORDER_DIFFERS, self.where, f"its envelope says another {', '.join(wrong)}", RESTORE
            )
        yield from self._signature(envelope, self.where)
        if not wrong:
            self.signed = SignedOrder(order, envelope.digest, envelope.keyid, row["envelope"])

    def _signature(self, envelope: Envelope, where: str) -> Iterator[Finding]:
        """The signature alone: dates, roles and revocations were judged when it came, and may have changed since."""
        entry = self._roster.find(envelope.keyid)
        if entry is None:
            mend = "`dc-compute peers add`, with a `revoked_at` when it must not count any more"
            yield finding(
                Code.SIGNER_UNKNOWN, where, f"signed by {envelope.keyid}, whom the roster lacks", mend
            )
            return
        try:
            entry.public_key.verify(envelope.signature, pae(envelope.payload_type, envelope.payload))
        except BadSignature:
            yield finding(Code.SIGNATURE, where, f"the signature of {entry.name} does not hold", RESTORE)

    # ---- receipts

    def _receipt(self, row: Row) -> Iterator[Finding]:
        where = f"{self.where}, receipt {row['position']}"
        try:
            envelope = parse_envelope(row["envelope"], limit_bytes=MAX_RECEIPT_BYTES)
            receipt = parse_receipt(envelope.payload)
        except (AgentError, TypeError) as cause:
            yield finding(Code.RECEIPT_UNREADABLE, where, str(cause), RESTORE)
            return
        yield from self._signature(envelope, where)
        if (row["digest"], row["signer"]) != (envelope.digest, envelope.keyid):
            yield finding(Code.RECEIPT_DIFFERS, where, "its envelope has another digest or signer", RESTORE)
            return
        signed = SignedReceipt(receipt, envelope.digest, envelope.keyid, row["envelope"])
        if self.signed is not None and isinstance(row["position"], int):
            try:
                check_place(self.signed, _as_done(signed), row["position"])
            except (AgentError, IndexError) as cause:
                yield finding(Code.RECEIPT_DIFFERS, where, str(cause), RESTORE)
                return
            self.receipts[row["position"]] = signed

    def _links(self) -> Iterator[Finding]:
        """Each receipt follows the one before it, where that one is there."""
        if self.signed is None:
            return
        for position, receipt in sorted(self.receipts.items()):
            before = [self.receipts[position - 1]] if position - 1 in self.receipts else []
            if position > 0 and not before:
                continue
            where = f"{self.where}, receipt {position}"
            if before and before[0].receipt.outcome is not Outcome.DONE:
                yield finding(Code.RECEIPT_LINK, where, "it follows one of a failed task", RESTORE)
                continue
            try:
                if receipt.receipt.outcome is Outcome.DONE:
                    check_link(self.signed, before, receipt)
                elif (receipt.receipt.previous, receipt.receipt.model_in) != next_link(self.signed, before):
                    yield finding(Code.RECEIPT_LINK, where, "it does not follow the one before it", RESTORE)
            except AgentError as cause:
                yield finding(Code.RECEIPT_LINK, where, str(cause), RESTORE)

    # ---- deliveries

    def _delivery(self, row: Row) -> Iterator[Finding]:
        where = f"delivery {row['id']}"
        if (
            not row["body"]
            and row["state"] == DeliveryState.ACKNOWLEDGED
            and row["acknowledged_at"] is not None
        ):
            return  # it arrived, and its time was over; or a report of another life, which was counted on
        if row["body"] is None:
            yield finding(Code.BODY_MISSING, where, "there is nothing to send", DECIDE)
            return
        if row["state"] not in set(DeliveryState) or row["kind"] not in set(DeliveryKind):
            told = f"its state is {row['state']!r}, its kind {row['kind']!r}"
            yield finding(Code.DELIVERY_UNREADABLE, where, told, DECIDE)
            return
        job = f"{row['order_id']}.{row['position']}"
        if row["id"] != f"{job}.{row['kind']}.{row['n']}" or row["job_id"] != job:
            yield finding(Code.DELIVERY_DIFFERS, where, "it is named after another place", DECIDE)
        if row["order_digest"] != self._rows.order["digest"]:
            yield finding(Code.DELIVERY_DIFFERS, where, "it is of another order's digest", DECIDE)
        if row["state"] == DeliveryState.ACKNOWLEDGED and row["acknowledged_at"] is None:
            yield finding(Code.DELIVERY_DIFFERS, where, "it is acknowledged, and nobody knows when", DECIDE)
        try:
            wrong = self._body(row)
        except AgentError as cause:
            yield finding(Code.DELIVERY_UNREADABLE, where, str(cause), WAITS)
            return
        if wrong is not None:
            yield finding(Code.DELIVERY_DIFFERS, where, wrong, DECIDE)

    def _body(self, row: Row) -> str | None:
        """What its body says otherwise than its row. Raises: AgentError when it cannot be read."""
        digest, position = self._rows.order["digest"], row["position"]
        match DeliveryKind(row["kind"]):
            case DeliveryKind.REPORT:
                report = parse_report(row["body"])
                is_right = (report.order, report.position) == (digest, position)
            case DeliveryKind.RESULT:
                is_right = parse_result(row["body"]).order == digest
            case DeliveryKind.HANDOFF:
                parsed = parse_handoff(row["body"])
                opened = parse_envelope(parsed.order, limit_bytes=MAX_ORDER_BYTES)
                is_right = opened.digest == digest and parsed.position in {position, position + 1}
            case DeliveryKind.CANCELLATION:
                envelope = parse_envelope(row["body"], limit_bytes=MAX_CANCELLATION_BYTES)
                is_right = parse_cancellation(envelope.payload).order == digest
            case kind:
                assert_never(kind)
        return None if is_right else "its body tells of another place"


def _as_done(signed: SignedReceipt) -> SignedReceipt:
    """The same as if its task had been done: a failed one has its place too."""
    return SignedReceipt(
        replace(signed.receipt, outcome=Outcome.DONE), signed.digest, signed.signer, signed.envelope
    )


def finding(code: Code, where: str, seen: str, mend: str) -> Finding:
    """A finding that a person mends."""
    return Finding(code=code, where=where, seen=seen[:300], mend=mend)
