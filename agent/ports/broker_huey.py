"""The queues on Huey: six in one SQLite file, ids as JSON, consumers that a bell wakes.

Huey deletes a row before it runs what the row asks for, keeps no results here and retries nothing: what is lost is rung again
by the sweep, and retries are counted in the ledger.
"""

import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from huey import Huey
from huey.constants import EmptyData
from huey.consumer import Consumer as HueyThreads
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import SqliteStorage

from agent.errors import OutsideError
from agent.ports.broker import Handler, Queue
from agent.ports.broker_huey_bell import Bells, Listener
from agent.ports.broker_huey_clock import CLOCK, Clock

TASK: Final = "ring"  # the one Huey task there is; its argument is the id
LOOK_EVERY_S: Final = 5.0  # a consumer's clock looks this often, for bells that were lost
TURN_EVERY_S: Final = 20.0  # a thread that waits comes round this often, to show that it lives
BUSY_S: Final = 5.0

# How many rings wait, kept by triggers: whoever asks whether this host is ready does not count a million of them.
_COUNT: Final = """
CREATE TRIGGER IF NOT EXISTS {table}_{name} AFTER {event} ON {table} BEGIN
INSERT INTO depth VALUES ({row}.queue, {change}) ON CONFLICT (queue) DO UPDATE SET count = count + {change}; END
"""
_COUNTS: Final = (
    "CREATE TABLE IF NOT EXISTS depth (queue TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO depth SELECT queue, count(*) FROM (SELECT queue FROM task UNION ALL SELECT queue FROM schedule)"
    " WHERE NOT EXISTS (SELECT 1 FROM depth) GROUP BY queue",
    *(
        _COUNT.format(table=table, name=name, event=event, row=row, change=change)
        for table in ("task", "schedule")
        for name, event, row, change in (("comes", "INSERT", "NEW", 1), ("goes", "DELETE", "OLD", -1))
    ),
)
_DEPTH: Final = "SELECT queue, count FROM depth"
# The sweep rings every waiting job each minute: a ring that waits already is not written again. The index finds it.
_INDEX: Final = "CREATE INDEX IF NOT EXISTS task_queue_data ON task (queue, data)"
_ENQUEUE: Final = """
INSERT INTO task (queue, data) SELECT :queue, :data
WHERE NOT EXISTS (SELECT 1 FROM task WHERE queue = :queue AND data = :data)
"""


class HueyBroker:
    """See `broker.Broker`. Processes that open the same path share the queues.

    The file is made with mode 0600, the folder beside it for the bells with 0700. Raises everywhere: OutsideError when the file
    cannot be read or written; what was not rung is rung by the sweep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with translated(path), ExitStack() as undo:
            _make(path)
            self._bells = Bells(path.with_name(f"{path.name}.bells"))
            undo.callback(self._bells.close)
            self._queues = {queue: _open_queue(queue, path, self._bells) for queue in Queue}
            undo.pop_all()

    def ring(self, queue: Queue, item: str, *, delay_s: float = 0.0) -> None:
        huey = self._queues[queue]
        task = huey.task_class(args=(item,), id=item)
        with translated(self._path):
            if delay_s > 0:
                task.eta = datetime.now(UTC) + timedelta(seconds=delay_s)
                huey.add_schedule(task)
            else:
                huey.enqueue(task)

    def ring_all(self, queue: Queue, items: Sequence[str]) -> None:
        with translated(self._path):
            self._queues[queue].storage.enqueue_all([data_of(item) for item in items])

    def depth(self) -> Mapping[Queue, int]:
        with translated(self._path):
            counts = dict(self._queues[Queue.DELIVERIES].storage.sql(_DEPTH, results=True))
        return {queue: counts.get(queue, 0) for queue in Queue}

    def consumer(self, handlers: Mapping[Queue, Handler], workers: Mapping[Queue, int]) -> "HueyConsumer":
        """Not started yet. `workers`: threads by queue, one where it says nothing. Queues without a handler are left alone."""
        threads = {queue: workers.get(queue, 1) for queue in handlers}
        return HueyConsumer(self._path, self._bells, handlers, threads)

    def close(self) -> None:
        """Ring no more."""
        for huey in self._queues.values():
            huey.storage.close()
        self._bells.close()


class HueyConsumer:
    """See `broker.Consumer`. What a handler raises is logged by Huey and ends nothing."""

    def __init__(
        self, path: Path, bells: Bells, handlers: Mapping[Queue, Handler], workers: Mapping[Queue, int]
    ) -> None:
        self._path = path
        self._bells = bells
        self._handlers = handlers
        self._workers = workers
        self._listener: Listener | None = None
        self._threads: list[_Threads] = []
        self._clock: Clock | None = None
        self._turns = _Turns()

    def start(self) -> None:
        with translated(self._path), ExitStack() as undo:
            listener = self._bells.listen([*self._handlers, CLOCK])
            undo.callback(listener.close)
            for queue, handler in self._handlers.items():
                huey = _open_queue(
                    queue, self._path, self._bells, self._turns.counted(queue, handler), listener
                )
                huey.storage.turns = self._turns
                self._threads.append(_Threads(huey, self._workers[queue]))
            undo.pop_all()
        self._listener = listener
        self._turns.begin(self._workers)
        for threads in self._threads:
            threads.start()
        if self._threads:
            self._clock = Clock(
                self._threads[0].huey.storage,
                list(self._handlers),
                listener,
                enqueue=_ENQUEUE,
                every_s=LOOK_EVERY_S,
                note=lambda: self._turns.note(CLOCK),
            )
            self._clock.start()

    def stop(self) -> None:
        if self._listener is None:
            return
        for threads in self._threads:
            threads.stop_flag.set()
        self._listener.close()
        if self._clock is not None:
            self._clock.join()
        for threads in self._threads:
            threads.stop(graceful=True)
            threads.huey.storage.close()
        self._listener, self._threads, self._clock = None, [], None

    def stalled(self, limit_s: float) -> tuple[str, ...]:
        return () if self._listener is None else self._turns.late(limit_s)


class _Turns:
    """When each thread of a consumer last came round: looked for a ring, or for one that is due. In a handler it need not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began_at = 0.0
        self._expected: dict[str, int] = {}
        self._last: dict[tuple[str, int], float | None] = {}  # None: in a handler

    def begin(self, workers: Mapping[Queue, int]) -> None:
        """So many threads are to come round from now on, and the clock."""
        with self._lock:
            self._began_at = time.monotonic()
            self._expected = {queue.value: count for queue, count in workers.items()}
            if workers:
                self._expected[CLOCK] = 1
            self._last.clear()

    def note(self, name: str) -> None:
        """The calling thread came round."""
        with self._lock:
            self._last[name, threading.get_ident()] = time.monotonic()

    def counted(self, queue: Queue, handler: Handler) -> Handler:
        """The handler, while which its thread need not come round."""

        def handle(item: str) -> None:
            own = queue.value, threading.get_ident()
            with self._lock:
                self._last[own] = None
            try:
                handler(item)
            finally:
                self.note(queue.value)

        return handle

    def late(self, limit_s: float) -> tuple[str, ...]:
        """Names of threads that did not come round within this time, or never did."""
        now = time.monotonic()
        with self._lock:
            if now - self._began_at < limit_s:
                return ()
            round_ = [name for (name, _), at in self._last.items() if at is None or now - at < limit_s]
            return tuple(name for name, count in self._expected.items() if round_.count(name) < count)


# ------------------------------------------------------------------ Huey, as far as it has to be told


def _open_queue(
    queue: Queue, path: Path, bells: Bells, handler: Handler | None = None, listener: Listener | None = None
) -> Any:
    """One of the six. Without a handler it can only be rung."""
    huey = Huey(
        queue.value,
        results=False,
        serializer=_Ids(),
        storage_class=_BellStorage,
        filename=str(path),
        timeout=BUSY_S,
        cache_mb=1,
        bells=bells,
        listener=listener,
    )
    huey.task_class = huey.task(name=TASK)(_task(handler)).task_class
    return huey


def _task(handler: Handler | None) -> Callable[[str], None]:
    def ring(item: str) -> None:
        if handler is not None:
            handler(item)

    return ring


def data_of(item: str) -> bytes:
    """The row of a ring: nothing else travels."""
    return json.dumps({"id": item}).encode()


class _Ids(Serializer):  # type: ignore[misc]
    """Messages as {"id": …}: nothing else travels, and nothing that is read can run."""

    def serialize(self, message: Any) -> bytes:
        return data_of(message.args[0])

    def deserialize(self, data: bytes) -> Any:
        item = json.loads(data)["id"]
        if not isinstance(item, str):
            raise ValueError("a ring without an id")
        return Message(id=item, name=f"{__name__}.{TASK}", retries=0, args=(item,), kwargs={})


class _BellStorage(SqliteStorage):  # type: ignore[misc]
    """Huey's SQLite storage with a bell: `dequeue` blocks until it rings, as Huey's own Redis storage does."""

    blocking = True
    turns: _Turns | None = None
    ddl = (*SqliteStorage.ddl, _INDEX, *_COUNTS)

    def __init__(self, name: str, *, bells: Bells, listener: Listener | None, **options: Any) -> None:
        self._bells = bells
        self._listener = listener
        super().__init__(name, **options)

    def _create_connection(self) -> sqlite3.Connection:
        """WAL with NORMAL: no sync for each ring. A power cut may take the last rings, never the file, and the sweep rings
        again what the ledger knows. (Huey's own `fsync=False` means OFF, which can take the file.)"""
        connection: sqlite3.Connection = super()._create_connection()
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def enqueue(self, data: bytes, priority: float | None = None) -> None:
        self.sql(_ENQUEUE, {"queue": self.name, "data": data}, commit=True)
        self._bells.ring(self.name)

    def enqueue_all(self, rows: Sequence[bytes]) -> None:
        """Many in one transaction, and one bell: who finds work wakes the next."""
        with self.db(commit=True) as cursor:
            cursor.executemany(_ENQUEUE, [{"queue": self.name, "data": data} for data in rows])
        self._bells.ring(self.name)

    def dequeue(self) -> bytes | None:
        listener = self._listener
        if self.turns is not None:
            self.turns.note(self.name)
        if listener is None or not listener.is_open:
            return None
        heard = listener.heard(self.name)
        data: bytes | None = super().dequeue()
        if data is None:
            listener.wait(self.name, heard, TURN_EVERY_S)
            data = super().dequeue() if listener.is_open else None
        if data is not None:
            listener.pass_on(self.name)
        return data

    def add_to_schedule(self, data: bytes, ts: datetime) -> None:
        super().add_to_schedule(data, ts)
        self._bells.ring(CLOCK)

    def peek_many(self, keys: object) -> dict[str, bytes]:
        """No ring is ever revoked: Huey need not look before each."""
        return {}

    def pop_data(self, key: object) -> Any:
        """Nor is there anything to clear after each."""
        return EmptyData


class _Threads(HueyThreads):  # type: ignore[misc]
    """Huey's threads for one queue. Its scheduler, which would look every second, is never started: the clock does its work."""

    def __init__(self, huey: Any, workers: int) -> None:
        super().__init__(huey, workers=workers, periodic=False, check_worker_health=False)

    def start(self) -> None:
        for _, worker in self.worker_threads:
            worker.start()

    def _join_workers(self) -> bool:
        for _, worker in self.worker_threads:
            worker.join()
        return True

    def _set_signal_handlers(self) -> None:
        """The process's signals are not Huey's."""


# ------------------------------------------------------------------ the file


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.mknod(path, 0o600 | stat.S_IFREG)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as cause:
        raise OutsideError(
            f"the queues in {path}: {cause} (the file may be deleted: the sweep rings again what the ledger knows)"
        ) from cause
