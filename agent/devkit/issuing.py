"""Issuing an order: signed, written down, sent to one agent, which places it from there. And taking it back."""

from agent.devkit.book import Book
from agent.devkit.client import Client
from agent.devkit.publishing import holders_of
from agent.domain.cancellations import Cancellation
from agent.domain.chain import plan
from agent.domain.ids import KeyId, wire_time
from agent.domain.orders import Learnuplet, Order, SignedOrder
from agent.domain.traces import trace_for
from agent.errors import DatasetMissing, NotFound
from agent.log import get_logger
from agent.trust.roster import Role
from agent.trust.signed import open_order, sign_cancellation, sign_order

log = get_logger(__name__)


def issue(order: Order, book: Book, client: Client, *, to: KeyId | None = None) -> SignedOrder:
    """Sign this order, write it down and send it: to the agent `to`, else to one that holds the first task's dataset.

    Once it is written down it stays: when it could not be sent, `send` it again.
    Raises: BadOrder; RecordConflict when its id is taken; PeerRefused, PeerUnavailable, DatasetMissing, StorageUnavailable.
    """
    signed = sign_order(order, client.key)
    book.record_order(signed, client.now())
    send(signed, book, client, to=to)
    return signed


def send(signed: SignedOrder, book: Book, client: Client, *, to: KeyId | None = None) -> KeyId:
    """Send an order that is written down, again if need be (an agent takes a repeat as the same call); to whom it went."""
    agent = to or _first_holder(signed, client)
    entry = client.roster().require(agent, role=Role.AGENT, at=client.now())
    route = "/v1/learnuplets" if isinstance(signed.order, Learnuplet) else "/v1/preduplets"
    book.note_holder(signed.order.id, agent)  # before its first report can come
    trace = trace_for(signed.order.id)
    client.send(entry, "POST", route, signed.envelope, is_answer_signed=False, trace=trace)
    log.info("order.sent", order=signed.order.id, agent=agent, trace=trace)
    return agent


def send_again(order_id: str, book: Book, client: Client, *, to: KeyId | None = None) -> KeyId:
    """Send a recorded order once more. Raises: NotFound, and as `send`."""
    issued = book.order(order_id)
    if issued is None:
        raise NotFound(f"no order {order_id} was issued here")
    return send(open_order(issued.envelope, client.roster(), client.now()), book, client, to=to)


def cancel(order_id: str, book: Book, client: Client, *, to: KeyId | None = None) -> KeyId:
    """Sign that a recorded order is to end, and send that to the agent `to`, else to who is said to have the order; to whom it
    went. It follows the chain from there; sent again it is the same call. That the order ended is told by a report.

    Raises: NotFound; PeerRefused, PeerUnavailable, DatasetMissing.
    """
    issued = book.order(order_id)
    if issued is None:
        raise NotFound(f"no order {order_id} was issued here")
    signed = open_order(issued.envelope, client.roster(), client.now())
    agent = to or issued.holder or _first_holder(signed, client)
    entry = client.roster().require(agent, role=Role.AGENT, at=client.now())
    said = sign_cancellation(Cancellation(signed.digest, wire_time(client.now())), client.key)
    client.send(entry, "POST", "/v1/cancellations", said.envelope, is_answer_signed=True)
    log.info("order.cancellation_sent", order=order_id, agent=agent)
    return agent


def _first_holder(signed: SignedOrder, client: Client) -> KeyId:
    dataset = plan(signed.order)[0].dataset
    holders = sorted(holders_of(client, dataset))
    if not holders:
        raise DatasetMissing(f"storage names no agent for {dataset}")
    return holders[0]
