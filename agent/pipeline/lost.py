"""What a lost message hid, found by asking: orders that never arrived, reports and hand-offs that were lost behind their
acknowledgement. Everything here goes the way it would have gone, through the same checks, and every receiver takes a repeat
for the same call: so nothing runs twice because it was found again.
"""

from dataclasses import dataclass, field

from msgspec import Raw

from agent.domain.chain import Task, plan
from agent.domain.ids import Digest, KeyId, OrderId
from agent.domain.orders import MAX_ORDER_BYTES
from agent.domain.receipts import SignedReceipt
from agent.domain.reports import envelope_bytes, parse_report
from agent.domain.standings import OrderState, ReceiptTold, Standing, WholeStanding
from agent.domain.strict_json import encode
from agent.errors import DatasetMissing, OrderError, PeerRefused, TrustError
from agent.log import get_logger
from agent.pipeline.bells import ring
from agent.pipeline.host import Host
from agent.pipeline.intake import take_handoff, take_order
from agent.pipeline.place import holder_of
from agent.ports.broker import Queue
from agent.ports.ledger import Delivery, DeliveryHead, DeliveryKind, DeliveryState
from agent.trust.envelope import parse_envelope
from agent.trust.handoff import parse_handoff
from agent.trust.signed import open_order

log = get_logger(__name__)


@dataclass(slots=True)
class Known:
    """What a process need not look at again: hand-offs whose orders went on, contradictions that were told."""

    gone_on: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)


# ------------------------------------------------------------------ an order that never arrived


def take_lost(standing: Standing, orchestrator: KeyId, host: Host) -> bool:
    """Take in an order that its orchestrator thinks is here and this host never got; whether there was one.

    Raises: OutsideError when somebody who must be asked does not answer.
    """
    if not _is_missing(standing, host):
        return False
    told = host.ports.orchestrators.standing(orchestrator, standing.id)
    if told is None or not _is_missing(told.standing, host):
        return False
    place = told.standing.position
    try:
        if _went_on(told, host):
            log.warning("order.went_on", order=standing.id, position=place)
            return False
        job = _take(told, host)
    except (
        OrderError,
        TrustError,
    ) as error:  # as an intake would refuse it; its orchestrator reads that it is still open
        log.warning("order.not_taken", order=standing.id, code=error.code, detail=error.detail)
        return False
    values: dict[str, str | int | float | None] = {"orchestrator": orchestrator}
    host.ports.ledger.record_event(
        "order.found", host.ports.now(), order_id=standing.id, position=place, values=values
    )
    log.warning("order.found", job=job, orchestrator=orchestrator)
    return True


def _is_missing(standing: Standing, host: Host) -> bool:
    """Whether the order is said to be here, at a place of which this host knows nothing, with all receipts before it."""
    place, ledger = standing.position, host.ports.ledger
    if not host.is_me(standing.holder) or standing.state is not OrderState.OPEN or place >= standing.tasks:
        return False
    if [told.position for told in standing.receipts] != list(range(place)):
        return False
    known = ledger.digest_of_order(standing.id)
    if known is None:
        return True
    is_at_place = ledger.recorded_last_receipt(standing.digest, place) is not None
    is_done = any(receipt.receipt.position == place for receipt in ledger.receipts(standing.digest))
    return known == standing.digest and place > 0 and not is_at_place and not is_done


def _went_on(told: WholeStanding, host: Host) -> bool:
    """Whether somebody goes on after the missing place already: this host did it in another life."""
    signed = open_order(envelope_bytes(told.envelope), host.roster, None)
    following = told.standing.position + 1
    if following >= told.standing.tasks:
        return False
    return peer_with(told.standing.id, plan(signed.order)[following], host) is not None


def peer_with(order: OrderId, task: Task, host: Host) -> KeyId | None:
    """The other agent that holds this task's dataset, when it has the order at this place. Raises: OutsideError."""
    try:
        peer = holder_of(task, host)
        there = None if host.is_me(peer) else host.ports.peers.order(peer, order)
    except (
        DatasetMissing,
        PeerRefused,
    ):  # nobody could; or it knows the order, and nothing of this agent's part in it
        return None
    return peer if there is not None and there.is_known_at(task.position) else None


def _take(told: WholeStanding, host: Host) -> str:
    """The id of the job that it is here now. Raises: whatever an intake refuses with."""
    envelope, place = envelope_bytes(told.envelope), told.standing.position
    count = told.standing.reports_at(place)
    if place == 0:
        parsed = parse_envelope(envelope, limit_bytes=MAX_ORDER_BYTES)
        return take_order(envelope, parsed.payload_type, parsed.keyid, host, told=count).job.id
    receipts = [Raw(envelope_bytes(receipt)) for receipt in told.receipts[:place]]
    body = encode({"order": Raw(envelope), "receipts": receipts})
    return take_handoff(body, told.standing.receipts[place - 1].agent, host, told=count).job.id


# ------------------------------------------------------------------ what an orchestrator lost


def tell_again(standing: Standing, host: Host, known: Known) -> int:
    """Send again what this host has told an orchestrator that does not know it: reports with receipts, the result. How many."""
    if host.ports.ledger.digest_of_order(standing.id) != standing.digest:
        return 0
    own = [each for each in host.ports.ledger.receipts(standing.digest) if host.is_me(each.signer)]
    missing = {each.receipt.position for each in own if standing.receipt_at(each.receipt.position) is None}
    for receipt in own:
        _look_for_contradiction(receipt, standing.receipt_at(receipt.receipt.position), host, known)
    if not own:
        return 0
    sent = 0
    for delivery in host.ports.ledger.deliveries(order_id=standing.id, state=DeliveryState.ACKNOWLEDGED):
        if _is_lost(delivery, missing, standing):
            sent += send_again(delivery, "its orchestrator does not know it", host)
    return sent


def send_again(delivery: DeliveryHead, why: str, host: Host) -> bool:
    """The same delivery once more, for whoever took it lost it. Whether it was acknowledged before."""
    if not host.ports.ledger.send_again(delivery.id, host.ports.now(), why):
        return False
    log.warning("delivery.sent_again", delivery=delivery.id, to=delivery.target, why=why)
    ring(Queue.DELIVERIES, delivery.id, host)
    return True


def _is_lost(delivery: Delivery, missing: set[int], standing: Standing) -> bool:
    if not delivery.body:
        return False  # counted on after a restore: what it said is not known here
    if delivery.kind is DeliveryKind.REPORT:
        return delivery.position in missing and parse_report(delivery.body).receipt is not None
    return delivery.kind is DeliveryKind.RESULT and standing.state is OrderState.OPEN


def _look_for_contradiction(own: SignedReceipt, there: ReceiptTold | None, host: Host, known: Known) -> None:
    """Two receipts of one place: nothing that a program could mend. Told once by each process."""
    digest: Digest = own.digest
    if there is None or there.digest == digest or digest in known.told:
        return
    known.told.add(digest)
    told = own.receipt
    log.error("receipt.contradicted", order=told.order_id, position=told.position, there=there.digest)
    host.ports.ledger.record_event(
        "receipt.contradicted",
        host.ports.now(),
        order_id=OrderId(told.order_id),
        position=told.position,
        values={"own": digest, "there": there.digest, "agent": there.agent},
    )


# ------------------------------------------------------------------ what a peer lost


def look_after(handed: DeliveryHead, orchestrator: KeyId, host: Host, known: Known) -> bool:
    """Ask the peer that acknowledged a hand-off whether it knows it; send it again when not. Whether it was.

    The orchestrator is asked first: a place that somebody has done since is nobody's to take again.
    Raises: OutsideError.
    """
    if handed.id in known.gone_on or _is_cancelled(handed, orchestrator, host):
        return False
    place = parse_handoff(host.ports.ledger.delivery(handed.id).body).position
    told = host.ports.orchestrators.standing(orchestrator, handed.order_id)
    if told is None or told.standing.state is not OrderState.OPEN or _is_past(told.standing, place):
        known.gone_on.add(handed.id)
        return False
    there = host.ports.peers.order(handed.target, handed.order_id)
    if there is not None and there.is_known_at(place):
        return False
    return send_again(handed, "the peer does not know it", host)


def _is_cancelled(handed: DeliveryHead, orchestrator: KeyId, host: Host) -> bool:
    """Whether its orchestrator said here that the order ends: a peer that lost it lost that word with it."""
    return any(kept.source == orchestrator for kept in host.ports.ledger.cancellations(handed.order))


def _is_past(standing: Standing, place: int) -> bool:
    return any(told.position >= place for told in standing.receipts)
