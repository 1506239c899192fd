"""Refusals are kept: each in the metrics, and in the audit log as far as a caller's budget goes.

Whoever is refused costs this host one durable write; a budget for each period keeps a flood from filling the disk. It is small
for strangers, who all share one. What goes beyond it is counted, and told in one line when the period is over.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.api.metrics import Metrics
from agent.domain.audit import NewEvent, Plain
from agent.domain.ids import KeyId
from agent.errors import AgentError
from agent.log import get_logger
from agent.ports.ledger import Ledger
from agent.repeating import repeating

log = get_logger(__name__)

PERIOD = timedelta(hours=1)
BUDGET = 100  # lines kept of one known caller in a period; what a caller of the roster asks for is worth a line each
STRANGERS = 10  # of all strangers together
MAX_TEXT = 200  # characters kept of what a caller chose


@dataclass(slots=True)
class _Period:
    """What one caller has used of the budget since `began`, and how many of which code were left out."""

    began: datetime
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


class Refusals:
    """Where the doors of one process tell of refusals. Safe to use from threads."""

    def __init__(self, ledger: Ledger, now: Callable[[], datetime], metrics: Metrics) -> None:
        self._ledger = ledger
        self._now = now
        self._metrics = metrics
        self._periods: dict[KeyId | None, _Period] = {}
        self._lock = threading.Lock()

    def note(self, error: AgentError, method: str, path: str, who: KeyId | None) -> None:
        """Keep one refusal. `who` is None for strangers, and for the operator. A ledger that is away is logged."""
        self._metrics.refusals.labels(error.code).inc()
        now = self._now()
        told = self._over(now)
        if self._draw(error, who, now):
            told.append(_line(error, method, path, who))
        self._record(told, now)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """While the context lasts, what was left out is told in time, though nobody else is refused; at its end, at once."""
        try:
            with repeating("refusals", self.flush, PERIOD.total_seconds):
                yield
        finally:
            self.flush(is_end=True)

    def flush(self, *, is_end: bool = False) -> None:
        """Tell what was left out in the periods that are over, or in all of them."""
        now = self._now()
        self._record(self._over(now, is_end=is_end), now)

    def _record(self, told: list[NewEvent], now: datetime) -> None:
        try:
            self._ledger.record_events(told, now)
        except AgentError as cause:
            log.error("refusal.not_kept", code=cause.code, detail=cause.detail)

    def _draw(self, error: AgentError, who: KeyId | None, now: datetime) -> bool:
        """Whether there is budget left for a line of its own; else it is counted."""
        with self._lock:
            period = self._periods.setdefault(who, _Period(now))
            if period.kept >= (STRANGERS if who is None else BUDGET):
                period.left_out[error.code] += 1
                return False
            period.kept += 1
            return True

    def _over(self, now: datetime, *, is_end: bool = False) -> list[NewEvent]:
        """The lines that tell of periods that are over, which are forgotten."""
        with self._lock:
            over = [who for who, one in self._periods.items() if is_end or abs(now - one.began) >= PERIOD]
            ended = [(who, self._periods.pop(who)) for who in over]
        return [_sum(who, period) for who, period in ended if period.left_out]


def _line(error: AgentError, method: str, path: str, who: KeyId | None) -> NewEvent:
    values: dict[str, Plain] = {
        "code": error.code,
        "detail": error.detail[:MAX_TEXT],
        "method": method[:MAX_TEXT],
        "path": path[:MAX_TEXT],
        "who": who,
    }
    dataset = error.about.get("dataset")
    return NewEvent(
        name="request.refused",
        dataset=None if dataset is None else str(dataset),
        values=values | dict(error.about),
    )


def _sum(who: KeyId | None, period: _Period) -> NewEvent:
    codes = ", ".join(f"{code} {count}" for code, count in sorted(period.left_out.items()))
    values: dict[str, Plain] = {"who": who, "count": period.left_out.total(), "codes": codes}
    return NewEvent(
        name="requests.refused", values=values | {"since": period.began.isoformat(timespec="seconds")}
    )
