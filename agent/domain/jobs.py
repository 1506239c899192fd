"""Jobs: an order's stay at one position on this host, and the one table of how a job may move.

A state that the table does not name for an event is the error: nothing else in the project decides what may follow what.
"""

from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct

from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, JobId, KeyId, OrderId


class JobState(StrEnum):
    """Where a job stands. The last four never change again."""

    RECEIVED = (
        "received"  # accepted and durable; not yet placed, or placed elsewhere and that host not yet told
    )
    HELD = "held"  # waits for the operator's approval of an image
    QUEUED = "queued"  # to be run here
    RUNNING = "running"  # claimed by a worker under a lease
    ATTESTED = "attested"  # receipt signed and recorded; somebody is still to be told
    DONE = "done"  # everybody who had to be told has acknowledged
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class JobEvent(StrEnum):
    """What moves a job."""

    HOLD = "hold"
    APPROVE = "approve"
    ENQUEUE = "enqueue"  # storage says: the dataset lies here
    START = "start"  # a worker claimed it: one attempt more
    RETRY = "retry"  # the attempt was lost to something outside: back to the queue
    ATTEST = "attest"
    RECALL = "recall"  # its task was done before the ledger was restored, and the receipt came back
    SETTLE = "settle"  # the last delivery was acknowledged
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


_S, _E = JobState, JobEvent

TRANSITIONS = MappingProxyType(
    {
        (_S.RECEIVED, _E.HOLD): _S.HELD,
        (_S.RECEIVED, _E.ENQUEUE): _S.QUEUED,
        (_S.RECEIVED, _E.SETTLE): _S.DONE,
        (_S.RECEIVED, _E.RECALL): _S.ATTESTED,
        (_S.RECEIVED, _E.FAIL): _S.FAILED,
        (_S.RECEIVED, _E.CANCEL): _S.CANCELLED,
        (_S.RECEIVED, _E.EXPIRE): _S.EXPIRED,
        (_S.HELD, _E.APPROVE): _S.RECEIVED,
        (_S.HELD, _E.RECALL): _S.ATTESTED,
        (_S.HELD, _E.FAIL): _S.FAILED,
        (_S.HELD, _E.CANCEL): _S.CANCELLED,
        (_S.HELD, _E.EXPIRE): _S.EXPIRED,
        (_S.QUEUED, _E.START): _S.RUNNING,
        (_S.QUEUED, _E.RECALL): _S.ATTESTED,
        (_S.QUEUED, _E.FAIL): _S.FAILED,
        (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
        (_S.QUEUED, _E.EXPIRE): _S.EXPIRED,
        (_S.RUNNING, _E.RETRY): _S.QUEUED,
        (_S.RUNNING, _E.ATTEST): _S.ATTESTED,
        (_S.RUNNING, _E.RECALL): _S.ATTESTED,
        (_S.RUNNING, _E.FAIL): _S.FAILED,
        (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
        (_S.ATTESTED, _E.SETTLE): _S.DONE,
    }
)

# to be placed, ruled on or run: what the queue's limit counts
WAITING = frozenset({JobState.RECEIVED, JobState.HELD, JobState.QUEUED})
FINAL = frozenset(state for state in JobState if not any(before is state for before, _ in TRANSITIONS))


class IllegalMove(Exception):
    """A bug in this program: an event that the table does not have for the state."""


def follow(state: JobState, event: JobEvent) -> JobState:
    """The state that `event` leads to. Raises: IllegalMove when the table has no such entry."""
    try:
        return TRANSITIONS[state, event]
    except KeyError as cause:
        raise IllegalMove(f"a {state} job cannot {event}") from cause


class Job(Struct, frozen=True, kw_only=True):
    """One row of the ledger: an order at one position on this host."""

    id: JobId
    order: Digest
    order_id: OrderId
    position: int
    kind: TaskKind
    state: JobState
    attempt: int  # attempts begun so far
    max_attempts: int
    received_at: datetime
    changed_at: datetime  # when it last moved
    not_before: datetime | None = None  # a queued job rests until then
    worker: str | None = None  # who runs it
    lease_until: datetime | None = None  # until when nobody else may take it over
    next_agent: KeyId | None = None  # who goes on; fixed in the transaction that demands the hand-off
    reason: str | None = None  # why it failed, or why the last attempt was lost
    score: str | None = None  # of a test task, decimal text
    claim: int = 0  # how often a worker took it in hand: the fence, who holds an older number moves nothing

    @property
    def is_final(self) -> bool:
        """Whether it never moves again."""
        return self.state in FINAL
