"""Using up what there is: processes, memory, disk, descriptors, log and time. Each stops itself well beyond its ceiling."""

# ruff: noqa: S108 - a guest: what it does is the point

import errno
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from agent.selftest.guest.attempt import HARD_END_S

T = TypeVar("T")

BLOCK = bytes(1 << 16)


def forks(most: str) -> str:
    """Fork, and let every child live, until it fails."""
    reader, writer = os.pipe()

    def fork() -> int:
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent has counted
            os._exit(0)
        return child

    seen, children = _until_it_fails(fork, int(most), "processes")
    os.close(writer)
    os.close(reader)
    for child in children:
        os.waitpid(child, 0)
    return seen


def threads(most: str) -> str:
    """Start threads, and let every one live, until it fails."""
    is_over = threading.Event()

    def start() -> threading.Thread:
        thread = threading.Thread(target=is_over.wait)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        return thread

    seen, started = _until_it_fails(start, int(most), "threads")
    is_over.set()
    for thread in started:
        thread.join()
    return seen


def descriptors(most: str) -> str:
    """Open descriptors until it fails."""
    seen, opened = _until_it_fails(lambda: os.open("/dev/null", os.O_RDONLY), int(most), "descriptors")
    for descriptor in opened:
        os.close(descriptor)
    return seen


def inodes(folder: str, most: str) -> str:
    """Make empty files until it fails."""
    numbers = iter(range(int(most)))

    def make() -> str:
        path = f"{folder}/empty-{next(numbers)}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        return path

    seen, made = _until_it_fails(make, int(most), "files")
    for path in made:
        os.unlink(path)
    return seen


def _until_it_fails(make: Callable[[], T], most: int, what: str) -> tuple[str, list[T]]:
    """(what was seen, what was made); `most` lies beyond the ceiling."""
    made: list[T] = []
    try:
        while len(made) < most:
            made.append(make())
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0)} after {len(made)} {what}", made
    return f"{len(made)} {what} and no end", made


def fill(path: str, most_bytes: str) -> str:
    """Write one file until it fails."""
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < int(most_bytes):
                written += file.write(BLOCK) or 0
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0)} after {written >> 10} KiB"
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return f"{written >> 10} KiB and no end"


def sparse(path: str, size: str) -> str:
    """Make a file that claims this size and holds nothing."""
    try:
        with open(path, "wb") as file:
            file.truncate(int(size))
        return f"{int(size) >> 20} MiB claimed"
    finally:
        if os.path.exists(path):
            os.unlink(path)


def memory(most_mib: str) -> NoReturn:
    """Take memory and touch it; exit code 12 when it is refused. For the first process: how that ends is the answer."""
    kept = []
    try:
        for _ in range(int(most_mib)):
            kept.append(bytearray(b"x") * (1 << 20))
    except MemoryError:
        os._exit(12)
    os._exit(0)


def cpu(seconds: str, processes: str) -> str:
    """Burn with several processes at once; CPU seconds used a second."""
    began = time.monotonic()
    until = began + float(seconds)
    for _ in range(int(processes)):
        if os.fork() == 0:
            while time.monotonic() < until:
                pass
            os._exit(0)
    for _ in range(int(processes)):
        os.wait()
    used = os.times()
    return f"{(used.children_user + used.children_system) / (time.monotonic() - began):.2f} CPUs"


# ------------------------------------------------------------------ log


def flood(mebibytes: str) -> None:
    """So many MiB of lines."""
    line = (b"x" * 1023 + b"\n") * 1024
    for _ in range(int(mebibytes)):
        _say(line)


def endless_line(mebibytes: str) -> None:
    """One line of so many MiB, then progress: the reader must have kept its place."""
    for _ in range(int(mebibytes)):
        _say(b"x" * (1 << 20))
    _say(b"\nprogress: 0.5\n")


def controls() -> None:
    """What steers a terminal: title, clear, a link, the alternate screen, a bell, C1, a carriage return, text direction."""
    _say("\x1b]0;owned\x07\x1b[2J\x1b]8;;http://x\x07\x1b[?1049h\x9b31m\r\u202eowned\x00\n".encode())


def _say(block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(1, view) :]


# ------------------------------------------------------------------ time and ends


def stubborn() -> None:
    """Ignore every signal that can be ignored, and go on."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    time.sleep(HARD_END_S / 2)


def stay(token: str) -> None:
    """A task with secrets: files in memory and a socket under this name, then a long work. Says progress once at it."""
    for folder in ("/tmp", "/dev/shm"):
        Path(folder, f"secret-{token}").write_text(token)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"\0secret-{token}")
        door.listen()
        _say(b"progress: 1\n")
        time.sleep(HARD_END_S)


def look_for(token: str) -> str:
    """Files in memory under this name."""
    found = [folder for folder in ("/tmp", "/dev/shm") if any(token in name for name in os.listdir(folder))]
    return "found in " + ", ".join(found) if found else "not found"


def daemon(lock: str) -> None:
    """Leave a process behind: forked twice, in a session of its own, deaf to signals. It holds the lock while it lives."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for deaf_to in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                signal.signal(deaf_to, signal.SIG_IGN)
            held = os.open(lock, os.O_RDWR)
            fcntl.flock(held, fcntl.LOCK_EX)
            os.write(held, b"alive")
            for number in (0, 1, 2):
                os.close(number)
            os.write(writer, b"x")
            os.close(writer)
            time.sleep(HARD_END_S)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)


def quit_with(code: str) -> NoReturn:
    """End with this exit code."""
    sys.exit(int(code))


def segfault() -> None:
    """Read address 0."""
    import ctypes

    ctypes.string_at(0)
