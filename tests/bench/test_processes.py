"""What processes take of a host is read right, also of one that keeps its memory to itself."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from agent.bench.idle import Taken, measured, together
from agent.bench.processes import MIB, Memory, Watched, descendants, with_word, woken

PRIVATE = (
    "from agent.process import keep_memory_private as keep\n"
    "import sys, time\n"
    "held = bytearray(30 << 20)\n"
    "keep()\n"
    "print('ready', flush=True)\n"
    "while sys.stdin.readline():\n"
    "    sum(range(3_000_000))\n"
    "    time.sleep(0.01)\n"
    "    print('done', flush=True)\n"
)


@pytest.fixture
def private() -> Iterator[tuple["subprocess.Popen[str]", Watched]]:
    """A process with 30 MiB that nobody of its user may look into, watched from its start."""
    command = [sys.executable, "-c", PRIVATE, "a-word-of-its-own"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        watched = Watched(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process, watched
        watched.close()
        process.kill()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_memory_of_a_process_that_hides_it_is_read_by_who_started_it(
    private: tuple["subprocess.Popen[str]", Watched],
) -> None:
    _, watched = private

    memory = watched.memory()

    assert memory.pss_bytes is not None
    assert 30 * MIB < memory.pss_bytes <= memory.rss_bytes < 200 * MIB


def test_cpu_and_wake_ups_are_those_of_the_process(
    private: tuple["subprocess.Popen[str]", Watched],
) -> None:
    process, watched = private
    began_s = time.monotonic()
    cpu_s, woke = watched.cpu_s(), watched.wakeups()

    go_on(process)

    used_s = watched.cpu_s() - cpu_s
    assert 0 < used_s <= time.monotonic() - began_s
    assert woken(woke, watched.wakeups()) >= 1


def test_processes_are_found_by_a_word_and_by_who_started_them(
    private: tuple["subprocess.Popen[str]", Watched],
) -> None:
    process, _ = private

    assert process.pid in descendants([os.getpid()])
    assert with_word("a-word-of-its-own") == [process.pid]


def test_a_thread_that_is_new_counts_from_its_start_and_one_that_ended_not_at_all() -> None:
    assert woken({"1": 10, "2": 5}, {"1": 13, "3": 2}) == 5


def test_without_pss_of_one_there_is_none_of_all_and_the_figure_says_so() -> None:
    told = Taken(memory=Memory(50 * MIB, 70 * MIB), cpu_percent=0.1, wakeups_per_s=1.0)
    untold = Taken(memory=Memory(None, 90 * MIB), cpu_percent=0.2, wakeups_per_s=2.0)

    found = measured(
        {"serve": told, "work": untold, "podman service": told, "two sleeping interpreters": told}
    )

    assert together([told, untold]).memory == Memory(None, 160 * MIB)
    assert found.figures == pytest.approx({"idle_mib": 160.0, "idle_cpu_percent": 0.3})
    assert found.notes == (
        "this kernel told no PSS of work: what stands there is RSS, which is at least as much",
    )
