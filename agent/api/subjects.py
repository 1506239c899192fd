"""What a refused call was about, for the audit log: read from its body, though nothing of that was accepted.

The caller signed the body, so this is what that caller asked for, and no more: the order's own signature may be false. Nothing
is raised here: what cannot be read tells nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.domain.chain import images_for, task_at
from agent.domain.orders import MAX_ORDER_BYTES, parse_order
from agent.errors import AgentError
from agent.trust.envelope import parse_envelope
from agent.trust.handoff import parse_handoff

Subject = dict[str, str | int]


@contextmanager
def about(read: Callable[[bytes], Subject], body: bytes) -> Iterator[None]:
    """Give an error that leaves the block what the call was about."""
    try:
        yield
    except AgentError as error:
        error.about = read(body)
        raise


def order_in(body: bytes) -> Subject:
    """The first task of an order."""
    return _task(body, 0)


def handoff_in(body: bytes) -> Subject:
    """The task that a hand-off is for."""
    try:
        parsed = parse_handoff(body)
    except AgentError:
        return {}
    return _task(parsed.order, len(parsed.receipts))


def _task(envelope: bytes, position: int) -> Subject:
    try:
        opened = parse_envelope(envelope, limit_bytes=MAX_ORDER_BYTES)
        order = parse_order(opened.payload_type, opened.payload)
        task = task_at(order, position)
    except (AgentError, IndexError):
        return {}
    images: Subject = {f"{role}_image": image for role, image in images_for(order, task)}
    told: Subject = {"order_id": order.id, "order": opened.digest, "position": position, "kind": task.kind}
    told |= {"dataset": task.dataset.id, "version": task.dataset.version, "orchestrator": opened.keyid}
    return told | images
