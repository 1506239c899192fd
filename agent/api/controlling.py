"""What the operator's routes on the host as a whole do: tell what it does, and take another word for it."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.responses import Response

from agent.api.ask import Ask, no_query
from agent.api.desk import Desk
from agent.api.problems import json_answer
from agent.api.views import ControlView
from agent.domain.control import Control, Mode
from agent.domain.strict_json import decode
from agent.pipeline.control import Standing, say, standing

MAX_CONTROL_BYTES = 8 << 10


class ControlBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the host is to do. `until`: when a drain should be over. `force`: also though the ledger was restored."""

    mode: Literal["running", "paused", "draining"]
    until: datetime | None = None
    reason: Annotated[str, Meta(max_length=500)] | None = None
    force: bool = False


def get_control(ask: Ask, desk: Desk) -> Response:
    """What the host does, since when and why, and its jobs by state."""
    no_query(ask)
    return json_answer(view_control(standing(desk.host)))


def post_control(ask: Ask, desk: Desk) -> Response:
    """Pause, drain or resume the host."""
    no_query(ask)
    told = decode(ask.body, ControlBody, limit_bytes=MAX_CONTROL_BYTES, what="the word")
    wanted = Control(
        mode=Mode(told.mode), since=desk.host.ports.now(), until=told.until, reason=told.reason, uid=ask.uid
    )
    is_new = say(wanted, desk.host, is_forced=told.force)
    return json_answer(view_control(standing(desk.host)), 202 if is_new else 200)


def view_control(seen: Standing) -> ControlView:
    """The standing as it is told."""
    said = seen.control
    return ControlView(
        mode=said.mode, since=said.since, until=said.until, reason=said.reason, uid=said.uid, jobs=seen.jobs
    )
