"""What an agent tells an orchestrator: reports on one place of an order, and the order's result.

Both sides parse these types. Envelopes stand in them as JSON objects; `trust/` opens them from `envelope_bytes`.

Source: docs/contracts/http.md, "Asked of orchestrators".
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Context, Decimal
from enum import StrEnum
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from agent.domain.ids import DigestField, KeyIdField, UuidField, is_wire_time
from agent.domain.orders import MAX_ATTEMPTS, MAX_TASKS, ModelRef
from agent.domain.receipts import Score, Text
from agent.domain.strict_json import decode, encode, parse
from agent.domain.traces import TraceIdField
from agent.errors import BadReport

MAX_REPORT_BYTES = 128 << 10
MAX_RESULT_BYTES = 32 << 20

Envelope = dict[str, Any]  # a DSSE envelope as a JSON object, not opened yet
Header = Annotated[str, Meta(max_length=8 << 10)]

_MEAN = Context(prec=17)  # as many digits as tell one double from the next


class ReportState(StrEnum):
    """What a report tells of its place."""

    HELD = "held"  # an image of the order waits for the operator of that host
    STARTED = "started"
    ATTEMPT = "attempt"  # one was lost to something outside; another follows
    DONE = "done"  # with the receipt
    FAILED = "failed"  # with the receipt when the task ran
    CANCELLED = "cancelled"  # nothing more comes of the order from here; without a receipt
    HANDOFF_REFUSED = "handoff-refused"
    HANDOFF_EXPIRED = "handoff-expired"
    HANDOFF_RETRIED = "handoff-retried"  # one that was refused is sent again, by a person's word


class SignedRefusal(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A peer's signed HTTP answer, kept so that a third party can check it: `trust.http_signatures.verify_answer` over these.

    `request_signature` is the Signature field of the request that was refused; `body` the problem document as text.
    """

    status: Annotated[int, Meta(ge=400, le=499)]
    content_digest: Header
    signature_input: Header
    signature: Header
    request_signature: Header
    body: Annotated[str, Meta(max_length=16 << 10)]


class ReportBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One report on one place of an order.

    `attempt`: attempts begun here so far. `reason`: a code, or a word of the container contract. `score`: of a test task.
    `next_agent`: who goes on, or refused to. `refusal`: that agent's own signed answer, when it refused. `trace`: absent where
    it is the order's own (`domain.traces`).
    """

    order: DigestField
    position: Annotated[int, Meta(ge=0, lt=MAX_TASKS)]
    state: ReportState
    attempt: Annotated[int, Meta(ge=0, le=1000)]
    max_attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)]
    reason: Text | None = None
    score: Score | None = None
    receipt: Envelope | None = None
    next_agent: KeyIdField | None = None
    refusal: SignedRefusal | None = None
    at: datetime
    trace: TraceIdField | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not is_wire_time(self.at):
            raise ValueError("times are RFC 3339 in UTC with Z, whole seconds")
        if self.state is ReportState.DONE and self.receipt is None:
            raise ValueError("a report that a task is done carries its receipt")


class ResultBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The end of an order, told by the agent of its last place.

    `receipts`: all, by position. `scores`: by test dataset. `mean`: of the scores, as `mean_of` writes it; None without any.
    `model`: the last model that the chain made and the agent whose storage holds it; None for a preduplet. `trace`: as of a
    report.
    """

    order: DigestField
    receipts: Annotated[tuple[Envelope, ...], Meta(min_length=1, max_length=MAX_TASKS)]
    scores: dict[UuidField, Score]
    mean: Score | None
    model: ModelRef | None
    trace: TraceIdField | UnsetType = UNSET

    def __post_init__(self) -> None:
        try:
            is_mean_of(self.mean, self.scores)
        except ArithmeticError as cause:
            raise ValueError("a score or the mean is too large or too small to reckon with") from cause


def parse_report(body: bytes) -> ReportBody:
    """The report in these bytes. Raises: TooLarge, BadJson, BadReport."""
    return decode(body, ReportBody, limit_bytes=MAX_REPORT_BYTES, what="the report", error=BadReport)


def parse_result(body: bytes) -> ResultBody:
    """The result in these bytes. Raises: TooLarge, BadJson, BadReport."""
    return decode(body, ResultBody, limit_bytes=MAX_RESULT_BYTES, what="the result", error=BadReport)


def parse_refusal(evidence: bytes) -> SignedRefusal:
    """The signed refusal that `PeerRefused.evidence` carries. Raises: TooLarge, BadJson, BadReport."""
    return decode(evidence, SignedRefusal, limit_bytes=MAX_REPORT_BYTES, what="the refusal", error=BadReport)


def envelope_object(envelope: bytes) -> Envelope:
    """An envelope's bytes as the object that stands in a report. Raises: TooLarge, BadJson, BadReport."""
    tree = parse(envelope, limit_bytes=MAX_RESULT_BYTES, what="the envelope")
    if not isinstance(tree, dict):
        raise BadReport("an envelope is a JSON object")
    return tree


def envelope_bytes(envelope: Envelope) -> bytes:
    """The object that stands in a report as bytes for `trust/` to open. White space is not part of what was signed."""
    return encode(envelope)


def mean_of(scores: Mapping[str, str]) -> str | None:
    """The arithmetic mean of the scores as decimal text of at most 17 digits; None without any score."""
    if not scores:
        return None
    total = sum((Decimal(score) for score in scores.values()), Decimal(0))
    return str(_MEAN.divide(total, Decimal(len(scores))))


def is_mean_of(mean: str | None, scores: Mapping[str, str]) -> bool:
    """Whether `mean` is the mean of these scores, however it was rounded: to 10^-12 of the largest score."""
    expected = mean_of(scores)
    if mean is None or expected is None:
        return mean is expected
    largest = max(abs(Decimal(score)) for score in scores.values())
    return abs(Decimal(mean) - Decimal(expected)) <= largest * Decimal("1e-12")
