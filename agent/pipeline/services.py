"""What each service of this agent runs with, told by itself in a file: its settings, its files' digests, how its reloads went.

The API and the worker are two processes. Each keeps a file of its own in one folder, and a lock on another one beside it
while it lives: whoever can take the lock knows that the service is gone. Nothing secret stands there; paths of keys do.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.domain.ids import Digest
from agent.domain.prepared import prepared
from agent.log import get_logger
from agent.whole_files import write_whole

log = get_logger(__name__)

STATE, LOCK = ".json", ".lock"


class Setting(Struct, frozen=True):
    """A value that a service runs with. `source`: default, file, variable, flag, credential; `where`: which one."""

    value: Any
    source: str
    where: str | None = None


class Reload(Struct, frozen=True, kw_only=True):
    """How a reload ended. `changed`: what it took over; `code`, `detail`: why not; `waits`: keys that need a restart."""

    at: datetime
    is_taken: bool
    changed: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    code: str | None = None
    detail: str | None = None


class Service(Struct, frozen=True, kw_only=True):
    """One running service. `asked_ns`: when its last reload began, on the monotonic clock that a host's processes share."""

    service: str  # api, worker
    pid: int
    version: str
    started: datetime
    settings: dict[str, dict[str, Setting]]
    roster: Digest
    policy: Digest
    certificate: Digest | None = None  # of the file that is served
    taken: int = 0
    refused: int = 0
    asked_ns: int = 0
    last: Reload | None = None

    @property
    def file(self) -> str:
        """The name of the file in which it tells of itself."""
        return f"{self.service}-{self.pid}{STATE}"


class Board:
    """Where one service tells of itself."""

    def __init__(self, folder: Path, service: Service) -> None:
        self._path = folder / f"{service.service}-{service.pid}"
        self.seen = service

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Its file is there while the block lasts. A folder that cannot be written to is logged, and no more."""
        lock = -1
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(self._path.with_suffix(LOCK), flags, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)  # who looks at it lets go at once
        except OSError as error:
            log.error("service.not_shown", path=str(self._path), detail=str(error))
        self.tell()
        _sweep(self._path.parent)
        try:
            yield
        finally:
            for suffix in (STATE, LOCK):
                with suppress(OSError):
                    self._path.with_suffix(suffix).unlink()
            if lock >= 0:
                os.close(lock)

    def tell(self, **changes: Any) -> None:
        """Write the file anew, with these changes."""
        self.seen = replace(self.seen, **changes)
        try:
            write_whole(self._path.with_suffix(STATE), msgspec.json.encode(self.seen))
        except OSError as error:
            log.error("service.not_shown", path=str(self._path), detail=str(error))


def running(folder: Path) -> tuple[Service, ...]:
    """Every service that lives, the API first. Raises: OSError for somebody who may not look."""
    found = []
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return ()
    for path in paths:
        if path.suffix != STATE or not _is_held(path.with_suffix(LOCK)):
            continue
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            told = msgspec.json.decode(path.read_bytes(), type=prepared(Service))
            if told.file == path.name:
                found.append(told)
    return tuple(found)


def _sweep(folder: Path) -> None:
    """Take away what services left that were killed. A lock without a state may be of one that just begins."""
    with suppress(OSError):
        for state in folder.glob(f"*{STATE}"):
            if not _is_held(state.with_suffix(LOCK)):
                state.unlink(missing_ok=True)
                state.with_suffix(LOCK).unlink(missing_ok=True)


def _is_held(lock: Path) -> bool:
    """Whether a process that lives holds the lock."""
    try:
        number = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False
