"""The output of a container under conmon: from conmon's socket, or from the capped log that conmon keeps in the run's folder.

On the socket each packet is a mark of the stream and a block; it gives what is said from now on. The log is there when no
worker was, and has the newest part of what was said. Each line of it: when, which stream, F or P (whole, or not ended
yet), words.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agent.errors import RuntimeUnavailable
from agent.ports import run_end

STDOUT = 2  # conmon's mark; 3 is stderr
BLOCK_BYTES = 1 << 16
LOOK_S = 0.1


class ConmonOutput:
    """Implements `Output`."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the bundle. Raises: RuntimeUnavailable."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = None
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            self._socket.connect(
                f"/proc/self/fd/{fd}/attach"
            )  # the folder's own path may be too long for a socket's
        except OSError as cause:
            self._socket.close()
            raise RuntimeUnavailable(f"conmon gives no output of a container: {cause}") from cause
        finally:
            if fd is not None:
                os.close(fd)

    def read(self, take: Callable[[bytes, bool], None]) -> None:
        """As the protocol says."""
        with contextlib.suppress(OSError):
            while block := self._socket.recv(BLOCK_BYTES):
                take(block[1:], block[0] == STDOUT)

    def close(self) -> None:
        """As the protocol says."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class ConmonLog:
    """Implements `Output`: what the log has, and what conmon adds until it ends. No log is nothing said.

    `monitor` is a pidfd of conmon, None when it is gone; the caller closes it after this.
    """

    def __init__(self, folder: Path, monitor: int | None) -> None:
        self._path, self._monitor = folder / "log", monitor
        self._is_closed = threading.Event()

    def read(self, take: Callable[[bytes, bool], None]) -> None:
        """As the protocol says."""
        with contextlib.ExitStack() as stack:
            file, rest = self._open(stack), b""
            while file is not None and not self._is_closed.is_set():
                is_all = self._monitor is None or run_end.ends_within(
                    self._monitor, 0
                )  # asked before reading
                rest = _take_lines(file, rest, take)
                if self._is_replaced(file):  # conmon begins anew when the log is full
                    _take_lines(file, rest, take)
                    file, rest = self._open(stack), b""
                elif is_all:
                    return
                elif self._monitor is not None:
                    run_end.ends_within(self._monitor, LOOK_S)

    def close(self) -> None:
        """As the protocol says."""
        self._is_closed.set()

    def _open(self, stack: contextlib.ExitStack) -> BinaryIO | None:
        stack.close()  # the one before
        try:
            return stack.enter_context(self._path.open("rb"))
        except OSError:
            return None

    def _is_replaced(self, file: BinaryIO) -> bool:
        try:
            return os.stat(self._path).st_ino != os.fstat(file.fileno()).st_ino
        except OSError:
            return False


def _take_lines(file: BinaryIO, rest: bytes, take: Callable[[bytes, bool], None]) -> bytes:
    """Hand on every whole line that is there; gives what is left of the last one."""
    while block := file.read(BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            _, stream, kind, words = (line.split(b" ", 3) + [b""] * 3)[:4]
            take(words + (b"\n" if kind == b"F" else b""), stream == b"stdout")
    return rest
