"""What waits is rung for again, in pages: all of it where bells may have been lost, else a part of it at each sweep.

A bell is lost with a crash, with the file of the queues, or when it rang while nothing might start. So a process goes through
everything once at its start, when the cage was proved, and when the host runs again; after that each sweep goes on where
the one before ended. Up to `AT_ONCE` jobs, that is everything at each sweep; however many there are, a sweep stays short and
holds a page of them. A bell that waits already is not rung twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from agent.domain.control import Control
from agent.domain.jobs import JobState
from agent.pipeline.bells import queue_of, ring_all
from agent.pipeline.host import Host
from agent.ports.broker import Queue
from agent.ports.ledger_bells import Waiting

PAGE = 1000  # rows in one reading, bells in one transaction of the queues
AT_ONCE = 10_000  # jobs that a usual sweep looks at


@dataclass(slots=True)
class Ringing:
    """How far a process came. `is_whole`: the next turn goes through everything, from the start; `runs_since`: since when the
    host runs, as this process last saw it."""

    after: int = 0
    is_whole: bool = True
    runs_since: datetime | None = None

    def begin_anew(self) -> None:
        """Bells may have been lost: the next turn goes through everything."""
        self.after, self.is_whole = 0, True

    def note(self, control: Control) -> None:
        """What rang while nothing might start is lost: begin anew where the host runs again."""
        if control.may_start and control.since != self.runs_since:
            self.runs_since = control.since
            self.begin_anew()


def ring_waiting(host: Host, ringing: Ringing) -> int:
    """Ring for jobs that wait to be placed, looked at again or run; for how many. Raises: LedgerUnavailable."""
    count = looked_at = 0
    while True:
        page = host.ports.ledger.waiting(host.ports.now(), after=ringing.after, limit=PAGE)
        _ring_jobs(page.jobs, host)
        count, looked_at = count + len(page.jobs), looked_at + PAGE
        ringing.after = page.next or 0
        if page.next is None or (looked_at >= AT_ONCE and not ringing.is_whole):
            return count


def ring_unsent(host: Host) -> int:
    """Ring for everything that is to be sent now; for how much. Raises: LedgerUnavailable."""
    count, after = 0, None
    while True:
        page = host.ports.ledger.unsent(host.ports.now(), after=after, limit=PAGE)
        ring_all(Queue.DELIVERIES, page.deliveries, host)
        count, after = count + len(page.deliveries), page.next
        if after is None:
            return count


def ring_first(host: Host) -> None:
    """Ring for as much as a usual sweep does, from the start. Raises: LedgerUnavailable."""
    ring_waiting(host, Ringing(is_whole=False))
    ring_all(Queue.DELIVERIES, host.ports.ledger.unrung(host.ports.now(), PAGE).deliveries, host)


def _ring_jobs(jobs: Iterable[Waiting], host: Host) -> None:
    """Those that are held after the others of their page: an archive is read for minutes by the thread that places orders."""

    def where(job: Waiting) -> tuple[bool, Queue]:
        return job.state is JobState.HELD, queue_of(job.state, job.kind)

    for (_, queue), some in groupby(sorted(jobs, key=where), key=where):
        ring_all(queue, [job.id for job in some], host)
