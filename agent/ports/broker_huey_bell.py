"""A bell between processes: who rings wakes whoever waits, within milliseconds, and waiting costs nothing while nobody rings.

Every listening process binds a datagram socket in one folder; a ring is one datagram, the name of what is rung, to each socket
found there. The folder's mode is the permission. A datagram may be lost (a full socket, a process that only just starts), and a
killed process leaves its socket behind: so who waits looks by himself every few seconds too, and who rings removes the dead.
"""

import os
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_LONGEST_NAME: Final = 64  # bytes


class Bells:
    """Rings for all processes that listen in the same folder. Raises OSError when it cannot be made or opened."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def ring(self, name: str) -> None:
        """Wake who waits for this name, in any process. Never blocks and never fails: a bell may be lost."""
        for entry in os.listdir(self._folder):
            try:
                self._sender.sendto(name.encode(), self._path_of(entry))
            except (ConnectionRefusedError, BrokenPipeError):  # nobody holds that socket any more
                self._remove(entry)
            except OSError:
                continue  # gone just now; or so many bells unread that it wakes anyway

    def listen(self, names: Iterable[str]) -> "Listener":
        """This process hears these names from now on. Raises: OSError."""
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        entry = f"{os.getpid()}-{secrets.token_hex(4)}"
        ear.bind(self._path_of(entry))
        return Listener(ear, names, lambda: self._remove(entry))

    def close(self) -> None:
        """Ring no more."""
        self._sender.close()
        os.close(self._folder)

    def _path_of(self, entry: str) -> str:
        """A socket's path has 107 bytes at most; through the open folder every path is short."""
        return f"/proc/self/fd/{self._folder}/{entry}"

    def _remove(self, entry: str) -> None:
        with suppress(OSError):
            os.unlink(entry, dir_fd=self._folder)


class Listener:
    """This process's ear: a thread that hears, for any number of threads that wait."""

    def __init__(self, ear: socket.socket, names: Iterable[str], remove: Callable[[], None]) -> None:
        self._ear = ear
        self._remove = remove
        self._lock = threading.Lock()
        self._waiting = {name: threading.Condition(self._lock) for name in names}
        self._heard: Counter[str] = Counter()
        self.is_open = True  # until `close`
        self._thread = threading.Thread(target=self._listen, name="bells", daemon=True)
        self._thread.start()

    def heard(self, name: str) -> int:
        """How often this name was rung. Ask before looking whether there is work, and give it to `wait` when there is none."""
        return self._heard[name]

    def wait(self, name: str, heard: int, timeout_s: float) -> None:
        """Return at the next ring after that count, after `timeout_s`, or when the listener closes."""
        with self._lock:
            self._waiting[name].wait_for(
                lambda: not self.is_open or self._heard[name] != heard, timeout=timeout_s
            )

    def pass_on(self, name: str) -> None:
        """Wake one more thread of this process: bells get lost in a crowd, so who found work wakes the next."""
        with self._lock:
            if name in self._waiting:
                self._heard[name] += 1
                self._waiting[name].notify()

    def close(self) -> None:
        """Hear no more, and let everybody go who waits."""
        self._remove()
        with self._lock:
            self.is_open = False
            for waiting in self._waiting.values():
                waiting.notify_all()
        self._ear.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._ear.close()

    def _listen(self) -> None:
        while name := self._ear.recv(_LONGEST_NAME):  # empty: it was shut down
            self.pass_on(name.decode(errors="replace"))
