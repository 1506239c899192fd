"""A container's program is let go through the pipe that its first process waits at, however soon that process ends."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.ports.user_namespace_inner import let_go

TRIES = 60
# As runc's first process: it waits until somebody reads the pipe, writes one byte, and here is over at once.
WAITS = "import os, sys\nos.write(os.open(sys.argv[1], os.O_WRONLY), b'0')\nos._exit(0)"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "exec.fifo"
    os.mkfifo(path)
    return path


def forked(fifo: Path) -> int:
    """The same without an interpreter's start: a child of this process, reaped as soon as it ends."""
    child = os.fork()
    if child == 0:
        os.write(os.open(fifo, os.O_WRONLY), b"0")
        os._exit(0)
    return child


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_program_that_is_over_at_once_was_let_go_all_the_same(tmp_path: Path) -> None:
    for number in range(TRIES):
        path = tmp_path / str(number)
        os.mkfifo(path)
        child = forked(path)
        reaper = threading.Thread(target=os.waitpid, args=(child, 0))
        reaper.start()

        let_go(str(path), child)

        reaper.join()
        assert not path.exists()


def test_a_process_that_ended_before_was_not_started(fifo: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()

    with pytest.raises(ProcessLookupError):
        let_go(str(fifo), ended.pid)

    assert fifo.exists()


def test_one_that_dies_while_it_is_awaited_was_not_started(fifo: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as dying:
        threading.Timer(0.05, dying.kill).start()

        with pytest.raises(ProcessLookupError):
            let_go(str(fifo), dying.pid)


def test_where_there_is_no_pipe_it_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        let_go(str(tmp_path / "none"), os.getpid())


def test_a_first_process_that_waits_is_let_go(fifo: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS, str(fifo)]) as waiting:
        let_go(str(fifo), waiting.pid)

    assert waiting.returncode == 0
