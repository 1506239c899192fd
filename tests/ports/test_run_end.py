"""How a run's end is told: exactly where the kernel does, and by the engine's code where it does not."""

import os
import signal
import subprocess
import sys

import pytest

from agent.ports import run_end
from agent.ports.run_end import End, cause_of, end_of, end_of_engine_code

DIE = "import os, sys; os.kill(os.getpid(), int(sys.argv[1]))"


def ended(*words: str) -> int:
    """The pidfd of a process that ended and was reaped."""
    with subprocess.Popen([sys.executable, "-c", *words]) as child:
        pidfd = os.pidfd_open(child.pid)
    return pidfd


needs_exact_ends = pytest.mark.skipif(
    not run_end.tells_exact_ends(), reason="a kernel that tells how a process ended (Linux 6.15)"
)


@needs_exact_ends
@pytest.mark.parametrize("code", [0, 1, 128, 137, 159, 255])
def test_an_exit_code_is_the_kernel_s_whatever_the_engine_says(code: int) -> None:
    pidfd = ended(f"raise SystemExit({code})")

    assert end_of(pidfd, lambda: 128 + 9) == End(code=code)
    os.close(pidfd)


@needs_exact_ends
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_is_the_kernel_s_whatever_the_engine_says(number: int) -> None:
    pidfd = ended(DIE, str(number))

    assert end_of(pidfd, lambda: 0) == End(signal=number)
    os.close(pidfd)


@needs_exact_ends
def test_an_end_of_which_the_engine_recorded_nothing_is_no_fault_of_the_guest() -> None:
    broken_pipe = f"import signal; signal.signal(13, signal.SIG_DFL); {DIE}"
    words = [("raise SystemExit(1)",), (broken_pipe, "13"), (DIE, "9"), ("pass",)]

    pidfds = [ended(*one) for one in words]

    assert [end_of(one, lambda: None) for one in pidfds] == [End(), End(), End(signal=9), End(code=0)]
    assert end_of(pidfds[0], lambda: -1) == End()
    for one in pidfds:
        os.close(one)


@needs_exact_ends
def test_an_engine_is_not_asked_what_the_kernel_told() -> None:
    def ask() -> int:
        raise AssertionError("asked")

    for words, end in (("pass",), End(code=0)), ((DIE, "9"), End(signal=9)):
        pidfd = ended(*words)
        assert end_of(pidfd, ask) == end
        os.close(pidfd)


def test_without_the_kernel_s_word_the_engine_s_counts() -> None:
    reading, writing = os.pipe()  # no pidfd at all: as on a kernel that has no such call

    assert end_of(reading, lambda: 137) == End(signal=9)
    assert end_of(reading, lambda: None) == End()
    os.close(reading)
    os.close(writing)


@needs_exact_ends
def test_a_process_that_nobody_reaps_is_told_by_the_engine() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        pidfd = os.pidfd_open(child.pid)
        run_end.ends_within(pidfd, 30)

        assert end_of(pidfd, lambda: 3, wait_s=0.05) == End(code=3)
    os.close(pidfd)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (0, End(code=0)),
        (3, End(code=3)),
        (128, End(code=128)),
        (139, End(signal=11)),
        (-1, End()),
        (256, End()),
        (None, End()),
    ],
)
def test_an_engine_tells_a_signal_as_a_code_over_128(code: int | None, end: End) -> None:
    assert end_of_engine_code(code) == end


@pytest.mark.parametrize(
    ("end", "is_oom", "cause"),
    [
        (End(code=0), False, None),
        (End(code=0), True, None),
        (End(code=137), False, "exit:137"),
        (End(signal=9), False, "signal:9"),
        (End(signal=9), True, "oom"),
        (End(code=1), True, "oom"),
        (End(signal=31), False, "seccomp"),
        (End(code=159), False, "exit:159"),
        (End(signal=25), False, "disk"),
        (End(), False, "unknown"),
        (End(), True, "unknown"),
    ],
)
def test_the_cause_is_a_word_of_the_contract(end: End, is_oom: bool, cause: str | None) -> None:
    assert cause_of(end, was_out_of_memory=is_oom) == cause


def test_a_process_that_lives_does_not_end_in_time() -> None:
    pidfd = os.pidfd_open(os.getpid())

    assert not run_end.ends_within(pidfd, 0.01)
    os.close(pidfd)
