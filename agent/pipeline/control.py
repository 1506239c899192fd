"""The operator's word on the host as a whole: pause, drain, resume. Whether a task may start is asked where one starts."""

from msgspec import Struct

from agent.domain.control import Control, Mode
from agent.domain.jobs import JobState
from agent.errors import HostRestored
from agent.pipeline.host import Host
from agent.pipeline.ringing import ring_first


class Standing(Struct, frozen=True):
    """What the host does, and its jobs by state."""

    control: Control
    jobs: dict[JobState, int]


def standing(host: Host) -> Standing:
    """How the host stands now."""
    return Standing(host.ports.ledger.control(), host.ports.ledger.counts())


def say(wanted: Control, host: Host, *, is_forced: bool = False) -> bool:
    """Record what the host does from now on, unless it does that already; whether it is new. On resuming, what waited rings.

    Raises: HostRestored when a restored ledger was not reconciled and nobody insists.
    """
    before = host.ports.ledger.control()
    if before.mode is Mode.RESTORED and not is_forced:
        raise HostRestored(
            "the ledger was restored, and the orchestrators were not asked yet what happened since"
        )
    is_new = before.mode is not wanted.mode
    if is_new:
        host.ports.ledger.set_control(wanted, host.ports.now())
    if wanted.mode is Mode.RUNNING:
        ring_first(host)  # so that what waited need not wait for the sweep
    return is_new
