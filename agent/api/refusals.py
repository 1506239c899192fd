"""Refusals are kept: each in the metrics, and in the ledger's log of events as far as a caller's budget goes.

Whoever is refused costs this host one durable write; a budget a minute keeps a stranger's flood from filling the disk.
What went beyond it is told by the next one that is kept.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from agent.api.metrics import Metrics
from agent.domain.ids import KeyId
from agent.errors import AgentError
from agent.log import get_logger
from agent.ports.ledger import Ledger

log = get_logger(__name__)

BUDGET = 60  # kept of one caller, or of all strangers together, in
PERIOD = timedelta(minutes=1)
MAX_TEXT = 200  # characters kept of what a caller chose


@dataclass(slots=True)
class _Minute:
    """What one caller has used of the budget since `began`."""

    began: datetime
    kept: int = 0
    left_out: int = 0


class Refusals:
    """Where the doors of one process tell of refusals. Safe to use from threads."""

    def __init__(self, ledger: Ledger, now: Callable[[], datetime], metrics: Metrics) -> None:
        self._ledger = ledger
        self._now = now
        self._metrics = metrics
        self._minutes: dict[KeyId | None, _Minute] = {}
        self._lock = threading.Lock()

    def note(self, error: AgentError, method: str, path: str, who: KeyId | None) -> None:
        """Keep one refusal. `who` is None for strangers, and for the operator. A ledger that is away is logged."""
        self._metrics.refusals.labels(error.code).inc()
        now = self._now()
        left_out = self._draw(who, now)
        if left_out is None:
            return
        values: dict[str, str | int | float | None] = {
            "code": error.code,
            "detail": error.detail[:MAX_TEXT],
            "method": method[:MAX_TEXT],
            "path": path[:MAX_TEXT],
            "who": who,
            "left_out": left_out,
        }
        try:
            self._ledger.record_event("request.refused", now, values=values)
        except AgentError as cause:
            log.error("refusal.not_kept", code=cause.code, detail=cause.detail)

    def _draw(self, who: KeyId | None, now: datetime) -> int | None:
        """How many were left out before this one, or None when it is to be left out too."""
        with self._lock:
            minute = self._minutes.get(who)
            if minute is None or now - minute.began >= PERIOD:
                left_out = 0 if minute is None else minute.left_out
                self._minutes[who] = _Minute(now, kept=1)
                return left_out
            if minute.kept >= BUDGET:
                minute.left_out += 1
                return None
            minute.kept += 1
            return 0
