"""Whether an order would be accepted now: each thing this agent stands on, looked at and named."""

import threading
import time
from collections.abc import Callable

from msgspec.structs import replace

from agent.api.views import Check, Readiness
from agent.domain.control import Mode
from agent.domain.jobs import JobState
from agent.errors import AgentError, CageNotApplied, Draining, QueueFull
from agent.pipeline.gate import GateState, standing
from agent.pipeline.host import Host
from agent.pipeline.services import running
from agent.pipeline.space import require_above_low_mark
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryState
from agent.trust.roster import Role

KEPT_S = 3.0  # anybody may ask, so an answer is good for a while

Look = Callable[[Host], str]
"""Looks at one thing; gives what it saw. Raises: AgentError when an order would not be accepted because of it."""


def look_at_ledger(host: Host) -> str:
    """The ledger takes a write."""
    host.ports.ledger.check()
    return "takes writes"


def look_at_queue(host: Host) -> str:
    """There is room for another order."""
    counts = host.ports.ledger.counts()
    waiting = sum(counts[state] for state in (JobState.RECEIVED, JobState.HELD, JobState.QUEUED))
    if waiting >= host.rules.queue_limit:
        raise QueueFull(f"{waiting} jobs wait, the limit is {host.rules.queue_limit}")
    return f"{waiting} of {host.rules.queue_limit}"


def look_at_bells(host: Host) -> str:
    """The queues can be read."""
    depth = host.ports.broker.depth()
    return f"{sum(depth[queue] for queue in Queue)} bells"


def look_at_disk(host: Host) -> str:
    """There is more room than the low mark, for what comes in and for what is recorded."""
    return require_above_low_mark(host.rules.disks, host.rules.low_disk_bytes)


def look_at_identity(host: Host) -> str:
    """This agent's own key holds by its own roster."""
    entry = host.roster.require(host.me, role=Role.AGENT, at=host.ports.now())
    return f"valid until {entry.valid_until.isoformat()}"


def look_at_storage(host: Host) -> str:
    """The storage of this node answers."""
    host.ports.storage.check()
    return "answers"


def look_at_cage(host: Host) -> str:
    """No attempt of the worker's self-test succeeded. One that was not made yet holds up no order: it waits."""
    seen = standing(host.rules.workspace_root)
    if seen.state is GateState.BROKEN:
        raise CageNotApplied(f"the self-test failed, no task runs: {seen.detail}")
    return seen.detail


def look_at_mode(host: Host) -> str:
    """Orders are taken. One that waits while the host is paused is taken all the same."""
    said = host.ports.ledger.control()
    since = "" if said.since is None else f" since {said.since.isoformat(timespec='seconds')}"
    by = "" if said.uid is None else f" by user {said.uid}"
    why = "" if said.reason is None else f": {said.reason}"
    if said.mode is Mode.DRAINING:
        raise Draining(f"{said.mode}{since}{by}{why}")
    return f"{said.mode}{since}{by}{why}"


def look_at_outbox(host: Host) -> str:
    """How much others are still to be told. Nothing of it keeps an order out: what is dead waits for a person."""
    counts = host.ports.ledger.outbox_counts()
    dead = counts[DeliveryState.DEAD]
    told = f"{counts[DeliveryState.PENDING]} pending, {dead} dead"
    return f"{told}: dc-compute deliveries list --dead" if dead else told


def look_at_reload(host: Host) -> str:
    """Whether each service took its last reload. One that did not goes on with what it had, so no order is kept out."""
    seen = () if host.rules.services is None else running(host.rules.services)
    refused = [one for one in seen if one.last is not None and not one.last.is_taken]
    told = (f"{one.service} refused ({one.last.code}): {one.last.detail}" for one in refused if one.last)
    return "; ".join(told) or "what the files said is in force"


LOOKS: dict[str, Look] = {
    "ledger": look_at_ledger,
    "mode": look_at_mode,
    "queue": look_at_queue,
    "bells": look_at_bells,
    "disk": look_at_disk,
    "outbox": look_at_outbox,
    "identity": look_at_identity,
    "storage": look_at_storage,
    "cage": look_at_cage,
    "reload": look_at_reload,
}


class Watchman:
    """Looks at everything, at most once in KEPT_S seconds and one at a time, however many ask."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._is_looking = threading.Lock()
        self._seen_at = -KEPT_S
        self._seen = Readiness(is_ready=False, checks=())

    def look(self) -> Readiness:
        """What is seen now, or was a moment ago; while another thread looks, what was seen before."""
        if self._is_looking.acquire(blocking=False):
            try:
                if time.monotonic() - self._seen_at >= KEPT_S:
                    host = self._host.newest
                    checks = tuple(_check(name, look, host) for name, look in LOOKS.items())
                    self._seen = Readiness(all(check.is_ok for check in checks), checks)
                    self._seen_at = time.monotonic()
            finally:
                self._is_looking.release()
        return self._seen


def for_strangers(readiness: Readiness) -> Readiness:
    """The same without the words: they may name paths and addresses of this host."""
    return replace(readiness, checks=tuple(replace(check, detail=None) for check in readiness.checks))


def _check(name: str, look: Look, host: Host) -> Check:
    try:
        return Check(name, True, None, look(host))
    except AgentError as error:
        return Check(name, False, error.code, error.detail)
    except OSError as error:
        return Check(name, False, AgentError.code, str(error))
