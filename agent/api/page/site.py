"""The status page answered: which paths there are, what each is filled with, and the headers under which a browser shows it.

Nothing here writes, whatever is asked; a page is the same with and without JavaScript. The script asks for the same pages with
`?part=main` and puts the parts that changed in place of those that are shown.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlencode

from msgspec import Meta, Struct
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent import __version__
from agent.api.ask import Ask, Unsigned
from agent.api.metrics import ROUTE
from agent.api.page import facts, facts_log, facts_orders, words
from agent.api.page.glance import Glance
from agent.api.page.lens import Lens
from agent.api.page.receipt_words import sections
from agent.api.readiness import Watchman
from agent.api.views import Readiness
from agent.domain.ids import JobId
from agent.domain.jobs import JobState
from agent.errors import AgentError, NotFound
from agent.log import get_logger
from agent.pipeline.host import Host
from agent.pipeline.usage import Usage, look

if TYPE_CHECKING:
    from jinja2 import Environment

log = get_logger(__name__)

FOLDER: Final = Path(__file__).parent
HTML: Final = "text/html; charset=utf-8"
DISK_KEPT_S, HEALTH_KEPT_S = 15.0, 3.0

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
STATIC: Final = {
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
FILTERS: Final = {  # what is shown under which name in the list of orders
    "running": frozenset({JobState.RUNNING}),
    "waiting": frozenset({JobState.RECEIVED, JobState.QUEUED}),
    "held": frozenset({JobState.HELD}),
    "attested": frozenset({JobState.ATTESTED}),
    "done": frozenset({JobState.DONE}),
    "failed": frozenset({JobState.FAILED}),
    "over": frozenset({JobState.CANCELLED, JobState.EXPIRED}),
}


Number = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]  # what is larger is no row of any ledger


class PageFiles(Struct, frozen=True, kw_only=True):
    """Files that the page tells of and the pipeline has no use for: this host's certificate, its ledger and queues."""

    certificate: Path | None = None
    ledger: Path | None = None
    queues: Path | None = None


class PartQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`part=main`: the page without what is around it."""

    part: str | None = None


class OrdersQuery(PartQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of /orders. `after`: the last job of the page before."""

    state: str | None = None
    after: str | None = None


class OrderQuery(PartQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of /orders/{id}: the first task that is shown."""

    first: Number = 0


class LinesQuery(PartQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of what is read from the audit log: the lines below this number."""

    before: Number | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page is made of."""

    template: str
    values: Mapping[str, Any]
    part: str | None = None
    status: int = 200


class Site:
    """The pages of one process, for whichever doors show them."""

    def __init__(self, host: Callable[[], Host], watchman: Watchman, files: PageFiles) -> None:
        self._host, self._files = host, files
        self._health: Glance[Readiness] = Glance(watchman.look, HEALTH_KEPT_S)
        self._usage: Glance[Usage | None] = Glance(self._look_at_disks, DISK_KEPT_S)

    @cached_property
    def _templates(self) -> "Environment":
        """Made when the first page is shown: many hosts show none for weeks."""
        return _environment()

    def routes(self, door: str, refuse: Callable[[Request], None] | None = None) -> list[Route]:
        """One for each page and file. `door` goes into the log, where readers have names; `refuse` raises for whoever may not
        read at this door.
        """
        pages: dict[str, Callable[[Ask, Lens], Shown]] = {
            "/": self._overview,
            "/orders": self._orders,
            "/orders/{id}": self._order,
            "/orders/{id}/receipts/{position}": self._receipt,
            "/datasets": self._datasets,
            "/datasets/{dataset}": self._dataset,
            "/refusals": self._refusals,
            "/checks": self._checks,
        }
        files = [Route(path, _file(path, *told), methods=["GET"]) for path, told in STATIC.items()]
        return [
            *(
                Route(path, self._page(path, page, door, refuse), methods=["GET"])
                for path, page in pages.items()
            ),
            *files,
        ]

    # ---- the pages

    def _overview(self, ask: Ask, lens: Lens) -> Shown:
        query = ask.query_as(PartQuery)
        health, usage = self._health.take(), self._usage.take()
        told = facts.overview(lens, health, usage, self._files.certificate)
        return Shown("overview.html", {"told": told}, query.part)

    def _orders(self, ask: Ask, lens: Lens) -> Shown:
        query = ask.query_as(OrdersQuery)
        if query.state is not None and query.state not in FILTERS:
            raise NotFound(f"orders are listed by state: {', '.join(FILTERS)}")
        states = frozenset[JobState]() if query.state is None else FILTERS[query.state]
        told = facts_orders.orders(lens, states, None if query.after is None else JobId(query.after))
        more = _more("/orders", state=query.state, after=told.next)
        values = {"told": told, "state": query.state, "filters": tuple(FILTERS), "more": more}
        return Shown("orders.html", values | {"is_first": query.after is None}, query.part)

    def _order(self, ask: Ask, lens: Lens) -> Shown:
        query = ask.query_as(OrderQuery)
        told = facts_orders.order(lens, ask.order_id, query.first)
        return Shown("order.html", {"told": told, "window": facts_orders.WINDOW}, query.part)

    def _receipt(self, ask: Ask, lens: Lens) -> Shown:
        query, position = ask.query_as(PartQuery), ask.path["position"]
        if not (position.isascii() and position.isdigit() and len(position) <= 4):
            raise NotFound(f"there is no task {position[:80]!r}")
        told = facts_orders.receipt(lens, ask.order_id, int(position))
        values = {"told": told, "sections": sections(told.signed.receipt, lens)}
        return Shown("receipt.html", values, query.part)

    def _datasets(self, ask: Ask, lens: Lens) -> Shown:
        query = ask.query_as(LinesQuery)
        told = facts_log.datasets(lens, query.before)
        return _lines("datasets.html", "/datasets", told, query)

    def _dataset(self, ask: Ask, lens: Lens) -> Shown:
        query = ask.query_as(LinesQuery)
        told = facts_log.dataset(lens, ask.path["dataset"], query.before)
        return _lines("dataset.html", f"/datasets/{told.dataset}", told, query)

    def _refusals(self, ask: Ask, lens: Lens) -> Shown:
        query = ask.query_as(LinesQuery)
        told = facts_log.refusals(lens, query.before)
        return _lines("refusals.html", "/refusals", told, query)

    def _checks(self, ask: Ask, lens: Lens) -> Shown:
        query = ask.query_as(PartQuery)
        return Shown("checks.html", {"told": facts.all_checks(lens, self._health.take())}, query.part)

    # ---- answering

    def _page(
        self,
        path: str,
        page: Callable[[Ask, Lens], Shown],
        door: str,
        refuse: Callable[[Request], None] | None,
    ) -> Callable[[Request], Any]:
        def answer(request: Request) -> Response:
            host = self._host()
            lens = Lens(host, host.ports.now())
            try:
                if refuse is not None:
                    refuse(request)
                shown = page(Ask.of(Unsigned.OPERATOR, request), lens)
            except AgentError as error:
                log.info("page.refused", path=path, code=error.code, detail=error.detail)
                shown = Shown("problem.html", {"error": error}, status=error.status)
            return self._render(shown, lens, path)

        async def endpoint(request: Request) -> Response:
            request.scope[ROUTE] = path
            reader = request.scope.get("state", {}).get("peer_name")
            if reader is not None:
                log.info("page.read", door=door, path=request.url.path, by=reader)
            return await run_in_threadpool(answer, request)

        return endpoint

    def _render(self, shown: Shown, lens: Lens, path: str) -> Response:
        template = self._templates.get_template(shown.template)
        now = lens.now
        text = template.render(
            **shown.values,
            shell="bare.html" if shown.part == "main" else "shell.html",
            me=lens.who(lens.host.me),
            now=now,
            version=__version__,
            path=path,
            ago=lambda moment: words.ago(moment, now),
            since=lambda moment: words.span((now - moment).total_seconds()),
            readable=lens.readable,
        )
        return Response(text, shown.status, {**HEADERS, "Cache-Control": "no-store"}, HTML)

    def _look_at_disks(self) -> Usage | None:
        files = self._files
        if files.ledger is None or files.queues is None:
            return None
        return look(self._host(), files.ledger, files.queues, engines=(), is_deep=False)


def _lines(
    template: str,
    path: str,
    told: facts_log.RefusalList | facts_log.DatasetList | facts_log.DatasetPage,
    query: LinesQuery,
) -> Shown:
    """A page of lines of the audit log."""
    return Shown(template, {"told": told, "more": _more(path, before=told.next)}, query.part)


def _more(path: str, **query: str | int | None) -> str | None:
    """The address of the page that follows; None on the last one. The last field of the query says which."""
    if next(reversed(query.values())) is None:
        return None
    return f"{path}?{urlencode({name: value for name, value in query.items() if value is not None})}"


def _file(path: str, name: str, media_type: str) -> Callable[[Request], Any]:
    data = (FOLDER / "static" / name).read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": tag}

    async def endpoint(request: Request) -> Response:
        request.scope[ROUTE] = path
        if request.headers.get("if-none-match") == tag:
            return Response(None, 304, headers)
        return Response(data, 200, headers, media_type)

    return endpoint


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "short": words.short,
        "cut": words.cut,
        "span": words.span,
        "size": words.size,
        "when": words.when,
        "iso": _iso,
        "counted": words.counted,
    }
    return made


def _shown(value: object) -> object:
    """What stands in a template as it is shown; nothing for None. Text that is HTML of ours already stays."""
    if value is None:
        return ""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return words.plain(value)
    return value


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
