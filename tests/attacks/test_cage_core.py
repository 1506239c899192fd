"""Attacks on the container core that need no container: on who measures a guest, and on what a death leaves behind."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.ports import user_namespace_inner as inner

KIB = 1 << 10


# ------------------------------------------------------------------ a guest hides what it writes


def test_what_lies_in_many_folders_side_by_side_is_measured(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "f").write_bytes(b"x" * 64 * KIB)

    told = inner.measure([str(tmp_path)], 1 << 30)

    assert told["entries"] == 600
    assert told["bytes"] >= 300 * 64 * KIB


def test_folders_too_deep_to_measure_are_told(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * (inner.MAX_DEPTH + 2))
    deep.mkdir(parents=True)

    assert inner.measure([str(tmp_path)], 1 << 30)["is_deep"]


@contextmanager
def coming_and_going(folder: Path) -> Iterator[None]:
    """Somebody makes and removes files there all the time."""
    is_over = threading.Event()

    def churn() -> None:
        while not is_over.is_set():
            for number in range(50):
                (folder / f"a{number}").touch()
            for number in range(50):
                (folder / f"a{number}").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_files_that_come_and_go_hide_no_others(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"big{number}").write_bytes(b"x" * 4 * KIB)

    with coming_and_going(tmp_path):
        told = [inner.measure([str(tmp_path)], 1 << 30)["bytes"] for _ in range(20)]

    assert min(told) >= 2000 * 4 * KIB


def test_a_measure_that_fails_leaves_no_folder_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        with pytest.raises(OSError, match="none"):
            inner.measure([str(tmp_path), str(tmp_path / "none")], 10)

    assert len(os.listdir("/proc/self/fd")) == before
