"""Keys, rosters, orders, receipts, policies and hand-offs for tests: all real and signed, the same every run.

The stage is one small consortium: hospitals a, b and c, each with an agent and a storage, orchestrators o1
and o2, and a data owner. A dataset's first letter says who holds it: "a1" and "a2" lie at a. It is NOW.

    world = consortium()
    order = world.order()                  # a learnuplet of o1: trains on a1, b1, c1, a2, then tests on c2
    receipts = world.chain(order, 2)       # what a and b would have signed for the first two tasks
    body = build_handoff(order, receipts)  # what b sends to c
    policy = policy_for(order)             # the least that admits this order
    world.roster, world.locate, world.agent("b").keyid

Every builder takes changes by field name: `world.order(expires=NOW)`, `world.receipt(order, [], score="0.5")`.
For what an honest node would never send there are `tamper` (another payload under the old signature),
`sign_payload` (any bytes, rightly signed), `forged_receipt` and `handoff_of` (any envelopes).
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import json as msgspec_json
from msgspec.structs import replace

from agent.domain.chain import TaskKind, images_for, plan
from agent.domain.ids import Digest, KeyId, OrderId, digest_of
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet, ModelRef, Order, Preduplet, SignedOrder
from agent.domain.receipts import (
    RECEIPT_TYPE,
    ImageUse,
    Outcome,
    Output,
    Receipt,
    ReceiptTask,
    Sandbox,
    SignedReceipt,
    Usage,
    next_link,
    receipt_payload,
)
from agent.trust.envelope import sign_envelope
from agent.trust.keys import SigningKey, decode_base64, encode_base64
from agent.trust.policy import HostPolicy
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.signed import sign_order, sign_receipt

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SKEW = timedelta(seconds=30)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

HOSPITALS = ("a", "b", "c")
ORCHESTRATORS = ("o1", "o2")
DATASET_NAMES = tuple(f"{hospital}{number}" for hospital in HOSPITALS for number in range(1, 10))


# ------------------------------------------------------------------ names and keys


def key_of(name: str) -> SigningKey:
    """The key of this name, the same at every call."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def uuid_of(name: str) -> str:
    """The uuid of this name, the same at every call."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def digest_named(name: str) -> Digest:
    """The digest of this name's bytes: stands for an image, a model, a policy."""
    return digest_of(name.encode())


def dataset(name: str, version: str = "1") -> DatasetRef:
    """The dataset of this name; its first letter is the hospital that holds it."""
    return DatasetRef(uuid_of(f"dataset/{name}"), version)


# ------------------------------------------------------------------ the roster


def entry_for(name: str, role: Role, **changes: Any) -> RosterEntry:
    """A roster entry of the key of that name: from a day before NOW to a year after it."""
    fields: dict[str, Any] = {"valid_from": NOW - DAY, "valid_until": NOW + 365 * DAY} | changes
    return RosterEntry.of(key_of(name).public, role, name, **fields)


def entries() -> tuple[RosterEntry, ...]:
    """Everybody of the consortium."""
    agents = [
        entry_for(
            f"agent-{h}",
            Role.AGENT,
            agent_url=f"https://agent-{h}.test:8440",
            storage_url=f"https://storage-{h}.test:8450",
        )
        for h in HOSPITALS
    ]
    storages = [
        entry_for(f"storage-{h}", Role.STORAGE, storage_url=f"https://storage-{h}.test:8450")
        for h in HOSPITALS
    ]
    orchestrators = [
        entry_for(o, Role.ORCHESTRATOR, orchestrator_url=f"https://{o}.test:8460") for o in ORCHESTRATORS
    ]
    return (*agents, *storages, *orchestrators, entry_for("owner", Role.OWNER))


def changed(roster: Roster, keyid: KeyId, **changes: Any) -> Roster:
    """The roster with one entry changed: `changed(world.roster, key.keyid, revoked_at=NOW)`."""
    return Roster(tuple(replace(e, **changes) if e.keyid == keyid else e for e in roster.entries))


# ------------------------------------------------------------------ orders


def learnuplet(
    *, train: Sequence[str] = ("a1", "b1", "c1", "a2"), test: Sequence[str] = ("c2",), **changes: Any
) -> Learnuplet:
    """A training order on datasets by name, open from an hour before NOW to a day after it."""
    fields: dict[str, Any] = {
        "id": OrderId(uuid_of("learnuplet")),
        "orchestrator": key_of("o1").keyid,
        "problem": uuid_of("problem"),
        "problem_image": ImageRef(uuid_of("problem-image"), digest_named("problem-image")),
        "algo_image": ImageRef(uuid_of("algo-image"), digest_named("algo-image")),
        "model_start": None,
        "model_end": uuid_of("model-end"),
        "rank": 0,
        "train_data": tuple(dataset(name) for name in train),
        "test_data": tuple(dataset(name) for name in test),
        "not_before": NOW - HOUR,
        "expires": NOW + DAY,
    }
    return Learnuplet(**(fields | changes))


def preduplet(*, data: Sequence[str] = ("a1", "b1"), **changes: Any) -> Preduplet:
    """A prediction order on datasets by name, with a model that lies at hospital c."""
    fields: dict[str, Any] = {
        "id": OrderId(uuid_of("preduplet")),
        "orchestrator": key_of("o1").keyid,
        "problem": uuid_of("problem"),
        "algo_image": ImageRef(uuid_of("algo-image"), digest_named("algo-image")),
        "model": ModelRef(digest_named("finished model"), key_of("agent-c").keyid),
        "data": tuple(dataset(name) for name in data),
        "not_before": NOW - HOUR,
        "expires": NOW + DAY,
    }
    return Preduplet(**(fields | changes))


# ------------------------------------------------------------------ receipts


def receipt_for(
    order: SignedOrder, before: Sequence[SignedReceipt], agent: KeyId, /, **changes: Any
) -> Receipt:
    """The receipt that an honest agent would write for the task after those in `before`."""
    task = plan(order.order)[len(before)]
    previous, model_in = next_link(order, before)
    is_learn = task.kind is TaskKind.LEARN
    made = digest_named(f"output {task.position} of {order.digest}")
    name = {TaskKind.LEARN: "model", TaskKind.TEST: "performance", TaskKind.PREDICT: "prediction"}[task.kind]
    fields: dict[str, Any] = {
        "order": order.digest,
        "order_id": order.order.id,
        "position": task.position,
        "task": ReceiptTask(task.kind, task.dataset.id, task.dataset.version),
        "agent": agent,
        "previous": previous,
        "model_in": model_in,
        "model_out": made if is_learn else model_in,
        "outputs": (Output(name, made, 1234),),
        "images": tuple(ImageUse(role, image) for role, image in images_for(order.order, task)),
        "sandbox": Sandbox("podman", "4.3.1", {"train": digest_named("seccomp")}, {"pids": "256 cgroup"}),
        "policy": digest_named("policy"),
        "attempt": 1,
        "started": NOW - timedelta(minutes=10) + timedelta(seconds=task.position),
        "finished": NOW - timedelta(minutes=9) + timedelta(seconds=task.position),
        "outcome": Outcome.DONE,
        "reason": None,
        "usage": Usage(wall_s=60.0, cpu_s=42.5, max_memory_bytes=1 << 28, phases={"fetch": 1.5, "run": 58.0}),
        "score": "0.875" if task.kind is TaskKind.TEST else None,
    }
    return Receipt(**(fields | changes))


def failed(receipt: Receipt, reason: str = "oom") -> Receipt:
    """The same receipt as of a task that failed: no outputs, no model."""
    return replace(receipt, outcome=Outcome.FAILED, reason=reason, outputs=(), model_out=None, score=None)


# ------------------------------------------------------------------ the policy


def policy_text(
    *orders: SignedOrder,
    orchestrators: Iterable[str] | None = None,
    images: Iterable[str] | None = None,
    datasets: Iterable[str] | str = "*",
    kinds: Iterable[str] = tuple(TaskKind),
    rest: str = "",
) -> str:
    """The text of a policy.toml that admits these orders.

    A named list replaces what the orders would need; `rest` is appended as it is.
    """
    signers = {order.signer for order in orders} if orchestrators is None else orchestrators
    wanted = {image for order in orders for image in order.order.images} if images is None else images
    lines = {
        "orchestrators": sorted(signers),
        "images": sorted(wanted),
        "datasets": datasets if isinstance(datasets, str) else list(datasets),
        "kinds": list(kinds),
    }
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()) + rest


def policy_for(*orders: SignedOrder, **lists: Any) -> HostPolicy:
    """The policy of `policy_text`."""
    return HostPolicy.from_toml(policy_text(*orders, **lists))


# ------------------------------------------------------------------ the consortium


@dataclass(frozen=True)
class Consortium:
    """Everybody's keys, the roster, and storage's word on who holds what."""

    roster: Roster

    def agent(self, hospital: str) -> SigningKey:
        """The key of this hospital's agent."""
        return key_of(f"agent-{hospital}")

    def storage(self, hospital: str) -> SigningKey:
        """The key of this hospital's storage."""
        return key_of(f"storage-{hospital}")

    @property
    def orchestrator(self) -> SigningKey:
        """The key of o1, which signs orders unless another is asked for."""
        return key_of("o1")

    @property
    def other_orchestrator(self) -> SigningKey:
        """The key of o2."""
        return key_of("o2")

    @property
    def owner(self) -> SigningKey:
        """The key of the data owner."""
        return key_of("owner")

    def hospital_of(self, ref: DatasetRef) -> str:
        """The hospital that holds this dataset."""
        return next(name[0] for name in DATASET_NAMES if uuid_of(f"dataset/{name}") == ref.id)

    def locate(self, ref: DatasetRef) -> frozenset[KeyId]:
        """Storage's answer to: which agents hold this dataset?"""
        return frozenset({self.agent(self.hospital_of(ref)).keyid})

    def holder(self, ref: DatasetRef) -> SigningKey:
        """The key of the agent that holds this dataset."""
        return self.agent(self.hospital_of(ref))

    def order(
        self, order: Order | None = None, *, key: SigningKey | None = None, **changes: Any
    ) -> SignedOrder:
        """This order, or `learnuplet(**changes)`, signed by o1 or by `key`."""
        return sign_order(learnuplet(**changes) if order is None else order, key or self.orchestrator)

    def receipt(
        self,
        order: SignedOrder,
        before: Sequence[SignedReceipt],
        /,
        *,
        key: SigningKey | None = None,
        **changes: Any,
    ) -> SignedReceipt:
        """The next receipt, signed by the agent that holds the dataset or by `key`."""
        signer = key or self.holder(plan(order.order)[len(before)].dataset)
        return sign_receipt(receipt_for(order, before, signer.keyid, **changes), signer)

    def chain(self, order: SignedOrder, count: int) -> tuple[SignedReceipt, ...]:
        """The receipts of the first `count` tasks, each by the agent that holds its dataset."""
        receipts: list[SignedReceipt] = []
        for _ in range(count):
            receipts.append(self.receipt(order, receipts))
        return tuple(receipts)

    def next_agent(self, order: SignedOrder, position: int) -> KeyId:
        """The agent whose task stands at `position`."""
        return self.holder(plan(order.order)[position].dataset).keyid


def consortium() -> Consortium:
    """The stage as described at the top."""
    return Consortium(Roster(entries()))


# ------------------------------------------------------------------ what no honest node sends


def sign_payload(payload_type: str, payload: bytes, key: SigningKey) -> bytes:
    """An envelope of any payload under any type, rightly signed."""
    return sign_envelope(payload_type, payload, key)


def forged_receipt(receipt: Receipt, key: SigningKey) -> SignedReceipt:
    """This receipt under this key, whatever it says."""
    payload = receipt_payload(receipt)
    return SignedReceipt(receipt, digest_of(payload), key.keyid, sign_payload(RECEIPT_TYPE, payload, key))


def read_envelope(envelope: bytes) -> dict[str, Any]:
    """The envelope as a dict, to be changed and written again with `json.dumps(...).encode()`."""
    fields: dict[str, Any] = json.loads(envelope)
    return fields


def payload_of(envelope: bytes) -> bytes:
    """The decoded payload of an envelope."""
    return decode_base64(read_envelope(envelope)["payload"])


def tamper(envelope: bytes, **changes: Any) -> bytes:
    """The envelope with fields of its JSON payload changed and the old signature kept."""
    payload = json.loads(payload_of(envelope)) | changes
    return json.dumps(
        read_envelope(envelope) | {"payload": encode_base64(json.dumps(payload).encode())}
    ).encode()


def handoff_of(order_envelope: bytes, receipt_envelopes: Sequence[bytes]) -> bytes:
    """A hand-off's body from any envelopes, good or bad."""
    return json.dumps(
        {"order": read_envelope(order_envelope), "receipts": [read_envelope(r) for r in receipt_envelopes]}
    ).encode()


def as_json(value: Any) -> dict[str, Any]:
    """A value as the JSON object that goes on the wire, to be changed by hand."""
    fields: dict[str, Any] = json.loads(msgspec_json.encode(value))
    return fields
