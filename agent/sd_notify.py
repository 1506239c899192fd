"""What a service says to systemd, and what it was handed at its start: readiness, a watchdog, sockets, credentials.

A few lines over the datagram socket that $NOTIFY_SOCKET names, as sd_notify(3) has them; no library. Without systemd every
word goes nowhere, so nothing that speaks here need ask.

    systemd = Systemd.of(os.environ)
    systemd.ready("serves https://0.0.0.0:8443")
    with systemd.watched({"network": knock, "ledger": read}):   # WATCHDOG=1 only while each of these comes round
        wait_for_signal()
    systemd.stopping()
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from agent.errors import AgentError, BadSettings
from agent.log import get_logger

log = get_logger(__name__)

FIRST_SOCKET = 3  # SD_LISTEN_FDS_START
MAX_STATUS = 400  # characters: systemctl shows one line
OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
TURNS_PER_LIMIT = 4  # how often a thing is looked at in the time after which it counts as stuck

Look = Callable[[], object]
"""Returns when one thing goes round; what it gives says nothing. Raises when it does not."""


@dataclass(frozen=True, slots=True)
class Systemd:
    """The service manager, if one started this process. `watchdog_s`: it wants to hear of progress this often, or never."""

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Systemd":
        """Who started a process with this environment. An abstract socket is written with an @."""
        address = environment.get("NOTIFY_SOCKET") or None
        if address is not None and not address.startswith(("/", "@")):
            log.warning("systemd.unknown_socket", advice="NOTIFY_SOCKET is neither a path nor abstract.")
            address = None
        return cls(address, None if address is None else _watchdog_s(environment))

    def ready(self, status: str) -> None:
        """The service answers from now on, or again after a reload."""
        self._say("READY=1", _status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._say(_status(text))

    @contextmanager
    def reloading(self, status: str) -> Iterator[None]:
        """Settings are read anew while the block runs; `systemctl reload` of a Type=notify-reload unit waits for its end."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", _status("reloading"))
        try:
            yield
        finally:
            self.ready(status)

    def stopping(self, status: str = "stopping") -> None:
        """The service is about to end."""
        self._say("STOPPING=1", _status(status))

    def alive(self) -> None:
        """It goes on: the watchdog's clock starts anew."""
        self._say("WATCHDOG=1")

    @contextmanager
    def watched(self, looks: Mapping[str, Look]) -> Iterator[None]:
        """Tell the watchdog of progress while the block runs: whenever every look came round since the last time.

        Each look runs in a thread of its own, so that one that hangs is named in the log before systemd ends the process.
        Nothing runs where no watchdog is set.
        """
        if self.watchdog_s is None:
            yield
            return
        watch = Watch(looks, self.alive, self.watchdog_s)
        watch.start()
        try:
            yield
        finally:
            watch.stop()

    def _say(self, *lines: str) -> None:
        if self.address is None:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
                door.settimeout(5.0)
                door.connect(name)
                door.sendall("\n".join(lines).encode())
        except OSError as cause:  # systemd that does not listen is no reason to fail
            log.warning("systemd.not_told", what=lines[0], detail=str(cause))


def forget(environment: MutableMapping[str, str]) -> None:
    """Take out what was meant for this process alone: container tools would speak to systemd in its name."""
    for name in OURS:
        environment.pop(name, None)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:MAX_STATUS]}"


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    pid, told = environment.get("WATCHDOG_PID"), environment.get("WATCHDOG_USEC", "")
    if not told.isdigit() or int(told) == 0 or pid not in (None, "", str(os.getpid())):
        return None
    return int(told) / 1e6


# ------------------------------------------------------------------ the watchdog


@dataclass
class _Turn:
    """One thing that is looked at, over and over, in a thread of its own."""

    name: str
    look: Look
    began_at: float = field(default_factory=time.monotonic)
    turns: int = 0


class Watch:
    """Calls `alive` as often as needed, but only after each look came round since the last call."""

    def __init__(self, looks: Mapping[str, Look], alive: Callable[[], None], limit_s: float) -> None:
        self._turns = [_Turn(name, look) for name, look in looks.items()]
        self._alive = alive
        self._limit_s = limit_s
        self._is_over = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin, in threads of this process; the first word comes at once, so that a slow start is not held against it."""
        self._alive()
        for turn in self._turns:
            self._go(f"watching {turn.name}", self._keep_looking, turn)
        self._go("watchdog", self._keep_telling)

    def stop(self) -> None:
        """Say nothing more. A look that hangs is not waited for."""
        self._is_over.set()

    def _go(self, name: str, what: Callable[..., None], *told: _Turn) -> None:
        thread = threading.Thread(target=what, args=told, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _keep_looking(self, turn: _Turn) -> None:
        while not self._is_over.is_set():
            turn.began_at = time.monotonic()
            try:
                turn.look()
                turn.turns += 1
            except (AgentError, OSError) as error:
                log.warning("watchdog.look_failed", what=turn.name, detail=str(error))
            self._is_over.wait(self._limit_s / TURNS_PER_LIMIT)

    def _keep_telling(self) -> None:
        seen = [0] * len(self._turns)
        while not self._is_over.wait(self._limit_s / TURNS_PER_LIMIT):
            now = [turn.turns for turn in self._turns]
            if all(after > before for after, before in zip(now, seen, strict=True)):
                self._alive()
                seen = now
                continue
            stuck = [
                turn.name for turn, before in zip(self._turns, seen, strict=True) if turn.turns == before
            ]
            waited_s = max(time.monotonic() - turn.began_at for turn in self._turns if turn.name in stuck)
            if waited_s > self._limit_s / 2:
                log.error("watchdog.stuck", what=stuck, for_s=round(waited_s, 1))


class Rounds:
    """Threads that must come round: each says so, and may say beforehand how long its next round may take.

    `look` gives no answer while one of them is overdue, so that a watchdog that calls it falls silent.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._lock = threading.Condition()
        self._due: dict[str, float] = {}

    def turn(self, name: str, within_s: float | None = None) -> None:
        """This thread came round; it will again within this time."""
        with self._lock:
            self._due[name] = time.monotonic() + (self._every_s if within_s is None else within_s)
            self._lock.notify_all()

    def leave(self, name: str) -> None:
        """This thread need not come round any more."""
        with self._lock:
            self._due.pop(name, None)
            self._lock.notify_all()

    def overdue(self) -> tuple[str, ...]:
        """Who should have come round by now."""
        now = time.monotonic()
        with self._lock:
            return tuple(sorted(name for name, at in self._due.items() if at < now))

    def look(self) -> None:
        """Returns when nobody is overdue."""
        while self.overdue():
            with self._lock:
                self._lock.wait(1.0)


# ------------------------------------------------------------------ sockets


def handed_sockets(environment: Mapping[str, str]) -> tuple[socket.socket, ...]:
    """The listening sockets that systemd opened for this process, see sd_listen_fds(3); none when it opened none.

    They are this process's to close; systemd keeps its own hand on them, so that who calls while nobody serves waits.
    Raises: BadSettings when a descriptor is no listening stream socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return ()
    try:
        count = int(environment.get("LISTEN_FDS", "0"))
    except ValueError:
        return ()
    return tuple(_listening(FIRST_SOCKET + n) for n in range(count))


def _listening(number: int) -> socket.socket:
    try:
        os.set_inheritable(number, False)
        found = socket.socket(fileno=number)
        is_listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as cause:
        raise BadSettings(
            f"descriptor {number}, handed over by systemd, is no socket: {cause.strerror}"
        ) from cause
    if found.type != socket.SOCK_STREAM or not is_listening:
        raise BadSettings(f"descriptor {number}, handed over by systemd, is no listening stream socket")
    return found
