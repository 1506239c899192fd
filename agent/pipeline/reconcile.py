"""What a lost message hid, and what a restored ledger forgot, is asked of those who know: a round from time to time.

A round asks each orchestrator for its open orders that it takes this agent to have, and holds them against the ledger. An order
that never arrived is taken in, what the orchestrator lost is sent again, a job whose place it has acknowledged already is
closed by its receipt. Then it asks peers for what they took lately.

While the ledger is RESTORED nothing else happens on this host. The rounds follow each other quickly then, ask for every open
job, and the first one in which everybody answered ends that state.
"""

import fcntl
import os
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from agent.domain.control import Control, Mode
from agent.domain.ids import JobId, KeyId, OrderId
from agent.domain.jobs import Job, JobState
from agent.domain.polls import next_round, next_try
from agent.domain.standings import OrderState, Standing, WholeStanding
from agent.errors import AgentError, LostRace, OutsideError, TrustError
from agent.log import get_logger
from agent.pipeline.host import Host, about, context_of
from agent.pipeline.lost import Known, look_after, peer_with, take_lost, tell_again
from agent.pipeline.recall import recall, recall_from_peer, supersede
from agent.ports.ledger import JobQuery
from agent.trust.roster import Role

log = get_logger(__name__)

OPEN = frozenset({JobState.RECEIVED, JobState.HELD, JobState.QUEUED, JobState.RUNNING, JobState.ATTESTED})
PAGE = 500
MOST_ASKED = 100  # jobs that a usual round asks for one by one
WATCHED = timedelta(days=1)  # hand-offs are looked after for so long
MOST_WATCHED = 200
LOCK = "reconcile.lock"  # in the spool: one process of the host asks at a time

ANSWERED, FORCED = "orchestrators-answered", "forced"  # why a restored host runs again


@dataclass(slots=True)
class Round:
    """What came of one: who did not answer, which jobs were looked at, and how much was found."""

    silent: dict[KeyId, str] = field(default_factory=dict)
    looked_at: set[JobId] = field(default_factory=set)
    found: int = 0
    sent_again: int = 0
    closed: int = 0
    runs_again: bool = False  # it ended the state RESTORED


class Reconciler:
    """The rounds of one process."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known = Known()
        self._rounds = 0
        self._tries = 0

    def rest(self) -> timedelta:
        """How long to wait for the next round."""
        dice = secrets.SystemRandom().random()
        if self._is_restored():
            return timedelta() if self._tries == 0 else next_try(self._tries, dice)
        rules = self._host.rules
        return next_round(self._rounds, rules.reconcile_first, rules.reconcile_every, dice)

    def run(self) -> Round | None:
        """One round; None while another process of this host makes one. Raises: LedgerUnavailable."""
        with _alone(self._host.rules.spool) as is_alone:
            if not is_alone:
                return None
            done = reconcile(self._host.newest, self._known)
        self._rounds += 1
        self._tries = self._tries + 1 if self._is_restored() else 0
        return done

    def _is_restored(self) -> bool:
        try:
            return self._host.ports.ledger.control().mode is Mode.RESTORED
        except AgentError:
            return False


def reconcile(host: Host, known: Known) -> Round:
    """One round. Raises: LedgerUnavailable."""
    is_restored = host.ports.ledger.control().mode is Mode.RESTORED
    done = Round()
    asked = _orchestrators(host)
    for orchestrator in asked:
        try:
            _ask(orchestrator, host, known, done, is_restored=is_restored)
        except (OutsideError, TrustError) as error:
            done.silent[orchestrator] = error.code
            log.warning(
                "orchestrator.not_asked", orchestrator=orchestrator, code=error.code, detail=error.detail
            )
    if is_restored:
        _end_restored(host, done, asked)
    else:
        _look_after_hand_offs(host, known, done)
    log.info(
        "orders.reconciled",
        found=done.found,
        sent_again=done.sent_again,
        closed=done.closed,
        silent=len(done.silent),
    )
    return done


def force(host: Host, uid: int | None) -> bool:
    """End the state RESTORED by the operator's word, whoever did not answer; whether it was in force.

    What orchestrators acknowledged meanwhile may then run again, and be refused by them with an alarm.
    """
    if host.ports.ledger.control().mode is not Mode.RESTORED:
        return False
    _run_again(FORCED, uid, host)
    return True


def _orchestrators(host: Host) -> tuple[KeyId, ...]:
    """Every orchestrator of the roster that can be asked. An order of another one does not run: its key holds no more."""
    now = host.ports.now()
    return tuple(
        entry.keyid
        for entry in host.roster.entries
        if entry.role is Role.ORCHESTRATOR and entry.is_valid(now) and entry.orchestrator_url is not None
    )


def _open_jobs(host: Host, signer: KeyId | None = None) -> Iterator[Job]:
    """Every open job, newest first, read page by page: there may be a million."""
    after = None
    while True:
        page = host.ports.ledger.jobs(JobQuery(states=OPEN, signer=signer, after=after, limit=PAGE))
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].id


# ------------------------------------------------------------------ one orchestrator


def _ask(orchestrator: KeyId, host: Host, known: Known, done: Round, *, is_restored: bool) -> None:
    """Raises: OutsideError, TrustError."""
    there = {standing.id: standing for standing in _pages(orchestrator, host)}
    mine = _open_jobs(host, orchestrator)
    asked = deque(mine) if is_restored else deque(_in_doubt(mine, there), MOST_ASKED)
    for job in reversed(asked):  # the oldest first
        with about(job, host):
            _look_at(job, orchestrator, host, done, is_restored=is_restored)
    for standing in there.values():
        if not is_restored:
            done.sent_again += tell_again(standing, host, known)
        done.found += take_lost(standing, orchestrator, host)


def _pages(orchestrator: KeyId, host: Host) -> Iterator[Standing]:
    after = None
    while True:
        page = host.ports.orchestrators.open_orders(orchestrator, after)
        yield from page.orders
        if page.next is None or not page.orders:
            return
        after = page.next


def _in_doubt(mine: Iterable[Job], there: Mapping[OrderId, Standing]) -> Iterator[Job]:
    """The jobs of which the list does not say that they stand there as they stand here."""
    for job in mine:
        standing = there.get(job.order_id)
        is_acknowledged = standing is not None and standing.receipt_at(job.position) is not None
        if (
            job.state is not JobState.ATTESTED
            and job.next_agent is None
            and (standing is None or is_acknowledged)
        ):
            yield job


def _look_at(job: Job, orchestrator: KeyId, host: Host, done: Round, *, is_restored: bool) -> None:
    """Close the job, and those that follow it here, as far as its orchestrator acknowledged them.

    Raises: OutsideError, TrustError.
    """
    told = host.ports.orchestrators.standing(orchestrator, job.order_id)
    while told is not None and told.standing.digest == job.order:
        done.looked_at.add(job.id)
        try:
            closed = _close(job, told, host, is_restored=is_restored)
        except LostRace:
            return  # it moved meanwhile: the next round looks again
        if closed is None:
            return
        done.closed += 1
        following = [each for each in _jobs_of(job, host) if each.position == job.position + 1]
        if not following or following[0].state not in OPEN:
            return
        job = following[0]
    done.looked_at.add(job.id)


def _close(job: Job, told: WholeStanding, host: Host, *, is_restored: bool) -> Job | None:
    """The job closed, or None when it is to go on. Raises: OutsideError, TrustError, LostRace."""
    if job.state is JobState.ATTESTED or job.next_agent is not None:
        if is_restored:
            host.ports.ledger.count_on(job, told.standing.reports_at(job.position), host.ports.now())
        return None
    recalled = recall(job, told, host)
    if recalled is not None or not is_restored:
        return recalled
    if told.standing.state is not OrderState.OPEN:
        return supersede(context_of(job, host), f"its order is {told.standing.state}", host)
    if any(receipt.position > job.position for receipt in told.standing.receipts):
        return supersede(context_of(job, host), "its order went on", host)
    peer = _who_went_on(job, host)
    if peer is not None:
        return recall_from_peer(job, peer, host.ports.peers.receipts(peer, job.order_id), told.standing, host)
    host.ports.ledger.count_on(job, told.standing.reports_at(job.position), host.ports.now())
    return None


def _who_went_on(job: Job, host: Host) -> KeyId | None:
    """The agent that has the order at the next place already, by a hand-off of this very job in another life."""
    following = context_of(job, host).next_task
    if following is None:
        return None
    return peer_with(job.order_id, following, host)


def _jobs_of(job: Job, host: Host) -> tuple[Job, ...]:
    return host.ports.ledger.jobs(JobQuery(order_id=job.order_id, limit=PAGE))


# ------------------------------------------------------------------ peers, and the end of a restored state


def _look_after_hand_offs(host: Host, known: Known, done: Round) -> None:
    now, away = host.ports.now(), set(done.silent)
    for handed in host.ports.ledger.handed_over(now - WATCHED, now, MOST_WATCHED):
        orchestrator = host.ports.ledger.order(handed.order_id).signer
        if orchestrator in away or handed.target in away:
            continue
        try:
            with about(handed, host):
                done.sent_again += look_after(handed, orchestrator, host, known)
        except (OutsideError, TrustError) as error:
            away.add(handed.target)  # whoever of the two it was: this round asks no further
            log.warning("peer.not_asked", peer=handed.target, code=error.code, detail=error.detail)


def _end_restored(host: Host, done: Round, asked: tuple[KeyId, ...]) -> None:
    """RUNNING, when everybody answered and no job is there, found or come meanwhile, that nobody was asked about."""
    unknown = sum(
        job.id not in done.looked_at for orchestrator in asked for job in _open_jobs(host, orchestrator)
    )
    if done.silent or unknown:
        log.warning("host.stays_restored", silent=sorted(done.silent), jobs=unknown)
        return
    _run_again(ANSWERED, None, host)
    done.runs_again = True


def _run_again(reason: str, uid: int | None, host: Host) -> None:
    now = host.ports.now()
    host.ports.ledger.set_control(Control(mode=Mode.RUNNING, since=now, reason=reason, uid=uid), now)
    log.warning("host.runs_again", reason=reason, uid=uid)


@contextmanager
def _alone(spool: Path) -> Iterator[bool]:
    """Whether no other process of this host asks now. The lock dies with its holder."""
    fd = os.open(spool / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)
