"""Judges a consortium by what can be seen from outside: what orchestrators recorded, what storages hold, what hosts still have.

`make chaos` and `make simulate` fill in the same values and call the same function; nothing here knows whether a container was
real. It asks no agent and reads no ledger: an agent that is wrong about itself must not be its own witness.

    seen = Seen(
        orders=[Issued(envelope, accepted_by=frozenset({agent}), model=expected_digest)],
        reports=[Told(orchestrator, order_id, position, reporter, n, body)],       # every report that was acknowledged
        results=[ToldResult(orchestrator, order_id, reporter, body)],              # every result that was acknowledged
        ...,
    )
    violations = check(seen, roster)                                               # empty: nothing was lost, nothing twice

The rules, each with a name that stands in its violations:

  ended        an order that was accepted (some agent answered 2xx) has a result, or was reported failed, expired or cancelled:
               `failed`, `cancelled`, `handoff-refused` or `handoff-expired`, which end a chain
  not-excused  … and failed only if `Issued.may_fail` names the reason: what was done to it explains it
  unknown      nothing was told of an order that no agent accepted
  both-ends    an order with a result was not also reported as failed at any place; a cancellation may lose the
               race, and whoever gave up a hand-off at the order's end cannot know that it had arrived and its answer was lost
  one-receipt  no (order, position) has two receipts in what orchestrators acknowledged: reports and result together
  one-model    no (order, position) has two outputs or two models there
  fenced       the receipt of a place is of the last attempt that began there, as reports tell: one given up attests nothing
  whole        a result brings one receipt for each task of the order, all done, signed, at their places, by an agent that
               storage names, linked (`previous`) and with linked models; its scores and model are those of the receipts
  reported     each receipt of a result was also reported as done, by the agent that signed it
  one-result   an order has one result
  stored       every output that an acknowledged receipt names lies at a storage under its digest
  same-model   the final model is the one that a run without faults leaves (`Issued.model`)
  one-handoff  no (order, position) was taken over by two agents, or twice by one after different receipts
  once-trained no task ran to its good end more often than `Run.times` excuses: once
  no-alarm     no orchestrator refused a second, different record for one place
  no-crash     no agent met an exception that nobody foresaw
  clean        no host is left with a container, workspace, spooled file, mount, socket or secret

Times, attempts and how often something was tried are not judged here.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from agent.domain.chain import plan
from agent.domain.ids import Digest, KeyId, OrderId
from agent.domain.orders import MAX_ORDER_BYTES, DatasetRef, Learnuplet, Order, parse_order
from agent.domain.receipts import MAX_RECEIPT_BYTES, Receipt, final_scores, parse_receipt
from agent.domain.reports import (
    Envelope,
    ReportBody,
    ReportState,
    ResultBody,
    envelope_bytes,
    is_mean_of,
    parse_report,
    parse_result,
)
from agent.errors import AgentError
from agent.trust.audit import audit_chain
from agent.trust.envelope import parse_envelope
from agent.trust.roster import Roster

T = TypeVar("T")

ENDS = frozenset(
    {
        ReportState.FAILED,
        ReportState.CANCELLED,
        ReportState.HANDOFF_REFUSED,
        ReportState.HANDOFF_EXPIRED,
    }
)
ANYTHING = frozenset({"*"})


@dataclass(frozen=True, slots=True)
class Issued:
    """An order that was sent to an agent.

    `envelope`: the DSSE envelope as sent. `accepted_by`: agents that answered its orchestrator 2xx; with none it need not end.
    `may_fail`: words, one of which must stand in the reason of its end if it fails (ANYTHING: whatever it is). `must_fail`: a
    result would be wrong (its guest always fails, say). `is_cancelled`: its orchestrator took it back. `model`: the digest of
    the final model as a run without faults leaves it; None where there is none or it is not compared.
    """

    envelope: bytes
    accepted_by: frozenset[KeyId] = frozenset()
    may_fail: frozenset[str] = frozenset()
    must_fail: bool = False
    is_cancelled: bool = False
    model: Digest | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A report as an orchestrator acknowledged it. `body`: the bytes of the request."""

    orchestrator: KeyId
    order_id: OrderId
    position: int
    reporter: KeyId
    n: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ToldResult:
    """A result as an orchestrator acknowledged it."""

    orchestrator: KeyId
    order_id: OrderId
    reporter: KeyId
    body: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """A hand-off that an agent answered 2xx. A repeat (the same agent, place and last receipt) may be listed or left out."""

    order: Digest
    position: int
    agent: KeyId
    last_receipt: Digest | None


@dataclass(frozen=True, slots=True)
class Run:
    """The `train` run (of a learn task) or the last run (of another) of one place that ended well: exit code 0, known.

    `times`: how often that may have been, 1 unless something outside the agent lost what the earlier one left (a reboot).
    """

    order_id: OrderId
    position: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that was seen from outside, after healing, when everybody had been quiet for a while.

    `blobs`: digests by storage; None where storage was not looked at. `alarms`: sentences, one for each second record that an
    orchestrator refused. `left`: sentences, one for each thing that a host still has ("a: container dc-…-train").
    `crashes`: what agents' logs say of exceptions that nobody foresaw (`bell.crashed`, `sweep.crashed`).
    `runs`: one entry for each run that ended well. `locate`: who holds a dataset; None leaves that unjudged.
    """

    orders: Sequence[Issued]
    reports: Sequence[Told] = ()
    results: Sequence[ToldResult] = ()
    handoffs: Sequence[Taken] = ()
    runs: Sequence[Run] = ()
    blobs: Mapping[KeyId, Collection[Digest]] | None = None
    alarms: Sequence[str] = ()
    left: Sequence[str] = ()
    crashes: Sequence[str] = ()
    locate: Callable[[DatasetRef], frozenset[KeyId]] | None = None


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """A rule that did not hold, and what was seen. `order_id` is empty when it is about a host."""

    rule: str
    order_id: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.order_id + ': ' if self.order_id else ''}{self.detail}"


def check(seen: Seen, roster: Roster) -> tuple[Violation, ...]:
    """Every violation of the rules above, sorted: the same for the same `seen`."""
    found: list[Violation] = []
    books = _books(seen, found)
    for book in books.values():
        found.extend(_judge(book, seen, roster))
    found.extend(_handoffs(seen, books))
    found.extend(_runs(seen))
    found.extend(Violation("no-alarm", "", alarm) for alarm in seen.alarms)
    found.extend(Violation("no-crash", "", what) for what in seen.crashes)
    found.extend(Violation("clean", "", what) for what in seen.left)
    return tuple(sorted(set(found)))


# ------------------------------------------------------------------ what belongs to one order


@dataclass(slots=True)
class _Book:
    """One order with everything that was told of it."""

    issued: Issued
    order: Order
    digest: Digest
    told: list[tuple[KeyId, ReportBody]] = field(default_factory=list)
    results: list[tuple[KeyId, ResultBody]] = field(default_factory=list)

    @property
    def ends(self) -> list[ReportBody]:
        return [report for _, report in self.told if report.state in ENDS]


def _books(seen: Seen, found: list[Violation]) -> dict[OrderId, _Book]:
    books: dict[OrderId, _Book] = {}
    for issued in seen.orders:
        envelope = parse_envelope(issued.envelope, limit_bytes=MAX_ORDER_BYTES)
        order = parse_order(envelope.payload_type, envelope.payload)
        books[order.id] = _Book(issued, order, envelope.digest)
    for told in seen.reports:
        report = _parsed(told.body, parse_report, told.order_id, found)
        book = books.get(told.order_id)
        if book is None:
            found.append(Violation("unknown", told.order_id, f"{told.reporter[:8]} reports on it"))
        elif report is not None and report.order == book.digest:
            book.told.append((told.reporter, report))
        elif report is not None:
            found.append(Violation("unknown", told.order_id, "a report is on an order of another digest"))
    for result in seen.results:
        body = _parsed(result.body, parse_result, result.order_id, found)
        book = books.get(result.order_id)
        if book is None:
            found.append(Violation("unknown", result.order_id, f"{result.reporter[:8]} tells its result"))
        elif body is not None:
            book.results.append((result.reporter, body))
    return books


def _parsed(body: bytes, parse: Callable[[bytes], T], order_id: str, found: list[Violation]) -> T | None:
    try:
        return parse(body)
    except AgentError as error:
        found.append(Violation("whole", order_id, f"what was told cannot be read: {error.detail}"))
        return None


# ------------------------------------------------------------------ the rules of one order


def _judge(book: _Book, seen: Seen, roster: Roster) -> Iterator[Violation]:
    name = book.order.id
    for rule, detail in _rules(book, seen, roster):
        yield Violation(rule, name, detail)


def _rules(book: _Book, seen: Seen, roster: Roster) -> Iterator[tuple[str, str]]:
    yield from _ended(book)
    receipts = [*_reported_receipts(book), *_result_receipts(book)]
    yield from _one_receipt(receipts)
    yield from _fenced(book, receipts)
    if seen.blobs is not None:
        yield from _stored((receipt for _, _, receipt in receipts), seen.blobs)
    for reporter, result in book.results:
        yield from _whole(book, reporter, result, seen, roster)


def _ended(book: _Book) -> Iterator[tuple[str, str]]:
    if not book.issued.accepted_by:
        return
    if not book.results and not book.ends:
        last = max(book.told, key=lambda one: (one[1].position, one[1].at), default=None)
        said = (
            "nothing was ever told" if last is None else f"last told: {last[1].state} at {last[1].position}"
        )
        yield "ended", f"accepted, and neither done nor failed; {said}"
    if len(book.results) > 1:
        yield "one-result", f"{len(book.results)} results"
    if book.results and book.issued.must_fail:
        yield "not-excused", "it has a result, and could only fail"
    for end in book.ends:
        is_unsure = book.issued.is_cancelled or end.state is ReportState.HANDOFF_EXPIRED
        if book.results and not is_unsure:
            yield (
                "both-ends",
                f"it has a result, and was reported {end.state} at {end.position}: {end.reason}",
            )
        if not _is_excused(end.reason or "", book.issued.may_fail):
            yield "not-excused", f"reported {end.state} at {end.position}: {end.reason}"


def _is_excused(reason: str, words: frozenset[str]) -> bool:
    return words == ANYTHING or any(word in reason for word in words)


_Found = tuple[str, Digest, Receipt]  # where, the receipt's digest, the receipt


def _reported_receipts(book: _Book) -> Iterator[_Found]:
    for reporter, report in book.told:
        if report.receipt is not None:
            yield f"a report of {reporter[:8]}", *_opened(report.receipt)


def _result_receipts(book: _Book) -> Iterator[_Found]:
    for _, result in book.results:
        for envelope in result.receipts:
            yield "the result", *_opened(envelope)


def _opened(envelope: Envelope) -> tuple[Digest, Receipt]:
    """Nothing is verified here: signatures are the business of `whole`."""
    parsed = parse_envelope(envelope_bytes(envelope), limit_bytes=MAX_RECEIPT_BYTES)
    return parsed.digest, parse_receipt(parsed.payload)


def _one_receipt(receipts: Iterable[_Found]) -> Iterator[tuple[str, str]]:
    digests: dict[int, set[Digest]] = defaultdict(set)
    left: dict[int, set[object]] = defaultdict(set)
    for _, digest, receipt in receipts:
        digests[receipt.position].add(digest)
        left[receipt.position].add((receipt.model_out, receipt.outputs))
    for position, known in digests.items():
        if len(known) > 1:
            yield "one-receipt", f"{len(known)} receipts at {position}"
    for position, outputs in left.items():
        if len(outputs) > 1:
            yield "one-model", f"{len(outputs)} outputs at {position}"


def _fenced(book: _Book, receipts: Iterable[_Found]) -> Iterator[tuple[str, str]]:
    last: Counter[tuple[KeyId, int]] = Counter()
    for reporter, report in book.told:
        last[reporter, report.position] = max(last[reporter, report.position], report.attempt)
    for _, _, receipt in receipts:
        began = last[receipt.agent, receipt.position]
        if receipt.attempt < began:
            yield (
                "fenced",
                f"attempt {receipt.attempt} at {receipt.position} attested after attempt {began} began",
            )


def _stored(
    receipts: Iterable[Receipt], blobs: Mapping[KeyId, Collection[Digest]]
) -> Iterator[tuple[str, str]]:
    for receipt in receipts:
        for output in receipt.outputs:
            if not any(output.digest in held for held in blobs.values()):
                yield "stored", f"{output.name} of {receipt.position} lies nowhere: {output.digest}"


def _whole(
    book: _Book, reporter: KeyId, result: ResultBody, seen: Seen, roster: Roster
) -> Iterator[tuple[str, str]]:
    envelopes = [envelope_bytes(receipt) for receipt in result.receipts]
    audit = audit_chain(book.issued.envelope, envelopes, roster, locate=seen.locate)
    for link in audit.links:
        if link.fault is not None:
            yield "whole", f"receipt {link.position}: {link.fault.code}: {link.fault.detail}"
    if not audit.is_complete:
        yield "whole", f"{len(envelopes)} receipts for {len(plan(book.order))} tasks, or one that is not done"
        return
    receipts = [link.receipt for link in audit.links if link.receipt is not None]
    if receipts[-1].signer != reporter:
        yield "whole", f"{reporter[:8]} tells the result, the last receipt is of {receipts[-1].signer[:8]}"
    scores = final_scores(receipts)
    if result.order != book.digest or result.scores != scores or not is_mean_of(result.mean, scores):
        yield "whole", "the result's scores are not those of its receipts"
    model = None if result.model is None else result.model.digest
    if isinstance(book.order, Learnuplet) and model != audit.final_model:
        yield "whole", f"the result names model {model}, its receipts lead to {audit.final_model}"
    if book.issued.model is not None and model != book.issued.model:
        yield "same-model", f"without faults the model is {book.issued.model}, this run left {model}"
    done = {
        (who, _opened(report.receipt)[0])
        for who, report in book.told
        if report.state is ReportState.DONE and report.receipt is not None
    }
    for receipt in receipts:
        if (receipt.signer, receipt.digest) not in done:
            yield "reported", f"the receipt at {receipt.receipt.position} was never reported as done"


# ------------------------------------------------------------------ the rules of hosts


def _handoffs(seen: Seen, books: Mapping[OrderId, _Book]) -> Iterator[Violation]:
    names = {book.digest: name for name, book in books.items()}
    takers: dict[tuple[Digest, int], set[tuple[KeyId, Digest | None]]] = defaultdict(set)
    for taken in seen.handoffs:
        takers[taken.order, taken.position].add((taken.agent, taken.last_receipt))
    for (order, position), by in takers.items():
        if len(by) > 1:
            who = ", ".join(sorted(agent[:8] for agent, _ in by))
            yield Violation("one-handoff", names.get(order, order), f"position {position} was taken by {who}")


def _runs(seen: Seen) -> Iterator[Violation]:
    ran = Counter((run.order_id, run.position) for run in seen.runs)
    excused: Counter[tuple[OrderId, int]] = Counter()
    for run in seen.runs:
        excused[run.order_id, run.position] = max(excused[run.order_id, run.position], run.times)
    for (order_id, position), times in ran.items():
        if times > excused[order_id, position]:
            yield Violation("once-trained", order_id, f"the task at {position} ran to its end {times} times")
