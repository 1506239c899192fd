"""SIGHUP to a service: read your files again. Heard from the first line on, answered in a thread of its own, one by one.

However many come while one is answered, one more round follows. A signal that comes because the terminal went away ends the
service, as it ends any program.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Hangups:
    """The signals of this process. Make it in the main thread, before there is anything to reload."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)  # unlike a lock or an Event, safe to ring from a handler
        self._had_terminal = _has_terminal()
        self._is_over = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Keep SIGHUP from ending the process, from here on. What is heard waits for `answered`."""
        before = signal.signal(signal.SIGHUP, self._hear)
        try:
            yield
        finally:  # not its default: a late signal would end a process that is about to end well
            signal.signal(signal.SIGHUP, signal.SIG_IGN if before is signal.SIG_DFL else before)

    @contextmanager
    def answered(self, answer: Callable[[], object]) -> Iterator[None]:
        """Answer each, in a thread, while the block lasts. One that is being answered at its end is answered whole."""

        def listen() -> None:
            while os.eventfd_read(self._bell) and not self._is_over:
                if self._had_terminal and not _has_terminal():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                answer()

        thread = threading.Thread(target=listen, name="reload", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over = True
            os.eventfd_write(self._bell, 1)
            thread.join()

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        os.eventfd_write(self._bell, 1)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
