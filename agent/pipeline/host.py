"""Who this agent is while it works: its key, whom it trusts, what its operator allows, and its doors."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from agent.domain.chain import Task, plan, task_at
from agent.domain.ids import KeyId
from agent.domain.jobs import Job
from agent.domain.orders import MAX_ORDER_BYTES, SignedOrder, parse_order
from agent.domain.receipts import SignedReceipt
from agent.domain.traces import TraceId, trace_of
from agent.log import bound
from agent.ports import Ports
from agent.ports.ledger import DeliveryHead, OrderRecord
from agent.trust.envelope import parse_envelope
from agent.trust.keys import SigningKey
from agent.trust.policy import HostPolicy
from agent.trust.roster import Roster


@dataclass(frozen=True, slots=True)
class Rules:
    """The few numbers and folders the pipeline needs. `workspace_root` lies in memory (tmpfs), `spool` on disk."""

    skew: timedelta
    lease: timedelta
    queue_limit: int
    workspace_root: Path
    spool: Path
    low_disk_bytes: int
    max_model_bytes: int
    max_image_bytes: int
    image_age: timedelta = timedelta(days=30)  # unused for longer, an image leaves
    images_bytes: int = 64 << 30  # all loaded images together
    reconcile_first: timedelta = timedelta(minutes=1)  # until orchestrators are asked for the first time
    reconcile_every: timedelta = timedelta(minutes=15)
    log_age: timedelta = timedelta(days=30)  # logs of jobs that ended, bodies of deliveries that arrived
    order_age: timedelta = timedelta(days=365)  # orders that are over, with all that is theirs
    records: tuple[Path, ...] = ()  # where ledger and queues lie: they have the low mark too
    services: Path | None = (
        None  # where the services of this agent tell of themselves (`pipeline/services.py`)
    )
    in_memory: tuple[Path, ...] = ()  # where else words of guests lie while they run: in memory too

    @property
    def disks(self) -> tuple[Path, ...]:
        """The folders on disks: below the low mark on one of them, no order is accepted."""
        return self.spool, *self.records


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whom this agent knows and what may run here, read at one moment. `names`: host[:port] under which it may be called."""

    roster: Roster
    policy: HostPolicy
    names: Collection[str] = ()


class InForce:
    """What is trusted now. A reload exchanges it whole, so that nobody sees the roster of one and the policy of another."""

    def __init__(self, trusted: Trusted) -> None:
        self._trusted = trusted

    def now(self) -> Trusted:
        """What is in force at this moment."""
        return self._trusted

    def exchange(self, trusted: Trusted) -> None:
        """From here on this is in force."""
        self._trusted = trusted


@dataclass(frozen=True, slots=True)
class Host:
    """One agent on one storage host. Frozen: a request or a bell is judged by one roster and one policy, whole.

    Whoever keeps a host for longer asks for `newest` each time. A task under way asks for it at its gates
    (`agent/pipeline/admit.py`).
    """

    key: SigningKey
    roster: Roster
    policy: HostPolicy
    ports: Ports
    rules: Rules
    in_force: InForce | None = None  # None: nobody reloads
    old_keys: tuple[SigningKey, ...] = ()  # rotated and not yet retired: nothing is signed with them

    @property
    def every_key(self) -> tuple[SigningKey, ...]:
        """The keys that may open what this agent sealed for itself, the likeliest first."""
        return (self.key, *self.old_keys)

    @property
    def me(self) -> KeyId:
        return self.key.keyid

    def is_me(self, keyid: KeyId | None) -> bool:
        """Whether this is a key of this agent: the one it signs with, or one that was rotated into it or out of it."""
        return keyid is not None and self.roster.is_same_agent(keyid, self.me)

    @property
    def newest(self) -> "Host":
        """The same agent with the roster and the policy that are in force now."""
        if self.in_force is None:
            return self
        trusted = self.in_force.now()
        return replace(self, roster=trusted.roster, policy=trusted.policy)


@dataclass(frozen=True, slots=True)
class Context:
    """A job with the order it belongs to, the receipts before it and the task it stands for."""

    job: Job
    signed: SignedOrder
    receipts: tuple[SignedReceipt, ...]  # exactly those before `job.position`
    sender: KeyId  # who brought the order to this host first
    trace: TraceId | None = None  # what was given with it, when that is not the order's own

    @property
    def tasks(self) -> tuple[Task, ...]:
        return plan(self.signed.order)

    @property
    def task(self) -> Task:
        return task_at(self.signed.order, self.job.position)

    @property
    def next_task(self) -> Task | None:
        """The task after this one, None at the end of the chain."""
        position = self.job.position + 1
        return self.tasks[position] if position < len(self.tasks) else None


def context_of(job: Job, host: Host) -> Context:
    """The job with what was recorded beside it. Raises: NotFound, LedgerUnavailable."""
    record = host.ports.ledger.order(job.order_id)
    before = tuple(r for r in host.ports.ledger.receipts(job.order) if r.receipt.position < job.position)
    return Context(job, signed_order(record), before, record.sender, record.trace)


def about(work: Job | DeliveryHead, host: Host) -> AbstractContextManager[None]:
    """Inside, every line of the log tells of whose order and place this is, and each call to others carries its trace.

    Raises: LedgerUnavailable.
    """
    trace = trace_of(host.ports.ledger.given_trace(work.order_id), work.order)
    return bound(order=work.order_id, position=work.position, trace=trace)


def signed_order(record: OrderRecord) -> SignedOrder:
    """The order as it was verified when it was recorded. Nothing runs by this alone: `execute` opens the envelope again."""
    envelope = parse_envelope(record.envelope, limit_bytes=MAX_ORDER_BYTES)
    order = parse_order(envelope.payload_type, envelope.payload)
    return SignedOrder(order, record.digest, record.signer, record.envelope)
