"""The table of routes: one line each, read by both doors and by /openapi.json.

The network's door asks for a signature on every route but those for anybody; the operator's Unix socket serves the same
routes to whoever may open it. The status page has routes of its own (`page/site.py`), which the network's door does not serve.
Not here yet, though docs/contracts/http.md names them: the routes of the 2017 orchestrators.
"""

from collections.abc import Callable, Collection, Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api import cancelling, controlling, deliveries, events, handlers, rulings, services
from agent.api.ask import Ask, Unsigned
from agent.api.callers import Guard
from agent.api.claims import Claims
from agent.api.desk import Desk
from agent.api.flocks import Flock
from agent.api.metrics import ROUTE, Metered
from agent.api.openapi import openapi_document
from agent.api.operator import operated, refuse_browser
from agent.api.page.site import PageFiles
from agent.api.problems import problem_app
from agent.api.signed_requests import Call, Endpoint, Together, signed
from agent.api.table import STREAM_TYPE, Judge, Row, Who, get, post
from agent.api.views import (
    CancellationView,
    ControlView,
    DeliveryPage,
    DeliveryView,
    Health,
    HeldPage,
    ImageFiles,
    ImageView,
    JobPage,
    JobView,
    LogView,
    OrderView,
    Readiness,
    RulingView,
)
from agent.domain.cancellations import MAX_CANCELLATION_BYTES
from agent.domain.orders import MAX_ORDER_BYTES
from agent.errors import NotYours
from agent.pipeline.host import Host
from agent.pipeline.intake import record_all
from agent.ports.ledger import Admission, Candidate
from agent.trust.envelope import MAX_FRAME_BYTES, WireEnvelope
from agent.trust.handoff import MAX_HANDOFF_BYTES, HandoffBody

ORDER_BODY = 4 * -(-MAX_ORDER_BYTES // 3) + MAX_FRAME_BYTES  # the envelope of the largest order, in bytes
CANCELLATION_BODY = 4 * -(-MAX_CANCELLATION_BYTES // 3) + MAX_FRAME_BYTES

TABLE: tuple[Row, ...] = (
    post("/v1/learnuplets", handlers.post_learnuplet, Who.ORCHESTRATORS, WireEnvelope, ORDER_BODY, JobView, keeps_nonce=True,
         judge=handlers.judge_learnuplet),
    post("/v1/preduplets", handlers.post_preduplet, Who.ORCHESTRATORS, WireEnvelope, ORDER_BODY, JobView, keeps_nonce=True,
         judge=handlers.judge_preduplet),
    post("/v1/handoffs", handlers.post_handoff, Who.AGENTS, HandoffBody, MAX_HANDOFF_BYTES, JobView, signs_answer=True,
         keeps_nonce=True),
    get("/v1/orders", handlers.get_orders, Who.READERS, JobPage, query=handlers.OrdersQuery),
    get("/v1/orders/{id}", handlers.get_order, Who.READERS, OrderView, signs_answer=True),
    get("/v1/orders/{id}/receipts", handlers.get_receipts, Who.READERS, HandoffBody, signs_answer=True),
    get("/v1/orders/{id}/events", events.get_order_events, Who.READERS, events.ServerEvent, query=events.OrderEventsQuery,
        media_type=STREAM_TYPE),
    get("/v1/events", events.get_events, Who.OPERATOR, events.ServerEvent, query=events.EventsQuery, media_type=STREAM_TYPE),
    get("/v1/orders/{id}/log", handlers.get_log, Who.OPERATOR, LogView),
    post("/v1/cancellations", cancelling.post_cancellation, Who.CANCELLERS, WireEnvelope, CANCELLATION_BODY,
         CancellationView, signs_answer=True),
    post("/v1/orders/{id}/cancel", cancelling.post_cancel, Who.OPERATOR, cancelling.CancelBody, cancelling.MAX_CANCEL_BYTES,
         CancellationView),
    get("/v1/control", controlling.get_control, Who.OPERATOR, ControlView),
    post("/v1/control", controlling.post_control, Who.OPERATOR, controlling.ControlBody, controlling.MAX_CONTROL_BYTES,
         ControlView),
    get("/v1/held", rulings.get_held, Who.OPERATOR, HeldPage),
    get("/v1/images/{digest}", rulings.get_image, Who.OPERATOR, ImageView),
    get("/v1/images/{digest}/files", rulings.get_image_files, Who.OPERATOR, ImageFiles, query=rulings.FilesQuery),
    post("/v1/rulings", rulings.post_ruling, Who.OPERATOR, rulings.RulingBody, rulings.MAX_RULING_BYTES, RulingView),
    get("/v1/deliveries", deliveries.get_deliveries, Who.OPERATOR, DeliveryPage, query=deliveries.DeliveriesQuery),
    post("/v1/deliveries", deliveries.post_decision, Who.OPERATOR, deliveries.DecisionBody, deliveries.MAX_DECISION_BYTES,
         DeliveryView),
    get("/v1/services", services.get_services, Who.OPERATOR, services.ServicesView),
    get("/health", handlers.get_health, Who.ANYBODY, Health),
    get("/ready", handlers.get_ready, Who.ANYBODY, Readiness, also={503: Readiness}),
    get("/metrics", handlers.get_metrics, Who.ANYBODY, str),
    get("/openapi.json", handlers.get_openapi, Who.ANYBODY, dict),
)  # fmt: skip


def open_desk(host: Host, files: PageFiles | None = None) -> Desk:
    """What the doors of this process share. `files`: what the status page tells of."""
    return Desk(host, openapi_document(TABLE), files or PageFiles())


def network_app(desk: Desk, authorities: Callable[[], Collection[str]]) -> ASGIApp:
    """The door to orchestrators and agents. `authorities`: host[:port] under which this agent may be called now."""
    host = desk.host
    restores = (
        host.ports.ledger.restores()
    )  # read once: nobody restores while this process has the ledger open
    guard = Guard(
        roster=lambda: desk.host.roster,
        authorities=authorities,
        key=host.key,
        now=host.ports.now,
        skew=host.rules.skew,
        remember_nonce=host.ports.ledger.remember_nonce,
        note_refusal=desk.refusals.note,
        signed_after=restores[0].signed_after if restores else None,
        claims=Claims(host.ports.ledger.knows_nonce, host.ports.ledger.remember_nonce),
    )
    flock = Flock[Candidate, Admission](lambda candidates: record_all(candidates, desk.host))
    endpoints = [_signed(row, desk, guard, flock) if row.is_signed else _open(row, desk) for row in TABLE]
    return _app(desk, endpoints, "network")


def operator_app(desk: Desk) -> ASGIApp:
    """The door of the operator."""
    return _app(
        desk,
        [_operated(row, desk) for row in TABLE],
        "operator",
        desk.site.routes("operator", refuse_browser),
    )


def status_app(desk: Desk) -> ASGIApp:
    """The status page alone, for who shows a certificate at its own address."""
    return _app(desk, [], "status", desk.site.routes("status"))


def _signed(row: Row, desk: Desk, guard: Guard, flock: Flock[Candidate, Admission]) -> Endpoint:
    def handler(call: Call) -> Response:
        if row.who is Who.OPERATOR:  # here and not in each handler, so that none can forget it
            raise NotYours(f"{row.path} is answered on the operator's socket only")
        return row.handle(Ask.of(call.caller, call.request, call.body, call.claim), desk)

    return signed(
        handler,
        guard,
        roles=row.who.roles,
        limit_bytes=row.limit_bytes,
        signs_answer=row.signs_answer,
        keeps_nonce=row.keeps_nonce,
        together=None if row.judge is None else _together(row.judge, desk, flock),
    )


def _together(judge: Judge, desk: Desk, flock: Flock[Candidate, Admission]) -> Together[Candidate, Admission]:
    def judged(call: Call) -> Candidate | Response:
        return judge(Ask.of(call.caller, call.request, call.body, call.claim), desk)

    def answer(call: Call, admission: Admission | Exception) -> Response:
        return handlers.order_taken(admission, call.body, call.claim)

    return Together(flock, judged, answer)


def _open(row: Row, desk: Desk) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(row.handle, Ask.of(Unsigned.STRANGER, request), desk)

    return endpoint


def _operated(row: Row, desk: Desk) -> Endpoint:
    def handler(ask: Ask) -> Response:
        return row.handle(ask, desk)

    return operated(handler, desk.refusals.note, limit_bytes=row.limit_bytes)


def _app(desk: Desk, endpoints: Collection[Endpoint], door: str, pages: Sequence[Route] = ()) -> ASGIApp:
    """`endpoints`: one for each row of the table, or none."""
    routes = [
        Route(row.path, _named(row, endpoint), methods=[row.method])
        for row, endpoint in zip(TABLE if endpoints else (), endpoints, strict=True)
    ]
    app = problem_app([*routes, *pages])
    app.router.redirect_slashes = False  # another path is another resource; nobody signs a redirected request
    return Metered(app, desk.metrics, door)


def _named(row: Row, endpoint: Endpoint) -> Endpoint:
    """The endpoint, which leaves the template of its path for the metrics."""

    async def named(request: Request) -> Response:
        request.scope[ROUTE] = row.path
        return await endpoint(request)

    return named
