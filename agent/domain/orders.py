"""Orders as the orchestrator writes them: learnuplets and preduplets. The chain they stand for is in `chain.py`.

Source: docs/contracts/chain.md, "Order".
"""

from datetime import datetime, timedelta
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from agent.domain.ids import (
    Digest,
    DigestField,
    KeyId,
    KeyIdField,
    OrderIdField,
    UuidField,
    VersionField,
    is_wire_time,
)
from agent.domain.strict_json import decode
from agent.errors import OrderExpired, OrderNotYetValid, UnknownPayloadType

LEARNUPLET_TYPE = "application/vnd.dc-compute.learnuplet.v1+json"
PREDUPLET_TYPE = "application/vnd.dc-compute.preduplet.v1+json"

MAX_ORDER_BYTES = 1 << 20
MAX_TASKS = 1000
MAX_ATTEMPTS = 100

Positive = Annotated[int, Meta(ge=1, le=1 << 53)]


class ImageRef(Struct, frozen=True, forbid_unknown_fields=True):
    """A container image: the orchestrator's name for it and the digest of its archive, which is what counts."""

    id: UuidField
    digest: DigestField


class DatasetRef(Struct, frozen=True, forbid_unknown_fields=True):
    """One version of one dataset."""

    id: UuidField
    version: VersionField

    def __str__(self) -> str:
        return f"{self.id}@{self.version}"


class ModelRef(Struct, frozen=True, forbid_unknown_fields=True):
    """A model's archive and the agent whose storage holds it."""

    digest: DigestField
    agent: KeyIdField


class Limits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an order asks for less of than the host allows. Absent: the host's own ceiling."""

    wall_s: Positive | None = None
    memory_bytes: Positive | None = None
    cpu_millis: Positive | None = None
    pids: Positive | None = None
    output_bytes: Positive | None = None


class Learnuplet(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training order: train on each of `train_data` in order, then test on each of `test_data`."""

    payload_type: ClassVar[str] = LEARNUPLET_TYPE

    id: OrderIdField
    orchestrator: KeyIdField  # whose order it is: nobody else's signature makes it one
    problem: UuidField
    problem_image: ImageRef
    algo_image: ImageRef
    model_start: ModelRef | None
    model_end: UuidField
    rank: Annotated[int, Meta(ge=0, le=1 << 31)]
    train_data: Annotated[tuple[DatasetRef, ...], Meta(max_length=MAX_TASKS)]
    test_data: Annotated[tuple[DatasetRef, ...], Meta(max_length=MAX_TASKS)]
    limits: Limits = Limits()
    max_attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)] = 3
    not_before: datetime
    expires: datetime

    def __post_init__(self) -> None:
        _check_times(self.not_before, self.expires)
        _check_datasets((*self.train_data, *self.test_data))

    @property
    def start_model(self) -> ModelRef | None:
        """The model the chain starts from, if any."""
        return self.model_start

    @property
    def roles(self) -> tuple[tuple[str, Digest], ...]:
        """(role, digest) of every image that runs in this order's tasks."""
        return (("problem", self.problem_image.digest), ("algo", self.algo_image.digest))

    @property
    def images(self) -> tuple[Digest, ...]:
        """Every image that runs in this order's tasks."""
        return (self.problem_image.digest, self.algo_image.digest)


class Preduplet(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A prediction order: predict on each of `data` with one finished model."""

    payload_type: ClassVar[str] = PREDUPLET_TYPE

    id: OrderIdField
    orchestrator: KeyIdField
    problem: UuidField
    algo_image: ImageRef
    model: ModelRef
    data: Annotated[tuple[DatasetRef, ...], Meta(max_length=MAX_TASKS)]
    limits: Limits = Limits()
    max_attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)] = 3
    not_before: datetime
    expires: datetime

    def __post_init__(self) -> None:
        _check_times(self.not_before, self.expires)
        _check_datasets(self.data)

    @property
    def start_model(self) -> ModelRef:
        """The model the chain starts from."""
        return self.model

    @property
    def roles(self) -> tuple[tuple[str, Digest], ...]:
        """(role, digest) of every image that runs in this order's tasks."""
        return (("algo", self.algo_image.digest),)

    @property
    def images(self) -> tuple[Digest, ...]:
        """Every image that runs in this order's tasks."""
        return (self.algo_image.digest,)


Order = Learnuplet | Preduplet

ORDER_TYPES: dict[str, type[Learnuplet] | type[Preduplet]] = {
    LEARNUPLET_TYPE: Learnuplet,
    PREDUPLET_TYPE: Preduplet,
}


class SignedOrder(Struct, frozen=True):
    """An order whose signature, type and role were verified. Only `trust/` makes one from outside bytes.

    `envelope` is the DSSE envelope as it came; `digest` that of its decoded payload.
    """

    order: Order
    digest: Digest
    signer: KeyId
    envelope: bytes


def parse_order(payload_type: str, payload: bytes) -> Order:
    """The order in these payload bytes.

    Raises: UnknownPayloadType, TooLarge, BadJson, BadOrder.
    """
    kind = ORDER_TYPES.get(payload_type)
    if kind is None:
        raise UnknownPayloadType(f"{payload_type[:120]!r} is not an order")
    return decode(payload, kind, limit_bytes=MAX_ORDER_BYTES, what="the order")


def check_window(order: Order, now: datetime, skew: timedelta) -> None:
    """Refuse an order outside its own time window, give or take the one skew setting.

    Raises: OrderNotYetValid, OrderExpired.
    """
    if now + skew < order.not_before:
        raise OrderNotYetValid(f"order {order.id} may start at {order.not_before.isoformat()}")
    if is_expired(order, now, skew):
        raise OrderExpired(f"order {order.id} expired at {order.expires.isoformat()}")


def is_expired(order: Order, now: datetime, skew: timedelta) -> bool:
    """Whether no further task of this order may start."""
    return now - skew >= order.expires


def _check_times(not_before: datetime, expires: datetime) -> None:
    if not (is_wire_time(not_before) and is_wire_time(expires)):
        raise ValueError("times are RFC 3339 in UTC with Z, whole seconds")
    if expires <= not_before:
        raise ValueError("`expires` must lie after `not_before`")


def _check_datasets(datasets: tuple[DatasetRef, ...]) -> None:
    """A dataset stands once in an order: never twice in a list, never in train and test at once."""
    if not datasets:
        raise ValueError("an order names at least one dataset")
    if len(datasets) > MAX_TASKS:
        raise ValueError(f"an order has {MAX_TASKS} tasks at most")
    if len({dataset.id for dataset in datasets}) != len(datasets):
        raise ValueError("a dataset stands twice in the order")
