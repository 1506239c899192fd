"""Receipts: what a finished task leaves behind, and the rule by which they link into a chain.

Source: docs/contracts/chain.md, "Receipt" and check (6) of "Hand-off".
"""

import math
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

from agent.domain.chain import TaskKind, task_at
from agent.domain.ids import (
    Digest,
    DigestField,
    KeyId,
    KeyIdField,
    UuidField,
    VersionField,
    hex_of,
    is_wire_time,
)
from agent.domain.orders import SignedOrder
from agent.domain.strict_json import decode, encode
from agent.domain.traces import TraceId, TraceIdField, trace_of
from agent.errors import BrokenLink, ReceiptRefused, UnknownPayloadType

RECEIPT_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://deemcare.example/dc-compute/receipt/v1"

MAX_RECEIPT_BYTES = 16 << 10

Text = Annotated[str, Meta(max_length=200)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Score = Annotated[str, Meta(pattern=r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?(?!\n)$", max_length=40)]


class Outcome(StrEnum):
    """How a task ended."""

    DONE = "done"
    FAILED = "failed"


class ReceiptTask(Struct, frozen=True, forbid_unknown_fields=True):
    """Which task it was: enough to compare with the plan without the order at hand."""

    kind: TaskKind
    dataset: UuidField
    version: VersionField


class Output(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing the task left at storage: its name in the container contract, digest and size in bytes."""

    name: Annotated[str, Meta(min_length=1, max_length=120)]
    digest: DigestField
    size: Count


class ImageUse(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An image that ran, and in which role (`problem` or `algo`).

    `approved`: when the operator of that host last approved it; absent where its policy's file lists the image.
    """

    role: Text
    digest: DigestField
    approved: datetime | None = None

    def __post_init__(self) -> None:
        if self.approved is not None and not is_wire_time(self.approved):
            raise ValueError("times are RFC 3339 in UTC with Z, whole seconds")


class Sandbox(Struct, frozen=True, forbid_unknown_fields=True):
    """The cage as it was really applied.

    `seccomp`: profile digest by kind of run. `ceilings`: value by name (bytes, seconds, counts, thousandths of a CPU) with
    what enforces it. `absent`: ceilings this host could not enforce and its policy accepts to miss.
    """

    runtime: Text
    version: Text
    seccomp: dict[Text, DigestField]
    ceilings: dict[Text, Text]
    absent: tuple[Text, ...] = ()


class Usage(Struct, frozen=True, forbid_unknown_fields=True):
    """What the task cost. `phases`: seconds by name of phase, in the order they ran (docs/operators.md, "Phases")."""

    wall_s: Seconds
    cpu_s: Seconds | None = None
    max_memory_bytes: Count | None = None
    phases: dict[Text, Seconds] = {}


class Receipt(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The predicate of the statement: one task of one order, ended, as told by the agent that ran it.

    `trace`: absent where it is the order's own (`domain.traces`).
    """

    order: DigestField
    order_id: UuidField
    position: Annotated[int, Meta(ge=0, le=1000)]
    task: ReceiptTask
    agent: KeyIdField
    previous: DigestField
    model_in: DigestField | None
    model_out: DigestField | None
    outputs: Annotated[tuple[Output, ...], Meta(max_length=32)]
    images: Annotated[tuple[ImageUse, ...], Meta(max_length=4)]
    sandbox: Sandbox | None
    policy: DigestField
    attempt: Annotated[int, Meta(ge=0, le=1000)]
    started: datetime
    finished: datetime
    outcome: Outcome
    reason: Text | None
    usage: Usage
    score: Score | None = None
    trace: TraceIdField | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(float(self.score)):
            raise ValueError("`score` is beyond every reckoning")

    @property
    def trace_id(self) -> TraceId:
        """The trace of its order."""
        return trace_of(self.trace, Digest(self.order))


class Subject(Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto subject: a name and its sha256 in hex."""

    name: Annotated[str, Meta(max_length=120)]
    digest: dict[str, str]


class Statement(Struct, frozen=True, forbid_unknown_fields=True, rename={"type_": "_type"}):
    """An in-toto Statement v1 around one receipt."""

    subject: tuple[Subject, ...]
    predicate: Receipt
    type_: str = field(default=STATEMENT_TYPE)
    predicateType: str = PREDICATE_TYPE


class SignedReceipt(Struct, frozen=True):
    """A receipt whose signature, type and role were verified, or that this agent signed itself.

    `envelope` is the DSSE envelope as it came; `digest` that of its decoded payload.
    """

    receipt: Receipt
    digest: Digest
    signer: KeyId
    envelope: bytes


def receipt_payload(receipt: Receipt) -> bytes:
    """The statement to sign for this receipt: its subject is the outputs, or the order when there are none."""
    subject = tuple(Subject(output.name, {"sha256": hex_of(output.digest)}) for output in receipt.outputs)
    if not subject:
        subject = (Subject(f"order/{receipt.order_id}", {"sha256": hex_of(receipt.order)}),)
    return encode(Statement(subject=subject, predicate=receipt))


def parse_receipt(payload: bytes) -> Receipt:
    """The receipt in these statement bytes.

    Raises: TooLarge, BadJson, UnknownPayloadType (another predicate), ReceiptRefused (a subject that is not its outputs).
    """
    statement = decode(payload, Statement, limit_bytes=MAX_RECEIPT_BYTES, what="the receipt")
    if statement.type_ != STATEMENT_TYPE or statement.predicateType != PREDICATE_TYPE:
        raise UnknownPayloadType(f"{statement.predicateType[:120]!r} is not a receipt of this version")
    expected = decode(
        receipt_payload(statement.predicate), Statement, limit_bytes=MAX_RECEIPT_BYTES * 2, what="the receipt"
    )
    if statement.subject != expected.subject:
        raise ReceiptRefused("the receipt's subject is not its outputs")
    return statement.predicate


def start_link(signed: SignedOrder) -> tuple[Digest, Digest | None]:
    """(previous, model_in) that the receipt at position 0 must carry."""
    start = signed.order.start_model
    return signed.digest, None if start is None else start.digest


def next_link(signed: SignedOrder, receipts: Sequence[SignedReceipt]) -> tuple[Digest, Digest | None]:
    """(previous, model_in) that the next receipt of this chain must carry."""
    if not receipts:
        return start_link(signed)
    return receipts[-1].digest, receipts[-1].receipt.model_out


def check_place(signed: SignedOrder, receipt: SignedReceipt, position: int) -> None:
    """Refuse a receipt that is not a done one for this order, this place and the task that stands there.

    Raises: ReceiptRefused. The signer's right to the dataset is not judged here (that takes storage's word).
    """
    told = receipt.receipt
    task = task_at(signed.order, position)
    expected_task = ReceiptTask(task.kind, task.dataset.id, task.dataset.version)
    refusals = {
        "is not for this order": told.order != signed.digest or told.order_id != signed.order.id,
        f"is for position {told.position}": told.position != position,
        "is for another task": told.task != expected_task,
        "tells of a failed task": told.outcome is not Outcome.DONE,
        "is signed by another agent than it names": told.agent != receipt.signer,
    }
    for what, is_so in refusals.items():
        if is_so:
            raise ReceiptRefused(f"receipt {position} {what}")


def check_link(signed: SignedOrder, before: Sequence[SignedReceipt], receipt: SignedReceipt) -> None:
    """Refuse a receipt that does not follow on those before it, or whose models do not. Raises: BrokenLink."""
    told = receipt.receipt
    previous, model_in = next_link(signed, before)
    if told.previous != previous:
        raise BrokenLink(f"receipt {told.position} does not link to the one before it")
    if told.model_in != model_in:
        raise BrokenLink(f"receipt {told.position} starts from another model than the one before it left")
    if told.task.kind is TaskKind.LEARN:
        if told.model_out is None:
            raise BrokenLink(f"receipt {told.position} is of a learn task that left no model")
    elif told.model_out != told.model_in:
        raise BrokenLink(f"receipt {told.position} is of a {told.task.kind} task that changed the model")


def final_scores(receipts: Sequence[SignedReceipt]) -> dict[str, str]:
    """Score by test dataset id, as the receipts tell it."""
    return {r.receipt.task.dataset: r.receipt.score for r in receipts if r.receipt.score is not None}
