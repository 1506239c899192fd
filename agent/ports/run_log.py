"""What a guest says: stdout and stderr capped with head and tail kept, and the progress it reports. Bytes in, bytes out.

Source: docs/contracts/container.md, "Progress".
"""

import re
import threading

MARK_BYTES = 64  # room for the line that stands where the middle was
MAX_LINE_BYTES = 4096

_PROGRESS = re.compile(rb"progress:[ \t]*([01](?:\.[0-9]{1,9})?)(?:[ \t].*)?")


class RunLog:
    """Takes what arrives, in any amount, and keeps at most `limit_bytes` of it. Safe to read from another thread."""

    def __init__(self, limit_bytes: int) -> None:
        room = max(0, limit_bytes - MARK_BYTES)
        self._limit_bytes = limit_bytes
        self._head_bytes, self._tail_bytes = room // 2, room - room // 2
        self._head, self._tail = bytearray(), bytearray()
        self._seen_bytes = 0
        self._line = bytearray()
        self._progress: float | None = None
        self._lock = threading.Lock()

    def add(self, block: bytes, *, is_stdout: bool) -> None:
        """Take the next bytes of one stream, in the order they arrived."""
        with self._lock:
            self._keep(block)
            if is_stdout:
                self._read_lines(block)

    def kept(self) -> bytes:
        """Everything when it fits, else head and tail around a line that says how much was left out."""
        with self._lock:
            if self._seen_bytes <= self._limit_bytes:
                return bytes(self._head + self._tail)
            tail = self._tail[-self._tail_bytes :] if self._tail_bytes else b""
            left_out = self._seen_bytes - len(self._head) - len(tail)
            whole = bytes(self._head) + b"\n[%d bytes left out]\n" % left_out + bytes(tail)
            return whole[: self._limit_bytes]

    def progress(self) -> float | None:
        """The highest number of a progress line so far, in [0, 1], two decimals; None when there was none."""
        return self._progress

    def _keep(self, block: bytes) -> None:
        self._seen_bytes += len(block)
        missing = self._head_bytes - len(self._head)
        if missing > 0:
            self._head += block[:missing]
            block = block[missing:]
        self._tail += block
        if len(self._tail) > 2 * self._tail_bytes + MARK_BYTES:
            del self._tail[: len(self._tail) - self._tail_bytes]

    def _read_lines(self, block: bytes) -> None:
        """Look for progress in whole lines; of a line over MAX_LINE_BYTES only the beginning counts."""
        *lines, rest = block.split(b"\n")
        for line in lines:
            self._read_line(bytes(self._line) + line[:MAX_LINE_BYTES])
            self._line.clear()
        self._line += rest[: MAX_LINE_BYTES - len(self._line)]

    def _read_line(self, line: bytes) -> None:
        match = _PROGRESS.fullmatch(line.rstrip(b"\r"))
        if match and (value := float(match[1])) <= 1:
            self._progress = round(max(value, self._progress or 0.0), 2)
