"""The part of the ledger in memory that a person pages through."""

from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from typing import Any

from agent.domain.ids import Digest, JobId, OrderId
from agent.domain.jobs import Job, JobState
from agent.domain.receipts import SignedReceipt
from agent.errors import NotFound
from agent.ports.ledger import EventRecord
from agent.ports.ledger_page import DatasetUse


class MemoryPage:
    """See `PageLedger`. `_reading` gives the books."""

    _reading: Callable[[], AbstractContextManager[Any]]

    def newest_jobs(
        self, states: Set[JobState], *, after: JobId | None = None, limit: int = 50
    ) -> tuple[Job, ...]:
        with self._reading() as books:
            arrived: list[Job] = list(books.jobs.values())
        places = {job.id: place for place, job in enumerate(arrived)}
        if after is not None and after not in places:
            raise NotFound(f"no job {after}")
        newest: dict[OrderId, Job] = {job.order_id: job for job in arrived}
        end = len(arrived) if after is None else places[after]
        found = [
            job for job in newest.values() if places[job.id] < end and (not states or job.state in states)
        ]
        return tuple(sorted(found, key=lambda job: places[job.id], reverse=True)[:limit])

    def receipts_from(self, order: Digest, first: int, limit: int) -> tuple[SignedReceipt, ...]:
        with self._reading() as books:
            places = sorted(place for digest, place in books.receipts if digest == order and place >= first)
            return tuple(books.receipts[order, place] for place in places[:limit])

    def events_of_host(
        self, names: Set[str], *, before: int | None = None, limit: int = 50
    ) -> tuple[EventRecord, ...]:
        return self._lines(lambda line: line.order_id is None and line.name in names, before)[:limit]

    def events_of_dataset(
        self, dataset: str, *, before: int | None = None, limit: int = 50
    ) -> tuple[EventRecord, ...]:
        return self._lines(lambda line: line.dataset == dataset, before)[:limit]

    def datasets_used(self, *, before: int | None = None, limit: int = 50) -> tuple[DatasetUse, ...]:
        found: dict[str, list[EventRecord]] = {}
        for line in self._lines(lambda line: line.dataset is not None, None):
            found.setdefault(str(line.dataset), []).append(line)
        uses = [
            DatasetUse(dataset=dataset, lines=len(lines), last=lines[0])
            for dataset, lines in found.items()
            if before is None or lines[0].seq < before
        ]
        return tuple(uses[:limit])

    def _lines(self, is_wanted: Callable[[EventRecord], bool], before: int | None) -> tuple[EventRecord, ...]:
        with self._reading() as books:
            told: list[EventRecord] = list(reversed(books.events))
        return tuple(line for line in told if is_wanted(line) and (before is None or line.seq < before))
