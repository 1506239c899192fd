"""What only the real queues have: a file, a bell between processes, threads that stop in good order."""

import json
import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from agent.errors import OutsideError
from agent.ports import broker_huey, broker_huey_clock
from agent.ports.broker import Queue
from agent.ports.broker_huey import HueyBroker
from agent.ports.broker_huey_bell import Listener
from agent.ports.broker_huey_clock import CLOCK, Clock
from tests.ports.broker_stage import PATIENCE_S, Heard

ROOT = Path(__file__).resolve().parents[2]
NEVER_S = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "queues.db"


@pytest.fixture
def broker(path: Path) -> Iterator[HueyBroker]:
    with closing(HueyBroker(path)) as made:
        yield made


@pytest.fixture
def only_bells_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself: what is heard was rung."""
    monkeypatch.setattr(broker_huey, "LOOK_EVERY_S", NEVER_S)
    monkeypatch.setattr(broker_huey, "TURN_EVERY_S", NEVER_S)


def start_process(action: str, path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ports.broker_processes", action, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def put_row(path: Path, queue: Queue, data: bytes) -> None:
    """A row nobody rang a bell for."""
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("INSERT INTO task (queue, data) VALUES (?, ?)", (queue.value, data))


def sockets_of(path: Path) -> list[str]:
    return os.listdir(f"{path}.bells")


# ------------------------------------------------------------------ the file


def test_a_queue_carries_ids_as_json_and_nothing_else(broker: HueyBroker, path: Path) -> None:
    broker.ring(Queue.LEARN_TASKS, "3f1c.0")
    broker.ring(Queue.DELIVERIES, "3f1c.0.report.1", delay_s=60)

    with closing(sqlite3.connect(path)) as plain:
        rows = plain.execute(
            "SELECT queue, data FROM task UNION ALL SELECT queue, data FROM schedule"
        ).fetchall()
        kept = plain.execute("SELECT count(*) FROM kv").fetchone()

    assert [(queue, json.loads(data)) for queue, data in rows] == [
        ("learn_tasks", {"id": "3f1c.0"}),
        ("deliveries", {"id": "3f1c.0.report.1"}),
    ]
    assert kept == (0,)


def test_the_rings_of_a_file_that_counted_none_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "older.db"
    with closing(HueyBroker(path)) as broker:
        broker.ring_all(Queue.LEARN_TASKS, ["one", "two"])
        broker.ring(Queue.DELIVERIES, "three", delay_s=3600)
    with closing(sqlite3.connect(path)) as plain, plain:
        triggers = [
            name for (name,) in plain.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        ]
        for name in triggers:
            plain.execute(f"DROP TRIGGER {name}")
        plain.execute("DROP TABLE depth")

    with closing(HueyBroker(path)) as broker:
        broker.ring(Queue.LEARN_TASKS, "four")
        depth = broker.depth()

    assert len(triggers) == 4
    assert (depth[Queue.LEARN_TASKS], depth[Queue.DELIVERIES], depth[Queue.TEST_TASKS]) == (3, 1, 0)


def test_the_depth_is_what_waits_whoever_takes_it(broker: HueyBroker, path: Path) -> None:
    heard = Heard()
    broker.ring_all(Queue.LEARN_TASKS, [f"job {n}" for n in range(20)])
    consumer = broker.consumer(heard.handlers(Queue.LEARN_TASKS), {})
    consumer.start()
    heard.wait_for(20)
    consumer.stop()
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("INSERT INTO task (queue, data) VALUES ('learn_tasks', '{}')")

    assert broker.depth()[Queue.LEARN_TASKS] == 1


def test_what_is_due_after_a_long_stop_leaves_the_schedule_in_parts(
    broker: HueyBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_huey_clock, "DUE_AT_ONCE", 3)
    for n in range(7):
        broker.ring(Queue.DELIVERIES, f"{n}", delay_s=3600 + n)
    storage = broker._queues[Queue.DELIVERIES].storage
    with closing(broker._bells.listen([Queue.DELIVERIES])) as listener:
        clock = Clock(
            storage, [Queue.DELIVERIES], listener,
            enqueue=broker_huey._ENQUEUE, every_s=1.0, note=lambda: None,
        )  # fmt: skip
        moved = []
        for _ in range(4):
            clock._move(time.time() + 7200)
            moved.append(storage.queue_size())
    ((first,),) = storage.sql("SELECT data FROM task ORDER BY id LIMIT 1", results=True)

    assert moved == [3, 6, 7, 7]
    assert json.loads(first)["id"] == "0"
    assert broker.depth()[Queue.DELIVERIES] == 7


def test_the_file_and_the_bells_belong_to_the_agent_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(HueyBroker(path)) as broker:
            broker.ring(Queue.LEARN_TASKS, "one")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)

    assert modes == {
        "queues.db": 0o600,
        "queues.db-wal": 0o600,
        "queues.db-shm": 0o600,
        "queues.db.bells": 0o700,
    }
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_is_no_queue_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "queues.db").write_bytes(b"something else entirely" * 1000)

    with pytest.raises(OutsideError, match="may be deleted"):
        HueyBroker(tmp_path / "queues.db")


def test_rows_that_are_not_ours_are_dropped_and_never_run(
    broker: HueyBroker, path: Path, tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/sprung",)

    heard = Heard()
    for data in (pickle.dumps(Trap()), b"", b'{"id": 7}', b'["one"]', b'{"id": "good"}'):
        put_row(path, Queue.LEARN_TASKS, data)
    consumer = broker.consumer(heard.handlers(), {})

    consumer.start()
    heard.wait_for(1)
    consumer.stop()

    assert heard.calls == [(Queue.LEARN_TASKS, "good")]
    assert not (tmp_path / "sprung").exists()


def test_rings_outlive_their_process(broker: HueyBroker, path: Path) -> None:
    process = start_process("ring", path)
    process.communicate("one\ntwo\n")

    heard = Heard()
    consumer = broker.consumer(heard.handlers(), {})
    consumer.start()
    heard.wait_for(2)
    consumer.stop()

    assert process.returncode == 0
    assert [item for _, item in heard.calls] == ["one", "two"]


def test_a_delay_does_not_depend_on_the_time_zone(
    broker: HueyBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        broker.ring(Queue.LEARN_TASKS, "in an hour", delay_s=3600)
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        broker.ring(Queue.LEARN_TASKS, "soon", delay_s=0.01)
        consumer = broker.consumer(heard.handlers(), {})
        consumer.start()
        heard.wait_for(1)
        consumer.stop()
    finally:
        monkeypatch.undo()
        time.tzset()

    assert heard.calls == [(Queue.LEARN_TASKS, "soon")]
    assert broker.depth()[Queue.LEARN_TASKS] == 1


# ------------------------------------------------------------------ the bell


@pytest.mark.usefixtures("only_bells_wake")
def test_a_ring_in_another_process_wakes_an_idle_consumer(broker: HueyBroker, path: Path) -> None:
    heard = Heard()
    consumer = broker.consumer(heard.handlers(), {})
    consumer.start()
    with start_process("ring", path) as process:
        assert process.stdin is not None
        for n in range(20):
            process.stdin.write(f"{n}\n")
            heard.wait_for(n + 1)
        process.stdin.close()
    consumer.stop()

    assert [item for _, item in heard.calls] == [str(n) for n in range(20)]


def test_a_lost_bell_is_made_good_by_looking(
    broker: HueyBroker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_huey, "LOOK_EVERY_S", 0.05)
    heard = Heard()
    consumer = broker.consumer(heard.handlers(), {})
    consumer.start()
    broker.ring(Queue.LEARN_TASKS, "heard")
    heard.wait_for(1)

    put_row(path, Queue.LEARN_TASKS, b'{"id": "nobody rang"}')

    heard.wait_for(2)
    consumer.stop()


@pytest.mark.usefixtures("only_bells_wake")
@pytest.mark.parametrize("lost", [0, 15])
def test_a_crowd_of_rings_sets_every_thread_to_work(broker: HueyBroker, path: Path, lost: int) -> None:
    threads = 16  # more than the bells a socket holds unread: some get lost
    together = threading.Barrier(threads)

    def meet(_queue: Queue, _item: str) -> None:
        together.wait(PATIENCE_S)

    heard = Heard(meet)
    consumer = broker.consumer(heard.handlers(Queue.LEARN_TASKS), {Queue.LEARN_TASKS: threads})
    consumer.start()

    for n in range(lost):
        put_row(path, Queue.LEARN_TASKS, json.dumps({"id": f"lost {n}"}).encode())
    for n in range(threads - lost):
        broker.ring(Queue.LEARN_TASKS, f"rung {n}")

    heard.wait_for(threads)
    consumer.stop()
    assert not together.broken


@pytest.mark.usefixtures("only_bells_wake")
def test_the_socket_of_a_killed_process_is_swept_away(broker: HueyBroker, path: Path) -> None:
    with start_process("consume", path) as process:
        (stale,) = sockets_of(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    heard = Heard()
    consumer = broker.consumer(heard.handlers(), {})
    consumer.start()
    assert len(sockets_of(path)) == 2

    broker.ring(Queue.LEARN_TASKS, "one")

    heard.wait_for(1)
    assert stale not in sockets_of(path)
    consumer.stop()
    assert sockets_of(path) == []


@pytest.mark.usefixtures("only_bells_wake")
def test_a_path_longer_than_a_socket_name_may_be_works(tmp_path: Path) -> None:
    with closing(HueyBroker(tmp_path / ("long" * 40) / "queues.db")) as broker:
        heard = Heard()
        consumer = broker.consumer(heard.handlers(), {})
        consumer.start()
        broker.ring(Queue.LEARN_TASKS, "one")
        heard.wait_for(1)
        broker.ring(Queue.LEARN_TASKS, "two")
        heard.wait_for(2)
        consumer.stop()


# ------------------------------------------------------------------ the clock


@pytest.mark.usefixtures("only_bells_wake")
def test_what_is_rung_for_later_is_heard_when_it_is_due_though_nobody_looks(broker: HueyBroker) -> None:
    heard = Heard()
    consumer = broker.consumer(heard.handlers(), {})
    consumer.start()
    began = time.monotonic()

    broker.ring(Queue.DELIVERIES, "later", delay_s=0.3)
    broker.ring(Queue.LEARN_TASKS, "sooner", delay_s=0.1)
    heard.wait_for(2)
    consumer.stop()

    assert [item for _, item in heard.calls] == ["sooner", "later"]
    assert time.monotonic() - began >= 0.3
    assert broker.depth()[Queue.DELIVERIES] == 0


@pytest.mark.usefixtures("only_bells_wake")
def test_what_became_due_while_no_consumer_ran_is_rung_at_the_start(broker: HueyBroker, path: Path) -> None:
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute(
            "INSERT INTO schedule (queue, data, timestamp) VALUES (?, ?, ?)",
            (Queue.TEST_TASKS.value, b'{"id": "overdue"}', time.time() - 60),
        )
    heard = Heard()
    consumer = broker.consumer(heard.handlers(), {})

    consumer.start()
    heard.wait_for(1)
    consumer.stop()

    assert heard.calls == [(Queue.TEST_TASKS, "overdue")]
    assert broker.depth()[Queue.TEST_TASKS] == 0


def test_a_clock_that_hangs_is_named(broker: HueyBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, wait = threading.Event(), Listener.wait

    def hang(listener: Listener, name: str, heard: int, timeout_s: float) -> None:
        if name == CLOCK:
            goes_on.wait(PATIENCE_S)
        else:
            wait(listener, name, heard, 0.05)

    monkeypatch.setattr(Listener, "wait", hang)
    consumer = broker.consumer(Heard().handlers(Queue.LEARN_TASKS), {})
    consumer.start()
    deadline = time.monotonic() + PATIENCE_S
    while not (stalled := consumer.stalled(0.3)) and time.monotonic() < deadline:
        time.sleep(0.05)
    goes_on.set()
    consumer.stop()

    assert stalled == (CLOCK,)


# ------------------------------------------------------------------ consumers


def test_two_processes_share_the_work_and_do_nothing_twice(broker: HueyBroker, path: Path) -> None:
    items = [f"job {n}" for n in range(400)]
    with ExitStack() as stack:
        workers = [stack.enter_context(start_process("consume", path)) for _ in range(2)]
        for item in items:
            broker.ring(Queue.LEARN_TASKS, item)
        while broker.depth()[Queue.LEARN_TASKS]:
            os.sched_yield()

        outputs = [worker.communicate()[0].splitlines() for worker in workers]

    assert sorted(outputs[0] + outputs[1]) == sorted(items)
    assert all(outputs), "one process did everything: nothing was shared"
    assert {worker.returncode for worker in workers} == {0}


def test_stopping_waits_for_what_is_under_way_and_takes_nothing_more(broker: HueyBroker) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def handle(_: str) -> None:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        ended.set()

    consumer = broker.consumer({Queue.LEARN_TASKS: handle}, {Queue.LEARN_TASKS: 1})
    consumer.start()
    broker.ring(Queue.LEARN_TASKS, "under way")
    assert begun.wait(PATIENCE_S)
    broker.ring(Queue.LEARN_TASKS, "left for the next")

    stopping = threading.Thread(target=consumer.stop)
    stopping.start()
    stopping.join(0.2)
    assert stopping.is_alive()
    may_end.set()
    stopping.join(PATIENCE_S)

    assert not stopping.is_alive()
    assert ended.is_set()
    assert broker.depth()[Queue.LEARN_TASKS] == 1


@pytest.mark.usefixtures("only_bells_wake")
def test_an_idle_consumer_stops_at_once(broker: HueyBroker) -> None:
    consumer = broker.consumer(Heard().handlers(), {})
    consumer.start()

    stopping = threading.Thread(target=consumer.stop)
    stopping.start()
    stopping.join(PATIENCE_S)

    assert not stopping.is_alive()
    consumer.stop()  # twice is fine


@pytest.mark.usefixtures("only_bells_wake")
def test_a_consumer_that_stops_takes_nothing_more(
    broker: HueyBroker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_nothing, wait = threading.Event(), Listener.wait

    def tell_and_wait(listener: Listener, name: str, heard: int, timeout_s: float) -> None:
        found_nothing.set()
        wait(listener, name, heard, timeout_s)

    monkeypatch.setattr(Listener, "wait", tell_and_wait)
    heard = Heard()
    consumer = broker.consumer(heard.handlers(Queue.LEARN_TASKS), {})
    consumer.start()
    assert found_nothing.wait(PATIENCE_S)
    put_row(path, Queue.LEARN_TASKS, b'{"id": "left"}')

    consumer.stop()

    assert heard.calls == []
    assert broker.depth()[Queue.LEARN_TASKS] == 1


def test_a_consumer_leaves_the_signals_of_its_process_alone(broker: HueyBroker) -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in signals]
    consumer = broker.consumer(Heard().handlers(), {})

    consumer.start()
    during = [signal.getsignal(number) for number in signals]
    consumer.stop()

    assert during == before


# ------------------------------------------------------------------ coming round


def test_a_consumer_whose_threads_come_round_is_not_stalled_and_one_with_a_task_in_hand_neither(
    broker: HueyBroker,
) -> None:
    goes_on = threading.Event()

    def wait(_queue: Queue, _item: str) -> None:
        goes_on.wait(PATIENCE_S)

    heard = Heard(wait)
    consumer = broker.consumer(heard.handlers(Queue.LEARN_TASKS), {Queue.LEARN_TASKS: 1})
    consumer.start()
    broker.ring(Queue.LEARN_TASKS, "a")
    heard.wait_for(1)
    time.sleep(0.6)  # longer than the limit below: only the handler under way excuses its thread

    stalled = set(consumer.stalled(0.5))
    goes_on.set()
    consumer.stop()

    assert "learn_tasks" not in stalled
    assert consumer.stalled(0.0) == ()  # nobody is expected after the end


def test_a_thread_that_does_not_come_round_is_named(
    broker: HueyBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def hang(self: Listener, name: str, heard: int, timeout_s: float) -> None:
        goes_on.wait(PATIENCE_S)

    monkeypatch.setattr(Listener, "wait", hang)
    consumer = broker.consumer(Heard().handlers(Queue.LEARN_TASKS), {Queue.LEARN_TASKS: 2})
    consumer.start()
    deadline = time.monotonic() + PATIENCE_S
    while "learn_tasks" not in consumer.stalled(0.2) and time.monotonic() < deadline:
        time.sleep(0.05)

    stalled = consumer.stalled(0.2)
    goes_on.set()
    consumer.stop()

    assert "learn_tasks" in stalled
