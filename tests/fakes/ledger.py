"""A ledger in memory: the semantics of `agent.ports.ledger.Ledger`, nothing durable. The contract suite runs on it too."""

import copy
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from agent.domain.approvals import Ruling, Verdict
from agent.domain.audit import (
    CHECKPOINT,
    NewEvent,
    SignHead,
    digest_of_line,
    is_told,
    next_line,
    told_of_task,
)
from agent.domain.backups import CLAIMS_BETWEEN, NUMBERS_BETWEEN, Restore, signed_after
from agent.domain.cancellations import OPERATOR, KeptCancellation
from agent.domain.chain import TaskKind, task_at
from agent.domain.control import Control, Mode
from agent.domain.ids import Digest, JobId, KeyId, OrderId, job_id
from agent.domain.images import PAGE_ENTRIES, ImageDescription, ImageEntry
from agent.domain.jobs import WAITING, IllegalMove, Job, JobEvent, JobState, follow
from agent.domain.measures import delivered, not_delivered, tallies_of
from agent.domain.nonces import Nonce, replayed
from agent.domain.orders import MAX_ORDER_BYTES, SignedOrder, parse_order
from agent.domain.receipts import SignedReceipt
from agent.domain.retention import Garbage, LedgerSizes, Retention, is_over
from agent.domain.strict_json import encode
from agent.errors import (
    HandoffConflict,
    LedgerUnavailable,
    LostRace,
    NotFound,
    OrderConflict,
    OrderExpired,
    QueueFull,
)
from agent.ports.ledger import (
    ATTEMPT_FAILED,
    Admission,
    Arrival,
    CancelStep,
    Candidate,
    Delivery,
    DeliveryId,
    DeliveryKind,
    DeliveryState,
    EventRecord,
    JobQuery,
    NewDelivery,
    OrderRecord,
    Successor,
)
from agent.ports.ledger_attempts import Step
from agent.trust.envelope import parse_envelope
from tests.fakes.ledger_bells import MemoryBells
from tests.fakes.ledger_measures import MemoryMeasures, grow, put_phases
from tests.fakes.ledger_outbox import MemoryOutbox, count_on, is_due, last_number
from tests.fakes.ledger_page import MemoryPage

Plain = str | int | float | None


@dataclass
class _Books:
    """Everything recorded, each in the order of its first record."""

    orders: dict[OrderId, OrderRecord] = field(default_factory=dict)
    receipts: dict[tuple[Digest, int], SignedReceipt] = field(default_factory=dict)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    arrived_with: dict[JobId, Digest | None] = field(default_factory=dict)
    deliveries: dict[DeliveryId, Delivery] = field(default_factory=dict)
    targets: dict[KeyId, tuple[int, datetime]] = field(default_factory=dict)
    nonces: dict[tuple[KeyId, str], datetime] = field(default_factory=dict)
    events: list[EventRecord] = field(default_factory=list)
    logs: dict[tuple[JobId, int, str], bytes] = field(default_factory=dict)
    steps: dict[tuple[JobId, int, str], Step] = field(default_factory=dict)
    control: list[Control] = field(default_factory=list)
    restores: list[Restore] = field(default_factory=list)
    cancellations: dict[tuple[Digest, str], KeptCancellation] = field(default_factory=dict)
    rulings: list[Ruling] = field(default_factory=list)
    past: dict[OrderId, tuple[Digest, datetime]] = field(default_factory=dict)
    phases: dict[tuple[JobId, int], dict[str, float]] = field(default_factory=dict)
    tallies: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)
    descriptions: dict[Digest, tuple[ImageDescription, tuple[ImageEntry, ...]]] = field(default_factory=dict)

    def draft(self) -> "_Books":
        """A copy to write in: nothing of it counts when the transaction raises."""
        return _Books(**{each.name: copy.copy(getattr(self, each.name)) for each in fields(self)})

    def told_by(self, job: Job) -> list[Delivery]:
        """Every delivery of this job, oldest first."""
        return [delivery for delivery in self.deliveries.values() if delivery.job == job.id]

    def pending(self) -> list[Delivery]:
        """Every delivery that waits for its answer, oldest first."""
        return [each for each in self.deliveries.values() if each.state is DeliveryState.PENDING]


class MemoryLedger(MemoryBells, MemoryMeasures, MemoryOutbox, MemoryPage):
    """See `Ledger`. `is_broken = True` makes every call raise LedgerUnavailable."""

    def __init__(self) -> None:
        self._books = _Books()
        self._lock = threading.RLock()
        self._told: tuple[_Books, int] = (self._books, 0)
        self.is_broken = False

    # ---- intake

    def admit(self, arrival: Arrival, now: datetime, *, max_attempts: int, queue_limit: int) -> Admission:
        signed, order_id, nonce = arrival.order, arrival.order.order.id, arrival.nonce
        said = {
            "is_cancelled": any(order == signed.digest for order, _ in self._books.cancellations),
            "keeps_nonce": nonce is not None,
        }
        with self._writing() as books:
            if nonce is not None and not _put_nonce(books, nonce, now):
                raise replayed()
            known = books.orders.get(order_id)
            if known is not None and known.digest != signed.digest:
                raise OrderConflict(f"order {order_id} is recorded with other content")
            job = books.jobs.get(job_id(order_id, arrival.position))
            if job is not None:
                if books.arrived_with[job.id] != arrival.last_receipt:
                    raise HandoffConflict(f"{job.id} follows another receipt")
                return Admission(job, is_repeat=True, **said)
            if order_id in books.past:
                digest, expires = books.past[order_id]
                if digest != signed.digest:
                    raise OrderConflict(f"order {order_id} was recorded with other content")
                raise OrderExpired(f"order {order_id} ended here and expired {expires}")
            if (signed.digest, arrival.position) in books.receipts:
                raise HandoffConflict(f"position {arrival.position} of {order_id} is done already")
            if sum(job.state in WAITING for job in books.jobs.values()) >= queue_limit:
                raise QueueFull(f"{queue_limit} jobs wait")
            books.orders.setdefault(order_id, _order_record(arrival, now))
            for position, receipt in enumerate(arrival.receipts):
                _put_receipt(books, signed.digest, position, receipt)
            job = _put_job(
                books,
                signed=signed,
                position=arrival.position,
                kind=arrival.kind,
                state=JobState.RECEIVED,
                max_attempts=max_attempts,
                last_receipt=arrival.last_receipt,
                now=now,
                sender=arrival.sender,
            )
            count_on(books, job, arrival.told, now, _tell)
            if arrival.is_placed:
                job = _transit(books, job, JobEvent.ENQUEUE, now)
            return Admission(job, is_repeat=False, **said)

    def admit_all(self, candidates: Sequence[Candidate], now: datetime) -> Sequence[Admission | Exception]:
        return [self._admitted(candidate, now) for candidate in candidates]

    def _admitted(self, wanted: Candidate, now: datetime) -> Admission | Exception:
        limits = {"max_attempts": wanted.max_attempts, "queue_limit": wanted.queue_limit}
        try:
            return self.admit(wanted.arrival, now, **limits)
        except Exception as error:
            return error

    def digest_of_order(self, order_id: OrderId) -> Digest | None:
        with self._reading() as books:
            past, _ = books.past.get(order_id, (None, None))
            return books.orders[order_id].digest if order_id in books.orders else past

    def recorded_last_receipt(self, order: Digest, position: int) -> tuple[JobId, Digest | None] | None:
        with self._reading() as books:
            for job in books.jobs.values():
                if (job.order, job.position) == (order, position):
                    return job.id, books.arrived_with[job.id]
            return None

    def remember_nonce(self, keyid: KeyId, nonce: str, keep_until: datetime, now: datetime) -> bool:
        with self._writing() as books:
            return _put_nonce(books, Nonce(keyid=keyid, text=nonce, keep_until=keep_until), now)

    def knows_nonce(self, keyid: KeyId, nonce: str, now: datetime) -> bool:
        with self._reading() as books:
            kept = books.nonces.get((keyid, nonce))
            return kept is not None and kept >= now

    # ---- reading

    def job(self, job: JobId) -> Job:
        with self._reading() as books:
            return _job(books, job)

    def jobs(self, query: JobQuery) -> tuple[Job, ...]:
        with self._reading() as books:
            newest_first = list(reversed(books.jobs.values()))
            if query.after is not None:
                newest_first = newest_first[newest_first.index(_job(books, query.after)) + 1 :]
            return tuple(job for job in newest_first if _fits(books, job, query))[: query.limit]

    def order(self, order_id: OrderId) -> OrderRecord:
        with self._reading() as books:
            if order_id not in books.orders:
                raise NotFound(f"no order {order_id}")
            return books.orders[order_id]

    def receipts(self, order: Digest) -> tuple[SignedReceipt, ...]:
        with self._reading() as books:
            return tuple(books.receipts[place] for place in sorted(books.receipts) if place[0] == order)

    def deliveries(
        self, *, order_id: OrderId | None = None, state: DeliveryState | None = None
    ) -> tuple[Delivery, ...]:
        with self._reading() as books:
            return tuple(
                delivery
                for delivery in books.deliveries.values()
                if order_id in {None, delivery.order_id} and state in {None, delivery.state}
            )

    def events(
        self, *, order_id: OrderId | None = None, after: int = 0, limit: int = 500
    ) -> tuple[EventRecord, ...]:
        with self._reading() as books:
            later = [e for e in books.events if e.seq > after and order_id in {None, e.order_id}]
            return tuple(later[:limit])

    # ---- for who looks on

    def version(self) -> int:
        with self._reading() as books:
            if books is not self._told[0]:
                self._told = (books, self._told[1] + 1)
            return self._told[1]

    def newest_event(self) -> int:
        with self._reading() as books:
            return books.events[-1].seq if books.events else 0

    def receipts_at(self, places: Iterable[tuple[Digest, int]]) -> tuple[SignedReceipt, ...]:
        with self._reading() as books:
            return tuple(books.receipts[place] for place in places if place in books.receipts)

    def jobs_with(self, agent: Collection[KeyId], query: JobQuery, among: int) -> tuple[Job, ...]:
        newest = self.jobs(replace(query, signer=None, limit=among))
        with self._reading() as books:
            return tuple(job for job in newest if not _parties(books, job).isdisjoint(agent))[: query.limit]

    # ---- moving

    def move(
        self,
        job: Job,
        event: JobEvent,
        now: datetime,
        *,
        reason: str | None = None,
        not_before: datetime | None = None,
        next_agent: KeyId | None = None,
        receipt: SignedReceipt | None = None,
        score: str | None = None,
        deliveries: Sequence[NewDelivery] = (),
        successor: Successor | None = None,
        told: Sequence[NewEvent] = (),
        phases: Mapping[str, float] | None = None,
    ) -> Job:
        if event in {JobEvent.START, JobEvent.SETTLE}:
            raise IllegalMove(f"{event} is not the caller's")
        if event in {JobEvent.ENQUEUE, JobEvent.HOLD} and job.next_agent is not None:
            raise IllegalMove(f"{job.id} goes elsewhere")
        if receipt is not None and (receipt.receipt.order, receipt.receipt.position) != (
            job.order,
            job.position,
        ):
            raise IllegalMove(f"the receipt is not that of {job.id}")
        given = {"next_agent": next_agent, "score": score}
        columns: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        with self._writing() as books:
            _tell_these(books, told, now)
            moved = _transit(books, job, event, now, reason=reason, not_before=not_before, **columns)
            if receipt is not None:
                _put_own_receipt(books, moved, receipt, now)
            put_phases(books, moved, phases or {})
            _put_deliveries(books, moved, deliveries, now)
            if successor is not None:
                _put_successor(books, moved, successor, receipt, now)
            return _settle(books, moved, now) if event in {JobEvent.ATTEST, JobEvent.RECALL} else moved

    def start(
        self,
        job: Job,
        now: datetime,
        *,
        worker: str,
        lease_until: datetime,
        deliveries: Sequence[NewDelivery] = (),
    ) -> Job:
        if job.state is not JobState.QUEUED:
            raise LostRace(f"{job.id} is {job.state}")
        with self._writing() as books:
            if not self.control().may_start:
                raise LostRace("no task starts on this host now")
            rests_until = _job(books, job.id).not_before
            if rests_until is not None and rests_until > now:
                raise LostRace(f"{job.id} rests")
            attempt = job.attempt + 1
            columns = {"attempt": attempt, "worker": worker, "lease_until": lease_until, "not_before": None}
            columns["claim"] = job.claim + 1
            started = _transit(books, job, JobEvent.START, now, **columns)
            _put_deliveries(books, started, deliveries, now)
            return started

    def adopt(self, job: Job, now: datetime, *, worker: str, lease_until: datetime) -> Job:
        with self._writing() as books:
            _require_running(job)
            current = _job(books, job.id)
            if current.lease_until is not None and current.lease_until > now:
                raise LostRace(f"{job.id} is leased")
            columns = {"worker": worker, "lease_until": lease_until, "claim": job.claim + 1, "reason": None}
            adopted = _change(books, job, **columns)
            _tell(books, "job.adopted", now, job.order_id, job.position, _told_of(adopted))
            return adopted

    def park(self, job: Job, now: datetime, *, until: datetime, reason: str) -> Job:
        with self._writing() as books:
            _require_running(job)
            columns = {"worker": None, "lease_until": until, "claim": job.claim + 1, "reason": reason}
            parked = _change(books, job, **columns)
            for key, step in tuple(books.steps.items()):
                if key[:2] == (job.id, job.attempt) and step.ended_at is None:
                    books.steps[key] = replace(step, tries=0)
            _tell(books, "job.parked", now, job.order_id, job.position, _told_of(parked))
            return parked

    def release(self, process: str, now: datetime) -> int:
        with self._writing() as books:
            released = 0
            for job in tuple(books.jobs.values()):
                is_mine = f"{job.worker}-".startswith(f"{process}-")
                if job.state is JobState.RUNNING and is_mine and job.lease_until and job.lease_until > now:
                    books.jobs[job.id] = replace(job, lease_until=now)
                    released += 1
            return released

    def begin_step(self, job: Job, name: str, now: datetime, *, told: Sequence[NewEvent] = ()) -> Step:
        with self._writing() as books:
            _require_claim(books, job)
            before = books.steps.get((job.id, job.attempt, name))
            step = Step(name=name, tries=1 + (before.tries if before else 0), begun_at=now)
            books.steps[job.id, job.attempt, name] = step
            _tell_these(books, told, now)
            return step

    def end_step(
        self,
        job: Job,
        name: str,
        now: datetime,
        outcome: bytes,
        *,
        log: tuple[str, bytes] | None = None,
        told: Sequence[NewEvent] = (),
    ) -> None:
        with self._writing() as books:
            _require_claim(books, job)
            key = (job.id, job.attempt, name)
            begun = books.steps.get(key) or Step(name=name, tries=1, begun_at=now)
            books.steps[key] = replace(begun, ended_at=now, outcome=outcome)
            if log is not None:
                books.logs[job.id, job.attempt, log[0]] = log[1]
            _tell_these(books, told, now)

    def steps(self, job: Job) -> tuple[Step, ...]:
        with self._reading() as books:
            own = [step for key, step in books.steps.items() if key[:2] == (job.id, job.attempt)]
            return tuple(sorted(own, key=lambda step: (step.begun_at, step.name)))

    def control(self) -> Control:
        with self._reading() as books:
            return books.control[-1] if books.control else Control()

    def set_control(self, control: Control, now: datetime) -> None:
        with self._writing() as books:
            books.control.append(control)
            values: dict[str, Plain] = {"reason": control.reason, "uid": control.uid}
            _tell(books, f"host.{control.mode}", now, None, None, values)

    def mark_restored(
        self,
        now: datetime,
        *,
        backup_made_at: datetime,
        skew: timedelta,
        generation: int = 0,
        uid: int | None = None,
    ) -> Restore:
        moment = backup_made_at.isoformat(timespec="seconds")
        with self._writing() as books:
            restore = Restore(
                at=now,
                generation=max(_generation(books), generation) + 1,
                backup_made_at=backup_made_at,
                signed_after=signed_after(now, backup_made_at, skew),
                uid=uid,
            )
            books.restores.append(restore)
            for job in tuple(books.jobs.values()):
                if not job.is_final:
                    lease = now if job.state is JobState.RUNNING else job.lease_until
                    books.jobs[job.id] = replace(
                        job, claim=job.claim + CLAIMS_BETWEEN * restore.generation, lease_until=lease
                    )
            for delivery in tuple(books.deliveries.values()):
                books.deliveries[delivery.id] = replace(delivery, lease_until=None)
            _tell(books, "ledger.restored", now, None, None, {"backup_made_at": moment, "uid": uid})
        reason = f"restored from a backup of {moment}"
        self.set_control(Control(mode=Mode.RESTORED, since=now, reason=reason, uid=uid), now)
        return restore

    def restores(self) -> tuple[Restore, ...]:
        with self._reading() as books:
            return tuple(reversed(books.restores))

    def renew(self, worker: str, lease_until: datetime) -> None:
        with self._writing() as books:
            for job in books.jobs.values():
                if job.state is JobState.RUNNING and job.worker == worker:
                    books.jobs[job.id] = replace(job, lease_until=lease_until)

    def redirect(self, job: Job, now: datetime, *, next_agent: KeyId, delivery: NewDelivery) -> Job:
        if job.state is not JobState.RECEIVED:
            raise IllegalMove(f"a {job.state} job cannot be redirected")
        if job.next_agent is not None:
            raise LostRace(f"{job.id} goes elsewhere already")
        with self._writing() as books:
            moved = _send_to(books, job, next_agent, now)
            _put_deliveries(books, moved, [delivery], now)
            return moved

    def record_event(
        self,
        name: str,
        now: datetime,
        *,
        order_id: OrderId | None = None,
        position: int | None = None,
        dataset: str | None = None,
        values: dict[str, Plain] | None = None,
    ) -> None:
        with self._writing() as books:
            _tell(books, name, now, order_id, position, values or {}, dataset=dataset)

    # ---- the audit log

    def record_events(self, told: Sequence[NewEvent], now: datetime) -> None:
        with self._writing() as books:
            _tell_these(books, told, now)

    def last_event(self, name: str) -> EventRecord | None:
        with self._reading() as books:
            of_host = (event for event in reversed(books.events) if event.order_id is None)
            return next((event for event in of_host if event.name == name), None)

    def checkpoint(self, sign: SignHead, now: datetime, *, lines: int, age: timedelta) -> bool:
        with self._writing() as books:
            before = self.last_event(CHECKPOINT)
            after = books.events[0 if before is None else before.seq :]
            if len(after) < lines and not (after and abs(now - after[0].at) >= age):
                return False
            head = sign(len(books.events), books.events[-1].digest)
            _tell(books, CHECKPOINT, now, None, None, {"head": head})
            return True

    # ---- cancelling

    def order_of_digest(self, order: Digest) -> OrderRecord | None:
        with self._reading() as books:
            return next((record for record in books.orders.values() if record.digest == order), None)

    def cancellations(self, order: Digest) -> tuple[KeptCancellation, ...]:
        with self._reading() as books:
            return tuple(kept for kept in books.cancellations.values() if kept.order == order)

    def cancel(
        self,
        kept: KeptCancellation,
        steps: Sequence[CancelStep],
        now: datetime,
        *,
        most_without_order: int,
    ) -> bool:
        with self._writing() as books:
            before = books.cancellations.get((kept.order, kept.source))
            if before is None:
                _require_room_for(books, kept, most_without_order)
                books.cancellations[kept.order, kept.source] = kept
                order_id = next((r.id for r in books.orders.values() if r.digest == kept.order), None)
                told: dict[str, Plain] = {
                    "order": kept.order,
                    "source": kept.source,
                    "uid": kept.uid,
                    "reason": kept.reason,
                }
                _tell(books, "order.cancelled", now, order_id, None, told)
            else:
                longer = max(before.keep_until, kept.keep_until)
                books.cancellations[kept.order, kept.source] = replace(before, keep_until=longer)
            for step in steps:
                _take_step(books, step, kept, now)
            if any(_goes_on(job, kept) for job in books.jobs.values()):
                raise LostRace(f"a job of {kept.order} came meanwhile")
            return before is None

    def forget_cancellations(self, now: datetime) -> int:
        with self._writing() as books:
            over = [key for key, kept in books.cancellations.items() if kept.keep_until < now]
            for key in over:
                del books.cancellations[key]
            return len(over)

    # ---- images

    def rule(self, ruling: Ruling) -> bool:
        with self._writing() as books:
            if self.verdict_on(ruling.image) is ruling.verdict:
                return False
            books.rulings.append(ruling)
            values: dict[str, Plain] = {"image": ruling.image, "uid": ruling.uid, "reason": ruling.reason}
            _tell(books, f"image.{ruling.verdict}", ruling.at, None, None, values)
            return True

    def ruling(self, image: Digest) -> Ruling | None:
        return next(iter(self.rulings(image=image)), None)

    def verdict_on(self, image: Digest) -> Verdict | None:
        last = self.ruling(image)
        return None if last is None else last.verdict

    def rulings(self, *, image: Digest | None = None, limit: int = 500) -> tuple[Ruling, ...]:
        with self._reading() as books:
            found = [ruling for ruling in reversed(books.rulings) if image in {None, ruling.image}]
            return tuple(found[:limit])

    def describe(self, description: ImageDescription, listing: Sequence[ImageEntry] = ()) -> None:
        with self._writing() as books:
            books.descriptions.setdefault(description.image, (description, tuple(listing)))

    def description(self, image: Digest) -> ImageDescription | None:
        with self._reading() as books:
            return books.descriptions[image][0] if image in books.descriptions else None

    def listing(self, image: Digest, page: int) -> tuple[ImageEntry, ...]:
        with self._reading() as books:
            entries = books.descriptions[image][1] if image in books.descriptions else ()
            return entries[page * PAGE_ENTRIES : (page + 1) * PAGE_ENTRIES]

    def needed_images(self, *, is_held: bool = False) -> frozenset[Digest]:
        states = {JobState.HELD} if is_held else {*WAITING, JobState.RUNNING}
        with self._reading() as books:
            records = [books.orders[job.order_id] for job in books.jobs.values() if job.state in states]
        signed = [parse_envelope(record.envelope, limit_bytes=MAX_ORDER_BYTES) for record in records]
        return frozenset(
            image for one in signed for image in parse_order(one.payload_type, one.payload).images
        )

    def forget_descriptions(self, keep: Collection[Digest]) -> int:
        with self._writing() as books:
            over = [image for image in books.descriptions if image not in keep]
            for image in over:
                del books.descriptions[image]
            return len(over)

    # ---- logs of jobs

    def keep_log(self, job: Job, run: str, log: bytes) -> None:
        with self._writing() as books:
            books.logs[job.id, job.attempt, run] = log

    def logs(self, order_id: OrderId) -> tuple[tuple[JobId, int, str, bytes], ...]:
        with self._reading() as books:
            kept = books.logs.items()
            return tuple((*key, log) for key, log in kept if books.jobs[key[0]].order_id == order_id)

    # ---- what is kept

    def garbage(self, told: Retention) -> Garbage:
        with self._reading() as books:
            old_logs, old_bodies = _old_logs(books, told), _old_bodies(books, told)
            return Garbage(
                logs=len(old_logs),
                log_bytes=sum(len(books.logs[key]) for key in old_logs),
                bodies=len(old_bodies),
                body_bytes=sum(len(books.deliveries[name].body) for name in old_bodies),
                orders=len(_old_orders(books, told)),
            )

    def collect(self, told: Retention, now: datetime, limit: int) -> Garbage:
        with self._writing() as books:
            old_logs, old_bodies = _old_logs(books, told)[:limit], _old_bodies(books, told)[:limit]
            log_bytes = sum(len(books.logs.pop(key)) for key in old_logs)
            body_bytes = sum(len(books.deliveries[name].body) for name in old_bodies)
            for name in old_bodies:
                books.deliveries[name] = replace(books.deliveries[name], body=b"")
            over = _old_orders(books, told)[:limit]
            for record in sorted(over, key=lambda record: record.id):
                _forget(books, record, now)
            return Garbage(
                logs=len(old_logs),
                log_bytes=log_bytes,
                bodies=len(old_bodies),
                body_bytes=body_bytes,
                orders=len(over),
            )

    def give_back(self) -> int:
        return 0

    def sizes(self) -> LedgerSizes:
        with self._reading() as books:
            all_bodies = [d for d in books.deliveries.values() if d.body]
            pending = [d for d in all_bodies if d.state is not DeliveryState.ACKNOWLEDGED]
            envelopes = [o.envelope for o in books.orders.values()]
            envelopes += [r.envelope for r in books.receipts.values()]
            return LedgerSizes(
                file_bytes=0,
                free_bytes=0,
                can_shrink=True,
                orders=len(books.orders),
                order_bytes=sum(map(len, envelopes)),
                logs=len(books.logs),
                log_bytes=sum(map(len, books.logs.values())),
                bodies=len(all_bodies),
                body_bytes=sum(len(d.body) for d in all_bodies),
                pending_bytes=sum(len(d.body) for d in pending),
                events=len(books.events),
                event_bytes=sum(len(encode(e.values)) for e in books.events),
            )

    # ---- attempts

    def codes_before(self, job: Job) -> tuple[str, ...]:
        told = [e for e in self.events(order_id=job.order_id, limit=1 << 30) if e.name == ATTEMPT_FAILED]
        here: list[dict[str, Any]] = [event.values for event in told if event.position == job.position]
        codes = {values["attempt"]: str(values["code"]) for values in here}
        return tuple(code for attempt, code in codes.items() if attempt < job.attempt)

    # ---- outbox

    def lease_delivery(self, delivery: DeliveryId, now: datetime, lease_until: datetime) -> Delivery | None:
        with self._writing() as books:
            found = books.deliveries.get(delivery)
            if found is None or not is_due(found, now):
                return None
            failures, until = books.targets.get(found.target, (0, now))
            if until > now:
                return None
            if failures:
                books.targets[found.target] = (failures, lease_until)
            books.deliveries[delivery] = replace(found, lease_until=lease_until)
            if is_told(found.attempts + 1):
                after: dict[str, Plain] = (
                    {} if found.last_error is None else {"after": found.last_error[:200]}
                )
                _tell_delivery(books, found, "delivery.sent", now, **after)
            return books.deliveries[delivery]

    def acknowledge(self, delivery: DeliveryId, now: datetime) -> Job:
        with self._writing() as books:
            found = _delivery(books, delivery)
            if found.state is not DeliveryState.ACKNOWLEDGED:
                books.deliveries[delivery] = replace(
                    found, state=DeliveryState.ACKNOWLEDGED, acknowledged_at=now, lease_until=None
                )
                grow(books, delivered(found.kind, now - found.created_at))
                _tell_delivery(books, found, "delivery.acknowledged", now)
            return _settle(books, _job(books, found.job), now)

    def postpone(self, delivery: DeliveryId, next_try_at: datetime, error: str) -> None:
        with self._writing() as books:
            found = _delivery(books, delivery)
            if found.state is DeliveryState.PENDING:
                attempts = found.attempts + 1
                grow(books, not_delivered(found.kind, "failed"))
                books.deliveries[delivery] = replace(
                    found, attempts=attempts, next_try_at=next_try_at, last_error=error, lease_until=None
                )

    def bury(
        self, delivery: DeliveryId, now: datetime, error: str, *, deliveries: Sequence[NewDelivery] = ()
    ) -> None:
        with self._writing() as books:
            found = _delivery(books, delivery)
            if found.state is not DeliveryState.PENDING:
                return
            grow(books, not_delivered(found.kind, "refused"))
            books.deliveries[delivery] = replace(
                found, state=DeliveryState.DEAD, last_error=error, lease_until=None
            )
            _tell_delivery(books, found, "delivery.buried", now, error=error[:200])
            job = _job(books, found.job)
            instead = next((new.target for new in deliveries if new.kind is DeliveryKind.HANDOFF), None)
            if found.kind is DeliveryKind.HANDOFF and job.state in {
                JobState.RECEIVED,
                JobState.ATTESTED,
                JobState.DONE,
            }:
                if instead is not None:
                    job = _send_to(books, job, instead, now)
                elif job.state is JobState.RECEIVED:
                    job = _transit(books, job, JobEvent.FAIL, now, reason=error)
            _put_deliveries(books, job, deliveries, now)
            _settle(books, job, now)

    # ---- the sweep

    def correct_clock(self, now: datetime, *, lease: timedelta, rest: timedelta) -> int:
        with self._writing() as books:
            corrected = 0
            for job in tuple(books.jobs.values()):
                most = lease if job.worker is not None else max(lease, rest)
                if job.state is JobState.RUNNING and job.lease_until and job.lease_until > now + most:
                    books.jobs[job.id] = replace(job, lease_until=now)
                    corrected += 1
                if job.state is JobState.QUEUED and job.not_before and job.not_before > now + rest:
                    books.jobs[job.id] = replace(job, not_before=now)
                    corrected += 1
            for found in books.pending():
                if found.next_try_at > now + rest:
                    books.deliveries[found.id] = replace(books.deliveries[found.id], next_try_at=now)
                    corrected += 1
                if found.lease_until and found.lease_until > now + lease:
                    books.deliveries[found.id] = replace(books.deliveries[found.id], lease_until=now)
                    corrected += 1
            for target, (failures, until) in tuple(books.targets.items()):
                if until > now + rest:
                    books.targets[target] = (failures, now)
                    corrected += 1
            return corrected

    def forget_nonces(self, now: datetime) -> int:
        with self._writing() as books:
            over = [name for name, keep_until in books.nonces.items() if keep_until < now]
            for name in over:
                del books.nonces[name]
            return len(over)

    def counts(self) -> dict[JobState, int]:
        with self._reading() as books:
            return {state: sum(job.state is state for job in books.jobs.values()) for state in JobState}

    def check(self) -> None:
        with self._writing():
            pass

    def close(self) -> None:
        pass

    # ---- transactions

    @contextmanager
    def _reading(self) -> Iterator[_Books]:
        with self._lock:
            if self.is_broken:
                raise LedgerUnavailable("the test broke this ledger")
            yield self._books

    @contextmanager
    def _writing(self) -> Iterator[_Books]:
        with self._reading() as books:
            draft = books.draft()
            yield draft
            self._books = draft


# ------------------------------------------------------------------ jobs


def _parties(books: _Books, job: Job) -> set[KeyId | None]:
    """Who signed a job's order or sent it here, signed a receipt of it, or goes on with it."""
    order = books.orders[job.order_id]
    signers = {receipt.signer for (digest, _), receipt in books.receipts.items() if digest == job.order}
    goes_on = {other.next_agent for other in books.jobs.values() if other.order_id == job.order_id}
    return {order.signer, order.sender, *signers, *goes_on} - {None}


def _job(books: _Books, job: JobId) -> Job:
    if job not in books.jobs:
        raise NotFound(f"no job {job}")
    return books.jobs[job]


def _transit(books: _Books, seen: Job, event: JobEvent, now: datetime, **columns: Any) -> Job:
    state = follow(seen.state, event)
    columns = {"worker": None, "lease_until": None} | columns
    moved = _change(books, seen, state=state, changed_at=now, **columns)
    _tell(books, f"job.{state}", now, moved.order_id, moved.position, _told_of(moved))
    return moved


def _change(books: _Books, seen: Job, **columns: Any) -> Job:
    job = books.jobs.get(seen.id)
    if job is None or _fence(job) != _fence(seen):
        raise LostRace(f"{seen.id} was moved")
    books.jobs[seen.id] = replace(job, **columns)
    return books.jobs[seen.id]


def _fence(job: Job) -> tuple[JobState, int, int, KeyId | None]:
    return job.state, job.attempt, job.claim, job.next_agent


def _require_running(job: Job) -> None:
    if job.state is not JobState.RUNNING:
        raise LostRace(f"{job.id} is {job.state}")


def _require_claim(books: _Books, seen: Job) -> None:
    job = books.jobs.get(seen.id)
    if (
        job is None
        or job.state is not JobState.RUNNING
        or (job.attempt, job.claim) != (seen.attempt, seen.claim)
    ):
        raise LostRace(f"{seen.id} was given away")


def _send_to(books: _Books, seen: Job, next_agent: KeyId, now: datetime) -> Job:
    moved = _change(books, seen, next_agent=next_agent, changed_at=now)
    _tell(books, "job.redirected", now, moved.order_id, moved.position, _told_of(moved))
    return moved


def _settle(books: _Books, job: Job, now: datetime) -> Job:
    waits = job.state is JobState.ATTESTED or (job.state is JobState.RECEIVED and job.next_agent is not None)
    if not waits or any(each.state is DeliveryState.PENDING for each in books.told_by(job)):
        return job
    return _transit(books, job, JobEvent.SETTLE, now)


def _put_job(
    books: _Books,
    *,
    signed: SignedOrder,
    position: int,
    kind: TaskKind,
    state: JobState,
    max_attempts: int,
    last_receipt: Digest | None,
    now: datetime,
    sender: KeyId | None = None,
) -> Job:
    job = Job(
        id=job_id(signed.order.id, position),
        order=signed.digest,
        order_id=signed.order.id,
        position=position,
        kind=kind,
        state=state,
        attempt=0,
        max_attempts=max_attempts,
        received_at=now,
        changed_at=now,
    )
    books.jobs[job.id] = job
    books.arrived_with[job.id] = last_receipt
    about = _told_of(job) | told_of_task(signed, position) | ({} if sender is None else {"sender": sender})
    dataset = task_at(signed.order, position).dataset.id
    _tell(books, f"job.{state}", now, job.order_id, position, about, dataset=dataset)
    return job


def _put_successor(
    books: _Books, before: Job, successor: Successor, receipt: SignedReceipt | None, now: datetime
) -> None:
    if receipt is None or successor.position != before.position + 1:
        raise IllegalMove(f"{before.id} cannot be followed by {successor.position}")
    if job_id(before.order_id, successor.position) in books.jobs:
        raise HandoffConflict(f"position {successor.position} is recorded already")
    record = books.orders[before.order_id]
    payload = parse_envelope(record.envelope, limit_bytes=MAX_ORDER_BYTES).payload
    order = parse_order(record.payload_type, payload)
    _put_job(
        books,
        signed=SignedOrder(order, record.digest, record.signer, record.envelope),
        position=successor.position,
        kind=successor.kind,
        state=JobState.QUEUED,
        max_attempts=before.max_attempts,
        last_receipt=receipt.digest,
        now=now,
    )


def _fits(books: _Books, job: Job, query: JobQuery) -> bool:
    return (
        (not query.states or job.state in query.states)
        and query.order_id in {None, job.order_id}
        and query.signer in {None, books.orders[job.order_id].signer}
    )


# ------------------------------------------------------------------ cancellations


def _require_room_for(books: _Books, kept: KeptCancellation, limit: int) -> None:
    known = {record.digest for record in books.orders.values()}
    early = [
        one for one in books.cancellations.values() if one.source == kept.source and one.order not in known
    ]
    if kept.order not in known and len(early) >= limit:
        raise QueueFull(f"{limit} cancellations wait for their orders")


def _take_step(books: _Books, step: CancelStep, kept: KeptCancellation, now: datetime) -> None:
    if step.is_ended:
        job = _transit(books, step.job, JobEvent.CANCEL, now, reason=kept.told_reason, not_before=None)
    else:
        job = _change(books, step.job)
    for each in step.withdrawn:
        found = _delivery(books, each)
        if found.state not in {DeliveryState.PENDING, DeliveryState.DEAD}:
            raise LostRace(f"delivery {each} is {found.state}")
        books.deliveries[each] = replace(
            found, state=DeliveryState.WITHDRAWN, last_error=kept.told_reason, lease_until=None
        )
    _put_deliveries(books, job, step.deliveries, now)
    _settle(books, job, now)


def _goes_on(job: Job, kept: KeptCancellation) -> bool:
    is_open = job.state in WAITING or job.state is JobState.RUNNING
    is_meant = kept.source != OPERATOR or job.next_agent is None
    return job.order == kept.order and is_open and is_meant


# ------------------------------------------------------------------ orders and receipts


def _order_record(arrival: Arrival, now: datetime) -> OrderRecord:
    signed = arrival.order
    return OrderRecord(
        digest=signed.digest,
        id=signed.order.id,
        payload_type=signed.order.payload_type,
        signer=signed.signer,
        envelope=signed.envelope,
        expires=signed.order.expires,
        received_at=now,
        sender=arrival.sender,
        trace=arrival.trace,
    )


def _put_receipt(books: _Books, order: Digest, position: int, receipt: SignedReceipt) -> None:
    recorded = books.receipts.setdefault((order, position), receipt)
    if recorded.digest != receipt.digest:
        raise HandoffConflict(f"another receipt is recorded for position {position}")


def _put_own_receipt(books: _Books, job: Job, receipt: SignedReceipt, now: datetime) -> None:
    try:
        _put_receipt(books, job.order, job.position, receipt)
    except HandoffConflict:
        if job.state is not JobState.FAILED:
            raise
        _tell(books, "receipt.dropped", now, job.order_id, job.position, {"digest": receipt.digest})


# ------------------------------------------------------------------ deliveries and events


def _delivery(books: _Books, delivery: DeliveryId) -> Delivery:
    if delivery not in books.deliveries:
        raise NotFound(f"no delivery {delivery}")
    return books.deliveries[delivery]


def _generation(books: _Books) -> int:
    return max((restore.generation for restore in books.restores), default=0)


def _put_deliveries(books: _Books, job: Job, new: Sequence[NewDelivery], now: datetime) -> None:
    for each in new:
        n = 1 + max(last_number(books, job, each.kind), NUMBERS_BETWEEN * _generation(books))
        delivery = Delivery(
            id=DeliveryId(f"{job.id}.{each.kind}.{n}"),
            job=job.id,
            order=job.order,
            order_id=job.order_id,
            position=job.position,
            kind=each.kind,
            n=n,
            target=each.target,
            body=each.body,
            state=DeliveryState.PENDING,
            attempts=0,
            next_try_at=now,
            created_at=now,
            expires_at=each.expires_at,
        )
        books.deliveries[delivery.id] = delivery


# ------------------------------------------------------------------ what is over


def _old_logs(books: _Books, told: Retention) -> list[tuple[JobId, int, str]]:
    over = {job.id for job in books.jobs.values() if job.is_final and job.changed_at < told.logs_before}
    return [key for key in books.logs if key[0] in over]


def _old_bodies(books: _Books, told: Retention) -> list[DeliveryId]:
    arrived = [d for d in books.deliveries.values() if d.state is DeliveryState.ACKNOWLEDGED and d.body]
    over = [d for d in arrived if books.orders[d.order_id].expires < told.expired_before]
    return sorted(d.id for d in over if d.acknowledged_at and d.acknowledged_at < told.bodies_before)


def _old_orders(books: _Books, told: Retention) -> list[OrderRecord]:
    over: list[tuple[tuple[datetime, int], OrderRecord]] = []
    number = {job: seq for seq, job in enumerate(books.jobs)}
    for record in books.orders.values():
        mine = [job for job in books.jobs.values() if job.order_id == record.id]
        sent = [d for d in books.deliveries.values() if d.order_id == record.id]
        waits = {DeliveryState.PENDING, DeliveryState.DEAD}
        arrived = [None if d.state in waits else d.acknowledged_at or d.created_at for d in sent]
        if is_over(record.expires, mine, arrived, told):
            over.append((max((job.changed_at, number[job.id]) for job in mine), record))
    return [record for _, record in sorted(over, key=lambda one: one[0])]


def _forget(books: _Books, record: OrderRecord, now: datetime) -> None:
    books.past[record.id] = (record.digest, record.expires)
    values: dict[str, Plain] = {"order": record.digest, "expires": record.expires.isoformat()}
    _tell(books, "order.forgotten", now, record.id, None, values)
    del books.orders[record.id]
    gone = {job.id for job in books.jobs.values() if job.order_id == record.id}
    _drop(books.jobs, lambda name, _: name in gone)
    _drop(books.steps, lambda key, _: key[0] in gone)
    _drop(books.phases, lambda key, _: key[0] in gone)
    _drop(books.cancellations, lambda key, _: key[0] == record.digest)
    _drop(books.logs, lambda key, _: key[0] in gone)
    _drop(books.deliveries, lambda _, each: each.order_id == record.id)
    _drop(books.receipts, lambda place, _: place[0] == record.digest)


def _drop(table: dict[Any, Any], is_gone: Callable[[Any, Any], bool]) -> None:
    for key in [key for key, value in table.items() if is_gone(key, value)]:
        del table[key]


def _tell(
    books: _Books,
    name: str,
    now: datetime,
    order_id: OrderId | None,
    position: int | None,
    values: dict[str, Plain],
    *,
    dataset: str | None = None,
) -> None:
    event = NewEvent(name=name, order_id=order_id, position=position, dataset=dataset, values=values)
    _tell_these(books, (event,), now)


def _tell_these(books: _Books, told: Sequence[NewEvent], now: datetime) -> None:
    for new in told:
        line = next_line(new, now, len(books.events), books.events[-1].digest if books.events else None)
        books.events.append(
            EventRecord(
                line.seq,
                now,
                new.name,
                new.order_id,
                new.position,
                dict(new.values),
                new.dataset,
                digest_of_line(line),
            )
        )
        grow(books, tallies_of(new))


def _tell_delivery(books: _Books, delivery: Delivery, name: str, now: datetime, **said: Plain) -> None:
    about: dict[str, Plain] = {"kind": delivery.kind, "n": delivery.n, "to": delivery.target}
    about |= {"bytes": len(delivery.body), "failed": delivery.attempts}
    _tell(books, name, now, delivery.order_id, delivery.position, about | said)


def _told_of(job: Job) -> dict[str, Plain]:
    values: dict[str, Plain] = {"attempt": job.attempt, "max_attempts": job.max_attempts}
    said = {"reason": job.reason, "worker": job.worker, "next_agent": job.next_agent, "score": job.score}
    return values | {name: value for name, value in said.items() if value is not None}


MemoryLedger._parts = SimpleNamespace(
    put_deliveries=_put_deliveries, transit=_transit, settle=_settle, tell=_tell
)


def _put_nonce(books: _Books, nonce: Nonce, now: datetime) -> bool:
    kept = books.nonces.get((nonce.keyid, nonce.text))
    if kept is not None and (kept >= now or kept == nonce.keep_until):
        return False
    books.nonces[nonce.keyid, nonce.text] = nonce.keep_until
    return True
