"""Attacks on the container core that need no container: on who measures a guest, and on what a death leaves behind."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.domain.ids import Digest
from agent.errors import BadImage, RuntimeUnavailable
from agent.ports import user_namespace
from agent.ports import user_namespace_inner as inner
from agent.ports.container_run import ContainerRun
from agent.ports.memory_events import MemoryEvents
from agent.ports.runtime_runc_images import RuncImages
from agent.ports.runtime_runc_mount_points import add_mount_points
from agent.selftest.images import build_image, program_layer

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


# ------------------------------------------------------------------ who asks the helper is interrupted


class Interrupted(BaseException):
    """A signal's handler, a test's time-out: whatever comes between question and answer."""


def test_an_answer_that_nobody_took_is_not_that_of_the_next_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = user_namespace.UserNamespace(lambda: user_namespace._launch("join", str(os.getpid())))
    monkeypatch.setattr(user_namespace, "_launch", helper)

    def interrupt(_process: object) -> None:
        raise Interrupted

    assert inside.ask("measure", [str(tmp_path)], 10)["entries"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(user_namespace, "_receive", interrupt)
        with pytest.raises(Interrupted):
            inside.ask("measure", [str(tmp_path)], 10)

    assert inside.ask("read", "/proc/self/comm")["text"]
    inside.close()


def helper(*_words: str) -> "subprocess.Popen[str]":
    """The helper without a namespace of its own."""
    program = (
        f"import sys; sys.argv = ['x']; import runpy; inner = runpy.run_path({str(user_namespace.PROGRAM)!r}); "
        "inner['main'].__globals__['join'] = lambda pid: None; inner['main']('join', '0')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_program_that_hangs_does_not_take_the_helper_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed_fd: int
) -> None:
    monkeypatch.setattr(inner, "TOOL_S", 0.1)
    silent = ["/bin/sh", "-c", "sleep 5 &"]

    with pytest.raises(TimeoutError, match="does not end"):
        inner.run(["/bin/sleep", "30"], {})
    with pytest.raises(TimeoutError, match="conmon says nothing"):
        inner.monitor(silent, {}, "/bin/true", str(tmp_path / "runc"))
    assert os.fstat(sealed_fd).st_size == os.stat("/bin/true").st_size


@pytest.fixture
def sealed_fd(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A number of this process's own, in the place of the helper's."""
    fd = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(inner, "SEALED_FD", fd)
    yield fd
    os.close(fd)


def test_runc_starts_from_a_copy_that_nobody_can_write_to(tmp_path: Path, sealed_fd: int) -> None:
    program, link = tmp_path / "program", tmp_path / "runc"
    sealed = inner.Sealed()

    for content in (b"#!/bin/sh\nexit 3\n", b"#!/bin/sh\nexit 42\n"):  # another one came with an upgrade
        program.write_bytes(content)
        sealed.link(str(program), str(link))
        first = os.fstat(sealed_fd).st_ino
        sealed.link(str(program), str(link))

        assert link.read_bytes() == content
        assert os.fstat(sealed_fd).st_ino == first  # one copy for all runs
        for how in ("r+b", "wb"):
            with pytest.raises(PermissionError), open(f"/proc/self/fd/{sealed_fd}", how) as file:
                file.write(b"other")
        assert fcntl.fcntl(sealed_fd, fcntl.F_GET_SEALS) == inner.EVERY_SEAL


def test_where_memory_holds_no_programs_runc_makes_its_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed_fd: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EACCES, "no")

    monkeypatch.setattr(os, "memfd_create", refuse)

    inner.Sealed().link("/bin/true", str(tmp_path / "runc"))

    assert (tmp_path / "runc").readlink() == Path("/bin/true")
    assert os.fstat(sealed_fd).st_rdev == os.stat(os.devnull).st_rdev


def test_a_container_that_waits_is_let_go_once(tmp_path: Path) -> None:
    fifo = tmp_path / "exec.fifo"
    os.mkfifo(fifo)
    waiting = subprocess.Popen(["/bin/sh", "-c", f"echo 0 >{fifo}; exit 7"])

    inner.let_go(str(fifo), waiting.pid)

    assert waiting.wait() == 7
    with pytest.raises(FileNotFoundError):
        inner.let_go(str(fifo), os.getpid())


def test_a_container_that_ended_before_it_was_let_go_is_told(tmp_path: Path) -> None:
    fifo = tmp_path / "exec.fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["/bin/true"]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)

        with pytest.raises(ProcessLookupError, match="ended before"):
            inner.let_go(str(fifo), dead.pid)


# ------------------------------------------------------------------ unpacked images of several workers


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, Digest]:
    """A small image."""
    layer = program_layer(tmp_path / "cache", {"/opt/program/probe.py": b"pass\n"})
    path = tmp_path / "image.tar"
    return path, build_image(path, layers=[layer], entrypoint=["python3", "/opt/program/probe.py"])


def test_what_lies_in_the_store_of_images_and_is_none_stops_nobody(
    tmp_path: Path, archive: tuple[Path, Digest]
) -> None:
    images = RuncImages(tmp_path / "store")
    images.load(*archive)
    (tmp_path / "store/lost+found").mkdir()

    assert [info.digest for info in images.images()] == [archive[1]]


def test_a_load_whose_folder_is_cleared_before_it_has_its_lock_begins_again(
    tmp_path: Path, archive: tuple[Path, Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, other = (RuncImages(tmp_path / "store") for _ in range(2))
    flock = fcntl.flock
    cleared: list[int | None] = []

    def late(fd: int, how: int) -> None:
        if not cleared:
            cleared.append(None)
            cleared.append(other.clear())
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)

    images.load(*archive)

    assert cleared == [None, 1]
    assert [info.digest for info in images.images()] == [archive[1]]


def test_an_image_that_cannot_be_moved_to_its_place_is_not_told_as_loaded(
    tmp_path: Path, archive: tuple[Path, Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = RuncImages(tmp_path / "store")

    def full(*_words: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", full)

    with pytest.raises(OSError, match="Input/output"):
        images.load(*archive)


def test_an_image_whose_note_another_version_wrote_is_loaded_anew(
    tmp_path: Path, archive: tuple[Path, Digest]
) -> None:
    images = RuncImages(tmp_path / "store")
    images.load(*archive)
    (note,) = (tmp_path / "store").glob("*/image.json")
    note.write_text("{}")

    images.load(*archive)

    assert [info.digest for info in images.images()] == [archive[1]]


# ------------------------------------------------------------------ a kill that comes late


class NoOutput:
    """Streams that ended."""

    def read(self, take: object) -> None:
        """Nothing comes."""

    def close(self) -> None:
        """Nothing is held."""


def test_a_kill_after_the_run_hits_nobody_else() -> None:
    with sleeper() as ours, sleeper() as stranger:
        pidfd = os.pidfd_open(ours.pid)
        memory = MemoryEvents(ours.pid)
        run = ContainerRun(pidfd, memory, output=NoOutput(), log_bytes=1, engine_code=lambda: None)
        run.close()
        memory.close()
        os.close(pidfd)
        os.dup2(os.pidfd_open(stranger.pid), pidfd)  # the number is another's now

        run.kill()

        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(0.3)
        os.close(pidfd)


@contextmanager
def sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        try:
            yield process
        finally:
            process.kill()


# ------------------------------------------------------------------ whose fault it is


def test_a_disk_without_space_is_no_fault_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test").symlink_to("/etc")
    (tmp_path / "file").touch()

    for target in ("/data/test/pred", "/file/x"):
        with pytest.raises(BadImage, match="something else than a folder"):
            add_mount_points(tmp_path, [target])

    def full(*_words: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(RuntimeUnavailable, match="No space"):
        add_mount_points(tmp_path, ["/data/train"])
