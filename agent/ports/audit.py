"""The port through which the audit log is read, beside a service that goes on writing it.

What the lines are and how they are chained: `domain/audit.py`. Which lines there are: docs/operators.md, "The audit log".
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from agent.domain.audit import Line
from agent.domain.ids import Digest, OrderId


class Recorded(Struct, frozen=True):
    """A line as it lies in the ledger. `digest` is the one recorded for it; `line.previous` the one recorded before it.

    `line` is None when what lies there is no line.
    """

    seq: int
    line: Line | None
    digest: Digest | None


class Wanted(Struct, frozen=True, kw_only=True):
    """Which tasks a question is about: exactly one of these. `text` stands anywhere in a line's values: an image, a key."""

    dataset: str | None = None
    order: OrderId | None = None
    text: str | None = None


class AuditLog(Protocol):
    """The log as it is now: every call of one object sees the same state. Raises everywhere: LedgerUnavailable."""

    def recorded(self, first: int, last: int) -> Iterator[Recorded]:
        """The lines from number `first` to `last`, in order, however many, in constant memory."""
        ...

    def newest(self) -> int:
        """The number of the newest line; 0 when there is none."""
        ...

    def numbered(self) -> int:
        """The highest number that was ever given to a line: over `newest()` when lines at the end are gone."""
        ...

    def between(self, since: datetime | None, until: datetime | None) -> tuple[int, int]:
        """(first, last) numbers of the lines of that time, both ends counted; (1, 0) when there are none."""
        ...

    def orders(self, wanted: Wanted) -> Iterator[tuple[OrderId, frozenset[int]]]:
        """The orders, and in each the positions, that a question is about, in the order of their first lines."""
        ...

    def about(self, order: OrderId) -> tuple[Line, ...]:
        """Every line about this order."""
        ...

    def elsewhere(self, wanted: Wanted) -> Iterator[Line]:
        """The lines that a question is about and that belong to no task here: refusals, rulings."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...
