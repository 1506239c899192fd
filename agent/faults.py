"""Faults on purpose, for a host under test (`make chaos`): named points at which a run's file says what goes wrong, and a moved
clock. `wiring.py` puts points around the ports and at the ledger's commit, only when DC_COMPUTE_FAULTS names that file.

A point is `<port>.<method>.before`, `.after`, or `ledger.commit`. The file is JSON, replaced whole by whoever runs the test:

    {"clock_s": -3600.0, "armed": {"ledger.move.after": {"id": "17", "act": "kill", "skip": 0}}}

`act`: kill (SIGKILL to this process), raise (the port's own error), full (NoSpace; ENOSPC at the commit), sleep (`sleep_s`).
`skip`: passages that are let by first. What is armed happens once in all processes that share the file: whoever makes
FILE.fired/ID first does it. FILE.hits/POINT says that a point was reached.
"""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from agent.errors import (
    LedgerUnavailable,
    NoSpace,
    OrchestratorUnavailable,
    OutsideError,
    PeerUnavailable,
    RuntimeUnavailable,
    StorageUnavailable,
)
from agent.log import get_logger
from agent.ports import Ports

log = get_logger(__name__)

VARIABLE = "DC_COMPUTE_FAULTS"
COMMIT = "ledger.commit"
UNAVAILABLE: Mapping[str, type[OutsideError]] = {  # by port: what it raises when it cannot
    "ledger": LedgerUnavailable,
    "broker": OutsideError,
    "storage": StorageUnavailable,
    "orchestrators": OrchestratorUnavailable,
    "peers": PeerUnavailable,
    "runtime": RuntimeUnavailable,
    "images": OutsideError,
    "hands": LedgerUnavailable,
}

Port = TypeVar("Port")


def find_faults(environment: Mapping[str, str]) -> "Faults | None":
    """The faults that this environment asks for; None on every host that is not under test."""
    named = environment.get(VARIABLE)
    return Faults(Path(named)) if named else None


class Faults:
    """What goes wrong in this process, as the run's file says at each moment."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._told: dict[str, Any] = {}
        self._passages: dict[str, int] = {}  # by id of what is armed
        self._hit: set[str] = set()

    def point(self, name: str, unavailable: Callable[[str], Exception]) -> None:
        """Pass this point: nothing, or what is armed here. Raises: whatever `unavailable` makes, OSError."""
        self._note(name)
        armed = self._read().get("armed", {}).get(name)
        if armed is not None and self._is_due(armed):
            self._act(name, armed, unavailable)

    def clock(self, now: Callable[[], datetime]) -> Callable[[], datetime]:
        """This clock, moved as the file says."""
        return lambda: now() + timedelta(seconds=self._read().get("clock_s", 0.0))

    def before_commit(self) -> None:
        """Pass the point between a transaction's last write and its COMMIT."""
        self.point(COMMIT, LedgerUnavailable)

    def ports(self, ports: Ports) -> Ports:
        """These ports with points around every method."""
        log.critical(
            "faults.armed",
            file=str(self.file),
            advice=f"This agent is under test: it fails on purpose. Unset {VARIABLE}.",
        )
        doors = {name: self.around(name, getattr(ports, name), error) for name, error in UNAVAILABLE.items()}
        return replace(ports, **doors)

    def around(self, name: str, port: Port, unavailable: Callable[[str], Exception]) -> Port:
        """The port with a point before and after each of its methods, and of what it opens: a run."""
        return cast(Port, _Around(self, name, port, unavailable))

    def _read(self) -> dict[str, Any]:
        try:
            about = self.file.stat()
            with self._lock:
                version = (about.st_mtime_ns, about.st_ino)
                if version != self._version:
                    self._told = json.loads(self.file.read_bytes())
                    self._version = version
                return self._told
        except FileNotFoundError:  # the test is over, this process not yet
            return {}

    def _note(self, name: str) -> None:
        if name not in self._hit:
            self._hit.add(name)
            _make(self.file.with_name(f"{self.file.name}.hits") / name, b"")

    def _is_due(self, armed: Mapping[str, Any]) -> bool:
        with self._lock:
            passages = self._passages[armed["id"]] = self._passages.get(armed["id"], 0) + 1
        return passages > int(armed.get("skip", 0))

    def _act(self, name: str, armed: Mapping[str, Any], unavailable: Callable[[str], Exception]) -> None:
        told = json.dumps({"point": name, "pid": os.getpid(), "act": armed["act"]}).encode()
        if not _make(self.file.with_name(f"{self.file.name}.fired") / armed["id"], told):
            return
        match armed["act"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise unavailable(f"a fault was armed at {name}")
            case "full" if name == COMMIT:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "full":
                raise NoSpace(f"a full disk was armed at {name}")
            case "sleep":
                time.sleep(armed["sleep_s"])
            case unknown:
                raise ValueError(f"no fault is called {unknown!r}")


class _Around:
    """A port, or a run that it started, seen through its points."""

    def __init__(
        self, faults: Faults, name: str, inner: object, unavailable: Callable[[str], Exception]
    ) -> None:
        self._faults = faults
        self._name = name
        self._inner = inner
        self._unavailable = unavailable

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._inner, attribute)
        if attribute.startswith("_") or not callable(value):
            return value

        def call(*args: object, **kwargs: object) -> Any:
            self._pass(f"{attribute}.before")
            answer = value(*args, **kwargs)
            if hasattr(answer, "__enter__"):  # a run: it starts when it is entered
                return _Entered(self, attribute, answer)
            self._pass(f"{attribute}.after")
            return answer

        return call

    def _pass(self, point: str) -> None:
        self._faults.point(f"{self._name}.{point}", self._unavailable)

    def _within(self, attribute: str, inner: object) -> "_Around":
        return _Around(self._faults, f"{self._name}.{attribute}", inner, self._unavailable)


class _Entered:
    """A context manager that a port gave: the point after its method lies where it was entered."""

    def __init__(self, around: _Around, attribute: str, inner: Any) -> None:
        self._around = around
        self._attribute = attribute
        self._inner = inner

    def __enter__(self) -> object:
        with ExitStack() as undo:
            entered = undo.enter_context(self._inner)
            self._around._pass(f"{self._attribute}.after")
            undo.pop_all()
        is_port = hasattr(entered, "__dict__") or hasattr(entered, "__slots__")
        return self._around._within(self._attribute, entered) if is_port else entered

    def __exit__(self, *told: object) -> bool | None:
        return cast("bool | None", self._inner.__exit__(*told))


def _make(path: Path, content: bytes) -> bool:
    """Make this file, whole at once; whether it was not there before."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    beside.write_bytes(content)
    try:
        path.hardlink_to(beside)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True
