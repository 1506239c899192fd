"""Each guard of the agent, taken out: what a simulation must then find.

with without("sweep"):
    play(plan)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, Final
from unittest.mock import patch

from agent import worker
from agent.domain.ids import job_id
from agent.domain.jobs import Job, JobState
from agent.errors import AgentError, LostRace
from agent.pipeline import deliver
from agent.pipeline.host import Host
from agent.ports.ledger import Admission, Arrival, Delivery
from agent.trust import handoff
from tests.fakes import ledger
from tests.fakes.hands import MemoryHands

Remove = Callable[[ExitStack], None]


def _no_fencing(stack: ExitStack) -> None:
    """The state alone is compared: who was given up and wakes up moves what another has in hand.

    The locks on what a process has in hand go with it: on one host they alone keep a second worker from what a stalled one has.
    """

    def fence(job: Job) -> tuple[Any, ...]:
        return job.state, job.next_agent

    def require_running(books: Any, seen: Job) -> None:
        job = books.jobs.get(seen.id)
        if job is None or job.state is not JobState.RUNNING:
            raise LostRace(f"{seen.id} does not run")

    @contextmanager
    def hold(_self: object, _job: object) -> Iterator[bool]:
        yield True

    stack.enter_context(patch.object(MemoryHands, "hold", hold))
    stack.enter_context(patch.object(ledger, "_fence", fence))
    stack.enter_context(patch.object(ledger, "_require_claim", require_running))


def _no_compare_and_set(stack: ExitStack) -> None:
    """Whoever writes last is right."""
    stack.enter_context(patch.object(ledger, "_fence", lambda _job: ()))
    stack.enter_context(patch.object(ledger, "_require_claim", lambda _books, _seen: None))


def _no_sweep(stack: ExitStack) -> None:
    """What lost its bell or its worker is never looked for."""
    stack.enter_context(patch.object(worker, "sweep", lambda *_: None))


def _no_outbox(stack: ExitStack) -> None:
    """What could not be sent is forgotten, as if it had gone out beside the ledger."""

    def forget(delivery: Delivery, _error: AgentError, host: Host, **_rest: object) -> None:
        host.ports.ledger.acknowledge(delivery.id, host.ports.now())

    stack.enter_context(patch.object(deliver, "_postpone", forget))


def _no_dedup_of_handoffs(stack: ExitStack) -> None:
    """A hand-off that comes again is taken again, as if it were the first."""
    admit = ledger.MemoryLedger.admit

    def forgetful(self: Any, arrival: Arrival, now: datetime, **limits: int) -> Admission:
        with self._writing() as books:
            job = job_id(arrival.order.order.id, arrival.position)
            is_handoff = arrival.position > 0 and books.jobs.pop(job, None) is not None
            if is_handoff:
                books.receipts.pop((arrival.order.digest, arrival.position), None)
            return admit(self, arrival, now, **limits)

    stack.enter_context(patch.object(handoff, "_find_repeat", lambda *_: None))
    stack.enter_context(patch.object(ledger.MemoryLedger, "admit", forgetful))


GUARDS: Final[Mapping[str, Remove]] = {
    "fencing": _no_fencing,
    "sweep": _no_sweep,
    "compare-and-set": _no_compare_and_set,
    "outbox": _no_outbox,
    "handoff-dedup": _no_dedup_of_handoffs,
}


@contextmanager
def without(*names: str) -> Iterator[None]:
    """While the context lasts, these guards are off."""
    with ExitStack() as stack:
        for name in names:
            GUARDS[name](stack)
        yield
