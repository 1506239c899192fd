"""A whole chain judged afterwards, off line: who ran what on which data, or which link is broken.

The rules are those of a hand-off's checks (1), (5) and (6); the window and the policy are not judged, for
the time is over and the host another's. It goes on after a broken link as far as it can, and names each by
its position and code.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from agent.domain.chain import Task, plan
from agent.domain.ids import Digest
from agent.domain.orders import SignedOrder
from agent.domain.receipts import Outcome, SignedReceipt, check_link, check_place, next_link
from agent.errors import AgentError, BrokenLink, KeyNotValid, OrderError, ReceiptRefused, TrustError
from agent.trust.handoff import Locate, check_holder
from agent.trust.roster import Role, Roster
from agent.trust.signed import open_order, open_receipt


class Fault(Struct, frozen=True):
    """Why a link does not hold: the code of the error and what was seen."""

    code: str
    detail: str


class Link(Struct, frozen=True):
    """One receipt of the chain, as it stands at its position."""

    position: int
    receipt: SignedReceipt | None  # None when its envelope does not open
    fault: Fault | None  # None when it holds


class Audit(Struct, frozen=True):
    """What the order, its receipts and the roster prove together.

    `order` is None when its envelope does not open. `remaining` are the tasks that no receipt tells of.
    `are_holders_judged`: whether storage was there to say that each signer holds its dataset.
    """

    order: SignedOrder | None
    order_fault: Fault | None
    links: tuple[Link, ...]
    remaining: tuple[Task, ...]
    are_holders_judged: bool

    @property
    def is_sound(self) -> bool:
        """Whether everything that is there holds."""
        return self.order_fault is None and all(link.fault is None for link in self.links)

    @property
    def is_complete(self) -> bool:
        """Whether it is sound and tells of every task of the order, each of them done."""
        return self.is_sound and not self.remaining and all(_is_done(link.receipt) for link in self.links)

    @property
    def final_model(self) -> Digest | None:
        """The model that the last receipt leaves, when the chain is sound; a failed task leaves none."""
        if not self.is_sound or not self.links or self.links[-1].receipt is None:
            return None
        return self.links[-1].receipt.receipt.model_out


def audit_chain(
    order_envelope: bytes,
    receipt_envelopes: Sequence[bytes],
    roster: Roster,
    *,
    locate: Locate | None = None,
) -> Audit:
    """Judge this order and its receipts, given in order of position from 0.

    `locate` says who holds a dataset; without it that is not judged. Nothing is raised for what is wrong in
    the chain: it stands in the audit. A failed task's receipt may stand last.
    """
    order, order_fault = _open_order(order_envelope, roster)
    links: list[Link] = []
    for position, envelope in enumerate(receipt_envelopes):
        links.append(_judge(order, links, position, envelope, roster, locate))
    remaining = () if order is None else plan(order.order)[len(links) :]
    return Audit(order, order_fault, tuple(links), remaining, locate is not None)


def _open_order(envelope: bytes, roster: Roster) -> tuple[SignedOrder | None, Fault | None]:
    try:
        order = open_order(envelope, roster, None)
        _check_key_met_window(order, roster)
    except (OrderError, TrustError) as error:
        return None, _fault(error)
    return order, None


def _check_key_met_window(order: SignedOrder, roster: Roster) -> None:
    """Refuse an order whose signer's key held at no moment at which the order might have been taken."""
    key = roster.require(order.signer, role=Role.ORCHESTRATOR, at=None)
    if key.valid_until <= order.order.not_before or order.order.expires <= key.valid_from:
        raise KeyNotValid(f"key {order.signer} held at no time of order {order.order.id}")


def _judge(
    order: SignedOrder | None,
    links: Sequence[Link],
    position: int,
    envelope: bytes,
    roster: Roster,
    locate: Locate | None,
) -> Link:
    """The link at this position: what opens, and the first thing that is wrong with it."""
    receipt = None
    try:
        receipt = open_receipt(envelope, roster)
        if order is None:
            raise BrokenLink("there is no order to compare it with")
        _check_it_belongs(order, receipt, position, locate)
        _check_it_follows(order, links, receipt)
    except (OrderError, TrustError) as error:
        if error.is_passing:  # whoever was asked answered badly: that says nothing about the receipt
            raise
        return Link(position, receipt, _fault(error))
    return Link(position, receipt, None)


def _check_it_belongs(
    order: SignedOrder, receipt: SignedReceipt, position: int, locate: Locate | None
) -> None:
    tasks = plan(order.order)
    if position >= len(tasks):
        raise ReceiptRefused(f"the order has {len(tasks)} tasks, receipt {position} is one too many")
    check_place(order, _as_done(receipt), position)
    if locate is not None:
        check_holder(tasks[position], receipt, locate)


def _check_it_follows(order: SignedOrder, links: Sequence[Link], receipt: SignedReceipt) -> None:
    before = [link.receipt for link in links[-1:] if link.receipt is not None]
    if links and not before:
        raise BrokenLink("the receipt before it does not open")
    if before and not _is_done(before[-1]):
        raise BrokenLink("the task before it failed, which ends a chain")
    if _is_done(receipt):
        check_link(order, before, receipt)
        return
    previous, model_in = next_link(order, before)
    if (receipt.receipt.previous, receipt.receipt.model_in) != (previous, model_in):
        raise BrokenLink(f"receipt {receipt.receipt.position} does not link to the one before it")


def _as_done(receipt: SignedReceipt) -> SignedReceipt:
    """The same receipt for the rules of place alone, which are made for hand-offs and so ask for a done
    task.
    """
    return replace(receipt, receipt=replace(receipt.receipt, outcome=Outcome.DONE))


def _is_done(receipt: SignedReceipt | None) -> bool:
    return receipt is not None and receipt.receipt.outcome is Outcome.DONE


def _fault(error: AgentError) -> Fault:
    return Fault(error.code, error.detail)
