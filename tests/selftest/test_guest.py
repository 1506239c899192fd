"""The hostile program outside any cage: what it tells when nothing stops it, so that silence in a cage means something."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.selftest.guest import attempt, files, world

ROOT = Path(__file__).resolve().parents[2]


def said(
    *attempts: tuple[str, ...], pass_fds: tuple[int, ...] = (), env: dict[str, str] | None = None
) -> Any:
    """What the guest tells of these attempts, here on the host."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.selftest.guest", json.dumps(attempts)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **(env or {})},
        capture_output=True,
        pass_fds=pass_fds,
        check=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["probe"]: line["seen"] for line in lines}


def test_a_descriptor_that_was_left_open_is_seen(tmp_path: Path) -> None:
    left = os.open(tmp_path, os.O_RDONLY)
    try:
        seen = said(("d", "descriptors"), pass_fds=(left,))["d"]
    finally:
        os.close(left)

    assert seen == f"{left} is {tmp_path}"
    assert said(("d", "descriptors"))["d"] == "none"


def test_processes_and_sockets_of_the_host_are_seen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])

        seen = said(
            ("p", "processes"),
            ("first", "first-process"),
            ("signals", "signals"),
            ("tcp", "connect", "127.0.0.1", port),
        )

    assert seen["tcp"] == "connected"
    assert "others" in seen["p"]
    assert seen["first"].startswith("another: ")
    assert seen["signals"].endswith("answer")


def test_a_variable_that_was_not_expected_is_named() -> None:
    expected = ("LC_CTYPE", "PATH")
    assert said(("e", "environment", *expected))["e"] == "none"
    assert said(("e", "environment", *expected), env={"TOKEN": "x"})["e"] == "TOKEN"


def test_a_name_is_found_as_a_word_only() -> None:
    host = os.uname().nodename

    assert said(("n", "search", host))["n"].startswith("named in uname")
    assert said(("n", "search", host[:1] + "?"))["n"] == "nowhere"
    assert world.search() == "nowhere"


def test_a_death_in_a_child_is_part_of_the_answer() -> None:
    def fall() -> str:
        os.kill(os.getpid(), 9)
        return "never"

    assert attempt.in_child(fall) == "killed by SIGKILL"
    assert attempt.in_child(lambda: "word") == "word"
    assert attempt.in_child(lambda: "") == "it ended without a word"


def test_an_errno_is_told_by_its_name() -> None:
    def refuse() -> str:
        raise OSError(errno.EROFS, "x")

    assert attempt.told(refuse) == "EROFS"


@pytest.mark.parametrize(
    "what",
    [
        "symlink",
        "hard-link",
        "fifo",
        "set-id",
        "sparse",
        "deep:20",
        "bytes-name",
        "closed",
        "performance:nan",
    ],
)
def test_what_it_leaves_is_there(tmp_path: Path, what: str) -> None:
    assert files.leave(str(tmp_path), what) == "done"
    assert list(tmp_path.iterdir())
    if what == "closed":
        (tmp_path / "shut").chmod(0o700)
