"""An orchestrator as agents see it: its routes and rules. Source: docs/contracts/http.md, "Asked of orchestrators".

What it decides (which order, on which data) is somebody else's: `issuing.py` signs and sends what it is given.
"""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from agent.api.callers import Guard
from agent.api.problems import json_answer, problem_app
from agent.api.signed_requests import JSON_TYPE, Call, signed
from agent.devkit.book import Book, IssuedOrder
from agent.devkit.storage import health
from agent.domain.chain import plan
from agent.domain.ids import KeyId
from agent.domain.orders import DatasetRef, Learnuplet, SignedOrder
from agent.domain.receipts import ReceiptTask, SignedReceipt, final_scores
from agent.domain.reports import (
    MAX_REPORT_BYTES,
    MAX_RESULT_BYTES,
    ReportBody,
    ReportState,
    ResultBody,
    SignedRefusal,
    envelope_bytes,
    envelope_object,
    is_mean_of,
    parse_report,
    parse_result,
)
from agent.domain.standings import PAGE_ORDERS, Standing, StandingsPage, WholeStanding
from agent.errors import (
    AgentError,
    BadReport,
    BrokenLink,
    DatasetMissing,
    NotFound,
    NotYours,
    ReceiptRefused,
    RecordConflict,
    ShareRefused,
)
from agent.log import get_logger
from agent.trust.audit import Audit, audit_chain
from agent.trust.handoff import Locate, check_holder
from agent.trust.http_signatures import ContentDigest, HttpAnswer, HttpRequest, check_body, verify_answer
from agent.trust.roster import Role
from agent.trust.shares import (
    MAX_REQUEST_BYTES,
    ShareAnswer,
    ShareRequest,
    check_share_request,
    release_share,
)
from agent.trust.signed import open_order, open_receipt

log = get_logger(__name__)

MAX_N = 1_000_000


def orchestrator_app(book: Book, guard: Guard, *, locate: Locate | None) -> Starlette:
    """An orchestrator with this book, as the holder of `guard.key`.

    `locate`: asks storage which agents hold a dataset, so that a receipt by another one is refused and what
    it tells without one moves nothing; None: nobody is asked, every agent is believed.
    """
    desk = _Desk(book, guard, locate)
    agents, readers = (Role.AGENT,), (Role.AGENT, Role.ORCHESTRATOR)
    share = signed(desk.post_share, guard, roles=agents, limit_bytes=MAX_REQUEST_BYTES, signs_answer=True)
    report = signed(desk.put_report, guard, roles=agents, limit_bytes=MAX_REPORT_BYTES, signs_answer=True)
    result = signed(desk.put_result, guard, roles=agents, limit_bytes=MAX_RESULT_BYTES, signs_answer=True)
    return problem_app(
        [
            Route("/health", health),
            Route("/v1/shares", share, methods=["POST"]),
            Route("/v1/orders", signed(desk.get_orders, guard, roles=readers, signs_answer=True)),
            Route("/v1/orders/{id}", signed(desk.get_order, guard, roles=readers, signs_answer=True)),
            Route("/v1/orders/{id}/tasks/{position:int}/reports/{n:int}", report, methods=["PUT"]),
            Route("/v1/orders/{id}/result", result, methods=["PUT"]),
        ]
    )


class _Desk:
    """The handlers."""

    def __init__(self, book: Book, guard: Guard, locate: Locate | None) -> None:
        self._book = book
        self._guard = guard
        self._locate = locate

    # ---- POST /v1/shares

    def post_share(self, call: Call) -> Response:
        """This orchestrator's share of a dataset's key, sealed to the asker, for one place of one live order."""
        guard, request = self._guard, ShareRequest.parse(call.body)
        checked = check_share_request(
            request,
            asker=call.caller.keyid,
            me=guard.key.keyid,
            roster=guard.roster(),
            now=guard.now(),
            skew=guard.skew,
            is_open=self._book.is_open,
        )
        dataset = DatasetRef(request.dataset, request.version)
        why = self._book.why_withheld(dataset.id)
        if why is not None:
            raise ShareRefused(f"the share of {dataset} is withheld: {why}")
        share = self._book.share(dataset)
        if share is None:
            raise NotFound(f"the owner of {dataset} never brought this orchestrator its share")
        sealed = release_share(checked, share)
        self._book.note_release(checked.order.order.id, request.position, dataset, checked.asker, guard.now())
        log.info("share.released", dataset=dataset.id, order=checked.order.order.id, agent=checked.asker)
        return Response(ShareAnswer.of(sealed).encode(), 200, {"Cache-Control": "no-store"}, JSON_TYPE)

    # ---- PUT /v1/orders/{id}/tasks/{position}/reports/{n}

    def put_report(self, call: Call) -> Response:
        """Acknowledge a report, once it and its receipt are recorded. The same again: 200."""
        issued, order = self._own_order(call)
        told, n = parse_report(call.body), int(call.path("n"))
        self._check_report(told, order, int(call.path("position")), n)
        receipt = self._receipt_of(told, order, call.caller.keyid)
        counts = receipt is not None or self._may_tell(told, issued, order, call.caller.keyid)
        reporter = self._guard.roster().origin(
            call.caller.keyid
        )  # one reporter, whichever of its keys it signs with
        is_new = self._recorded(
            issued, call, lambda: self._book.take_report(
                issued.id, reporter, n, call.body, told, receipt, self._guard.now(), counts=counts
            )
        )  # fmt: skip
        if is_new:
            log.info(
                "report.taken",
                order=issued.id,
                position=told.position,
                state=told.state,
                agent=call.caller.keyid,
                counts=counts,
            )
            self._check_refusal(told, issued, call.caller.keyid)
        return json_answer({"order": issued.id, "position": told.position, "n": n}, 201 if is_new else 200)

    def _check_report(self, told: ReportBody, order: SignedOrder, position: int, n: int) -> None:
        if told.order != order.digest:
            raise BadReport("the report is of another order than the path")
        if told.position != position or position >= len(plan(order.order)):
            raise BadReport(
                "the report is of another place than the path, or of one that the order does not have"
            )
        if not 1 <= n <= MAX_N:
            raise BadReport(f"n counts from 1 to {MAX_N}")

    def _receipt_of(self, told: ReportBody, order: SignedOrder, reporter: KeyId) -> SignedReceipt | None:
        """The report's receipt, when it is the reporter's own, of this place, and tells the same outcome.

        Its link to the receipts before it is judged with the result: reports may overtake each other.
        """
        if told.receipt is None:
            return None
        receipt = open_receipt(envelope_bytes(told.receipt), self._guard.roster())
        task, of = plan(order.order)[told.position], receipt.receipt
        if not self._guard.roster().is_same_agent(receipt.signer, reporter) or of.agent != receipt.signer:
            raise ReceiptRefused("a report brings the reporter's own receipt")
        if (of.order, of.position) != (order.digest, task.position):
            raise ReceiptRefused("the receipt is of another order or place")
        if of.task != ReceiptTask(task.kind, task.dataset.id, task.dataset.version):
            raise ReceiptRefused("the receipt is of another task")
        if str(of.outcome) != str(told.state):
            raise ReceiptRefused(f"the receipt says {of.outcome}, the report {told.state}")
        if self._locate is not None:
            check_holder(task, receipt, self._guard.roster(), self._locate)
        return receipt

    def _may_tell(self, told: ReportBody, issued: IssuedOrder, order: SignedOrder, reporter: KeyId) -> bool:
        """Whether a report without a receipt moves its order: told by who has the order, or holds that place's dataset.

        From others it is kept as news: an agent that handed the order on tells that it expired there.
        Raises: StorageUnavailable.
        """
        roster = self._guard.roster()
        if told.state is ReportState.ATTEMPT or self._locate is None:
            return True
        if issued.holder is not None and roster.is_same_agent(reporter, issued.holder):
            return True
        try:
            return roster.is_among(reporter, self._locate(plan(order.order)[told.position].dataset))
        except DatasetMissing:
            return False

    def _check_refusal(self, told: ReportBody, issued: IssuedOrder, reporter: KeyId) -> None:
        """Raise an alarm when the refusal that a report shows was not signed by the agent it names."""
        if told.refusal is None or told.next_agent is None:
            return
        try:
            self._verify_refusal(told.refusal, told)
        except AgentError as error:
            what = f"{told.next_agent[:16]} is said to have refused, and did not sign it: {error.detail}"
            self._alarm(issued, reporter, what)

    def _verify_refusal(self, refusal: SignedRefusal, told: ReportBody) -> None:
        fields = {
            "content-digest": refusal.content_digest,
            "signature-input": refusal.signature_input,
            "signature": refusal.signature,
        }
        verified = verify_answer(
            HttpAnswer(refusal.status, fields),
            HttpRequest("POST", "https://unknown.invalid/", {"signature": refusal.request_signature}),
            self._guard.roster(),
            expected=told.next_agent or KeyId(""),
            now=told.at,
            skew=self._guard.skew,
        )
        digest = ContentDigest()
        digest.update(refusal.body.encode("utf-8"))
        check_body(verified, digest)

    # ---- PUT /v1/orders/{id}/result

    def put_result(self, call: Call) -> Response:
        """Acknowledge an order's result, once the whole chain of its receipts holds. The same again: 200."""
        issued, order = self._own_order(call)
        told = parse_result(call.body)
        if told.order != order.digest:
            raise BadReport("the result is of another order than the path")
        envelopes = [envelope_bytes(receipt) for receipt in told.receipts]
        audit = audit_chain(issued.envelope, envelopes, self._guard.roster(), locate=self._locate)
        receipts = _sound_receipts(audit)
        if not self._guard.roster().is_same_agent(receipts[-1].signer, call.caller.keyid):
            raise NotYours("the agent of the last place brings the result")
        _check_sums(told, order, receipts)
        is_new = self._recorded(
            issued, call, lambda: self._book.take_result(issued.id, call.body, receipts, self._guard.now())
        )
        log.info("result.taken", order=issued.id, mean=told.mean, agent=call.caller.keyid)
        return json_answer({"order": issued.id}, 201 if is_new else 200)

    # ---- GET /v1/orders

    def get_orders(self, call: Call) -> Response:
        """GET /v1/orders?agent=&state=: what an agent asks to find what a lost message hid; of its own orders only."""
        agent, state, roster = call.query("agent"), call.query("state"), self._guard.roster()
        if call.caller.role is Role.AGENT and agent not in roster.keys_of(call.caller.keyid):
            raise NotYours("an agent asks for the orders that it has itself: ?agent=<its key id>")
        after = call.query("after")
        agents = None if agent is None else roster.keys_of(KeyId(agent))
        found = self._book.orders(agents=agents, state=state, after=after, limit=PAGE_ORDERS + 1)
        page = tuple(self._whole(order, call.caller.keyid).standing for order in found[:PAGE_ORDERS])
        return json_answer(StandingsPage(orders=page, next=page[-1].id if len(found) > PAGE_ORDERS else None))

    def get_order(self, call: Call) -> Response:
        """GET /v1/orders/{id}: how it stands, the order itself and the receipts of it that were acknowledged."""
        issued, _ = self._own_order(call)
        return json_answer(self._whole(issued, call.caller.keyid))

    def _whole(self, issued: IssuedOrder, asker: KeyId) -> WholeStanding:
        receipts = self._book.receipts_told(issued.id)
        standing = Standing(
            id=issued.id,
            digest=issued.digest,
            state=issued.state,
            position=issued.position,
            tasks=issued.tasks,
            holder=issued.holder,
            reason=issued.reason,
            receipts=tuple(told for told, _ in receipts),
            reports=self._book.reports_told(issued.id, self._guard.roster().origin(asker)),
        )
        envelopes = tuple(envelope_object(envelope) for _, envelope in receipts)
        return WholeStanding(standing=standing, envelope=envelope_object(issued.envelope), receipts=envelopes)

    # ---- shared

    def _own_order(self, call: Call) -> tuple[IssuedOrder, SignedOrder]:
        issued = self._book.order(call.path("id"))
        if issued is None:
            raise NotFound(f"this orchestrator issued no order {call.path('id')[:80]}")
        return issued, open_order(issued.envelope, self._guard.roster(), None)

    def _recorded(self, issued: IssuedOrder, call: Call, record: Callable[[], bool]) -> bool:
        """Record it; two stories about one thing are refused and are an alarm. Raises: RecordConflict."""
        try:
            return record()
        except RecordConflict as conflict:
            self._alarm(issued, call.caller.keyid, conflict.detail)
            raise

    def _alarm(self, issued: IssuedOrder, agent: KeyId, what: str) -> None:
        log.error("alarm.raised", order=issued.id, agent=agent, what=what)
        self._book.raise_alarm(issued.id, agent, what, self._guard.now())


def _sound_receipts(audit: Audit) -> tuple[SignedReceipt, ...]:
    """Every receipt of a complete chain in which each link holds. Raises: BrokenLink naming the first that does not."""
    for link in audit.links:
        if link.fault is not None:
            raise BrokenLink(
                f"receipt {link.position} does not hold ({link.fault.code}): {link.fault.detail}"
            )
    if not audit.is_complete:
        raise BrokenLink(f"{len(audit.remaining)} tasks are left without a receipt, or one failed")
    return tuple(link.receipt for link in audit.links if link.receipt is not None)


def _check_sums(told: ResultBody, order: SignedOrder, receipts: tuple[SignedReceipt, ...]) -> None:
    """Refuse a result that tells something else than its receipts. Raises: BadReport."""
    if told.scores != final_scores(receipts) or not is_mean_of(told.mean, told.scores):
        raise BadReport("the scores or their mean are not those of the receipts")
    expected = receipts[-1].receipt.model_out if isinstance(order.order, Learnuplet) else None
    if (None if told.model is None else told.model.digest) != expected:
        raise BadReport("the model is not the one that the last receipt leaves")
