"""Server-sent events: what happens to one order, or on the whole host, told as it is recorded.

Each event is a line of the audit log: `id:` is its number, so whoever comes again with Last-Event-ID goes on behind it. The
operator sees a line as it is. Over the network a reader of an order sees how its jobs move, in the words that `JobView` has.

    id: 1207
    event: job.running
    data: {"seq":1207,"at":"…","name":"job.running","order":"…","position":0,"dataset":null,"values":{"attempt":1,…}}

Beside lines there are `progress` (what a task is doing, without a number: it may be lost), `order.ended` as the last of an
order's stream, and comments, which keep the line open. Source: docs/contracts/http.md.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent.api import endings
from agent.api.ask import Ask
from agent.api.desk import Desk
from agent.api.doing import ProgressView, view_progress
from agent.api.endings import ending_of
from agent.api.feed import PAGE, Ending, Feed, Listener
from agent.api.handlers import order_for
from agent.api.serving import CUT
from agent.api.table import STREAM_TYPE
from agent.api.views import view_order
from agent.domain.audit import RESTORED, Plain
from agent.domain.ids import JobId, KeyId, OrderId, OrderIdField
from agent.domain.jobs import FINAL, JobState
from agent.domain.orders import MAX_TASKS
from agent.domain.strict_json import encode
from agent.errors import AgentError, BadQuery, TrustError
from agent.log import get_logger
from agent.pipeline.host import Host, signed_order
from agent.ports.ledger import EventRecord, JobQuery, OrderRecord
from agent.ports.progress import Progress
from agent.trust.roster import Roster

log = get_logger(__name__)

ENDED: Final = "order.ended"
PROGRESS: Final = "progress"

HEARTBEAT_S = 10.0  # a comment after so long without anything else
STREAM_S = 600.0  # then the stream ends: whoever comes again signs again
END_S = 1.0  # for the last words to leave before a stream that was ended is cut
LAST_NUMBER = (1 << 53) - 1

_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_.]{0,79}")
_SEEN_BY_OTHERS: Final = {  # line: which of its values
    **{f"job.{state}": ("attempt", "max_attempts", "reason", "next_agent", "score") for state in JobState},
    "job.adopted": ("attempt", "max_attempts"),
    "job.parked": ("attempt", "max_attempts", "reason"),
    "job.redirected": ("attempt", "max_attempts", "next_agent"),
    "attempt.failed": ("attempt", "code"),
}
_MAY_END: Final = {f"job.{state}" for state in FINAL} | {"order.forgotten"}


class EventView(Struct, frozen=True, kw_only=True):
    """A line of the audit log as its reader may see it. `values`: plain ones, by name; which there are depends on `name`."""

    seq: int
    at: datetime
    name: str
    order: OrderId | None
    position: int | None
    dataset: str | None
    values: dict[str, Plain]


class ServerEvent(Struct, frozen=True, kw_only=True):
    """One event as it stands in the stream. `data` is JSON: an EventView, a DoingView (`progress`) or an EndedView."""

    event: str
    data: Annotated[str, Meta(extra_json_schema={"contentMediaType": "application/json"})]
    id: str = ""


class EndedView(Struct, frozen=True, kw_only=True):
    """That an order is over, as far as this host can tell: done, or lost (failed, cancelled or expired)."""

    order: OrderId
    ending: Annotated[str, Meta(pattern="^(done|lost)$")]


class DoingView(Struct, frozen=True, kw_only=True):
    """What a task is doing now; null when it is not in hand any more."""

    job: JobId
    progress: ProgressView | None


class OrderEventsQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of an order's stream. `after`: the number behind which it begins, where no Last-Event-ID is sent."""

    after: Annotated[int, Meta(ge=0, le=LAST_NUMBER)] | None = None


class EventsQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of the host's stream. `name`: a line's, or its first word for all of those; may stand several times."""

    name: Annotated[tuple[Annotated[str, Meta(pattern=r"^[a-z_.]{1,80}$")], ...], Meta(max_length=50)] = ()
    order: OrderIdField | None = None
    after: Annotated[int, Meta(ge=0, le=LAST_NUMBER)] | None = None


# ------------------------------------------------------------------ the routes


def get_order_events(ask: Ask, desk: Desk) -> Response:
    """What happens to an order, live, until it has ended."""
    query, host = ask.query_as(OrderEventsQuery), desk.host
    record, _, _ = order_for(ask, host)
    after = _begin(ask, query.after, desk)
    show = _as_it_is if ask.is_operator else _as_others_see_it

    def wants(event: EventRecord) -> bool:
        return event.order_id == record.id

    story = _Story(show=show, wants=wants, order=record, after=after, judge=lambda now: order_for(ask, now))
    return EventStream(desk, ask.signer.keyid if ask.signer is not None else None, story)


def get_events(ask: Ask, desk: Desk) -> Response:
    """What happens on this host, live."""
    query = ask.query_as(EventsQuery)
    newest = desk.host.ports.ledger.newest_event()
    after = _begin(ask, newest if query.after is None else query.after, desk)
    names = frozenset(query.name)

    def wants(event: EventRecord) -> bool:
        is_named = not names or event.name in names or event.name.partition(".")[0] in names
        return is_named and query.order in {None, event.order_id}

    story = _Story(show=_as_it_is, wants=wants, order=None, after=after, only=query.order)
    return EventStream(desk, None, story)


def _begin(ask: Ask, told: int | None, desk: Desk) -> int:
    """The number behind which a stream begins. One that this ledger has not reached was another life's, before a restore:
    it begins anew, at the order's first line or with the restore. Raises: BadQuery."""
    last = ask.last_event_id
    if last is not None and not (last.isascii() and last.isdigit() and len(last) <= 16):
        raise BadQuery(f"Last-Event-ID is no number of an event: {last[:80]!r}")
    after = (told or 0) if last is None else int(last)
    ledger = desk.host.ports.ledger
    if after <= ledger.newest_event():
        return after
    restored = ledger.last_event(RESTORED)
    return 0 if restored is None else restored.seq - 1


def _as_it_is(event: EventRecord) -> EventView:
    return EventView(
        seq=event.seq,
        at=event.at,
        name=event.name,
        order=event.order_id,
        position=event.position,
        dataset=event.dataset,
        values=event.values,
    )


def _as_others_see_it(event: EventRecord) -> EventView | None:
    """The line for an orchestrator or an agent of the chain; None for what its views do not show either."""
    seen = _SEEN_BY_OTHERS.get(event.name)
    if seen is None:
        return None
    values = {name: event.values[name] for name in seen if name in event.values}
    return replace(_as_it_is(event), dataset=None, values=values)


# ------------------------------------------------------------------ the stream


@dataclass(frozen=True, slots=True)
class _Story:
    """What one stream tells: which lines, how they are shown, from where on. `order`: after whose end it ends.

    `judge`: raises TrustError for a reader who may not read it by the roster of this host.
    """

    show: Callable[[EventRecord], EventView | None]
    wants: Callable[[EventRecord], bool]
    order: OrderRecord | None
    after: int
    only: OrderId | None = None  # of the host's stream
    judge: Callable[[Host], object] = lambda _: None

    @property
    def order_id(self) -> OrderId | None:
        return self.only if self.order is None else self.order.id


class EventStream(Response):
    """The answer that goes on. It holds one of the feed's places from when it is made until it is over."""

    media_type = STREAM_TYPE
    charset = "utf-8"

    def __init__(self, desk: Desk, reader: KeyId | None, story: _Story) -> None:
        """Raises: TooManyStreams, Draining."""
        feed: Feed = desk.feed
        feed.take_place(reader)
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._desk, self._reader, self._story = desk, reader, story
        self._judged_by: Roster | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell until the order has ended, the time is over, or either side leaves."""
        feed: Feed = self._desk.feed
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._tell(scope, receive, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            feed.leave_place(self._reader)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, story, feed = asyncio.get_running_loop(), self._story, self._desk.feed
        listener = Listener(loop, story.wants, story.order_id, self._may_read)
        cut = scope.get("state", {}).get(CUT)
        timer: asyncio.TimerHandle | None = None

        def cut_soon() -> None:  # who takes nothing does not hear the last words either
            nonlocal timer
            if cut is not None and timer is None:
                timer = loop.call_later(0 if listener.ending is Ending.SLOW else END_S, cut)

        listener.when_ended(cut_soon)
        watching = asyncio.create_task(_watch_reader(receive, listener))
        try:
            async for piece in self._pieces(listener):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except AgentError as error:  # the ledger is away: whoever comes again goes on where this ends
            log.error("stream.broken", code=error.code, detail=error.detail)
        finally:
            watching.cancel()
            if timer is not None:
                timer.cancel()
            await run_in_threadpool(feed.leave, listener)
            if listener.ending not in {None, Ending.GONE}:
                log.info("stream.ended", why=listener.ending, reader=self._reader)

    async def _pieces(self, listener: Listener) -> AsyncIterator[bytes]:
        """The stream, piece by piece."""
        story, until = self._story, time.monotonic() + STREAM_S
        yield b":\n"  # so that the reader knows at once that it is heard
        after = story.after
        while listener.ending is None:  # first what lies there, far from the end of the log
            lines = await self._recorded(after)
            if lines:
                after = lines[-1].seq
                yield self._text(lines)
            if len(lines) < PAGE:
                break
        await run_in_threadpool(self._desk.feed.join, listener)
        while listener.ending is None and after < listener.joined_at:  # then what came meanwhile
            lines = await self._recorded(after)
            if lines:
                after = lines[-1].seq
                yield self._text(lines)
            if len(lines) < PAGE:
                after = max(after, listener.joined_at)
        ended = await self._ending()
        while ended is None and listener.ending is None and time.monotonic() < until:
            told, doing = await listener.wait(min(HEARTBEAT_S, max(0.0, until - time.monotonic())))
            fresh = [line for line in told if line.seq > after]
            after = fresh[-1].seq if fresh else after
            piece = self._text(fresh) + b"".join(self._doing(job, progress) for job, progress in doing)
            yield piece or b":\n"  # a comment alone: a blank line after it would be an event to some clients
            if self._may_be_over(fresh):
                ended = await self._ending()
        if ended is not None:
            while lines := await self._recorded(after):  # the line that ended it may not have come yet
                after = lines[-1].seq
                yield self._text(lines)
            yield _event(ENDED, encode(ended), after)
        elif listener.ending is not None:
            yield f": {listener.ending}\n".encode()

    async def _recorded(self, after: int) -> tuple[EventRecord, ...]:
        ledger, story = self._desk.host.ports.ledger, self._story
        return await run_in_threadpool(ledger.events, order_id=story.order_id, after=after, limit=PAGE)

    def _text(self, lines: "list[EventRecord] | tuple[EventRecord, ...]") -> bytes:
        shown = (self._story.show(line) for line in lines if self._story.wants(line))
        return b"".join(_event(view.name, encode(view), view.seq) for view in shown if view is not None)

    def _doing(self, job: JobId, progress: Progress | None) -> bytes:
        now = self._desk.host.ports.now()
        view = DoingView(job=job, progress=None if progress is None else view_progress(progress, now))
        return _event(PROGRESS, encode(view), None)

    def _may_be_over(self, fresh: list[EventRecord]) -> bool:
        order = self._story.order
        is_late = order is not None and self._desk.host.ports.now() >= order.expires
        return is_late or any(line.name in _MAY_END for line in fresh)

    async def _ending(self) -> EndedView | None:
        """How the order of this stream ended; None while it goes on, and for the host's stream."""
        return (
            None if self._story.order is None else await run_in_threadpool(self._look_at, self._story.order)
        )

    def _look_at(self, order: OrderRecord) -> EndedView | None:
        host = self._desk.host
        jobs = host.ports.ledger.jobs(JobQuery(order_id=order.id, limit=MAX_TASKS))
        receipts = host.ports.ledger.receipts(order.digest)
        view = view_order(order, signed_order(order), jobs, receipts, host.me)
        ending = ending_of(view, host.ports.now())
        if ending not in {endings.Ending.DONE, endings.Ending.LOST}:
            return None
        return EndedView(order=order.id, ending=ending)

    def _may_read(self) -> bool:
        """Whether the key that signed for this stream still holds, and may read this order, by the roster as it is now."""
        if self._reader is None:
            return True
        host = self._desk.host
        try:
            host.roster.require(self._reader, role=None, at=host.ports.now())
            if host.roster is not self._judged_by:  # a reload: whose keys are one agent's may have changed
                self._story.judge(host)
                self._judged_by = host.roster
        except TrustError:
            return False
        except AgentError as error:  # the ledger is away: judged a second later
            log.error("stream.not_judged", code=error.code, detail=error.detail)
        return True


async def _watch_reader(receive: Receive, listener: Listener) -> None:
    """Ends the stream when its reader leaves."""
    with suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        listener.end(Ending.GONE)


def _event(name: str, data: bytes, number: int | None) -> bytes:
    """One event. The data is one line of JSON; a name that somebody wrote into the ledger's file becomes a plain one."""
    told = name if _PLAIN_NAME.fullmatch(name) else "event"
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {told}\ndata: ".encode() + data + b"\n\n"
