"""What lies there, as it lies: nothing in it is believed. Moments are microseconds since 1970, as the ledger keeps them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from msgspec import Struct

from agent.ports.runtime import Leftover

Row = Mapping[str, Any]


class OrderRows(Struct, frozen=True, kw_only=True):
    """An order with its jobs and receipts by position, and its deliveries as they came (`body` is None where there is none)."""

    order: Row
    jobs: tuple[Row, ...]
    receipts: tuple[Row, ...]
    deliveries: tuple[Row, ...]


class Ring(Struct, frozen=True):
    """A ring that waits in a queue. `item` is None when it is none of ours; `row` names it in the file."""

    queue: str
    item: str | None
    row: str


class Folder(Struct, frozen=True):
    """An entry of the workspace's root or of the spool. `is_used`: somebody holds it by a lock, as a self-test does."""

    root: str
    name: str
    is_used: bool = False


class Places(Struct, frozen=True, kw_only=True):
    """What lies outside of the ledger. `containers` is None when the engine does not answer, with the reason in `unseen`."""

    rings: tuple[Ring, ...]
    folders: tuple[Folder, ...]
    containers: tuple[Leftover, ...] | None
    unseen: str = ""


class RingSeen(Protocol):
    """A ring as the file of the queues has it."""

    @property
    def queue(self) -> str: ...
    @property
    def item(self) -> str | None: ...
    @property
    def row(self) -> str: ...


class QueuesSeen(Protocol):
    """The file of the queues: what is wrong in it, and the rings that wait."""

    @property
    def complaints(self) -> Sequence[str]: ...
    @property
    def rings(self) -> Sequence[RingSeen]: ...


class LedgerSeen(Protocol):
    """One moment of the ledger's file. Raises everywhere: LedgerUnavailable."""

    head: str

    def damage(self) -> Sequence[str]: ...
    def references(self) -> Sequence[str]: ...
    def revision(self) -> str | None: ...
    def differences(self) -> Sequence[str]: ...
    def orders(self) -> Iterator[tuple[Row, Sequence[Row], Sequence[Row], Sequence[Row]]]: ...
    def odd_rows(self) -> Iterator[tuple[str, str]]: ...
    def running(self) -> Mapping[str, int]: ...
    def names(self) -> set[str]: ...


class Mends(Protocol):
    """The mends of the ledger that lose nothing: whether the job still was as it was found, and is mended now."""

    def end_lease(self, job: str, now: datetime) -> bool: ...
    def drop_lease(self, job: str, now: datetime) -> bool: ...
    def settle(self, job: str, now: datetime) -> bool: ...
