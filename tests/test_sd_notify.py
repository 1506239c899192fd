"""What a service says to systemd, without systemd: a datagram socket that listens, and a process that is handed sockets."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.errors import BadSettings, OutsideError
from agent.sd_notify import OURS, Rounds, Systemd, Watch, forget, handed_sockets

SOON_S = 10.0
QUICK_S = 0.2  # a watchdog's limit


class Ear:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(SOON_S)

    def hear(self) -> list[str]:
        """The lines of the next word. Raises: TimeoutError when there is none."""
        return self._socket.recv(4096).decode().split("\n")

    def hears_nothing(self, for_s: float) -> bool:
        self._socket.settimeout(for_s)
        try:
            self._socket.recv(4096)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(SOON_S)
        return False

    def drain(self) -> None:
        """Forget what was said so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            self._socket.settimeout(SOON_S)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    made = Ear(str(tmp_path / "notify") if request.param == "path" else f"@dc-compute-test-{os.getpid()}")
    yield made
    made.close()


def systemd(ear: Ear, **environment: str) -> Systemd:
    return Systemd.of({"NOTIFY_SOCKET": ear.address, **environment})


# ------------------------------------------------------------------ words


def test_ready_comes_with_one_line_of_status(ear: Ear) -> None:
    systemd(ear).ready("serves\nhttps://x  and y")

    assert ear.hear() == ["READY=1", "STATUS=serves https://x and y"]


def test_a_reload_is_told_with_its_moment_and_ends_in_ready_though_it_failed(ear: Ear) -> None:
    with suppress(KeyError), systemd(ear).reloading("serves"):
        said = ear.hear()
        raise KeyError

    assert said[0] == "RELOADING=1"
    assert int(said[1].removeprefix("MONOTONIC_USEC=")) > 0
    assert ear.hear() == ["READY=1", "STATUS=serves"]


def test_the_end_is_told(ear: Ear) -> None:
    systemd(ear).stopping()

    assert ear.hear()[0] == "STOPPING=1"


def test_without_systemd_every_word_goes_nowhere() -> None:
    alone = Systemd.of({})

    alone.ready("serves")
    alone.stopping()
    with alone.reloading("serves"), alone.watched({"never": pytest.fail}):
        pass
    assert alone == Systemd(None, None)


def test_a_socket_of_another_kind_is_left_alone() -> None:
    with capture_logs() as logs:
        found = Systemd.of({"NOTIFY_SOCKET": "vsock:2:1234"})

    assert found.address is None
    assert [line["event"] for line in logs] == ["systemd.unknown_socket"]


def test_a_systemd_that_does_not_listen_is_no_reason_to_fail(tmp_path: Path) -> None:
    with capture_logs() as logs:
        Systemd(str(tmp_path / "nobody")).ready("serves")

    assert [(line["event"], line["what"]) for line in logs] == [("systemd.not_told", "READY=1")]


@pytest.mark.parametrize(
    ("environment", "limit_s"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_a_watchdog_is_for_the_process_that_it_names(
    environment: dict[str, str], limit_s: float | None
) -> None:
    assert Systemd.of({"NOTIFY_SOCKET": "/run/x", **environment}).watchdog_s == limit_s


def test_programs_that_a_service_starts_are_told_nothing() -> None:
    environment = dict.fromkeys(OURS, "x") | {"PATH": "/bin"}

    forget(environment)

    assert environment == {"PATH": "/bin"}


# ------------------------------------------------------------------ the watchdog


def quick(ear: Ear) -> Systemd:
    return systemd(ear, WATCHDOG_USEC=str(int(QUICK_S * 1e6)))


def test_the_watchdog_hears_of_progress_while_everything_comes_round(ear: Ear) -> None:
    with quick(ear).watched({"one": lambda: None, "other": lambda: None}):
        said = [ear.hear() for _ in range(4)]

    assert said == [["WATCHDOG=1"]] * 4


def test_the_watchdog_hears_nothing_once_one_thing_hangs_and_the_log_names_it(ear: Ear) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    is_named = threading.Event()

    def look() -> None:
        if hangs.is_set():
            goes_on.wait(SOON_S)

    with capture_logs() as logs, quick(ear).watched({"good": lambda: None, "bad": look}):
        ear.hear()
        hangs.set()
        is_named.wait(QUICK_S)
        ear.drain()
        is_silent = ear.hears_nothing(4 * QUICK_S)
        goes_on.set()
        hangs.clear()
        again = ear.hear()

    assert is_silent
    assert again == ["WATCHDOG=1"]
    assert {name for line in logs if line["event"] == "watchdog.stuck" for name in line["what"]} == {"bad"}


@pytest.mark.parametrize("error", [TimeoutError("nobody answers"), OutsideError("no ledger")])
def test_a_look_that_fails_is_no_progress(ear: Ear, error: Exception) -> None:
    def look() -> None:
        raise error

    with capture_logs() as logs, quick(ear).watched({"door": look}):
        first = ear.hear()  # at the start, so that a slow start is not held against it
        is_silent = ear.hears_nothing(4 * QUICK_S)

    assert first == ["WATCHDOG=1"]
    assert is_silent
    assert "watchdog.look_failed" in {line["event"] for line in logs}


def test_a_watch_that_was_stopped_says_nothing_more() -> None:
    said: list[int] = []
    watch = Watch({"one": lambda: None}, lambda: said.append(1), QUICK_S)
    watch.start()

    watch.stop()
    for thread in watch.threads:
        thread.join(SOON_S)

    assert not any(thread.is_alive() for thread in watch.threads)


def test_a_round_is_overdue_after_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("agent.sd_notify.time.monotonic", lambda: clock[0])
    rounds = Rounds(10.0)

    rounds.turn("sweep")
    rounds.turn("proof", 60.0)
    seen = []
    for at in (109.0, 111.0, 161.0):
        clock[0] = at
        seen.append(rounds.overdue())
    rounds.leave("proof")

    assert seen == [(), ("sweep",), ("proof", "sweep")]
    assert rounds.overdue() == ("sweep",)


def test_a_look_at_rounds_waits_until_nobody_is_overdue() -> None:
    rounds = Rounds(-1.0)
    rounds.turn("sweep")
    came_back = threading.Event()

    def look() -> None:
        rounds.look()
        came_back.set()

    thread = threading.Thread(target=look, daemon=True)

    thread.start()
    is_early = came_back.wait(0.1)
    rounds.turn("sweep", 60.0)

    assert not is_early
    assert came_back.wait(SOON_S)


# ------------------------------------------------------------------ sockets

HANDED = """
import os, sys
from agent.sd_notify import handed_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    found = handed_sockets(os.environ)
    print([one.getsockname()[1] for one in found], os.get_inheritable(3))
except Exception as error:
    print(type(error).__name__, error)
"""


def with_descriptor_3(number: int, environment: dict[str, str], code: str = HANDED) -> str:
    """What a process prints whose descriptor 3 is this one, as systemd starts it."""

    def hand_over() -> None:
        os.dup2(number, 3)
        os.set_inheritable(3, True)

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        pass_fds=[3, number],
        preexec_fn=hand_over,
        capture_output=True,
        text=True,
        timeout=SOON_S * 3,
        check=True,
    )
    return done.stdout.strip()


def test_sockets_that_systemd_opened_are_taken_and_not_passed_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = with_descriptor_3(listener.fileno(), {"LISTEN_FDS": "1"})

        assert said == f"[{listener.getsockname()[1]}] False"


def make_file(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_CREAT | os.O_RDONLY)


def make_datagram(_: Path) -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def make_silent(_: Path) -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


@pytest.mark.parametrize("make", [make_file, make_datagram, make_silent])
def test_what_is_no_listening_stream_socket_is_refused(tmp_path: Path, make: Callable[[Path], int]) -> None:
    number = make(tmp_path)
    try:
        said = with_descriptor_3(number, {"LISTEN_FDS": "1"})
    finally:
        os.close(number)

    assert said.startswith(f"{BadSettings.__name__} descriptor 3")


@pytest.mark.parametrize("environment", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}])
def test_sockets_of_another_process_are_left_alone(environment: dict[str, str]) -> None:
    assert handed_sockets(environment) == ()


def test_a_count_that_is_no_number_is_none() -> None:
    assert handed_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == ()
