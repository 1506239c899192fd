"""What the simulated hosts stand on in place of this machine: its clocks, its disk, its memory, and a log that nobody reads.

Everything else of the operating system is real: workspaces are folders on a tmpfs, with their modes, locks and renames.

Many hosts in one process read and verify the same bytes. What a pure function made of them is kept: a document by its bytes,
and a signature that was found good, by key, bytes and signature. Each is really parsed and really verified once.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import structlog

from agent import worker as real_worker
from agent.domain import receipts, strict_json
from agent.log import get_logger
from agent.pipeline import phases, reconcile, space
from agent.trust import envelope
from agent.trust.keys import PublicKey
from tests.simulate.plan import Blow

if TYPE_CHECKING:
    from tests.simulate.world import Consortium

BLOCK_BYTES = 4096
BLOCKS = 1 << 30


KEPT = 30_000  # answers of a pure function: those on orders under way


class CrashLog:
    """The log of a worker: what nobody foresaw is kept."""

    def __init__(self, crashes: list[str]) -> None:
        self._crashes = crashes

    def exception(self, name: str, **values: object) -> None:
        self._crashes.append(f"{name} {values}: {traceback.format_exc()}")

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **values: None


class SilentLog:
    """The log of everybody else. Nobody reads it, so nothing is bound or rendered for it."""

    def __getattr__(self, name: str) -> Any:
        return _say_nothing


def _say_nothing(*_args: object, **_values: object) -> None:
    return


class Kept(dict[Any, Any]):
    """The newest answers by what was asked: at least KEPT of them, twice as many at most. One that is asked for stays."""

    def __init__(self) -> None:
        super().__init__()
        self._older: dict[Any, Any] = {}

    def __missing__(self, asked: Any) -> Any:
        found = self._older.get(asked)
        if found is not None:
            self[asked] = found
        return found

    def __setitem__(self, asked: Any, answer: Any) -> None:
        if len(self) >= KEPT:
            self._older = dict(self)
            self.clear()
        super().__setitem__(asked, answer)


def decoded_once() -> Callable[..., Any]:
    """`strict_json.decode`, asked once for the same bytes and type: values are frozen."""
    real, known = strict_json.decode, Kept()

    def decode(data: bytes, kind: Any, *, limit_bytes: int, **named: Any) -> Any:
        found = known[data, kind]
        if found is None or len(data) > limit_bytes:
            found = known[data, kind] = real(data, kind, limit_bytes=limit_bytes, **named)
        return found

    return decode


def envelopes_parsed_once() -> Callable[..., Any]:
    """`envelope.parse_envelope`, asked once for the same bytes: who asks again gets the same payload, whose hash is known."""
    real, known = envelope.parse_envelope, Kept()

    def parse_envelope(data: bytes, *, limit_bytes: int) -> Any:
        found = known[data, limit_bytes]
        if found is None:
            found = known[data, limit_bytes] = real(data, limit_bytes=limit_bytes)
        return found

    return parse_envelope


def receipts_parsed_once() -> Callable[[bytes], Any]:
    """`receipts.parse_receipt`, asked once for the same bytes."""
    real, known = receipts.parse_receipt, Kept()

    def parse_receipt(payload: bytes) -> Any:
        found = known[payload]
        if found is None:
            found = known[payload] = real(payload)
        return found

    return parse_receipt


def verified_once() -> Callable[[PublicKey, bytes, bytes], None]:
    """`PublicKey.verify`, asked once for what it finds good."""
    real, good = PublicKey.verify, Kept()

    def verify(key: PublicKey, signature: bytes, data: bytes) -> None:
        name = (key.raw, signature, data)
        if good[name] is None:
            real(key, signature, data)
            good[name] = True

    return verify


@contextmanager
def everywhere(real: Any, instead: Any) -> Iterator[None]:
    """While the context lasts, every module that has this function or value by some name has the other one."""
    _replace(real, instead)
    try:
        yield
    finally:
        _replace(instead, real)  # also in a module that was imported meanwhile


def _replace(found: Any, instead: Any) -> None:
    for name, module in tuple(sys.modules.items()):
        if name.partition(".")[0] in {"agent", "tests"}:
            for given in [given for given, value in vars(module).items() if value is found]:
                setattr(module, given, instead)


@contextmanager
def silenced() -> Iterator[None]:
    """While the context lasts, no module of the agent writes a log."""
    speaking = type(get_logger(__name__))
    with ExitStack() as stack:
        for name, module in tuple(sys.modules.items()):
            if name.startswith("agent.") and isinstance(vars(module).get("log"), speaking):
                stack.enter_context(patch.object(module, "log", SilentLog()))
        yield


@contextmanager
def simulated_machine(world: "Consortium") -> Iterator[None]:
    """While the context lasts, code of the agent sees the world's clock and disks."""
    real_statvfs, root = os.statvfs, f"{world.root}/"

    def statvfs(path: Any) -> Any:
        text = os.fspath(path) if not isinstance(path, int) else ""
        if not isinstance(text, str) or not text.startswith(root):
            return real_statvfs(path)
        host = world.hosts[int(text[len(root) :].split("/")[0].removeprefix("h"))]
        free = 0 if host.is_during(Blow.DISK_FULL) else BLOCKS
        return SimpleNamespace(
            f_frsize=BLOCK_BYTES, f_bsize=BLOCK_BYTES, f_blocks=BLOCKS, f_bfree=free, f_bavail=free
        )

    before = structlog.get_config()
    with ExitStack() as stack:
        stack.enter_context(patch.object(os, "statvfs", statvfs))
        stack.enter_context(patch.object(phases, "time", SimpleNamespace(monotonic=lambda: world.hub.now_s)))
        stack.enter_context(patch.object(space, "file_system_of", lambda *_: "tmpfs"))
        stack.enter_context(patch.object(space, "memory_available", lambda *_: ()))
        stack.enter_context(everywhere(strict_json.decode, decoded_once()))
        stack.enter_context(everywhere(envelope.parse_envelope, envelopes_parsed_once()))
        stack.enter_context(everywhere(receipts.parse_receipt, receipts_parsed_once()))
        stack.enter_context(patch.object(PublicKey, "verify", verified_once()))
        drawn = SimpleNamespace(SystemRandom=lambda: world.dice)
        stack.enter_context(patch.object(reconcile, "secrets", drawn))
        stack.enter_context(silenced())
        stack.enter_context(patch.object(real_worker, "log", CrashLog(world.hub.crashes)))
        stack.callback(structlog.configure, **before)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        yield
