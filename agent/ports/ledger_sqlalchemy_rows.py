"""Rows of the ledger as values. Signed things come back from their envelopes; they were verified before they were recorded."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import RowMapping

from agent.domain.audit import Line, Plain, digest_of_line
from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, JobId, KeyId, OrderId
from agent.domain.jobs import Job, JobState
from agent.domain.orders import MAX_ORDER_BYTES, SignedOrder, parse_order
from agent.domain.prepared import prepared
from agent.domain.receipts import MAX_RECEIPT_BYTES, SignedReceipt, parse_receipt
from agent.errors import AgentError, LedgerUnavailable
from agent.ports.ledger import (
    Delivery,
    DeliveryHead,
    DeliveryId,
    DeliveryKind,
    DeliveryState,
    EventRecord,
    OrderRecord,
)
from agent.trust.envelope import parse_envelope

__all__ = ["Plain"]


def job_of(row: Mapping[Any, Any]) -> Job:
    """A row of `jobs`."""
    return Job(
        id=JobId(row["id"]),
        order=Digest(row["order_digest"]),
        order_id=OrderId(row["order_id"]),
        position=row["position"],
        kind=TaskKind(row["kind"]),
        state=JobState(row["state"]),
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        received_at=row["received_at"],
        changed_at=row["changed_at"],
        not_before=row["not_before"],
        worker=row["worker"],
        lease_until=row["lease_until"],
        next_agent=row["next_agent"],
        reason=row["reason"],
        score=row["score"],
        claim=row["claim"],
    )


def row_of_job(job: Job, *, signer: str, last_receipt: Digest | None) -> dict[str, Any]:
    """A new job as a row of `jobs`."""
    row = msgspec.structs.asdict(job)
    row["order_digest"] = row.pop("order")
    return {**row, "signer": signer, "last_receipt": last_receipt}


def delivery_of(row: Mapping[Any, Any]) -> Delivery:
    """A row of `deliveries` with its `body`."""
    return Delivery(**_head(row), body=row["body"] or b"")  # forgotten some time after it arrived


def head_of(row: Mapping[Any, Any]) -> DeliveryHead:
    """A row of `deliveries`."""
    return DeliveryHead(**_head(row))


def _head(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "id": DeliveryId(row["id"]),
        "job": JobId(row["job_id"]),
        "order": Digest(row["order_digest"]),
        "order_id": OrderId(row["order_id"]),
        "position": row["position"],
        "kind": DeliveryKind(row["kind"]),
        "n": row["n"],
        "target": KeyId(row["target"]),
        "state": DeliveryState(row["state"]),
        "attempts": row["attempts"],
        "next_try_at": row["next_try_at"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "acknowledged_at": row["acknowledged_at"],
        "lease_until": row["lease_until"],
        "last_error": row["last_error"],
    }


def order_of(row: Mapping[Any, Any]) -> OrderRecord:
    """A row of `orders`."""
    return OrderRecord(
        digest=Digest(row["digest"]),
        id=OrderId(row["id"]),
        payload_type=row["payload_type"],
        signer=KeyId(row["signer"]),
        envelope=row["envelope"],
        expires=row["expires"],
        received_at=row["received_at"],
        sender=KeyId(row["sender"]),
        trace=row["trace_id"],
    )


def signed_of(row: RowMapping) -> SignedOrder:
    """The order in a row of `orders`. Raises: LedgerUnavailable when it does not parse any more: somebody wrote in the file."""
    try:
        envelope = parse_envelope(row["envelope"], limit_bytes=MAX_ORDER_BYTES)
        order = parse_order(envelope.payload_type, envelope.payload)
    except AgentError as cause:
        raise LedgerUnavailable(f"the recorded order {row['id']} cannot be read: {cause}") from cause
    return SignedOrder(order, Digest(row["digest"]), KeyId(row["signer"]), row["envelope"])


def receipt_of(row: RowMapping) -> SignedReceipt:
    """A row of `receipts`. Raises: LedgerUnavailable when it does not parse any more: somebody wrote in the file."""
    try:
        envelope = parse_envelope(row["envelope"], limit_bytes=MAX_RECEIPT_BYTES)
        receipt = parse_receipt(envelope.payload)
    except AgentError as cause:
        place = f"{row['order_digest']}, position {row['position']}"
        raise LedgerUnavailable(f"the recorded receipt of {place} cannot be read: {cause}") from cause
    return SignedReceipt(receipt, Digest(row["digest"]), KeyId(row["signer"]), row["envelope"])


def row_of_receipt(signed: SignedReceipt, order: Digest, position: int, now: datetime) -> dict[str, Any]:
    """A receipt as a row of `receipts`."""
    return {
        "order_digest": order,
        "position": position,
        "digest": signed.digest,
        "signer": signed.signer,
        "recorded_at": now,
        "envelope": signed.envelope,
    }


def event_of(row: RowMapping) -> EventRecord:
    """A row of `events`."""
    return EventRecord(
        seq=row["seq"],
        at=row["at"],
        name=row["name"],
        order_id=row["order_id"],
        position=row["position"],
        values=msgspec.json.decode(row["values"], type=prepared(dict[str, Plain])),
        dataset=row["dataset"],
        digest=row["digest"],
    )


def row_of_line(line: Line) -> dict[str, Any]:
    """A line of the audit log as a row of `events`."""
    return {
        "seq": line.seq,
        "at": line.at,
        "name": line.name,
        "order_id": line.order,
        "position": line.position,
        "values": bytes(line.values).decode(),
        "dataset": line.dataset,
        "digest": digest_of_line(line),
    }


def told_of(job: Job) -> dict[str, Plain]:
    """What the event of a move tells of the job: the count of attempts, and whatever else there is to say."""
    values: dict[str, Plain] = {"attempt": job.attempt, "max_attempts": job.max_attempts}
    said = {"reason": job.reason, "worker": job.worker, "next_agent": job.next_agent, "score": job.score}
    return values | {name: value for name, value in said.items() if value is not None}
