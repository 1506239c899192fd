"""The log in the journal's native protocol, against a real socket: fields, large lines by a sealed file, nothing lost."""

import array
import fcntl
import io
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent import log as logs
from agent import log_journal
from agent.log import LogFormat, LogLevel, bound, configure, get_logger
from agent.log_journal import Journal, fields_of, is_journal

log = get_logger(__name__)

ROOT = Path(__file__).resolve().parent.parent
JOURNALD = Path("/lib/systemd/systemd-journald")
ALONE = ("unshare", "-r", "-m", "-p", "-f", "--propagation", "private")  # a world in which /run is ours


def why_no_journald() -> str:
    """What keeps a journal of our own from running here; empty: nothing."""
    if not JOURNALD.exists():
        return f"there is no {JOURNALD}"
    tried = subprocess.run([*ALONE, "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "this user may make no namespaces"


@dataclass
class Listener:
    """What journald does with its socket: datagrams, or the content of a sealed file."""

    socket: socket.socket

    def receive(self) -> tuple[dict[str, str], bool]:
        """The fields of the next entry, and whether it came as a file."""
        data, told, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        if not told:
            return parse(data), False
        (file,) = array.array("i", told[0][2])
        try:
            wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            assert fcntl.fcntl(file, fcntl.F_GET_SEALS) & wanted == wanted  # journald takes no other
            return parse(os.pread(file, os.fstat(file).st_size, 0)), True
        finally:
            os.close(file)

    def is_empty(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        return False


def parse(data: bytes) -> dict[str, str]:
    """An entry by the protocol's own words."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            (size,) = struct.unpack("<Q", rest[:8])
            value, end, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert end == b"\n"
        fields[name.decode()] = value.decode()
        data = rest
    return fields


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        here.bind(str(tmp_path / "socket"))
        here.settimeout(5)
        yield Listener(here)


@pytest.fixture
def stream(listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A log that speaks to the listener, and what it writes elsewhere."""
    monkeypatch.setattr(logs, "Journal", lambda: Journal(tmp_path / "socket"))
    elsewhere = io.StringIO()
    configure(LogLevel.INFO, LogFormat.JOURNAL, elsewhere)
    yield elsewhere
    configure(LogLevel.WARNING)


def test_a_line_is_an_entry_with_fields_by_which_it_is_found(listener: Listener, stream: io.StringIO) -> None:
    with bound(order="0f1e", position=2, trace="4bf92f3577b34da6a3ce929d0e0e4736", attempt=1):
        log.warning("task.attempt_failed", code="storage-unavailable", detail="no connection", wall_s=1.5)

    fields, is_file = listener.receive()
    assert not is_file
    assert (
        fields.items()
        >= {
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "dc-compute",
            "DC_EVENT": "task.attempt_failed",
            "DC_ORDER": "0f1e",
            "DC_POSITION": "2",
            "DC_ATTEMPT": "1",
            "TRACE_ID": "4bf92f3577b34da6a3ce929d0e0e4736",
            "DC_CODE": "storage-unavailable",
            "DC_DETAIL": "no connection",
            "DC_WALL_S": "1.5",
            "CODE_MODULE": __name__,
        }.items()
    )
    assert fields["MESSAGE"].startswith("task.attempt_failed ")
    assert "detail=no connection" in fields["MESSAGE"]
    assert stream.getvalue() == ""


def test_a_value_with_a_line_break_forges_no_field(listener: Listener, stream: io.StringIO) -> None:
    log.info("peer.refused", detail="no\nPRIORITY=0\nDC_ORDER=another", order="mine")

    fields, _ = listener.receive()
    assert (fields["PRIORITY"], fields["DC_ORDER"]) == ("6", "mine")
    assert fields["DC_DETAIL"] == "no\nPRIORITY=0\nDC_ORDER=another"


def test_a_line_larger_than_a_datagram_comes_as_a_sealed_file(
    listener: Listener, stream: io.StringIO
) -> None:
    log.info("files.listed", names=["x" * 1900] * 2000)

    fields, is_file = listener.receive()
    assert is_file
    assert fields["DC_EVENT"] == "files.listed"
    assert len(fields["MESSAGE"]) > 2000 * 1900
    assert stream.getvalue() == ""


def test_what_libraries_say_and_tracebacks_are_entries_too(listener: Listener, stream: io.StringIO) -> None:
    logging.getLogger("huey").error("task %s failed", "x")
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        log.exception("bell.crashed", queue="learn_tasks")

    (library, _), (crash, _) = listener.receive(), listener.receive()
    assert (library["DC_EVENT"], library["DC_LOGGER"], library["PRIORITY"]) == ("task x failed", "huey", "3")
    assert crash["PRIORITY"] == "3"
    assert "RuntimeError: a bug" in crash["MESSAGE"]
    assert stream.getvalue() == ""


def test_secrets_do_not_reach_the_journal_either(listener: Listener, stream: io.StringIO) -> None:
    log.info("share.released", share="hunter2", content=b"hunter2")

    fields, _ = listener.receive()
    assert "hunter2" not in str(fields)


def test_a_line_that_the_journal_does_not_take_goes_to_standard_error(
    listener: Listener, stream: io.StringIO, tmp_path: Path
) -> None:
    (tmp_path / "socket").unlink()

    log.info("worker.started", worker="w")

    line = json.loads(stream.getvalue())
    assert (line["event"], line["worker"]) == ("worker.started", "w")
    assert "not_journaled" in line


def test_a_journal_that_starts_again_gets_the_next_line(
    listener: Listener, stream: io.StringIO, tmp_path: Path
) -> None:
    listener.socket.close()
    (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "socket"))
        again.settimeout(5)

        log.info("worker.started")

        assert Listener(again).receive()[0]["DC_EVENT"] == "worker.started"


def test_without_a_journal_the_log_is_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "Journal", lambda: Journal(tmp_path / "nobody"))
    stream = io.StringIO()

    configure(LogLevel.INFO, LogFormat.JOURNAL, stream)
    log.info("worker.started")
    configure(LogLevel.WARNING)

    assert json.loads(stream.getvalue())["event"] == "worker.started"


def test_standard_error_is_the_journal_only_where_systemd_says_so_of_this_very_file(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as a, (tmp_path / "b").open("w") as b:
        about = os.fstat(a.fileno())
        told = {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}

        assert is_journal(a, told)
        assert not is_journal(b, told)  # redirected since
        assert not is_journal(a, {})
        assert not is_journal(io.StringIO(), told)


def test_auto_speaks_to_the_journal_where_standard_error_is_it(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "Journal", lambda: Journal(tmp_path / "socket"))
    with (tmp_path / "stderr").open("w") as stderr:
        about = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        configure(LogLevel.INFO, LogFormat.AUTO, stderr)

        log.info("worker.started")

        configure(LogLevel.WARNING)
    assert listener.receive()[0]["DC_EVENT"] == "worker.started"
    assert (tmp_path / "stderr").read_text() == ""


def test_names_of_fields_are_the_journals() -> None:
    fields = fields_of({"event": "x.y", "level": "info", "a-b c": 1, "ünïcode": 2, "§": 3, "n" * 200: 4})

    assert fields["DC_A_B_C"] == "1"
    assert all(len(name) <= log_journal.MAX_NAME and name.isascii() for name in fields)
    assert all(name[0].isalpha() for name in fields)


@pytest.mark.timeout(120)
def test_a_real_journald_takes_the_lines_and_finds_them_by_their_trace() -> None:
    if lacking := why_no_journald():
        pytest.skip(lacking)
    script = ROOT / "tests" / "monitoring" / "journal.sh"

    done = subprocess.run(
        [*ALONE, "sh", str(script), sys.executable, "-m", "tests.monitoring.journal"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
