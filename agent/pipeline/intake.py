"""An order or a hand-off arrives: opened, checked, recorded, rung. The numbered checks are in `trust/handoff.py`.

Orders of one moment may be recorded together: each is judged by itself (`judge_order`), then `record_all` records them in one
transaction and rings for all of them. `take_order` is both for one.
"""

from collections.abc import Sequence
from functools import cache, partial

from msgspec.structs import replace

from agent.domain.approvals import VerdictOn
from agent.domain.chain import plan
from agent.domain.control import Mode
from agent.domain.ids import Digest, KeyId, job_id
from agent.domain.nonces import Nonce
from agent.domain.orders import DatasetRef
from agent.domain.traces import TraceId, given_trace, trace_of
from agent.errors import AgentError, Draining, NotFound, OrderExpired
from agent.log import bound, get_logger
from agent.pipeline.bells import ring_jobs
from agent.pipeline.cancel import end_if_cancelled
from agent.pipeline.host import Host
from agent.pipeline.space import require_above_low_mark, require_possible
from agent.pipeline.workspace import bytes_needed
from agent.ports.ledger import Admission, Arrival, Candidate, JobQuery
from agent.trust.handoff import Recorded, Repeat, verify_handoff, verify_order

log = get_logger(__name__)

DONE_BEFORE_S = (
    5.0  # where the data of tasks lie that are done may have been said that long ago: chains come in flocks
)


def take_order(
    envelope: bytes,
    payload_type: str,
    sender: KeyId,
    host: Host,
    *,
    told: int = 0,
    trace: TraceId | None = None,
    nonce: Nonce | None = None,
) -> Admission:
    """An order straight from its orchestrator, recorded at position 0. `told`, `nonce`: as of `Arrival`. `trace`: of the call.

    Raises: what `judge_order` raises; QueueFull, LedgerUnavailable.
    """
    judged = judge_order(envelope, payload_type, sender, host, told=told, trace=trace, nonce=nonce)
    return judged if isinstance(judged, Admission) else _record(judged, host)


def judge_order(
    envelope: bytes,
    payload_type: str,
    sender: KeyId,
    host: Host,
    *,
    told: int = 0,
    trace: TraceId | None = None,
    nonce: Nonce | None = None,
) -> Candidate | Admission:
    """An order that passed every check, to be recorded; or what was recorded of it before. `told`, `nonce`, `trace`: as above.

    Raises: OrderError, TrustError by the checks of `verify_order`; Draining, NoSpace, LedgerUnavailable.
    """
    ruled = cache(host.ports.ledger.verdict_on)  # one order is judged by one look at each image
    verdict = verify_order(
        envelope,
        payload_type=payload_type,
        sender=sender,
        roster=host.roster,
        policy=host.policy,
        now=host.ports.now(),
        skew=host.rules.skew,
        recorded_id=host.ports.ledger.digest_of_order,
        ruled=ruled,
    )
    if isinstance(verdict, Repeat):
        return _repeat(verdict, host)
    given = given_trace(trace, verdict.digest)
    kind = plan(verdict.order)[0].kind
    arrival = Arrival(
        order=verdict, receipts=(), kind=kind, sender=sender, told=told, trace=given, nonce=nonce
    )
    return _candidate(arrival, ruled, host)


def record_all(candidates: Sequence[Candidate], host: Host) -> Sequence[Admission | Exception]:
    """Each of these recorded, or why it was not, in one transaction; then rung for. Raises: LedgerUnavailable."""
    admissions = host.ports.ledger.admit_all(candidates, host.ports.now())
    told = [_told_or_why(*each, host) for each in zip(candidates, admissions, strict=True)]
    ring_jobs([each.job for each in told if not isinstance(each, Exception)], host)
    return told


def take_handoff(
    body: bytes,
    sender: KeyId,
    host: Host,
    *,
    told: int = 0,
    trace: TraceId | None = None,
    nonce: Nonce | None = None,
) -> Admission:
    """What is left of an order, from the peer that did the task before. `told`, `nonce`: as of `Arrival`.

    The trace is that of the first receipt, which its agent signed; only without any it is what came with the call, `trace`.

    Raises: OrderError, TrustError by the numbered checks of `verify_handoff`; StorageUnavailable, Draining, QueueFull, NoSpace.
    """
    places, ruled = _Places(host), cache(host.ports.ledger.verdict_on)
    verdict = verify_handoff(
        body,
        sender=sender,
        me=host.me,
        roster=host.roster,
        policy=host.policy,
        locate=places,
        foresee=places.foresee,
        recorded=lambda order, position: _recorded(order, position, host),
        recorded_id=host.ports.ledger.digest_of_order,
        now=host.ports.now(),
        skew=host.rules.skew,
        ruled=ruled,
    )
    if isinstance(verdict, Repeat):
        return _repeat(verdict, host)
    ceilings = host.policy.ceilings_for(verdict.order.order.limits)
    least = bytes_needed(verdict.task.kind, dataset_bytes=0, model_bytes=0, ceilings=ceilings)
    require_possible(host.rules.workspace_root, least)  # it would fail here, and that is known now
    first = verdict.receipts[0].receipt.trace_id if verdict.receipts else trace
    arrival = Arrival(
        order=verdict.order,
        receipts=verdict.receipts,
        kind=verdict.task.kind,
        sender=sender,
        told=told,
        trace=given_trace(first, verdict.order.digest),
        nonce=nonce,
        # Storage just named this host, check (7); and with receipts, nobody but who signed the last one could pass it on.
        is_placed=bool(verdict.receipts),
    )
    return _record(_candidate(arrival, ruled, host), host)


def locate(ref: DatasetRef, host: Host, *, within_s: float = 0.0) -> frozenset[KeyId]:
    """The agents that storage names for a dataset, or named that long ago at most."""
    told = host.ports.storage.dataset(ref, within_s=within_s)
    return frozenset(location.agent for location in told.locations)


class _Places:
    """`locate` for one hand-off: storage is asked for all of its datasets at the same time, once each.

    What a dataset cannot be located for is raised where it is asked about, so that the checks before it come first.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._told: dict[DatasetRef, frozenset[KeyId] | AgentError] = {}

    def foresee(self, refs: Sequence[DatasetRef]) -> None:
        """Ask about these: the last one, of the task that is to be done, is asked about now, whatever was said before."""
        ages_s = [DONE_BEFORE_S] * (len(refs) - 1) + [0.0]
        asked = (partial(self._ask, ref, within_s) for ref, within_s in zip(refs, ages_s, strict=True))
        told = self._host.ports.together(*asked)
        self._told |= dict(zip(refs, told, strict=True))

    def __call__(self, ref: DatasetRef) -> frozenset[KeyId]:
        """The agents that storage names for a dataset. Raises: as `locate`."""
        told = self._told[ref]
        if isinstance(told, AgentError):
            raise told
        return told

    def _ask(self, ref: DatasetRef, within_s: float) -> frozenset[KeyId] | AgentError:
        try:
            return locate(ref, self._host, within_s=within_s)
        except AgentError as error:
            return error


def _candidate(arrival: Arrival, ruled: VerdictOn, host: Host) -> Candidate:
    """Raises: Draining, NoSpace, PolicyRefused, ImageDenied."""
    if host.ports.ledger.control().mode is Mode.DRAINING:
        raise Draining("this host takes nothing new for a while, and finishes what it runs")
    require_above_low_mark(host.rules.disks, host.rules.low_disk_bytes)
    signed = arrival.order
    task = plan(signed.order)[arrival.position]
    limit = host.rules.queue_limit
    if host.policy.admit_or_hold(signed, [task], ruled):
        limit = max(
            1, limit // 2
        )  # it waits as long as its orchestrator wants: half of the places stay for others
        arrival = replace(arrival, is_placed=False)  # it is held first
    return Candidate(arrival, max_attempts=signed.order.max_attempts, queue_limit=limit)


def _record(candidate: Candidate, host: Host) -> Admission:
    admission = host.ports.ledger.admit(
        candidate.arrival,
        host.ports.now(),
        max_attempts=candidate.max_attempts,
        queue_limit=candidate.queue_limit,
    )
    told = _told(candidate, admission, host)
    ring_jobs([told.job], host)
    return told


def _told_or_why(candidate: Candidate, admission: Admission | Exception, host: Host) -> Admission | Exception:
    try:
        return admission if isinstance(admission, Exception) else _told(candidate, admission, host)
    except AgentError as error:
        return error


def _told(candidate: Candidate, admission: Admission, host: Host) -> Admission:
    """The admission, logged; that of an order which somebody cancelled before it came, cancelled."""
    arrival, signed = candidate.arrival, candidate.arrival.order
    trace = trace_of(arrival.trace, signed.digest)
    about: dict[str, str | int] = {"order": signed.order.id, "position": arrival.position, "trace": trace}
    log.info(
        "order.received", **about, kind=arrival.kind, sender=arrival.sender, is_repeat=admission.is_repeat
    )
    if not admission.is_cancelled:
        return admission
    with bound(**about):
        cancelled = end_if_cancelled(admission.job, host)
        return admission if cancelled is None else replace(admission, job=cancelled)


def _repeat(repeat: Repeat, host: Host) -> Admission:
    """The job that is there already; for an order that reached this host by a hand-off first, the job it made then.

    Raises: OrderExpired when the order was here, ended, and was forgotten since.
    """
    try:
        job = host.ports.ledger.job(job_id(repeat.order_id, repeat.position))
    except NotFound:
        jobs = host.ports.ledger.jobs(JobQuery(order_id=repeat.order_id, limit=1))
        if not jobs:
            raise OrderExpired(f"order {repeat.order_id} ended here long ago; it never runs again") from None
        (job,) = jobs
    return Admission(job, is_repeat=True)


def _recorded(order: Digest, position: int, host: Host) -> Recorded | None:
    found = host.ports.ledger.recorded_last_receipt(order, position)
    return None if found is None else Recorded(last_receipt=found[1])
