"""Small values for the tests of the nouns: nothing signed, nothing encrypted. Signed ones are in `tests/builders.py`."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, KeyId, OrderId, digest_of
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet, ModelRef, Order, Preduplet, SignedOrder
from agent.domain.receipts import Outcome, Output, Receipt, ReceiptTask, SignedReceipt, Usage, receipt_payload
from agent.domain.strict_json import encode

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def uuid_of(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def digest_named(name: str) -> Digest:
    return digest_of(name.encode())


def agent_named(name: str) -> KeyId:
    return KeyId(digest_named(name).removeprefix("sha256:"))


def dataset(name: str, version: str = "1") -> DatasetRef:
    return DatasetRef(uuid_of(name), version)


def learnuplet(**changes: Any) -> Learnuplet:
    """Trains on a and b, tests on c."""
    fields: dict[str, Any] = {
        "id": OrderId(uuid_of("learnuplet")),
        "orchestrator": agent_named("o1"),
        "problem": uuid_of("problem"),
        "problem_image": ImageRef(uuid_of("problem image"), digest_named("problem image")),
        "algo_image": ImageRef(uuid_of("algo image"), digest_named("algo image")),
        "model_start": None,
        "model_end": uuid_of("model end"),
        "rank": 0,
        "train_data": (dataset("a"), dataset("b")),
        "test_data": (dataset("c"),),
        "not_before": NOW - HOUR,
        "expires": NOW + HOUR,
    }
    return Learnuplet(**(fields | changes))


def preduplet(**changes: Any) -> Preduplet:
    """Predicts on a and b."""
    fields: dict[str, Any] = {
        "id": OrderId(uuid_of("preduplet")),
        "orchestrator": agent_named("o1"),
        "problem": uuid_of("problem"),
        "algo_image": ImageRef(uuid_of("algo image"), digest_named("algo image")),
        "model": ModelRef(digest_named("model"), agent_named("c")),
        "data": (dataset("a"), dataset("b")),
        "not_before": NOW - HOUR,
        "expires": NOW + HOUR,
    }
    return Preduplet(**(fields | changes))


def signed(order: Order) -> SignedOrder:
    """As if an orchestrator had signed it."""
    return SignedOrder(order, digest_of(encode(order)), agent_named("orchestrator"), b"{}")


def receipt(order: SignedOrder, **changes: Any) -> Receipt:
    """The receipt of the first task of an order that starts with a learn task on a."""
    fields: dict[str, Any] = {
        "order": order.digest,
        "order_id": order.order.id,
        "position": 0,
        "task": ReceiptTask(TaskKind.LEARN, uuid_of("a"), "1"),
        "agent": agent_named("a"),
        "previous": order.digest,
        "model_in": None,
        "model_out": digest_named("model 1"),
        "outputs": (Output("model", digest_named("model 1"), 10),),
        "images": (),
        "sandbox": None,
        "policy": digest_named("policy"),
        "attempt": 1,
        "started": NOW,
        "finished": NOW + timedelta(seconds=5),
        "outcome": Outcome.DONE,
        "reason": None,
        "usage": Usage(wall_s=5.0),
    }
    return Receipt(**(fields | changes))


def signed_receipt(told: Receipt, signer: KeyId | None = None) -> SignedReceipt:
    """As if the agent that it names, or another one, had signed it."""
    return SignedReceipt(told, digest_of(receipt_payload(told)), signer or KeyId(told.agent), b"{}")
