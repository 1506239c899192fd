"""What every part of a page looks through: this host at one moment, and everybody's names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from msgspec import Struct

from agent.api.page import pictures
from agent.api.page.pictures import Hop
from agent.api.page.words import short
from agent.api.views import OrderView, TaskView, view_order
from agent.domain.ids import KeyId
from agent.domain.jobs import Job
from agent.domain.orders import MAX_TASKS, SignedOrder
from agent.pipeline.host import Host, signed_order
from agent.ports.ledger import JobQuery, OrderRecord

_HEX: Final = re.compile(r"\b[0-9a-f]{64}\b")


class Party(Struct, frozen=True, kw_only=True):
    """Somebody by the name that the roster of this host gives the key. `role` is None for a key that it does not know."""

    keyid: KeyId
    name: str
    role: str | None
    is_me: bool


class Chain(Struct, frozen=True, kw_only=True):
    """A part of an order's chain: the tasks from `first` on, of `count` in all, as stations on a line."""

    first: int
    count: int
    tasks: tuple[TaskView, ...]
    names: tuple[str, ...]
    hops: tuple[Hop, ...]
    score: str | None

    @property
    def last(self) -> int:
        return self.first + len(self.hops) - 1

    @property
    def after(self) -> int:
        """How many tasks follow on those that are shown."""
        return self.count - self.first - len(self.hops)


@dataclass(frozen=True, slots=True)
class Lens:
    """One host, now."""

    host: Host
    now: datetime

    def who(self, keyid: KeyId) -> Party:
        """This key as the roster knows it."""
        entry = self.host.roster.find(keyid)
        name = short(keyid) if entry is None else entry.name
        return Party(
            keyid=keyid,
            name=name,
            role=None if entry is None else entry.role,
            is_me=keyid == self.host.me,
        )

    def readable(self, text: str) -> str:
        """The text with names for the keys that the roster knows, and the beginnings of other digests."""
        return _HEX.sub(lambda found: self.who(KeyId(found[0])).name, text)

    def jobs_of(self, record: OrderRecord) -> tuple[Job, ...]:
        """The order's jobs on this host."""
        return self.host.ports.ledger.jobs(JobQuery(order_id=record.id, limit=MAX_TASKS))

    def order(
        self, record: OrderRecord, jobs: Sequence[Job], first: int, most: int
    ) -> tuple[OrderView, SignedOrder]:
        """The order as it is told, with what receipts say of the tasks from `first` on; of the others no receipt is read."""
        signed = signed_order(record)
        receipts = self.host.ports.ledger.receipts_from(record.digest, first, most)
        return view_order(record, signed, jobs, receipts, self.host.me), signed

    def chain(self, view: OrderView, jobs: Sequence[Job], first: int, most: int) -> Chain:
        """The tasks from `first` on, at most so many."""
        tasks = view.chain[first : first + most]
        parties = [None if task.agent is None else self.who(task.agent) for task in tasks]
        names = tuple("" if party is None else party.name for party in parties)
        since = {job.position: job.changed_at for job in jobs}
        passed = {job.position for job in jobs if job.next_agent is not None and job.attempt == 0}
        hops = tuple(
            pictures.hop(
                task,
                name=name,
                is_here=party is not None and party.is_me,
                count=len(view.chain),
                now=self.now,
                since=since.get(task.position),
                is_passed=task.position in passed,
            )
            for task, name, party in zip(tasks, names, parties, strict=True)
        )
        scores = [task.score for task in tasks if task.score is not None]
        return Chain(
            first=first,
            count=len(view.chain),
            tasks=tuple(tasks),
            names=names,
            hops=hops,
            score=None if not scores else pictures.score_words(scores[-1]),
        )
